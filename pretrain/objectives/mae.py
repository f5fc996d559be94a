"""Masked autoencoder: an encoder sees a quarter of the patches, a light decoder paints the rest.

Source: He 2021, arXiv:2111.06377.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import ViTModel

from data_pipelines.base import Strict, UserError, parse
from data_pipelines.batch import Batch
from data_pipelines.views.image import Crop, MaskedImage
from data_pipelines.views.masks import hidden_count
from pretrain.energies import normalize_patches
from pretrain.networks.decoder import PixelDecoder
from pretrain.networks.vision import features, vision_encoder
from pretrain.networks.vit import POSITION_BASE, sincos_positions
from pretrain.objective import DataFacts, Encoder
from pretrain.objectives.images import patchify, picture, preprocessor, to_unit_range, unpatchify, working_size
from pretrain.objectives.masked_pixels import MaskedPixels, take, three_passes

PICTURED = 8
"""Images in a sketch."""


class MaskedAutoencoder(MaskedPixels):
    """Predict the pixels of hidden patches from the visible ones."""

    class Config(Strict):
        """A ViT, its decoder, and what is hidden from it."""

        encoder: dict[str, Any] = Field(default_factory=lambda: {"architecture": "vit"})
        """`architecture: vit` and keys of transformers' ViTConfig."""
        decoder: PixelDecoder.Config = PixelDecoder.Config()
        norm_pixels: bool = True
        """Predict each patch at mean 0 and variance 1."""
        mask_ratio: float = Field(0.75, gt=0, lt=1)
        position_base: float = Field(POSITION_BASE, gt=1)
        """Of the sine-cosine positions; grids of a few patches learn faster with about 20 (`sincos_positions`)."""
        mask: Literal["random", "block"] = "random"
        image_size: int | None = Field(None, gt=0)
        """Side of the crops in pixels; the data's when unset."""
        crop: Crop = Crop()
        mean: tuple[float, ...] | None = None
        """Of each channel in [0, 1]; see `ImageView`."""
        std: tuple[float, ...] | None = None

    field: ClassVar[str] = "image"
    may_change = frozenset({"image_size"})
    view: MaskedImage

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config, self.facts, self.norm_pixels = config, facts, config.norm_pixels
        size, channels = working_size(config.image_size, facts)
        if facts.frames is not None:
            raise UserError("recipe objective: the data holds clips; choose mae_video, or data of single images")
        self.vit = _encoder(config, size, channels)
        self.view = _view(config, size, channels, self.vit.config.patch_size)
        self.decoder = PixelDecoder(
            config.decoder,
            latent_width=self.vit.config.hidden_size,
            positions=sincos_positions(self.view.grid[0], config.decoder.hidden_size, config.position_base),
            patch_values=self.view.patch_size**2 * channels,
        )

    def encode(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Latents (B, 1 + V, D) of the patches at `visible` (B, V), class token first."""
        # (B, 1 + N, D), positions added, stretched over the grid of images of another size
        tokens = self.vit.embeddings(pixels.to(self.vit.dtype), interpolate_pos_encoding=True)
        tokens = torch.cat([tokens[:, :1], take(tokens[:, 1:], visible)], dim=1)
        for layer in self.vit.layers:
            tokens = layer(tokens)
        latents: Tensor = self.vit.layernorm(tokens)
        return latents

    def num_visible(self, num_patches: int) -> int:
        """See `MaskedPixels.num_visible`."""
        return num_patches - hidden_count(num_patches, self.config.mask_ratio)

    def patchify(self, pixels: Tensor) -> Tensor:
        """See `MaskedPixels.patchify`; patches row by row."""
        return patchify(pixels, self.view.patch_size)

    def normalize(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `MaskedPixels.normalize`; all channels of a patch together."""
        return normalize_patches(patches)

    def encoder(self) -> Encoder:
        """The ViT without its decoder; `AutoModel` opens it as ViTModel, which hides nothing."""
        return Encoder(self.vit, "vit.", preprocessor(self.view))

    def embed(self, batch: Batch) -> Tensor:
        """(B, 2D): class token and mean of the patch tokens, nothing hidden."""
        return features(self.vit, batch["image"]).joined()

    @torch.no_grad()
    def sketch(self, batch: Batch) -> dict[str, np.ndarray]:
        """Originals, what the encoder saw of them, and the hidden patches painted in."""
        images, mask = batch["image"][:PICTURED], batch["mask"][:PICTURED]
        table = self.reconstruct(images, mask).table(mask)
        rows = [to_unit_range(unpatchify(patches, self.view.patch_size), self.view) for patches in table]
        return {"reconstructions": picture(rows)}

    def flops_per_sample(self) -> float:
        """Three forward passes of encoder (visible patches only) and decoder."""
        with torch.device("meta"):
            twin = MaskedAutoencoder(self.config, self.facts)
            images = torch.empty(1, self.view.channels, self.view.image_size, self.view.image_size)
        return three_passes(twin, images, self.view.grid[0] * self.view.grid[1])


def _encoder(config: MaskedAutoencoder.Config, image_size: int, channels: int) -> ViTModel:
    where = "recipe objective, encoder"
    if config.encoder.get("architecture") != "vit":
        raise UserError(f"{where}: a masked autoencoder leaves patches out, which only architecture 'vit' can")
    sizes = {"image_size": image_size, "channels": channels}
    return cast(ViTModel, vision_encoder(config.encoder, where, position_base=config.position_base, **sizes))


def _view(config: MaskedAutoencoder.Config, image_size: int, channels: int, patch_size: int) -> MaskedImage:
    chosen = config.model_dump(include={"mask_ratio", "mask", "crop", "mean", "std"}, exclude_none=True)
    facts = {"image_size": image_size, "channels": channels, "patch_size": patch_size}
    return parse(MaskedImage, {**facts, **chosen}, "recipe objective")
