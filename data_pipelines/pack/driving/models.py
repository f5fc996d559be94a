"""Things on the street as textured rectangles, in metres of their own: forward, to the right, up from the ground."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipelines.pack.cityscapes_labels import ID
from data_pipelines.pack.driving import textures
from data_pipelines.pack.driving.keyed import Keyed
from data_pipelines.pack.driving.textures import Colour, shade

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Face:
    """A rectangle.

    Attributes:
        corner: its upper left corner.
        across, down: its edges from there.
        moments: (H, W, 4) uint8 pictures; more than one take turns while its body moves.
        label: id of Cityscapes.
        part: which of its body's things it shows; a bicycle's rider is another one than the bicycle.
    """

    corner: Point
    across: Point
    down: Point
    moments: tuple[np.ndarray, ...]
    label: int
    part: int = 0


def upright(label: str, *, low: float, high: float, left: float, right: float, picture: np.ndarray | list[np.ndarray],
            ahead: float = 0.0, part: int = 0) -> Face:  # fmt: skip
    """A rectangle across the body's own direction."""
    moments = tuple(picture) if isinstance(picture, list) else (picture,)
    return Face((ahead, left, high), (0, right - left, 0), (0, 0, low - high), moments, ID[label], part)


def lengthwise(label: str, *, low: float, high: float, back: float, front: float, picture: np.ndarray,
               side: float = 0.0, part: int = 0) -> Face:  # fmt: skip
    """A rectangle along the body's own direction."""
    return Face((back, side, high), (front - back, 0, 0), (0, 0, low - high), (picture,), ID[label], part)


def box(label: str, length: tuple[float, float], width: float, height: tuple[float, float], *, side: np.ndarray,
        front: np.ndarray, back: np.ndarray, top: Colour) -> Iterator[Face]:  # fmt: skip
    """Four walls and a roof, each face's picture as seen from outside."""
    (rear, nose), (low, high), half = length, height, width / 2
    for place in (-half, half):
        yield lengthwise(label, low=low, high=high, back=rear, front=nose, side=place, picture=side)
    for place, picture in ((nose, front), (rear, back)):
        yield upright(label, low=low, high=high, left=-half, right=half, ahead=place, picture=picture)
    yield Face((rear, -half, high), (nose - rear, 0, 0), (0, width, 0), (textures.plain(top),), ID[label])


def car(keyed: Keyed) -> list[Face]:
    """A saloon, an estate or a van."""
    colour = textures.paint(keyed)
    tall = keyed.chance(0.2)
    length, width = keyed.uniform(4.5, 5.2) if tall else keyed.uniform(3.7, 4.8), keyed.uniform(1.65, 1.9)
    waist, roof = (1.05, keyed.uniform(1.8, 2.2)) if tall else (0.88, keyed.uniform(1.38, 1.55))
    rear, front = (0.02, 0.74) if tall else (keyed.choice((0.03, 0.12, 0.16)), 0.7)
    tail, lamps = textures.car_end(colour, (190, 24, 26)), textures.car_end(colour, (238, 234, 214))
    pane = textures.cabin(colour, 1)
    body = box("car", (-length / 2, length / 2), width, (0.12, waist), side=textures.car_side(colour), front=lamps,
               back=tail, top=shade(colour, 1.1))  # fmt: skip
    cabin = box("car", ((rear - 0.5) * length, (front - 0.5) * length), width * 0.86, (waist, roof),
                side=textures.cabin(colour, 3), front=pane, back=pane, top=shade(colour, 1.1))  # fmt: skip
    return [*body, *cabin]


def truck(keyed: Keyed) -> list[Face]:
    """A cab, a cargo box and wheels below."""
    paint, cover = textures.paint(keyed), textures.cloth(keyed)
    cover = shade(cover, 1.4) if keyed.chance(0.5) else (206, 206, 200)
    length, height = keyed.uniform(6.5, 11), keyed.uniform(2.9, 3.7)
    cargo, cab, half = textures.tarpaulin(cover, keyed), textures.coach(paint, 1, shade(paint, 0.8)), length / 2
    return [
        *box("truck", (-half, half - 2.0), 2.4, (0.85, height), side=cargo, front=cargo, back=cargo, top=cover),
        *box("truck", (half - 1.8, half), 2.2, (0.5, 2.6), side=cab, front=cab, back=cab, top=paint),
        *(
            lengthwise("truck", low=0.0, high=0.9, back=-half, front=half, side=side, picture=textures.wheels(paint))
            for side in (-1.1, 1.1)
        ),
        upright("truck", low=0.3, high=0.9, left=-1.1, right=1.1, ahead=-half, picture=textures.plain((44, 44, 46))),
    ]


def bus(keyed: Keyed) -> list[Face]:
    """One long box of windows."""
    colour = keyed.choice([(196, 170, 60), (180, 40, 40), (220, 220, 216), (60, 110, 150)])
    length, stripe = keyed.uniform(9.5, 13), textures.paint(keyed)
    side, end = textures.coach(colour, 8, stripe), textures.coach(colour, 1, stripe)
    return list(box("bus", (-length / 2, length / 2), 2.5, (0.15, 3.05), side=side, front=end, back=end, top=colour))


