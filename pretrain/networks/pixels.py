"""Raw pixels in the place of an encoder: what a supervised objective makes of the input itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.base import Strict
from pretrain.networks.vision import Features

RAW_SIDE = 32
"""Larger images are averaged down to this side: a linear model on megapixels says nothing more, and fits nowhere."""


def raw_pixels(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels in [0, 1], (B, S * S * C), of normalised images (B, C, H, W); mean and std are (C,)."""
    pixels = images * std[:, None, None] + mean[:, None, None]
    if pixels.shape[-1] > RAW_SIDE:
        pixels = F.adaptive_avg_pool2d(pixels, RAW_SIDE)
    return pixels.flatten(1)


class Pixels(nn.Module):
    """A network without parameters that only undoes the normalisation; opened by `pretrain.export.load_encoder`."""

    class Config(Strict):
        """Of each channel in [0, 1], as the images are normalised."""

        mean: tuple[float, ...]
        std: tuple[float, ...]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        # in the state: a file of weights without tensors is not opened everywhere
        self.register_buffer("mean", torch.tensor(config.mean))
        self.register_buffer("std", torch.tensor(config.std))

    mean: Tensor
    std: Tensor

    def features(self, images: Tensor) -> Features:
        """See `raw_pixels`."""
        return Features(pooled=raw_pixels(images, self.mean, self.std))

    def forward(self, images: Tensor) -> Tensor:
        """The same."""
        return self.features(images).pooled
