"""Target encoders: frozen twins that follow the trained network (the engine moves them)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def frozen_twin(source: Network) -> Network:
    """A copy that takes no gradient."""
    twin = copy.deepcopy(source)
    return twin.requires_grad_(False)


def cosine_momentum(start: float) -> Callable[[float], float]:
    """Momentum that rises from `start` to 1 along half a cosine as training goes from 0 to 1.

    Source: Grill 2020, arXiv:2006.07733, section 3.3.

    >>> momentum = cosine_momentum(0.99)
    >>> momentum(0.0), round(momentum(0.5), 4), momentum(1.0)
    (0.99, 0.995, 1.0)
    """

    def momentum(progress: float) -> float:
        return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2

    return momentum
