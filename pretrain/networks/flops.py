"""Matmul FLOPs of a forward pass, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(call: Callable[[], object]) -> float:
    """FLOPs of the matrix products and convolutions in `call`, which works on meta tensors."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
