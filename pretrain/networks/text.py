"""Bidirectional text encoders with their vocabulary heads, on transformers models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import ModernBertForMaskedLM, PreTrainedModel, RobertaForMaskedLM

from data_pipelines.base import UserError
from pretrain.networks.architectures import TEXT, model_class, network_config
from pretrain.networks.documents import within
from pretrain.networks.unpadded import UNPADDED, line_up, restore
from pretrain.networks.vocabulary import refuse_longer, row_tokens, vocabulary
from pretrain.objective import DataFacts


def masked_lm_network(
    tree: Mapping[str, Any], where: str, facts: DataFacts, *, unpadded: bool = False
) -> PreTrainedModel:
    """Draw the text network that `tree` describes, vocabulary and special tokens taken from the data.

    Args:
        unpadded: it reads documents one by one (`networks.unpadded`) instead of rows under a mask.

    Raises:
        UserError: see `network_config`; the data holds no tokens; or its rows are longer than the network reads.
    """
    known, longest = vocabulary(facts), row_tokens(facts)
    first = 0
    if tree.get("architecture") == "roberta":
        if known["pad_token_id"] is None:
            raise UserError(f"{where}: roberta counts positions from its padding, and the data has no pad token")
        first = known["pad_token_id"] + 1
    config = network_config({"max_position_embeddings": longest + first, **tree}, TEXT, where, **known)
    refuse_longer(config, longest, where, first)
    network = model_class(str(tree["architecture"]), TEXT)(config)
    if unpadded:
        network.set_attn_implementation(UNPADDED)
    return network


def hidden_states(network: PreTrainedModel, tokens: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states, attention kept inside each document.

    Args:
        tokens: (B, N) int64.
        documents: (B, N) int64; tokens attend to tokens of the same number only.
        positions: (B, N) int64, counted from 0 in every document.

    Returns:
        (B, N, D).
    """
    if isinstance(network, RobertaForMaskedLM):
        positions = positions + network.config.pad_token_id + 1  # its table begins behind the padding
    if network.config._attn_implementation == UNPADDED:
        return _one_by_one(network, tokens, documents, positions)
    together = within(documents)
    attention: Tensor | dict[str, Tensor] = together
    if isinstance(network, ModernBertForMaskedLM):
        near = (positions[:, :, None] - positions[:, None]).abs() <= network.config.sliding_window
        attention = {"full_attention": together, "sliding_attention": together & near.unsqueeze(1)}
    output = network.base_model(input_ids=tokens, attention_mask=attention, position_ids=positions)
    states: Tensor = output.last_hidden_state
    return states


def _one_by_one(network: PreTrainedModel, tokens: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
    line = line_up(documents)
    one_row = [tensor.flatten()[line.places].unsqueeze(0) for tensor in (tokens, positions)]  # (1, M) each
    output = network.base_model(input_ids=one_row[0], position_ids=one_row[1], document_lengths=line.lengths)
    return restore(output.last_hidden_state[0], line, tokens.shape)


def vocabulary_logits(network: PreTrainedModel, states: Tensor) -> Tensor:
    """(M, D) hidden states to (M, vocabulary)."""
    if isinstance(network, ModernBertForMaskedLM):
        logits: Tensor = network.decoder(network.head(states))
        return logits
    head: torch.nn.Module = network.lm_head if isinstance(network, RobertaForMaskedLM) else network.cls
    logits = head(states)
    return logits
