"""Reading: any slice of any tensor, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipelines.base import CheckpointError, OtherModelError
from pretrain.checkpoint.manifest import STATE, Manifest, slice_key, tensors_name
from pretrain.checkpoint.tensors import as_bytes, digest_of_bytes, digest_of_file
from pretrain.engine.layout import Entry


class CheckpointReader:
    """A committed checkpoint.

    Attributes:
        path: its folder.
        manifest: what it holds.

    Raises:
        CheckpointError: no manifest, or a damaged one.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        self._files: dict[int, tuple[Any, dict[str, str]]] = {}

    @cached_property
    def state(self) -> dict[str, Any]:
        """Where the run stood, as it was given to `save`."""
        self.verify_file(STATE)
        state: dict[str, Any] = json.loads((self.path / STATE).read_bytes())
        return state

    def names(self, kind: str = "w") -> dict[str, tuple[int, ...]]:
        """Shapes by name of all tensors that have this kind ("w", "ema", "buffer", a moment)."""
        return {name: line.shape for name, line in self.manifest.tensors.items() if kind in line.kinds}

    def read(self, name: str, kind: str = "w", start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, flattened; fp32, buffers as they were.

        Raises:
            CheckpointError: no such tensor, or its file is damaged.
        """
        line = self.manifest.tensors.get(name)
        if line is None or kind not in line.kinds:
            raise CheckpointError(f"checkpoint {self.path} holds no {kind!r} of {name!r}")
        stop = line.cut.numel if stop is None else stop
        parts = [
            self._part(rank, slice_key(name, kind, line.cut.held_by(rank)[0]), line.cut.held_by(rank), begin, end)
            for rank, begin, end in line.cut.holders(start, stop)
        ]
        if not parts:
            return torch.empty(0)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Read every file, or the share of one of several ranks.

        Raises:
            CheckpointError: names the first file that is missing or damaged.
        """
        for name in sorted(self.manifest.files)[rank::world_size]:
            self.verify_file(name)

    def verify_file(self, name: str) -> None:
        """Compare one file with its line in the manifest; raises CheckpointError where they differ."""
        path, line = self.path / name, self.manifest.files[name]
        try:
            size = path.stat().st_size
            if size != line.size:
                raise CheckpointError(f"{path} is damaged: {size} bytes, {line.size} were written")
            if digest_of_file(path) != line.digest:
                raise CheckpointError(f"{path} is damaged: its digest is not that of what was written")
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error

    def refuse_other(self, catalogue: Mapping[str, Entry]) -> None:
        """Raise OtherModelError with the first difference to what an engine holds."""
        ours = {(kind, name): entry.cut.shape for name, entry in catalogue.items() for kind in entry.kinds}
        theirs = {(kind, name): line.shape for name, line in self.manifest.tensors.items() for kind in line.kinds}
        for kind, name in [*ours, *theirs]:
            here, there = ours.get((kind, name)), theirs.get((kind, name))
            if here != there:
                raise OtherModelError(
                    f"checkpoint {self.path} is of another model: {_words(kind, name)} is "
                    f"{_shape(there)} there and {_shape(here)} here; to begin from its weights: init_from={self.path}"
                )

    def _part(self, rank: int, key: str, held: tuple[int, int], begin: int, end: int) -> Tensor:
        """[begin, end) out of the slice of which `rank` holds `held`."""
        path = self.path / tensors_name(rank)
        try:
            file, digests = self._open(rank)
            part: Tensor = file.get_slice(key)[begin - held[0] : end - held[0]]
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
        # A part of a slice has no digest of its own; `verify` covers those.
        if (begin, end) == held and digest_of_bytes(as_bytes(part)) != digests.get(key):
            raise CheckpointError(f"{path} is damaged: the digest of {key!r} does not fit")
        return part

    def _open(self, rank: int) -> tuple[Any, dict[str, str]]:
        if rank not in self._files:
            path = self.path / tensors_name(rank)
            file = safe_open(path, framework="pt")
            metadata = file.metadata() or {}
            if metadata.get("step") != str(self.manifest.step) or metadata.get("rank") != str(rank):
                raise CheckpointError(f"{path} belongs to another checkpoint or rank")
            self._files[rank] = (file, json.loads(metadata["digests"]))
        return self._files[rank]


def _words(kind: str, name: str) -> str:
    return {"w": f"parameter {name!r}", "buffer": f"buffer {name!r}"}.get(kind, f"{kind} of {name!r}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {[*shape]}"
