"""A view that changes over a run: at each stage of a curriculum another one, by slot number alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.batch import Batch, Sample
from data_pipelines.views import Draw, View


class Staged:
    """The view of the stage that a slot belongs to.

    Args:
        stages: first slot and view of each, ascending, the first at 0; a stage begins with a step, so that all rows of
            a batch are of one.
    """

    def __init__(self, stages: Sequence[tuple[int, View]]) -> None:
        self._starts = [start for start, _ in stages]
        self._views = [view for _, view in stages]

    def at(self, position: int) -> View:
        """The view at a slot."""
        return self._views[bisect_right(self._starts, position) - 1]

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        return self.at(draw.position).sample(sample, draw)

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`."""
        return self.at(batch.first).batch(batch)
