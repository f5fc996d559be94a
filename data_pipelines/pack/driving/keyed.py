"""Keyed numbers and noise, from the integer hash alone: no generator whose stream a library version may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from data_pipelines.hashing import Scalar, mix

Choice = TypeVar("Choice")


class Keyed:
    """A stream of numbers that depends on its words alone."""

    def __init__(self, *words: Scalar) -> None:
        self._key, self._drawn = int(mix(*words)), 0

    def _next(self) -> int:
        self._drawn += 1
        return int(mix(self._key, self._drawn))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self._next() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + (self._next() >> 32) * (high - low + 1) // 2**32

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self.uniform(0, 1) < probability

    def choice(self, values: Sequence[Choice]) -> Choice:
        """One of `values`."""
        return values[self.integer(0, len(values) - 1)]

    def stream(self, name: str) -> Keyed:
        """A stream of its own, so that what it draws moves nothing else."""
        return Keyed(self._key, name)

    def noise(self, height: int, width: int) -> np.ndarray:
        """(height, width) float32 in [0, 1), each value by itself."""
        bits = mix(self._next(), np.arange(height * width, dtype=np.int64))
        return ((bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).reshape(height, width)

    def clouds(self, height: int, width: int, cell: int, octaves: int = 3) -> np.ndarray:
        """(height, width) float32 in [0, 1): smooth noise that repeats at its edges.

        Args:
            cell: pixels between independent values of the coarsest octave; divides both sides.
            octaves: each has half the cell and half the strength of the one before.
        """
        strength = np.float32(0.5)
        total: np.ndarray = np.zeros((height, width), np.float32)
        for octave in range(octaves):
            step = max(cell >> octave, 1)
            lattice = self.noise(height // step, width // step)
            total = total + strength * _stretched(_stretched(lattice, step).T, step).T
            strength = strength / np.float32(2)
        return total / np.float32(1 - 0.5**octaves)


def _stretched(lattice: np.ndarray, step: int) -> np.ndarray:
    """Linear interpolation along the rows, cyclic: (H, W) -> (step * H, W)."""
    following = np.roll(lattice, -1, axis=0)
    share = (np.arange(step, dtype=np.float32) / np.float32(step))[None, :, None]
    return (lattice[:, None] + share * (following - lattice)[:, None]).reshape(-1, lattice.shape[1])
