"""Views of clips: samples whose images are the frames `00.jpg`, `01.jpg`, ... of a snippet of video.

Only the frames that a view draws are decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch, Sample
from data_pipelines.decode import IMAGE_FIELDS, EncodedImage
from data_pipelines.views import Draw
from data_pipelines.views.image import Crop, ImageView, central_square
from data_pipelines.views.masks import tube_mask
from data_pipelines.views.two_crops import TwoCrops

if TYPE_CHECKING:
    from torch import Tensor


def frame_fields(sample: Sample) -> list[str]:
    """Names of a clip's frames in the order of time; label maps (`19.labels.png`) are none.

    Raises:
        SampleError: the sample has no frames.
    """
    frames = [name for name in sample.fields if _is_frame(name)]
    if not frames:
        raise SampleError(f"no frames among fields {sorted(sample.fields)[:6]}", key=sample.key, shard=sample.shard)
    return sorted(frames, key=lambda name: int(name.partition(".")[0]))


def _is_frame(field: str) -> bool:
    number, _, kind = field.partition(".")
    return number.isdecimal() and kind in IMAGE_FIELDS


class MaskedClip(ImageView):
    """Frames at equal distances, one crop for all of them, and the tubes to hide: what VideoMAE sees.

    Fields of a batch: clip (B, T, C, H, W) float32; mask (B, T / tubelet_size * N) bool over the tubelets, moment by
    moment and row by row, True = hidden, the same places at every moment.

    Source: Tong 2022, arXiv:2203.12602, section 3.
    """

    frames: int = Field(gt=0)
    """T, frames of a clip."""
    stride: int = Field(1, gt=0)
    """Frames of the sample from one of the clip to the next."""
    tubelet_size: int = Field(2, gt=0)
    """Frames a tubelet; divides `frames`."""
    patch_size: int = Field(gt=0)
    """Height and width of a tubelet, in pixels; divides `image_size`."""
    mask_ratio: float = Field(0.9, gt=0, lt=1)
    """Share of the places that is hidden."""
    crop: Crop = Crop()

    @model_validator(mode="after")
    def _tubelets_tile_the_clip(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} does not divide image_size={self.image_size}")
        if self.frames % self.tubelet_size:
            raise ValueError(f"tubelet_size={self.tubelet_size} does not divide frames={self.frames}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tubelets at one moment."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def moments(self) -> int:
        """Tubelets one after the other."""
        return self.frames // self.tubelet_size

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        names, span = frame_fields(sample), (self.frames - 1) * self.stride + 1
        if len(names) < span:
            reason = f"{len(names)} frames, a clip of {self.frames} at stride {self.stride} takes {span}"
            raise SampleError(reason, key=sample.key, shard=sample.shard)
        start = int(draw.rng("clip").integers(len(names) - span + 1))
        frames = [
            EncodedImage(sample.fields[name], self.channels) for name in names[start : start + span : self.stride]
        ]
        # a fresh generator of the same key for every frame: the same crop
        clip = np.stack([self.crop.decode(frame, self.image_size, draw.rng("crop")) for frame in frames])
        mask = tube_mask(self.moments, self.grid, self.mask_ratio, draw.rng("mask"))
        return {"clip": clip, "mask": mask.reshape(-1)}

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`."""
        frames = self.normalized(batch["clip"].flatten(0, 1))
        return batch.with_fields(clip=frames.unflatten(0, (len(batch), self.frames)))


class ClipPair(TwoCrops):
    """Two frames of one clip, each seen through crops of its own; which of the two is the earlier one is drawn too.

    Fields of a batch: view0 and view1 (B, C, H, W) float32, label (B,) int64 (-1 where absent).
    """

    distance: tuple[int, int]
    """Least and largest number of frames from one to the other; 0 takes one frame twice."""
    stills: bool = False
    """Samples without frames are single images: both views are crops of one."""

    @model_validator(mode="after")
    def _distances_rise(self) -> Self:
        if not 0 <= self.distance[0] <= self.distance[1]:
            raise ValueError(f"distance must be at least 0 and rise, got {self.distance}")
        return self

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        if self.stills and not any(map(_is_frame, sample.fields)):
            return self._still(sample, draw)
        names, rng = frame_fields(sample), draw.rng("pair")
        least, largest = self.distance
        if len(names) <= least:
            reason = f"{len(names)} frames, none of them {least} apart"
            raise SampleError(reason, key=sample.key, shard=sample.shard)
        distance = int(rng.integers(least, min(largest, len(names) - 1) + 1))
        first = int(rng.integers(len(names) - distance))
        pair = (first, first + distance) if rng.random() < 0.5 else (first + distance, first)
        fields = {"label": self.label(sample)}
        for view, number in enumerate(pair):
            image = EncodedImage(sample.fields[names[number]], self.channels)
            if self.crop_on == "device":
                fields[f"image{view}"] = central_square(image.pixels()[0], self.image_size)
            fields |= self.drawn(image, (view,), draw)
        return fields

    def _still(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """As `TwoCrops` sees an image, in the fields of a pair of frames."""
        fields = dict(super().sample(sample, draw))
        image = fields.pop("image", None)
        return fields if image is None else {**fields, "image0": image, "image1": image}

    def uncropped(self, batch: Batch, view: int) -> Tensor:
        """See `TwoCrops.uncropped`."""
        return batch[f"image{view}"]
