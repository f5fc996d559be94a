"""InfoNCE over any number of candidates: tell a query's own key from all others.

Rows of queries are taken a block at a time and logits are never kept: forward leaves one log-sum-exp
a row, backward computes the block again. Memory is O(block x M), not O(B x M).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_LOGITS = 2**24
"""Logits in memory at once: 64 MiB of fp32, and a few times that while they are worked on."""


@dataclass(frozen=True)
class Candidates:
    """The keys that queries choose from.

    Attributes:
        keys: (M, D), unit length.
        ids: (M,) int64; a query does not contrast with candidates of its own id.
        valid: (M,) bool; False is no candidate for anyone (padding).
    """

    keys: Tensor
    ids: Tensor
    valid: Tensor


def info_nce(
    queries: Tensor,
    candidates: Candidates,
    positives: Tensor,
    ids: Tensor,
    temperature: float,
    block_logits: int = BLOCK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Surprise at each query's own key among the candidates.

    Args:
        queries: (B, D), unit length.
        candidates: of all ranks, M of them.
        positives: (B,) int64, the candidate that belongs to each query; it always competes.
        ids: (B,) int64; candidates of the query's id do not compete, except its positive.
        temperature: divisor of the cosine, > 0.
        block_logits: most logits in memory at once; at least one query's are.

    Returns:
        loss (B,) in nats, fp32, differentiable in queries and keys; and whether the positive is the
        nearest of all competing candidates, (B,) bool.

    Source: van den Oord 2018, arXiv:1807.03748, eq. 4; f = exp(cosine / temperature).

    >>> eye = torch.eye(2)
    >>> own = torch.arange(2)
    >>> loss, nearest = info_nce(eye, Candidates(eye, own, own >= 0), own, own, 1.0)
    >>> round(loss.mean().item(), 4), nearest.all().item()
    (0.3133, True)
    """
    rows = max(1, block_logits // len(candidates.keys))
    loss, correct = _InfoNCE.apply(
        queries.float(), candidates.keys.float(), candidates.ids, candidates.valid, positives, ids, temperature, rows
    )
    return loss, correct


def _logits(
    queries: Tensor, keys: Tensor, key_ids: Tensor, valid: Tensor, positives: Tensor, ids: Tensor, temperature: float
) -> Tensor:
    """(b, M) logits of a block, -inf where a candidate does not compete."""
    logits = queries @ keys.T / temperature
    out = (ids[:, None] == key_ids[None]) | ~valid[None]
    out.scatter_(1, positives[:, None], False)
    return logits.masked_fill_(out, float("-inf"))


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        key_ids: Tensor,
        valid: Tensor,
        positives: Tensor,
        ids: Tensor,
        temperature: float,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        log_sums, own, nearest = [], [], []
        with torch.autocast(queries.device.type, enabled=False):
            for q, p, i in zip(queries.split(rows), positives.split(rows), ids.split(rows), strict=True):
                logits = _logits(q, keys, key_ids, valid, p, i, temperature)
                log_sums.append(logits.logsumexp(dim=1))
                own.append(logits.gather(1, p[:, None]).squeeze(1))
                nearest.append(logits.argmax(dim=1) == p)
        log_sum, correct = torch.cat(log_sums), torch.cat(nearest)
        ctx.save_for_backward(queries, keys, key_ids, valid, positives, ids, log_sum)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.mark_non_differentiable(correct)
        return log_sum - torch.cat(own), correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, key_ids, valid, positives, ids, log_sum = ctx.saved_tensors
        into_queries, into_keys = torch.empty_like(queries), torch.zeros_like(keys)
        with torch.autocast(queries.device.type, enabled=False):
            for start in range(0, len(queries), ctx.rows):
                block = slice(start, start + ctx.rows)
                q, p = queries[block], positives[block]
                logits = _logits(q, keys, key_ids, valid, p, ids[block], ctx.temperature)
                slope = (logits - log_sum[block, None]).exp_()  # softmax
                slope.scatter_add_(1, p[:, None], slope.new_full((len(p), 1), -1.0))
                slope *= gradients[0][block, None] / ctx.temperature
                torch.matmul(slope, keys, out=into_queries[block])
                into_keys.addmm_(slope.T, q)
        return into_queries, into_keys, *[None] * 6
