"""Encoder-decoders with their vocabulary heads, on transformers models; documents that share a row are kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import MBartForConditionalGeneration, PreTrainedModel, T5ForConditionalGeneration

from data_pipelines.batch import Batch
from pretrain.networks.architectures import SEQ2SEQ, model_class, network_config
from pretrain.networks.documents import across, before, within
from pretrain.networks.vocabulary import refuse_layerdrop, refuse_longer, vocabulary
from pretrain.objective import DataFacts


@dataclass(frozen=True)
class States:
    """Last hidden states of an encoder-decoder.

    Attributes:
        source: (B, S, D), of the encoder.
        target: (B, T, D), of the decoder.
    """

    source: Tensor
    target: Tensor


def seq2seq_network(tree: Mapping[str, Any], where: str, facts: DataFacts, *, longest: int) -> PreTrainedModel:
    """Draw the encoder-decoder that `tree` describes, vocabulary and special tokens taken from the data.

    Args:
        longest: tokens of the longest document that is read or written.

    Raises:
        UserError: see `network_config`; the data holds no tokens; documents are longer than the network reads; or
            the recipe drops layers at random.
    """
    architecture = tree.get("architecture")
    known = vocabulary(facts)
    defaults = {} if architecture == "t5" else {"max_position_embeddings": longest}  # T5 knows distances alone
    config = network_config({**defaults, **tree}, SEQ2SEQ, where, **known)
    config.decoder_start_token_id = first_written(facts)
    if architecture != "t5":
        refuse_longer(config, longest, where)
    refuse_layerdrop(config, where)
    return model_class(str(architecture), SEQ2SEQ)(config)


def first_written(facts: DataFacts) -> int | None:
    """The token that decoders of this data begin with: the language's, else cls; None where every text has its own."""
    if len(facts.languages) > 1:
        return None
    names = [f"lang:{language}" for language in facts.languages]
    return next((facts.special_tokens[name] for name in [*names, "cls"] if name in facts.special_tokens), None)


def forward(network: PreTrainedModel, batch: Batch) -> States:
    """Read `source`, then `target` beside it, every document by itself.

    Args:
        batch: fields `source`, `source_attention`, `source_positions` (B, S) and `target`, `target_attention`,
            `target_positions` (B, T), int64: tokens, their document's number (0: padding), their place in it.
    """
    source = encode(network, batch["source"], batch["source_attention"], batch["source_positions"])
    own = before(batch["target_attention"])
    cross = across(batch["target_attention"], batch["source_attention"])
    if isinstance(network, T5ForConditionalGeneration):
        output = network.decoder(
            input_ids=batch["target"],
            attention_mask=own,
            encoder_hidden_states=source,
            encoder_attention_mask=cross,
            use_cache=False,
        )
        return States(source, output.last_hidden_state)
    decoder = network.model.decoder
    states = _embed(decoder, batch["target"], batch["target_positions"])
    for layer in decoder.layers:
        states = layer(states, own, source, encoder_attention_mask=cross)
    return States(source, _finish(network, decoder, states))


def encode(network: PreTrainedModel, tokens: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states of the encoder, (B, N, D).

    Args:
        tokens: (B, N) int64.
        documents: (B, N) int64; tokens see those of the same number only.
        positions: (B, N) int64, counted from 0 in every document.
    """
    together = within(documents)
    if isinstance(network, T5ForConditionalGeneration):
        found: Tensor = network.encoder(input_ids=tokens, attention_mask=together).last_hidden_state
        return found
    encoder = network.model.encoder
    states = _embed(encoder, tokens, positions)
    for layer in encoder.layers:
        states = layer(states, together)
    return _finish(network, encoder, states)


def vocabulary_logits(network: PreTrainedModel, states: Tensor) -> Tensor:
    """(M, D) hidden states of the decoder to (M, vocabulary)."""
    if isinstance(network, T5ForConditionalGeneration):
        scale = network.model_dim**-0.5 if network.config.scale_decoder_outputs else 1.0
        logits: Tensor = network.lm_head(states * scale)
        return logits
    logits = network.lm_head(states)
    return logits.add_(network.final_logits_bias)  # in place: it is the largest tensor there is


def _embed(stack: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    """What enters the first layer of a BART: its own forward counts positions along the row, not the document."""
    places = stack.embed_positions(tokens, position_ids=positions)[0]  # it adds an axis in front
    states = stack.layernorm_embedding(stack.embed_tokens(tokens) + places)
    return F.dropout(states, stack.dropout, stack.training)


def _finish(network: PreTrainedModel, stack: Any, states: Tensor) -> Tensor:
    """mBART normalises in front of each layer, and so once more behind the last."""
    final: Tensor = stack.layer_norm(states) if isinstance(network, MBartForConditionalGeneration) else states
    return final
