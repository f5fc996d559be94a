"""Initialisation of ViTs as MAE and MoCo v3 do it.

transformers draws positions at random, and its ViTMAE leaves positions and tokens at zero when a
model is made from a config; so positions are written here, by hand, and a test looks at them.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTModel
from transformers.models.vit.modeling_vit import ViTLayer

POSITION_BASE = 10_000.0
"""Of the slowest wave, as in the papers; their grids have 14 patches a side and more."""


def sincos_positions(grid: int, width: int, base: float = POSITION_BASE) -> Tensor:
    """Two-dimensional sine-cosine positions, row by row, behind a zero for the class token.

    Args:
        grid: patches along one side.
        width: D, a multiple of 4; the first half codes the column, the second the row.
        base: the slowest wave is this many times longer than the fastest, which is 2 pi patches.

    Returns:
        (1 + grid * grid, D) float32.

    Raises:
        ValueError: `width` is no multiple of 4.

    Source: He 2021, arXiv:2111.06377, section 3 (their code puts the column first).
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions want a width that is a multiple of 4, got {width}")
    frequencies = base ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(torch.arange(grid, dtype=torch.float64), frequencies)  # (grid, D/4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, D/2)
    columns, rows = waves.repeat(grid, 1), waves.repeat_interleave(grid, dim=0)
    patches = torch.cat([columns, rows], dim=1)  # (grid * grid, D)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches]).float()


def stretched(positions: Tensor, num_patches: int, leading: int) -> Tensor:
    """Positions of a square grid of patches over another square grid, as transformers stretches a ViT's.

    Args:
        positions: (leading + N, D), `leading` tokens before the patches.
        num_patches: of the other grid.

    Returns:
        (leading + num_patches, D).
    """
    if len(positions) == leading + num_patches:
        return positions
    sides = [round((len(positions) - leading) ** 0.5), round(num_patches**0.5)]
    grid = positions[leading:].T.reshape(1, -1, sides[0], sides[0])
    grid = F.interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    return torch.cat([positions[:leading], grid.flatten(2)[0].T])


@torch.no_grad()
def draw_vit(encoder: ViTModel, position_base: float = POSITION_BASE) -> None:
    """Redraw a ViT: fixed positions, small class token, Xavier in patches and blocks.

    Source: MAE's and MoCo v3's published code.
    """
    embeddings = encoder.embeddings
    grid = int(embeddings.patch_embeddings.num_patches**0.5)
    embeddings.position_embeddings.copy_(sincos_positions(grid, encoder.config.hidden_size, position_base))
    embeddings.position_embeddings.requires_grad_(False)
    nn.init.normal_(embeddings.cls_token, std=0.02)
    projection = embeddings.patch_embeddings.projection
    nn.init.xavier_uniform_(projection.weight.view(projection.out_channels, -1))
    nn.init.zeros_(projection.bias)
    draw_blocks(encoder.layers)


@torch.no_grad()
def draw_blocks(blocks: nn.ModuleList) -> None:
    """Xavier in every linear map of ViT blocks; query, key and value as if they were one matrix."""
    for block in blocks:
        assert isinstance(block, ViTLayer)
        attention = block.attention
        draw_linears(block, joint={attention.q_proj, attention.k_proj, attention.v_proj})


@torch.no_grad()
def draw_linears(block: nn.Module, joint: Collection[nn.Module]) -> None:
    """Xavier in every linear map of a block; the `joint` three, D x D each, as if they were one matrix 3D x D."""
    for module in block.modules():
        if isinstance(module, nn.Linear):
            # bound sqrt(6 / 4D) instead of sqrt(6 / 2D)
            nn.init.xavier_uniform_(module.weight, gain=0.5**0.5 if module in joint else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
