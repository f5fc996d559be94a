"""How a run's mixture changes over its life: other weights or a new dataset open a segment, planned or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
        """The segment that opens at `round_` >= p0 with other lanes; every dataset goes on where it stood."""
        return Segment(round_, dict(lanes), self.read_before(round_))


def whole_life(
    past: Sequence[Segment], mixtures: Sequence[tuple[int, Mapping[str, int]]], round_: int
) -> tuple[Segment, ...]:
    """The segments of a run that goes on at `round_`: what was stays, what is planned follows.

    Args:
        past: segments of the run's state; those that begin later than `round_` were planned, and are planned anew.
        mixtures: first round and lanes by dataset of each planned mixture, ascending, the first at 0.
    """
    segments = [segment for segment in past if segment.p0 <= round_]
    if segments:
        current = [lanes for p0, lanes in mixtures if p0 <= round_][-1]
        coming = [(round_, current), *(mixture for mixture in mixtures if mixture[0] > round_)]
    else:
        (p0, lanes), *coming = mixtures
        segments = [Segment(p0, dict(lanes), dict.fromkeys(lanes, 0))]
    for p0, lanes in coming:
        if lanes != segments[-1].lanes:
            segments.append(segments[-1].followed_by(lanes, p0))
    return tuple(segments)


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
