"""Decoders that write text from left to right, on transformers models; documents that share a row are kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from pretrain.networks.architectures import CAUSAL, model_class, network_config
from pretrain.networks.documents import before
from pretrain.networks.vocabulary import refuse_layerdrop, refuse_longer, vocabulary
from pretrain.objective import DataFacts


def causal_network(tree: Mapping[str, Any], where: str, facts: DataFacts, *, longest: int) -> PreTrainedModel:
    """Draw the decoder that `tree` describes, vocabulary and special tokens taken from the data.

    Args:
        longest: tokens of the longest document that is read.

    Raises:
        UserError: see `network_config`; the data holds no tokens; documents are longer than the network reads; or
            the recipe drops layers at random.
    """
    config = network_config({"max_position_embeddings": longest, **tree}, CAUSAL, where, **vocabulary(facts))
    refuse_longer(config, longest, where)
    refuse_layerdrop(config, where)
    return model_class(str(tree["architecture"]), CAUSAL)(config)


def hidden_states(network: PreTrainedModel, tokens: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states, (B, N, D), each made of its document up to its own token.

    Args:
        tokens: (B, N) int64.
        documents: (B, N) int64; tokens see those of the same number only.
        positions: (B, N) int64, counted from 0 in every document.
    """
    output = network.base_model(
        input_ids=tokens, attention_mask=before(documents), position_ids=positions, use_cache=False
    )
    states: Tensor = output.last_hidden_state
    return states


def vocabulary_logits(network: PreTrainedModel, states: Tensor) -> Tensor:
    """(M, D) hidden states to (M, vocabulary)."""
    logits: Tensor = network.lm_head(states)
    return logits
