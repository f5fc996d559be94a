"""Pictures inside the page: data URIs of bounded size, so that the page is one file that mails well."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import Image, ImageSequence

from evals.report.record import RunRecord, Sketch

MAX_PIXELS = 40_000_000
"""A larger picture is not opened at all."""

MAX_SIDE = 1400
"""Longer pictures are made smaller."""

PNG_BYTES = 150_000
"""Beyond this a picture becomes a JPEG."""

PAGE_BYTES = 2_000_000
"""What the pictures of one page may weigh together."""

BLOCKY_SIDE = 64
"""Images up to this size are magnified with square pixels."""


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        alt: says what is to be seen.
    """

    uri: str
    width: int
    height: int
    alt: str = ""


class Room:
    """What the pictures of a part of the page may still weigh."""

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes

    def takes(self, picture: Picture | None) -> TypeGuard[Picture]:
        """Whether the picture is there and fits; then its weight is spent."""
        if picture is None or len(picture.uri) > self._left_bytes:
            return False
        self._left_bytes -= len(picture.uri)
        return True


def encode(image: Image.Image, alt: str = "") -> Picture:
    """PNG where that is small, JPEG else."""
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    data, kind = _bytes(image, "png"), "png"
    if len(data) > PNG_BYTES:
        data, kind = _bytes(image.convert("RGB"), "jpeg", quality=85), "jpeg"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *image.size, alt)


def thumbnail(pixels: np.ndarray, side: int = 96, alt: str = "") -> Picture:
    """A small picture of one decoded image.

    Args:
        pixels: (H, W) or (H, W, C) uint8, C 1 or 3.
        side: the longer side at most.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    image.thumbnail((side, side))
    return encode(image, alt)


def read_sketch(path: Path, alt: str) -> Picture | None:
    """A picture of the run's folder, decoded and encoded anew; None where it is none (any more)."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["PNG"]) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.width * image.height > MAX_PIXELS:
                return None
            return encode(image.convert("RGB"), alt)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def read_animation(path: Path, alt: str) -> Picture | None:
    """An animation of the run's folder, decoded and encoded anew; None where it is none (any more)."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["WEBP"]) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.width * image.height * getattr(image, "n_frames", 1) > MAX_PIXELS:
                return None
            first, *rest = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
            first.info.clear()
            duration = image.info.get("duration", 500)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    data = _bytes(first, "webp", save_all=True, append_images=rest, duration=duration, loop=0, quality=80)
    return Picture(f"data:image/webp;base64,{base64.b64encode(data).decode()}", *first.size, alt)


@dataclass(frozen=True)
class SketchFigure:
    """One sketch at a step, in the page."""

    name: str
    step: int
    picture: Picture


def sketch_figures(run: RunRecord, room_bytes: int) -> list[SketchFigure]:
    """The newest sketch of each name, and where it fits the first and the middle one, oldest first."""
    chosen: list[Sketch] = []
    for place in (1.0, 0.0, 0.5):
        for name in sorted({sketch.name for sketch in run.sketches}):
            of_name = [sketch for sketch in run.sketches if sketch.name == name]
            sketch = of_name[round(place * (len(of_name) - 1))]
            if sketch not in chosen:
                chosen.append(sketch)
    room, figures = Room(room_bytes), []
    for sketch in chosen:
        picture = read_sketch(sketch.path, f"{sketch.name.replace('_', ' ')} of run {run.name} at step {sketch.step}")
        if room.takes(picture):
            figures.append(SketchFigure(sketch.name, sketch.step, picture))
    return sorted(figures, key=lambda figure: (figure.name, figure.step))


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
