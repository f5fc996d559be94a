"""What a segmentation head stands on: the encoder under judgement, the same network untrained, or pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipelines.base import digest_of
from data_pipelines.device import normalize
from evals import controls
from pretrain.export import LoadedEncoder


@dataclass(frozen=True)
class Backbone:
    """One of them.

    Attributes:
        digest: names architecture and weights.
        open: a module of one's own, on the CPU: (B, C, H, W) in [0, 1] to features by place (B, D, h, w).
    """

    digest: str
    open: Callable[[], nn.Module]


def backbones(encoder: LoadedEncoder) -> dict[str, Backbone]:
    """By name: "trained", and the controls "random_init" and "raw"."""
    untrained = encoder.random_init(controls.RANDOM_INIT_SEED)
    pixels = PixelMap(encoder)
    return {
        "trained": Backbone(controls.trained(encoder).digest, lambda: EncoderMap(encoder)),
        "random_init": Backbone(controls.random_init(encoder).digest, lambda: EncoderMap(untrained)),
        "raw": Backbone(digest_of(["pixels", pixels.side, pixels.places]), lambda: pixels),
    }


class EncoderMap(nn.Module):
    """Frames of any size to an encoder's features by place.

    The encoder sees squares of its own size, as in pretraining: a frame is stretched to the nearest whole number of
    squares, and their maps are put together again.
    """

    def __init__(self, encoder: LoadedEncoder) -> None:
        super().__init__()
        self.network = copy.deepcopy(encoder.module)
        self._encoder = replace(encoder, module=self.network)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, D, h, w)."""
        view = self._encoder.view
        side, (rows, columns) = view.image_size, squares(frames.shape[-2], frames.shape[-1], view.image_size)
        frames = stretched(frames, rows * side, columns * side)
        tiles = normalize(frames, view.mean, view.std).unflatten(3, (columns, side)).unflatten(2, (rows, side))
        maps = self._encoder.feature_map(tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
        maps = maps.unflatten(0, (len(frames), rows, columns))  # (B, rows, columns, D, h, w)
        return maps.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class PixelMap(nn.Module):
    """The pixels at each place of the encoder's map, which know no more than the input."""

    def __init__(self, encoder: LoadedEncoder) -> None:
        super().__init__()
        view = encoder.view
        with torch.no_grad():
            blank = torch.zeros(1, view.channels, view.image_size, view.image_size)
            self.places = encoder.to("cpu").feature_map(blank).shape[-1]
        self.side = view.image_size

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, C * stride * stride, h, w)."""
        stride = -(-self.side // self.places)
        rows, columns = (self.places * count for count in squares(frames.shape[-2], frames.shape[-1], self.side))
        return F.pixel_unshuffle(stretched(frames, rows * stride, columns * stride), stride)


def squares(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of squares that a frame is cut into, at about its own scale and shape."""
    rows = max(1, round(height / side))
    return rows, max(1, round(width * rows / height))


def stretched(frames: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) to (B, C, height, width), bilinear, without aliasing."""
    if frames.shape[-2:] == (height, width):
        return frames
    return F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
