"""From an order to batches: reads slots, replaces what is unreadable, stacks, proves.

The order says which sample stands at a slot, the datasets read it, the view makes arrays of it; here they meet. Every
batch is a function of (seed, step, micro step, rank) and of the quarantine's lines alone.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import torch

from data_pipelines.base import DataError, SampleError, ThalwegError
from data_pipelines.batch import Batch, Sample
from data_pipelines.hashing import mix
from data_pipelines.ledger import slot_hash, total
from data_pipelines.order import Order, check_batch, micro_positions
from data_pipelines.quarantine import Line, Place, Quarantine, complaint, is_too_much, num_bad
from data_pipelines.shards import Dataset
from data_pipelines.views import Draw, View
from data_pipelines.workers import Workers

WORKER_TIMEOUT_S = 600.0
"""Longest wait for a micro batch; the store's own deadlines are shorter."""
SHARED_BYTES = 2**16
"""Arrays from this size on travel from a worker in shared memory; smaller ones are cheaper to copy."""
FINITE_MAX_SHARE = 0.01
"""Share of a finite stream that may be unreadable; beyond, a figure measured over it would mislead."""

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


@dataclass(frozen=True)
class Row:
    """One slot, read."""

    fields: Mapping[str, np.ndarray]
    key: str
    payload_digest: int
    weight: float = 1.0
    lines: tuple[Line, ...] = ()


class RowReader(ABC):
    """Reads slots of datasets through a view; lives in the workers."""

    def __init__(self, datasets: Sequence[Dataset], view: View, seed: int, attempt: int = 1) -> None:
        self._datasets, self._view, self._seed, self._attempt = tuple(datasets), view, seed, attempt

    def __getitem__(self, positions: np.ndarray) -> Rows:
        """The rows of some slots; a failure travels as words, since exceptions lose theirs between processes."""
        try:
            return _stack(positions, self._rows(positions))
        except ThalwegError as error:
            return Rows.failed(str(error))

    def _rows(self, positions: np.ndarray) -> list[Row]:
        places = self._places(positions)
        for number, dataset in enumerate(self._datasets):
            if dataset.is_remote:
                dataset.read_ahead([(shard, member) for source, shard, member in places if source == number])
        rows: dict[int, Row] = {}
        for index in sorted(range(len(places)), key=places.__getitem__):  # a shard's members in sequence
            rows[index] = self._row(int(positions[index]), places[index])
        return [rows[index] for index in range(len(places))]

    @abstractmethod
    def _places(self, positions: np.ndarray) -> list[Place]:
        """Where the samples of the slots lie."""

    @abstractmethod
    def _row(self, position: int, place: Place) -> Row:
        """The slot's row, or what stands in for it."""

    def _first_readable(self, position: int, places: Iterable[Place]) -> Row:
        """The first of `places` that can be read and viewed, with lines about those before it.

        Raises:
            DataError: there is none.
        """
        bad: list[SampleError] = []
        for place in places:
            dataset, shard, member = place
            try:
                sample = self._datasets[dataset].read(shard, member)
                fields = self._view_of(sample, position)
            except SampleError as error:
                bad.append(error)
                continue
            lines = [
                Line(position, error.key, error.shard, error.reason, served=place, attempt=self._attempt)
                for error in bad
            ]
            # What is opted out needs a line only where no other one says what stands here.
            lines = [line for line in lines if line.is_bad] or lines[:1]
            digest = self._datasets[dataset].payload_digest(shard, member)
            return Row(fields, sample.key, digest, lines=tuple(lines))
        last = f"; the last one: {bad[-1]}" if bad else ""
        raise DataError(f"none of the {len(bad)} samples that may stand at slot {position} can be read{last}")

    def _view_of(self, sample: Sample, position: int) -> Mapping[str, np.ndarray]:
        try:
            return self._view.sample(sample, Draw(self._seed, position))
        except SampleError as error:  # a decoder does not know whose bytes it was given
            raise SampleError(error.reason, key=sample.key, shard=sample.shard) from error


def _stack(positions: np.ndarray, rows: Sequence[Row]) -> Rows:
    key_hash = np.array([mix("key", row.key) for row in rows], dtype=np.uint64)
    digests = np.array([row.payload_digest for row in rows], dtype=np.uint64)
    weight = np.array([row.weight for row in rows], dtype=np.float32)
    counted = weight > 0
    return Rows(
        fields={name: _stack_field(name, rows) for name in rows[0].fields},
        keys=tuple(row.key for row in rows),
        positions=positions,
        weight=weight,
        key_hash=key_hash.view(np.int64),
        ledger=total(slot_hash(positions[counted], key_hash[counted], digests[counted])),
        lines=tuple(line for row in rows for line in row.lines),
    )


def _stack_field(name: str, rows: Sequence[Row]) -> Array:
    values = [np.asarray(row.fields[name]) for row in rows]
    kinds = {(value.shape, value.dtype.str) for value in values}
    if len(kinds) > 1:
        raise DataError(f"field {name!r} differs within a batch: {sorted(kinds)}; a view must give equal shapes")
    stacked = np.stack(values)
    return torch.from_numpy(stacked) if stacked.nbytes >= SHARED_BYTES else stacked


