"""Networks small enough that a test builds and trains them in moments."""

RESNET = {
    "architecture": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
HEAD = {"hidden_size": 16, "output_size": 8}
"""Projector or predictor."""
