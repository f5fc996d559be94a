"""What all sources share: samples in, shards with indexes and a manifest out, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import Field

from data_pipelines.base import Strict, UserError, write_atomically
from data_pipelines.hashing import mix, word
from data_pipelines.indexer import write_index
from data_pipelines.shards import MANIFEST, Dataset, Facts, Manifest, Shard, shard_of
from data_pipelines.tar import BLOCK

FEW_SHARDS = 8
FEW_SAMPLES = 64
NAME_BYTES = 100
MAX_SIZE = 8**11 - 1
BLANK_HEADER = tarfile.TarInfo("").tobuf(tarfile.PAX_FORMAT)

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Says nothing."""


class PackConfig(Strict):
    """What every source can be told."""

    name: str | None = Field(None, pattern=r"^[^/\x00]+$")
    """Of the sets; the source's when unset. A mixture's sets have names of their own, which key their order."""
    seed: int = Field(0, ge=0)
    """Of the global shuffle and of splits."""
    shard_bytes: int = Field(64 * 2**20, gt=0)
    """Size to aim at; small sets are cut into several shards all the same."""
    samples_per_shard: int | None = Field(None, gt=0)
    """Overrides `shard_bytes`."""


@dataclass(frozen=True)
class Split:
    """One set to write.

    Attributes:
        name: of its folder below OUT.
        samples: (key, fields) in the order they shall have on disk.
        num_samples: how many there will be at most.
        num_bytes: about how many bytes their fields have together.
        describe: called when all samples are written; gives the facts, and notes on what was left out.
        classes: class names by number.
        extra_files: written beside the shards, by name.
    """

    name: str
    samples: Iterable[tuple[str, Mapping[str, bytes]]]
    num_samples: int
    num_bytes: int
    describe: Callable[[], tuple[Facts, tuple[str, ...]]]
    classes: tuple[str, ...] | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end, or vanishes when packing fails.

    Raises:
        UserError: `out` holds something already, or its disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"output {out} exists and is not empty; choose another folder or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    except OSError as error:
        raise UserError(f"output {out}: {error.strerror}") from None
    try:
        yield stage
        stage.chmod(0o755)
        stage.replace(out)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise UserError(f"output {out}: no space left on its disk; nothing was kept of this attempt") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_sets(
    out: Path,
    splits: Iterable[Split],
    config: PackConfig,
    *,
    name: str,
    source: str,
    licence: str = "",
    progress: Progress = no_progress,
) -> list[Dataset]:
    """Write each split as a packed set in a folder of its own below `out`.

    Raises:
        UserError: `out` is not empty, or there is no space.
    """
    splits, name = list(splits), config.name or name
    _refuse_full_disk(out, sum(split.num_bytes + 3 * BLOCK * split.num_samples for split in splits))
    with staged(out) as stage:
        for split in splits:
            folder = stage / split.name
            folder.mkdir()
            shards, fields = _write_shards(folder, split, config, progress)
            if not shards:
                raise UserError(f"data pack {name}: no readable sample for the split {split.name!r}")
            for file, content in split.extra_files.items():
                write_atomically(folder / file, content)
            facts, notes = split.describe()
            manifest = Manifest.make(
                name=f"{name}-{split.name}",
                source=source,
                licence=licence,
                fields=fields,
                facts=facts,
                classes=split.classes,
                shards=shards,
                notes=notes,
            )
            write_atomically(folder / MANIFEST, manifest.to_bytes())
    return [Dataset.open(str(out / split.name)) for split in splits]


def shuffled(keys: list[str], seed: int) -> np.ndarray:
    """(N,) places in `keys`, in an order that depends on seed and keys alone."""
    return np.lexsort((keys, mix(seed, "pack", _words(keys))))


def held_out(keys: list[str], fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: which keys fall into the validation split.

    A key's side depends on its own hash, so that adding samples moves none; one is held out even
    where none would be.
    """
    hashes = mix(seed, "validation", _words(keys))
    chosen = hashes < np.uint64(int(fraction * (2**64 - 1)))
    if fraction > 0 and len(keys) > 1 and not chosen.any():
        chosen[np.argmin(hashes)] = True
    return chosen


def _words(keys: list[str]) -> np.ndarray:
    return np.array([word(key) for key in keys], np.uint64)


def samples_per_shard(num_samples: int, num_bytes: int, config: PackConfig) -> int:
    """Equal shards of about `shard_bytes`; several where a set has samples enough for a shuffle."""
    if config.samples_per_shard is not None:
        return config.samples_per_shard
    by_bytes = -(-num_bytes // config.shard_bytes)
    shards = max(1, by_bytes, min(FEW_SHARDS, num_samples // FEW_SAMPLES))
    return max(1, -(-num_samples // shards))


def _write_shards(
    folder: Path, split: Split, config: PackConfig, progress: Progress
) -> tuple[list[Shard], tuple[str, ...]]:
    size = samples_per_shard(split.num_samples, split.num_bytes, config)
    fields: set[str] = set()
    shards: list[Shard] = []
    samples = _reported(split, progress)
    while first := next(samples, None):
        path = folder / f"{split.name}-{len(shards):06d}.tar"
        _write_tar(path, chain([first], islice(samples, size - 1)))
        index = write_index(path)
        fields.update(index.header.fields)
        shards.append(shard_of(path.name, index))
    return shards, tuple(sorted(fields))


def _reported(split: Split, progress: Progress) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    done = 0
    for done, sample in enumerate(split.samples):
        progress(f"pack {split.name}", done, split.num_samples)
        yield sample
    progress(f"pack {split.name}", done + 1, done + 1)


def _write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    with path.open("wb") as tar:
        for key, fields in samples:
            for name, content in fields.items():
                _write_member(tar, f"{key}.{name}", content)
        tar.write(bytes(2 * BLOCK))
        tar.flush()
        os.fsync(tar.fileno())


def _write_member(tar: BinaryIO, name: str, content: bytes) -> None:
    """A member without time or owner, so that equal samples make equal tars."""
    tar.write(_header(name, len(content)))
    tar.write(content)
    tar.write(bytes(-len(content) % BLOCK))


def _header(name: str, size: int) -> bytes:
    """As `tarfile` writes it, at a tenth of the time where nothing is unusual about it: most samples are small."""
    if len(name) > NAME_BYTES or not name.isascii() or size > MAX_SIZE:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT)
    header = bytearray(BLANK_HEADER)
    header[: len(name)] = name.encode()
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8  # counted as blanks in the sum
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


def _refuse_full_disk(out: Path, num_bytes: int) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(f"output {out}: needs about {num_bytes / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB left")
