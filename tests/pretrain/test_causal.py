"""Left-to-right decoders over packed rows: documents stay apart, weights are drawn, wrong settings are answered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from data_pipelines.base import UserError
from pretrain.networks.causal import causal_network, hidden_states, vocabulary_logits
from pretrain.objective import DataFacts
from tests.pretrain.texts import FACTS, SPECIAL, TINY, document, packed

SHAPES = {"opt": {}, "projected": {"word_embed_proj_dim": 8, "do_layer_norm_before": False}}  # OPT 350M is the second


def network_of(seed: int = 0, **changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tree = {"architecture": "opt", **TINY["opt"], "init_std": 0.2, **changes}  # so that a wrong token shows
        return causal_network(tree, "here", FACTS, longest=16).eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_document_of_a_row_reads_as_it_does_alone(shape: str) -> None:
    network, texts = network_of(**SHAPES[shape]), (document(6, 0), document(8, 1))
    fields = packed([texts], 16)
    logits = vocabulary_logits(network, hidden_states(network, *fields.values()))[0]
    for place, text in ((slice(0, 6), texts[0]), (slice(6, 14), texts[1])):
        alone = network(text[None]).logits[0]  # transformers' own path
        torch.testing.assert_close(logits[place], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_is_drawn_and_drawn_anew_by_another_seed(shape: str) -> None:
    first, same, other = (dict(network_of(seed, **SHAPES[shape]).named_parameters()) for seed in (0, 0, 1))
    matrices = [name for name, parameter in first.items() if parameter.ndim > 1]
    assert len(matrices) > 10
    for name in matrices:
        assert first[name].std() > 1e-3, name
        assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name]), name


def test_embeddings_are_one_tensor_and_writing_ends_as_the_data_says() -> None:
    network = network_of()
    assert network.lm_head.weight is network.get_input_embeddings().weight
    assert network.generation_config.eos_token_id == SPECIAL["sep"]
    assert network.generation_config.bos_token_id == SPECIAL["cls"]


@pytest.mark.parametrize(
    ("tree", "facts", "message"),
    [
        ({"architecture": "otp"}, FACTS, "architecture 'otp' is unknown; did you mean 'opt'"),
        ({"architecture": "opt", "max_position_embeddings": 15}, FACTS, "texts of 16 tokens do not fit"),
        ({"architecture": "opt", "layerdrop": 0.1}, FACTS, "layerdrop must be 0"),
        ({"architecture": "opt"}, DataFacts(channels=3), "the data holds no tokens"),
    ],
)
def test_wrong_settings_are_answered_in_one_line(tree: dict[str, Any], facts: DataFacts, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        causal_network(tree, "here", facts, longest=16)
    assert "\n" not in str(caught.value)
