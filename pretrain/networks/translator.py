"""Encoder-decoders to be fine-tuned on pairs of texts: an exported one, or an exported encoder with a fresh decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderModel,
    PretrainedConfig,
    PreTrainedModel,
)

from data_pipelines.base import UserError
from data_pipelines.batch import Batch
from pretrain.export import PREPROCESSOR, quiet_transformers
from pretrain.networks import seq2seq
from pretrain.networks.architectures import SEQ2SEQ, TEXT
from pretrain.networks.documents import across, before, within
from pretrain.networks.vocabulary import SPECIAL_TOKENS, refuse_layerdrop, refuse_longer
from pretrain.objective import DataFacts


def translator(
    source: str | Mapping[str, Any], where: str, facts: DataFacts, *, longest: int, decoder_layers: int
) -> PreTrainedModel:
    """The network that learns to translate.

    Args:
        source: folder of an export, or `architecture` and keys as `seq2seq_network` takes them.
        longest: tokens of the longest sentence that is read or written.
        decoder_layers: of the fresh decoder that an encoder alone is given.

    Raises:
        UserError: the export is none of a text network, its tokenizer is not the data's, or sentences are longer than
            it reads.
    """
    if not isinstance(source, str):
        return seq2seq.seq2seq_network(source, where, facts, longest=longest)
    folder = Path(source)
    config = _config(folder, where)
    _refuse_other_vocabulary(folder, facts, where)
    if config.model_type != "t5":
        refuse_longer(config, longest, where, _first_place(config))
    refuse_layerdrop(config, where)
    with quiet_transformers():
        if config.model_type in SEQ2SEQ:
            network: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
            return network
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # no loss passes it, and ZeRO would wait for its gradient
    return EncoderDecoderModel(encoder=encoder, decoder=_fresh_decoder(config, facts, longest, decoder_layers))


def target_states(network: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states of the decoder, (B, T, D); see `seq2seq.forward` for the fields of `batch`."""
    if not isinstance(network, EncoderDecoderModel):
        return seq2seq.forward(network, batch).target
    documents = batch["target_attention"]
    source = encoder_states(network, batch["source"], batch["source_attention"], batch["source_positions"])
    decoder: Any = network.decoder
    found: Tensor = decoder.base_model(
        input_ids=batch["target"],
        attention_mask=before(documents),
        position_ids=batch["target_positions"],
        encoder_hidden_states=source,
        encoder_attention_mask=across(documents, batch["source_attention"]),
        use_cache=False,
    ).last_hidden_state
    return found


def encoder_states(network: PreTrainedModel, tokens: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states of the encoder, (B, S, D); see `seq2seq.encode`."""
    if not isinstance(network, EncoderDecoderModel):
        return seq2seq.encode(network, tokens, documents, positions)
    encoder: Any = network.encoder
    found: Tensor = encoder(
        input_ids=tokens, attention_mask=within(documents), position_ids=positions + _first_place(encoder.config)
    ).last_hidden_state
    return found


def vocabulary_logits(network: PreTrainedModel, states: Tensor) -> Tensor:
    """(M, D) hidden states of the decoder to (M, vocabulary)."""
    if isinstance(network, EncoderDecoderModel):
        head: Any = network.decoder
        logits: Tensor = head.cls(states)
        return logits
    return seq2seq.vocabulary_logits(network, states)


def _config(folder: Path, where: str) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {folder} is no export: {' '.join(str(error).split())[:200]}") from None
    if config.model_type not in {*SEQ2SEQ, *TEXT} - {"modernbert"}:
        raise UserError(
            f"{where}: {folder} holds a {config.model_type}; translation wants an encoder-decoder "
            f"({', '.join(SEQ2SEQ)}), or an encoder of text (bert, roberta)"
        )
    return config


def _refuse_other_vocabulary(folder: Path, facts: DataFacts, where: str) -> None:
    try:
        learned = json.loads((folder / PREPROCESSOR).read_text()).get("tokenizer_digest")
    except (FileNotFoundError, ValueError):
        learned = None
    if learned is not None and learned != facts.tokenizer_digest:
        raise UserError(
            f"{where}: the data's tokenizer is not the one that {folder} was pretrained with; "
            f"pack the pairs with tokenizer=FOLDER, the set that the run read"
        )


def _first_place(config: PretrainedConfig) -> int:
    """Row of the table of positions that text begins at: RoBERTa's begins behind the padding."""
    return int(config.pad_token_id + 1) if config.model_type == "roberta" else 0


def _fresh_decoder(encoder: PretrainedConfig, facts: DataFacts, longest: int, layers: int) -> BertLMHeadModel:
    """As wide as the encoder, in BERT's manner.

    Source: Rothe 2019, arXiv:1907.12461, section 2, its "2Rnd" decoder.
    """
    special = {theirs: facts.special_tokens.get(ours) for theirs, ours in SPECIAL_TOKENS.items()}
    config = BertConfig(
        vocab_size=encoder.vocab_size,
        hidden_size=encoder.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=encoder.num_attention_heads,
        intermediate_size=encoder.intermediate_size,
        max_position_embeddings=longest,
        is_decoder=True,
        add_cross_attention=True,
        **{name: value for name, value in special.items() if name.startswith(("pad", "bos", "eos"))},
    )
    return BertLMHeadModel(config)
