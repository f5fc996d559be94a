"""Surfaces: small RGBA pictures drawn from keyed noise; alpha 0 is a hole."""

from __future__ import annotations

import numpy as np

from data_pipelines.pack.driving.keyed import Keyed

Colour = tuple[int, int, int]
GLASS: Colour = (44, 54, 66)
RUBBER: Colour = (26, 26, 28)
SKIN: Colour = (196, 150, 124)


class Canvas:
    """A picture in shares of its width and height, (0, 0) top left.

    Attributes:
        pixels: (H, W, 4) uint8.
    """

    def __init__(self, height: int, width: int, colour: Colour | None = None) -> None:
        self.pixels = np.zeros((height, width, 4), np.uint8)
        if colour is not None:
            self.pixels[...] = (*colour, 255)
        self._x = ((np.arange(width) + 0.5) / width)[None]
        self._y = ((np.arange(height) + 0.5) / height)[:, None]

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle."""
        inside = (self._x >= left) & (self._x < right) & (self._y >= top) & (self._y < bottom)
        self.pixels[inside] = (*colour, 255)

    def disc(self, x: float, y: float, across: float, down: float, colour: Colour, inner: float = 0.0) -> None:
        """Fill an ellipse of half axes `across` and `down`, or the ring beyond `inner` of it."""
        wide, high = (self._x - x) / across, (self._y - y) / down
        distance = wide * wide + high * high
        self.pixels[(distance <= 1) & (distance >= inner * inner)] = (*colour, 255)

    def limb(self, x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> None:
        """Fill a slanted bar between two heights, `width` across."""
        share = (self._y - y0) / (y1 - y0)
        inside = (share >= 0) & (share <= 1) & (abs(self._x - (x0 + share * (x1 - x0))) <= width / 2)
        self.pixels[inside] = (*colour, 255)

    def slope(
        self, left: float, top_left: float, right: float, top_right: float, bottom: float, colour: Colour
    ) -> None:
        """Fill what lies between a slanted upper edge and `bottom`."""
        edge = top_left + (self._x - left) / (right - left) * (top_right - top_left)
        inside = (self._x >= left) & (self._x < right) & (self._y >= edge) & (self._y < bottom)
        self.pixels[inside] = (*colour, 255)

    def speckle(self, noise: np.ndarray, strength: float) -> np.ndarray:
        """The picture, lighter and darker by (H, W) `noise` in [0, 1) up to `strength` to either side."""
        factor = np.float32(1) + np.float32(2 * strength) * (noise - np.float32(0.5))
        lit = np.clip(self.pixels[..., :3] * factor[..., None], 0, 255).astype(np.uint8)
        return np.concatenate([lit, self.pixels[..., 3:]], axis=-1)


def shade(colour: Colour, factor: float) -> Colour:
    """Lighter or darker."""
    red, green, blue = (min(255, int(value * factor)) for value in colour)
    return red, green, blue


def paint(keyed: Keyed) -> Colour:
    """The colour of a car."""
    grey = keyed.integer(30, 225)
    plain = [(grey, grey, grey)] * 4
    return keyed.choice(
        [*plain, (150, 28, 30), (28, 46, 110), (42, 86, 60), (176, 168, 150), (190, 130, 40), (70, 110, 150)]
    )


def cloth(keyed: Keyed) -> Colour:
    """The colour of clothes."""
    tint = keyed.choice(
        [(60, 62, 70), (30, 32, 40), (120, 40, 44), (50, 80, 130), (150, 140, 120), (190, 180, 60), (70, 100, 70)]
    )
    return shade(tint, keyed.uniform(0.7, 1.3))


def house(keyed: Keyed, storeys: int, columns: int) -> np.ndarray:
    """A front with windows, shops or doors below."""
    wall = keyed.choice(
        [(168, 152, 132), (150, 118, 98), (186, 180, 168), (128, 132, 136), (172, 140, 110), (110, 92, 86)]
    )
    wall = shade(wall, keyed.uniform(0.65, 1.1))
    canvas = Canvas(128, 128, wall)
    wide, high = keyed.uniform(0.35, 0.6), keyed.uniform(0.45, 0.65)
    frame = shade(wall, keyed.choice((0.7, 1.25)))
    canvas.box(0, 0, 1, 0.025, shade(wall, 0.7))
    for storey in range(storeys - 1):
        top = 0.04 + storey * 0.96 / storeys
        for column in range(columns):
            left = (column + (1 - wide) / 2) / columns
            right, bottom = left + wide / columns, top + high * 0.96 / storeys
            lit = shade(GLASS, keyed.uniform(0.6, 2.2))
            canvas.box(left - 0.012, top - 0.012, right + 0.012, bottom + 0.012, frame)
            canvas.box(left, top, right, bottom, lit)
    ground = 1 - 0.86 / storeys
    for column in range(columns):
        if keyed.chance(0.75):
            left = (column + 0.12) / columns
            colour = keyed.choice((shade(GLASS, keyed.uniform(0.5, 1.5)), shade(wall, 0.5), (120, 60, 50)))
            canvas.box(left, ground, left + 0.76 / columns, 1, colour)
    return canvas.speckle(keyed.clouds(128, 128, 16, 4), 0.22)


def masonry(keyed: Keyed) -> np.ndarray:
    """A garden wall of blocks."""
    canvas = Canvas(32, 128, shade((140, 128, 116), keyed.uniform(0.7, 1.2)))
    for row in range(4):
        canvas.box(0, row / 4, 1, row / 4 + 0.05, (90, 84, 78))
        for block in range(9):
            left = (block + (row % 2) / 2) / 8
            canvas.box(left, row / 4, left + 0.012, (row + 1) / 4, (90, 84, 78))
    return canvas.speckle(keyed.clouds(32, 128, 8), 0.35)


def palings(keyed: Keyed) -> np.ndarray:
    """A fence of bars; what is seen between them belongs to it, as in the labels of Cityscapes."""
    colour = keyed.choice([(70, 82, 70), (60, 60, 64), (130, 110, 80), (170, 170, 168)])
    canvas = Canvas(32, 128, shade(colour, 0.45))
    for bar in range(24):
        canvas.box(bar / 24, 0.08, bar / 24 + 0.022, 1, colour)
    for rail in (0.1, 0.5, 0.9):
        canvas.box(0, rail, 1, rail + 0.06, shade(colour, 1.15))
    return canvas.speckle(keyed.clouds(32, 128, 8), 0.2)


def foliage(keyed: Keyed, ragged: bool = True) -> np.ndarray:
    """Leaves; `ragged` ones have an outline, others fill the picture."""
    tint = keyed.choice([(62, 84, 38), (78, 96, 46), (52, 72, 42), (96, 98, 52)])
    canvas = Canvas(64, 64, shade(tint, keyed.uniform(0.75, 1.25)))
    coarse, fine = keyed.clouds(64, 64, 16, 4), keyed.noise(64, 64)
    picture = canvas.speckle(np.float32(0.65) * coarse + np.float32(0.35) * fine, 0.9)
    if ragged:
        x = (np.arange(64, dtype=np.float32) - np.float32(31.5)) / np.float32(31.5)
        distance = (x * x)[None] + (x * x)[:, None]
        picture[distance + np.float32(1.1) * (coarse - np.float32(0.5)) > np.float32(0.78), 3] = 0
    return picture


def trunk(keyed: Keyed) -> np.ndarray:
    """Bark."""
    return Canvas(32, 8, (82, 68, 54)).speckle(keyed.noise(32, 8), 0.4)


def metal(keyed: Keyed) -> np.ndarray:
    """A post."""
    return Canvas(32, 4, shade((112, 114, 116), keyed.uniform(0.6, 1.3))).speckle(keyed.noise(32, 4), 0.1)


def traffic_light(keyed: Keyed) -> np.ndarray:
    """Three lamps, one of them lit."""
    canvas = Canvas(24, 10, (30, 32, 32))
    lit = keyed.integer(0, 2)
    for lamp, colour in enumerate([(250, 50, 40), (250, 190, 40), (60, 240, 130)]):
        canvas.disc(0.5, 0.18 + 0.32 * lamp, 0.3, 0.125, colour if lamp == lit else shade(colour, 0.25))
    return canvas.pixels


def traffic_sign(keyed: Keyed) -> np.ndarray:
    """A disc, a triangle's warning, or a board."""
    canvas = Canvas(24, 24)
    kind = keyed.choice(("disc", "board", "warning"))
    if kind == "disc":
        canvas.disc(0.5, 0.5, 0.5, 0.5, (190, 30, 36))
        canvas.disc(0.5, 0.5, 0.34, 0.34, keyed.choice([(236, 236, 232), (30, 70, 160)]))
    elif kind == "board":
        canvas.box(0, 0, 1, 1, (236, 236, 232))
        canvas.box(0.06, 0.06, 0.94, 0.94, keyed.choice([(30, 70, 160), (230, 190, 40), (40, 110, 70)]))
        canvas.box(0.4, 0.2, 0.6, 0.8, (236, 236, 232))
    else:
        canvas.limb(0.5, 0.0, 0.5, 0.2, 0.2, (190, 30, 36))
        canvas.slope(0.0, 1.0, 0.5, 0.0, 1.0, (190, 30, 36))
        canvas.slope(0.5, 0.0, 1.0, 1.0, 1.0, (190, 30, 36))
        canvas.slope(0.2, 0.84, 0.5, 0.3, 0.84, (236, 236, 232))
        canvas.slope(0.5, 0.3, 0.8, 0.84, 0.84, (236, 236, 232))
    return canvas.pixels


