"""What all sources share: samples in, shards with indexes and a manifest out, whole or not at all.

A shard is a function of its own samples alone. So workers make shards side by side, an interrupted command keeps those
that were done, and the bytes are the same whatever happened on the way.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from data_pipelines.base import Strict, UserError, canonical_json, write_atomically
from data_pipelines.hashing import mix, word
from data_pipelines.manifest import MANIFEST, Facts, Manifest
from data_pipelines.near import MAX_BITS, NEAR_BITS, near_any
from data_pipelines.pack.makers import Task, Work, make_shards
from data_pipelines.pack.shard import Fields, LeftOut, Made, Record, Seen, Unwanted, write_shard
from data_pipelines.pack.stage import Stage, staged
from data_pipelines.pack.statistics import STATISTICS, statistics
from data_pipelines.shards import Dataset
from data_pipelines.tar import BLOCK

__all__ = [
    "LeftOut",
    "Made",
    "PackConfig",
    "Progress",
    "Seen",
    "Split",
    "about_bytes",
    "held_out",
    "no_progress",
    "shuffled",
    "write_sets",
]

FEW_SHARDS = 8
FEW_SAMPLES = 64
SAMPLED = 32
"""Samples whose size stands for that of all."""
WORTH_WORKERS, MANY_SAMPLES = 2**25, 1000
"""Bytes, or samples, of a set from which workers are started unasked."""
NAMED_IN_A_NOTE = 5
LAYOUT = 2
"""Of shards and records; another one begins anew what was interrupted."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Says nothing."""


class PackConfig(Strict):
    """What every source can be told."""

    name: str | None = Field(None, pattern=r"^[^/\x00]+$")
    """Of the sets; the source's when unset. A mixture's sets have names of their own, which key their order."""
    licence: str | None = None
    """Of the samples, for the manifest; the source's own when unset."""
    seed: int = Field(0, ge=0)
    """Of the global shuffle and of splits."""
    shard_bytes: int = Field(64 * 2**20, gt=0)
    """Size to aim at; small sets are cut into several shards all the same."""
    samples_per_shard: int | None = Field(None, gt=0)
    """Overrides `shard_bytes`."""
    workers: int | None = Field(None, gt=0)
    """Processes that make shards side by side, where samples are made one by one; as many as there are cores, and one
    for a small set, when unset. The bytes do not depend on it."""
    exclude_near: tuple[str, ...] = ()
    """Packed sets, of an eval for instance: images that look like one of theirs are left out."""
    near_bits: int = Field(NEAR_BITS, ge=0, le=MAX_BITS)
    """Of 64 by which the perceptual hashes of like images may differ."""


