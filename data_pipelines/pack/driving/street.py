"""The street: a centre line that bends, and what lies beside it. Lengths in metres, angles by their half tangents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.pack.driving.keyed import Keyed

BEHIND, AHEAD = 30, 210
"""Metres of centre line before and beyond its origin."""


@dataclass(frozen=True)
class Profile:
    """A cross-section; distances from the centre line, to the right positive.

    Attributes:
        lanes: of each direction.
        lane: width of one.
        parking: width of the strip for parked cars at either kerb, 0 where there is none.
        sidewalk: width.
        setback: of the houses from the sidewalk; terrain lies between.
        crossings: starts of side streets along the centre line, each `crossing` wide.
    """

    lanes: int
    lane: float
    parking: float
    sidewalk: float
    setback: float
    crossings: tuple[float, ...]
    crossing: float

    @property
    def kerb(self) -> float:
        """Where the road ends."""
        return self.lanes * self.lane + self.parking

    @property
    def sidewalk_end(self) -> float:
        """Where the sidewalk ends."""
        return self.kerb + self.sidewalk

    @property
    def houses(self) -> float:
        """Where houses begin."""
        return self.sidewalk_end + self.setback

    def at_crossing(self, along: float, margin: float = 0.0) -> bool:
        """Whether a place along the street lies on a side street."""
        return any(start - margin <= along <= start + self.crossing + margin for start in self.crossings)


def draw_profile(keyed: Keyed) -> Profile:
    """A street of one or two lanes a direction, with up to two side streets."""
    first = keyed.uniform(14, 60)
    crossings = (first, first + keyed.uniform(38, 70))[: keyed.choice((0, 1, 1, 2))]
    return Profile(
        lanes=keyed.choice((1, 1, 2)),
        lane=keyed.uniform(3.1, 3.7),
        parking=keyed.choice((0.0, 2.2, 2.2)),
        sidewalk=keyed.uniform(2.4, 4.8),
        setback=keyed.choice((0.0, 0.0, keyed.uniform(1.5, 8.0))),
        crossings=crossings,
        crossing=keyed.uniform(7.0, 11.0),
    )


class CentreLine:
    """Points and directions every metre: straight, a bend, straight again."""

    def __init__(self, keyed: Keyed) -> None:
        bend = keyed.uniform(0.15, 0.85) * keyed.choice((-1.0, 1.0)) * keyed.choice((0.0, 1.0, 1.0))  # radians
        start, radius = keyed.uniform(-10, 60), keyed.uniform(24, 70)
        length = max(abs(bend) * radius, 1.0)
        self.points = np.zeros((BEHIND + AHEAD + 1, 2))
        self.directions = np.zeros_like(self.points)
        self.turned = np.zeros(len(self.points))
        x, z, right, forward, turned = 0.0, float(-BEHIND), 0.0, 1.0, 0.0
        for row in range(len(self.points)):
            self.points[row], self.directions[row], self.turned[row] = (x, z), (right, forward), turned
            inside = start <= row - BEHIND < start + length
            half = bend / length / 2 if inside else 0.0  # tangent of half the turn, as good as the turn itself
            cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
            x, z = x + right, z + forward
            right, forward, turned = right * cos + forward * sin, forward * cos - right * sin, turned + 2 * half

    def at(self, along: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (..., 2) as (x, z), unit directions (..., 2) and turned angles (...) at distances along the line."""
        place = np.clip(np.asarray(along, np.float64) + BEHIND, 0, len(self.points) - 1.001)
        row = place.astype(np.int64)
        share = place - row
        points, directions, turned = (
            values[row] + (share if values.ndim == 1 else share[..., None]) * (values[row + 1] - values[row])
            for values in (self.points, self.directions, self.turned)
        )
        beyond = np.asarray(along, np.float64) + BEHIND - place  # straight on past either end
        return points + beyond[..., None] * directions, directions, turned

    def place(self, along: np.ndarray, across: np.ndarray) -> np.ndarray:
        """(..., 2) points beside the line, `across` metres to its right."""
        points, directions, _ = self.at(along)
        return points + np.asarray(across)[..., None] * right_of(directions)


def right_of(directions: np.ndarray) -> np.ndarray:
    """(..., 2) unit vectors turned a quarter to the right."""
    return np.stack([directions[..., 1], -directions[..., 0]], axis=-1)
