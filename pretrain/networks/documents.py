"""Who may look at whom in a row that several documents share.

Documents are numbered from 1 in every row, 0 is padding; all masks are (B, 1, queries, keys) bool, True = may look.
"""

from __future__ import annotations

import torch
from torch import Tensor


def within(documents: Tensor) -> Tensor:
    """(B, N) to (B, 1, N, N): tokens of one document see each other."""
    return (documents[:, :, None] == documents[:, None]).unsqueeze(1)


def before(documents: Tensor) -> Tensor:
    """(B, N) to (B, 1, N, N): tokens see themselves and what stands before them in their document."""
    length = documents.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return within(documents) & past


def across(target: Tensor, source: Tensor) -> Tensor:
    """(B, T) and (B, S) to (B, 1, T, S): a target sees the source of its own document.

    Padding of the target, whose states nobody reads, sees everything: a query without any key has no softmax.
    """
    same = target[:, :, None] == source[:, None]
    return (same | (target == 0)[:, :, None]).unsqueeze(1)


def mean_of_tokens(states: Tensor, documents: Tensor) -> Tensor:
    """(B, N, D) to (B, D), padding left out."""
    real = (documents > 0).unsqueeze(-1).to(states.dtype)
    return (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