def car_side(colour: Colour, wheel: float = 0.115) -> np.ndarray:
    """Body with two wheels, front to the right, no underbody between them."""
    canvas = Canvas(24, 64)
    canvas.box(0.0, 0.0, 1.0, 0.7, colour)
    canvas.box(0.0, 0.55, 1.0, 0.7, shade(colour, 0.6))
    canvas.box(0.48, 0.02, 0.49, 0.6, shade(colour, 0.5))
    canvas.box(0.97, 0.12, 1.0, 0.3, (240, 236, 210))
    canvas.box(0.0, 0.12, 0.03, 0.3, (170, 20, 24))
    for x in (0.19, 0.8):
        canvas.disc(x, 0.66, wheel * 0.85, 0.36, RUBBER)
        canvas.disc(x, 0.66, wheel * 0.45, 0.2, (130, 132, 136))
    return canvas.pixels


def car_end(colour: Colour, lamps: Colour) -> np.ndarray:
    """Front or back of a body."""
    canvas = Canvas(24, 32, colour)
    canvas.box(0.0, 0.62, 1.0, 1.0, shade(colour, 0.55))
    canvas.box(0.04, 0.18, 0.24, 0.36, lamps)
    canvas.box(0.76, 0.18, 0.96, 0.36, lamps)
    canvas.box(0.36, 0.42, 0.64, 0.58, (226, 226, 220))
    canvas.box(0.02, 0.8, 0.2, 1.0, RUBBER)
    canvas.box(0.8, 0.8, 0.98, 1.0, RUBBER)
    return canvas.pixels


