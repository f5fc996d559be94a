"""What text objectives share: what a view must know of the data, and what an export says of it."""

from __future__ import annotations

from typing import Any

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
