"""A sequence's world: bodies that stand or move, drawn by key around the street that the camera drives along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.pack.cityscapes_labels import ID
from data_pipelines.pack.driving import models, textures
from data_pipelines.pack.driving.keyed import Keyed
from data_pipelines.pack.driving.models import Face
from data_pipelines.pack.driving.street import CentreLine, Profile, draw_profile, right_of

VIEW = 120.0
"""Metres ahead that are furnished."""
Pose = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Body:
    """Something that stands or moves as one.

    Attributes:
        along, across: place on the street at time 0, in metres along the centre line and to its right.
        speed: metres a second along the line, `drift` across it.
        heading: of its front: 1 along the line, -1 against it, 0 to the right (`drift` >= 0) or the left.
        turns: it is flat, and turned to whoever looks.
        shadow: (length, width) of the darkness below it.
    """

    faces: tuple[Face, ...]
    along: float
    across: float
    speed: float = 0.0
    drift: float = 0.0
    heading: int = 1
    turns: bool = False
    shadow: tuple[float, float] | None = None


@dataclass(frozen=True)
class Ego:
    """The camera's way: along the street at a speed that may change, swerving a little."""

    across: float
    speed: float
    acceleration: float
    drift: float
    height: float

    def along(self, seconds: float) -> float:
        """Metres driven; a car that brakes does not drive backwards."""
        if self.acceleration < 0:
            seconds = min(seconds, self.speed / -self.acceleration)
        return self.speed * seconds + self.acceleration * seconds * seconds / 2


@dataclass
class Scene:
    """All of a sequence.

    Attributes:
        fixed: rectangles in world coordinates (z, x, up).
    """

    line: CentreLine
    profile: Profile
    ego: Ego
    fixed: list[Face] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)

    def poses(self, seconds: float, eye: np.ndarray) -> Pose:
        """Points (N, 2), forward (N, 2) and right (N, 2) unit vectors of `bodies`, seen from `eye` (2,)."""
        along, across, speed, drift, heading, turns = self._columns()
        points = self.line.place(along + speed * seconds, across + drift * seconds)
        _, streets, _ = self.line.at(along + speed * seconds)
        rights = right_of(streets)
        forward = np.where(
            heading[:, None] != 0, heading[:, None] * streets, np.where(drift >= 0, 1, -1)[:, None] * rights
        )
        right = right_of(forward)
        sight = points - eye
        sight = sight / np.sqrt(sight[:, :1] * sight[:, :1] + sight[:, 1:] * sight[:, 1:] + 1e-9)
        facing = right_of(sight)
        moving = speed[:, None] * streets + drift[:, None] * rights
        leftward = moving[:, 0] * facing[:, 0] + moving[:, 1] * facing[:, 1] < 0
        facing = np.where(leftward[:, None], -facing, facing)
        return points, np.where(turns[:, None], sight, forward), np.where(turns[:, None], facing, right)

    def _columns(self) -> tuple[np.ndarray, ...]:
        rows = [(b.along, b.across, b.speed, b.drift, float(b.heading)) for b in self.bodies]
        return (*np.array(rows).reshape(-1, 5).T, np.array([body.turns for body in self.bodies], bool))


def draw_scene(keyed: Keyed, seconds: float) -> Scene:
    """Furnish a street for a drive of so many seconds."""
    profile, line = draw_profile(keyed.stream("profile")), CentreLine(keyed.stream("line"))
    scene = Scene(line, profile, _draw_ego(keyed.stream("ego"), profile))
    reach = scene.ego.along(seconds) + VIEW
    for side in (-1, 1):
        _line_of_houses(scene, keyed.stream(f"houses {side}"), side, reach)
        _furniture(scene, keyed.stream(f"furniture {side}"), side, reach)
        _pavement(scene, keyed.stream(f"people {side}"), side, reach)
        _parked(scene, keyed.stream(f"parked {side}"), side, reach)
    _backdrop(scene, keyed.stream("backdrop"), reach)
    _traffic(scene, keyed.stream("traffic"), reach, seconds)
    _cyclists(scene, keyed.stream("cyclists"), reach)
    _crossings(scene, keyed.stream("crossings"), seconds)
    return scene


def _draw_ego(keyed: Keyed, profile: Profile) -> Ego:
    speed = keyed.choice((0.0, keyed.uniform(3, 8), keyed.uniform(7, 13), keyed.uniform(7, 13), keyed.uniform(10, 15)))
    return Ego(
        across=profile.lane * (keyed.integer(1, profile.lanes) - 0.5),
        speed=speed,
        acceleration=keyed.uniform(-2.0, 1.2) if speed else 0.0,
        drift=keyed.uniform(-0.25, 0.25),
        height=keyed.uniform(1.2, 1.6),
    )


def _wall(scene: Scene, start: tuple[float, float], end: tuple[float, float], low: float, high: float, label: str,
          picture: np.ndarray) -> None:  # fmt: skip
    """An upright rectangle between two places (along, across)."""
    (x0, z0), (x1, z1) = scene.line.place(np.array([start[0], end[0]]), np.array([start[1], end[1]]))
    scene.fixed.append(Face((z0, x0, high), (z1 - z0, x1 - x0, 0), (0, 0, low - high), (picture,), ID[label]))


