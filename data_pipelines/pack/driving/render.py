"""A sequence, frame by frame: pictures and label maps of one keyed scene."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipelines.pack.driving import raster
from data_pipelines.pack.driving.ground import LABELS, Ground
from data_pipelines.pack.driving.keyed import Keyed
from data_pipelines.pack.driving.models import Face
from data_pipelines.pack.driving.raster import F32, OVERSAMPLED, Camera, Frame, Texture, unpacked
from data_pipelines.pack.driving.scene import draw_scene

FIRST_THING = 24
"""From this label id on, instances are told apart."""


class Picture(NamedTuple):
    """One moment: image (H, W, 3) uint8, ids of labels (H, W) uint8, ids of instances (H, W) uint16.

    An instance's id is 1000 * label id + number where things are told apart, and the label id elsewhere.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray


def render(keyed: Keyed, frames: int, frames_per_second: float, height: int, width: int) -> Iterator[Picture]:
    """All frames of the sequence that `keyed` names."""
    renderer = _Renderer(keyed, frames / frames_per_second, height, width)
    for number in range(frames):
        yield renderer.picture(number / frames_per_second)


class _Renderer:
    """A scene with all that does not change while time goes by."""

    def __init__(self, keyed: Keyed, seconds: float, height: int, width: int) -> None:
        self.size = height, width
        self.scene = draw_scene(keyed.stream("scene"), seconds)
        self.ground = Ground(keyed.stream("ground"), self.scene.line, self.scene.profile)
        bodies = [(0, face) for face in self.scene.fixed]
        bodies += [(number + 1, face) for number, body in enumerate(self.scene.bodies) for face in body.faces]
        self.owners = np.array([number for number, _ in bodies])
        self.faces: list[Face] = [face for _, face in bodies]
        self.corners, self.across, self.down = (
            np.array([getattr(face, name) for face in self.faces], np.float64) for name in ("corner", "across", "down")
        )
        self.textures = [[Texture(moment) for moment in face.moments] for face in self.faces]
        labels = np.array([face.label for face in self.faces])
        things = np.unique(
            np.stack([self.owners, [face.part for face in self.faces]], axis=1), axis=0, return_inverse=True
        )
        numbers = things[1].reshape(-1) % 1000
        grounds = [LABELS[owner] for owner in sorted(LABELS)]  # found from the end, by negative owners
        self.labels = np.concatenate([labels, grounds]).astype(np.uint8)
        self.instances = np.concatenate(
            [np.where(labels >= FIRST_THING, labels * 1000 + numbers, labels), grounds]
        ).astype(np.uint16)
        light = keyed.stream("light")
        self.sun = np.array([light.uniform(-0.7, 0.7), light.uniform(-0.7, 0.7), 0.6])
        self.contrast, self.gain = light.uniform(0.1, 0.45), light.uniform(0.75, 1.15)
        self.tint = np.array([light.uniform(0.94, 1.06), 1.0, light.uniform(0.92, 1.08)], F32)
        self.haze = np.array(light.choice([(188, 194, 202), (206, 204, 198), (160, 174, 192)]), F32)
        self.visibility = light.uniform(120, 420)
        self.grain = (light.noise(height + 64, width + 64) * F32(9)).astype(np.int16) - 4
        self.shakes = [light.uniform(-1, 1) for _ in range(4096)]
        self.horizon = light.uniform(0.40, 0.48) * height
        self.focal = 1.1 * width

    def picture(self, seconds: float) -> Picture:
        """The view at a time."""
        along = self.scene.ego.along(seconds)
        camera, turned = self._camera(along, seconds)
        frame = Frame(*self.size, camera)
        self.ground.draw(frame, along, turned)
        points, forward, right = self.scene.poses(seconds, camera.eye)
        self._shadows(frame, points, forward, right)
        corners, across, down = self._placed(points, forward, right)
        shades = self._shades(across, down)
        camera_corners = frame.to_camera(corners)
        frame.draw(camera_corners, frame.turned(across), frame.turned(down), self._moments(seconds))
        return self._finished(frame, shades, seconds)

    def _camera(self, along: float, seconds: float) -> tuple[Camera, float]:
        """On the centre line's side, looking the way the street goes a little ahead, on uneven ground."""
        ego, line = self.scene.ego, self.scene.line
        eye = line.place(np.array(along), np.array(ego.across + ego.drift * seconds))
        _, direction, turned = line.at(np.array(along + 3.0))
        length = np.sqrt(direction[0] * direction[0] + direction[1] * direction[1])
        beat = seconds * 5
        step, share = int(beat), beat - int(beat)
        shake = self.shakes[step] + share * (self.shakes[step + 1] - self.shakes[step])
        bump = shake * min(ego.speed, 10) * 0.0004 * self.focal
        return Camera(eye, direction / length, ego.height, self.horizon + bump, self.focal), float(turned)

    def _placed(self, points: np.ndarray, forward: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, ...]:
        """Corners and edges of all rectangles in the world, (N, 3) each as (z, x, up)."""
        points = np.concatenate([np.zeros((1, 2)), points])[self.owners]
        forward = np.concatenate([[(0.0, 1.0)], forward])[self.owners]
        right = np.concatenate([[(1.0, 0.0)], right])[self.owners]

        def turned(local: np.ndarray) -> np.ndarray:
            ahead, beside = local[:, :1], local[:, 1:2]
            flat = ahead * forward + beside * right  # (x, z)
            return np.concatenate([flat[:, 1:], flat[:, :1], local[:, 2:]], axis=1)

        corners = turned(self.corners)
        corners[:, 0] += points[:, 1]
        corners[:, 1] += points[:, 0]
        return corners, turned(self.across), turned(self.down)

    def _shades(self, across: np.ndarray, down: np.ndarray) -> np.ndarray:
        """(N + 4,) light of every rectangle in 256ths, that of the grounds last."""
        normal = raster.cross(across, down)
        length = np.sqrt(normal[:, 0] * normal[:, 0] + normal[:, 1] * normal[:, 1] + normal[:, 2] * normal[:, 2])
        facing = normal[:, 0] * self.sun[0] + normal[:, 1] * self.sun[1] + normal[:, 2] * self.sun[2]
        light = (1 - self.contrast) + self.contrast * abs(facing) / np.maximum(length, 1e-9)
        return np.concatenate([np.minimum(np.floor(light * 256), 256), [256.0] * len(LABELS)]).astype(np.uint16)

    def _moments(self, seconds: float) -> list[Texture]:
        """The texture of every rectangle, walkers in step with their speed."""
        chosen = []
        for owner, moments in zip(self.owners, self.textures, strict=True):
            if len(moments) == 1:
                chosen.append(moments[0])
                continue
            body = self.scene.bodies[owner - 1]
            pace = abs(body.speed) + abs(body.drift)
            chosen.append(moments[int(seconds * pace * 2.6 + owner) % len(moments) if pace else 1])
        return chosen

    def _shadows(self, frame: Frame, points: np.ndarray, forward: np.ndarray, right: np.ndarray) -> None:
        """Darken the ground below vehicles, before anything stands on it."""
        chosen = [number for number, body in enumerate(self.scene.bodies) if body.shadow is not None]
        if not chosen:
            return
        sizes = np.array([self.scene.bodies[number].shadow for number in chosen]) + 0.3
        points, ahead, beside = points[chosen], forward[chosen] * sizes[:, :1], right[chosen] * sizes[:, 1:]
        corner = points - 0.5 * ahead - 0.5 * beside
        flat = np.zeros((len(chosen), 1))
        corners, across, down = (
            np.concatenate([values[:, 1:], values[:, :1], flat], axis=1) for values in (corner, ahead, beside)
        )
        frame.darken(frame.to_camera(corners), frame.turned(across), frame.turned(down))

    def _finished(self, frame: Frame, shades: np.ndarray, seconds: float) -> Picture:
        """Light, haze, exposure and grain; several rays to one pixel."""
        height, width = self.size
        owners = frame.owner[::OVERSAMPLED, ::OVERSAMPLED]
        lit = unpacked(frame.colours).astype(np.uint16) * shades[frame.owner][..., None] >> 8
        rays = lit.reshape(height, OVERSAMPLED, width, OVERSAMPLED, 3)
        mean = (rays[:, 0, :, 0] + rays[:, 0, :, 1] + rays[:, 1, :, 0] + rays[:, 1, :, 1]).astype(F32) / F32(4)
        near = frame.inverse_depth[::OVERSAMPLED, ::OVERSAMPLED]
        thick = np.where(
            near > 0, np.minimum(F32(1 / self.visibility) / np.maximum(near, F32(1e-4)), F32(0.75)), F32(0)
        )
        hazy = mean + thick[..., None] * (self.haze - mean)
        shift = Keyed("grain", int(seconds * 1000))
        down, right = shift.integer(0, 63), shift.integer(0, 63)
        exposed = hazy * F32(self.gain) * self.tint + self.grain[down : down + height, right : right + width, None]
        image = np.clip(exposed, 0, 255).astype(np.uint8)
        return Picture(image, self.labels[owners], self.instances[owners])
