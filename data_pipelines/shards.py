"""A dataset: samples of tar shards, read through their indexes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.base import DataError, SampleError, UserError
from data_pipelines.batch import Sample
from data_pipelines.index import SUFFIX, Index, payload_digest, read_index
from data_pipelines.manifest import MANIFEST, Manifest, Shard, read_manifest
from data_pipelines.opened import IN_FLIGHT, Opened, Sought
from data_pipelines.opt_out import OPTED_OUT, OptOut
from data_pipelines.spans import Span, runs
from data_pipelines.storage import (
    DEFAULTS,
    Reader,
    Storage,
    exists,
    join,
    local_path,
    names_in,
    once,
    open_reader,
)

ASKED_FOR = 1000
"""Shards that are asked for one by one where a web server lists no folders."""
LOOKED_AT = 10_000
"""Local shards whose sizes are compared with the manifest at the start of a run."""
COMPLETE_S = 60.0
"""Ranks of a machine that open a set within this time look for missing shards once."""


class Dataset:
    """Samples by (shard, member), each checked against its digest.

    Opens files as they are asked for, anew in every process, so it may be pickled and forked.

    Attributes:
        name: key of the order's hashes; the manifest's, unless given.
        path: address it was opened from.
        manifest: see `Manifest`.
        shard_sizes: (S,) int64, samples of each shard.
        is_remote: whether it is read over a network.
    """

    def __init__(
        self,
        path: str,
        manifest: Manifest,
        name: str,
        places: Sequence[tuple[str, str]] | None = None,
        storage: Storage = DEFAULTS,
        opt_out: OptOut | None = None,
    ) -> None:
        """Use `Dataset.open`.

        Args:
            places: (tar, index) addresses of the shards; in `path` itself when None.
        """
        self._opted_out = opt_out.of(name) if opt_out else frozenset()
        self.path, self.manifest, self.name = path, manifest, name
        self.shard_sizes = np.array([shard.samples for shard in manifest.shards], np.int64)
        self.is_remote = local_path(path) is None
        self._places, self._storage = places, storage
        self._opened = Opened()

    @classmethod
    def open(
        cls, path: str, *, name: str | None = None, storage: Storage = DEFAULTS, opt_out: OptOut | None = None
    ) -> Dataset:
        """Open a packed folder, or a folder, glob or file of plain tars.

        Args:
            path: a folder with a manifest.json; or tars (`.tar`, `.tar.gz`) of any origin, which are
                indexed into a cache folder on first use.
            name: overrides the manifest's.
            storage: how a remote one is read.
            opt_out: keys of samples that it shall not give.

        Raises:
            UserError: nothing to read there, or shards are missing; all missing ones are listed.
            DataError: the store does not answer.
        """
        path = str(path)
        path = path.rstrip("/") if len(path) > 1 else path
        try:
            return cls._open(path, name, storage, opt_out)
        except PermissionError as error:
            raise UserError(f"dataset {path}: {error}; it may not be read with the credentials at hand") from None
        except OSError as error:
            raise DataError(f"dataset {path}: {error}") from None

    @classmethod
    def _open(cls, path: str, name: str | None, storage: Storage, opt_out: OptOut | None) -> Dataset:
        try:
            manifest = read_manifest(path, storage)
        except (FileNotFoundError, NotADirectoryError):
            from data_pipelines.foreign import open_foreign

            manifest, places = open_foreign(path, storage)
            return cls(path, manifest, name or manifest.name, places, storage, opt_out)
        _refuse_missing(path, manifest, storage)
        return cls(path, manifest, name or manifest.name, storage=storage, opt_out=opt_out)

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.shard_sizes.sum())

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields that samples may have."""
        return self.manifest.fields

    @property
    def digest(self) -> str:
        """Names the content; equal digests are equal data in equal order."""
        return self.manifest.digest

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by number, where known."""
        return self.manifest.classes

    def facts(self) -> dict[str, Any]:
        """See `Facts`, as plain data."""
        return self.manifest.facts.model_dump()

    def key(self, shard: int, member: int) -> str:
        """Name of a sample."""
        return self.index(shard).key(member)

    def payload_digest(self, shard: int, member: int) -> int:
        """64-bit digest of a sample's bytes, as its index has it (`data_pipelines.index.payload_digest`)."""
        return self.index(shard).digest(member)

    def read(self, shard: int, member: int) -> Sample:
        """Read one sample and check it against its digest.

        Raises:
            SampleError: it is unreadable: shard gone, truncated before it, or bytes damaged; or it is opted out.
            DataError: the shard was replaced by another one, or its store is out of reach.
        """
        [(_, found)] = self.read_all([(shard, member)])
        if isinstance(found, SampleError):
            raise found
        return found

    def read_all(self, places: Sequence[Sought]) -> Iterator[tuple[int, Sample | SampleError]]:
        """Read many samples, each (shard, member): neighbours at once, those of a remote store side by side.

        Yields:
            In the order in which they lie: the number of a place, and its sample, or what `read` would raise of it.

        Raises:
            DataError: see `read`.
        """
        if self.is_remote and len(places) > 1:
            self._files().ahead.ask(places, self._read_ahead)
        ranked = sorted(range(len(places)), key=places.__getitem__)
        for shard, rows in groupby(ranked, key=lambda row: places[row][0]):
            try:
                index = self.index(shard)
            except SampleError as error:
                yield from ((row, error) for row in rows)
                continue
            spans = []
            for row in rows:
                span = Span.of(index, row, places[row][1])
                if self._opted_out and (key := index.key(span.member)) in self._opted_out:
                    yield row, SampleError(OPTED_OUT, key=key, shard=self.manifest.shards[shard].file)
                else:
                    spans.append(span)
            for run in [[span] for span in spans] if self.is_remote else runs(spans):
                yield from self._read_run(shard, index, run)

    def _read_run(self, shard: int, index: Index, run: Sequence[Span]) -> Iterator[tuple[int, Sample | SampleError]]:
        start, file = run[0].start, self.manifest.shards[shard].file
        try:
            data = self._bytes(shard, run)
        except OSError as error:
            if len(run) > 1:  # perhaps not all of them
                for span in run:
                    yield from self._read_run(shard, index, [span])
                return
            key, reason = index.key(run[0].member), f"shard unreadable: {error.strerror or error}"
            yield run[0].row, SampleError(reason, key=key, shard=file)
            return
        for row, member, _, stop in run:
            key, digest = index.key(member), index.digest(member)
            if start + len(data) < stop:
                reason = f"shard truncated at byte {start + len(data)}"
                yield row, SampleError(reason, key=key, shard=file)
                continue
            fields = index.fields_of(member, data, start)
            if payload_digest(fields.items()) == digest:
                yield row, Sample(key, fields, self.name, file, digest)
            else:
                yield row, SampleError("bytes differ from the index's digest", key=key, shard=file)

    def _bytes(self, shard: int, run: Sequence[Span]) -> bytes:
        ahead = self._files().ahead.take((shard, run[0].member)) if self.is_remote else None
        return self._reader(shard).pread(run[0].start, run[-1].stop - run[0].start) if ahead is None else ahead

    def _read_ahead(self, shard: int, member: int) -> bytes:
        return self._reader(shard).pread(*self.index(shard).span(member))

    def index(self, shard: int) -> Index:
        """The index of a shard, held in memory while it is in use.

        Raises:
            DataError: it belongs to another shard than the manifest's, or is damaged and cannot be rebuilt.
            SampleError: index and shard are both gone.
        """
        return self._files().indexes.get(shard, self._load_index)

    def place(self, shard: int) -> tuple[str, str]:
        """(tar, index) addresses of a shard."""
        if self._places is not None:
            return self._places[shard]
        tar = join(self.path, self.manifest.shards[shard].file)
        return tar, tar + SUFFIX

    def truncated(self) -> list[str]:
        """Local shards with fewer bytes than the manifest says, and what that costs, in words; each is looked at once.

        Of a set of more than `LOOKED_AT` shards none is: what is gone shows when it is read.
        """
        if self.is_remote or len(self.shard_sizes) > LOOKED_AT:
            return []
        sizes = (Path(self.place(shard)[0]).stat().st_size for shard in range(len(self.shard_sizes)))
        return [
            f"dataset {self.path}: {self._cost_of(shard, size)}"
            for shard, size in enumerate(sizes)
            if size < self.manifest.shards[shard].bytes
        ]

    def _cost_of(self, shard: int, size: int) -> str:
        expected = self.manifest.shards[shard]
        words = f"shard {expected.file} is truncated, {expected.bytes - size} of {expected.bytes} bytes are missing"
        try:
            index = self.index(shard)
        except DataError:
            return words
        lost = sum(sum(index.span(member)) > size for member in range(index.num_samples))
        return f"{words}, and with them {lost} of its {index.num_samples} samples"

    def _load_index(self, shard: int) -> Index:
        tar, sidecar = self.place(shard)
        expected = self.manifest.shards[shard]
        try:
            index = read_index(sidecar, self._storage)
        except (OSError, DataError):
            index = _reindex(tar, expected, self._storage)
        if (index.header.shard_digest, index.num_samples) != (expected.digest, expected.samples):
            raise DataError(
                f"index {sidecar} is of another shard than the manifest's (digest {index.header.shard_digest}, "
                f"want {expected.digest}): the set was changed; run `thalweg data check {self.path}`"
            )
        return index

    def _files(self) -> Opened:
        if self._opened.process != os.getpid():
            self._opened = Opened()
        return self._opened

    def _reader(self, shard: int) -> Reader:
        return self._files().readers.get(shard, self._open_reader)

    def _open_reader(self, shard: int) -> Reader:
        tar, _ = self.place(shard)
        reader = open_reader(tar, self._storage)
        if reader.size > self.manifest.shards[shard].bytes:
            raise DataError(
                f"shard {tar} has {reader.size} bytes, the manifest {self.manifest.shards[shard].bytes}: it was "
                f"replaced; run `thalweg data check {self.path}`"
            )
        return reader


