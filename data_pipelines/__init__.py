"""Data: shards, their order, the loader, views. Knows nothing of models."""
