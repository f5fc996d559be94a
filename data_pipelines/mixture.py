"""Weights of a mixture, turned into whole lanes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from data_pipelines.base import UserError


def allot_lanes(weights: Sequence[float], num_lanes: int) -> list[int]:
    """Share out L lanes by weight: whole quotas first, then one each to the largest remainders, the first on a tie.

    Args:
        weights: one a dataset, > 0; only their ratios matter.

    Returns:
        Lanes of each dataset, at least one, L in all. `lanes / L` are the weights really used.

    Raises:
        UserError: a weight is worth less than one lane; names the L that it needs.

    >>> allot_lanes([2, 1, 1], 10)
    [5, 3, 2]
    """
    shares = _shares(weights)
    smallest = min(shares)
    if smallest * num_lanes < 1:
        index = shares.index(smallest)
        raise UserError(
            f"weight {weights[index]:g} of dataset {index} is {float(smallest):.2g} of the mixture, less than one of "
            f"num_lanes={num_lanes}; it needs num_lanes >= {ceil(1 / smallest)} (a divisor of the global batch), "
            f"or a larger weight"
        )
    lanes = [int(share * num_lanes) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: lanes[index] - shares[index] * num_lanes)
    for index in by_remainder[: num_lanes - sum(lanes)]:
        lanes[index] += 1
    return lanes


def weights_used(names: Sequence[str], lanes: Sequence[int]) -> str:
    """The mixture as it is really read, in words for the log.

    >>> weights_used(["web", "books"], [3, 1])
    'web 0.75 (3 lanes), books 0.25 (1 lane)'
    """
    total = sum(lanes)
    return ", ".join(
        f"{name} {count / total:.4g} ({count} lane{'s' if count > 1 else ''})"
        for name, count in zip(names, lanes, strict=True)
    )


def _shares(weights: Sequence[float]) -> list[Fraction]:
    if not weights:
        raise UserError("the mixture is empty; name at least one dataset under `data`")
    wrong = [weight for weight in weights if not 0 < weight < float("inf")]
    if wrong:
        raise UserError(f"a weight is {wrong[0]}; weights are finite and above 0")
    # As written, so that three weights of 0.1 share alike.
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]
