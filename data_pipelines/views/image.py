"""Single images: as an eval sees them, and cropped and masked for a masked autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_pipelines.base import Strict
from data_pipelines.batch import Batch, Sample
from data_pipelines.decode import EncodedImage, decode_image, decode_label, image_bytes, shrink_factor
from data_pipelines.views import Draw
from data_pipelines.views.masks import block_mask, random_mask

if TYPE_CHECKING:
    from torch import Tensor

NO_LABEL = -1
LEAST_OVERSIZE = 2
"""Pixels that a picture decoded smaller has along a crop's side for one of the crop; with fewer it would show."""


def default_mean(channels: int) -> tuple[float, ...]:
    """Per channel, in [0, 1]: ImageNet's for colour, the middle otherwise."""
    return (0.485, 0.456, 0.406) if channels == 3 else (0.5,) * channels


def default_std(channels: int) -> tuple[float, ...]:
    """Per channel, in [0, 1]: ImageNet's for colour, half the range otherwise."""
    return (0.229, 0.224, 0.225) if channels == 3 else (0.5,) * channels


class Box(NamedTuple):
    """A rectangle of an image in pixels; right and bottom are the first beyond it."""

    left: float
    top: float
    right: float
    bottom: float


class Crop(Strict):
    """A random rectangle of the image, stretched to the network's size."""

    area: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of the image that is kept."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width / height, drawn uniformly in the logarithm."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability that left and right are exchanged."""

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must rise within (0, 1], got {self.area}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect must be positive and rise, got {self.aspect}")
        return self

    def shape(self, rng: np.random.Generator) -> tuple[float, float]:
        """Draw (area, aspect)."""
        log_aspect = rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1]))
        return rng.uniform(*self.area), math.exp(log_aspect)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """Draw a rectangle of whole pixels; the largest central one of a legal aspect when ten draws do not fit.

        Source: Szegedy 2014, arXiv:1409.4842, section 6; the fallback is torchvision's.
        """
        for _ in range(10):
            area, aspect = self.shape(rng)
            crop_width = round(math.sqrt(area * height * width * aspect))
            crop_height = round(math.sqrt(area * height * width / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left = int(rng.integers(width - crop_width + 1))
                top = int(rng.integers(height - crop_height + 1))
                return Box(left, top, left + crop_width, top + crop_height)
        aspect = min(max(width / height, self.aspect[0]), self.aspect[1])
        crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
        return central_box(height, width, max(crop_height, 1), max(crop_width, 1))

    def flips(self, rng: np.random.Generator) -> bool:
        """Draw whether left and right are exchanged."""
        return bool(rng.random() < self.flip)

    def decode(self, image: EncodedImage, size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a crop and decode for it: (size, size, C) uint8, stretched and perhaps flipped."""
        [crop] = decode_windows(image, [self.draw(image.height, image.width, size, rng)], size)
        return crop

    def draw(self, height: int, width: int, size: int, rng: np.random.Generator) -> Window:
        """Draw what of an image becomes a crop of `size`."""
        return Window.around(self.box(height, width, rng), self.flips(rng), height, width, size)


