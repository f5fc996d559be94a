"""Shards made side by side: each by one process, from nothing but its own samples."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.base import DataError
from data_pipelines.pack.shard import LeftOut, Made, Record, Unwanted, write_shard
from data_pipelines.workers import begin_worker


@dataclass(frozen=True)
class Task:
    """Samples [start, stop) as one tar."""

    tar: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Work:
    """What all tasks share; see `writer.Split`."""

    samples: Sequence[Any]
    make: Callable[[Any], Made | LeftOut]
    unwanted: Unwanted | None

    def shard(self, task: Task, count: Callable[[int], None] = lambda samples: None) -> Record:
        """Write the task's shard; `count` hears of every sample."""
        return write_shard(task.tar, self._made(task, count), self.unwanted)

    def _made(self, task: Task, count: Callable[[int], None]) -> Iterator[Made | LeftOut]:
        for entry in self.samples[task.start : task.stop]:
            yield self.make(entry)
            count(1)


_work: Work
"""Of a worker process, which inherits it: samples may be what cannot be pickled."""


def _begin(work: Work) -> None:
    global _work
    begin_worker()
    _work = work


def _shard(task: Task) -> Record:
    return _work.shard(task)


def make_shards(
    work: Work, tasks: Sequence[Task], workers: int, count: Callable[[int], None]
) -> Iterator[tuple[Task, Record]]:
    """Each task with its record, as they are done.

    Args:
        count: called with the number of samples that were made since it was last called.

    Raises:
        DataError: a worker was killed.
    """
    if workers < 2:
        for task in tasks:
            yield task, work.shard(task, count)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (work,)) as pool:
        coming = {pool.submit(_shard, task): task for task in tasks}
        try:
            for future in as_completed(coming):
                task, record = coming[future], future.result()
                count(min(task.stop, len(work.samples)) - task.start)
                yield task, record
        except BrokenProcessPool:
            raise DataError(
                "data pack: a worker was killed, most often for want of memory; give the same command again with fewer "
                "workers=N: it goes on from the shards that are done"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