class _SlotReader(RowReader):
    """Slots of an order; a bad sample is replaced by the order's substitutes (rule 8)."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        view: View,
        seed: int,
        attempt: int,
        known: Mapping[int, Line],
    ) -> None:
        super().__init__(datasets, view, seed, attempt)
        self._order, self._known = order, known

    def _places(self, positions: np.ndarray) -> list[Place]:
        slots = self._order.slots(positions)
        return list(zip(slots.dataset.tolist(), slots.shard.tolist(), slots.member.tolist(), strict=True))

    def _row(self, position: int, place: Place) -> Row:
        if position not in self._known:
            return self._first_readable(position, chain([place], self._order.substitutes(position)))
        known = self._known[position]
        row = self._first_readable(position, chain([known.served], self._order.substitutes(position)))
        return replace(row, lines=(known, *row.lines))


class Loader:
    """This rank's micro batches, for ever.

    Args:
        datasets: in the order of `order.streams`.
        global_batch: samples a step, over all ranks.
        accumulation: micro batches a step.
        start: G, the first slot of the first step.
        workers: processes that read ahead; 0 reads in this one. No part of the order.
        prefetch: micro batches each worker is ahead.
        quarantine: folder of the run's quarantine files; None keeps none.
        attempt: of the run.
        timeout_s: longest wait for a micro batch.

    Attributes:
        waited_s: seconds that asking for batches has blocked so far.

    Raises:
        UserError: global batch, accumulation, ranks and lanes do not fit together.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        view: View,
        *,
        seed: int,
        global_batch: int,
        accumulation: int,
        rank: int,
        world_size: int,
        start: int,
        workers: int,
        prefetch: int,
        quarantine: Path | None,
        attempt: int = 1,
        timeout_s: float = WORKER_TIMEOUT_S,
    ) -> None:
        check_batch(global_batch, accumulation, world_size, order.num_lanes)
        self._global_batch, self._accumulation = global_batch, accumulation
        self._rank, self._world_size, self._start = rank, world_size, start
        self._num_workers, self._prefetch, self._timeout_s = workers, prefetch, timeout_s
        self._quarantine = Quarantine(quarantine, rank)
        self._reader = _SlotReader(datasets, order, view, seed, attempt, self._quarantine.known)
        self._workers: Workers[np.ndarray, Rows] | None = None
        self.waited_s = 0.0

    @property
    def pids(self) -> list[int]:
        """Of the worker processes."""
        return self._workers.pids if self._workers else []

    def __iter__(self) -> Iterator[Batch]:
        """Start the workers at once, so that they read while the caller still prepares.

        The iterator raises DataError when a worker dies or hangs, the store refuses, or no substitute is left.
        """
        self.close()
        self._workers = Workers(
            self._reader,
            self._tasks(),
            num_workers=self._num_workers,
            prefetch=self._prefetch,
            timeout_s=self._timeout_s,
            pin_memory=torch.cuda.is_available(),
        )
        return self._batches(self._workers)

    def _tasks(self) -> Iterator[np.ndarray]:
        start = self._start
        while True:
            for micro in range(self._accumulation):
                yield micro_positions(
                    start, self._global_batch, self._accumulation, micro, self._rank, self._world_size
                )
            start += self._global_batch

    def _batches(self, workers: Workers[np.ndarray, Rows]) -> Iterator[Batch]:
        while True:
            for _ in range(self._accumulation):
                asked = time.perf_counter()
                rows = next(workers, None)
                self.waited_s += time.perf_counter() - asked
                if rows is None:  # closed meanwhile
                    return
                batch = rows.batch()
                self._quarantine.add(rows.lines)
                yield batch

    def close(self) -> None:
        """End the workers; another `iter` starts again at `start`."""
        if self._workers:
            self._workers.close()
        self._workers = None


class _FileReader(RowReader):
    """A finite stream in file order; rows past its end, and unreadable ones, weigh nothing (rule 7)."""

    def __init__(self, dataset: Dataset, view: View, seed: int, num_rows: int) -> None:
        super().__init__([dataset], view, seed)
        self._num_samples, self._num_rows = dataset.num_samples, num_rows
        self._ends = np.cumsum(dataset.shard_sizes)

    def _places(self, positions: np.ndarray) -> list[Place]:
        return [self._place(position % self._num_rows * self._num_samples // self._num_rows) for position in positions]

    def _place(self, sample: int) -> Place:
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        return 0, shard, int(sample - (self._ends[shard - 1] if shard else 0))

    def _row(self, position: int, place: Place) -> Row:
        _, shard, member = place
        first = member + (int(self._ends[shard - 1]) if shard else 0)
        around = (self._place((first + step) % self._num_samples) for step in range(self._num_samples))
        row = self._first_readable(position, around)
        return row if position < self._num_rows and not row.lines else replace(row, weight=0.0)


def finite_batches(
    dataset: Dataset,
    view: View,
    *,
    seed: int,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int,
    max_samples: int | None = None,
) -> Iterator[Batch]:
    """Every sample once, in file order, over all ranks; every rank gets as many batches.

    Rows that pad the last batches, and rows whose sample is unreadable, have weight 0 and hold another sample.

    Args:
        batch_size: rows a batch of one rank.
        max_samples: as many samples, evenly spaced over the files: files may be sorted.

    Raises:
        DataError: more than one in a hundred samples (and more than ten) cannot be read.
    """
    num_rows = min(dataset.num_samples, max_samples or dataset.num_samples)
    seen, bad = 0, list[Line]()  # of this rank
    results = Workers(
        _FileReader(dataset, view, seed, num_rows),
        [
            np.arange(first + rank, first + batch_size * world_size, world_size, dtype=np.int64)
            for first in range(0, num_rows, batch_size * world_size)
        ],
        num_workers=workers,
        prefetch=2,
        timeout_s=WORKER_TIMEOUT_S,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        for rows in results:
            batch = rows.batch()
            seen += len(batch)
            bad += rows.lines
            replaced = num_bad(bad)
            if is_too_much(replaced, seen, FINITE_MAX_SHARE):
                raise DataError(complaint(replaced, seen, FINITE_MAX_SHARE, bad))
            yield batch
    finally:
        results.close()
