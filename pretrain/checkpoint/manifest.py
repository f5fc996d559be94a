"""MANIFEST.json: what makes a folder of files a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from data_pipelines.base import CheckpointError, Strict, canonical_json
from pretrain.checkpoint.tensors import digest_of_bytes
from pretrain.engine.layout import Cut, Entry

NAME = "MANIFEST.json"
STATE = "state.json"
FORMAT = "thalweg-checkpoint/1"


class FileLine(Strict):
    """One file of the checkpoint."""

    size: int
    """Bytes."""
    digest: str
    """xxh3-128 of its bytes."""


class TensorLine(Strict):
    """One tensor of the state, and how it is dealt to the ranks (`pretrain.engine.layout.Cut`)."""

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    kinds: tuple[str, ...]
    offset: int = Field(ge=0)
    piece: int = Field(gt=0)
    dtype: str = "float32"

    @classmethod
    def of(cls, entry: Entry) -> TensorLine:
        """The line of a catalogue's entry."""
        cut = entry.cut
        return cls(shape=cut.shape, kinds=entry.kinds, offset=cut.offset, piece=cut.piece, dtype=entry.dtype)

    @property
    def cut(self) -> Cut:
        """Which rank's file holds which elements."""
        return Cut(self.shape, self.offset, self.piece)


class Counters(Strict):
    """How far the engine was."""

    updates: int = Field(ge=0)
    """Optimizer steps applied."""
    steps: int = Field(ge=0)
    """Steps done, skipped ones included."""


class Manifest(Strict):
    """The whole manifest; `digest` is of the rest, so that damage to it is seen too."""

    format: str = FORMAT
    step: int
    attempt: int
    world_size: int
    engine: Counters
    tensors: dict[str, TensorLine]
    files: dict[str, FileLine]

    def to_json(self) -> str:
        """Text of the file."""
        tree = self.model_dump(mode="json")
        return json.dumps({**tree, "digest": _digest(tree)}, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a checkpoint.

        Raises:
            CheckpointError: absent, damaged, or of another format.
        """
        path = folder / NAME
        try:
            tree: Any = json.loads(path.read_bytes())
            digest = tree.pop("digest")
            manifest = cls.model_validate(tree)
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is no checkpoint: it has no {NAME}") from None
        except (ValueError, KeyError, AttributeError, TypeError, ValidationError):
            raise CheckpointError(f"{path} is damaged: not the JSON of a manifest") from None
        if digest != _digest(manifest.model_dump(mode="json")):
            raise CheckpointError(f"{path} is damaged: its digest does not fit")
        if manifest.format != FORMAT:
            raise CheckpointError(f"{path} has format {manifest.format!r}; this version reads {FORMAT!r}")
        return manifest


def _digest(tree: dict[str, Any]) -> str:
    return digest_of_bytes(canonical_json(tree))


def tensors_name(rank: int) -> str:
    """The file of a rank."""
    return f"rank-{rank:05d}.safetensors"


def done_name(rank: int) -> str:
    """What a rank leaves when its file is safe on disk."""
    return f"rank-{rank:05d}.done"


def slice_key(name: str, kind: str, start: int) -> str:
    """A slice's key inside a rank's file."""
    return f"{name}|{kind}|{start}"
