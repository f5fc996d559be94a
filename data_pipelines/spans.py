"""Which samples of a shard one read brings: neighbours are read together. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_pipelines.index import Index

MAX_GAP_BYTES = 2**14
"""Between two samples; up to here reading on costs less than reading anew."""
MAX_RUN_BYTES = 2**23
"""Of samples that are read at once; a larger one is read alone."""


class Span(NamedTuple):
    """Bytes [start, stop) of a shard, which hold one sample."""

    row: int
    """Of the batch."""
    member: int
    start: int
    stop: int

    @classmethod
    def of(cls, index: Index, row: int, member: int) -> Span:
        """Where a sample lies."""
        start, size = index.span(member)
        return cls(row, member, start, start + size)


def runs(spans: Sequence[Span]) -> Iterator[Sequence[Span]]:
    """Cut spans, ascending by their start, into runs that are read at once."""
    first = 0
    for number in range(1, len(spans) + 1):
        if number < len(spans):
            span = spans[number]
            gap, size = span.start - spans[number - 1].stop, span.stop - spans[first].start
            if gap <= MAX_GAP_BYTES and size <= MAX_RUN_BYTES:
                continue
        if number > first:
            yield spans[first:number]
        first = number