def train(keyed: Keyed) -> list[Face]:
    """A tram of two or three carriages."""
    colour = keyed.choice([(226, 220, 200), (180, 36, 40), (230, 190, 50), (70, 120, 90)])
    side, end, count = (
        textures.coach(colour, 6, shade(colour, 0.55)),
        textures.coach(colour, 1, shade(colour, 0.55)),
        keyed.integer(2, 3),
    )
    faces: list[Face] = []
    for carriage in range(count):
        start = carriage * 10.6 - count * 5.3
        faces += box("train", (start, start + 10), 2.5, (0.1, 3.4), side=side, front=end, back=end, top=(120, 120, 120))
    return faces


def bicycle(keyed: Keyed) -> list[Face]:
    """A bicycle that leans somewhere."""
    colour = textures.paint(keyed)
    return [
        lengthwise("bicycle", low=0, high=1.05, back=-0.85, front=0.85, picture=textures.bicycle_side(colour)),
        upright("bicycle", low=0, high=1.05, left=-0.25, right=0.25, picture=textures.bicycle_end(colour)),
    ]


def cyclist(keyed: Keyed) -> list[Face]:
    """A bicycle and its rider."""
    return [*bicycle(keyed), *_rider(keyed, (0.55, 1.75), upright_seat=True)]


def motorcyclist(keyed: Keyed) -> list[Face]:
    """A motorcycle and its rider."""
    return [*motorcycle(keyed), *_rider(keyed, (0.5, 1.65), upright_seat=False)]


def motorcycle(keyed: Keyed) -> list[Face]:
    """A motorcycle that stands."""
    colour = textures.paint(keyed)
    lamp = (240, 236, 216)
    return [
        lengthwise("motorcycle", low=0, high=1.15, back=-1.05, front=1.05, picture=textures.motorcycle_side(colour)),
        upright("motorcycle", low=0, high=1.15, left=-0.4, right=0.4, picture=textures.motorcycle_end(colour, lamp)),
    ]


def _rider(keyed: Keyed, height: tuple[float, float], upright_seat: bool) -> list[Face]:
    low, high = height
    side, end = textures.seated(keyed, upright_seat), textures.seated_end(keyed)
    return [
        lengthwise("rider", low=low, high=high, back=-0.6, front=0.6, picture=side, part=1),
        upright("rider", low=low, high=high, left=-0.32, right=0.32, picture=end, part=1),
    ]


def person(keyed: Keyed) -> list[Face]:
    """Somebody on foot; the rectangle is turned to whoever looks."""
    height = keyed.choice((keyed.uniform(1.55, 1.9), keyed.uniform(1.55, 1.9), keyed.uniform(1.1, 1.4)))
    half = height * 0.2
    return [upright("person", low=0, high=height, left=-half, right=half, picture=textures.walker(keyed))]


def tree(keyed: Keyed) -> list[Face]:
    """A trunk and a crown, turned to whoever looks."""
    height, half = keyed.uniform(5.5, 10), keyed.uniform(1.6, 2.8)
    crown = max(height - 2 * half * keyed.uniform(0.8, 1.1), 2.2)
    return [
        upright("vegetation", low=0, high=crown + half, left=-0.16, right=0.16, picture=textures.trunk(keyed)),
        upright("vegetation", low=crown, high=height, left=-half, right=half, picture=textures.foliage(keyed)),
    ]


def bush(keyed: Keyed) -> list[Face]:
    """Leaves down to the ground."""
    half, height = keyed.uniform(0.5, 1.2), keyed.uniform(0.8, 1.8)
    return [upright("vegetation", low=-0.2, high=height, left=-half, right=half, picture=textures.foliage(keyed))]


def lamp_post(keyed: Keyed) -> list[Face]:
    """A tall post."""
    return [upright("pole", low=0, high=keyed.uniform(5, 8), left=-0.09, right=0.09, picture=textures.metal(keyed))]


def sign_post(keyed: Keyed) -> list[Face]:
    """A post with one or two signs."""
    faces = [upright("pole", low=0, high=2.5, left=-0.05, right=0.05, picture=textures.metal(keyed))]
    for row in range(keyed.choice((1, 1, 2))):
        top, half = 2.9 - 0.75 * row, keyed.uniform(0.28, 0.42)
        picture = textures.traffic_sign(keyed)
        faces.append(
            upright("traffic sign", low=top - 2 * half, high=top, left=-half, right=half, ahead=-0.05, picture=picture)
        )
    return faces


def signals(keyed: Keyed) -> list[Face]:
    """A post with a traffic light."""
    return [
        upright("pole", low=0, high=3.2, left=-0.07, right=0.07, picture=textures.metal(keyed)),
        upright(
            "traffic light",
            low=2.3,
            high=3.3,
            left=-0.22,
            right=0.22,
            ahead=-0.08,
            picture=textures.traffic_light(keyed),
        ),
    ]
