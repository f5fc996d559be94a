"""RandAugment: a few operations drawn from a fixed list, all of about one strength.

Source: Cubuk 2019, arXiv:1909.13719; the operations, their ranges and the jitter of the strength are those of timm's
"rand-m9-mstd0.5-inc1", which BEiT and MAE fine-tune with: stronger always means farther from the image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import Field

from data_pipelines.base import Strict

STRONGEST = 10.0
GREY = 128
"""Fills what shears, shifts and turns uncover."""

Operation = Callable[[Image.Image, float, float], Image.Image]
"""Of a picture, a strength in [0, 1], and a direction, 1 or -1."""


class RandAugment(Strict):
    """How many operations, and how strong."""

    operations: int = Field(2, ge=0)
    """Drawn with replacement; each is carried out with probability `probability`."""
    strength: float = Field(9.0, ge=0, le=STRONGEST)
    jitter: float = Field(0.5, ge=0)
    """Standard deviation of the strength."""
    probability: float = Field(0.5, ge=0, le=1)

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change an image: (H, W, C) uint8 to the same."""
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        for _ in range(self.operations):
            number, happens, direction = rng.integers(len(OPERATIONS)), rng.random(), rng.choice((-1.0, 1.0))
            strength = float(np.clip(rng.normal(self.strength, self.jitter), 0, STRONGEST)) / STRONGEST
            if happens < self.probability:
                picture = OPERATIONS[number](picture, strength, float(direction))
        return np.asarray(picture).reshape(image.shape)


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    fill = GREY if picture.mode == "L" else (GREY, GREY, GREY)
    transform = Image.Transform.AFFINE
    return picture.transform(picture.size, transform, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _rotate(picture: Image.Image, strength: float, direction: float) -> Image.Image:
    fill = GREY if picture.mode == "L" else (GREY, GREY, GREY)
    return picture.rotate(30 * strength * direction, Image.Resampling.BICUBIC, fillcolor=fill)


def _shear_x(picture: Image.Image, strength: float, direction: float) -> Image.Image:
    return _affine(picture, (1, 0.3 * strength * direction, 0, 0, 1, 0))


def _shear_y(picture: Image.Image, strength: float, direction: float) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0.3 * strength * direction, 1, 0))


def _shift_x(picture: Image.Image, strength: float, direction: float) -> Image.Image:
    return _affine(picture, (1, 0, 0.45 * strength * direction * picture.width, 0, 1, 0))


def _shift_y(picture: Image.Image, strength: float, direction: float) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0, 1, 0.45 * strength * direction * picture.height))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda picture, strength, direction: kind(picture).enhance(max(0.1, 1 + 0.9 * strength * direction))


def _posterize(picture: Image.Image, strength: float, direction: float) -> Image.Image:
    bits = 4 - int(4 * strength)
    return ImageOps.posterize(picture, bits) if bits else picture.point(lambda value: 0)


def _solarize(picture: Image.Image, strength: float, direction: float) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(256 * strength))


def _solarize_add(picture: Image.Image, strength: float, direction: float) -> Image.Image:
    added = int(110 * strength)
    return picture.point(lambda value: min(255, value + added) if value < GREY else value)


OPERATIONS: tuple[Operation, ...] = (
    lambda picture, strength, direction: ImageOps.autocontrast(picture),
    lambda picture, strength, direction: ImageOps.equalize(picture),
    lambda picture, strength, direction: ImageOps.invert(picture),
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
)
