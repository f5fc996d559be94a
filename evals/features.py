"""Features of every sample of a dataset, computed once and kept by what they depend on."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_pipelines.base import digest_of
from data_pipelines.loader import finite_batches
from data_pipelines.shards import Dataset
from data_pipelines.views.image import PlainImage

Compute = Callable[[Tensor], Mapping[str, Tensor]]
"""Normalised images (B, C, H, W) to features (B, D) by kind."""

CACHE_BYTES = 16 * 2**30
"""The cache forgets what was used longest ago beyond this size."""

_BATCH_SIZE = 128
_WORKERS = 2
_SAMPLES_WORTH_WORKERS = 2_000
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Source:
    """Something that turns images into features.

    Attributes:
        digest: names all that the features depend on besides data and view.
        view: of a sample.
        open: makes the function that computes; called only when nothing is cached.
    """

    digest: str
    view: PlainImage
    open: Callable[[torch.device], Compute]


@dataclass(frozen=True)
class FeatureTable:
    """Features of a dataset in file order, without its unreadable samples.

    Attributes:
        kinds: (N, D) float32 by kind.
        labels: (N,) int64, -1 where a sample has none.
    """

    kinds: Mapping[str, Tensor]
    labels: Tensor

    def to(self, device: torch.device) -> FeatureTable:
        """A copy on `device`."""
        return FeatureTable({kind: x.to(device) for kind, x in self.kinds.items()}, self.labels.to(device))


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cache_folder(name: str) -> Path:
    """A folder of `$THALWEG_CACHE`, by default `~/.cache/thalweg`."""
    return Path(os.environ.get("THALWEG_CACHE") or Path.home() / ".cache" / "thalweg") / name


def extract(source: Source, dataset: Dataset) -> FeatureTable:
    """Features of every readable sample, from the cache where they are known.

    Raises:
        DataError: too much of the dataset is unreadable.
    """
    digest = digest_of(["features", source.digest, dataset.digest, source.view.model_dump(mode="json")])
    path = cache_folder("features") / f"{digest}.safetensors"
    with alone(path):
        table = _read(path)
        if table is None:
            table = _compute(source, dataset)
            _write(table, path)
            forget_oldest(path.parent, CACHE_BYTES)
    return table


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process works on `path`; the lock dies with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks: the work may be done twice, the result is the same
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def forget_oldest(folder: Path, most_bytes: int) -> None:
    """Delete the files used longest ago until `folder` holds at most `most_bytes`; the newest one stays."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    held = sum(path.stat().st_size for path in files)
    for path in files[:-1]:
        if held <= most_bytes:
            return
        held -= path.stat().st_size
        path.unlink(missing_ok=True)


def _compute(source: Source, dataset: Dataset) -> FeatureTable:
    device = best_device()
    compute = source.open(device)
    rows: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    workers = _WORKERS if dataset.num_samples > _SAMPLES_WORTH_WORKERS else 0
    batches = finite_batches(
        dataset, source.view, seed=0, batch_size=_BATCH_SIZE, rank=0, world_size=1, workers=workers
    )
    progress = Progress(f"features of {dataset.name}", dataset.num_samples, "samples")
    for batch in batches:
        kept = batch.weight > 0
        for kind, features in compute(source.view.batch(batch.to(device))["image"]).items():
            rows.setdefault(kind, []).append(features.float().cpu()[kept])
        labels.append(batch["label"][kept])
        progress.add(len(batch))
    return FeatureTable({kind: torch.cat(parts) for kind, parts in rows.items()}, torch.cat(labels))


class Progress:
    """A line on stderr every ten seconds, with the time that is left."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit, self._done = what, total, unit, 0
        self._began = self._told = time.monotonic()

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done = min(self._done + count, self._total)
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        left = (now - self._began) * (self._total - self._done) / self._done
        print(
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def _read(path: Path) -> FeatureTable | None:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        path.touch()
    except (FileNotFoundError, SafetensorError):
        return None
    return FeatureTable(tensors, tensors.pop("labels"))


def _write(table: FeatureTable, path: Path) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file({**table.kinds, "labels": table.labels}, partial)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
