from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipelines.base import SampleError
from data_pipelines.batch import Sample
from data_pipelines.views import Draw
from data_pipelines.views.parallel import ParallelText
from data_pipelines.views.tokens import NOT_ASKED
from tests.data_pipelines.packed_rows import SPECIAL, VOCABULARY, npy

KNOWN = {"vocabulary_size": VOCABULARY, "special_tokens": SPECIAL}
CLS, SEP, PAD, DE, EN = (SPECIAL[name] for name in ("cls", "sep", "pad", "lang:de", "lang:en"))


def pair(de, en, **fields):
    sides = {"de.npy": npy(np.array(de, np.uint16)), "en.npy": npy(np.array(en, np.uint16))}
    return Sample("pair", {**sides, **fields})


def test_a_pair_is_read_in_one_language_and_written_in_the_other():
    view = ParallelText(source="de", target="en", max_source_tokens=8, max_target_tokens=6, **KNOWN)
    found = view.sample(pair([50, 51, 52], [60, 61]), Draw(0, 0))
    assert found["source"].tolist() == [DE, 50, 51, 52, SEP, PAD, PAD, PAD]
    assert found["source_attention"].tolist() == [1] * 5 + [0] * 3
    assert found["source_positions"].tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert found["target"].tolist() == [EN, 60, 61, PAD, PAD, PAD]
    assert found["labels"].tolist() == [60, 61, SEP, *[NOT_ASKED] * 3]
    assert found["target_attention"].tolist() == [1, 1, 1, 0, 0, 0]


def test_the_other_direction_swaps_the_sides():
    view = ParallelText(source="en", target="de", **KNOWN)
    found = view.sample(pair([50, 51, 52], [60, 61]), Draw(0, 0))
    assert found["source"][:4].tolist() == [EN, 60, 61, SEP]
    assert found["labels"][:4].tolist() == [50, 51, 52, SEP]


def test_long_sentences_are_cut_and_a_cut_target_has_no_end():
    view = ParallelText(source="de", target="en", max_source_tokens=4, max_target_tokens=4, **KNOWN)
    found = view.sample(pair(range(50, 60), range(70, 80)), Draw(0, 0))
    assert found["source"].tolist() == [DE, 50, 51, SEP]
    assert found["target"].tolist() == [EN, 70, 71, 72]
    assert found["labels"].tolist() == [70, 71, 72, 73]
    whole = view.sample(pair([50], [70, 71, 72]), Draw(0, 0))
    assert whole["labels"].tolist() == [70, 71, 72, SEP]


def test_cls_stands_in_for_languages_the_tokenizer_does_not_know():
    tokens = {name: token for name, token in SPECIAL.items() if not name.startswith("lang")}
    view = ParallelText(source="de", target="en", vocabulary_size=VOCABULARY, special_tokens=tokens)
    found = view.sample(pair([50], [60]), Draw(0, 0))
    assert found["source"][0] == found["target"][0] == CLS


def test_back_translated_pairs_carry_a_tag():
    tagged = ParallelText(
        source="de", target="en", vocabulary_size=VOCABULARY, special_tokens={**SPECIAL, "tag": 39}, max_source_tokens=5
    )
    found = tagged.sample(pair([50, 51, 52], [60], tag=b"1"), Draw(0, 0))
    assert found["source"].tolist() == [DE, 39, 50, 51, SEP]
    assert tagged.sample(pair([50], [60]), Draw(0, 0))["source"].tolist() == [DE, 50, SEP, PAD, PAD]
    with pytest.raises(SampleError, match="no token `tag`"):
        ParallelText(source="de", target="en", **KNOWN).sample(pair([50], [60], tag=b"1"), Draw(0, 0))


def test_mistakes_are_said():
    view = ParallelText(source="fr", target="en", **KNOWN)
    with pytest.raises(SampleError, match=r"no fr.npy among the fields \['de.npy', 'en.npy'\]"):
        view.sample(pair([50], [60]), Draw(0, 0))
    with pytest.raises(SampleError, match="outside the vocabulary"):
        ParallelText(source="de", target="en", **KNOWN).sample(pair([VOCABULARY], [60]), Draw(0, 0))
    with pytest.raises(ValidationError, match="both 'de'"):
        ParallelText(source="de", target="de", **KNOWN)
    with pytest.raises(ValidationError, match="no cls"):
        ParallelText(source="de", target="en", vocabulary_size=9, special_tokens={"pad": 0, "sep": 1})
