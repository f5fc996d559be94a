"""How forecasters learn: patches of training clips, a budget of steps, energies at both scales.

The paper's energies are L1 and gradient differences, its optimizer SGD, its budget millions of steps. Here the first
half of the steps takes L2, and the optimizer is Adam: L1 alone is content with the median, a copy of the last input,
and does not leave it within hundreds of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from data_pipelines.base import Strict
from evals.features import Progress, best_device
from evals.segmentation_forecasting.clips import Clips
from evals.segmentation_forecasting.forecaster import MODELS, Forecaster, Model, channels_of, halved
from evals.segmentation_forecasting.keyed import drawn, rng
from evals.segmentation_forecasting.windows import AHEAD, INPUTS, training_windows
from pretrain.energies import gradient_difference, l1, l2
from pretrain.shaping.adversarial import PatchDiscriminator, discriminator_loss, generator_loss


class ForecasterConfig(Strict):
    """The network's size and its training."""

    width: int = Field(32, gt=0)
    """Channels of the first layer; the paper's is 128."""
    steps: int = Field(1000, gt=0)
    """Steps of each model; one that goes on from another has them again."""
    batch: int = Field(4, gt=0)
    """Patches a step."""
    patch: int = Field(64, ge=16, multiple_of=2)
    """Side of a patch in pixels; frames that are smaller are read whole."""
    lr: float = Field(1e-3, gt=0)
    """Of Adam, rising over the first tenth of the steps, then falling to 0 along half a cosine; a tenth of it where a
    model goes on from another."""
    adversarial_weight: float = Field(0.05, ge=0)
    """Of the discriminator's word beside the two energies."""


@dataclass(frozen=True)
class Material:
    """What can be learned from, and foretold: frames and soft maps of one set.

    Attributes:
        maps: (N, F, K, H, W) uint8, see `segmenter.soft_maps`.
    """

    clips: Clips
    maps: np.ndarray

    def cut(
        self, what: str, clip: int, places: Sequence[int], area: tuple[slice, slice] = (slice(None),) * 2
    ) -> Tensor:
        """(F, C, H, W) float32 of frames in [-1, 1] ("x"), soft maps in [0, 1] ("s"), or both, frames first."""
        parts = []
        if "x" in what:
            frames = torch.from_numpy(self.clips.images[clip][list(places)][:, *area])
            parts.append(frames.permute(0, 3, 1, 2).float() / 127.5 - 1)
        if "s" in what:
            parts.append(torch.from_numpy(self.maps[clip][list(places)][:, :, *area]).float() / 255)
        return torch.cat(parts, dim=1).to(best_device())


def train(name: str, material: Material, config: ForecasterConfig, known: dict[str, Forecaster]) -> Forecaster:
    """Train the model `name`.

    Args:
        material: of the training set.
        known: models trained before, among them the one that `name` goes on from.

    Returns:
        The forecaster, in eval mode.
    """
    model, clips = MODELS[name], material.clips
    network = drawn(name, lambda: Forecaster(model, clips.images.shape[-1], len(clips.classes), config.width))
    if model.finetunes is not None:
        network.load_state_dict(known[model.finetunes].state_dict())
    network.to(best_device())
    rounds = max(AHEAD.values()) if model.finetunes is not None else 1
    windows = training_windows(clips.frames, INPUTS + rounds * model.at_once)
    colours = channels_of(model.writes, clips.images.shape[-1], 0)
    adversary = _Adversary(model, material, config) if model.adversarial else None
    optimizer = Adam(network.parameters(), lr=config.lr if model.finetunes is None else config.lr / 10)
    schedule = LambdaLR(optimizer, lambda step: lr_share(step, config.steps))
    progress = Progress(f"forecaster {name}", config.steps, "steps")
    for step in range(config.steps):
        sequences = _patches(model.reads, material, windows, config, rng(name, step))  # (B, L, C, P, P)
        past, wanted = sequences[:, :INPUTS], sequences[:, INPUTS:, network.foretold]
        energy = _squares if model.finetunes is None and step < config.steps // 2 else _edges
        loss = torch.zeros((), device=sequences.device)
        for future in wanted.chunk(rounds, dim=1):
            guess, forecast = network(past)
            for predicted, truth in ((guess, halved(future)), (forecast, future)):
                loss = loss + _by_part(energy, predicted, truth, colours)
            if adversary is not None:
                loss = loss + config.adversarial_weight * adversary.word(past, forecast, future)
            if rounds > 1:
                past = torch.cat([past[:, 1:], forecast], dim=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.add(1)
    return network.eval().requires_grad_(False)


def lr_share(step: int, steps: int) -> float:
    """Share of the learning rate in (0, 1] at `step`: a tenth of the steps upwards, then down along half a cosine."""
    return min(1.0, (step + 1) / max(1, steps // 10)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _by_part(energy: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, wanted: Tensor, colours: int) -> Tensor:
    """() from (B, A, C', H, W): frames, the first `colours` channels, and soft maps weigh the same."""
    total = predicted.new_zeros(())
    for part in (slice(colours), slice(colours, None)):
        one, other = predicted[:, :, part].flatten(0, 1), wanted[:, :, part].flatten(0, 1)
        if one.numel():
            total = total + energy(one, other).mean()
    return total


def _squares(predicted: Tensor, wanted: Tensor) -> Tensor:
    return l2(predicted.flatten(1), wanted.flatten(1))


def _edges(predicted: Tensor, wanted: Tensor) -> Tensor:
    return l1(predicted.flatten(1), wanted.flatten(1)) + gradient_difference(predicted, wanted)


def _patches(
    what: str, material: Material, windows: Sequence[Sequence[int]], config: ForecasterConfig, draw: np.random.Generator
) -> Tensor:
    """(B, L, C, P, P) of random clips, windows and places, mirrored half of the time."""
    height, width = material.clips.images.shape[2:4]
    tall, wide = min(config.patch, height), min(config.patch, width)
    patches = []
    for _ in range(config.batch):
        clip, window = int(draw.integers(len(material.clips))), windows[int(draw.integers(len(windows)))]
        top, left = draw.integers(height - tall + 1), draw.integers(width - wide + 1)
        patch = material.cut(what, clip, window, (slice(top, top + tall), slice(left, left + wide)))
        patches.append(patch.flip(-1) if draw.random() < 0.5 else patch)
    return torch.stack(patches)


class _Adversary:
    """A discriminator that sees what went before, and learns along."""

    def __init__(self, model: Model, material: Material, config: ForecasterConfig) -> None:
        channels, classes = material.clips.images.shape[-1], len(material.clips.classes)
        seen = INPUTS * channels_of(model.reads, channels, classes) + channels_of(model.writes, channels, classes)
        self._network = drawn("discriminator", lambda: PatchDiscriminator(seen, config.width)).to(best_device())
        self._optimizer = Adam(self._network.parameters(), lr=config.lr / 10)

    def word(self, past: Tensor, forecast: Tensor, future: Tensor) -> Tensor:
        """(): what the generator minimises; the discriminator takes a step of its own first."""
        self._optimizer.zero_grad()
        discriminator_loss(self._score(past, future), self._score(past, forecast.detach())).backward()
        self._optimizer.step()
        self._network.requires_grad_(False)
        loss = generator_loss(self._score(past, forecast))
        self._network.requires_grad_(True)
        return loss

    def _score(self, past: Tensor, frames: Tensor) -> Tensor:
        scores: Tensor = self._network(torch.cat([past, frames], dim=1).flatten(1, 2))
        return scores
