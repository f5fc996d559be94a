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
FEATURE_BYTES = 2 * 2**30
"""Memory for features of labelled frames; beyond it they are computed each time."""


class SegmenterConfig(Strict):
    """The head, and how it is trained on the labelled frames of the training set."""

    head: Literal["linear", "upsampling"] = "upsampling"
    """What draws the places of two pixels that each place of the encoder's map opens into: one linear map, which can do
    little that the encoder did not; or convolutions."""
    train_encoder: bool = False
    """Whether the encoder learns too, or stays as it is."""
    width: int = Field(96, gt=0)
    """Channels of the upsampling head."""
    steps: int = Field(500, gt=0)
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
        self.head = _head(config, found.shape[1], classes, zoom=max(1, round(frame[1] / found.shape[2] / 2)))
        self._learns = config.train_encoder
        self.backbone.requires_grad_(self._learns)

    def features(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to what the head reads (B, D, h, w)."""
        with torch.set_grad_enabled(self._learns and torch.is_grad_enabled()):
            found: Tensor = self.backbone(frames)
        return found

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to logits (B, K, H, W)."""
        return resized(self.head(self.features(frames)), frames.shape[-2], frames.shape[-1])

    @torch.no_grad()
    def soft(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to shares of the classes (B, K, H, W)."""
        return self(frames).softmax(dim=1)


def _head(config: SegmenterConfig, width: int, classes: int, zoom: int) -> nn.Sequential:
    """Features are standardised first, so that one learning rate serves all encoders (no scale or shift learned).

    Source of the opening of places: Shi 2016, arXiv:1609.05158; it convolves the small map, and costs little.
    """
    layers: list[nn.Module] = [nn.BatchNorm2d(width, affine=False)]
    if config.head == "upsampling":
        for read in (width, config.width):
            layers += [nn.Conv2d(read, config.width, 3, padding=1), nn.BatchNorm2d(config.width), nn.GELU()]
        width = config.width
    return nn.Sequential(*layers, nn.Conv2d(width, classes * zoom**2, 1), nn.PixelShuffle(zoom))


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
    """Fit the labelled frames of `clips`, mirrored left to right half of the time.

    A step looks at every second pixel of every second row, beginning anywhere: neighbours say much the same.
    """
    parameters = [{"params": model.head.parameters(), "lr": config.lr}]
    if config.train_encoder:
        parameters.append({"params": model.backbone.parameters(), "lr": config.encoder_lr})
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / config.steps))
    )
    weights = rarity(clips.labels, len(clips.classes)).to(best_device())
    model.head.train()  # the encoder's own norms stay as they were pretrained
    frames, progress = _LabelledFrames(model, clips, config), Progress("segmenter", config.steps, "steps")
    for step in range(config.steps):
        draw = rng("segmenter", step)
        features, labels = frames.drawn(config.batch, draw)
        top, left = draw.integers(0, 2, 2)
        labels = labels[:, top::2, left::2]
        logits = resized(model.head(features), *labels.shape[-2:])
        optimizer.zero_grad()
        F.cross_entropy(logits, labels, weights, ignore_index=IGNORE).backward()
        optimizer.step()
        schedule.step()
        progress.add(1)


def rarity(labels: np.ndarray, classes: int) -> Tensor:
    """(K,) weights that make rare classes count: 1 / log(1.02 + share of the pixels), 0 for those that are absent.

    Source: Paszke 2016, arXiv:1606.02147, section 5.2.
    """
    counts = np.zeros(classes, np.int64)
    for clip in labels:
        counts += np.bincount(clip.reshape(-1), minlength=IGNORE + 1)[:classes]
    weights = np.where(counts, 1 / np.log(1.02 + counts / max(1, counts.sum())), 0)
    return torch.from_numpy(weights).float()


class _LabelledFrames:
    """What the head reads of labelled frames, and their labels; an encoder that does not learn reads each once."""

    def __init__(self, model: Segmenter, clips: Clips, config: SegmenterConfig) -> None:
        self._model, self._clips, self._frozen = model, clips, not config.train_encoder
        self._known: dict[tuple[int, int, bool], Tensor] = {}
        self._bytes = 0

    def drawn(self, count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Features (B, D, h, w) and labels (B, H, W) int64 of frames drawn anew, half of them mirrored."""
        known = self._clips.facts.label_frames
        rows, places = draw.integers(0, len(self._clips), count), draw.integers(0, len(known), count)
        chosen = list(zip(rows.tolist(), places.tolist(), (draw.random(count) < 0.5).tolist(), strict=True))
        labels = np.stack([_mirrored(self._clips.labels[row, place], turn) for row, place, turn in chosen])
        device = best_device()
        if self._frozen:
            features = torch.stack([self._remembered(one).to(device) for one in chosen])
        else:
            features = self._model.features(self._pixels(chosen))
        return features, torch.from_numpy(labels).to(device).long()

    def _remembered(self, one: tuple[int, int, bool]) -> Tensor:
        if one in self._known:
            return self._known[one]
        features = self._model.features(self._pixels([one]))[0].cpu()
        if self._bytes + features.nbytes <= FEATURE_BYTES:
            self._known[one] = features
            self._bytes += features.nbytes
        return features

    def _pixels(self, chosen: list[tuple[int, int, bool]]) -> Tensor:
        """(B, C, H, W) in [0, 1]."""
        places = self._clips.places(self._clips.facts.label_frames)
        frames = [_mirrored(self._clips.images[row, places[place]], turn) for row, place, turn in chosen]
        return to_float(torch.from_numpy(np.stack(frames)).to(best_device()))


def _mirrored(picture: np.ndarray, turned: bool) -> np.ndarray:
    """(H, W, ...), left to right or as it is."""
    return picture[:, ::-1] if turned else picture


def resized(logits: Tensor, height: int, width: int) -> Tensor:
    """(B, K, h, w) to (B, K, height, width), bilinear."""
    return F.interpolate(logits, (height, width), mode="bilinear")


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
