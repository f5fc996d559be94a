"""What masked autoencoders of images and of clips share: pixels are hidden in patches and painted in again."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from data_pipelines.batch import Batch
from data_pipelines.views.clips import MaskedClip
from data_pipelines.views.image import MaskedImage
from pretrain.energies import l2
from pretrain.networks.decoder import PixelDecoder
from pretrain.networks.flops import forward_flops
from pretrain.objective import Objective, Output


@dataclass(frozen=True)
class Reconstruction:
    """A batch as the autoencoder sees it; N patches of P values, V of them visible.

    Attributes:
        latents: (B, L + V, D), other tokens (a class token) first.
        patches: (B, N, P), the true patches of the normalised pixels.
        target: (B, N, P), what is to be predicted: `patches`, each normalised by itself or not.
        predicted: (B, N, P), in the space of `target`.
        pixels: (B, N, P), the prediction in the space of `patches`.
    """

    latents: Tensor
    patches: Tensor
    target: Tensor
    predicted: Tensor
    pixels: Tensor

    def table(self, mask: Tensor) -> list[Tensor]:
        """Patches to look at: the true ones, what is seen of them, and those with the hidden ones painted in."""
        hidden = mask.unsqueeze(-1)
        return [self.patches, self.patches.masked_fill(hidden, 0.0), self.pixels.where(hidden, self.patches)]


class MaskedPixels(Objective):
    """Predict the pixels of hidden patches from the visible ones.

    Attributes:
        field: of a batch, holds the pixels.
        norm_pixels: predict each patch at mean 0 and variance 1.
    """

    field: ClassVar[str]
    view: MaskedImage | MaskedClip
    decoder: PixelDecoder
    norm_pixels: bool

    @abstractmethod
    def encode(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Latents (B, L + V, D) of the patches at `visible` (B, V)."""

    @abstractmethod
    def num_visible(self, num_patches: int) -> int:
        """V of N patches."""

    @abstractmethod
    def patchify(self, pixels: Tensor) -> Tensor:
        """(B, N, P) patches of the normalised pixels, channel last."""

    @abstractmethod
    def normalize(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Target, mean and std, so that patches = target * std + mean."""

    def forward(self, batch: Batch) -> Output:
        """See `Objective.forward`; logs compare with filling every hole with the mean of what is visible."""
        seen = self.reconstruct(batch[self.field], batch["mask"])
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
            embeddings=seen.latents[:, -self.num_visible(batch["mask"].shape[1]) :].mean(dim=1).detach(),
            energies={"positive": energy.detach()},
        )

    def reconstruct(self, pixels: Tensor, mask: Tensor) -> Reconstruction:
        """Hide, encode, decode.

        Args:
            pixels: (B, ..., C, H, W), normalised.
            mask: (B, N) bool, True = hidden, the same number in every row.
        """
        visible = mask.byte().argsort(dim=1, stable=True)[:, : self.num_visible(mask.shape[1])]  # (B, V), in order
        latents = self.encode(pixels, visible)
        predicted = self.decoder(latents, visible, mask.shape[1]).float()
        patches = self.patchify(pixels.float())
        if not self.norm_pixels:
            return Reconstruction(latents, patches, patches, predicted, predicted)
        target, mean, std = self.normalize(patches)
        return Reconstruction(latents, patches, target, predicted, predicted * std + mean)

    def _squared_error(self, pixels: Tensor, patches: Tensor) -> Tensor:
        """(B, N) mean squared error in units of the raw pixels' [0, 1]."""
        per_channel = (pixels - patches).unflatten(-1, (-1, self.view.channels))
        return (per_channel * pixels.new_tensor(self.view.std)).square().mean(dim=(-2, -1))


def three_passes(twin: MaskedPixels, pixels: Tensor, num_patches: int) -> float:
    """FLOPs of three forward passes of encoder (visible patches only) and decoder, on the meta device."""
    mask = torch.empty(len(pixels), num_patches, dtype=torch.bool, device="meta")
    return 3 * forward_flops(lambda: twin.reconstruct(pixels, mask))


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """(B, N, D) tokens at (B, V) places: (B, V, D)."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _mean_over(weights: Tensor, values: Tensor) -> Tensor:
    """(B, N) and (B, N) to (B,)."""
    return (weights * values).sum(dim=1) / weights.sum(dim=1)


def _mean_of_visible(patches: Tensor, mask: Tensor, channels: int) -> Tensor:
    """(B, 1, P): each channel's mean over the visible pixels of a row."""
    visible = (~mask).float()
    means = patches.unflatten(-1, (-1, channels)).mean(dim=2)  # (B, N, C)
    means = (means * visible.unsqueeze(-1)).sum(dim=1, keepdim=True) / visible.sum(dim=1)[:, None, None]
    return means.repeat(1, 1, patches.shape[-1] // channels)
