"""How fast a run's data comes here: by part for one worker, by number of workers, and how many of them it takes."""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil

import numpy as np

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch, Sample
from data_pipelines.order import Order
from data_pipelines.rows import Row, RowBuffer
from data_pipelines.shards import Dataset
from data_pipelines.steps import divisors
from data_pipelines.views import Draw, View

MICRO_BATCH = 64
"""Samples that are stacked at a time, about: the order is the run's, its micro batches may take minutes to fill."""
SPARE = 1.25
"""Workers are planned for so much more than is asked: reading and decoding do not come evenly."""
BEST_SHARE = 0.9
"""Of the best rate, from which fewer workers are as good."""
TRIED = 1000
"""Samples after which a set without a readable one is given up."""
TIMED_AT_LEAST = 2
"""Micro batches."""


@dataclass(frozen=True)
class Parts:
    """Seconds that one worker spends on a sample, and its bytes in the shards; means."""

    read_s: float
    view_s: float
    stack_s: float
    sample_bytes: float

    @property
    def samples_per_s(self) -> float:
        """Of one worker."""
        return 1 / (self.read_s + self.view_s + self.stack_s)

    def words(self) -> str:
        """The parts' shares."""
        parts = {"read": self.read_s, "decode and view": self.view_s, "stack": self.stack_s}
        return ", ".join(f"{name} {part * self.samples_per_s:.0%}" for name, part in parts.items())


@dataclass(frozen=True)
class Pace:
    """What so many workers gave; 0 reads in the training process itself."""

    workers: int
    samples_per_s: float

    def data_wait(self, asked_per_s: float) -> float:
        """Share of the time that a GPU which takes so many samples a second waits for data."""
        if self.workers == 0:  # nothing is read while it computes
            return asked_per_s / (asked_per_s + self.samples_per_s)
        return max(0.0, 1 - self.samples_per_s / asked_per_s)


def time_parts(
    datasets: Sequence[Dataset], order: Order, view: View, *, seed: int, seconds: float, start: int = 0
) -> Parts:
    """Make micro batches of the run's samples in this process, as a worker does, unreadable ones left out.

    Args:
        seconds: how long.
        start: first slot.

    Raises:
        SampleError: not one sample of the first micro batches can be read.
    """
    clock, count = _Clock(), 0
    begun = time.perf_counter()
    for first in itertools.count(start, MICRO_BATCH):
        found = _rows(datasets, order, view, seed, np.arange(first, first + MICRO_BATCH), clock)
        rows = [row for row in found if isinstance(row, Row)]
        count += len(rows)
        if not count and first >= start + TRIED:
            raise next(row for row in found if isinstance(row, SampleError))
        if count and time.perf_counter() - begun >= seconds:
            break
    read_s, view_s, stack_s = (clock.spent_s[part] / count for part in ("read", "view", "stack"))
    num_bytes = sum(shard.bytes for dataset in datasets for shard in dataset.manifest.shards)
    return Parts(read_s, view_s, stack_s, num_bytes / sum(dataset.num_samples for dataset in datasets))


def _rows(
    datasets: Sequence[Dataset], order: Order, view: View, seed: int, positions: np.ndarray, clock: _Clock
) -> list[Row | SampleError]:
    """A micro batch, made and thrown away but for its rows."""
    slots = order.slots(positions)
    rows: list[Row | SampleError] = []
    for number, dataset in enumerate(datasets):
        chosen = np.flatnonzero(slots.dataset == number)
        places = list(zip(slots.shard[chosen].tolist(), slots.member[chosen].tolist(), strict=True))
        for place, sample in dataset.read_all(places):
            clock.lap("read")
            rows.append(_row(sample, view, Draw(seed, int(positions[chosen[place]]))))
            clock.lap("view")
    good = [row for row in rows if isinstance(row, Row)]
    if good:
        buffer = RowBuffer(positions[: len(good)])
        for place, row in enumerate(good):
            buffer.put(place, row)
        buffer.rows()
    clock.lap("stack")
    return rows


def _row(sample: Sample | SampleError, view: View, draw: Draw) -> Row | SampleError:
    if isinstance(sample, SampleError):
        return sample
    try:
        return Row(view.sample(sample, draw), sample.key, sample.digest)
    except SampleError as error:
        return error


class _Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def lap(self, part: str) -> None:
        """All time since the last lap went into this."""
        now = time.perf_counter()
        self.spent_s[part] += now - self._since
        self._since = now


def sweep(
    batches: Callable[[int, int], Generator[Batch, None, None]], counts: Sequence[int], *, seconds: float, stride: int
) -> Iterator[Pace]:
    """The rate of each number of workers.

    Args:
        batches: endless batches of so many workers from a slot on; closed when done with.
        seconds: how long each is timed.
        stride: slots from the start of one to the start of the next, so that none reads what another left in memory.
    """
    for number, workers in enumerate(counts):
        with closing(batches(workers, number * stride)) as stream:
            for _ in range(max(1, workers)):  # all have begun by then
                next(stream)
            count = taken = 0
            begun = time.perf_counter()
            while (passed := time.perf_counter() - begun) < seconds or taken < TIMED_AT_LEAST:
                count += len(next(stream))
                taken += 1
        yield Pace(workers, count / passed)


def worker_counts(cores: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16 ... up to the cores.

    >>> worker_counts(2), worker_counts(10)
    ([0, 1, 2], [0, 1, 2, 3, 4, 6, 8, 10])
    """
    steps = [0, 1, *(size for power in range(1, 12) for size in (2**power, 3 * 2 ** (power - 1)))]
    return sorted({*(size for size in steps if size <= cores), cores})


def choose(paces: Sequence[Pace], asked_per_s: float | None) -> Pace:
    """The fewest workers that give what is asked and a quarter more; else, the fewest that are about as good as any.

    Where something is asked, reading in the training process is no choice: the GPU would wait for every batch.
    """
    able = sorted((pace for pace in paces if pace.workers or asked_per_s is None), key=lambda pace: pace.workers)
    enough = BEST_SHARE * max(pace.samples_per_s for pace in able)
    if asked_per_s is not None:
        enough = min(enough, SPARE * asked_per_s)
    return next(pace for pace in able if pace.samples_per_s >= enough)


def workers_needed(asked_per_s: float, worker_per_s: float) -> int:
    """Workers that feed one GPU, a quarter to spare."""
    return ceil(SPARE * asked_per_s / worker_per_s)


def micro_batches(global_batch: int) -> int:
    """Parts of a step of at most `MICRO_BATCH` samples each."""
    return min(size for size in divisors(global_batch) if global_batch // size <= MICRO_BATCH)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
