import json
from pathlib import Path

import pytest

from data_pipelines.check import check
from data_pipelines.pack import pack
from data_pipelines.shards import Dataset
from data_pipelines.show import describe
from data_pipelines.views.denoising import Denoising

CONFIG = {"vocabulary_size": 100, "row_tokens": 16, "val_fraction": 0, "document": "line"}


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "a.txt").write_text("the river runs below.\nthe bridge stands above it.\n" * 3)
    [train] = pack("text", str(tmp_path / "a.txt"), tmp_path / "rows", CONFIG)
    return train


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "p.tsv").write_text("the river\tder Fluss\nthe bridge\tdie Brücke\n" * 5)
    config = {"languages": "en,de", "vocabulary_size": 300}
    [train] = pack("parallel", str(tmp_path / "p.tsv"), tmp_path / "pairs", config)
    return train


def test_rows_and_pairs_are_shown_in_words(rows, pairs):
    shown = "\n".join(describe(rows, 99))
    assert "tokens.npy: [CLS] the river runs below. [SEP] the bridge stands above it. [SEP]" in shown
    assert "[PAD]" not in shown
    shown = "\n".join(describe(pairs, 1))
    assert "en.npy: the river" in shown or "en.npy: the bridge" in shown
    assert "de.npy: der Fluss" in shown or "de.npy: die Brücke" in shown


def test_a_view_shows_what_it_hides(rows):
    facts = rows.manifest.facts
    known = {name: getattr(facts, name) for name in ("row_tokens", "vocabulary_size", "special_tokens")}
    shown = "\n".join(describe(rows, 99, Denoising(**known, mask_ratio=0.5)))
    assert "source: [CLS] " in shown and "[MASK]" in shown
    assert "target: [CLS] the river runs below. [CLS] the bridge stands above it." in shown
    assert "labels: the river runs below. [SEP] the bridge stands above it. [SEP]" in shown


def test_a_set_without_its_tokenizer_is_shown_in_bytes(rows):
    (Path(rows.path) / "tokenizer.json").unlink()
    assert all("B" in line and "river" not in line for line in describe(rows, 2))


def test_check_counts_tokens(rows, pairs):
    for dataset in (rows, pairs):
        report = check(dataset.path)
        assert report.tokens == dataset.manifest.facts.tokens > 20
        assert f"tokens       {report.tokens}, without padding" in report.lines()
        assert not report.damaged


def test_check_says_when_the_manifest_counts_otherwise(rows):
    path = Path(rows.path) / "manifest.json"
    tree = json.loads(path.read_text())
    tree["facts"]["tokens"] += 1
    path.write_text(json.dumps(tree))
    assert "tokens, its manifest says" in "\n".join(check(rows.path).lines())
    tree["facts"]["tokens"] -= 1
    tree["facts"]["vocabulary_size"] = 10
    path.write_text(json.dumps(tree))
    assert "outside the vocabulary of 10" in "\n".join(check(Dataset.open(rows.path).path).lines())
