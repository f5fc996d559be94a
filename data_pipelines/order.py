"""The order of a run: which sample stands at slot g, as a pure function of (seed, g). It knows nothing of files.

Slots are numbered g = 0, 1, 2 ... for the run's life. Lane g % L belongs to one dataset and, by W | L, to one rank;
ranks, workers and restarts are no part of the order. docs/order.md has the rules by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import gcd
from typing import Any

import numpy as np

from data_pipelines.base import UserError
from data_pipelines.epoch import Epoch, Shuffle, Stream, groups
from data_pipelines.segments import Segment, from_state, to_state, whole_life
from data_pipelines.steps import check_batch, default_lanes, legal_world_sizes, micro_positions, steps_of

__all__ = [
    "Order",
    "Slots",
    "Stream",
    "check_batch",
    "default_lanes",
    "legal_world_sizes",
    "micro_positions",
    "steps_of",
]

EPOCHS_KEPT = 2  # a step straddles at most the end of one epoch, where sets are larger than steps


@dataclass(frozen=True)
class Slots:
    """What stands at some slots; int64 arrays of one shape.

    Attributes:
        positions: slot numbers g.
        dataset: index of the stream.
        epoch: e, of that dataset.
        cut: c, the part of the epoch that one lane reads.
        place: k, the slot's number inside its cut, before the shuffle.
        sample: v in [0, N), the sample's number in the epoch's order of shards.
        shard: index into the stream's `shard_sizes`.
        member: the sample's number inside its shard.
    """

    positions: np.ndarray
    dataset: np.ndarray
    epoch: np.ndarray
    cut: np.ndarray
    place: np.ndarray
    sample: np.ndarray
    shard: np.ndarray
    member: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)


class Order:
    """Seed and slot number in, dataset, shard and member out.

    Args:
        seed: of the run; part of every hash.
        streams: the datasets of the mixture; their lanes fill `num_lanes`.
        num_lanes: L, which divides every global batch of the run.
        window: w, places that are shuffled among each other.
        shuffle: `window` reads nearly in sequence; `full` permutes the whole epoch; `none` keeps the files' order.
        segments: the mixtures of the run's life, from `to_state`; that of `streams` alone when there are none.

    Raises:
        UserError: lanes do not sum to `num_lanes`, or a name stands twice.
    """

    def __init__(
        self,
        seed: int,
        streams: Sequence[Stream],
        num_lanes: int,
        *,
        window: int = 64,
        shuffle: Shuffle = "window",
        segments: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        lanes = _lanes_by_name(streams, num_lanes)
        self.seed, self.streams, self.num_lanes = seed, tuple(streams), num_lanes
        self.window, self.shuffle = window, shuffle
        self.segments = from_state(segments) or whole_life((), [(0, lanes)], 0)
        self._layouts = [_Layout(segment, self.streams) for segment in self.segments]
        self._hop = lane_hop(num_lanes)
        self._epochs: dict[tuple[int, int], Epoch] = {}

    @classmethod
    def from_state(
        cls,
        seed: int,
        streams: Sequence[Stream],
        num_lanes: int,
        state: Sequence[Mapping[str, Any]],
        position: int,
        *,
        planned: Sequence[tuple[int, Mapping[str, int]]] = (),
        window: int = 64,
        shuffle: Shuffle = "window",
    ) -> Order:
        """The order of a run that goes on at `position` with `streams`: another mixture opens a segment there.

        Args:
            state: what `to_state` gave.
            position: G, the next slot of the run, a multiple of L.
            planned: first slot, a multiple of L, and lanes by dataset of each mixture that follows that of `streams`,
                ascending; a dataset that is not named rests.
        """
        mixtures = {0: _lanes_by_name(streams, num_lanes)}
        mixtures |= {_round_of(start, num_lanes): dict(lanes) for start, lanes in planned}
        segments = whole_life(from_state(state), list(mixtures.items()), _round_of(position, num_lanes))
        return cls(seed, streams, num_lanes, window=window, shuffle=shuffle, segments=to_state(segments))

    def to_state(self) -> list[dict[str, Any]]:
        """The segments as plain JSON, for the checkpoint."""
        return to_state(self.segments)

    def slots(self, positions: np.ndarray) -> Slots:
        """What stands at `positions`, any int64 array of slot numbers >= 0; far ones cost what near ones do.

        Raises:
            UserError: a position lies in a segment that read a dataset which is no longer among the streams.
        """
        positions = np.asarray(positions, dtype=np.int64)
        flat = positions.reshape(-1)
        dataset, count = self._dataset_slots(flat)
        parts = {name: np.empty_like(flat) for name in ("epoch", "cut", "place", "sample", "shard", "member")}
        for index, of_dataset in groups(dataset):
            epoch, within = np.divmod(count[of_dataset], self.streams[index].num_samples)
            for number, of_epoch in groups(epoch):
                rows = of_dataset[of_epoch]
                table = self._epoch(index, number)
                cut, place = table.cut_and_place(within[of_epoch])
                sample = table.samples(cut, place)
                shard, member = table.locate(sample)
                values = (np.full_like(cut, number), cut, place, sample, shard, member)
                for part, value in zip(parts.values(), values, strict=True):
                    part[rows] = value
        found = {"positions": flat, "dataset": dataset, **parts}
        return Slots(**{field.name: found[field.name].reshape(positions.shape) for field in fields(Slots)})

    def substitutes(self, position: int) -> Iterator[tuple[int, int, int]]:
        """(dataset, shard, member) of what may stand in for an unreadable sample at `position`, best first.

        The rest of its window in order, then the rest of its cut, then the other cuts of its epoch (a lost shard may
        hold whole cuts); each once, the sample itself never.
        """
        slot = self.slots(np.array([position]))
        dataset = int(slot.dataset[0])
        epoch = self._epoch(dataset, int(slot.epoch[0]))
        for shard, member in epoch.others(int(slot.cut[0]), int(slot.place[0])):
            yield dataset, shard, member

    def repeats_in_step(self, global_batch: int) -> list[str]:
        """One sentence for each dataset that is smaller than its share of a step, which then holds samples twice."""
        most = [max(segment.lanes.get(stream.name, 0) for segment in self.segments) for stream in self.streams]
        shares = [lanes * global_batch // self.num_lanes for lanes in most]
        return [
            f"dataset {stream.name!r} has {stream.num_samples} samples, but every step takes {share} of it: "
            f"steps hold samples more than once"
            for stream, share in zip(self.streams, shares, strict=True)
            if stream.num_samples < share
        ]

    @property
    def table_bytes(self) -> int:
        """Memory of the streams' and the epochs' tables in one process, at most."""
        streams = sum(stream.shard_sizes.nbytes + stream.filled_shards.nbytes for stream in self.streams)
        return streams + EPOCHS_KEPT * sum(Epoch.table_bytes(stream) for stream in self.streams)

    def _dataset_slots(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dataset of each slot, and how many slots of it came before (rule 2, rule 6)."""
        round_, lane = np.divmod(positions, self.num_lanes)
        seat = lane * self._hop % self.num_lanes
        segment = np.searchsorted([layout.p0 for layout in self._layouts], round_, side="right") - 1
        dataset, count = np.empty_like(positions), np.empty_like(positions)
        for index, rows in groups(segment):
            dataset[rows], count[rows] = self._layouts[index].locate(round_[rows], seat[rows])
        return dataset, count

    def _epoch(self, dataset: int, number: int) -> Epoch:
        key = dataset, number
        if key not in self._epochs:
            kept = [other for other in self._epochs if other[0] == dataset]
            for other in kept[: max(0, len(kept) - EPOCHS_KEPT + 1)]:
                del self._epochs[other]
            self._epochs[key] = Epoch(
                self.streams[dataset],
                seed=self.seed,
                number=number,
                num_cuts=self._lanes_at(dataset, number * self.streams[dataset].num_samples),
                window=self.window,
                shuffle=self.shuffle,
            )
        return self._epochs[key]

    def _lanes_at(self, dataset: int, count: int) -> int:
        """Lanes of the dataset where its slot `count` is read: they cut the epoch that begins there."""
        name = self.streams[dataset].name
        reading = [segment for segment in self.segments if name in segment.lanes]
        begun = [segment for segment in reading if segment.x0.get(name, 0) <= count]
        return begun[-1].lanes[name]


