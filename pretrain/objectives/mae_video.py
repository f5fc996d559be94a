"""Masked autoencoder of clips (VideoMAE): a tenth of the tubes is seen, a light decoder paints the rest.

Source: Tong 2022, arXiv:2203.12602.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from data_pipelines.base import Strict, UserError, parse
from data_pipelines.batch import Batch
from data_pipelines.views.clips import MaskedClip
from data_pipelines.views.image import Crop
from data_pipelines.views.masks import hidden_count
from pretrain.energies import normalize_patches
from pretrain.networks.decoder import PixelDecoder
from pretrain.networks.video import sinusoid_positions, video_encoder
from pretrain.networks.vision import features
from pretrain.objective import DataFacts, Encoder
from pretrain.objectives.images import picture, preprocessor, to_unit_range, working_size
from pretrain.objectives.masked_pixels import MaskedPixels, take, three_passes

PICTURED = 3
"""Clips in a sketch."""


class MaskedVideoAutoencoder(MaskedPixels):
    """Predict the pixels of hidden tubelets from the visible ones."""

    class Config(Strict):
        """A VideoMAE encoder, its decoder, and what is hidden from it."""

        encoder: dict[str, Any] = Field(default_factory=lambda: {"architecture": "videomae"})
        """`architecture: videomae` and keys of transformers' VideoMAEConfig."""
        decoder: PixelDecoder.Config = PixelDecoder.Config()
        norm_pixels: bool = True
        """Predict each channel of a tubelet at mean 0 and variance 1."""
        mask_ratio: float = Field(0.9, gt=0, lt=1)
        """Share of the places that is hidden, in all frames of a clip alike."""
        frames: int = Field(16, gt=0)
        """Of a clip."""
        stride: int = Field(1, gt=0)
        """Frames of the data from one of the clip to the next."""
        image_size: int | None = Field(None, gt=0)
        """Side of the crops in pixels; the data's when unset."""
        crop: Crop = Crop()
        mean: tuple[float, ...] | None = None
        """Of each channel in [0, 1]; see `ImageView`."""
        std: tuple[float, ...] | None = None

    field: ClassVar[str] = "clip"
    view: MaskedClip

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config, self.facts, self.norm_pixels = config, facts, config.norm_pixels
        size, channels = working_size(config.image_size, facts)
        _refuse_short(config, facts)
        self.network = video_encoder(
            config.encoder, "recipe objective, encoder", image_size=size, channels=channels, frames=config.frames
        )
        self.view = _view(config, size, channels, self.network.config)
        places = self.view.grid[0] * self.view.grid[1]
        self.decoder = PixelDecoder(
            config.decoder,
            latent_width=self.network.config.hidden_size,
            positions=sinusoid_positions(self.view.moments * places, config.decoder.hidden_size),
            patch_values=self.view.tubelet_size * self.view.patch_size**2 * channels,
        )

    def encode(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Latents (B, V, D) of the tubelets at `visible` (B, V)."""
        tokens = self.network.embeddings(pixels.to(self.network.dtype), None)  # (B, N, D), positions added
        tokens = self.network.encoder(take(tokens, visible)).last_hidden_state
        latents: Tensor = self.network.layernorm(tokens)
        return latents

    def num_visible(self, num_patches: int) -> int:
        """See `MaskedPixels.num_visible`; the same places at every moment."""
        places = num_patches // self.view.moments
        return self.view.moments * (places - hidden_count(places, self.config.mask_ratio))

    def patchify(self, pixels: Tensor) -> Tensor:
        """See `MaskedPixels.patchify`."""
        return tubelets(pixels, self.view.tubelet_size, self.view.patch_size)

    def normalize(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `MaskedPixels.normalize`; each channel by itself, as VideoMAE's code has it."""
        by_channel = patches.unflatten(-1, (-1, self.view.channels)).transpose(-1, -2)  # (B, N, C, pixels)
        parts = (part.expand_as(by_channel) for part in normalize_patches(by_channel))
        target, mean, std = (part.transpose(-1, -2).flatten(-2) for part in parts)
        return target, mean, std

    def encoder(self) -> Encoder:
        """The encoder without the decoder; `AutoModel` opens it as VideoMAEModel."""
        return Encoder(self.network, "network.", preprocessor(self.view))

    def embed(self, batch: Batch) -> Tensor:
        """(B, D): mean of all tokens of an image that stands still, nothing hidden."""
        return features(self.network, batch["image"]).joined()

    @torch.no_grad()
    def sketch(self, batch: Batch) -> dict[str, np.ndarray]:
        """For each of some clips: its frames, what the encoder saw of them, and the hidden tubelets painted in."""
        clips, mask = batch["clip"][:PICTURED], batch["mask"][:PICTURED]
        shown = [self._frames(patches) for patches in self.reconstruct(clips, mask).table(mask)]  # each (n, T, C, H, W)
        return {"reconstructions": picture([frames[clip] for clip in range(len(clips)) for frames in shown])}

    def _frames(self, patches: Tensor) -> Tensor:
        """(B, T, C, H, W) in [0, 1]."""
        clips = untubelets(patches, self.view.moments, self.view.tubelet_size, self.view.patch_size)
        return to_unit_range(clips.flatten(0, 1), self.view).unflatten(0, clips.shape[:2])

    def flops_per_sample(self) -> float:
        """Three forward passes of encoder (visible tubelets only) and decoder."""
        size = self.view.image_size
        with torch.device("meta"):
            twin = MaskedVideoAutoencoder(self.config, self.facts)
            clips = torch.empty(1, self.view.frames, self.view.channels, size, size)
        return three_passes(twin, clips, self.view.moments * self.view.grid[0] * self.view.grid[1])


def tubelets(clips: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """(B, T, C, H, W) to (B, N, P), moment by moment and row by row; P = frames x rows x columns x C, channel last."""
    batch, frames, channels, height, width = clips.shape
    rows, columns = height // patch_size, width // patch_size
    grid = clips.reshape(batch, -1, tubelet_size, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(batch, frames // tubelet_size * rows * columns, -1)


def untubelets(patches: Tensor, moments: int, tubelet_size: int, patch_size: int) -> Tensor:
    """The inverse of `tubelets` for square frames."""
    batch, count, values = patches.shape
    side = int((count // moments) ** 0.5)
    channels = values // (tubelet_size * patch_size**2)
    grid = patches.reshape(batch, moments, side, side, tubelet_size, patch_size, patch_size, channels)
    clips = grid.permute(0, 1, 4, 7, 2, 5, 3, 6)
    return clips.reshape(batch, moments * tubelet_size, channels, side * patch_size, side * patch_size)


def _refuse_short(config: MaskedVideoAutoencoder.Config, facts: DataFacts) -> None:
    if facts.frames is None:
        raise UserError(
            "recipe objective: the data holds no clips; pack video, cityscapes or synthetic_driving, or choose mae"
        )
    span = (config.frames - 1) * config.stride + 1
    if span > facts.frames:
        raise UserError(
            f"recipe objective: frames={config.frames} at stride={config.stride} take {span} frames, the data's clips "
            f"have {facts.frames}; lower one of them"
        )


def _view(config: MaskedVideoAutoencoder.Config, image_size: int, channels: int, network: Any) -> MaskedClip:
    chosen = config.model_dump(include={"mask_ratio", "frames", "stride", "crop", "mean", "std"}, exclude_none=True)
    sizes = {"patch_size": network.patch_size, "tubelet_size": network.tubelet_size}
    return parse(MaskedClip, {"image_size": image_size, "channels": channels, **sizes, **chosen}, "recipe objective")
