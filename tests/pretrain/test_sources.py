import json
from dataclasses import asdict

import pytest

from data_pipelines.base import UserError, parse
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Facts
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


@pytest.mark.parametrize(("temperature", "lanes"), [(None, (8, 8)), (1.0, (15, 1)), (2.0, (13, 3)), (1e9, (8, 8))])
def test_a_temperature_draws_small_sources_more_often(tmp_path, temperature, lanes):
    large, small = packed(tmp_path / "large", count=240), packed(tmp_path / "small", count=16)
    assert sources_of(large, small, temperature=temperature).lanes == lanes
    threefold = {"path": small, "weight": 3.0}
    assert sources_of(large, threefold, temperature=2.0).lanes == (9, 7)  # 15.5 to 3 times 4
