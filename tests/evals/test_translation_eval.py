"""The translation eval as a job: fine-tuned, translated, scored; beside its controls; on one rank and on two."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.base import UserError
from data_pipelines.pack import pack
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset
from evals.protocol import run_eval
from evals.translation.sentences import samples_of
from pretrain.export import write_encoder
from pretrain.objectives import build
from pretrain.sources import data_facts

pytestmark = pytest.mark.slow

WORDS = {"one": "eins", "two": "zwei", "red": "rot", "blue": "blau", "dog": "hund", "cat": "katze", "sees": "sieht"}
BART = {"architecture": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip
QUICK = ["steps=4", "global_batch=16", "max_tokens=16", "beams=2", "sentences_at_once=8"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A language whose words stand for those of another, one by one."""
    folder, draw = tmp_path_factory.mktemp("pairs"), random.Random(0)
    for split, count in {"train": 96, "val": 20}.items():
        lines = [[draw.choice(list(WORDS)) for _ in range(draw.randint(2, 6))] for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(f"{' '.join(line)}\n" for line in lines))
        (folder / f"{split}.de").write_text("".join(f"{' '.join(WORDS[word] for word in line)}\n" for line in lines))
    settings = {"languages": ["en", "de"], "validation": str(folder / "val"), "vocabulary_size": 340}
    return [dataset.path for dataset in pack("parallel", str(folder / "train"), folder / "packed", settings)]


@pytest.fixture(scope="module")
def export(pairs, tmp_path_factory):
    facts = dataclasses.replace(data_facts(Dataset.open(pairs[0])), row_tokens=16)
    objective = build({"name": "denoising_seq2seq", "network": BART}, facts, seed=3)
    folder = tmp_path_factory.mktemp("export") / "bart"
    write_encoder(objective.encoder(), {}, folder)
    return folder


def words(pairs, *more):
    return [f"data.train={pairs[0]}", f"data.test={pairs[1]}", *QUICK, *more]


def test_translations_are_scored_beside_copying_and_learning_from_scratch(pairs, export):
    result = run_eval("translation", export, words(pairs))
    assert set(result.metrics) == {"bleu", "chrf", "round_trip_bleu"}
    assert result.metrics["round_trip_bleu"] == pytest.approx(100.0)  # bytes come back as they were
    assert {name: set(scores) for name, scores in result.controls.items()} == {
        "raw": {"bleu", "chrf"}, "random_init": {"bleu", "chrf"}
    }  # fmt: skip
    assert 0 < result.controls["raw"]["chrf"] < 40  # copying the source is no translation, and not quite nothing
    assert "tok:13a" in result.details["signatures"]["bleu"]
    sample = result.details["samples"][0]
    assert sample["reference"] == " ".join(WORDS[word] for word in sample["source"].split())
    looked = result.details["alignments"][0]
    assert len(looked["weights"]) == len(looked["target"])
    assert [sum(row) for row in looked["weights"]] == pytest.approx([1.0] * len(looked["target"]), abs=1e-2)
    assert run_eval("translation", export, words(pairs)).created == result.created


def test_more_steps_translate_better_than_none(pairs, export):
    longer = run_eval("translation", export, words(pairs, "steps=150", "learning_rate=4e-3", "target=en", "source=de"))
    assert longer.details["direction"] == "de-en"
    assert longer.metrics["chrf"] > longer.controls["raw"]["chrf"] + 8


def test_two_ranks_write_what_one_writes(pairs, export, tmp_path):
    """The same steps and sentences; sums over ranks may differ in the last bits, words may not."""
    alone = run_eval("translation", export, words(pairs, "steps=3"))
    other = tmp_path / "again"
    other.mkdir()
    for path in export.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "launch.cli", "eval", "translation", str(other), *words(pairs, "steps=3")]
    done = subprocess.run(
        [*command, "--ranks", "2"], capture_output=True, text=True, check=False, timeout=200,
        env={**os.environ, "THALWEG_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next((other / "evals").glob("translation-*.json")).read_text())
    assert found["details"]["samples"] == alone.details["samples"]
    assert found["metrics"] == pytest.approx(alone.metrics)


def test_back_translated_pairs_are_tagged_and_mixed_in(pairs, export, tmp_path):
    text = tmp_path / "mono.de"
    text.write_text("rot hund\n\nblau katze sieht hund\nzwei katze\n")
    run_eval("translation", export, words(pairs, f"monolingual={text}", "steps=2"))
    packed = next((export / "evals").glob("*/back_translated/train"))
    dataset = Dataset.open(str(packed))
    samples = [dataset.read(0, member) for member in range(int(dataset.shard_sizes[0]))]
    assert {"tag", "en.txt", "de.txt"} <= set(dataset.fields)
    assert {sample.fields["de.txt"].decode() for sample in samples} <= {
        "rot hund",
        "blau katze sieht hund",
        "zwei katze",
    }
    recipe = (packed.parent.parent / "pretrained" / "config.yaml").read_text()
    assert str(packed) in recipe


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["source=fr"], "no language 'fr'; it has en, de"),
        (["source=en", "target=en"], "source and target are both 'en'"),
        (["monolingual=nowhere.txt"], "monolingual=nowhere.txt"),
        (["tokenize=spm"], "tokenize"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(pairs, export, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        run_eval("translation", export, words(pairs, *changes))


def test_empty_references_are_refused(pairs, export, tmp_path):
    """Packing leaves such lines out, but a set may be another's."""
    val = Dataset.open(pairs[1])
    samples = [(sample.key, {**sample.fields, "de.txt": b" "}) for sample in samples_of(val)]
    files = {"tokenizer.json": (Path(pairs[1]) / "tokenizer.json").read_bytes()}
    split = Split("val", samples, len(samples), 9999, describe=lambda: (val.manifest.facts, ()), extra_files=files)
    [blank] = write_sets(tmp_path / "blank", [split], PackConfig(), name="blank", source="")
    with pytest.raises(UserError, match=r"blank/val: pair\d+ has an empty reference \(de\); pack it again"):
        run_eval("translation", export, [f"data.train={pairs[0]}", f"data.test={blank.path}", *QUICK])


def test_sets_without_pairs_are_refused(pairs, export, tmp_path):
    (tmp_path / "text.txt").write_text("one red dog\n\ntwo blue cats\n\n" * 20)
    packed = pack("text", str(tmp_path / "text.txt"), tmp_path / "packed", {"row_tokens": 16, "vocabulary_size": 70})
    with pytest.raises(UserError, match="no pairs of sentences"):
        run_eval("translation", export, [f"data.train={packed[0].path}", f"data.test={pairs[1]}", *QUICK])