@dataclass(frozen=True)
class Split:
    """One set to write.

    Attributes:
        name: of its folder below OUT.
        samples: (key, fields), or `Made`, in the order they shall have on disk; where there is `make`, a sequence of
            what it makes samples of.
        num_samples: how many there will be at most.
        num_bytes: about how many bytes their fields have together.
        describe: called when all samples are written; gives the facts, and notes on what was left out.
        classes: class names by number.
        extra_files: written beside the shards, by name.
        make: one sample from an entry of `samples`, in any process, by nothing but that entry; None where they are
            samples already, which are then written in this process and made anew after an interruption.
        identity: what `make` reads besides its entry, by a name that changes when it does.
        seen: what the written samples were like, for `describe`.
    """

    name: str
    samples: Iterable[tuple[str, Fields] | Made] | Sequence[Any]
    num_samples: int
    num_bytes: int
    describe: Callable[[], tuple[Facts, tuple[str, ...]]]
    classes: tuple[str, ...] | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    make: Callable[[Any], Made | LeftOut] | None = None
    identity: str = ""
    seen: Seen = field(default_factory=Seen)


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
        DataError: a worker was killed; the shards that were done are kept for the next attempt.
    """
    splits, name = list(splits), config.name or name
    unwanted = near_any(config.exclude_near, config.near_bits, progress) if config.exclude_near else None
    with staged(out) as stage:
        stage.begin(_identity(splits, config, name, source))
        needed = sum(split.num_bytes + 3 * BLOCK * split.num_samples for split in splits) - stage.num_bytes
        _refuse_full_disk(out, needed)
        for split in splits:
            folder = stage.folder / split.name
            folder.mkdir(exist_ok=True)
            records = _write_shards(folder, split, config, stage, unwanted, progress)
            for record in records:
                split.seen.add(record.seen())
            shards = [record.shard for record in records if record.shard is not None]
            if not shards:
                near = f"; {len(split.seen.near)} were left out by exclude_near" if split.seen.near else ""
                raise UserError(f"data pack {name}: no readable sample for the split {split.name!r}{near}")
            for file, content in split.extra_files.items():
                write_atomically(folder / file, content)
            facts, notes = split.describe()
            manifest = Manifest.make(
                name=f"{name}-{split.name}",
                source=source,
                licence=config.licence if config.licence is not None else licence,
                fields=sorted({field for record in records for field in record.fields}),
                facts=facts,
                classes=split.classes,
                shards=shards,
                notes=notes + _near_note(split.seen.near, config),
            )
            write_atomically(folder / STATISTICS, statistics(split.seen, shards, split.classes))
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


def about_bytes(entries: Sequence[Any], make: Callable[[Any], Made | LeftOut]) -> int:
    """Size of a set whose samples are not what they are made of, from a few of them."""
    few = [make(entry) for entry in entries[:: max(1, len(entries) // SAMPLED)]]
    sizes = [sum(map(len, sample.fields.values())) for sample in few if isinstance(sample, Made)]
    return int(np.mean(sizes) * len(entries)) if sizes else 0


def _write_shards(
    folder: Path, split: Split, config: PackConfig, stage: Stage, unwanted: Unwanted | None, progress: Progress
) -> list[Record]:
    size = samples_per_shard(split.num_samples, split.num_bytes, config)
    tars = (folder / f"{split.name}-{number:06d}.tar" for number in count())
    if split.make is None:
        return list(_write_stream(tars, split, size, unwanted, progress))
    assert isinstance(split.samples, Sequence)
    total = len(split.samples)
    tasks = [Task(next(tars), start, min(start + size, total)) for start in range(0, total, size)]
    records = {task: record for task in tasks if (record := stage.finished(task.tar)) is not None}
    left = [task for task in tasks if task not in records]
    done = sum(task.stop - task.start for task in records)

    def report(more: int) -> None:
        nonlocal done
        done += more
        progress(f"pack {split.name}", done, total)

    work = Work(split.samples, split.make, unwanted)
    for task, record in make_shards(work, left, _workers(split, len(left), config), report):
        stage.finish(task.tar, record)
        records[task] = record
    return [records[task] for task in tasks]


def _write_stream(
    tars: Iterator[Path], split: Split, size: int, unwanted: Unwanted | None, progress: Progress
) -> Iterator[Record]:
    samples = _reported(split, progress)
    while first := next(samples, None):
        yield write_shard(next(tars), chain([first], islice(samples, size - 1)), unwanted)


def _reported(split: Split, progress: Progress) -> Iterator[Made]:
    done = 0
    for done, sample in enumerate(split.samples):
        progress(f"pack {split.name}", done, split.num_samples)
        yield Made(*sample)
    progress(f"pack {split.name}", done + 1, done + 1)


def _workers(split: Split, shards: int, config: PackConfig) -> int:
    is_small = split.num_bytes < WORTH_WORKERS and split.num_samples < MANY_SAMPLES
    return min(config.workers or (1 if is_small else len(os.sched_getaffinity(0))), shards)


def _identity(splits: Sequence[Split], config: PackConfig, name: str, source: str) -> str:
    """Names what is written, byte for byte: what an interrupted command has left is kept for the same alone."""
    settings = config.model_dump(mode="json", exclude={"workers"})
    digest = blake2b(canonical_json([LAYOUT, name, source, settings]), digest_size=16)
    for split in splits:
        digest.update(canonical_json([split.name, split.identity, split.num_samples, split.num_bytes]))
        if split.make is not None:
            for entry in split.samples:
                digest.update(repr(entry).encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()


def _near_note(near: Sequence[str], config: PackConfig) -> tuple[str, ...]:
    if not near:
        return ()
    more = len(near) - NAMED_IN_A_NOTE
    return (
        f"{len(near)} samples that look like one of {', '.join(config.exclude_near)} were left out: "
        f"{'; '.join(near[:NAMED_IN_A_NOTE])}" + (f"; and {more} more" if more > 0 else ""),
    )


def _refuse_full_disk(out: Path, num_bytes: int) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(f"output {out}: needs about {num_bytes / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB left")
