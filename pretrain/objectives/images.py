"""What image objectives share: the size they work at, and pictures of what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.base import UserError
from data_pipelines.views.image import ImageView
from pretrain.objective import DataFacts


def working_size(asked: int | None, facts: DataFacts) -> tuple[int, int]:
    """Side of the square crops, and their channels.

    Args:
        asked: the recipe's `image_size`; None takes the data's.

    Raises:
        UserError: the data holds no images, or images of many or oblong sizes and none was asked for.
    """
    if facts.channels is None:
        raise UserError("recipe objective: the data holds no images; choose an objective for text, or other data")
    if asked is not None:
        return asked, facts.channels
    size = facts.image_size
    if size is None or size[0] != size[1]:
        found = "differ in size" if size is None else f"are {size[0]}x{size[1]}"
        raise UserError(f"recipe objective: the images {found}; set objective.image_size to the side of the crops")
    return size[0], facts.channels


def preprocessor(view: ImageView) -> dict[str, Any]:
    """What an image needs before the network sees it, as plain data for an export."""
    return {
        "image_size": view.image_size,
        "channels": view.channels,
        "mean": list(view.mean),
        "std": list(view.std),
        "resize": "shorter side to image_size, bicubic, central square",
    }


def to_unit_range(images: Tensor, view: ImageView) -> Tensor:
    """(B, C, H, W) normalised images back in [0, 1]."""
    mean, std = images.new_tensor([view.mean, view.std])[:, None, :, None, None]
    return images * std + mean


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) to (B, N, P): patches row by row, P = patch_size * patch_size * C, channel last."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size * patch_size * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify` for square images."""
    batch, count, values = patches.shape
    side = int(count**0.5)
    grid = patches.reshape(batch, side, side, patch_size, patch_size, values // patch_size**2)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, side * patch_size, side * patch_size)


def picture(rows: Sequence[Tensor]) -> np.ndarray:
    """A table of images as one picture.

    Args:
        rows: each (n, C, H, W) in [0, 1], C of 1 or 3; the rows of the table.

    Returns:
        (rows * H, n * W, 3) uint8, one pixel of white between images.
    """
    table = torch.stack([row.detach().float().cpu().clamp(0, 1) for row in rows])  # (R, n, C, H, W)
    table = table.expand(-1, -1, 3, -1, -1)
    table = torch.nn.functional.pad(table, (0, 1, 0, 1), value=1.0)
    high, wide = table.shape[-2:]
    flat = table.permute(0, 3, 1, 4, 2).reshape(len(rows) * high, -1, 3)[:-1, :-1]
    assert flat.shape[1] == len(rows[0]) * wide - 1
    return (flat * 255).round().to(torch.uint8).numpy()
