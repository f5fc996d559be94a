"""Two augmented views of one image: what joint-embedding methods pull together.

Every number is drawn on the CPU in `TwoCrops.sample`, by the slot's key, and shipped as a few floats a view; light,
colour and, for small images, the crop itself are then done on the device for the whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.batch import Batch, Sample
from data_pipelines.decode import EncodedImage
from data_pipelines.views import Draw
from data_pipelines.views.image import Crop, ImageView, central_square, decode_windows

if TYPE_CHECKING:
    from torch import Tensor


class Augmentation(Crop):
    """How one view is drawn. The defaults are BYOL's (arXiv:2006.07733, appendix B) without blur and solarisation."""

    area: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image that is kept."""
    rotation: float = Field(default=0.0, ge=0, le=180)
    """Largest turn to either side, in degrees; needs `crop_on: device`."""
    shift: float = Field(default=0.0, ge=0, le=1)
    """How far a crop may leave the image, as a share of its side; needs `crop_on: device`."""
    jitter: float = Field(default=0.8, ge=0, le=1)
    """Probability that brightness, contrast, gamma, saturation and hue are changed."""
    brightness: float = Field(default=0.4, ge=0, le=1)
    """Largest relative change to either side, as in the next two."""
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """Largest change to either side, in turns of the colour circle."""
    gamma: tuple[float, float] = (1.0, 1.0)
    """Least and largest exponent."""
    grey: float = Field(default=0.2, ge=0, le=1)
    """Probability that colour is dropped."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Least and largest width of the blur, in pixels."""
    solarize: float = Field(default=0.0, ge=0, le=1)
    """Probability that bright pixels are inverted."""

    @model_validator(mode="after")
    def _exponents_and_widths_rise(self) -> Self:
        for name, (low, high) in {"gamma": self.gamma, "blur_sigma": self.blur_sigma}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} must be positive and rise, got {(low, high)}")
        return self

    def affine(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the (2, 3) float32 matrix of `data_pipelines.device.affine_crop`.

        A window of the crop's shape, turned about its middle. The middle goes as far as the window stays in the image,
        and `shift` beyond: the smaller the window, the farther.
        """
        area, aspect = self.shape(rng)
        half = np.minimum(np.sqrt([area * aspect, area / aspect]), 1.0)  # of the image's side, (x, y)
        angle = math.radians(rng.uniform(-self.rotation, self.rotation))
        middle = rng.uniform(-1, 1, size=2) * (1 - half + 2 * self.shift)  # the image's side is 2
        half[0] *= -1 if self.flips(rng) else 1
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return np.column_stack([turn * half, middle]).astype(np.float32)

    def photometric(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the (7,) float32 parameters of `data_pipelines.device.photometric`."""
        jittered, grey, blurred, solarized = rng.random(4) < (self.jitter, self.grey, self.blur, self.solarize)
        around_one = np.array([self.brightness, self.contrast, self.saturation])
        brightness, contrast, saturation = rng.uniform(1 - around_one, 1 + around_one)
        hue, gamma, sigma = rng.uniform(-self.hue, self.hue), rng.uniform(*self.gamma), rng.uniform(*self.blur_sigma)
        if not jittered:
            brightness, contrast, gamma, saturation, hue = 1, 1, 1, 1, 0
        saturation *= not grey
        return np.array([brightness, contrast, gamma, saturation, hue, sigma * blurred, solarized], dtype=np.float32)


class TwoCrops(ImageView):
    """Two views of each image.

    Fields of a batch: view0 and view1 (B, C, H, W) float32, label (B,) int64 (-1 where absent).
    """

    crop_on: Literal["cpu", "device"] = "cpu"
    """`cpu`: antialiased rectangles, for images larger than `image_size`. `device`: one affine pass a view, which can
    also turn and shift, for images of about `image_size` (others are first cut to their central square)."""
    first: Augmentation = Augmentation()
    second: Augmentation | None = None
    """Of the second view; like the first when unset."""

    @model_validator(mode="after")
    def _rectangles_stand_upright(self) -> Self:
        if self.crop_on == "cpu" and any(a.rotation or a.shift for a in self.augmentations):
            raise ValueError("rotation and shift need crop_on: device; a crop on the CPU is an upright rectangle")
        return self

    @property
    def augmentations(self) -> tuple[Augmentation, Augmentation]:
        """Of view 0 and view 1."""
        return self.first, self.second or self.first

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        image = self.encoded(sample)
        fields = {"label": self.label(sample)}
        if self.crop_on == "device":
            fields["image"] = central_square(image.pixels()[0], self.image_size)
        return fields | self.drawn(image, (0, 1), draw)

    def drawn(self, image: EncodedImage, views: Sequence[int], draw: Draw) -> dict[str, np.ndarray]:
        """All that is drawn for some views of one image."""
        rngs = {view: draw.rng("crop", view) for view in views}
        if self.crop_on == "device":
            crops = {f"affine{view}": self.augmentations[view].affine(rng) for view, rng in rngs.items()}
        else:
            windows = [
                self.augmentations[view].draw(image.height, image.width, self.image_size, rng)
                for view, rng in rngs.items()
            ]
            decoded = decode_windows(image, windows, self.image_size)
            crops = {f"crop{view}": crop for view, crop in zip(views, decoded, strict=True)}
        changes = {
            f"photometric{view}": self.augmentations[view].photometric(draw.rng("photometric", view)) for view in views
        }
        return crops | changes

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`."""
        views = {f"view{view}": self._view(batch, view) for view in (0, 1)}
        return replace(batch, fields={"label": batch["label"], **views})

    def _view(self, batch: Batch, view: int) -> Tensor:
        from data_pipelines.device import affine_crop, normalize, photometric, to_float

        if self.crop_on == "device":
            images = affine_crop(to_float(self.uncropped(batch, view)), batch[f"affine{view}"], self.image_size)
        else:
            images = to_float(batch[f"crop{view}"])
        images = photometric(images, batch[f"photometric{view}"], self._blur_radius(view))
        return normalize(images, self.mean, self.std)

    def uncropped(self, batch: Batch, view: int) -> Tensor:
        """(B, H, W, C) uint8, what a view is cropped from on the device."""
        return batch["image"]

    def _blur_radius(self, view: int) -> int:
        """A tenth of the image is the kernel, as in SimCLR (arXiv:2002.05709, appendix A)."""
        return max(1, round(self.image_size / 20)) if self.augmentations[view].blur else 0
