"""Exports: the encoder of a checkpoint as a folder that plain `transformers` opens.

    config.json, model.safetensors   `AutoModel.from_pretrained(folder)`; networks of our own: `load_encoder(folder)`
    preprocessor_config.json         what an input needs before the network sees it, and where the weights come from
    tokenizer.json                   of a text network, where its data still is: `AutoTokenizer.from_pretrained(folder)`

An export is made on a CPU, reads only the encoder's part of the checkpoint, and appears whole or not at all.
"""

from pretrain.export.files import PREPROCESSOR, Network, provenance, quiet_transformers, weights_digest
from pretrain.export.loading import LoadedEncoder, features_by_kind, load_encoder
from pretrain.export.writing import checkpoint_digest, export, find_checkpoint, trained_encoder, write_encoder

__all__ = [
    "PREPROCESSOR",
    "LoadedEncoder",
    "Network",
    "checkpoint_digest",
    "export",
    "features_by_kind",
    "find_checkpoint",
    "load_encoder",
    "provenance",
    "quiet_transformers",
    "trained_encoder",
    "weights_digest",
    "write_encoder",
]
