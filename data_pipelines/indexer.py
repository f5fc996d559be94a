"""Makes the index of a tar by reading it once, whoever wrote the tar."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from data_pipelines.base import DataError, write_atomically
from data_pipelines.index import MAX_SAMPLE_BYTES, SUFFIX, Header, Index
from data_pipelines.storage import DEFAULTS, Reader, Storage, open_reader
from data_pipelines.tar import Damage, Member, members

READ_BYTES = 1 << 20
MAX_NOTES = 1000
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
_WEBDATASET_SKIPS = re.compile(r"__[^/]*__($|/)")


def split_name(name: str) -> tuple[str, str] | None:
    """(key, field) of a member's name as `webdataset` splits it; None for names it passes over.

    >>> split_name("birds/0001.seg.PNG")
    ('birds/0001', 'seg.png')
    """
    match = None if _WEBDATASET_SKIPS.match(name) else _KEY_AND_FIELD.match(name)
    return (match.group(1), match.group(2).lower()) if match else None


def index_tar(address: str, storage: Storage = DEFAULTS) -> Index:
    """Read a tar once and index it.

    Damaged or hostile members are left out and named in `header.damage`; what precedes a
    truncation is kept.

    Raises:
        FileNotFoundError: there is no such tar.
    """
    stream = _HashingStream(open_reader(address, storage))
    builder = _Builder()
    for event in members(stream):
        if isinstance(event, Damage):
            builder.note(event)
        elif event.kind == "file":
            builder.add(event, stream)
        elif event.kind == "other":
            builder.note(Damage(event.offset, f"{event.name!r} is a link, device or sparse file"))
    return builder.finish(stream.drain(), stream.tell())


def write_index(tar: Path) -> Index:
    """Index a local tar and put the sidecar beside it."""
    index = index_tar(str(tar))
    write_atomically(tar.with_name(tar.name + SUFFIX), index.to_bytes())
    return index


class _HashingStream:
    """Forward reading by large blocks; knows the digest of all that went by."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._digest = xxhash.xxh3_128()
        self._buffer = b""
        self._used = 0
        self._loaded = 0

    def take(self, size: int) -> bytes:
        parts = []
        while size > 0 and self._fill():
            part = self._buffer[self._used : self._used + size]
            self._used += len(part)
            size -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int) -> int:
        skipped = 0
        while skipped < size and self._fill():
            step = min(size - skipped, len(self._buffer) - self._used)
            self._used += step
            skipped += step
        return skipped

    def tell(self) -> int:
        return self._loaded - len(self._buffer) + self._used

    def drain(self) -> str:
        """Read to the end; returns the digest of the whole."""
        while self._fill():
            self._used = len(self._buffer)
        return self._digest.hexdigest()

    def _fill(self) -> bool:
        """Have at least one byte at hand, unless the file has ended."""
        if self._used == len(self._buffer):
            self._buffer = self._reader.pread(self._loaded, READ_BYTES)
            self._used = 0
            self._loaded += len(self._buffer)
            self._digest.update(self._buffer)
        return bool(self._buffer)


@dataclass(slots=True)
class _Group:
    """The members of one sample so far."""

    key: str
    digest: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    suspect: bool = False
    """Damage lay beside it, so that members may be missing."""
    fault: str = ""


class _Sample(NamedTuple):
    """A group that is complete."""

    key: str
    digest: int
    names: tuple[str, ...]
    offsets: list[int]
    sizes: list[int]
    suspect: bool


class _Builder:
    """Collects members into samples."""

    def __init__(self) -> None:
        self._samples: list[_Sample] = []
        self._current: _Group | None = None
        self._damage: list[str] = []
        self._suspect_next = False

    def note(self, damage: Damage) -> None:
        """Something was left out here: a member of the current or of the next sample."""
        self._record(damage)
        self._suspect_next = True
        if self._current is not None:
            self._current.suspect = True

    def add(self, member: Member, stream: _HashingStream) -> None:
        """Read a member's bytes into the digest of its sample."""
        parts = split_name(member.name)
        if parts is None:
            return
        key, name = parts
        if key.startswith("/") or ".." in key.split("/"):
            self.note(Damage(member.offset, f"member name {member.name!r} points out of its folder"))
            return
        if self._current is None or self._current.key != key:
            self._close()
            self._current = _Group(key, suspect=self._suspect_next)
            self._suspect_next = False
        group = self._current
        if name in group.names:
            group.fault = f"field {name!r} twice"
        elif member.offset + member.size - (group.offsets or [member.offset])[0] > MAX_SAMPLE_BYTES:
            group.fault = f"more than {MAX_SAMPLE_BYTES} bytes"
        elif not _digest_member(group.digest, name, member.size, stream):
            group.fault = "cut off"
        group.names.append(name)
        group.offsets.append(member.offset)
        group.sizes.append(member.size)

    def finish(self, shard_digest: str, shard_bytes: int) -> Index:
        """The index of all whole samples."""
        self._close()
        whole = self._without_remnants()
        fields = tuple(sorted({name for sample in whole for name in sample.names}))
        if len(fields) > np.iinfo(np.uint16).max:
            raise DataError(f"{len(fields)} different fields in one shard; its members' names are no samples")
        ids = {name: number for number, name in enumerate(fields)}
        keys = [sample.key.encode() for sample in whole]
        return Index(
            header=Header(
                shard_bytes=shard_bytes, shard_digest=shard_digest, fields=fields, damage=tuple(self._damage)
            ),
            offsets=np.array([offset for sample in whole for offset in sample.offsets], np.int64),
            sizes=np.array([size for sample in whole for size in sample.sizes], np.int64),
            field_ids=np.array([ids[name] for sample in whole for name in sample.names], np.uint16),
            starts=_running_sum([len(sample.names) for sample in whole]),
            key_starts=_running_sum([len(key) for key in keys]),
            key_bytes=np.frombuffer(b"".join(keys), np.uint8),
            digests=np.array([sample.digest for sample in whole], np.uint64),
        )

    def _without_remnants(self) -> list[_Sample]:
        """All samples but those beside damage that may have lost a member: they lack a field that is usual here."""
        usual = Counter(sample.names for sample in self._samples if not sample.suspect).most_common(1)
        expected = set(usual[0][0]) if usual else set()
        whole = []
        for sample in self._samples:
            if sample.suspect and expected - set(sample.names):
                self._record(Damage(sample.offsets[0], f"sample {sample.key!r} may have lost a member"))
            else:
                whole.append(sample)
        return whole

    def _close(self) -> None:
        group = self._current
        if group is None:
            return
        if group.fault:
            self._record(Damage(group.offsets[0], f"sample {group.key!r}: {group.fault}"))
        else:
            digest, names = group.digest.intdigest(), tuple(group.names)
            self._samples.append(_Sample(group.key, digest, names, group.offsets, group.sizes, group.suspect))
        self._current = None

    def _record(self, damage: Damage) -> None:
        if len(self._damage) < MAX_NOTES:
            self._damage.append(str(damage))
        elif len(self._damage) == MAX_NOTES:
            self._damage.append("more was left out than is listed here")


def _digest_member(digest: xxhash.xxh3_64, name: str, size: int, stream: _HashingStream) -> bool:
    """Add a member to its sample's digest; False when the file ends inside it."""
    digest.update(name.encode() + b"\0")
    while size > 0:
        block = stream.take(min(size, READ_BYTES))
        if not block:
            return False
        digest.update(block)
        size -= len(block)
    return True


def _running_sum(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