def cabin(colour: Colour, panes: int) -> np.ndarray:
    """Windows under a roof."""
    canvas = Canvas(16, 48, colour)
    for pane in range(panes):
        canvas.box((pane + 0.08) / panes, 0.16, (pane + 0.92) / panes, 0.95, shade(GLASS, 1.0 + 0.25 * (pane % 2)))
    return canvas.pixels


def coach(colour: Colour, panes: int, stripe: Colour) -> np.ndarray:
    """Side or end of a bus or a tram."""
    canvas = Canvas(48, 128, colour)
    for pane in range(panes):
        canvas.box((pane + 0.06) / panes, 0.14, (pane + 0.94) / panes, 0.55, shade(GLASS, 0.9 + 0.3 * (pane % 3 == 1)))
    canvas.box(0, 0.64, 1, 0.72, stripe)
    canvas.box(0, 0.88, 1, 1, (36, 36, 40))
    for x in (0.16, 0.8):
        canvas.disc(x, 0.93, 0.04 if panes > 2 else 0.0001, 0.12, RUBBER)
    return canvas.pixels


def tarpaulin(colour: Colour, keyed: Keyed) -> np.ndarray:
    """The cargo box of a truck."""
    canvas = Canvas(48, 64, colour)
    for seam in range(1, 6):
        canvas.box(seam / 6, 0, seam / 6 + 0.012, 1, shade(colour, 0.7))
    if keyed.chance(0.6):
        canvas.box(0.2, 0.25, 0.8, 0.6, cloth(keyed))
    return canvas.speckle(keyed.clouds(48, 64, 16), 0.1)


def wheels(colour: Colour) -> np.ndarray:
    """A truck's underbody."""
    canvas = Canvas(16, 64)
    canvas.box(0, 0, 1, 0.4, (40, 40, 44))
    for x in (0.12, 0.7, 0.84):
        canvas.disc(x, 0.5, 0.065, 0.5, RUBBER)
        canvas.disc(x, 0.5, 0.03, 0.22, colour)
    return canvas.pixels


def plain(colour: Colour) -> np.ndarray:
    """One colour."""
    return Canvas(4, 4, colour).pixels


def walker(keyed: Keyed) -> list[np.ndarray]:
    """Four moments of somebody walking to the right."""
    shirt, trousers = cloth(keyed), shade(cloth(keyed), 0.7)
    hair = keyed.choice([(40, 32, 28), (90, 64, 44), (150, 140, 130), (24, 22, 22)])
    moments = []
    for swing in (0.16, 0.05, -0.16, -0.05):
        canvas = Canvas(48, 24)
        canvas.limb(0.5, 0.5, 0.5 - swing, 1.0, 0.17, shade(trousers, 0.75))
        canvas.limb(0.5, 0.5, 0.5 + swing, 1.0, 0.17, trousers)
        canvas.box(0.3, 0.17, 0.7, 0.56, shirt)
        canvas.limb(0.5, 0.22, 0.5 + swing, 0.55, 0.12, shade(shirt, 0.7))
        canvas.disc(0.5, 0.085, 0.15, 0.085, SKIN)
        canvas.box(0.36, 0.0, 0.62, 0.06, hair)
        moments.append(canvas.pixels)
    return moments


