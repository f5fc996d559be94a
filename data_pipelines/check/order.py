"""How a run will read the set: its lanes, how well their batches are shuffled, and whether the shards suit it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.check.census import NO_LABEL, Census
from data_pipelines.check.report import Report
from data_pipelines.epoch import Shuffle
from data_pipelines.order import Order, Stream, default_lanes
from data_pipelines.shards import Dataset

USUAL_BATCH = 256
PROBED_SLOTS = 2**20
"""First slots of the epoch over which lanes are compared."""
PROBED_BATCHES = 8
MIN_ROUNDS = 8
"""Samples a lane from which lanes are compared: fewer differ by chance."""
UNEVEN_LANES = 1.5
"""Bytes of the heaviest lane over the mean, from which ranks are expected to wait for each other."""
POOR_SHUFFLE = 0.9
"""Classes of a batch over those of a random one, below which the shuffle is called poor."""
SMALL_SHARD_BYTES = 8e6
LARGE_SHARD_BYTES = 2e9
SMALL_SET_BYTES = 1e9
"""The size of shards does not matter in smaller sets."""


@dataclass(frozen=True)
class Reading:
    """The order in which a run reads one set."""

    global_batch: int
    num_lanes: int
    window: int = 64
    shuffle: Shuffle = "window"
    seed: int = 0

    def order(self, dataset: Dataset) -> Order:
        """All lanes read this set."""
        stream = Stream(dataset.name, dataset.shard_sizes, self.num_lanes)
        return Order(self.seed, [stream], self.num_lanes, window=self.window, shuffle=self.shuffle)


def usual_reading(dataset: Dataset) -> Reading:
    """A batch of 256, or what the set has."""
    batch = max(1, min(USUAL_BATCH, dataset.num_samples))
    return Reading(batch, default_lanes(batch))


def judge_order(dataset: Dataset, census: Census, reading: Reading, report: Report) -> None:
    """Lines on lanes and shuffle, warnings where they are poor, advice on the size of shards."""
    if dataset.num_samples == 0 or not len(census.shards):
        return
    order, table = reading.order(dataset), _Table(dataset, census)
    _judge_lanes(order, table, report)
    if len(report.labels) > 1:
        _judge_shuffle(order, table, reading, report)
    judge_shards(report, reading.num_lanes)


class _Table:
    """Bytes and labels by (shard, member); of samples that are damaged, the mean and no label."""

    def __init__(self, dataset: Dataset, census: Census) -> None:
        self._first = np.cumsum(dataset.shard_sizes) - dataset.shard_sizes
        known = census.members < dataset.shard_sizes[census.shards]  # a shard may have been exchanged for a longer one
        places = (self._first[census.shards] + census.members)[known]
        self._sizes = np.full(dataset.num_samples, census.sizes.mean())
        self._labels = np.full(dataset.num_samples, NO_LABEL)
        self._sizes[places], self._labels[places] = census.sizes[known], census.labels[known]

    def at(self, order: Order, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(sizes, labels) of what stands at some slots."""
        slots = order.slots(positions)
        numbers = self._first[slots.shard] + slots.member
        return self._sizes[numbers], self._labels[numbers]


def _judge_lanes(order: Order, table: _Table, report: Report) -> None:
    num_samples, num_lanes = order.streams[0].num_samples, order.num_lanes
    rounds = min(num_samples, PROBED_SLOTS) // num_lanes
    if rounds == 0:
        report.add("warning", f"{num_samples} samples do not fill {num_lanes} lanes: steps hold samples more than once")
        return
    fewest, more = divmod(num_samples, num_lanes)
    words = f"{num_lanes:,} of {f'{fewest:,} or {fewest + 1:,}' if more else f'{fewest:,}'} samples"
    if rounds < MIN_ROUNDS:
        report.facts.append(("lanes", words))
        return
    sizes, _ = table.at(order, np.arange(rounds * num_lanes))
    by_lane = sizes.reshape(rounds, num_lanes).sum(axis=0)
    excess = by_lane.max() / by_lane.mean()
    heaviest = f"the heaviest has {excess:.2f}x the mean's bytes"
    report.facts.append(("lanes", f"{words}; {heaviest}"))
    if excess > UNEVEN_LANES:
        report.add("warning", f"lanes are uneven: {heaviest}, ranks will wait for it; pack the set shuffled")


def _judge_shuffle(order: Order, table: _Table, reading: Reading, report: Report) -> None:
    steps = max(1, order.streams[0].num_samples // reading.global_batch)
    starts = sorted({steps * probe // PROBED_BATCHES * reading.global_batch for probe in range(PROBED_BATCHES)})
    reached = []
    for start in starts:
        _, labels = table.at(order, np.arange(start, start + reading.global_batch))
        reached.append(len(np.unique(labels[labels != NO_LABEL])))
    counts = np.array(list(report.labels.values()), np.float64)
    by_chance = float((1 - (1 - counts / counts.sum()) ** reading.global_batch).sum())
    mean = float(np.mean(reached))
    how = f"shuffle={reading.shuffle}" + (f", window {reading.window}" if reading.shuffle == "window" else "")
    words = (
        f"a batch of {reading.global_batch:,} holds {mean:,.1f} of {len(counts):,} classes, {by_chance:,.1f} by chance"
    )
    report.facts.append(("shuffle", f"{words} ({how})"))
    if mean < POOR_SHUFFLE * by_chance:
        report.add("warning", f"the shuffle is poor: {words}; pack the set shuffled, or read it with data.shuffle=full")


def judge_shards(report: Report, num_lanes: int) -> None:
    """Advice where shards are too small, too large, or too few for the lanes."""
    if not report.shard_bytes or report.bytes < SMALL_SET_BYTES:
        return
    mean = report.bytes / len(report.shard_bytes)
    if mean < SMALL_SHARD_BYTES:
        report.add(
            "advice", f"shards are small, {mean / 1e6:.1f} MB: opening them costs more than reading; {_repack()}"
        )
    elif mean > LARGE_SHARD_BYTES:
        report.add(
            "advice", f"shards are large, {mean / 1e9:.1f} GB: caches hold few, a damaged one costs much; {_repack()}"
        )
    elif len(report.shard_bytes) < num_lanes and mean > 2 * SMALL_SHARD_BYTES:
        pieces = min(num_lanes, int(report.bytes / SMALL_SHARD_BYTES))
        report.add(
            "advice",
            f"{len(report.shard_bytes):,} shards are few for {num_lanes:,} lanes, which then read several places of "
            f"each at once; on a remote store pack {pieces:,} or more: shard_bytes={report.bytes // pieces}",
        )


def _repack() -> str:
    return "pack the set again (64 MB a shard unless shard_bytes=N)"
