"""Checkpoints by parameter name, free of world size and ZeRO stage.

    step-00001000/
      rank-00000.safetensors    what rank 0 owned, keys NAME|KIND|START, 1-D, digests in the header
      rank-00000.done           its size and digest, written when the file was safe on disk
      state.json                where the run stood: schedule, data position, ledger
      MANIFEST.json             names, shapes, who holds what, one line a file; written last

A folder is a checkpoint from the moment it has this name: it is staged as `step-N.attempt-K`.
"""

from pretrain.checkpoint.folder import committed, newest_whole, path_of, retain, surplus
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.writer import Save, save

__all__ = ["CheckpointReader", "Manifest", "Save", "committed", "newest_whole", "path_of", "retain", "save", "surplus"]
