"""Small objectives of our own, and batches for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_pipelines.batch import Batch
from pretrain.collectives.gather import gather, rank
from pretrain.config import Train
from pretrain.objective import Encoder, Objective, Output, Target

WIDTH = 12


@dataclass(frozen=True)
class AsIs:
    """A view that changes nothing."""

    def sample(self, sample: Any, draw: Any) -> dict[str, np.ndarray]:
        return {}

    def batch(self, batch: Batch) -> Batch:
        return batch


class Network(nn.Module):
    """Names as in a transformer, so that layer decay finds layers; odd sizes, so that cuts fall inside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, 13)
        self.layer = nn.ModuleList([nn.Sequential(nn.Linear(13, 13), nn.LayerNorm(13), nn.GELU()) for _ in range(2)])
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layer:
            x = x + layer(x)
        return x


class AutoEncoder(Objective):
    """Pulls rows to themselves through a bottleneck, and, with `ema`, to a slow twin's features."""

    def __init__(self, ema: bool = False, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder_net = Network()
            self.mask_token = nn.Parameter(torch.randn(1, WIDTH) * 0.02)
            self.decoder = nn.Linear(13, WIDTH)
            self.fixed = nn.Parameter(torch.randn(5, 3), requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("queue", torch.zeros(4, 13))
        self.ema = ema
        self.view = AsIs()
        if ema:
            self.target_net = copy.deepcopy(self.encoder_net).requires_grad_(False)
            self.targets = (Target("encoder_net", "target_net", lambda progress: 0.9 + 0.1 * progress),)

    def forward(self, batch: Batch) -> Output:
        x = batch["x"]
        if self.training:
            self.encoder_net.seen += 1
        # A parameter that some steps do not use.
        hidden = torch.where(batch["hidden"].bool(), self.mask_token, x) if batch["hidden"].any() else x
        features = self.encoder_net(self.dropout(hidden))
        rows = (self.decoder(features) - x).square().mean(1) + self.fixed.sum() * 0
        if self.ema:
            rows = rows + (features - self.target_net(x).detach()).square().mean(1)
        loss = (rows * batch.weight).sum()
        return Output(loss=loss, logs={"rows": rows.mean().detach()}, embeddings=features.detach())

    def after_step(self, step: int) -> None:
        self.queue[step % 4] = float(step)

    def encoder(self) -> Encoder:
        return Encoder(self.encoder_net, "encoder_net.", {})

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder_net(batch["x"])

    def flops_per_sample(self) -> float:
        return 1.0


class Coupled(Objective):
    """Each row is told from all rows of the micro step, whichever rank holds them."""

    coupling = "micro"

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = Network()
        self.view = AsIs()

    def forward(self, batch: Batch) -> Output:
        own = nn.functional.normalize(self.net(batch["x"]), dim=1)
        everyone = gather(own)
        labels = torch.arange(len(own)) + rank() * len(own)
        return Output(loss=nn.functional.cross_entropy(own @ everyone.T / 0.5, labels, reduction="sum"))

    def encoder(self) -> Encoder:
        return Encoder(self.net, "net.", {})

    def embed(self, batch: Batch) -> Tensor:
        return self.net(batch["x"])

    def flops_per_sample(self) -> float:
        return 1.0


def make_batch(positions: Sequence[int] | np.ndarray, hide: bool = True) -> Batch:
    """Rows that are a pure function of their position; every fifth has weight 0."""
    at = np.asarray(positions)
    rows = np.stack([np.random.default_rng(int(p)).standard_normal(WIDTH) for p in at]).astype(np.float32)
    hidden = ((at // 4 % 2 == 0) & hide)[:, None].astype(np.float32)  # on every rank some, or on none
    return Batch(
        fields={"x": torch.from_numpy(rows), "hidden": torch.from_numpy(hidden)},
        keys=tuple(map(str, at)),
        positions=torch.from_numpy(at),
        weight=torch.from_numpy((at % 5 > 0).astype(np.float32)),
        key_hash=torch.from_numpy(at),
    )


def micro_batches(step: int, train: Train, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """This rank's rows of a step: g % W == rank within each micro step; odd steps hide nothing."""
    slots = np.arange(step * train.global_batch, (step + 1) * train.global_batch)
    return [make_batch(bite[rank::world_size], hide=step % 2 == 0) for bite in np.split(slots, train.accumulation)]


def poison(batch: Batch) -> Batch:
    """A batch with a NaN in it."""
    return batch.with_fields(x=batch["x"].index_fill(0, torch.tensor([0]), float("nan")))
