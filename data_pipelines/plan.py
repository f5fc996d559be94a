"""What an order will do, computed before anything is read: steps, ranks, requests, and how well it shuffles."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from data_pipelines.order import Order, Slots, Stream, check_batch, legal_world_sizes, steps_of

STEPS_PROBED = 8
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
        bytes_per_rank_step: payload a rank reads for one step.
        requests_per_rank_step: ranges a rank asks for, if the neighbours of a window are read in one.
        table_bytes: of the order in one process, its epochs' tables included.
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
    bytes_per_rank_step: float
    requests_per_rank_step: float
    table_bytes: int
    streams: tuple[StreamPlan, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan in words, one fact a line."""
        sizes = ", ".join(str(size) for size in self.legal_world_sizes)
        return [
            f"{self.num_samples:,} samples, {self.steps:,} steps of {self.global_batch:,}",
            f"{self.num_lanes:,} lanes, {self.open_shards_per_rank:,} a rank; legal world sizes: {sizes}",
            f"a rank reads {self.samples_per_rank_step:,} samples a step in micro batches of {self.micro_batch:,}: "
            f"{self.bytes_per_rank_step / 1e6:,.2f} MB, {self.requests_per_rank_step:,.1f} to "
            f"{self.samples_per_rank_step:,} requests",
            f"tables of the order: {self.table_bytes / 1e6:,.1f} MB a process",
            *(_line(stream, self.num_lanes) for stream in self.streams),
            *(f"warning: {warning}" for warning in self.warnings),
        ]


def _line(stream: StreamPlan, num_lanes: int) -> str:
    return (
        f"{stream.name}: {stream.num_samples:,} samples in {stream.num_shards:,} shards, weight "
        f"{stream.lanes / num_lanes:.4g} ({stream.lanes:,} lanes); a step takes {stream.samples_per_step:,} from "
        f"{stream.shards_per_step:,.0f} shards and reaches {stream.parts_reached:,.0f} of {stream.parts:,} parts "
        f"(by chance {stream.parts_reached_by_chance:,.0f})"
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
    sample_bytes: float,
) -> Plan:
    """Work out a run's data side from shard sizes alone.

    Args:
        epochs: how often the samples of all datasets together are read.
        sample_bytes: mean payload of a sample.

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
        bytes_per_rank_step=share * sample_bytes,
        requests_per_rank_step=share * _requests_per_sample(order),
        table_bytes=order.table_bytes,
        streams=tuple(
            _plan_stream(stream, index, probed, global_batch * stream.lanes // order.num_lanes)
            for index, stream in enumerate(order.streams)
        ),
        warnings=tuple(order.repeats_in_step(global_batch)),
    )


def _probe(order: Order, global_batch: int) -> list[Slots]:
    """Some steps, spread evenly over the first epoch of the mixture."""
    steps = sum(stream.num_samples for stream in order.streams) // global_batch
    starts = {steps * probe // STEPS_PROBED * global_batch for probe in range(STEPS_PROBED)}
    return [order.slots(np.arange(start, start + global_batch)) for start in sorted(starts)]


def _plan_stream(stream: Stream, index: int, probed: list[Slots], samples_per_step: int) -> StreamPlan:
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
        lanes=stream.lanes,
        samples_per_step=samples_per_step,
        shards_per_step=float(np.mean(shards)),
        parts=parts,
        parts_reached=float(np.mean(reached)),
        parts_reached_by_chance=parts * (1 - (1 - 1 / parts) ** samples_per_step),
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
