"""The export of a text network holds the tokenizer of the data that it learned from."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_pipelines.shards import Dataset
from launch.cli import main
from pretrain.config import Recipe
from pretrain.run.directory import RunDirectory
from pretrain.sources import data_facts
from pretrain.tokenizer_files import tokenizer_files

TEXT = "the river runs to the sea\nthe sea is wide and the river is long\nwide rivers run slowly\n"


def packed(folder: Path, text: str) -> Path:
    source = folder.with_suffix(".txt")
    source.write_text(text * 20)
    settings = ["vocabulary_size=64", "row_tokens=16", "document=line", "val_fraction=0"]
    assert main(["data", "pack", "text", str(source), str(folder), *settings]) == 0
    return folder / "train"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that was set up on packed text."""
    data = packed(tmp_path / "data", TEXT)
    tree = {"name": "run", "objective": {"name": "masked_lm"}, "data": {}, "train": {"global_batch": 8, "steps": 1}}
    run = RunDirectory(tmp_path / "run")
    facts = asdict(data_facts(Dataset.open(str(data))))
    run.create(Recipe.model_validate(tree), {"facts": facts, "data_paths": {"data": str(data)}, "data": {}, "steps": 1})
    return run


def test_plain_transformers_opens_it(run: RunDirectory, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for name, content in tokenizer_files(run).items():
        (folder / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("the sea is wide", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens) == "the sea is wide"
    special = run.info()["facts"]["special_tokens"]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (special["pad"], special["mask"])


def test_data_that_moved_or_was_replaced_gives_none(run: RunDirectory, tmp_path: Path) -> None:
    assert set(tokenizer_files(run)) == {"tokenizer.json", "tokenizer_config.json"}
    other = packed(tmp_path / "other", "quite another text about mountains\n")
    shutil.rmtree(tmp_path / "data")
    assert tokenizer_files(run) == {}
    shutil.move(other.parent, tmp_path / "data")
    assert tokenizer_files(run) == {}
