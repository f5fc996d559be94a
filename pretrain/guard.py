"""Bad steps: found before the optimizer moves, skipped on every rank alike, counted."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from pretrain.config import Train

HISTORY = 64
SETTLED = 16


class Guard:
    """Judges each step from the gradient norm and loss that all ranks share, so that all decide alike."""

    def __init__(self, train: Train) -> None:
        self._train = train
        self._norms: list[float] = []
        self.skipped = 0
        self.in_a_row = 0

    def complaint(self, loss: float, grad_norm: float) -> str | None:
        """Why this step must be skipped; None for a good one.

        Args:
            loss: mean over the global batch.
            grad_norm: over all parameters, before clipping.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if len(self._norms) >= SETTLED and grad_norm > self._train.spike_factor * median(self._norms):
            return f"the gradient norm {grad_norm:.3g} is beyond {self._train.spike_factor:g} times its median"
        return None

    def took(self, grad_norm: float) -> None:
        """A good step was applied."""
        self.in_a_row = 0
        self._norms = [*self._norms[1 - HISTORY :], grad_norm]

    def skip(self) -> bool:
        """A bad step was skipped; whether the budget of bad steps in a row is spent."""
        self.skipped += 1
        self.in_a_row += 1
        return self.in_a_row > self._train.max_skipped

    def state(self) -> dict[str, Any]:
        """Plain data for the checkpoint: decisions after a resume are those of an unbroken run."""
        return {"norms": self._norms, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Take `state` up again."""
        self._norms = list(state["norms"])
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
