"""Is the run well? Collapse, divergence and starvation, seen while it lives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.config import Monitor

MAX_PAIRED_ROWS = 512
PATIENCE = 3
"""Log steps in a row that embeddings must be flat: every encoder starts nearly so."""


def effective_rank(second_moment: np.ndarray) -> float:
    """RankMe: the exponential of the entropy of the singular values' shares.

    Args:
        second_moment: (D, D), the sum of outer products of uncentred embeddings. Its eigenvalues are
            the squared singular values of the embedding matrix.

    Returns:
        Between 1 (one direction) and D.

    Source: Garrido 2023, arXiv:2210.02885, eq. 1.
    """
    eigenvalues = np.linalg.eigvalsh(second_moment).clip(min=0)
    singular = np.sqrt(eigenvalues)
    if not singular.sum() > 0:
        return 1.0
    shares = singular / singular.sum()
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


class EmbeddingStatistics:
    """Second moment and mean of the embeddings seen since the last read, over all ranks."""

    def __init__(self) -> None:
        self._moment: Tensor | None = None
        self._sum: Tensor | None = None
        self._rows = 0
        self._latest: Tensor | None = None

    def add(self, embeddings: Tensor) -> None:
        """Args: embeddings: (B, D), any float type."""
        rows = embeddings.detach().float()
        if self._moment is None or self._sum is None:
            width = rows.shape[1]
            self._moment = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
            self._sum = torch.zeros(width, dtype=torch.float64, device=rows.device)
        self._moment += (rows.T @ rows).double()
        self._sum += rows.sum(0).double()
        self._rows += len(rows)
        self._latest = rows[:MAX_PAIRED_ROWS]

    @property
    def is_empty(self) -> bool:
        """Whether the objective gave any embeddings at all."""
        return self._moment is None

    def vector(self) -> np.ndarray:
        """What ranks add up: rows, uniformity x rows, sums (D), second moment (D x D)."""
        assert self._moment is not None and self._sum is not None and self._latest is not None
        head = np.array([self._rows, uniformity(self._latest) * self._rows])
        return np.concatenate([head, self._sum.cpu().numpy(), self._moment.cpu().numpy().ravel()])

    def read(self, total: np.ndarray) -> dict[str, float] | None:
        """Figures of the summed vectors; None while rows are too few for a rank to mean anything.

        Source of the condition: rank is biased upwards while rows <= dimensions.
        """
        width = math.isqrt(len(total))  # D^2 + D + 2 has the root D for D >= 2
        rows = total[0]
        if rows <= 2 * width:
            return None
        self._moment = self._sum = None
        self._rows = 0
        mean = total[2 : 2 + width] / rows
        moment = total[2 + width :].reshape(width, width)
        variance = (np.diag(moment) / rows - mean**2).clip(min=0)
        return {
            "effective_rank": effective_rank(moment),
            "embedding_dimensions": float(width),
            "embedding_std": float(np.sqrt(variance).mean()),
            "uniformity": float(total[1] / rows),
        }


def uniformity(embeddings: Tensor) -> float:
    """Log of the mean Gaussian potential of pairs on the unit sphere; lower is more even, 0 is collapse.

    Args:
        embeddings: (B, D).

    Source: Wang 2020, arXiv:2005.10242, eq. 2, t = 2.
    """
    unit = F.normalize(embeddings, dim=1)
    squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    apart = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return float(torch.exp(-2 * squared[apart]).mean().log()) if len(unit) > 1 else 0.0


@dataclass
class Alarms:
    """Turns figures into words, once when a condition begins and not again while it lasts."""

    config: Monitor
    best_loss: float = math.inf
    smooth_loss: float | None = None
    raised: frozenset[str] = frozenset()
    flat: int = 0

    def hear(self, figures: Mapping[str, float]) -> list[tuple[str, str]]:
        """New alarms as (kind, words), from the figures of one log step."""
        now: dict[str, str] = {}
        rank, width = figures.get("effective_rank"), figures.get("embedding_dimensions")
        if rank is not None and width:
            self.flat = self.flat + 1 if rank < max(self.config.min_effective_rank * width, 1.5) else 0
        if rank is not None and width and self.flat >= PATIENCE:
            now["collapse"] = (
                f"the embeddings use {rank:.1f} of {width:.0f} dimensions: the encoder is collapsing; "
                f"raise the contrast (batch, queue, regulariser) or lower the learning rate"
            )
        if (wait := figures.get("data_wait", 0.0)) > self.config.max_data_wait:
            now["starvation"] = f"{wait:.0%} of the time goes into waiting for data; raise data.workers"
        if self._diverges(figures.get("loss")):
            now["divergence"] = f"the loss {figures['loss']:.4g} is far above its best mean {self.best_loss:.4g}"
        fresh = [(kind, words) for kind, words in now.items() if kind not in self.raised]
        self.raised = frozenset(now)
        return fresh

    def _diverges(self, loss: float | None) -> bool:
        if loss is None or not math.isfinite(loss):
            return False
        self.smooth_loss = loss if self.smooth_loss is None else 0.8 * self.smooth_loss + 0.2 * loss
        self.best_loss = min(self.best_loss, self.smooth_loss)
        return self.best_loss > 0 and self.smooth_loss > self.config.divergence * self.best_loss
