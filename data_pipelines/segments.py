"""How a run's mixture changed over its life: a new weight or a new dataset opens a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.base import UserError


@dataclass(frozen=True)
class Segment:
    """The mixture from round `p0` on; a round is L slots, one a lane.

    Attributes:
        p0: first round.
        lanes: lanes by dataset, in the order in which they are laid out.
        x0: slots of each dataset that earlier rounds have read, also of datasets that left the mixture.
    """

    p0: int
    lanes: Mapping[str, int]
    x0: Mapping[str, int]

    def read_before(self, round_: int) -> dict[str, int]:
        """Slots read of each dataset by the rounds before `round_`."""
        names = {**self.x0, **self.lanes}
        return {name: self.x0.get(name, 0) + (round_ - self.p0) * self.lanes.get(name, 0) for name in names}

    def followed_by(self, lanes: Mapping[str, int], round_: int) -> Segment:
        """The segment that opens at `round_` with other lanes; every dataset goes on where it stood.

        Raises:
            UserError: `round_` lies before this segment.
        """
        if round_ < self.p0:
            raise UserError(f"the mixture changed at round {self.p0}; it cannot be changed before that, at {round_}")
        return Segment(round_, dict(lanes), self.read_before(round_))


def to_state(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """Plain JSON for a checkpoint's state; lists, because the layout of lanes depends on the datasets' order."""
    return [
        {"p0": segment.p0, "lanes": [list(pair) for pair in segment.lanes.items()], "x0": dict(segment.x0)}
        for segment in segments
    ]


def from_state(state: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    """Segments of `to_state`."""
    return tuple(
        Segment(int(entry["p0"]), {name: int(lanes) for name, lanes in entry["lanes"]}, dict(entry["x0"]))
        for entry in state
    )
