"""Bidirectional text encoders with their vocabulary heads, on transformers models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import ModernBertForMaskedLM, PreTrainedModel, RobertaForMaskedLM

from data_pipelines.base import UserError
from pretrain.networks.architectures import TEXT, model_class, network_config
from pretrain.objective import DataFacts

SPECIAL_TOKENS = {
    "pad_token_id": "pad",
    "bos_token_id": "cls",
    "eos_token_id": "sep",
    "cls_token_id": "cls",
    "sep_token_id": "sep",
}
"""Our names by those of transformers configs."""


def masked_lm_network(tree: Mapping[str, Any], where: str, facts: DataFacts) -> PreTrainedModel:
    """Draw the text network that `tree` describes, vocabulary and special tokens taken from the data.

    Raises:
        UserError: see `network_config`; the data holds no tokens; or its rows are longer than the network reads.
    """
    if facts.vocabulary_size is None or facts.row_tokens is None:
        raise UserError("recipe objective: the data holds no tokens; choose an objective for images, or other data")
    special = {theirs: facts.special_tokens.get(ours) for theirs, ours in SPECIAL_TOKENS.items()}
    first = 0
    if tree.get("architecture") == "roberta":
        if special["pad_token_id"] is None:
            raise UserError(f"{where}: roberta counts positions from its padding, and the data has no pad token")
        first = special["pad_token_id"] + 1
    defaults = {"max_position_embeddings": facts.row_tokens + first}
    config = network_config({**defaults, **tree}, TEXT, where, vocab_size=facts.vocabulary_size, **special)
    if facts.row_tokens + first > config.max_position_embeddings:
        raise UserError(
            f"{where}: rows of {facts.row_tokens} tokens do not fit max_position_embeddings="
            f"{config.max_position_embeddings}; leave it out, or pack the data with shorter rows"
        )
    return model_class(str(tree["architecture"]), TEXT)(config)


def hidden_states(network: PreTrainedModel, tokens: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states, attention kept inside each document.

    Args:
        tokens: (B, N) int64.
        segments: (B, N) int64; tokens attend to tokens of the same number only.
        positions: (B, N) int64, counted from 0 in every document.

    Returns:
        (B, N, D).
    """
    together = (segments[:, :, None] == segments[:, None]).unsqueeze(1)  # (B, 1, N, N)
    attention: Tensor | dict[str, Tensor] = together
    if isinstance(network, ModernBertForMaskedLM):
        near = (positions[:, :, None] - positions[:, None]).abs() <= network.config.sliding_window
        attention = {"full_attention": together, "sliding_attention": together & near.unsqueeze(1)}
    if isinstance(network, RobertaForMaskedLM):
        positions = positions + network.config.pad_token_id + 1  # its table begins behind the padding
    output = network.base_model(input_ids=tokens, attention_mask=attention, position_ids=positions)
    states: Tensor = output.last_hidden_state
    return states


def vocabulary_logits(network: PreTrainedModel, states: Tensor) -> Tensor:
    """(M, D) hidden states to (M, vocabulary)."""
    if isinstance(network, ModernBertForMaskedLM):
        logits: Tensor = network.decoder(network.head(states))
        return logits
    head: torch.nn.Module = network.lm_head if isinstance(network, RobertaForMaskedLM) else network.cls
    logits = head(states)
    return logits