class Window(NamedTuple):
    """A crop that is drawn and not yet cut.

    Attributes:
        box: its edges are multiples of `shrink`.
        flip: left and right are exchanged.
        shrink: 1, 2, 4 or 8; how much smaller the image may be decoded for it.
    """

    box: Box
    flip: bool
    shrink: int

    @classmethod
    def around(cls, box: Box, flip: bool, height: int, width: int, size: int) -> Window:
        """The window nearest to a box whose edges are whole pixels of the image as it will be decoded."""
        left, top, right, bottom = box
        shrink = shrink_factor(min(right - left, bottom - top) / (size * LEAST_OVERSIZE))
        columns, rows = width // shrink, height // shrink
        edges = zip(box, (columns, rows, columns, rows), strict=True)
        return cls(Box(*(min(int(edge / shrink + 0.5), most) * shrink for edge, most in edges)), flip, shrink)

    def cut(self, image: np.ndarray, shrunk: int, size: int) -> np.ndarray:
        """(size, size, C) of an image that was decoded smaller by the factor `shrunk`; both uint8."""
        left, top, right, bottom = (edge // shrunk for edge in self.box)
        return stretch(image[top:bottom, left:right], size, size, self.flip)


def decode_windows(image: EncodedImage, windows: Sequence[Window], size: int) -> list[np.ndarray]:
    """Crops of one image, decoded once and no larger than they need, each (size, size, C) uint8."""
    pixels, shrunk = image.pixels(min(window.shrink for window in windows))
    return [window.cut(pixels, shrunk, size) for window in windows]


def central_box(height: int, width: int, crop_height: float, crop_width: float) -> Box:
    """The rectangle of that size about the image's middle."""
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return Box(left, top, left + crop_width, top + crop_height)


def resize(image: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Antialiased bicubic resampling of a rectangle: (H, W, C) uint8 -> (height, width, C) uint8."""
    if box == (0, 0, width, height) and image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return resized.reshape(height, width, image.shape[2])


def stretch(image: np.ndarray, height: int, width: int, flip: bool = False) -> np.ndarray:
    """`resize` of the whole image by torch, perhaps flipped: within 1 of 255, at a fifth of the time.

    Which of the two roundings is found depends on the processor, so what is packed for good goes through `resize`.
    """
    import torch

    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    if image.shape[:2] != (height, width):
        planes = pixels.permute(2, 0, 1)[None]
        planes = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)
        pixels = planes[0].permute(1, 2, 0)
    return (pixels.flip(1) if flip else pixels).numpy()


def central_square(image: np.ndarray, size: int, shorter_side: int | None = None) -> np.ndarray:
    """The middle of an image: (H, W, C) uint8 -> (size, size, C).

    Args:
        shorter_side: pixels of the image's shorter side before a square of `size` is cut out; `size` when None.
    """
    height, width = image.shape[:2]
    side = min(height, width) * size / (shorter_side or size)
    return resize(image, central_box(height, width, side, side), size, size)


class ImageView(Strict):
    """What all views of images share: how to decode one, and the numbers a network is fed with."""

    image_size: int = Field(gt=0)
    """Height and width that the network sees, in pixels."""
    channels: Literal[1, 3] = 3
    """1 grey, 3 colour; other images are converted."""
    mean: tuple[float, ...] = Field(default_factory=lambda data: default_mean(data.get("channels", 3)))
    """Per channel, or one for all, in [0, 1]; ImageNet's for colour when unset, 0.5 otherwise."""
    std: tuple[float, ...] = Field(default_factory=lambda data: default_std(data.get("channels", 3)))
    """Like `mean`."""

    @field_validator("mean", "std", mode="after")
    @classmethod
    def _one_for_all(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        return values * info.data.get("channels", 1) if len(values) == 1 else values

    @model_validator(mode="after")
    def _one_statistic_a_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"{self.channels} channels want as many means and stds, got {self.mean} and {self.std}")
        return self

    def decode(self, sample: Sample) -> np.ndarray:
        """(H, W, C) uint8.

        Raises:
            SampleError: there is no image in the sample, or it is damaged.
        """
        return decode_image(image_bytes(sample), self.channels)

    def encoded(self, sample: Sample) -> EncodedImage:
        """Like `decode`, for views that ask for a part of the image."""
        return EncodedImage(image_bytes(sample), self.channels)

    def label(self, sample: Sample) -> np.ndarray:
        """() int64; -1 where the sample has no label."""
        label = decode_label(sample)
        return np.array(NO_LABEL if label is None else label, dtype=np.int64)

    def normalized(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) float32 of about zero mean and unit std."""
        from data_pipelines.device import normalize, to_float

        return normalize(to_float(images), self.mean, self.std)


class PlainImage(ImageView):
    """The whole image, nothing random: shorter side to `image_size`, central square, normalised.

    Fields of a batch: image (B, C, H, W) float32, label (B,) int64 (-1 where absent).
    """

    shorter_side: int | None = Field(default=None, gt=0)
    """Pixels of the shorter side before the central square of `image_size` is cut out; `image_size` when unset."""

    @model_validator(mode="after")
    def _square_fits(self) -> Self:
        if self.shorter_side is not None and self.shorter_side < self.image_size:
            raise ValueError(f"shorter_side={self.shorter_side} holds no square of image_size={self.image_size}")
        return self

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        image = central_square(self.decode(sample), self.image_size, self.shorter_side)
        return {"image": image, "label": self.label(sample)}

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`."""
        return batch.with_fields(image=self.normalized(batch["image"]))


class MaskedImage(ImageView):
    """One random crop and the patches to hide: what a masked autoencoder sees.

    Fields of a batch: image (B, C, H, W) float32, mask (B, N) bool over the patches row by row, True = hidden, the same
    number in every row; label (B,) int64 (-1 where absent).
    """

    patch_size: int = Field(gt=0)
    """Height and width of a patch, in pixels; divides `image_size`."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that is hidden."""
    mask: Literal["random", "block"] = "random"
    """Patches anywhere, or in blocks."""
    crop: Crop = Crop()

    @model_validator(mode="after")
    def _patches_tile_the_image(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} does not divide image_size={self.image_size}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size // self.patch_size,) * 2

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        image = self.crop.decode(self.encoded(sample), self.image_size, draw.rng("crop"))
        return {"image": image, "mask": self._draw_mask(draw.rng("mask")), "label": self.label(sample)}

    def _draw_mask(self, rng: np.random.Generator) -> np.ndarray:
        if self.mask == "block":
            return block_mask(self.grid, self.mask_ratio, rng).reshape(-1)
        return random_mask(math.prod(self.grid), self.mask_ratio, rng)

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`."""
        return batch.with_fields(image=self.normalized(batch["image"]))
