"""One dataset once through: its cuts, its shuffle, and the way from a sample's number to its shard.

An epoch of N samples is dealt to K cuts, one a lane. Slot i of the epoch is place k of cut c, with k, c = divmod(i, K);
the shuffle turns (c, k) into the number v of a sample, and v is found in the epoch's own order of shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal, TypeAlias

import numpy as np

from data_pipelines.base import UserError
from data_pipelines.feistel import Permutation
from data_pipelines.hashing import Scalar, mix

Shuffle: TypeAlias = Literal["window", "full", "none"]

HASHES_AT_ONCE = 2**19  # a block of windows that stays in the cache while it is sorted
SUBSTITUTES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Stream:
    """One dataset as the order sees it.

    Attributes:
        name: key of every hash that belongs to the dataset.
        shard_sizes: (S,) int64, samples a shard in the manifest's order; empty shards drop out.
        lanes: how many lanes of the order it fills.

    Raises:
        UserError: it holds no sample at all, or fills no lane.
    """

    name: str
    shard_sizes: np.ndarray
    lanes: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shard_sizes", np.asarray(self.shard_sizes, dtype=np.int64).reshape(-1))
        if (self.shard_sizes < 0).any() or not self.shard_sizes.any():
            raise UserError(f"dataset {self.name!r} holds no samples; check its path, or take it out of `data`")
        if self.lanes < 1:
            raise UserError(f"dataset {self.name!r} has {self.lanes} lanes; every dataset fills at least one")

    @cached_property
    def num_samples(self) -> int:
        """Samples an epoch, N."""
        return int(self.shard_sizes.sum())

    @cached_property
    def filled_shards(self) -> np.ndarray:
        """Numbers of the shards that hold anything, int32."""
        return np.flatnonzero(self.shard_sizes).astype(np.int32)


def groups(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each distinct label with the indices that carry it, ascending; costs one sort, however many labels."""
    if len(labels) and labels.min() == labels.max():
        yield int(labels[0]), np.arange(len(labels))
        return
    ranked = np.argsort(labels, kind="stable")
    starts = _starts_of_runs(labels[ranked])
    for indices in np.split(ranked, starts[1:]) if len(labels) else ():
        yield int(labels[indices[0]]), indices


def _starts_of_runs(ascending: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))


