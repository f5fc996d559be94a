"""What an order will do, computed before anything is read: steps, ranks, requests, and how well it shuffles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from data_pipelines.mixture import weights_used
from data_pipelines.order import Order, Slots, Stream, check_batch, legal_world_sizes, steps_of

STEPS_PROBED = 8
DAY_S = 86400
INDEX_BYTES = 80
"""A sample of two members and a short key takes in an index (`data_pipelines.index`)."""
PARTS = 1000  # the classes of ImageNet: a part stands for a class, if the shards lay sorted by class


@dataclass(frozen=True)
class StreamPlan:
    """One dataset of the mixture.

    Attributes:
        samples_per_step: exact, in every step.
        shards_per_step: distinct shards that a step reads from, mean of the probed steps.
        parts_reached: the dataset in file order is split into equal parts; how many of them a step reads from.
        parts_reached_by_chance: the same for samples drawn independently: at or above it, sorted shards do no harm.
    """

    name: str
    num_samples: int
    num_shards: int
    lanes: int
    samples_per_step: int
    shards_per_step: float
    parts: int
    parts_reached: float
    parts_reached_by_chance: float


@dataclass(frozen=True)
class Plan:
    """Figures of a run's data side.

    Attributes:
        samples_per_rank_step: B / W, the same for every rank and step.
        micro_batch: B / (W * A), samples a forward on one rank.
        open_shards_per_rank: lanes of a rank; each reads one shard at a time.
        sample_bytes: mean payload; None where it is not known.
        requests_per_rank_step: ranges a rank asks for, if the neighbours of a window are read in one; a request a
            sample at worst.
        step_s: seconds a step; None where they are not known.
        table_bytes: of the order in one process, its epochs' tables included.
        index_bytes: of the shards that a rank has open, about.
        streams: as the first mixture of the run has them.
        stages: later mixtures, in words.
    """

    steps: int
    num_samples: int
    global_batch: int
    num_lanes: int
    world_size: int
    legal_world_sizes: tuple[int, ...]
    samples_per_rank_step: int
    micro_batch: int
    open_shards_per_rank: int
    sample_bytes: float | None
    requests_per_rank_step: float
    step_s: float | None
    table_bytes: int
    index_bytes: float
    streams: tuple[StreamPlan, ...]
    stages: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan in words, one fact a line."""
        return [f"{name:<12} {text}" for name, text in self._facts()]

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "samples", f"{self.num_samples:,}"
        days = f", {self.steps * self.step_s / DAY_S:,.2f} days of {self.step_s:g} s a step" if self.step_s else ""
        yield "steps", f"{self.steps:,} of {self.global_batch:,} samples{days}"
        sizes = ", ".join(f"{size:,}" for size in self.legal_world_sizes)
        yield "ranks", f"{self.world_size:,}; legal: {sizes}"
        yield "lanes", f"{self.num_lanes:,}, {self.open_shards_per_rank:,} a rank: as many shards are open at a time"
        yield "a rank", f"{self.samples_per_rank_step:,} samples a step in micro batches of {self.micro_batch:,}"
        yield "", f"reads {self._reads(1)}"
        yield "all ranks", f"read {self._reads(self.world_size)}"
        for stream in self.streams:
            yield "dataset", _line(stream, self.num_lanes)
            yield "shuffle", _shuffle_line(stream)
        yield from (("stage", stage) for stage in self.stages)
        yield (
            "memory",
            f"{self.table_bytes / 1e6:,.1f} MB of tables in each process that reads; about "
            f"{self.index_bytes / 1e6:,.1f} MB of indexes a rank",
        )
        yield from (("warning", warning) for warning in self.warnings)

    def _reads(self, ranks: int) -> str:
        """Bytes and requests of so many ranks, a step and a second."""
        fewest, most = ranks * self.requests_per_rank_step, float(ranks * self.samples_per_rank_step)
        num_bytes = None if self.sample_bytes is None else most * self.sample_bytes
        a_step = f"{_amount(num_bytes)}{_range(fewest, most)} requests a step"
        if self.step_s is None:
            return a_step
        a_second = None if num_bytes is None else num_bytes / self.step_s
        return f"{a_step}; {_amount(a_second)}{_range(fewest / self.step_s, most / self.step_s)} a second"


def _amount(num_bytes: float | None) -> str:
    if num_bytes is None:
        return ""
    return f"{num_bytes / 1e9:,.2f} GB in " if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB in "


def _range(fewest: float, most: float) -> str:
    return f"{most:,.0f}" if fewest == most else f"{fewest:,.1f} to {most:,.0f}"


def _line(stream: StreamPlan, num_lanes: int) -> str:
    return (
        f"{stream.name}: {stream.num_samples:,} samples in {stream.num_shards:,} shards, weight "
        f"{stream.lanes / num_lanes:.4g} ({stream.lanes:,} lanes); a step takes {stream.samples_per_step:,} from "
        f"{stream.shards_per_step:,.0f} shards"
    )


