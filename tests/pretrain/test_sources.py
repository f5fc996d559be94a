import json
from dataclasses import asdict

import pytest

from data_pipelines.base import UserError, parse
from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from pretrain.config import Recipe
from pretrain.objective import DataFacts
from pretrain.sources import open_sources

TEXT = {"vocabulary_size": 50, "row_tokens": 8, "tokenizer_digest": "t"}
SPECIAL = {"pad": 0, "mask": 1}


def packed(folder, count=12, **facts):
    """A set of `count` samples that says `facts` of itself; its content plays no part here."""
    samples = [(f"k{number}", {"bin": b"x"}) for number in range(count)]
    split = Split("train", samples, count, count, lambda: (Facts(**facts), ()))
    [dataset] = write_sets(folder, [split], PackConfig(), name=folder.name, source="test")
    return dataset.path


def sources_of(*paths, **data):
    tree = {"sources": [path if isinstance(path, dict) else {"path": path} for path in paths], **data}
    recipe = {"name": "r", "objective": {"name": "x"}, "data": tree, "train": {"global_batch": 16, "steps": 1}}
    return open_sources(parse(Recipe, recipe, "recipe"))


def test_facts_of_a_run_outlive_json(tmp_path):
    path = packed(tmp_path / "a", **TEXT, special_tokens=SPECIAL, languages=("en", "de"), label_frames=(3, 4))
    facts = sources_of(path).facts()
    assert facts.languages == ("en", "de") and facts.label_frames == (3, 4) and facts.tokenizer_digest == "t"
    assert DataFacts.from_plain(json.loads(json.dumps(asdict(facts)))) == facts


def test_sets_of_several_languages_go_together(tmp_path):
    paths = [
        packed(tmp_path / name, **TEXT, special_tokens={**SPECIAL, f"lang:{name}": number}, language=name)
        for number, name in enumerate(("de", "en"), start=2)
    ]
    facts = sources_of(*paths).facts()
    assert facts.languages == ("de", "en")
    assert facts.special_tokens == {**SPECIAL, "lang:de": 2, "lang:en": 3}


def test_sets_of_several_tokenizers_do_not(tmp_path):
    one = packed(tmp_path / "one", **TEXT, special_tokens=SPECIAL)
    other = packed(tmp_path / "other", **{**TEXT, "tokenizer_digest": "u"}, special_tokens=SPECIAL)
    with pytest.raises(UserError, match="does not go with"):
        sources_of(one, other).facts()


def test_temperature_draws_in_proportion_to_a_root_of_size(tmp_path):
    large, small = packed(tmp_path / "large", 90), packed(tmp_path / "small", 10)
    assert sources_of(large, small).lanes == (8, 8)
    assert sources_of(large, small, temperature=1.0).lanes == (14, 2)
    assert sources_of(large, small, temperature=2.0).lanes == (12, 4)  # 3 : 1
    assert sources_of(large, small, temperature=1e9).lanes == (8, 8)


def test_size_is_counted_in_tokens_where_all_sets_count_them(tmp_path):
    large, small = packed(tmp_path / "large", 10, tokens=900), packed(tmp_path / "small", 90, tokens=100)
    assert sources_of(large, small, temperature=2.0).lanes == (12, 4)
    silent = packed(tmp_path / "silent", 90)
    assert sources_of(large, silent, temperature=2.0).lanes == (4, 12)


def test_temperature_and_weights_exclude_each_other(tmp_path):
    path = packed(tmp_path / "a")
    with pytest.raises(UserError, match="temperature or weights, not both"):
        sources_of({"path": path, "weight": 2.0}, temperature=2.0)
    assert sources_of({"path": path, "weight": 1.0}, temperature=2.0).lanes == (16,)  # as config.yaml writes it


def test_tokens_of_a_sample_are_the_mixtures_mean(tmp_path):
    long, short = packed(tmp_path / "long", 10, tokens=100), packed(tmp_path / "short", 10, tokens=20)
    assert sources_of({"path": long, "weight": 3.0}, {"path": short, "weight": 1.0}).tokens_per_sample == 8
    assert sources_of(long, packed(tmp_path / "rows", 10, row_tokens=6)).tokens_per_sample == 8
    assert sources_of(long, packed(tmp_path / "images", 10)).tokens_per_sample is None
