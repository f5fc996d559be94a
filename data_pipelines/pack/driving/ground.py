"""Road, sidewalks, terrain and sky: drawn by the row, each row of the ground lying at one depth."""

from __future__ import annotations

import numpy as np

from data_pipelines.pack.cityscapes_labels import ID
from data_pipelines.pack.driving.keyed import Keyed
from data_pipelines.pack.driving.raster import F32, Frame
from data_pipelines.pack.driving.street import AHEAD, CentreLine, Profile

ROAD, SIDEWALK, TERRAIN, SKY = -1, -2, -3, -4
"""Owners of pixels that no rectangle covers."""
LABELS = {ROAD: ID["road"], SIDEWALK: ID["sidewalk"], TERRAIN: ID["terrain"], SKY: ID["sky"]}
NOISE = 256
LIGHTNESS = 64
ASPHALT, PAVING, GRASS, PAINT, KERB = range(5)
FARTHEST = 170.0
"""Metres from which on the ground is all terrain."""


class Ground:
    """The surfaces of one street."""

    def __init__(self, keyed: Keyed, line: CentreLine, profile: Profile) -> None:
        self.line, self.profile = line, profile
        grey, tiles = keyed.integer(70, 110), keyed.integer(120, 165)
        green = keyed.choice([(88, 100, 52), (104, 100, 62), (74, 92, 48)])
        colours = [(grey, grey, grey + 4), (tiles, tiles - 4, tiles - 10), green, (206, 206, 200), (170, 168, 164)]
        lightness = (np.arange(LIGHTNESS, dtype=np.int64) - LIGHTNESS // 2) * 2 + 128
        table = np.clip(np.array(colours, np.int64)[:, None] * lightness[:, None] // 128, 0, 255).astype(np.uint32)
        self.table = (table[..., 0] | table[..., 1] << 8 | table[..., 2] << 16 | 255 << 24).astype(np.uint32)
        fine, coarse = keyed.noise(NOISE, NOISE), keyed.clouds(NOISE, NOISE, 32, 4)
        self.noise = ((F32(0.35) * fine + F32(0.65) * coarse) * F32(LIGHTNESS)).astype(np.int32) - LIGHTNESS // 2
        self.clouds = (keyed.clouds(64, 512, 64, 4) * F32(LIGHTNESS)).astype(np.int32)
        self.sky = keyed.choice([((120, 152, 196), 90), ((176, 186, 198), 50), ((206, 208, 210), 24)])

    def draw(self, frame: Frame, along: float, turned: float) -> None:
        """Fill a frame whose camera stands `along` metres down the street, turned by `turned` radians."""
        first = int(np.searchsorted(frame.y, F32(frame.camera.height / FARTHEST)))
        self._draw_sky(frame, first, turned)
        depth = F32(frame.camera.height) / frame.y[first:]  # (R,)
        street, offset, cos, sin = self._by_row(frame, along, depth)
        sideways = frame.x * depth[:, None] - offset[:, None]  # (R, W) metres right of the centre line, level with it
        across, down = sideways * cos[:, None], street[:, None] + sideways * sin[:, None]
        owner, material = self._materials(across, down)
        fade = np.minimum(F32(9) / depth, F32(1))[:, None]
        grain = self.noise[(down * F32(22)).astype(np.int64) % NOISE, (across * F32(22)).astype(np.int64) % NOISE]
        lightness = (grain * fade).astype(np.int64) + LIGHTNESS // 2
        frame.colours[first:], frame.owner[first:] = self.table[material, lightness], owner
        frame.inverse_depth[first:] = (F32(0.98) / depth)[:, None]  # what stands on the ground wins

    def _by_row(self, frame: Frame, along: float, depth: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where the centre line crosses each row: metres along it and to the right, and its direction there."""
        places = np.arange(0, AHEAD - 40, dtype=np.float64) + (along - 6)
        points, directions, _ = self.line.at(places)
        fx, fz = frame.camera.forward
        offsets = points - frame.camera.eye
        ahead = np.maximum.accumulate(offsets[:, 0] * fx + offsets[:, 1] * fz)
        right = offsets[:, 0] * fz - offsets[:, 1] * fx
        cos, sin = directions[:, 0] * fx + directions[:, 1] * fz, directions[:, 0] * fz - directions[:, 1] * fx
        row = np.clip(np.searchsorted(ahead, depth) - 1, 0, len(ahead) - 2)
        share = np.clip((depth - ahead[row]) / np.maximum(ahead[row + 1] - ahead[row], 1e-6), 0, 1)
        found = (values[row] + share * (values[row + 1] - values[row]) for values in (places, right, cos, sin))
        return tuple(value.astype(F32) for value in found)

    def _materials(self, across: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Owners and materials of places on the street."""
        profile, beside = self.profile, abs(across)
        crossing = np.zeros(across.shape, bool)
        stripes = np.zeros(across.shape, bool)
        for start in profile.crossings:
            crossing |= (along >= F32(start)) & (along < F32(start + profile.crossing))
            stripes |= (along >= F32(start - 3.2)) & (along < F32(start - 0.8))
        road = beside < F32(profile.kerb)
        paved = beside < F32(profile.sidewalk_end)
        owner = np.where(road | crossing, ROAD, np.where(paved, SIDEWALK, TERRAIN)).astype(np.int32)
        material = np.where(road | crossing, ASPHALT, np.where(paved, PAVING, GRASS))
        dashes = along - np.floor(along / F32(6)) * F32(6) < F32(3)
        middle = (beside < F32(0.07)) & (dashes | (profile.lanes > 1))
        lanes = (abs(beside - F32(profile.lane)) < F32(0.06)) & dashes & (profile.lanes > 1)
        edge = abs(beside - F32(profile.lanes * profile.lane)) < F32(0.06 if profile.parking else 0.0)
        zebra = stripes & (across - np.floor(across) < F32(0.5))
        painted = road & ~crossing & (middle | lanes | edge | zebra)
        kerb = ~crossing & ~road & (beside < F32(profile.kerb + 0.18))
        return owner, np.where(painted, PAINT, np.where(kerb, KERB, material))

    def _draw_sky(self, frame: Frame, rows: int, turned: float) -> None:
        (red, green, blue), cloudiness = self.sky
        column = ((frame.x + F32(turned)) * F32(160)).astype(np.int64) % 512
        height = np.clip((frame.y[:rows] * F32(-120)).astype(np.int64), 0, 63)
        cloud = self.clouds[height[:, None], column] * cloudiness // LIGHTNESS  # (R, W)
        pale = (F32(70) * (F32(1) - np.minimum(frame.y[:rows] * F32(-4), F32(1)))).astype(np.int64)[:, None]
        channels = [np.clip(base + cloud + pale, 0, 255).astype(np.uint32) for base in (red, green, blue)]
        frame.colours[:rows] = channels[0] | channels[1] << 8 | channels[2] << 16 | 255 << 24
        frame.owner[:rows] = SKY
