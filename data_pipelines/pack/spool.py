"""Samples on disk, in the order they come, until they are shuffled into shards."""

from __future__ import annotations

import io
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import IO

import numpy as np


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
