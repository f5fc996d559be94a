"""Rectangles to pixels: pinhole camera, depth buffer, textures at the detail that a pixel can show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

OVERSAMPLED = 2
"""Rays a pixel along each axis; colours are their mean, labels those of one of them."""
NEAR = 0.3
F32 = np.float32


class Texture:
    """A picture (H, W, 4) uint8 at all levels of detail, which are made when it is first seen."""

    def __init__(self, picture: np.ndarray) -> None:
        self._picture = picture

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """Packed colours, uint32; each level half as wide and high as the one before."""
        picture = self._picture
        levels = [_packed(picture)]
        while min(picture.shape[:2]) >= 4:
            picture = _halved(picture)
            levels.append(_packed(picture))
        return levels


def _halved(picture: np.ndarray) -> np.ndarray:
    """Means of two by two texels, holes left out; two of them make a hole."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    wide = picture[: 2 * height, : 2 * width].astype(np.uint32)
    quads = [wide[row::2, column::2] for row in (0, 1) for column in (0, 1)]
    solid = [(quad[..., 3:] > 0).astype(np.uint32) for quad in quads]
    count = solid[0] + solid[1] + solid[2] + solid[3]
    colours = [quad[..., :3] * mask for quad, mask in zip(quads, solid, strict=True)]
    mean = (colours[0] + colours[1] + colours[2] + colours[3]) // np.maximum(count, 1)
    return np.concatenate([mean, (count >= 2) * 255], axis=-1).astype(np.uint8)


def _packed(picture: np.ndarray) -> np.ndarray:
    red, green, blue, alpha = (picture[..., channel].astype(np.uint32) for channel in range(4))
    return red | green << 8 | blue << 16 | alpha << 24


