"""What a text network takes over from the data: its vocabulary, its special tokens, the length of its texts."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from data_pipelines.base import UserError
from pretrain.objective import DataFacts

SPECIAL_TOKENS = {
    "pad_token_id": "pad",
    "bos_token_id": "cls",
    "eos_token_id": "sep",
    "cls_token_id": "cls",
    "sep_token_id": "sep",
    "forced_eos_token_id": "sep",
}
"""Our names by those of transformers configs."""


def vocabulary(facts: DataFacts) -> dict[str, Any]:
    """Size of the vocabulary and ids of special tokens, by the keys of transformers configs.

    Raises:
        UserError: the data holds no tokens.
    """
    if facts.vocabulary_size is None:
        raise UserError("recipe objective: the data holds no tokens; choose an objective for images, or other data")
    special = {theirs: facts.special_tokens.get(ours) for theirs, ours in SPECIAL_TOKENS.items()}
    return {"vocab_size": facts.vocabulary_size, **special}


def row_tokens(facts: DataFacts) -> int:
    """Tokens a row of the data.

    Raises:
        UserError: the data holds no rows of tokens.
    """
    if facts.row_tokens is None:
        raise UserError("recipe objective: the data holds no rows of tokens; `thalweg data pack text` makes them")
    return facts.row_tokens


def refuse_longer(config: PretrainedConfig, longest: int, where: str, first: int = 0) -> None:
    """Raises UserError where texts of `longest` tokens leave the table of positions, which begin at `first`."""
    places = config.max_position_embeddings
    if longest + first > places:
        raise UserError(
            f"{where}: texts of {longest} tokens do not fit max_position_embeddings={places}; leave it out, or pack "
            f"the data with shorter rows"
        )


def refuse_layerdrop(config: PretrainedConfig, where: str) -> None:
    """Raises UserError where layers are left out at random: each rank would leave out others, and ZeRO hang."""
    for key in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, key, 0.0):
            raise UserError(f"{where}: {key} must be 0; each rank would leave out other layers than its neighbours")
