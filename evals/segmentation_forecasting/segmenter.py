"""A segmentation head on an encoder: it makes the checkpoint under judgement draw the maps that are foretold."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipelines.base import Strict, digest_of
from data_pipelines.device import to_float
from evals.features import Progress, alone, best_device, cache_folder, forget_oldest
from evals.segmentation_forecasting.backbones import Backbone
from evals.segmentation_forecasting.clips import Clips, kept
from evals.segmentation_forecasting.keyed import drawn, rng
from evals.segmentation_forecasting.metrics import IGNORE

FRAMES_AT_ONCE = 16
CACHE_BYTES = 8 * 2**30


class SegmenterConfig(Strict):
    """The head, and how it is trained on the labelled frames of the training set."""

    head: Literal["linear", "upsampling"] = "upsampling"
    """One linear map a place; or convolutions that double the resolution until a place is two pixels wide."""
    train_encoder: bool = False
    """Whether the encoder learns too, or stays as it is."""
    width: int = Field(64, gt=0)
    """Channels of the upsampling head."""
    steps: int = Field(400, gt=0)
    batch: int = Field(8, gt=0)
    """Frames a step."""
    lr: float = Field(3e-3, gt=0)
    """Of the head; AdamW, falling to 0 along half a cosine."""
    encoder_lr: float = Field(1e-4, gt=0)
    """Of the encoder, where it learns."""


class Segmenter(nn.Module):
    """Frames to class scores at every pixel."""

    def __init__(self, backbone: nn.Module, config: SegmenterConfig, classes: int, frame: tuple[int, int, int]) -> None:
        """Draw the head.

        Args:
            frame: (C, H, W) of what will be segmented.
        """
        super().__init__()
        self.backbone = backbone.eval()
        with torch.no_grad():
            found = backbone(torch.zeros(1, *frame))
        doublings = max(0, round(math.log2(frame[1] / found.shape[2])) - 1)
        self.head = _head(config, found.shape[1], classes, doublings)
        self._learns = config.train_encoder
        self.backbone.requires_grad_(self._learns)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to logits (B, K, H, W)."""
        with torch.set_grad_enabled(self._learns and torch.is_grad_enabled()):
            found = self.backbone(frames)
        logits: Tensor = F.interpolate(self.head(found), frames.shape[-2:], mode="bilinear")
        return logits

    @torch.no_grad()
    def soft(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to shares of the classes (B, K, H, W)."""
        return self(frames).softmax(dim=1)


def _head(config: SegmenterConfig, width: int, classes: int, doublings: int) -> nn.Sequential:
    """Features are standardised first, so that one learning rate serves all encoders (no scale or shift learned)."""
    standardised = nn.BatchNorm2d(width, affine=False)
    if config.head == "linear":
        return nn.Sequential(standardised, nn.Conv2d(width, classes, 1))
    layers: list[nn.Module] = [standardised, nn.Conv2d(width, config.width, 1), nn.GELU()]
    for _ in range(doublings):
        layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
        layers += [nn.Conv2d(config.width, config.width, 3, padding=1), nn.BatchNorm2d(config.width), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(config.width, classes, 1))


def segmenter(backbone: Backbone, clips: Clips, config: SegmenterConfig) -> tuple[Segmenter, str]:
    """The trained segmenter in eval mode, from the cache where it is known, and the digest that names it."""
    channels, (height, width) = clips.images.shape[-1], clips.images.shape[2:4]
    digest = digest_of(["segmenter", backbone.digest, clips.dataset.digest, config.model_dump(mode="json")])
    path = cache_folder("segmenters") / f"{digest}.safetensors"
    model = drawn(
        "segmenter", lambda: Segmenter(backbone.open(), config, len(clips.classes), (channels, height, width))
    ).to(best_device())
    learned = model if config.train_encoder else model.head
    with alone(path):
        if path.is_file():
            learned.load_state_dict(load_file(path))
        else:
            train(model, clips, config)
            _save(learned, path)
            forget_oldest(path.parent, CACHE_BYTES)
    return model.eval().requires_grad_(False), digest


def train(model: Segmenter, clips: Clips, config: SegmenterConfig) -> None:
    """Fit the labelled frames of `clips`, mirrored left to right half of the time."""
    parameters = [{"params": model.head.parameters(), "lr": config.lr}]
    if config.train_encoder:
        parameters.append({"params": model.backbone.parameters(), "lr": config.encoder_lr})
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / config.steps))
    )
    model.head.train()  # the encoder's own norms stay as they were pretrained
    progress = Progress("segmenter", config.steps, "steps")
    for step in range(config.steps):
        frames, labels = _labelled(clips, config.batch, rng("segmenter", step))
        optimizer.zero_grad()
        surprise = F.cross_entropy(model(frames), labels, ignore_index=IGNORE, reduction="sum")
        (surprise / (labels != IGNORE).sum().clamp(min=1)).backward()
        optimizer.step()
        schedule.step()
        progress.add(1)


def _labelled(clips: Clips, count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Frames (B, C, H, W) in [0, 1] and labels (B, H, W) int64."""
    known = clips.facts.label_frames
    rows = draw.integers(0, len(clips), count)
    frames = [known[number] for number in draw.integers(0, len(known), count)]
    pixels = np.stack([clips.images[row, clips.places([frame])[0]] for row, frame in zip(rows, frames, strict=True)])
    labels = np.stack([clips.label(row, frame) for row, frame in zip(rows, frames, strict=True)])
    mirrored = draw.random(count) < 0.5
    pixels[mirrored], labels[mirrored] = pixels[mirrored, :, ::-1], labels[mirrored, :, ::-1]
    device = best_device()
    return to_float(torch.from_numpy(pixels).to(device)), torch.from_numpy(labels).to(device).long()


def soft_maps(model: Segmenter, digest: str, clips: Clips) -> np.ndarray:
    """Shares of the classes at every pixel of every frame: (N, F, K, H, W) uint8, 255 for 1, on disk.

    Args:
        digest: names the segmenter.
    """

    def fill(out: np.ndarray) -> None:
        progress = Progress(f"soft maps of {clips.dataset.name}", len(clips), "clips")
        for row, frames in zip(out, clips.images, strict=True):
            for first in range(0, len(frames), FRAMES_AT_ONCE):
                block = torch.from_numpy(np.array(frames[first : first + FRAMES_AT_ONCE])).to(best_device())
                shares = model.soft(to_float(block))
                row[first : first + len(block)] = (255 * shares).round().byte().cpu().numpy()
            progress.add(1)

    shape = (*clips.images.shape[:2], len(clips.classes), *clips.images.shape[2:4])
    return kept("soft_maps", digest_of(["soft_maps", digest, clips.dataset.digest, clips.frames]), shape, fill)


def _save(module: nn.Module, path: Path) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(module.state_dict(), partial)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
