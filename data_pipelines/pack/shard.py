"""One shard: samples in, a tar with its index out, and a record of what they were like."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from data_pipelines.base import Strict
from data_pipelines.indexer import write_index
from data_pipelines.manifest import Shard, shard_of
from data_pipelines.tar import BLOCK

NAME_BYTES = 100
MAX_SIZE = 8**11 - 1
BLANK_HEADER = tarfile.TarInfo("").tobuf(tarfile.PAX_FORMAT)

Fields = Mapping[str, bytes]


class Made(NamedTuple):
    """A sample as it is written.

    Attributes:
        kind: what `Seen` shall count of it, such as (height, width, channels).
    """

    key: str
    fields: Fields
    kind: tuple[int, ...] = ()


class LeftOut(NamedTuple):
    """A sample that cannot be made, and why, in words."""

    words: str


Unwanted = Callable[[Fields], str | None]
"""Says what a sample is too much like; None where it may be written."""


@dataclass
class Seen:
    """What samples were like.

    Attributes:
        kinds: how often each kind of sample was written.
        labels: samples by the content of their field `cls`.
        sizes: samples by the bit length of their bytes.
        left_out: in words, what could not be made.
        near: in words, what was unwanted.
    """

    kinds: Counter[tuple[int, ...]] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    near: list[str] = field(default_factory=list)

    def add(self, other: Seen) -> None:
        """Count what another part of the set saw, too."""
        self.kinds.update(other.kinds)
        self.labels.update(other.labels)
        self.sizes.update(other.sizes)
        self.left_out += other.left_out
        self.near += other.near


class Record(Strict):
    """What came of one shard; on disk it says that tar and index are whole.

    JSON knows no keys but text, so counts are pairs.
    """

    shard: Shard | None
    """None where no sample of it was left."""
    fields: tuple[str, ...] = ()
    kinds: tuple[tuple[tuple[int, ...], int], ...] = ()
    labels: tuple[tuple[str, int], ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    left_out: tuple[str, ...] = ()
    near: tuple[str, ...] = ()

    @classmethod
    def of(cls, shard: Shard | None, fields: Iterable[str], seen: Seen) -> Self:
        """The record of what was seen."""
        counts = {name: tuple(sorted(getattr(seen, name).items())) for name in ("kinds", "labels", "sizes")}
        return cls(shard=shard, fields=tuple(fields), left_out=tuple(seen.left_out), near=tuple(seen.near), **counts)

    def seen(self) -> Seen:
        """What `of` was told."""
        kinds, labels, sizes = Counter(dict(self.kinds)), Counter(dict(self.labels)), Counter(dict(self.sizes))
        return Seen(kinds, labels, sizes, list(self.left_out), list(self.near))


def write_shard(path: Path, samples: Iterable[Made | LeftOut], unwanted: Unwanted | None = None) -> Record:
    """Write a tar and, beside it, its index; neither where no sample is left."""
    seen = Seen()
    with path.open("wb") as tar:
        for sample in samples:
            if isinstance(sample, LeftOut):
                seen.left_out.append(sample.words)
            elif unwanted is not None and (words := unwanted(sample.fields)) is not None:
                seen.near.append(f"{sample.key} ({words})")
            else:
                _write_sample(tar, sample, seen)
        tar.write(bytes(2 * BLOCK))
        tar.flush()
        os.fsync(tar.fileno())
    if not seen.sizes:
        path.unlink()
        return Record.of(None, (), seen)
    index = write_index(path)
    return Record.of(shard_of(path.name, index), index.header.fields, seen)


def _write_sample(tar: BinaryIO, sample: Made, seen: Seen) -> None:
    for name, content in sample.fields.items():
        _write_member(tar, f"{sample.key}.{name}", content)
    seen.kinds[sample.kind] += 1
    seen.sizes[sum(map(len, sample.fields.values())).bit_length()] += 1
    if "cls" in sample.fields:
        seen.labels[sample.fields["cls"].decode(errors="replace")] += 1


def _write_member(tar: BinaryIO, name: str, content: bytes) -> None:
    """A member without time or owner, so that equal samples make equal tars."""
    tar.write(header(name, len(content)))
    tar.write(content)
    tar.write(bytes(-len(content) % BLOCK))


def header(name: str, size: int) -> bytes:
    """As `tarfile` writes it, at a tenth of the time where nothing is unusual about it: most samples are small."""
    if len(name) > NAME_BYTES or not name.isascii() or size > MAX_SIZE:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT)
    block = bytearray(BLANK_HEADER)
    block[: len(name)] = name.encode()
    block[124:136] = b"%011o\0" % size
    block[148:156] = b" " * 8  # counted as blanks in the sum
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)
