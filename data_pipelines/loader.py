"""From an order to batches: slots are dealt to workers, and what they read comes back as batches.

The order says which sample stands at a slot, `reading` reads it and shows it to the view, `rows` makes batches and
proves them. Every batch is a function of (seed, step, micro step, rank) and of the quarantine's lines alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data_pipelines.base import DataError
from data_pipelines.batch import Batch
from data_pipelines.order import Order, check_batch, micro_positions
from data_pipelines.quarantine import Line, Quarantine, complaint, is_too_much, num_bad
from data_pipelines.reading import FileReader, SlotReader
from data_pipelines.rows import Rows
from data_pipelines.shards import Dataset
from data_pipelines.views import View
from data_pipelines.workers import Workers

WORKER_TIMEOUT_S = 600.0
"""Longest wait for a micro batch; the store's own deadlines are shorter."""
FINITE_MAX_SHARE = 0.01
"""Share of a finite stream that may be unreadable; beyond, a figure measured over it would mislead."""


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
        self._reader = SlotReader(datasets, order, view, seed, attempt, self._quarantine.known)
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
        FileReader(dataset, view, seed, num_rows),
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
