"""The denoising encoder-decoder: what it is shown and asked, what it learns and exports."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSeq2SeqLM, PreTrainedModel

from data_pipelines.base import UserError
from data_pipelines.batch import Batch, Sample
from data_pipelines.views import Draw
from data_pipelines.views.denoising import Denoising
from data_pipelines.views.span_corruption import SpanCorruption
from pretrain.objective import DataFacts
from pretrain.objectives import build
from pretrain.objectives.denoising_seq2seq import DenoisingSeq2Seq
from tests.pretrain.texts import FACTS, SPECIAL, TINY, batch_of, document, packed

SENTINELS = {f"sentinel:{number}": 5 + number for number in range(8)}
WITH_SENTINELS = replace(FACTS, special_tokens={**SPECIAL, **SENTINELS})
ARCHITECTURES = ("bart", "mbart", "t5")


def model_of(
    architecture: str = "bart", noise: dict[str, Any] | None = None, facts: DataFacts = FACTS, **network: Any
) -> DenoisingSeq2Seq:
    spread = {} if architecture == "t5" else {"init_std": 0.2}
    tree = {
        "name": "denoising_seq2seq",
        "network": {"architecture": architecture, **TINY[architecture], **spread, **network},
        "noise": noise or {"name": "infilling"},
    }
    built = build(tree, facts, seed=0)
    assert isinstance(built, DenoisingSeq2Seq)
    return built


def asking(sources: list[list[Tensor]], targets: list[list[Tensor]]) -> Batch:
    """Each target is what the decoder is to say; it is given cls and all but the last."""
    given = [[torch.cat([torch.tensor([SPECIAL["cls"]]), part[:-1]]) for part in row] for row in targets]
    fields = {**packed(sources, 16, "source_"), **packed(given, 16, "target_")}
    labels = packed(targets, 16)
    return batch_of(**fields, labels=labels["tokens"].masked_fill(labels["attention"] == 0, -100))


SOURCES, TARGETS = (
    [[document(5, 0), document(6, 1)], [document(4, 2)]],
    [[document(7, 3), document(3, 4)], [document(9, 5)]],
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_each_document_alone(architecture: str) -> None:
    model, batch = model_of(architecture).eval(), asking(SOURCES, TARGETS)
    expected, right, count = torch.zeros(()), 0.0, 0
    for sources, targets in zip(SOURCES, TARGETS, strict=True):
        for source, target in zip(sources, targets, strict=True):
            given = torch.cat([torch.tensor([SPECIAL["cls"]]), target[:-1]])
            logits = model.network(source[None], decoder_input_ids=given[None]).logits[0]  # transformers' own path
            expected = expected + F.cross_entropy(logits, target, reduction="sum")
            right, count = right + float((logits.argmax(-1) == target).sum()), count + len(target)
    output = model(batch)
    torch.testing.assert_close(output.loss, expected)
    assert model.rows(batch) == count == 19
    assert output.logs["token_accuracy"] == pytest.approx(right / count)


def test_rows_without_weight_are_not_asked() -> None:
    model, both = model_of().eval(), asking(SOURCES, TARGETS)
    first = Batch(both.fields, both.keys, both.positions, torch.tensor([1.0, 0.0]), both.key_hash)
    assert model.rows(first) == 10
    torch.testing.assert_close(model(first).loss, model(asking(SOURCES[:1], TARGETS[:1])).loss)


def test_a_batch_that_asks_nothing_costs_nothing() -> None:
    model, batch = model_of(), asking(SOURCES, TARGETS)
    output = model(batch.with_fields(labels=torch.full_like(batch["labels"], -100)))
    output.loss.backward()
    assert output.loss == 0 and output.logs["token_accuracy"] == 0


def test_embeddings_are_mean_states_of_the_encoder_without_padding() -> None:
    model = model_of().eval()
    alone = model.network.get_encoder()(SOURCES[1][0][None]).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(model(asking(SOURCES[1:], TARGETS[1:])).embeddings, alone)
    torch.testing.assert_close(model.embed(batch_of(**packed(SOURCES[1:], 16))), alone)


def test_it_learns_to_write_what_it_reads() -> None:
    model = model_of(dropout=0.0)
    texts = [[document(6, seed)] for seed in range(12)]
    batch = asking(texts, [[torch.cat([text, torch.tensor([SPECIAL["sep"]])])] for (text,) in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        (model(batch).loss / model.rows(batch)).backward()
        optimizer.step()
    model.eval()
    assert model(batch).logs["token_accuracy"] > 0.95
    written = model.network.generate(texts[0][0][None], max_new_tokens=9, num_beams=2)[0].tolist()
    assert written == [SPECIAL["cls"], *texts[0][0].tolist(), SPECIAL["sep"]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_export_opens_with_plain_transformers(architecture: str, tmp_path: Path) -> None:
    model, (source, target) = model_of(architecture).eval(), (SOURCES[0][0][None], TARGETS[0][0][None])
    encoder = model.encoder()
    assert encoder.prefix == "network." and encoder.preprocessor["special_tokens"] == SPECIAL
    cast(PreTrainedModel, encoder.module).save_pretrained(tmp_path)
    with torch.no_grad():
        opened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
        own = model.network(source, decoder_input_ids=target).logits
        assert torch.equal(opened(source, decoder_input_ids=target).logits, own)
        states = AutoModel.from_pretrained(tmp_path).eval().encoder(SOURCES[1][0][None]).last_hidden_state
        torch.testing.assert_close(states.mean(dim=1), model.embed(batch_of(**packed(SOURCES[1:], 16))))


def row_of(*texts: Tensor) -> Sample:
    """A packed row: cls, then each text and sep; every token is a word and a sentence."""
    tokens, segments = [SPECIAL["cls"]], [1]
    for number, text in enumerate(texts, start=1):
        tokens += [*text.tolist(), SPECIAL["sep"]]
        segments += [number] * (len(text) + 1)
    filling = FACTS.row_tokens - len(tokens)
    special = np.isin(np.array(tokens), list(SPECIAL.values()))
    arrays = {
        "tokens.npy": np.array(tokens + [0] * filling),
        "segments.npy": np.array(segments + [0] * filling),
        "marks.npy": np.concatenate([np.where(special, 0, 3), np.zeros(filling, int)]).astype(np.uint8),
    }
    fields = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        fields[name] = file.getvalue()
    return Sample("row", fields)


def batch_by(model: DenoisingSeq2Seq, sample: Sample) -> Batch:
    fields = model.view.sample(sample, Draw(seed=0, position=0))
    return model.view.batch(batch_of(**{name: torch.from_numpy(array)[None] for name, array in fields.items()}))


def test_infilling_asks_for_the_whole_text() -> None:
    model = model_of(noise={"name": "infilling", "mask_ratio": 0.5, "mean_span": 2.0, "permute_sentences": False})
    assert isinstance(model.view, Denoising) and not model.view.permute_sentences
    texts = document(6, 0), document(5, 1)
    batch = batch_by(model, row_of(*texts))
    asked = batch["labels"][batch["labels"] != -100].tolist()
    assert asked == [*texts[0].tolist(), 3, *texts[1].tolist(), 3]
    assert (batch["source"] == SPECIAL["mask"]).any()
    assert model.rows(batch) == len(asked) and model(batch).loss > 0


def test_spans_ask_for_what_is_missing() -> None:
    model = model_of("t5", {"name": "spans", "noise_ratio": 0.4, "mean_span": 2.0}, WITH_SENTINELS)
    assert isinstance(model.view, SpanCorruption)
    batch = batch_by(model, row_of(document(13, 0) % 20 + 20))
    asked = batch["labels"][batch["labels"] != -100].tolist()
    assert asked[0] == SENTINELS["sentinel:0"] and asked[-1] == SPECIAL["sep"] and len(asked) < 13
    assert SENTINELS["sentinel:0"] in batch["source"][0].tolist()
    assert model(batch).loss > 0


def test_flops_are_those_of_the_lengths_that_noise_leaves() -> None:
    words, width, hidden, layers = 40, 16, 32, 2
    noise = {"name": "infilling", "mask_ratio": 0.75, "mean_span": 3.0}
    read, written = 8, 16  # a row of 16: 4 words stay, 12 become 4 masks
    encoder = 2 * read * (4 * width**2 + 2 * width * hidden) + 4 * read * read * width
    decoder = 2 * written * (6 * width**2 + 2 * width * hidden) + 2 * read * 2 * width**2
    decoder += 4 * written * written * width + 4 * written * read * width
    expected = 3 * (layers * (encoder + decoder) + 2 * written * width * words)
    assert model_of("bart", noise).flops_per_sample() == expected


@pytest.mark.parametrize(
    ("noise", "facts", "message"),
    [
        ({"name": "infiling"}, FACTS, "noise: .*'infilling'"),
        ({"name": "infilling", "mask_ration": 0.3}, FACTS, "unknown key .*did you mean 'mask_ratio'"),
        ({"name": "spans"}, FACTS, "the tokenizer has no sentinels; pack with sentinels=100"),
        ({"name": "infilling"}, DataFacts(channels=1), "the data holds no tokens"),
        ({"name": "infilling"}, DataFacts(vocabulary_size=40), "the data holds no rows of tokens"),
    ],
)
def test_wrong_settings_are_answered_in_one_line(noise: dict[str, Any], facts: DataFacts, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model_of(noise=noise, facts=facts)
    assert "\n" not in str(caught.value)
