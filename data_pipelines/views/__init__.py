"""Views: what an objective sees of a sample. One idea a file.

A view has two halves. `sample` runs in a loader worker, on the CPU, on one sample, and knows
randomness only through its `Draw`. `batch` runs on the device, on the whole micro batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from data_pipelines.batch import Batch, Sample
from data_pipelines.hashing import mix


@dataclass(frozen=True)
class Draw:
    """Keyed randomness of one slot: the same numbers at any rank, worker or restart (docs/order.md, rule 9).

    Attributes:
        seed: of the run.
        position: slot number g; substitutes and repeats of a sample draw anew.
    """

    seed: int
    position: int

    def rng(self, purpose: str, view: int = 0) -> np.random.Generator:
        """Philox keyed by (seed, purpose, g, view)."""
        key = _Key(mix(self.seed, purpose, self.position, view))
        return np.random.Generator(np.random.Philox(key))  # type: ignore[arg-type]  # any ISeedSequence will do


class _Key(ISeedSequence):
    """Gives Philox its key. `Philox(key=...)` makes the same stream, but asks the system for entropy first."""

    def __init__(self, key: np.uint64) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        """See `ISeedSequence`."""
        return np.array([self._key, 0], dtype)


class View(Protocol):
    """Sample -> arrays -> batch. Implementations are picklable."""

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """Arrays by field name, equal shapes for every sample so that they stack.

        Raises:
            SampleError: the sample cannot be decoded; it will be quarantined and replaced.
        """
        ...

    def batch(self, batch: Batch) -> Batch:
        """The batch-wide rest, on the batch's device."""
        ...