def _refuse_missing(folder: str, manifest: Manifest, storage: Storage) -> None:
    def look() -> bytes:
        missing = _missing(folder, manifest, storage)
        if missing:
            shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise UserError(f"dataset {folder}: {len(missing)} of {len(manifest.shards)} shards are missing: {shown}")
        return b""

    if local_path(folder) is None:
        once(f"complete {folder} {manifest.digest}", look, max_age_s=COMPLETE_S)
    else:
        look()


def _missing(folder: str, manifest: Manifest, storage: Storage) -> list[str]:
    there = set(names_in(folder, storage))
    files = [shard.file for shard in manifest.shards]
    if MANIFEST in there:
        return [file for file in files if file not in there]
    if len(files) > ASKED_FOR:  # what is missing shows when it is read
        return []
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        found = pool.map(lambda file: exists(join(folder, file), storage), files)
    return [file for file, is_there in zip(files, found, strict=True) if not is_there]


def _reindex(tar: str, expected: Shard, storage: Storage) -> Index:
    """The index of a shard whose sidecar is gone or damaged, in memory."""
    from data_pipelines.indexer import index_tar

    try:
        index = index_tar(tar, storage)
    except OSError as error:
        raise SampleError(f"shard and its index cannot be read: {error}", shard=expected.file) from None
    if index.header.shard_digest != expected.digest:
        raise DataError(f"index of {tar} is gone or damaged, and the tar is not the manifest's either; pack it again")
    return index
