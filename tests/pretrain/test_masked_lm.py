"""The masked language model: what it is asked, what it may look at, and what it exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from data_pipelines.base import UserError
from data_pipelines.batch import Batch
from pretrain.networks.unpadded import UNPADDED
from pretrain.objective import DataFacts
from pretrain.objectives import build
from pretrain.objectives.masked_lm import MaskedLanguageModel

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
FACTS = DataFacts(vocabulary_size=40, row_tokens=12, special_tokens=SPECIAL)
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ARCHITECTURES = {"bert": {}, "roberta": {}, "modernbert": {"local_attention": 4}}


def language_model(architecture: str = "bert", **encoder: Any) -> MaskedLanguageModel:
    tree = {
        "name": "masked_lm",
        "encoder": {"architecture": architecture, **SIZE, **ARCHITECTURES[architecture], **encoder},
    }
    built = build(tree, FACTS, seed=0)
    assert isinstance(built, MaskedLanguageModel)
    return built


def batch_of(tokens: Tensor, targets: Tensor | None = None, second: int = 12, padding: int = 0) -> Batch:
    """Rows of one document, or of two, the other beginning at `second`; then padding."""
    attention = torch.ones_like(tokens)
    attention[:, second:] = 2
    positions = torch.arange(12).repeat(len(tokens), 1)
    positions[:, second:] -= second
    if padding:
        attention[:, -padding:] = 0
    return Batch(
        fields={
            "tokens": tokens,
            "targets": torch.full_like(tokens, -100) if targets is None else targets,
            "attention": attention,
            "positions": positions,
        },
        keys=tuple(map(str, range(len(tokens)))),
        positions=torch.arange(len(tokens)),
        weight=torch.ones(len(tokens)),
        key_hash=torch.arange(len(tokens)),
    )


def tokens_of(num_rows: int, seed: int = 0) -> Tensor:
    return torch.randint(5, 40, (num_rows, 12), generator=torch.Generator().manual_seed(seed))


def asking(tokens: Tensor, *places: tuple[int, int]) -> Tensor:
    targets = torch.full_like(tokens, -100)
    for row, column in places:
        targets[row, column] = tokens[row, column]
    return targets


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_the_asked_tokens_alone(architecture: str) -> None:
    model, tokens = language_model(architecture).eval(), tokens_of(3)
    targets = asking(tokens, (0, 2), (0, 7), (2, 11))
    batch = batch_of(tokens, targets)
    logits = model.network(tokens).logits  # transformers' own path: one document, no padding
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    torch.testing.assert_close(model(batch).loss, expected)
    assert model.rows(batch) == 3
    right = (logits.argmax(-1) == targets).sum() / 3
    torch.testing.assert_close(model(batch).logs["token_accuracy"], right)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_documents_of_a_row_do_not_see_each_other(architecture: str) -> None:
    model, tokens = language_model(architecture, initializer_range=0.3).eval(), tokens_of(2)
    other = torch.cat([tokens[:, :7], tokens_of(2, seed=1)[:, 7:]], dim=1)
    batch, changed = (batch_of(t, asking(tokens, (0, 3), (1, 6)), second=7) for t in (tokens, other))
    torch.testing.assert_close(model(batch).loss, model(changed).loss)
    joined, joined_changed = (batch_of(t, asking(tokens, (0, 6), (1, 6))) for t in (tokens, other))
    assert not torch.isclose(model(joined).loss, model(joined_changed).loss)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_document_reads_the_same_wherever_it_stands(architecture: str) -> None:
    model, tokens = language_model(architecture).eval(), tokens_of(1)
    moved = torch.cat([tokens[:, 5:], tokens[:, :5]], dim=1)
    here = model(batch_of(tokens, asking(tokens, (0, 9)), second=5)).loss
    there = model(batch_of(moved, asking(moved, (0, 4)), second=7)).loss
    torch.testing.assert_close(here, there)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_is_not_seen_and_not_counted(architecture: str) -> None:
    model, tokens = language_model(architecture).eval(), tokens_of(2)
    other = tokens.clone()
    other[:, -3:] = 0
    plain, padded = (batch_of(t, asking(tokens, (0, 1), (1, 8)), padding=3) for t in (tokens, other))
    torch.testing.assert_close(model(plain).loss, model(padded).loss)
    torch.testing.assert_close(model.embed(plain), model.embed(padded))
    only_first = Batch(padded.fields, padded.keys, padded.positions, torch.tensor([1.0, 0.0]), padded.key_hash)
    assert model.rows(only_first) == 1
    assert model(only_first).loss < model(padded).loss


def test_a_batch_that_asks_nothing_costs_nothing() -> None:
    model = language_model()
    output = model(batch_of(tokens_of(2)))
    output.loss.backward()
    assert output.loss == 0 and output.logs["token_accuracy"] == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_every_parameter_is_trained() -> None:
    model, tokens = language_model(), tokens_of(4)
    model(batch_of(tokens, asking(tokens, (0, 1), (1, 2), (3, 5)))).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_it_learns_which_token_follows() -> None:
    model = language_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    start = torch.arange(30)[:, None]
    rows = 5 + (start + torch.arange(12)) % 35  # counting
    places = torch.arange(30) % 12
    targets = asking(rows, *((row, int(places[row])) for row in range(30)))
    hidden = rows.masked_fill(targets != -100, SPECIAL["mask"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        output = model(batch_of(hidden, targets))
        (output.loss / 30).backward()
        optimizer.step()
    assert model.eval()(batch_of(hidden, targets)).logs["token_accuracy"] > 0.9


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reading_documents_one_by_one_gives_the_loss_and_gradients_of_whole_rows(architecture: str) -> None:
    rows, alone = (language_model(architecture, initializer_range=0.3).eval() for _ in range(2))
    alone.network.set_attn_implementation(UNPADDED)
    tokens = tokens_of(3)
    batch = batch_of(tokens, asking(tokens, (0, 1), (0, 8), (1, 4), (2, 7)), second=7, padding=2)
    outputs = rows(batch), alone(batch)
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss)
    torch.testing.assert_close(outputs[1].embeddings, outputs[0].embeddings)
    for output in outputs:
        output.loss.backward()
    for (name, one), other in zip(rows.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


def test_a_recipe_chooses_to_read_documents_one_by_one(tmp_path: Path) -> None:
    tree = {"name": "masked_lm", "encoder": {"architecture": "bert", **SIZE}}
    rows, alone = (build({**tree, "unpadded": unpadded}, FACTS, seed=0) for unpadded in (False, True))
    assert [model.network.config._attn_implementation for model in (rows, alone)] == ["sdpa", UNPADDED]
    assert rows.flops_per_sample() == alone.flops_per_sample()
    alone.network.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_dropout_of_attention_reaches_documents_read_one_by_one() -> None:
    model = language_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5, initializer_range=0.3)
    model.network.set_attn_implementation(UNPADDED)
    batch = batch_of(tokens_of(2), asking(tokens_of(2), (0, 1)))
    assert model(batch).loss != model(batch).loss
    assert model.eval()(batch).loss == model(batch).loss


@pytest.mark.parametrize("whole_word", [False, True])
def test_the_view_is_asked_for_what_the_recipe_says(whole_word: bool) -> None:
    tree = {"name": "masked_lm", "encoder": {"architecture": "bert", **SIZE}, "mask_ratio": 0.3}
    view = cast(MaskedLanguageModel, build({**tree, "whole_word": whole_word}, FACTS, seed=0)).view
    assert (view.whole_word, view.mask_ratio, view.row_tokens) == (whole_word, 0.3, 12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_export_opens_with_plain_transformers(architecture: str, tmp_path: Path) -> None:
    model, tokens = language_model(architecture).eval(), tokens_of(2)
    encoder = model.encoder()
    assert encoder.prefix == "network." and encoder.preprocessor["special_tokens"] == SPECIAL
    cast(PreTrainedModel, encoder.module).save_pretrained(tmp_path)
    with torch.no_grad():
        opened = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
        assert torch.equal(opened(tokens).logits, model.network(tokens).logits)
        body = AutoModel.from_pretrained(tmp_path).eval()
        states = body(tokens).last_hidden_state
        torch.testing.assert_close(states.mean(dim=1), model.embed(batch_of(tokens)))


def test_flops_give_the_vocabulary_the_asked_tokens_only() -> None:
    small, large = (
        build({"name": "masked_lm", "encoder": {"architecture": "bert", **SIZE}}, facts, seed=0).flops_per_sample()
        for facts in (FACTS, DataFacts(vocabulary_size=140, row_tokens=12, special_tokens=SPECIAL))
    )
    assert large - small == 3 * 2 * 2 * 16 * 100  # two of twelve tokens are asked


@pytest.mark.parametrize(
    ("tree", "facts", "message"),
    [
        ({"architecture": "bert", "layers": 2}, FACTS, "unknown key 'layers'"),
        ({"architecture": "bret"}, FACTS, "architecture 'bret' is unknown; did you mean 'bert'"),
        ({"architecture": "bert", "vocab_size": 50}, FACTS, "vocab_size=50 contradicts the data's 40"),
        ({"architecture": "bert", "max_position_embeddings": 8}, FACTS, "texts of 12 tokens do not fit"),
        ({"architecture": "bert"}, DataFacts(channels=3), "the data holds no tokens"),
        ({"architecture": "bert"}, DataFacts(vocabulary_size=9), "the data holds no rows of tokens"),
        ({"architecture": "bert"}, DataFacts(None, None, 9, 4, {"pad": 0}), "no mask token"),
        (
            {"architecture": "roberta"}, DataFacts(None, None, 9, 4, {"mask": 0}),
            "the data has no pad token",
        ),
    ],
)  # fmt: skip
def test_wrong_settings_are_answered_in_one_line(tree: dict[str, Any], facts: DataFacts, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build({"name": "masked_lm", "encoder": tree}, facts, seed=0)
    assert "\n" not in str(caught.value)