def _line_of_houses(scene: Scene, keyed: Keyed, side: int, reach: float) -> None:
    """Houses, garden walls, fences and hedges along one side, with gaps at side streets."""
    profile, along, depth = scene.profile, -14.0, 10.0
    edge, houses = profile.sidewalk_end, profile.houses
    while along < reach + 20:
        length = keyed.uniform(6, 15)
        if profile.at_crossing(along + length / 2, length / 2):
            along += 2.0
            continue
        kind = keyed.choice(("house",) * 5 + ("wall", "fence", "hedge"))
        if kind == "house":
            storeys = keyed.integer(2, 6)
            high, picture = storeys * keyed.uniform(2.8, 3.4), textures.house(keyed, storeys, keyed.integer(2, 5))
            blind = textures.plain(textures.shade((120, 112, 104), keyed.uniform(0.6, 1.2)))
            _wall(scene, (along, side * houses), (along + length, side * houses), 0, high, "building", picture)
            for end in (along, along + length):
                _wall(scene, (end, side * houses), (end, side * (houses + depth)), 0, high, "building", blind)
        else:
            label, high, picture = {
                "wall": ("wall", keyed.uniform(1.0, 2.4), textures.masonry(keyed)),
                "fence": ("fence", keyed.uniform(0.9, 1.9), textures.palings(keyed)),
                "hedge": ("vegetation", keyed.uniform(1.0, 2.4), textures.foliage(keyed, ragged=False)),
            }[kind]
            _wall(scene, (along, side * (edge + 0.2)), (along + length, side * (edge + 0.2)), 0, high, label, picture)
            for _ in range(keyed.integer(1, 3)):
                place = along + keyed.uniform(0, length), side * (edge + keyed.uniform(2.5, 9))
                _put(scene, models.tree(keyed), *place, turns=True)
        if profile.setback and kind == "house" and keyed.chance(0.4):
            picture = textures.palings(keyed)
            _wall(scene, (along, side * (edge + 0.2)), (along + length, side * (edge + 0.2)), 0, 1.1, "fence", picture)
        along += length


def _backdrop(scene: Scene, keyed: Keyed, reach: float) -> None:
    """Houses and trees behind the first row and at the street's end, so that no view runs to the horizon."""
    far, width = scene.profile.houses + 22, 18.0
    end = reach + 6
    for side in (-1, 1):
        along = -10.0
        while along < end:
            _distant(scene, keyed, (along, side * far), (along + width, side * far))
            along += width
    for place in range(-4, 4):
        _distant(scene, keyed, (end, place * 12.0), (end, place * 12.0 + 12))


def _distant(scene: Scene, keyed: Keyed, start: tuple[float, float], end: tuple[float, float]) -> None:
    if keyed.chance(0.6):
        storeys = keyed.integer(2, 6)
        picture = textures.house(keyed, storeys, keyed.integer(3, 6))
        _wall(scene, start, end, 0, 3.0 * storeys, "building", picture)
    else:
        _wall(scene, start, end, 0, keyed.uniform(4, 8), "vegetation", textures.foliage(keyed, ragged=False))


def _put(scene: Scene, faces: list[Face], along: float, across: float, **rest: object) -> None:
    scene.bodies.append(Body(tuple(faces), along, across, **rest))  # type: ignore[arg-type]


def _furniture(scene: Scene, keyed: Keyed, side: int, reach: float) -> None:
    """Posts, signs and trees along the kerb."""
    profile, along = scene.profile, keyed.uniform(-6, 4)
    kinds = (models.lamp_post, models.lamp_post, models.sign_post, models.sign_post, models.tree, models.tree)
    while along < reach:
        kind = keyed.choice((*kinds, models.bush))
        place = side * (profile.sidewalk_end if kind is models.bush else profile.kerb + 0.5)
        if not profile.at_crossing(along, 1.0):
            _put(scene, kind(keyed), along, place, turns=kind is not models.sign_post)
        along += keyed.uniform(4, 14)
    for start in profile.crossings:
        _put(scene, models.signals(keyed), start - 0.8, side * (profile.kerb + 0.5))


def _pavement(scene: Scene, keyed: Keyed, side: int, reach: float) -> None:
    """People on one sidewalk, in both directions, and bicycles left there."""
    profile = scene.profile
    for _ in range(keyed.integer(4, 14)):
        speed = keyed.choice((0.0, keyed.uniform(0.8, 1.9), -keyed.uniform(0.8, 1.9)))
        place = side * (profile.kerb + keyed.uniform(0.9, profile.sidewalk - 0.3))
        along = keyed.uniform(1, reach * 0.6)
        drift = keyed.uniform(-0.2, 0.2) if speed else 0.0
        _put(scene, models.person(keyed), along, place, speed=speed, drift=drift, turns=True)
        if keyed.chance(0.4):  # in company
            _put(scene, models.person(keyed), along + 0.3, place + 0.6, speed=speed, drift=drift, turns=True)
    for _ in range(keyed.integer(0, 4)):
        kind = keyed.choice((models.bicycle, models.bicycle, models.motorcycle))
        place = side * (profile.kerb + keyed.uniform(0.6, 1.1))
        _put(scene, kind(keyed), keyed.uniform(4, reach * 0.6), place, heading=keyed.choice((-1, 0, 1)))


