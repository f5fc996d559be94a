"""Who holds which elements of a tensor: pure arithmetic, the same for every ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """How one flattened tensor is dealt to the ranks.

    The tensor lies at `offset` on a line that is cut into pieces of `piece` elements; rank r
    holds what of the tensor lies on piece r. ZeRO 1 and 2 put all parameters of a group on one
    line; ZeRO 3 and an even split give each tensor a line of its own.
    """

    shape: tuple[int, ...]
    offset: int
    piece: int

    @classmethod
    def even(cls, shape: tuple[int, ...], world_size: int) -> Cut:
        """Equal parts, the last ones shorter."""
        return cls(shape, 0, max(1, math.ceil(math.prod(shape) / world_size)))

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Cut:
        """All of it on rank 0."""
        return cls(shape, 0, max(1, math.prod(shape)))

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    def held_by(self, rank: int) -> tuple[int, int]:
        """[start, stop) of the tensor on `rank`; empty where start == stop.

        >>> [Cut((5,), 3, 4).held_by(rank) for rank in range(3)]
        [(0, 1), (1, 5), (5, 5)]
        """
        start = min(self.numel, max(0, rank * self.piece - self.offset))
        stop = min(self.numel, max(0, (rank + 1) * self.piece - self.offset))
        return start, stop

    def holders(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(rank, start, stop) of the parts that make up [start, stop), in order.

        >>> list(Cut((5,), 3, 4).holders(0, 3))
        [(0, 0, 1), (1, 1, 3)]
        """
        while start < stop:
            rank = (start + self.offset) // self.piece
            end = min(stop, (rank + 1) * self.piece - self.offset)
            yield rank, start, end
            start = end


@dataclass(frozen=True)
class Slice:
    """A part of one tensor of the state, as this rank holds it.

    Attributes:
        kind: "w" (weights), "ema" (weights of an EMA target), "buffer", or an optimizer's moment.
        tensor: 1-D live view of elements [start, stop); fp32, buffers as they are.
    """

    name: str
    kind: str
    start: int
    stop: int
    tensor: Tensor


@dataclass(frozen=True)
class Entry:
    """What all ranks together hold under one name."""

    cut: Cut
    kinds: tuple[str, ...]
    dtype: str = "float32"
