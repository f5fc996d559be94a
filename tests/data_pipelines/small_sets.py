"""Small sets, a view that shows what was read, and loaders of them, for tests."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from data_pipelines.batch import Batch, Sample
from data_pipelines.loader import Loader
from data_pipelines.manifest import Facts
from data_pipelines.order import Order, Stream
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset
from data_pipelines.views import Draw

LANES = 4
MODULUS = 2**128


@dataclass(frozen=True)
class Reading:
    """A view that shows which sample was read, and draws."""

    def sample(self, sample: Sample, draw: Draw) -> dict[str, np.ndarray]:
        return {
            "text": np.frombuffer(sample.fields["txt"].ljust(24), np.uint8),
            "noise": draw.rng("noise").random(3).astype(np.float32),
        }

    def batch(self, batch: Batch) -> Batch:
        return batch


@dataclass(frozen=True)
class Acting(Reading):
    """Does something at one slot first."""

    position: int
    act: Callable[[], object]

    def sample(self, sample, draw):
        if draw.position == self.position:
            self.act()
        return super().sample(sample, draw)


def write_tars(folder: Path, shard_sizes) -> None:
    folder.mkdir()
    for shard, size in enumerate(shard_sizes):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for member in range(size):
                content = f"{folder.name} {shard} {member}".encode()
                entry = tarfile.TarInfo(f"{folder.name}-{shard}-{member}.txt")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@contextmanager
def sets_of(all_shard_sizes):
    """Datasets "a", "b" ... of plain tars."""
    with tempfile.TemporaryDirectory() as folder:
        datasets = []
        for name, shard_sizes in zip("abc", all_shard_sizes, strict=False):
            write_tars(Path(folder) / name, shard_sizes)
            datasets.append(Dataset.open(str(Path(folder) / name), name=name))
        yield datasets


def order_of(datasets, seed=0, num_lanes=LANES, **rest):
    lanes = [num_lanes - len(datasets) + 1] + [1] * (len(datasets) - 1)
    streams = [Stream(d.name, d.shard_sizes, m) for d, m in zip(datasets, lanes, strict=True)]
    return Order(seed, streams, num_lanes, **{"window": 4, **rest})


def loader_of(datasets, order, view=None, **rest):
    settings = {
        "seed": 0, "global_batch": 8, "accumulation": 1, "rank": 0, "world_size": 1, "start": 0, "workers": 0,
        "prefetch": 2, "quarantine": None,
    }  # fmt: skip
    return Loader(datasets, order, view or Reading(), **{**settings, **rest})


def read(loader, count):
    try:
        return list(islice(loader, count))
    finally:
        loader.close()


def sixty_samples(folder: Path) -> Dataset:
    """60 samples in 4 shards, with indexes that know their digests."""
    samples = [(f"key{n:02d}", {"txt": f"sample {n:02d}".encode()}) for n in range(60)]
    split = Split("train", samples, 60, 600, lambda: (Facts(), ()))
    return write_sets(folder / "set", [split], PackConfig(samples_per_shard=15), name="set", source="a test")[0]


def damage(dataset, key, back=False):
    """Change one byte of a sample in its tar, or change it back."""
    good, bad = f"sample {key[3:]}".encode(), f"sXmple {key[3:]}".encode()
    for path in Path(dataset.path).glob("*.tar"):
        content = path.read_bytes()
        path.write_bytes(content.replace(bad, good) if back else content.replace(good, bad))


def assert_equal(ours, theirs):
    assert ours.keys == theirs.keys
    assert ours.ledger == theirs.ledger and ours.replaced == theirs.replaced
    assert ours.fields.keys() == theirs.fields.keys()
    for name, value in ours.fields.items():
        assert torch.equal(value, theirs[name])
    for name in ("positions", "weight", "key_hash"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


shard_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)
"""Samples of each shard."""
