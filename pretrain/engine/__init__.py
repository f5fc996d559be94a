"""A thin engine over DeepSpeed: steps, state by parameter name, any ZeRO stage."""

from pretrain.engine.core import Engine, StepStats
from pretrain.engine.layout import Cut, Entry, Slice

__all__ = ["Cut", "Engine", "Entry", "Slice", "StepStats"]
