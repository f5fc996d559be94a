"""The light decoder of a masked autoencoder: visible latents in, every patch out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTLayer

from data_pipelines.base import Strict
from pretrain.networks.vit import draw_blocks, stretched


class Unmask(nn.Module):
    """Puts visible latents back in their places and a learned token everywhere else."""

    positions: Tensor

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, positions.shape[-1]))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, latents: Tensor, visible: Tensor, num_patches: int) -> Tensor:
        """Build the full sequence, positions added.

        Args:
            latents: (B, L + V, D), other tokens (a class token) first.
            visible: (B, V) int64, the place of each visible patch.
            num_patches: N.

        Returns:
            (B, L + N, D).
        """
        leading, width = latents.shape[1] - visible.shape[1], latents.shape[-1]
        positions = stretched(self.positions, num_patches, leading)
        hidden = self.mask_token.to(latents.dtype).expand(len(latents), num_patches, width)
        places = visible.unsqueeze(-1).expand(-1, -1, width)
        patches = hidden.scatter(1, places, latents[:, leading:])
        return torch.cat([latents[:, :leading], patches], dim=1) + positions.to(latents.dtype)


class PixelDecoder(nn.Module):
    """ViT blocks over visible latents and mask tokens, then one linear map to pixels.

    Source: He 2021, arXiv:2111.06377, section 3.
    """

    class Config(Strict):
        """Size of the decoder."""

        hidden_size: int = 512
        """Width, a multiple of 4 and of the heads."""
        num_hidden_layers: int = 8
        num_attention_heads: int = 16
        intermediate_size: int = 2048

        def vit(self, **settings: Any) -> ViTConfig:
            """As a transformers config."""
            return ViTConfig(**self.model_dump(), layer_norm_eps=1e-6, **settings)

    def __init__(self, config: Config, *, latent_width: int, positions: Tensor, patch_values: int) -> None:
        """Draw a decoder for tokens at `positions` (L + N, hidden_size), L of them before the patches."""
        super().__init__()
        vit = config.vit(attn_implementation="sdpa")
        self.embed = nn.Linear(latent_width, config.hidden_size)
        self.unmask = Unmask(positions)
        self.layers = nn.ModuleList(ViTLayer(vit) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.to_pixels = nn.Linear(config.hidden_size, patch_values)
        draw_blocks(self.layers)
        for linear in (self.embed, self.to_pixels):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, latents: Tensor, visible: Tensor, num_patches: int) -> Tensor:
        """Predict every patch, visible ones too.

        Args:
            latents: (B, L + V, D), other tokens (a class token) first.
            visible: (B, V) int64, the place of each visible patch.
            num_patches: N; where it is not that of the positions, these are stretched over the other grid.

        Returns:
            (B, N, P).
        """
        tokens = self.unmask(self.embed(latents), visible, num_patches)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.to_pixels(self.norm(tokens[:, latents.shape[1] - visible.shape[1] :]))