class _Layout:
    """Seats [0, L) of one segment, dealt to its datasets in blocks."""

    def __init__(self, segment: Segment, streams: Sequence[Stream]) -> None:
        self.p0 = segment.p0
        known = {stream.name: index for index, stream in enumerate(streams)}
        self._names = list(segment.lanes)
        self._streams = np.array([known.get(name, -1) for name in self._names])
        self._lanes = np.array(list(segment.lanes.values()))
        self._ends = np.cumsum(self._lanes)
        self._x0 = np.array([segment.x0.get(name, 0) for name in self._names])

    def locate(self, round_: np.ndarray, seat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dataset of each seat, and which slot of the dataset it is in that round."""
        block = np.searchsorted(self._ends, seat, side="right")
        lanes = self._lanes[block]
        dataset = self._streams[block]
        if (dataset < 0).any():
            name = self._names[int(block[dataset < 0][0])]
            raise UserError(f"the run read dataset {name!r} at these positions; put it back into `data` to see them")
        return dataset, self._x0[block] + (round_ - self.p0) * lanes + seat - (self._ends[block] - lanes)


def lane_hop(num_lanes: int) -> int:
    """The hop h from lane to lane: coprime to L, nearest 618 * L // 1000, the lower on a tie.

    It spreads the seats of one dataset, and the cuts of one epoch, evenly over a round.
    """
    golden = 618 * num_lanes // 1000
    for distance in range(num_lanes + 1):
        for hop in (golden - distance, golden + distance):
            if 0 <= hop <= num_lanes and gcd(hop, num_lanes) == 1:
                return hop
    raise AssertionError(f"1 is coprime to {num_lanes}")


def _lanes_by_name(streams: Sequence[Stream], num_lanes: int) -> dict[str, int]:
    lanes = {stream.name: stream.lanes for stream in streams}
    if len(lanes) != len(streams):
        names = sorted(stream.name for stream in streams)
        twice = next(name for name, following in pairwise(names) if name == following)
        raise UserError(f"two datasets are named {twice!r}; give one of them another `name`")
    if sum(lanes.values()) != num_lanes:
        raise UserError(f"lanes {lanes} sum to {sum(lanes.values())}, the order has {num_lanes}")
    return lanes


def _round_of(position: int, num_lanes: int) -> int:
    if position % num_lanes:
        raise UserError(f"position {position} is no multiple of num_lanes={num_lanes}; a mixture changes between steps")
    return position // num_lanes
