"""Rows of a batch: each is written where it stays, and travels from a worker without another copy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from data_pipelines.base import DataError
from data_pipelines.batch import Batch
from data_pipelines.hashing import mix, words
from data_pipelines.ledger import slot_hash, total
from data_pipelines.quarantine import Line, num_bad

SHARED_BYTES = 2**16
"""Arrays from this size on travel from a worker in shared memory; smaller ones are cheaper to copy."""

Array = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Rows:
    """What a worker sends: a batch before it is one.

    Attributes:
        error: the rows could not be made, in words; all else is empty then.
        lines: bad samples met, for the quarantine.
    """

    fields: Mapping[str, Array]
    keys: tuple[str, ...]
    positions: Array
    weight: Array
    key_hash: Array
    ledger: int
    lines: tuple[Line, ...] = ()
    error: str | None = None

    @classmethod
    def failed(cls, error: str) -> Self:
        """No rows."""
        nothing = np.empty(0)
        return cls({}, (), nothing, nothing, nothing, 0, error=error)

    def pin_memory(self) -> Self:
        """A copy from which a GPU copies without waiting; called by torch's pinning thread."""

        def pin(array: Array) -> torch.Tensor:
            return torch.as_tensor(array).pin_memory()

        return replace(
            self,
            fields={name: pin(array) for name, array in self.fields.items()},
            positions=pin(self.positions),
            weight=pin(self.weight),
            key_hash=pin(self.key_hash),
        )

    def batch(self) -> Batch:
        """The rows as tensors.

        Raises:
            DataError: the worker could not make them.
        """
        if self.error is not None:
            raise DataError(self.error)
        return Batch(
            fields={name: torch.as_tensor(array) for name, array in self.fields.items()},
            keys=self.keys,
            positions=torch.as_tensor(self.positions),
            weight=torch.as_tensor(self.weight),
            key_hash=torch.as_tensor(self.key_hash),
            ledger=self.ledger,
            replaced=num_bad(self.lines),
            first=int(self.positions[0]),
        )


class Row(NamedTuple):
    """One slot, read."""

    fields: Mapping[str, np.ndarray]
    key: str
    payload_digest: int
    weight: float = 1.0
    lines: tuple[Line, ...] = ()


class RowBuffer:
    """The rows of some slots, in any order, each field in one array from the first row on.

    Args:
        positions: (B,) int64 slot numbers.
    """

    def __init__(self, positions: np.ndarray) -> None:
        self._positions = positions
        self._proofs: list[Any] = [None] * len(positions)
        self._fields: dict[str, np.ndarray] = {}
        self._sent: dict[str, Array] = {}

    def put(self, number: int, row: Row) -> None:
        """Row `number` of the batch.

        Raises:
            DataError: its fields are not like those of the rows before.
        """
        fields = self._fields or self._begin(row)
        if row.fields.keys() != fields.keys():
            raise DataError(f"fields differ within a batch: {sorted(row.fields)} and {sorted(fields)}")
        for name, value in row.fields.items():
            field = fields[name]
            if value.shape != field.shape[1:] or value.dtype != field.dtype:
                kinds = sorted({(value.shape, value.dtype.str), (field.shape[1:], field.dtype.str)})
                raise DataError(f"field {name!r} differs within a batch: {kinds}; a view must give equal shapes")
            field[number] = value
        self._proofs[number] = row.key, row.payload_digest, row.weight, row.lines

    def _begin(self, row: Row) -> dict[str, np.ndarray]:
        for name, value in row.fields.items():
            self._sent[name], self._fields[name] = _empty((len(self._positions), *value.shape), value.dtype)
        return self._fields

    def rows(self) -> Rows:
        """All of them, once each has been put."""
        keys, payload_digests, weights, lines = zip(*self._proofs, strict=True)
        key_hash = mix("key", words(keys))
        digests, weight = np.array(payload_digests, dtype=np.uint64), np.array(weights, dtype=np.float32)
        counted = weight > 0
        return Rows(
            fields=self._sent,
            keys=keys,
            positions=self._positions,
            weight=weight,
            key_hash=key_hash.view(np.int64),
            ledger=total(slot_hash(self._positions[counted], key_hash[counted], digests[counted])),
            lines=tuple(chain.from_iterable(lines)),
        )


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> tuple[Array, np.ndarray]:
    """An array as it is sent, and as it is written to: a large one lies in shared memory where a worker makes it."""
    size = math.prod(shape) * dtype.itemsize
    if size < SHARED_BYTES:
        array = np.empty(shape, dtype)
        return array, array
    tensor = torch.empty(0, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
    if torch.utils.data.get_worker_info() is not None:
        tensor.set_(torch.UntypedStorage._new_shared(size))  # as torch's own collation does
    tensor.resize_(shape)
    return tensor, tensor.numpy()
