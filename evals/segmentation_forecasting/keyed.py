"""Randomness of what this eval trains: by name and step, so that the same settings make the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from data_pipelines.hashing import mix

SEED = 0
Network = TypeVar("Network", bound=nn.Module)


def rng(name: str, step: int) -> np.random.Generator:
    """What a step of the training of `name` draws from."""
    return np.random.Generator(np.random.Philox(key=int(mix(SEED, "segmentation_forecasting", name, step))))


def drawn(name: str, build: Callable[[], Network]) -> Network:
    """A network whose parameters depend on `name` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(mix(SEED, "segmentation_forecasting", name)) >> 1)
        return build()
