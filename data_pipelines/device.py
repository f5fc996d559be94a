"""What is done to whole batches on the device, from parameters and keys that each row brings along.

Images are float in [0, 1], (B, C, H, W), unless said otherwise. Nothing here waits for the device or draws from torch's
own generators: bulk noise is a function of a 64-bit key a row, the same on a CPU and on CUDA (docs/order.md, rule 9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.hashing import FIRST_FACTOR, GOLDEN, SECOND_FACTOR, word

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in what the eye sees as brightness (ITU-R BT.601)."""


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - 2**64 if value >= 2**63 else value


def mix_torch(*words: int | str | Tensor) -> Tensor:
    """`data_pipelines.hashing.mix` in int64 torch ops: the same bits, read as signed numbers.

    Args:
        words: names, numbers and int64 tensors of one device; tensors broadcast.

    Returns:
        int64, of the tensors' common shape.
    """
    device = next((w.device for w in words if isinstance(w, Tensor)), torch.device("cpu"))
    state = torch.zeros((), dtype=torch.int64, device=device)
    for value in words:
        state = _avalanche(state ^ (value.long() if isinstance(value, Tensor) else _signed(int(word(value)))))
    return state


def _avalanche(state: Tensor) -> Tensor:
    """splitmix64; int64 products wrap like uint64 ones, shifts must be told to bring in zeros."""
    state = state + _signed(GOLDEN)
    state = (state ^ _logical_shift(state, 30)) * _signed(FIRST_FACTOR)
    state = (state ^ _logical_shift(state, 27)) * _signed(SECOND_FACTOR)
    return state ^ _logical_shift(state, 31)


def _logical_shift(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & (2 ** (64 - bits) - 1)


def keyed_uniform(keys: Tensor, shape: Sequence[int], purpose: str = "uniform") -> Tensor:
    """Noise in [0, 1) that depends on each row's key alone, not on the row's place in the batch.

    Args:
        keys: (B,) int64.
        shape: of one row.

    Returns:
        (B, *shape) float32 on the device of `keys`.
    """
    numbers = torch.arange(math.prod(shape), device=keys.device)
    bits = mix_torch(purpose, keys[:, None], numbers)
    return (_logical_shift(bits, 40).float() * 2.0**-24).view(len(keys), *shape)  # 24 bits are what a float32 holds


def keyed_normal(keys: Tensor, shape: Sequence[int], purpose: str = "normal") -> Tensor:
    """Standard normal noise by key; see `keyed_uniform`.

    Source: Box and Muller 1958.
    """
    radius = (-2 * torch.log1p(-keyed_uniform(keys, shape, f"{purpose}/radius"))).sqrt()
    return radius * torch.cos(2 * math.pi * keyed_uniform(keys, shape, f"{purpose}/angle"))


def to_float(images: Tensor) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract each channel's mean and divide by its std, both in units of [0, 1]."""
    statistics = images.new_tensor([mean, std])[:, :, None, None]  # (2, C, 1, 1)
    return (images - statistics[0]) / statistics[1]


def affine_crop(images: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Crop, turn, shift, zoom and flip in one bilinear pass; beyond the edge the image is mirrored.

    Args:
        matrices: (B, 2, 3), from places of the result to places of the image, both in [-1, 1] (x first).
        size: height and width of the result.
    """
    grid = F.affine_grid(matrices, [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def luma(images: Tensor) -> Tensor:
    """(B, 1, H, W) brightness of grey or colour images."""
    if images.shape[1] == 1:
        return images
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))[:, None]


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each row by its (B,) `factor`; 1 changes nothing."""
    return (images * _per_row(factor)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Stretch each row about its mean brightness by its (B,) `factor`; 1 changes nothing."""
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_row(factor)).clamp(0, 1)


def adjust_gamma(images: Tensor, exponent: Tensor) -> Tensor:
    """Raise each row to its (B,) `exponent`; 1 changes nothing, above 1 darkens."""
    return images ** _per_row(exponent)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move each row's colours away from grey by its (B,) `factor`; 0 is grey, 1 changes nothing."""
    return torch.lerp(luma(images), images, _per_row(factor)).clamp(0, 1)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each row's colours about the grey axis, brightness kept.

    Args:
        turns: (B,) in turns of the colour circle, from red over green to blue; 0 changes nothing.

    A rotation in YIQ space is one matrix a row; in HSV space, as torchvision does it, the same turn is a dozen passes
    over the batch. Colours agree in direction, saturated ones differ a little in strength.
    """
    to_yiq = images.new_tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(turns), torch.ones_like(turns)
    rotation = torch.stack([one, zero, zero, zero, cos, sin, zero, -sin, cos], dim=1).view(-1, 3, 3)
    matrices = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return torch.einsum("bij,bjhw->bihw", matrices, images).clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each row by a Gaussian of its own width; edges are mirrored.

    Args:
        sigma: (B,) in pixels; 0 changes nothing.
        radius: of the kernel, in pixels, < H and W.
    """
    batch, channels, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    spread = sigma.to(images.dtype).clamp(min=1e-3)[:, None]  # so narrow a Gaussian is exactly one pixel
    kernels = torch.exp(-0.5 * (offsets / spread) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)  # (B * C, K)
    rows = F.pad(images, [radius] * 4, mode="reflect").reshape(1, batch * channels, height + 2 * radius, -1)
    rows = F.conv2d(rows, kernels[:, None, None, :], groups=batch * channels)
    rows = F.conv2d(rows, kernels[:, None, :, None], groups=batch * channels)
    return rows.view(batch, channels, height, width)


def solarize(images: Tensor, strength: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is brighter than `threshold` in rows whose (B,) `strength` is 1; leave rows of 0 alone."""
    inverted = torch.where(images >= threshold, 1 - images, images)
    return torch.lerp(images, inverted, _per_row(strength))


PHOTOMETRIC = ("brightness", "contrast", "gamma", "saturation", "hue", "blur", "solarize")
"""Columns of the parameters of `photometric`; the row (1, 1, 1, 1, 0, 0, 0) changes nothing."""


def photometric(images: Tensor, parameters: Tensor, blur_radius: int = 0) -> Tensor:
    """Change light and colour of each row by its own parameters, in the order of `PHOTOMETRIC`.

    Grey is saturation 0. Papers shuffle the jitters' order; one order for all rows lets a batch go through at once.

    Args:
        parameters: (B, 7), see the `adjust_*` functions, `gaussian_blur` and `solarize`.
        blur_radius: of the blur's kernel in pixels; 0 when no row of the run is ever blurred.
    """
    brightness, contrast, gamma, saturation, hue, sigma, solarized = parameters.unbind(dim=1)
    images = adjust_contrast(adjust_brightness(images, brightness), contrast)
    images = adjust_gamma(images, gamma)
    if images.shape[1] == 3:
        images = adjust_hue(adjust_saturation(images, saturation), hue)
    if blur_radius:
        images = gaussian_blur(images, sigma, blur_radius)
    return solarize(images, solarized)
