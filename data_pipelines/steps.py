"""The arithmetic of steps: global batch, micro steps, ranks, and which of their sizes fit together."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import ceil

import numpy as np

from data_pipelines.base import UserError

MOST_LANES = 4096


def default_lanes(global_batch: int) -> int:
    """Lanes for a global batch: its largest divisor up to 4,096.

    >>> default_lanes(4096), default_lanes(10_000)
    (4096, 2500)
    """
    return max(divisor for divisor in divisors(global_batch) if divisor <= MOST_LANES)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    low = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return sorted({*low, *(number // divisor for divisor in low)})


def legal_world_sizes(global_batch: int, accumulation: int, num_lanes: int) -> list[int]:
    """World sizes W with W | L and W * A | B, ascending."""
    return [size for size in divisors(num_lanes) if global_batch % (size * accumulation) == 0]


def check_batch(global_batch: int, accumulation: int, world_size: int, num_lanes: int) -> None:
    """Refuse sizes under which ranks would not all take the same number of samples.

    Raises:
        UserError: L does not divide B, W does not divide L, or W * A does not divide B; names the nearest that do.
    """
    sizes = {
        "global_batch": global_batch, "accumulation": accumulation, "world_size": world_size, "num_lanes": num_lanes
    }  # fmt: skip
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}={size} must be at least 1")
    if global_batch % num_lanes:
        lower = global_batch // num_lanes * num_lanes
        near = _either(size for size in (lower, lower + num_lanes) if size)
        raise UserError(
            f"global_batch={global_batch} is no multiple of num_lanes={num_lanes}; set global_batch={near}, "
            f"or num_lanes={_around(num_lanes, divisors(global_batch))}"
        )
    if num_lanes % world_size:
        near = _around(world_size, legal_world_sizes(global_batch, accumulation, num_lanes) or divisors(num_lanes))
        raise UserError(
            f"num_lanes={num_lanes} is no multiple of world_size={world_size}: "
            f"lanes could not be shared out equally; start {near} {'rank' if near == '1' else 'ranks'}"
        )
    if global_batch % (world_size * accumulation):
        near = _around(accumulation, divisors(global_batch // world_size))
        raise UserError(
            f"global_batch={global_batch} is no multiple of world_size * accumulation = {world_size} * {accumulation}; "
            f"set accumulation={near}"
        )


def micro_positions(
    start: int, global_batch: int, accumulation: int, micro: int, rank: int, world_size: int
) -> np.ndarray:
    """Slots that `rank` takes in micro step `micro` of the step that starts at slot `start`.

    Returns:
        (B / (W * A),) int64, ascending; over all ranks, the micro step's contiguous share of the step.
    """
    size = global_batch // accumulation
    first = start + micro * size
    return np.arange(first + (rank - first) % world_size, first + size, world_size, dtype=np.int64)


def steps_of(epochs: float | Fraction, num_samples: int, global_batch: int) -> int:
    """Steps that read every sample `epochs` times: ceil(E * N / B), no partial batch.

    >>> steps_of(0.1, 1000, 10)  # 0.1 as written, not the binary fraction above it
    10
    """
    return ceil(Fraction(str(epochs)) * num_samples / global_batch)


def _around(wanted: int, legal: Iterable[int]) -> str:
    """The nearest legal value on either side of the wanted one."""
    legal = list(legal)
    below = [value for value in legal if value < wanted]
    above = [value for value in legal if value > wanted]
    return _either([*below[-1:], *above[:1]])


def _either(values: Iterable[int]) -> str:
    return " or ".join(str(value) for value in values)
