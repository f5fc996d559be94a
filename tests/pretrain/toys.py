"""Small objectives of our own, and batches for them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_pipelines.batch import Batch
from pretrain.objective import DataFacts, Encoder, Objective, Output, Target

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
        hidden = torch.where(batch["hidden"].bool(), self.mask_token, x)
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
    """Rows pull on each other: the loss needs all rows of a rank at once."""

    coupling = "micro"

    def __init__(self, facts: DataFacts | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = Network()
        self.view = AsIs()

    def forward(self, batch: Batch) -> Output:
        z = nn.functional.normalize(self.net(batch["x"]), dim=1)
        loss = nn.functional.cross_entropy(z @ z.T / 0.5, torch.arange(len(z)), reduction="sum")
        return Output(loss=loss)

    def encoder(self) -> Encoder:
        return Encoder(self.net, "net.", {})

    def embed(self, batch: Batch) -> Tensor:
        return self.net(batch["x"])

    def flops_per_sample(self) -> float:
        return 1.0


def make_batch(positions: np.ndarray, rows_of_weight_0: int = 0) -> Batch:
    """Rows that are a pure function of their position."""
    rows = np.stack([np.random.default_rng(int(p)).standard_normal(WIDTH) for p in positions]).astype(np.float32)
    weight = np.ones(len(positions), dtype=np.float32)
    weight[len(weight) - rows_of_weight_0 :] = 0
    hidden = (np.asarray(positions) % 3 == 0)[:, None].astype(np.float32)
    return Batch(
        fields={"x": torch.from_numpy(rows), "hidden": torch.from_numpy(hidden)},
        keys=tuple(map(str, positions)),
        positions=torch.from_numpy(np.asarray(positions)),
        weight=torch.from_numpy(weight),
        key_hash=torch.from_numpy(np.asarray(positions)),
    )


def micro_batches(step: int, global_batch: int, accumulation: int, rank: int, world_size: int) -> list[Batch]:
    """This rank's rows of a step: g % W == rank within each micro step."""
    bites = np.split(np.arange(step * global_batch, (step + 1) * global_batch), accumulation)
    return [make_batch(bite[rank::world_size]) for bite in bites]
