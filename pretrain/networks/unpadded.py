"""The documents of a micro batch in one line, padding left out, each attended to by itself.

A mask over whole rows makes every token meet every other one and throws most of it away; here a document of n tokens
costs n * n. transformers' own unpadded path needs the flash-attention package and a GPU, and its flex attention has no
backward pass on CPUs; this one is torch's attention called once a document, the same on both, dropout included.
Three layers of BERT base, 4,096 tokens a step, one CPU thread: 11.4 s instead of 28.5 in rows of 2,048 (documents of
300 on average), 8.2 instead of 9.8 in rows of 512 (documents of 100), 6.7 instead of 7.3 in rows of 128 (of 35).
On a GPU many short documents mean many small kernels: measure before you switch it on there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

UNPADDED = "documents"
"""Of the attention below, among transformers' implementations."""


class Line(NamedTuple):
    """Where the real tokens of (B, N) rows are.

    Attributes:
        places: (M,) int64, their places in the flattened rows.
        lengths: of the documents, in order; M in sum.
    """

    places: Tensor
    lengths: list[int]


def line_up(documents: Tensor) -> Line:
    """The tokens of a document are neighbours; padding is 0.

    Args:
        documents: (B, N) int64, numbered from 1 in every row.
    """
    row = torch.arange(len(documents), device=documents.device)[:, None]
    number = (row * (documents.shape[1] + 1) + documents).flatten()  # another one in every row
    places = documents.flatten().nonzero().squeeze(1)
    _, lengths = torch.unique_consecutive(number[places], return_counts=True)
    return Line(places, lengths.tolist())


def restore(states: Tensor, line: Line, shape: torch.Size) -> Tensor:
    """(M, D) states of a line back in their rows, (B, N, D); zeros where there is padding."""
    rows = states.new_zeros(shape.numel(), states.shape[-1])
    return rows.index_copy(0, line.places, states).view(*shape, -1)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    document_lengths: list[int],
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention as transformers' layers call it.

    Args:
        query: (1, heads, M, width of a head), like `key` and `value`.
        sliding_window: tokens see those less than so many places away.
        document_lengths: see `Line`.

    Returns:
        (1, M, heads, width of a head), and no weights.
    """
    parts = zip(*(tensor.split(document_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    seen = [
        F.scaled_dot_product_attention(q, k, v, _near(q, sliding_window), dropout_p=dropout, scale=scaling)
        for q, k, v in parts
    ]
    return torch.cat(seen, dim=2).transpose(1, 2).contiguous(), None


def _near(query: Tensor, window: int | None) -> Tensor | None:
    """(n, n) bool, or None where the window holds the whole document."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=query.device)
    return (places[:, None] - places).abs() < window


AttentionInterface.register(UNPADDED, attend)
