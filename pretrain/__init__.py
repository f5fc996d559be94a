"""Pretraining: recipe, engine, objectives, checkpoints, runs."""