def unpacked(colours: np.ndarray) -> np.ndarray:
    """(H, W) uint32 -> (H, W, 3) uint8."""
    return np.stack([(colours >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], axis=-1)


@dataclass(frozen=True)
class Camera:
    """Where a frame is seen from.

    Attributes:
        eye: (2,) x and z in metres; `height` above the ground.
        forward: (2,) unit vector.
        horizon: row of the horizon in pixels.
        focal: focal length in pixels.
    """

    eye: np.ndarray
    forward: np.ndarray
    height: float
    horizon: float
    focal: float


class Frame:
    """A picture in the making, `OVERSAMPLED` times as wide and high as the finished one.

    Attributes:
        inverse_depth: (H, W) float32 in 1/m, 0 in the sky.
        colours: (H, W) uint32, packed.
        owner: (H, W) int32, number of the rectangle that is seen; negative: ground and sky.
    """

    def __init__(self, height: int, width: int, camera: Camera) -> None:
        rows, columns = height * OVERSAMPLED, width * OVERSAMPLED
        self.camera = camera
        self.inverse_depth = np.zeros((rows, columns), F32)
        self.colours = np.zeros((rows, columns), np.uint32)
        self.owner = np.zeros((rows, columns), np.int32)
        focal = camera.focal * OVERSAMPLED
        self.x = ((np.arange(columns) + 0.5 - columns / 2) / focal).astype(F32)
        """(W,) slopes of the rays to the right."""
        self.y = ((np.arange(rows) + 0.5 - camera.horizon * OVERSAMPLED) / focal).astype(F32)
        """(H,) slopes of the rays downwards."""

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World (N, 3) as (z, x, up) to camera (N, 3) as (right, down, forward)."""
        return self.turned(points - np.array([self.camera.eye[1], self.camera.eye[0], self.camera.height]))

    def turned(self, vectors: np.ndarray) -> np.ndarray:
        """Directions in the world to directions in the camera."""
        fx, fz = self.camera.forward
        z, x, up = vectors[:, 0], vectors[:, 1], vectors[:, 2]
        return np.stack([x * fz - z * fx, -up, x * fx + z * fz], axis=1)

    def draw(self, corners: np.ndarray, across: np.ndarray, down: np.ndarray, textures: Sequence[Texture]) -> None:
        """Draw rectangles, numbered by their rows.

        Args:
            corners, across, down: (N, 3) in camera coordinates.
            textures: one a rectangle.
        """
        for number, forms, box in self._visible(corners, across, down):
            self._draw_one(number, forms, box, textures[number])

    def darken(self, corners: np.ndarray, across: np.ndarray, down: np.ndarray) -> None:
        """Halve the light where rectangles lie on the ground."""
        for _, forms, (left, right, top, bottom) in self._visible(corners, across, down):
            x, y = self.x[left:right], self.y[top:bottom, None]
            nu, nv, w = (form[0] * x + (form[1] * y + form[2]) for form in forms)
            inside = (w > 0) & (nu >= 0) & (nu < w) & (nv >= 0) & (nv < w)
            part = self.colours[top:bottom, left:right]
            part[inside] = part[inside] >> 1 & 0x7F7F7F | 0xFF000000

    def _visible(
        self, corners: np.ndarray, across: np.ndarray, down: np.ndarray
    ) -> Iterator[tuple[int, list[np.ndarray], tuple[int, int, int, int]]]:
        """Numbers, forms and boxes of the rectangles that may be seen, the nearest first.

        With M = [across down corner], a ray d meets the rectangle's plane at (u, v, 1) / w = inverse(M) d, w being the
        inverse depth. The three forms, rows of that inverse, are linear in the ray's slopes.
        """
        to_u, to_v, to_w = cross(down, corners), cross(corners, across), cross(across, down)
        product = across * to_u
        volume = product[:, 0] + product[:, 1] + product[:, 2]
        boxes = self._boxes(corners, across, down)
        seen = (abs(volume) > 1e-9) & (boxes[:, 0] < boxes[:, 1]) & (boxes[:, 2] < boxes[:, 3])
        depth = (corners + (across + down) / 2)[:, 2]
        order = np.argsort(depth, kind="stable")  # from near to far: what is hidden is then found out early
        for number in order[seen[order]]:
            forms = [(form[number] / volume[number]).astype(F32) for form in (to_u, to_v, to_w)]
            left, right, top, bottom = (int(value) for value in boxes[number])
            yield int(number), forms, (left, right, top, bottom)

    def _boxes(self, corners: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
        """(N, 4) int64 left, right, top, bottom in pixels; empty where nothing can be seen."""
        points = np.stack([corners, corners + across, corners + across + down, corners + down], axis=1)  # (N, 4, 3)
        following = np.roll(points, -1, axis=1)
        depth, next_depth = points[..., 2:], following[..., 2:]
        crosses = (depth < NEAR) != (next_depth < NEAR)
        share = (NEAR - depth) / np.where(crosses, next_depth - depth, 1.0)
        points = np.concatenate([points, points + share * (following - points)], axis=1)  # (N, 8, 3)
        there = np.concatenate([depth >= NEAR, crosses], axis=1)[..., 0]
        rows, columns = self.owner.shape
        scale = self.camera.focal * OVERSAMPLED / np.where(there, points[..., 2], 1.0)
        x = points[..., 0] * scale + columns / 2
        y = points[..., 1] * scale + self.camera.horizon * OVERSAMPLED
        first = [np.where(there, side, 1e9).min(axis=1) for side in (x, y)]
        last = [np.where(there, side, -1e9).max(axis=1) + 1 for side in (x, y)]
        box = np.stack([first[0], last[0], first[1], last[1]], axis=1)
        return np.clip(np.floor(box), 0, [columns, columns, rows, rows]).astype(np.int64)

    def _draw_one(self, number: int, forms: list[np.ndarray], box: tuple[int, int, int, int], texture: Texture) -> None:
        left, right, top, bottom = box
        x, y = self.x[left:right], self.y[top:bottom, None]
        to_u, to_v, to_w = forms
        w = to_w[0] * x + (to_w[1] * y + to_w[2])
        nearest = w > self.inverse_depth[top:bottom, left:right]
        if not nearest.any():
            return
        nu, nv = (form[0] * x + (form[1] * y + form[2]) for form in (to_u, to_v))
        rows, columns = np.nonzero(nearest & (nu >= 0) & (nu < w) & (nv >= 0) & (nv < w))
        if not len(rows):
            return
        w = w[rows, columns]
        u, v = nu[rows, columns] / w, nv[rows, columns] / w
        middle = len(rows) // 2
        level = self._level(texture.levels, forms, float(u[middle]), float(v[middle]), float(w[middle]))
        height, width = level.shape
        texels = level[
            np.minimum((v * F32(height)).astype(np.int64), height - 1),
            np.minimum((u * F32(width)).astype(np.int64), width - 1),
        ]
        solid = texels >> 24 > 0
        if not solid.all():
            rows, columns, w, texels = rows[solid], columns[solid], w[solid], texels[solid]
        rows, columns = rows + top, columns + left
        self.inverse_depth[rows, columns] = w
        self.colours[rows, columns] = texels
        self.owner[rows, columns] = number

    def _level(self, levels: list[np.ndarray], forms: list[np.ndarray], u: float, v: float, w: float) -> np.ndarray:
        """The coarsest level that still has a texel a ray, at one place of the rectangle."""
        to_u, to_v, to_w = ([float(value) for value in form] for form in forms)
        step = 1 / (self.camera.focal * OVERSAMPLED * w)  # of a ray, over the depth
        height, width = levels[0].shape
        sideways = abs(to_u[0] - u * to_w[0]) * step * width  # texels a ray
        downwards = abs(to_v[1] - v * to_w[1]) * step * height
        texels, level = max(sideways / 2, downwards), 0  # walls seen at a slant may alias a little sideways
        while texels >= 1.5 and level < len(levels) - 1:
            texels, level = texels / 2, level + 1
        return levels[level]


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 3) cross products."""
    (a0, a1, a2), (b0, b1, b2) = a.T, b.T
    return np.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], axis=1)
