"""Samples on disk, in the order they come, until they are shuffled into shards."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import IO

import numpy as np

from data_pipelines.pack.shard import Made


class Spool:
    """Samples that all have the same fields, in a file that vanishes with its handle."""

    def __init__(self, file: IO[bytes], fields: Sequence[str]) -> None:
        self._file, self._fields = file, tuple(fields)
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return (len(self._ends) - 1) // len(self._fields)

    @property
    def num_bytes(self) -> int:
        """Of all samples."""
        return self._ends[-1]

    def add(self, *contents: bytes) -> None:
        """Append a sample, by the contents of its fields in their order."""
        for content in contents:
            self._file.write(content)
            self._ends.append(self._ends[-1] + len(content))

    def read(self, number: int) -> dict[str, bytes]:
        """A sample's fields by name."""
        first = number * len(self._fields)
        ends = self._ends[first : first + len(self._fields) + 1]
        self._file.seek(ends[0])
        return {
            name: self._file.read(stop - start) for name, start, stop in zip(self._fields, ends, ends[1:], strict=False)
        }


class SampleSpool:
    """Samples of any fields, in a file that vanishes with its handle.

    Attributes:
        keys: of the samples, in the order they came.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.keys: list[str] = []
        self._file, self._starts = file, array("Q")

    @property
    def num_bytes(self) -> int:
        """Of all samples."""
        return self._file.seek(0, io.SEEK_END)

    def add(self, sample: Made) -> None:
        """Append a sample."""
        self.keys.append(sample.key)
        self._starts.append(self._file.tell())
        sizes = [[name, len(content)] for name, content in sample.fields.items()]
        self._file.write(json.dumps([sizes, sample.kind]).encode() + b"\n" + b"".join(sample.fields.values()))

    def read(self, number: int) -> Made:
        """A sample again."""
        self._file.seek(self._starts[number])
        sizes, kind = json.loads(self._file.readline())
        return Made(self.keys[number], {name: self._file.read(size) for name, size in sizes}, tuple(kind))


def npy(values: np.ndarray) -> bytes:
    """An array in NumPy's format."""
    return _npy_header(values.dtype.str, values.shape) + values.tobytes()


@lru_cache(maxsize=4096)
def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Kept, for it takes NumPy longer than the few tokens of a sentence."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def token_type(vocabulary_size: int) -> np.dtype:
    """The smallest type that all token ids fit into."""
    return np.dtype("<u2") if vocabulary_size <= 2**16 else np.dtype("<i4")
