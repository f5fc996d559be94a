"""Stochastic depth: in training, a residual branch is left out for some samples.

Source: Huang 2016, arXiv:1603.09382; rates rise linearly over the layers, as in their section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ViTModel

from data_pipelines.base import UserError


class DropPath(nn.Module):
    """Zero for a share of the rows in training, scaled so that the mean stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) to the same."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


def drop_paths(network: nn.Module, rate: float) -> None:
    """Let both branches of every layer drop out, at `rate` in the last layer.

    Raises:
        UserError: no layers in which this program knows how.
    """
    if rate == 0 or not any(True for _ in network.parameters()):
        return
    if not isinstance(network, ViTModel) or network.config.hidden_dropout_prob:
        raise UserError(f"drop_path={rate} is for ViTs without dropout, this is {type(network).__name__}; set it to 0")
    for layer, share in zip(network.layers, torch.linspace(0, rate, len(network.layers)).tolist(), strict=True):
        layer.dropout = DropPath(share)  # stands at the end of either branch, and has no state
