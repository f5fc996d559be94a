"""Masked autoencoder: an encoder sees a quarter of the patches, a light decoder paints the rest.

Source: He 2021, arXiv:2111.06377.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import ViTModel

from data_pipelines.base import Strict, UserError, parse
from data_pipelines.batch import Batch
from data_pipelines.views.image import Crop, MaskedImage
from data_pipelines.views.masks import hidden_count
from pretrain.energies import l2, normalize_patches
from pretrain.networks.decoder import PixelDecoder
from pretrain.networks.flops import forward_flops
from pretrain.networks.vision import features, vision_encoder
from pretrain.networks.vit import POSITION_BASE
from pretrain.objective import DataFacts, Encoder, Objective, Output
from pretrain.objectives.images import patchify, picture, preprocessor, to_unit_range, unpatchify, working_size

PICTURED = 8
"""Images in a sketch."""


@dataclass(frozen=True)
class Reconstruction:
    """A batch as the autoencoder sees it; N patches of P values, V of them visible.

    Attributes:
        latents: (B, 1 + V, D), class token first.
        patches: (B, N, P), the true patches of the normalised image.
        target: (B, N, P), what is to be predicted: `patches`, each normalised by itself or not.
        predicted: (B, N, P), in the space of `target`.
        pixels: (B, N, P), the prediction in the space of `patches`.
    """

    latents: Tensor
    patches: Tensor
    target: Tensor
    predicted: Tensor
    pixels: Tensor


class MaskedAutoencoder(Objective):
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

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        size, channels = working_size(config.image_size, facts)
        self.vit = _encoder(config, size, channels)
        self.view: MaskedImage = _view(config, size, channels, self.vit.config.patch_size)
        num_patches = self.view.grid[0] * self.view.grid[1]
        self.num_visible = num_patches - hidden_count(num_patches, config.mask_ratio)
        self.decoder = PixelDecoder(
            config.decoder,
            latent_width=self.vit.config.hidden_size,
            grid=self.view.grid[0],
            patch_values=self.view.patch_size**2 * channels,
            position_base=config.position_base,
        )

    def forward(self, batch: Batch) -> Output:
        """See `Objective.forward`; logs compare with filling every hole with the mean of what is visible."""
        seen = self.reconstruct(batch["image"], batch["mask"])
        hidden = batch["mask"].float()  # (B, N)
        energy = _mean_over(hidden, l2(seen.predicted, seen.target))  # (B,)
        filled = _mean_of_visible(seen.patches, batch["mask"], self.view.channels)
        logs = {
            "masked_mse_raw": _mean_over(hidden, self._squared_error(seen.pixels, seen.patches)),
            "mean_fill_mse": _mean_over(hidden, self._squared_error(filled, seen.patches)),
        }
        share = batch.weight / batch.weight.sum().clamp(min=1)
        return Output(
            loss=(energy * batch.weight).sum(),
            logs={name: (value * share).sum().detach() for name, value in logs.items()},
            embeddings=seen.latents[:, 1:].mean(dim=1).detach(),
            energies={"positive": energy.detach()},
        )

    def reconstruct(self, images: Tensor, mask: Tensor) -> Reconstruction:
        """Hide, encode, decode.

        Args:
            images: (B, C, H, W), normalised.
            mask: (B, N) bool, True = hidden, the same number in every row.
        """
        visible = mask.byte().argsort(dim=1, stable=True)[:, : self.num_visible]  # (B, V), in order
        latents = self.encode(images, visible)
        predicted = self.decoder(latents, visible).float()
        patches = patchify(images.float(), self.view.patch_size)
        if not self.config.norm_pixels:
            return Reconstruction(latents, patches, patches, predicted, predicted)
        target, mean, std = normalize_patches(patches)
        return Reconstruction(latents, patches, target, predicted, predicted * std + mean)

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Latents (B, 1 + V, D) of the patches at `visible` (B, V), class token first."""
        tokens = self.vit.embeddings(images.to(self.vit.dtype))  # (B, 1 + N, D), positions added
        places = visible.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, places)], dim=1)
        for layer in self.vit.layers:
            tokens = layer(tokens)
        latents: Tensor = self.vit.layernorm(tokens)
        return latents

    def _squared_error(self, pixels: Tensor, patches: Tensor) -> Tensor:
        """(B, N) mean squared error in units of the raw image's [0, 1]."""
        per_channel = (pixels - patches).unflatten(-1, (-1, self.view.channels))
        return (per_channel * pixels.new_tensor(self.view.std)).square().mean(dim=(-2, -1))

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
        seen = self.reconstruct(images, mask)
        hidden = mask.unsqueeze(-1)
        table = [seen.patches, seen.patches.masked_fill(hidden, 0.0), seen.pixels.where(hidden, seen.patches)]
        rows = [to_unit_range(unpatchify(patches, self.view.patch_size), self.view) for patches in table]
        return {"reconstructions": picture(rows)}

    def flops_per_sample(self) -> float:
        """Three forward passes of encoder (visible patches only) and decoder."""
        with torch.device("meta"):
            twin = MaskedAutoencoder(self.config, self.facts)
            images = torch.empty(1, self.view.channels, self.view.image_size, self.view.image_size)
            mask = torch.empty(1, self.view.grid[0] * self.view.grid[1], dtype=torch.bool)
        return 3 * forward_flops(lambda: twin.reconstruct(images, mask))


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


def _mean_over(weights: Tensor, values: Tensor) -> Tensor:
    """(B, N) and (B, N) to (B,)."""
    return (weights * values).sum(dim=1) / weights.sum(dim=1)


def _mean_of_visible(patches: Tensor, mask: Tensor, channels: int) -> Tensor:
    """(B, 1, P): each channel's mean over the visible pixels of an image."""
    visible = (~mask).float()
    means = patches.unflatten(-1, (-1, channels)).mean(dim=2)  # (B, N, C)
    means = (means * visible.unsqueeze(-1)).sum(dim=1, keepdim=True) / visible.sum(dim=1)[:, None, None]
    return means.repeat(1, 1, patches.shape[-1] // channels)
