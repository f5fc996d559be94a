"""Rows of all ranks, with exact gradients.

Everything works without torch.distributed too, as a world of one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# the names of torch >= 2.13; older ones know the operations by the names that it deprecates
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world_size() -> int:
    """Ranks that couple; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(rows: Tensor) -> Tensor:
    """Rows of all ranks, rank after rank; gradients of all ranks flow back.

    Args:
        rows: (b, ...), the same shape on every rank.

    Returns:
        (W * b, ...). The gradient of `rows` is the sum over all ranks of the gradients of their copy,
        so that the sum of all ranks' losses is differentiated exactly.
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


def gather_constant(rows: Tensor) -> Tensor:
    """`gather` for what has no gradient: ids, weights, keys of a target encoder."""
    if world_size() == 1:
        return rows.detach()
    rows = rows.detach().contiguous()
    everyone = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
    _all_gather(everyone, rows)
    return everyone


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_constant(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty((len(gradient) // world_size(), *gradient.shape[1:]))
        _reduce_scatter(own, gradient.contiguous())
        return own