def _vehicle(keyed: Keyed, parked: bool = False) -> tuple[list[Face], tuple[float, float]]:
    """A model and the size of its shadow."""
    kinds: list[tuple[Callable[[Keyed], list[Face]], tuple[float, float]]] = [(models.car, (4.4, 1.8))] * (
        10 if parked else 6
    )
    kinds += [(models.truck, (9.0, 2.4))] * (1 if parked else 2)
    kinds += [] if parked else [(models.bus, (11.5, 2.5))] * 2 + [(models.motorcyclist, (1.8, 0.5))] * 3
    model, shadow = keyed.choice(kinds)
    return model(keyed), shadow


def _parked(scene: Scene, keyed: Keyed, side: int, reach: float) -> None:
    profile = scene.profile
    if not profile.parking:
        return
    along = keyed.uniform(-4, 8)
    while along < reach:
        faces, shadow = _vehicle(keyed, parked=True)
        along += shadow[0] / 2
        if keyed.chance(0.65) and not profile.at_crossing(along, 6):
            _put(scene, faces, along, side * (profile.kerb - 1.1), heading=side, shadow=shadow)
        along += shadow[0] / 2 + keyed.uniform(0.8, 3)


def _traffic(scene: Scene, keyed: Keyed, reach: float, seconds: float) -> None:
    """A column of vehicles in every lane; those in the camera's own keep their distance."""
    profile, ego = scene.profile, scene.ego
    tram = keyed.chance(0.3)
    for lane in range(-profile.lanes, profile.lanes):
        across, forward = (lane + 0.5) * profile.lane, lane >= 0
        own = forward and abs(across - ego.across) < 1
        speed = keyed.uniform(5, 13) if not own else max(ego.speed + keyed.uniform(-2, 3), 0.0)
        gap = max((ego.speed - speed) * seconds, 0) + 9 if own else (keyed.uniform(-2, 14) if forward else 6.0)
        along = gap + keyed.uniform(0, 12)
        if lane == -1 and tram:
            _put(
                scene,
                models.train(keyed),
                along + keyed.uniform(14, 50),
                across,
                speed=-speed,
                heading=-1,
                shadow=(30, 2.5),
            )
            continue
        while along < reach + (0 if forward else speed * seconds):
            faces, shadow = _vehicle(keyed)
            along += shadow[0] / 2
            if keyed.chance(0.75):
                place = across + keyed.uniform(-0.25, 0.25)
                _put(
                    scene,
                    faces,
                    along,
                    place,
                    speed=speed if forward else -speed,
                    heading=1 if forward else -1,
                    shadow=shadow,
                )
            along += shadow[0] / 2 + keyed.uniform(4, 16)


def _cyclists(scene: Scene, keyed: Keyed, reach: float) -> None:
    """Cyclists along the kerbs."""
    profile = scene.profile
    for _ in range(keyed.integer(1, 4)):
        side = keyed.choice((-1, 1))
        place = side * (profile.kerb - profile.parking + keyed.uniform(-0.9, -0.4))
        if side > 0:
            place = max(place, scene.ego.across + 1.6)  # beside the camera's way, not in it
        along, speed = keyed.uniform(6, reach * 0.5), side * keyed.uniform(3, 6)
        _put(scene, models.cyclist(keyed), along, place, speed=speed, heading=side, shadow=(1.7, 0.4))


def _crossings(scene: Scene, keyed: Keyed, seconds: float) -> None:
    """Who crosses the street: vehicles out of side streets, people before and behind them."""
    profile, driven = scene.profile, scene.ego.along(seconds)
    for start in profile.crossings:
        if start < driven + 6:
            continue
        for lane, direction in ((0.27, 1), (0.73, -1)):
            speed = keyed.uniform(4, 10)
            for number in range(keyed.choice((0, 1, 1, 2))):
                faces, shadow = _vehicle(keyed)
                across = direction * (keyed.uniform(-26, -2) - 14 * number)
                _put(
                    scene,
                    faces,
                    start + lane * profile.crossing,
                    across,
                    drift=direction * speed,
                    heading=0,
                    shadow=shadow,
                )
        for _ in range(keyed.integer(0, 4)):
            drift, kind = keyed.choice((-1, 1)) * keyed.uniform(1.0, 1.9), models.person
            _put(
                scene,
                kind(keyed),
                start - keyed.uniform(0.8, 2.6),
                keyed.uniform(-profile.kerb, profile.kerb),
                drift=drift,
                turns=True,
            )
    if not profile.crossings and keyed.chance(0.4):
        drift = keyed.choice((-1, 1)) * keyed.uniform(1.0, 1.9)
        _put(scene, models.person(keyed), driven + keyed.uniform(9, 25), keyed.uniform(-4, 4), drift=drift, turns=True)
