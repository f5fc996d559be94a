"""Encoder-decoders over packed rows: documents stay apart, weights are drawn, wrong settings are answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from data_pipelines.base import UserError
from pretrain.networks.architectures import SEQ2SEQ
from pretrain.networks.documents import across
from pretrain.networks.seq2seq import encode, forward, seq2seq_network, vocabulary_logits
from pretrain.objective import DataFacts
from tests.pretrain.texts import FACTS, SPECIAL, TINY, batch_of, document, packed

SOURCES, TARGETS = (document(5, 0), document(7, 1)), (document(4, 2), document(6, 3))


def network_of(architecture: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        spread = {} if architecture == "t5" else {"init_std": 0.2}  # so that a wrong token shows
        tree = {"architecture": architecture, **TINY[architecture], **spread, **changes}
        return seq2seq_network(tree, "here", FACTS, longest=16).eval()


def read(network: PreTrainedModel, sources: list[Any], targets: list[Any], lengths: tuple[int, int]) -> Tensor:
    fields = {**packed(sources, lengths[0], "source_"), **packed(targets, lengths[1], "target_")}
    return vocabulary_logits(network, forward(network, batch_of(**fields)).target)


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_a_document_of_a_row_reads_as_it_does_alone(architecture: str) -> None:
    network = network_of(architecture)
    together = read(network, [SOURCES], [TARGETS], (16, 14))[0]
    parts = together[:4], together[4:10]
    for source, target, part in zip(SOURCES, TARGETS, parts, strict=True):
        alone = network(input_ids=source[None], decoder_input_ids=target[None]).logits[0]  # transformers' own path
        torch.testing.assert_close(part, alone, rtol=0, atol=1e-5)
    fields = packed([SOURCES], 16)
    states = encode(network, fields["tokens"], fields["attention"], fields["positions"])
    for place, source in ((slice(0, 5), SOURCES[0]), (slice(5, 12), SOURCES[1])):
        alone = network.get_encoder()(source[None]).last_hidden_state[0]
        torch.testing.assert_close(states[0, place], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_every_weight_is_drawn_and_drawn_anew_by_another_seed(architecture: str) -> None:
    first, same, other = (dict(network_of(architecture, seed).named_parameters()) for seed in (0, 0, 1))
    matrices = [name for name, parameter in first.items() if parameter.ndim > 1]
    assert len(matrices) > 20
    for name in matrices:
        assert first[name].std() > 1e-3, name
        assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name]), name


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_every_parameter_takes_part_and_padding_gives_no_nan(architecture: str) -> None:
    network = network_of(architecture)
    # the first row's source fills the row while its target does not: padding that finds no padding to look at
    logits = read(network, [[document(12, 4)], SOURCES], [[document(3, 5)], TARGETS], (12, 12))
    assert logits.isfinite().all()
    logits.logsumexp(dim=-1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert across(torch.tensor([[1, 1, 0]]), torch.tensor([[1, 1]])).any(dim=-1).all()


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_embeddings_are_one_tensor_and_writing_begins_and_ends_as_the_data_says(architecture: str) -> None:
    network = network_of(architecture)
    assert network.lm_head.weight is network.get_input_embeddings().weight
    assert network.generation_config.eos_token_id == SPECIAL["sep"]
    assert network.generation_config.decoder_start_token_id == SPECIAL["cls"]
    assert network.generation_config.forced_eos_token_id == (None if architecture == "t5" else SPECIAL["sep"])


@pytest.mark.parametrize("scaled", [True, False])
def test_a_t5_scales_what_enters_the_vocabulary_where_its_config_says_so(scaled: bool) -> None:
    network = network_of("t5")
    network.config.scale_decoder_outputs = scaled
    alone = network(input_ids=SOURCES[0][None], decoder_input_ids=TARGETS[0][None]).logits
    torch.testing.assert_close(read(network, [SOURCES[:1]], [TARGETS[:1]], (5, 4)), alone)


@pytest.mark.parametrize(
    ("tree", "facts", "message"),
    [
        ({"architecture": "barts"}, FACTS, "architecture 'barts' is unknown; did you mean 'bart'"),
        ({"architecture": "t5", "hidden": 3}, FACTS, "here: unknown key 'hidden'"),
        ({"architecture": "bart", "max_position_embeddings": 9}, FACTS, "texts of 16 tokens do not fit"),
        ({"architecture": "mbart", "encoder_layerdrop": 0.1}, FACTS, "encoder_layerdrop must be 0"),
        ({"architecture": "bart", "pad_token_id": 7}, FACTS, "pad_token_id=7 contradicts the data's 0"),
        ({"architecture": "bart"}, DataFacts(channels=3), "the data holds no tokens"),
    ],
)
def test_wrong_settings_are_answered_in_one_line(tree: dict[str, Any], facts: DataFacts, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        seq2seq_network(tree, "here", facts, longest=16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("languages", "start"), [((), 2), (("de",), 6), (("de", "en"), None)])
def test_writing_begins_with_the_language_where_there_is_one(languages: tuple[str, ...], start: int | None) -> None:
    facts = replace(FACTS, special_tokens={**SPECIAL, "lang:en": 5, "lang:de": 6}, languages=languages)
    network = seq2seq_network({"architecture": "mbart", **TINY["mbart"]}, "here", facts, longest=4)
    assert network.generation_config.decoder_start_token_id == start


def test_special_tokens_that_the_data_lacks_stay_unset() -> None:
    facts = replace(FACTS, special_tokens={"pad": 0})
    assert seq2seq_network({"architecture": "t5", **TINY["t5"]}, "here", facts, longest=4).config.eos_token_id is None
