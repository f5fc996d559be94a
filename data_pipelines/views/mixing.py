"""Mixup and CutMix: each image takes in a part of another one, and of its label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from data_pipelines.base import Strict

if TYPE_CHECKING:
    from torch import Tensor


class Mixing(Strict):
    """How often images are mixed, and how much.

    Every slot draws its own share, or its own rectangle. Its partner is the row as far from the end of the rank's micro
    batch as it is from the start: partners, and they alone, depend on the number of ranks.

    Sources: Zhang 2017, arXiv:1710.09412 (mixup); Yun 2019, arXiv:1905.04899, section 3.1 (CutMix).
    """

    mixup: float = Field(0.8, ge=0)
    """Both parameters of the beta distribution of shares; 0 leaves mixup out."""
    cutmix: float = Field(1.0, ge=0)
    """The same for the area of rectangles; 0 leaves CutMix out. With both, each serves half of the slots."""

    def draw(self, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """How one image of `size` pixels a side is mixed.

        Returns:
            share () float32, of its own label; blend () float32, of its own pixels everywhere; box (4,) int64, the
            rectangle (top, left, bottom, right) that is its partner's.
        """
        alphas = [alpha for alpha in (self.mixup, self.cutmix) if alpha]
        if not alphas:
            return _fields(share=1.0, blend=1.0, box=(0, 0, 0, 0))
        cuts = rng.random() < 0.5 if len(alphas) == 2 else bool(self.cutmix)
        alpha = self.cutmix if cuts else self.mixup
        share = rng.beta(alpha, alpha)
        if not cuts:
            return _fields(share=share, blend=share, box=(0, 0, 0, 0))
        side = size * (1 - share) ** 0.5
        middle = rng.integers(size, size=2)
        top, left, bottom, right = np.rint([*(middle - side / 2), *(middle + side / 2)]).clip(0, size).astype(int)
        kept = 1 - (bottom - top) * (right - left) / size**2  # the rectangle may reach over the edge
        return _fields(share=kept, blend=1.0, box=(top, left, bottom, right))


def _fields(share: float, blend: float, box: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    return {
        "share": np.array(share, dtype=np.float32),
        "blend": np.array(blend, dtype=np.float32),
        "box": np.array(box, dtype=np.int64),
    }


def mix_images(images: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Mix each image with its partner.

    Args:
        images: (B, C, H, W).
        drawn: "blend" (B,) and "box" (B, 4) of `Mixing.draw`.
    """
    import torch

    partners = images.flip(0)
    top, left, bottom, right = drawn["box"][:, :, None, None].unbind(dim=1)  # (B, 1, 1) each
    rows = torch.arange(images.shape[2], device=images.device)[None, :, None]
    columns = torch.arange(images.shape[3], device=images.device)[None, None, :]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # (B, H, W)
    blended = torch.lerp(partners, images, drawn["blend"][:, None, None, None])
    return torch.where(inside[:, None], partners, blended)
