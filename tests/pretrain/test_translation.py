"""Networks that translate: parity with transformers' own forward, the smoothed loss, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from data_pipelines.base import UserError
from data_pipelines.batch import Batch, Sample
from data_pipelines.views import Draw
from pretrain.export import write_encoder
from pretrain.networks.translator import target_states, vocabulary_logits
from pretrain.objective import DataFacts
from pretrain.objectives import build
from tests.data_pipelines.packed_rows import npy

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "lang:en": 5, "lang:de": 6}
FACTS = DataFacts(
    vocabulary_size=40, row_tokens=24, special_tokens=SPECIAL, tokenizer_digest="ab", languages=("en", "de")
)
SMALL = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
PRETRAINED = {
    "bart": {
        "name": "denoising_seq2seq",
        "network": {"architecture": "bart", "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, **SMALL},
    },
    "t5": {
        "name": "denoising_seq2seq",
        "network": {"architecture": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    },
    "bert": {"name": "masked_lm", "encoder": {"architecture": "bert"}},
    "roberta": {"name": "masked_lm", "encoder": {"architecture": "roberta"}},
}
for name in ("bert", "roberta"):
    PRETRAINED[name]["encoder"] |= {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32
    }  # fmt: skip


@pytest.fixture(params=sorted(PRETRAINED))
def export(request, tmp_path):
    write_encoder(build(PRETRAINED[request.param], FACTS, 0).encoder(), {}, tmp_path / request.param)
    return tmp_path / request.param


def translation(network, facts=FACTS, **changes):
    tree = {"name": "translation", "network": str(network), "source": "en", "target": "de", "max_source_tokens": 12,
            "max_target_tokens": 10, "decoder_layers": 1, **changes}  # fmt: skip
    return build(tree, facts, 0).eval()


def batch_of(objective, lengths, weights=None):
    rng = np.random.default_rng(0)
    rows = []
    for read, written in lengths:
        fields = {"en.npy": npy(rng.integers(7, 40, read)), "de.npy": npy(rng.integers(7, 40, written))}
        rows.append(objective.view.sample(Sample(key="", fields=fields), Draw(0, 0)))
    fields = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    one = torch.ones(len(rows))
    weight = one if weights is None else torch.tensor(weights)
    return objective.view.batch(Batch(fields, ("",) * len(rows), one.long(), weight, one.long()))


def test_states_are_those_of_transformers_own_forward(export):
    """Of each pair by itself, though pairs share rows."""
    objective = translation(export)
    batch = batch_of(objective, [(3, 4), (2, 2), (8, 2), (5, 9), (2, 1)])
    assert batch["source_attention"].max() == 2
    pairs = [(row, number) for row in range(len(batch["source"])) for number in batch["source_attention"][row].unique()]
    pairs = [(row, number) for row, number in pairs if number]
    assert len(pairs) == 5
    with torch.no_grad():
        ours = vocabulary_logits(objective.network, target_states(objective.network, batch))
        for row, number in pairs:
            read, written = (batch[f"{side}_attention"][row] == number for side in ("source", "target"))
            theirs = objective.network(
                input_ids=batch["source"][row][read][None], decoder_input_ids=batch["target"][row][written][None]
            ).logits
            torch.testing.assert_close(ours[row][written], theirs[0], atol=2e-5, rtol=1e-4)


def test_decoders_begin_with_the_language_they_write(export):
    objective = translation(export)
    batch = batch_of(objective, [(3, 4)])
    assert (batch["source"][0, 0], batch["target"][0, 0]) == (SPECIAL["lang:en"], SPECIAL["lang:de"])
    assert batch["labels"][0, 4] == SPECIAL["sep"]


def test_loss_is_the_smoothed_surprise_of_every_token_to_write(export):
    objective = translation(export, label_smoothing=0.2)
    batch = batch_of(objective, [(8, 4), (3, 2)], weights=[1.0, 0.0])  # the second pads the stream
    output = objective(batch)
    logits = vocabulary_logits(objective.network, target_states(objective.network, batch))[0, :5]
    labels = batch["labels"][0, :5]
    surprise = F.cross_entropy(logits, labels, reduction="none")
    plain = (0.8 * surprise - 0.2 * logits.log_softmax(-1).mean(dim=1)).sum()
    assert output.loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert objective.rows(batch).item() == 5
    assert output.logs["surprise"].item() == pytest.approx(surprise.mean().item(), rel=1e-5)


def test_every_trained_weight_gets_a_gradient(export):
    objective = translation(export)
    objective(batch_of(objective, [(3, 4), (8, 2)])).loss.backward()
    without = [name for name, weight in objective.named_parameters() if weight.grad is None]
    assert without == []


def test_what_was_taught_opens_as_any_export_does(export, tmp_path):
    objective = translation(export)
    write_encoder(objective.encoder(), {}, tmp_path / "taught")
    opened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "taught")
    batch = batch_of(objective, [(3, 4)])
    with torch.no_grad():
        both = [
            network(input_ids=batch["source"][:, :5], decoder_input_ids=batch["target"][:, :4]).logits
            for network in (opened, objective.network)
        ]
    torch.testing.assert_close(*both)


def test_a_tokenizer_of_another_vocabulary_is_refused(export):
    with pytest.raises(UserError, match=r"tokenizer is not the one .* pack the pairs with tokenizer=FOLDER"):
        translation(export, dataclasses.replace(FACTS, tokenizer_digest="cd"))


def test_languages_that_the_data_lacks_are_refused(export):
    with pytest.raises(UserError, match="no language 'fr'; it has en, de"):
        translation(export, target="fr")
    with pytest.raises(UserError, match="no parallel set"):
        translation(export, dataclasses.replace(FACTS, languages=()))


def test_sentences_longer_than_the_network_reads_are_refused(export):
    if export.name == "t5":  # knows distances alone
        translation(export, max_source_tokens=99)
        return
    with pytest.raises(UserError, match="texts of 99 tokens do not fit max_position_embeddings"):
        translation(export, max_source_tokens=99)


def test_networks_that_read_no_text_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="holds a vit; translation wants an encoder-decoder"):
        translation(tmp_path)