def _shuffle_line(stream: StreamPlan) -> str:
    return (
        f"a step reaches {stream.parts_reached:,.0f} of {stream.parts:,} equal parts of {stream.name}, "
        f"{stream.parts_reached_by_chance:,.0f} by chance: what classes would, if the shards lay sorted"
    )


def synthetic_stream(name: str, num_samples: int, num_shards: int, lanes: int) -> Stream:
    """A dataset that does not exist yet, in shards that differ by at most one sample."""
    quotient, longer = divmod(num_samples, num_shards)
    return Stream(name, quotient + (np.arange(num_shards) < longer), lanes)


def plan(
    order: Order,
    *,
    global_batch: int,
    accumulation: int,
    world_size: int,
    epochs: float | Fraction,
    sample_bytes: float | None = None,
    step_s: float | None = None,
) -> Plan:
    """Work out a run's data side from shard sizes alone.

    Args:
        epochs: how often the samples of all datasets together are read.
        sample_bytes: mean payload of a sample, where it is known.
        step_s: seconds a step, where they are known.

    Raises:
        UserError: batch, ranks and lanes do not fit together.
    """
    check_batch(global_batch, accumulation, world_size, order.num_lanes)
    num_samples = sum(stream.num_samples for stream in order.streams)
    share = global_batch // world_size
    probed = _probe(order, global_batch)
    return Plan(
        steps=steps_of(epochs, num_samples, global_batch),
        num_samples=num_samples,
        global_batch=global_batch,
        num_lanes=order.num_lanes,
        world_size=world_size,
        legal_world_sizes=tuple(legal_world_sizes(global_batch, accumulation, order.num_lanes)),
        samples_per_rank_step=share,
        micro_batch=share // accumulation,
        open_shards_per_rank=order.num_lanes // world_size,
        sample_bytes=sample_bytes,
        requests_per_rank_step=share * _requests_per_sample(order),
        step_s=step_s,
        table_bytes=order.table_bytes,
        index_bytes=_index_bytes(order, world_size),
        streams=tuple(
            _plan_stream(stream, index, probed, lanes, global_batch * lanes // order.num_lanes)
            for index, stream in enumerate(order.streams)
            for lanes in [order.segments[0].lanes.get(stream.name, 0)]
        ),
        stages=tuple(
            f"from step {segment.p0 * order.num_lanes // global_batch:,}: "
            f"{weights_used(list(segment.lanes), list(segment.lanes.values()))}"
            for segment in order.segments[1:]
        ),
        warnings=tuple(order.repeats_in_step(global_batch)),
    )


def _probe(order: Order, global_batch: int) -> list[Slots]:
    """Some steps, spread evenly over the first epoch of the mixture, or its first stage."""
    steps = sum(stream.num_samples for stream in order.streams) // global_batch
    if len(order.segments) > 1:
        steps = min(steps, order.segments[1].p0 * order.num_lanes // global_batch)
    starts = {steps * probe // STEPS_PROBED * global_batch for probe in range(STEPS_PROBED)}
    return [order.slots(np.arange(start, start + global_batch)) for start in sorted(starts)]


def _plan_stream(stream: Stream, index: int, probed: list[Slots], lanes: int, samples_per_step: int) -> StreamPlan:
    parts = min(PARTS, stream.num_samples)
    first_of_shard = np.cumsum(stream.shard_sizes) - stream.shard_sizes
    shards, reached = [], []
    for slots in probed:
        of_stream = slots.dataset == index
        shard, member = slots.shard[of_stream], slots.member[of_stream]
        in_file_order = first_of_shard[shard] + member
        shards.append(len(np.unique(shard)))
        reached.append(len(np.unique(in_file_order * parts // stream.num_samples)))
    return StreamPlan(
        name=stream.name,
        num_samples=stream.num_samples,
        num_shards=len(stream.filled_shards),
        lanes=lanes,
        samples_per_step=samples_per_step,
        shards_per_step=float(np.mean(shards)),
        parts=parts,
        parts_reached=float(np.mean(reached)),
        parts_reached_by_chance=parts * (1 - (1 - 1 / parts) ** samples_per_step),
    )


def _index_bytes(order: Order, world_size: int) -> float:
    """Of one shard for each lane of a rank."""
    shards = sum(len(stream.filled_shards) for stream in order.streams)
    open_shards = min(order.num_lanes / world_size, shards)
    return sum(
        open_shards * stream.lanes / order.num_lanes * stream.num_samples / len(stream.filled_shards) * INDEX_BYTES
        for stream in order.streams
    )


def _requests_per_sample(order: Order) -> float:
    """A window is one range, and one more wherever it runs on into the next shard."""
    if order.shuffle == "full":
        return 1.0
    per_sample = sum(
        stream.lanes / order.num_lanes * (1 / order.window + len(stream.filled_shards) / stream.num_samples)
        for stream in order.streams
    )
    return min(1.0, per_sample)
