"""Parts that objectives are made of: encoders on transformers models, heads, decoders, twins, queues."""
