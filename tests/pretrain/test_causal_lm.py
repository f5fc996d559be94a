"""The causal language model: what it is asked, what it may look at, what it learns and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from data_pipelines.base import UserError
from data_pipelines.batch import Batch
from pretrain.objective import DataFacts
from pretrain.objectives import build
from pretrain.objectives.causal_lm import CausalLanguageModel
from tests.pretrain.texts import FACTS, SPECIAL, TINY, batch_of, document, packed

TEXTS = (document(6, 0), document(7, 1), document(9, 2))


def language_model(**network: Any) -> CausalLanguageModel:
    tree = {"name": "causal_lm", "network": {"architecture": "opt", **TINY["opt"], "init_std": 0.2, **network}}
    built = build(tree, FACTS, seed=0)
    assert isinstance(built, CausalLanguageModel)
    return built


def rows_of(*rows: tuple[Tensor, ...]) -> Batch:
    return batch_of(**packed(rows, 16))


def test_the_loss_is_that_of_each_document_alone() -> None:
    model = language_model().eval()
    batch = rows_of(TEXTS[:2], TEXTS[2:])
    logits = [model.network(text[None]).logits[0, :-1] for text in TEXTS]  # transformers' own path
    expected = sum(F.cross_entropy(found, text[1:], reduction="sum") for found, text in zip(logits, TEXTS, strict=True))
    output = model(batch)
    torch.testing.assert_close(output.loss, expected)
    assert model.rows(batch) == 5 + 6 + 8
    torch.testing.assert_close(output.logs["perplexity"], (expected / 19).exp())


def test_rows_without_weight_are_not_asked() -> None:
    model, both = language_model().eval(), rows_of(TEXTS[:2], TEXTS[2:])
    first = Batch(both.fields, both.keys, both.positions, torch.tensor([1.0, 0.0]), both.key_hash)
    assert model.rows(first) == 11
    torch.testing.assert_close(model(first).loss, model(rows_of(TEXTS[:2])).loss)


def test_a_token_depends_on_what_stands_before_it_alone() -> None:
    model = language_model().eval()
    changed = TEXTS[2].clone()
    changed[5] = (changed[5] + 1 - 5) % 35 + 5
    texts = [TEXTS[2], changed]
    states = [model._states(rows_of((text,))) for text in texts]
    torch.testing.assert_close(states[0][:, :5], states[1][:, :5])
    assert not torch.isclose(states[0][:, 5:9], states[1][:, 5:9]).all(dim=-1).any()


def test_embeddings_are_means_over_tokens_without_padding() -> None:
    model, batch = language_model().eval(), rows_of(TEXTS[:1])
    alone = model.network.base_model(TEXTS[0][None]).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(model.embed(batch), alone)
    torch.testing.assert_close(model(batch).embeddings, alone)


def test_it_learns_to_count() -> None:
    model = language_model(dropout=0.0)
    rows = 5 + (torch.arange(30)[:, None] + torch.arange(16)) % 35
    batch = rows_of(*((row,) for row in rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (model(batch).loss / model.rows(batch)).backward()
        optimizer.step()
    assert model.eval()(batch).logs["perplexity"] < 1.2
    written = model.network.generate(rows[:1, :4], max_new_tokens=6, do_sample=False)
    assert written[0].tolist() == rows[0, :10].tolist()


def test_the_export_opens_with_plain_transformers(tmp_path: Path) -> None:
    model = language_model().eval()
    encoder = model.encoder()
    assert encoder.prefix == "network." and encoder.preprocessor["special_tokens"] == SPECIAL
    cast(PreTrainedModel, encoder.module).save_pretrained(tmp_path)
    with torch.no_grad():
        opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(opened(TEXTS[0][None]).logits, model.network(TEXTS[0][None]).logits)
        states = AutoModel.from_pretrained(tmp_path).eval()(TEXTS[0][None]).last_hidden_state
        torch.testing.assert_close(states.mean(dim=1), model.embed(rows_of(TEXTS[:1])))


def test_flops_are_those_of_the_products_in_a_row() -> None:
    length, width, hidden, words = 16, 16, 32, 40
    layer = 4 * width * width + 2 * width * hidden
    products = 2 * length * layer + 2 * 2 * length * length * width
    assert language_model().flops_per_sample() == 3 * (2 * products + 2 * (length - 1) * width * words)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (DataFacts(channels=3), "the data holds no tokens"),
        (DataFacts(vocabulary_size=40), "the data holds no rows of tokens; `thalweg data pack text`"),
    ],
)
def test_other_data_is_refused_in_one_line(facts: DataFacts, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build({"name": "causal_lm", "network": {"architecture": "opt", **TINY["opt"]}}, facts, seed=0)
    assert "\n" not in str(caught.value)
