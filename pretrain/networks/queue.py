"""A memory of past keys: more contrast than one batch holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The newest `size` keys, equal on all ranks, first in first out.

    Source: He 2019, arXiv:1911.05722.
    """

    keys: Tensor
    ids: Tensor
    written: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, width))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    @property
    def valid(self) -> Tensor:
        """(K,) bool, False where nothing was written yet."""
        return torch.arange(len(self.keys), device=self.keys.device) < self.written

    @torch.no_grad()
    def push(self, keys: Tensor, ids: Tensor) -> None:
        """Write (M, D) keys and their (M,) ids over the oldest ones; of more than `size`, the last."""
        size = len(self.keys)
        keys, ids = keys[-size:], ids[-size:]
        places = (self.written + torch.arange(len(keys), device=keys.device)) % size
        self.keys[places] = keys.to(self.keys.dtype)
        self.ids[places] = ids
        self.written += len(keys)
