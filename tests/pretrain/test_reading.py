"""What fails one rank is known to all, at the same batch; ranks are threads here, as no collective plays a part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import pytest

from data_pipelines.base import DataError
from pretrain.distributed import World
from pretrain.reading import ReadingError, failure_of_any, in_step


class Meeting:
    """Where threads give what each has to all."""

    def __init__(self, size: int) -> None:
        self.given: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=10)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.given[rank] = value
        self.barrier.wait()
        values = list(self.given)
        self.barrier.wait()
        return values


@dataclass
class Rank:
    meeting: Meeting
    rank: int

    def gather_object(self, value: Any) -> list[Any]:
        return self.meeting.gather(self.rank, value)


def on_ranks(size: int, work: Callable[[World, int], Any]) -> list[Any]:
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(cast(World, Rank(meeting, rank)), rank), range(size)))


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ([None, None], None),
        ([None, "s3 is dark"], "rank 1: s3 is dark"),
        (["worker died", "s3 is dark"], "rank 0: worker died (and 1 more rank)"),
        (["a", None, "b", "c"], "rank 0: a (and 2 more ranks)"),
    ],
)
def test_the_lowest_rank_that_failed_speaks_for_all(failures: list[str | None], words: str | None) -> None:
    assert on_ranks(len(failures), lambda world, rank: failure_of_any(world, failures[rank])) == [words] * len(failures)


def test_all_ranks_leave_at_the_batch_that_one_cannot_read() -> None:
    def batches(fails_at: int | None) -> Iterator[int]:
        for number in range(5):
            if number == fails_at:
                raise DataError("the shard is gone")
            yield number

    def work(world: World, rank: int) -> tuple[list[int], str]:
        seen = []
        with pytest.raises(ReadingError) as caught:
            for batch in in_step(world, cast(Any, batches(3 if rank == 1 else None))):
                seen.append(batch)
        return cast(list[int], seen), str(caught.value)

    assert on_ranks(3, work) == [([0, 1, 2], "rank 1: the shard is gone")] * 3


def test_what_all_ranks_can_read_is_passed_on() -> None:
    assert on_ranks(2, lambda world, rank: list(in_step(world, cast(Any, iter([rank, 7]))))) == [[0, 7], [1, 7]]