class Epoch:
    """Epoch `number` of a dataset, dealt to `num_cuts` cuts."""

    def __init__(self, stream: Stream, *, seed: int, number: int, num_cuts: int, window: int, shuffle: Shuffle) -> None:
        self._stream, self._seed, self._number = stream, seed, number
        self._num_cuts, self._window, self._shuffle = num_cuts, window, shuffle
        self._num_samples = stream.num_samples
        self._longest_cut = -(-self._num_samples // num_cuts)
        self._width = min(window, self._longest_cut)
        # Without a shuffle an epoch reads the files as they lie.
        shards = stream.filled_shards
        if shuffle != "none":
            shards = shards[np.argsort(self._hash("shard", shards), kind="stable")]
        self._shards = shards
        self._ends = np.cumsum(stream.shard_sizes[shards])

    @staticmethod
    def table_bytes(stream: Stream) -> int:
        """Memory of one epoch's tables: a shard's number, int32, and its end, int64."""
        return 12 * len(stream.filled_shards)

    def cut_and_place(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cut c and place k of the epoch's slots `index`."""
        place, cut = np.divmod(index, self._num_cuts)
        return cut, place

    def samples(self, cut: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Numbers v in [0, N) of the samples that stand at `place` of `cut`; both (B,) int64."""
        if self._shuffle == "full":
            return self._permutation(place * self._num_cuts + cut)
        start, size = self._extent(cut)
        if self._shuffle == "none":
            return start + place
        place = self._shuffled_in_window(cut, place, size)
        phase = _remainder(self._hash("phase", cut), size)
        rotation = _remainder(self._hash("rotation"), self._num_samples)
        return (start + (place + phase) % size + rotation) % self._num_samples

    def locate(self, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and member of the samples v."""
        rank = np.searchsorted(self._ends, sample, side="right")
        shard = self._shards[rank].astype(np.int64)
        return shard, sample - (self._ends[rank] - self._stream.shard_sizes[shard])

    def others(self, cut: int, place: int) -> Iterator[tuple[int, int]]:
        """(shard, member) of all other samples of the epoch: first the window's that follow, then its first ones, then
        the cut's, then those of the cuts that follow, the last one by the first.
        """
        for number, block in self._other_places(cut, place):
            shard, member = self.locate(self.samples(np.full_like(block, number), block))
            yield from zip(shard.tolist(), member.tolist(), strict=True)

    def _other_places(self, cut: int, place: int) -> Iterator[tuple[int, np.ndarray]]:
        """(cut, places in it)."""
        size = self._size_of(cut)
        first, last = self._window_around(cut, place, size)
        own = [(cut, start, stop) for start, stop in ((place + 1, last), (first, place), (last, size), (0, first))]
        following = ((cut + step) % self._num_cuts for step in range(1, self._num_cuts))
        for number, start, stop in chain(own, ((other, 0, self._size_of(other)) for other in following)):
            for block in range(start, stop, SUBSTITUTES_AT_ONCE):
                yield number, np.arange(block, min(block + SUBSTITUTES_AT_ONCE, stop), dtype=np.int64)

    def _size_of(self, cut: int) -> int:
        return int(self._extent(np.array([cut]))[1][0])

    def _window_around(self, cut: int, place: int, size: int) -> tuple[int, int]:
        if self._shuffle != "window":
            return place, place + 1
        offset = int(self._offset(np.array([cut]))[0])
        first = (place + offset) // self._window * self._window - offset
        return max(first, 0), min(first + self._window, size)

    def _extent(self, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First sample and size of the cuts: sizes differ by at most one."""
        quotient, longer = divmod(self._num_samples, self._num_cuts)
        return cut * quotient + np.minimum(cut, longer), quotient + (cut < longer)

    def _shuffled_in_window(self, cut: np.ndarray, place: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Places after the windows' shuffle; a window is computed once, however many of its places are asked for."""
        offset = self._offset(cut)
        window = (place + offset) // self._window
        first = np.maximum(window * self._window - offset, 0)
        stop = np.minimum((window + 1) * self._window - offset, size)
        windows_per_cut = self._longest_cut // self._window + 2
        label = cut * windows_per_cut + window
        ranked = np.argsort(label, kind="stable")
        edges = np.append(_starts_of_runs(label[ranked]), len(ranked))
        rows_at_once = max(1, HASHES_AT_ONCE // self._width)
        shuffled = np.empty_like(place)
        for row in range(0, len(edges) - 1, rows_at_once):
            edge = edges[row : row + rows_at_once + 1]
            one_each = ranked[edge[:-1]]
            columns = self._windows(cut[one_each], first[one_each], stop[one_each])
            asked = ranked[edge[0] : edge[-1]]
            of_row = np.repeat(np.arange(len(one_each)), np.diff(edge))
            shuffled[asked] = first[asked] + columns[of_row, place[asked] - first[asked]]
        return shuffled

    def _windows(self, cut: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """(R, width) int64: row r permutes [0, stop[r] - first[r]) in the order of the places' hashes."""
        column = np.arange(self._width, dtype=np.int64)
        keys = self._hash("window", cut[:, None], first[:, None] + column)
        # The column rides in the low bits: a plain sort is several times faster than an argsort, and ties are decided.
        low_bits = np.uint64(2 ** (self._width - 1).bit_length() - 1)
        keys = (keys & ~low_bits) | column.astype(np.uint64)
        keys[column >= (stop - first)[:, None]] = np.uint64(2**64 - 1)
        keys.sort(axis=1)
        return (keys & low_bits).astype(np.int64)

    def _offset(self, cut: np.ndarray) -> np.ndarray:
        """Where a cut's first window is broken off, so that lanes do not open shards at the same moment."""
        return _remainder(self._hash("offset", cut), self._window)

    @cached_property
    def _permutation(self) -> Permutation:
        return Permutation(self._num_samples, self._seed, self._stream.name, "full", self._number)

    def _hash(self, purpose: str, *words: Scalar | np.ndarray) -> np.ndarray:
        return np.asarray(mix(self._seed, self._stream.name, purpose, self._number, *words))


def _remainder(hashes: np.ndarray, divisor: np.ndarray | int) -> np.ndarray:
    return (hashes % np.asarray(divisor, dtype=np.uint64)).astype(np.int64)
