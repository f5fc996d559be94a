"""From slots to rows: reads samples, shows them to the view, replaces what is unreadable. Lives in the workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from data_pipelines.base import DataError, SampleError, ThalwegError
from data_pipelines.batch import Sample
from data_pipelines.order import Order
from data_pipelines.quarantine import Line, Place
from data_pipelines.rows import Row, RowBuffer, Rows
from data_pipelines.shards import Dataset
from data_pipelines.views import Draw, View

MOST_TRIED = 10_000
"""Substitutes of one slot: a set of which so many in sequence cannot be read is lost."""


class RowReader(ABC):
    """Reads slots of datasets through a view."""

    def __init__(self, datasets: Sequence[Dataset], view: View, seed: int, attempt: int = 1) -> None:
        self._datasets, self._view, self._seed, self._attempt = tuple(datasets), view, seed, attempt

    def __getitem__(self, positions: np.ndarray) -> Rows:
        """The rows of some slots; a failure travels as words, since exceptions lose theirs between processes."""
        try:
            return self._rows(positions)
        except ThalwegError as error:
            return Rows.failed(str(error))

    def _rows(self, positions: np.ndarray) -> Rows:
        places, slots = self._places(positions), positions.tolist()
        buffer = RowBuffer(positions)
        for number, dataset in enumerate(self._datasets):
            rows = [row for row, place in enumerate(places) if place[0] == number]
            for found, sample in dataset.read_all([places[row][1:] for row in rows]):
                row = rows[found]
                buffer.put(row, self._row(slots[row], places[row], sample))
        return buffer.rows()

    @abstractmethod
    def _places(self, positions: np.ndarray) -> list[Place]:
        """Where the samples of the slots lie."""

    @abstractmethod
    def _substitutes(self, position: int) -> Iterator[Place]:
        """What may stand in for the slot's sample, best first."""

    def _row(self, position: int, place: Place, sample: Sample | SampleError) -> Row:
        """The slot's row, or what stands in for it."""
        try:
            return self._seen(position, sample)
        except SampleError as error:
            return self._substituted(position, error)

    def _seen(self, position: int, sample: Sample | SampleError) -> Row:
        if isinstance(sample, SampleError):
            raise sample
        try:
            fields = self._view.sample(sample, Draw(self._seed, position))
        except SampleError as error:  # a decoder does not know whose bytes it was given
            raise SampleError(error.reason, key=sample.key, shard=sample.shard) from error
        return Row(fields, sample.key, sample.digest)

    def _substituted(self, position: int, error: SampleError) -> Row:
        """The first substitute that can be read and viewed, with lines about all that cannot.

        Raises:
            DataError: there is none, or none among the first `MOST_TRIED`.
        """
        bad = [error]
        for place in islice(self._substitutes(position), MOST_TRIED):
            dataset, shard, member = place
            try:
                row = self._seen(position, self._datasets[dataset].read(shard, member))
            except SampleError as error:
                bad.append(error)
                continue
            lines = [Line(position, error.key, error.shard, error.reason, place, self._attempt) for error in bad]
            # What is opted out needs a line only where no other one says what stands here.
            return row._replace(lines=tuple(line for line in lines if line.is_bad) or tuple(lines[:1]))
        raise DataError(
            f"none of the {len(bad)} samples that may stand at slot {position} can be read; the last one: {bad[-1]}"
        )


class SlotReader(RowReader):
    """Slots of an order; a bad sample is replaced by the order's substitutes (rule 8).

    Args:
        known: the latest line of each slot that was replaced before; it takes the same substitute again.
    """

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
        places = list(zip(slots.dataset.tolist(), slots.shard.tolist(), slots.member.tolist(), strict=True))
        if self._known:
            known = (self._known.get(position) for position in positions.tolist())
            places = [place if line is None else line.served for place, line in zip(places, known, strict=True)]
        return places

    def _substitutes(self, position: int) -> Iterator[Place]:
        return self._order.substitutes(position)

    def _row(self, position: int, place: Place, sample: Sample | SampleError) -> Row:
        row = super()._row(position, place, sample)
        return row._replace(lines=(self._known[position], *row.lines)) if position in self._known else row


class FileReader(RowReader):
    """A finite stream in file order; rows past its end, and unreadable ones, weigh nothing (rule 7)."""

    def __init__(self, dataset: Dataset, view: View, seed: int, num_rows: int) -> None:
        super().__init__([dataset], view, seed)
        self._num_samples, self._num_rows = dataset.num_samples, num_rows
        self._ends = np.cumsum(dataset.shard_sizes)

    def _places(self, positions: np.ndarray) -> list[Place]:
        return [self._place(sample) for sample in self._samples(positions).tolist()]

    def _samples(self, positions: np.ndarray | int) -> np.ndarray:
        return np.asarray(positions) % self._num_rows * self._num_samples // self._num_rows

    def _place(self, sample: int) -> Place:
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        return 0, shard, int(sample - (self._ends[shard - 1] if shard else 0))

    def _substitutes(self, position: int) -> Iterator[Place]:
        sample = int(self._samples(position))
        return (self._place((sample + step) % self._num_samples) for step in range(1, self._num_samples))

    def _row(self, position: int, place: Place, sample: Sample | SampleError) -> Row:
        row = super()._row(position, place, sample)
        return row if position < self._num_rows and not row.lines else row._replace(weight=0.0)
