"""What text objectives share: what a view must know of the data, and what an export says of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from data_pipelines.batch import Batch
from data_pipelines.views.tokens import NOT_ASKED
from pretrain.networks.vocabulary import row_tokens, vocabulary
from pretrain.objective import DataFacts


def token_settings(facts: DataFacts) -> dict[str, Any]:
    """The fields of `PlainTokens`, which every view of packed rows has.

    Raises:
        UserError: the data holds no rows of tokens.
    """
    return {
        "vocabulary_size": vocabulary(facts)["vocab_size"],
        "row_tokens": row_tokens(facts),
        "special_tokens": dict(facts.special_tokens),
    }


def preprocessor(facts: DataFacts) -> dict[str, Any]:
    """What a text needs before the network sees it, as plain data for an export."""
    return {
        "row_tokens": facts.row_tokens,
        "special_tokens": dict(facts.special_tokens),
        "tokenizer_digest": facts.tokenizer_digest,
    }


def asked(batch: Batch) -> Tensor:
    """Which `labels` (B, T) a decoder is asked for, bool."""
    return (batch["labels"] != NOT_ASKED) & (batch.weight > 0)[:, None]


def empty_pairs(*, source: int, target: int) -> Batch:
    """One row of a document and its target of these lengths, on the current device, to count FLOPs with."""
    fields = {
        name: torch.empty(1, length, dtype=torch.int64)
        for side, length in {"source": source, "target": target}.items()
        for name in (side, f"{side}_attention", f"{side}_positions")
    }
    one = torch.empty(1)
    return Batch(fields, keys=("",), positions=one, weight=one, key_hash=one)
