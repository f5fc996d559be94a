"""The sidecar index of a shard: where each sample's members lie, its key, and a digest of its bytes.

`X.tar.index` is a safetensors file: arrays only, nothing that could execute. A sample is what
`webdataset` takes it to be: consecutive members that share the path up to the first dot of the base name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import xxhash
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_pipelines.base import DataError, Strict, canonical_json
from data_pipelines.storage import DEFAULTS, Storage, read_bytes

SUFFIX = ".index"
MAX_SAMPLE_BYTES = 2**31 - 1
_DTYPES: dict[str, np.dtype[Any]] = {
    "offsets": np.dtype("<i8"),
    "sizes": np.dtype("<i8"),
    "field_ids": np.dtype("<u2"),
    "starts": np.dtype("<i8"),
    "key_starts": np.dtype("<i8"),
    "key_bytes": np.dtype("u1"),
    "digests": np.dtype("<u8"),
}


class Header(Strict):
    """What the index says of its shard as a whole."""

    version: Literal[1] = 1
    shard_bytes: int = Field(ge=0, le=2**62)
    """Size of the tar."""
    shard_digest: str
    """xxh3_128 of the tar's bytes, hexadecimal."""
    fields: tuple[str, ...]
    """Names behind `Index.field_ids`."""
    damage: tuple[str, ...] = ()
    """What was left out of the index, and where."""


@dataclass(frozen=True)
class Index:
    """Members and samples of one shard.

    Attributes:
        offsets: (M,) int64, first byte of each member in the tar.
        sizes: (M,) int64, bytes of each member.
        field_ids: (M,) uint16 into `header.fields`.
        starts: (S + 1,) int64, first member of each sample.
        key_starts: (S + 1,) int64, first byte of each key in `key_bytes`.
        key_bytes: UTF-8 of all keys in a row.
        digests: (S,) uint64, see `payload_digest`.
    """

    header: Header
    offsets: np.ndarray
    sizes: np.ndarray
    field_ids: np.ndarray
    starts: np.ndarray
    key_starts: np.ndarray
    key_bytes: np.ndarray
    digests: np.ndarray

    @property
    def num_samples(self) -> int:
        """Samples in the shard."""
        return len(self.digests)

    def key(self, sample: int) -> str:
        """Name of one sample."""
        plain = self._plain
        return str(plain.key_bytes[plain.key_starts[sample] : plain.key_starts[sample + 1]], "utf-8")

    def span(self, sample: int) -> tuple[int, int]:
        """(offset, size) of the one range of the tar that holds the whole sample."""
        plain = self._plain
        last = plain.starts[sample + 1] - 1
        start = plain.offsets[plain.starts[sample]]
        return start, plain.offsets[last] + plain.sizes[last] - start

    def fields_of(self, sample: int, data: bytes, base: int | None = None) -> dict[str, bytes]:
        """Cut the sample's fields out of `data`, in tar order.

        Args:
            base: where in the tar `data` begins; with the sample itself when None.
        """
        plain, names = self._plain, self.header.fields
        first, stop = plain.starts[sample], plain.starts[sample + 1]
        base = plain.offsets[first] if base is None else base
        cut = {}
        for member in range(first, stop):
            start = plain.offsets[member] - base
            cut[names[plain.field_ids[member]]] = data[start : start + plain.sizes[member]]
        return cut

    def digest(self, sample: int) -> int:
        """`payload_digest` of one sample's fields."""
        return self._plain.digests[sample]

    @cached_property
    def _plain(self) -> _Plain:
        return _Plain(*(memoryview(getattr(self, name)) for name in _Plain._fields))

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, tuple(getattr(self, field.name) for field in fields(self))

    def to_bytes(self) -> bytes:
        """The sidecar's content."""
        arrays = {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in _DTYPES.items()}
        facts = {"header": self.header.model_dump(mode="json"), "digest": _digest(self.header, arrays)}
        # One metadata key: safetensors keeps several in no fixed order, and equal sets must be equal bytes.
        return save(arrays, metadata={"thalweg": json.dumps(facts, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Index:
        """Read a sidecar without trusting it.

        Args:
            name: of the sidecar, for messages.

        Raises:
            DataError: it is damaged, or was made by another version.
        """
        try:
            facts = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["thalweg"])
            header = Header.model_validate(facts["header"])
            arrays = load(data)
            whole = {k: v.dtype for k, v in arrays.items()} == _DTYPES and _digest(header, arrays) == facts["digest"]
            index = cls(header=header, **arrays) if whole else None
        except (ValueError, LookupError, TypeError, SafetensorError, ValidationError):
            index = None
        if index is None or not index._is_consistent():
            raise DataError(f"index {name} is damaged or of another version; rebuild it: thalweg data check --fix")
        return index

    def _is_consistent(self) -> bool:
        """Whether every range lies inside its array or the shard, whoever wrote the index."""
        try:
            self.key_bytes.tobytes().decode()
        except UnicodeDecodeError:
            return False
        return bool(
            len(self.offsets) == len(self.sizes) == len(self.field_ids)
            and len(self.starts) == len(self.key_starts) == self.num_samples + 1
            and _climbs(self.starts, len(self.offsets), 1)
            and _climbs(self.key_starts, len(self.key_bytes), 0)
            and np.all(self.field_ids < len(self.header.fields))
            and self._spans_are_sound()
        )

    def _spans_are_sound(self) -> bool:
        """Members follow each other inside the shard, and no sample is larger than samples are."""
        room = self.header.shard_bytes
        if not np.all((self.offsets >= 0) & (self.offsets <= room) & (self.sizes >= 0) & (self.sizes <= room)):
            return False  # also keeps the sums below from wrapping round
        ends = self.offsets + self.sizes
        spans = ends[self.starts[1:] - 1] - self.offsets[self.starts[:-1]]
        return bool(
            np.all(ends <= room) and np.all(self.offsets[1:] >= ends[:-1]) and np.all(spans <= MAX_SAMPLE_BYTES)
        )


class _Plain(NamedTuple):
    """The arrays of an index, read one number at a time: several times faster than NumPy's scalars."""

    offsets: memoryview
    sizes: memoryview
    field_ids: memoryview
    starts: memoryview
    key_starts: memoryview
    key_bytes: memoryview
    digests: memoryview


def read_index(address: str, storage: Storage = DEFAULTS) -> Index:
    """Read the sidecar at `address`.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged.
    """
    return Index.from_bytes(read_bytes(address, storage), address)


def payload_digest(fields: Iterable[tuple[str, bytes]]) -> int:
    """xxh3_64 over `field NUL bytes` of each member in tar order."""
    parts = [part for name, data in fields for part in (name.encode(), b"\0", data)]
    return xxhash.xxh3_64_intdigest(b"".join(parts))  # joining costs less than the calls that it saves


def _digest(header: Header, arrays: dict[str, np.ndarray]) -> str:
    """Names the content of an index, so that a flipped byte anywhere shows."""
    digest = xxhash.xxh3_128(canonical_json(header.model_dump(mode="json")))
    for name in _DTYPES:
        digest.update(arrays[name].tobytes() + b"\0")
    return digest.hexdigest()


def _climbs(starts: np.ndarray, stop: int, step: int) -> bool:
    """Whether `starts` runs from 0 to `stop` in steps of at least `step`."""
    return bool(starts[0] == 0 and starts[-1] == stop and np.all(np.diff(starts) >= step))