def seated(keyed: Keyed, upright: bool) -> np.ndarray:
    """A rider's side, front to the right."""
    shirt, trousers, hat = cloth(keyed), shade(cloth(keyed), 0.7), cloth(keyed)
    canvas, lean = Canvas(40, 32), 0.0 if upright else 0.12
    canvas.limb(0.42, 0.55, 0.62, 0.78, 0.16, trousers)
    canvas.limb(0.62, 0.74, 0.5, 1.0, 0.13, trousers)
    canvas.limb(0.44 + lean, 0.16, 0.4, 0.6, 0.3, shirt)
    canvas.limb(0.5 + lean, 0.24, 0.85, 0.5, 0.1, shade(shirt, 0.75))
    canvas.disc(0.5 + lean, 0.09, 0.12, 0.09, SKIN)
    canvas.disc(0.5 + lean, 0.06, 0.13, 0.06, hat)
    return canvas.pixels


def seated_end(keyed: Keyed) -> np.ndarray:
    """A rider from behind."""
    shirt, trousers = cloth(keyed), shade(cloth(keyed), 0.7)
    canvas = Canvas(40, 20)
    canvas.box(0.28, 0.55, 0.46, 1.0, trousers)
    canvas.box(0.54, 0.55, 0.72, 1.0, trousers)
    canvas.box(0.2, 0.18, 0.8, 0.6, shirt)
    canvas.disc(0.5, 0.09, 0.19, 0.09, (60, 50, 46))
    return canvas.pixels


def bicycle_side(colour: Colour) -> np.ndarray:
    """Two wheels and a frame; spokes are not seen, but what is behind them is not seen either, as in Cityscapes."""
    canvas = Canvas(32, 48)
    for x in (0.2, 0.8):
        canvas.disc(x, 0.66, 0.2, 0.34, RUBBER)
        canvas.disc(x, 0.66, 0.16, 0.27, (120, 122, 124))
    canvas.limb(0.36, 0.2, 0.46, 0.7, 0.06, colour)
    canvas.limb(0.72, 0.12, 0.8, 0.66, 0.06, colour)
    canvas.box(0.36, 0.26, 0.74, 0.34, colour)
    canvas.limb(0.72, 0.3, 0.46, 0.7, 0.06, colour)
    canvas.box(0.28, 0.14, 0.44, 0.2, RUBBER)
    canvas.box(0.64, 0.06, 0.8, 0.13, RUBBER)
    return canvas.pixels


def bicycle_end(colour: Colour) -> np.ndarray:
    """A bicycle from behind."""
    canvas = Canvas(32, 16)
    canvas.box(0.36, 0.3, 0.64, 1.0, RUBBER)
    canvas.box(0.05, 0.1, 0.95, 0.18, colour)
    canvas.box(0.3, 0.18, 0.7, 0.3, RUBBER)
    return canvas.pixels


def motorcycle_side(colour: Colour) -> np.ndarray:
    """Wheels, engine, tank and seat."""
    canvas = Canvas(32, 48)
    canvas.slope(0.15, 0.35, 0.9, 0.2, 0.8, colour)
    canvas.box(0.3, 0.5, 0.66, 0.85, (60, 60, 64))
    canvas.box(0.1, 0.28, 0.5, 0.4, RUBBER)
    canvas.limb(0.72, 0.0, 0.84, 0.66, 0.08, (140, 140, 144))
    for x in (0.18, 0.82):
        canvas.disc(x, 0.68, 0.18, 0.32, RUBBER)
        canvas.disc(x, 0.68, 0.09, 0.16, (140, 140, 144))
    return canvas.pixels


def motorcycle_end(colour: Colour, lamp: Colour) -> np.ndarray:
    """A motorcycle from in front or behind."""
    canvas = Canvas(32, 20)
    canvas.box(0.3, 0.2, 0.7, 0.75, colour)
    canvas.box(0.36, 0.55, 0.64, 1.0, RUBBER)
    canvas.box(0.02, 0.08, 0.98, 0.16, (60, 60, 64))
    canvas.disc(0.5, 0.32, 0.16, 0.1, lamp)
    return canvas.pixels
