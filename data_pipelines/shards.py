"""A dataset: tar shards, their indexes, and the manifest that commits them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from data_pipelines.base import DataError, SampleError, Strict, UserError, canonical_json, digest_of
from data_pipelines.batch import Sample
from data_pipelines.index import SUFFIX, Index, payload_digest, read_index
from data_pipelines.storage import Reader, join, names_in, open_reader, read_bytes

MANIFEST = "manifest.json"
OPEN_INDEXES = 1024
OPEN_SHARDS = 128


class Facts(Strict):
    """What a set tells an objective before any sample is read.

    A field that came after `tokenizer_digest` enters the manifest's digest only where it is set (`Facts.identity`), so
    that a new one renames no packed set.
    """

    channels: int | None = None
    """Of its images, 1 or 3; None where there are none."""
    image_size: tuple[int, int] | None = None
    """(height, width) when all images agree."""
    vocabulary_size: int | None = None
    """Of the set's tokenizer; None where there is none."""
    row_tokens: int | None = None
    """Tokens a packed text row."""
    special_tokens: dict[str, int] = Field(default_factory=dict)
    """Ids by name: mask, pad, cls, sep, unk; `lang:de` of a language, `sentinel:0` of span corruption."""
    labels_field: str | None = None
    """Field that holds class numbers."""
    tokenizer_digest: str | None = None
    """blake2b-16 of the set's tokenizer.json, hexadecimal."""
    tokens: int | None = None
    """Tokens of the whole set, without padding."""
    language: str | None = None
    """Of packed text rows, which then begin with the token `lang:LANGUAGE`."""
    languages: tuple[str, ...] = ()
    """Of parallel text, in the order of its sides."""
    frames: int | None = None
    """Of every clip."""
    frames_per_second: float | None = None
    label_frames: tuple[int, ...] = ()
    """Frames that are labelled in every clip, numbered from 0."""
    colours: tuple[tuple[int, int, int], ...] = ()
    """RGB by class number, to draw label maps."""
    moving_classes: tuple[int, ...] = ()
    """Classes of things that move by themselves."""

    def identity(self) -> dict[str, Any]:
        """What enters the manifest's digest, as plain data."""
        fields = type(self).model_fields
        first = list(fields)[: list(fields).index("tokenizer_digest") + 1]
        unset = {name for name in fields if name not in first and getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=unset)


class Shard(Strict):
    """One tar of a set."""

    file: str = Field(pattern=r"^[^/\x00]+$")
    """Name in the manifest's own folder, never a path out of it."""
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    digest: str
    """xxh3_128 of the tar, hexadecimal."""


class Manifest(Strict):
    """What a set is; written last, so that its presence says the set is whole."""

    version: Literal[1] = 1
    name: str
    source: str = ""
    """Where the samples came from, in words."""
    licence: str = ""
    fields: tuple[str, ...]
    facts: Facts = Facts()
    classes: tuple[str, ...] | None = None
    """Class names by number."""
    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()
    """What was left out when the set was packed."""
    digest: str
    """Of all that decides what a run reads: fields, facts, classes, shards."""

    @classmethod
    def make(cls, *, fields: Sequence[str], facts: Facts, shards: Sequence[Shard], **rest: Any) -> Manifest:
        """A manifest with its digest."""
        classes = rest.get("classes")
        content = {
            "fields": list(fields),
            "facts": facts.identity(),
            "classes": list(classes) if classes is not None else None,
            "shards": [shard.model_dump() for shard in shards],
        }
        return cls(fields=tuple(fields), facts=facts, shards=tuple(shards), digest=digest_of(content), **rest)

    def to_bytes(self) -> bytes:
        """The file's content."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"


def read_manifest(folder: str) -> Manifest:
    """The manifest of a packed folder.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is no manifest of this version.
    """
    try:
        return Manifest.model_validate_json(read_bytes(join(folder, MANIFEST)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{join(folder, MANIFEST)}: {where or 'file'}: {first['msg']}") from None


def shard_of(tar: str, index: Index) -> Shard:
    """The manifest's line of an indexed tar."""
    return Shard(
        file=tar.rsplit("/", 1)[-1],
        samples=index.num_samples,
        bytes=index.header.shard_bytes,
        digest=index.header.shard_digest,
    )


class Dataset:
    """Samples by (shard, member), each checked against its digest.

    Opens files as they are asked for, anew in every process, so it may be pickled and forked.

    Attributes:
        name: key of the order's hashes; the manifest's, unless given.
        path: address it was opened from.
        manifest: see `Manifest`.
        shard_sizes: (S,) int64, samples of each shard.
    """

    def __init__(
        self, path: str, manifest: Manifest, name: str, places: Sequence[tuple[str, str]] | None = None
    ) -> None:
        """Use `Dataset.open`.

        Args:
            places: (tar, index) addresses of the shards; in `path` itself when None.
        """
        self.path, self.manifest, self.name = path, manifest, name
        self.shard_sizes = np.array([shard.samples for shard in manifest.shards], np.int64)
        self._places = places
        self._caches = _Caches()

    @classmethod
    def open(cls, path: str, *, name: str | None = None) -> Dataset:
        """Open a packed folder, or a folder, glob or file of plain tars.

        Args:
            path: a folder with a manifest.json; or tars (`.tar`, `.tar.gz`) of any origin, which are
                indexed into a cache folder on first use.
            name: overrides the manifest's.

        Raises:
            UserError: nothing to read there, or shards are missing; all missing ones are listed.
        """
        path = str(path)
        path = path.rstrip("/") if len(path) > 1 else path
        try:
            manifest = read_manifest(path)
        except (FileNotFoundError, NotADirectoryError):
            from data_pipelines.foreign import open_foreign

            manifest, places = open_foreign(path)
            return cls(path, manifest, name or manifest.name, places)
        _refuse_missing(path, manifest)
        return cls(path, manifest, name or manifest.name)

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
        return int(self.index(shard).digests[member])

    def read(self, shard: int, member: int) -> Sample:
        """Read one sample and check it against its digest.

        Raises:
            SampleError: it is unreadable: shard gone, truncated before it, or bytes damaged.
            DataError: the shard was replaced by another one.
        """
        index = self.index(shard)
        offset, size = index.span(member)
        key, file = index.key(member), self.manifest.shards[shard].file
        try:
            span = self._reader(shard).pread(offset, size)
        except OSError as error:
            raise SampleError(f"shard unreadable: {error.strerror or error}", key=key, shard=file) from None
        if len(span) < size:
            raise SampleError(f"shard truncated at byte {offset + len(span)}", key=key, shard=file)
        fields = index.fields_of(member, span)
        if payload_digest(fields.items()) != int(index.digests[member]):
            raise SampleError("bytes differ from the index's digest", key=key, shard=file)
        return Sample(key=key, fields=fields, dataset=self.name, shard=file)

    def index(self, shard: int) -> Index:
        """The index of a shard, held in memory while it is in use.

        Raises:
            DataError: it belongs to another shard than the manifest's, or is gone and cannot be rebuilt.
        """
        return self._files().indexes.get(shard, self._load_index)

    def place(self, shard: int) -> tuple[str, str]:
        """(tar, index) addresses of a shard."""
        if self._places is not None:
            return self._places[shard]
        tar = join(self.path, self.manifest.shards[shard].file)
        return tar, tar + SUFFIX

    def _load_index(self, shard: int) -> Index:
        tar, sidecar = self.place(shard)
        expected = self.manifest.shards[shard]
        try:
            index = read_index(sidecar)
        except (OSError, DataError):
            index = _reindex(tar, expected)
        if (index.header.shard_digest, index.num_samples) != (expected.digest, expected.samples):
            raise DataError(
                f"index {sidecar} is of another shard than the manifest's (digest {index.header.shard_digest}, "
                f"want {expected.digest}): the set was changed; run `thalweg data check {self.path}`"
            )
        return index

    def _files(self) -> _Caches:
        if self._caches.process != os.getpid():
            self._caches = _Caches()
        return self._caches

    def _reader(self, shard: int) -> Reader:
        return self._files().readers.get(shard, self._open_reader)

    def _open_reader(self, shard: int) -> Reader:
        tar, _ = self.place(shard)
        reader = open_reader(tar)
        if reader.size > self.manifest.shards[shard].bytes:
            raise DataError(
                f"shard {tar} has {reader.size} bytes, the manifest {self.manifest.shards[shard].bytes}: it was "
                f"replaced; run `thalweg data check {self.path}`"
            )
        return reader


Value = TypeVar("Value")


class _Recent(Generic[Value]):
    """The last `size` values that were made, by shard."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[int, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: int, make: Callable[[int], Value]) -> Value:
        with self._lock:
            if shard in self._values:
                self._values.move_to_end(shard)
                return self._values[shard]
        value = make(shard)  # outside the lock: opening a remote shard may take seconds
        with self._lock:
            self._values[shard] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value


class _Caches:
    """Open files of one process; a forked or unpickled copy starts with none."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.indexes: _Recent[Index] = _Recent(OPEN_INDEXES)
        self.readers: _Recent[Reader] = _Recent(OPEN_SHARDS)

    def __reduce__(self) -> tuple[type[_Caches], tuple[()]]:
        return _Caches, ()


def _refuse_missing(folder: str, manifest: Manifest) -> None:
    there = set(names_in(folder))
    if MANIFEST not in there:  # a web server that lists no folders: what is missing shows when it is read
        return
    missing = [shard.file for shard in manifest.shards if shard.file not in there]
    if missing:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise UserError(f"dataset {folder}: {len(missing)} of {len(manifest.shards)} shards are missing: {shown}")


def _reindex(tar: str, expected: Shard) -> Index:
    """The index of a shard whose sidecar is gone or damaged, in memory."""
    from data_pipelines.indexer import index_tar

    try:
        index = index_tar(tar)
    except OSError as error:
        raise DataError(f"shard {tar} and its index cannot be read: {error}") from None
    if index.header.shard_digest != expected.digest:
        raise DataError(f"index of {tar} is gone or damaged, and the tar is not the manifest's either; pack it again")
    return index
