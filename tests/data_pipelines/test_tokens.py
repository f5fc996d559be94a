from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch, Sample
from data_pipelines.views import Draw
from data_pipelines.views.tokens import NOT_ASKED, MaskedTokens, PlainTokens, choose_words, documents
from tests.data_pipelines.packed_rows import FACTS as PACKED_FACTS
from tests.data_pipelines.packed_rows import packed_rows
from tests.data_pipelines.packed_rows import row_of as packed_row_of

SPECIAL = {"pad": 0, "cls": 101, "sep": 102, "mask": 103, "unk": 100}
FACTS = {"row_tokens": 64, "vocabulary_size": 1000, "special_tokens": SPECIAL}


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def row_of(tokens, segments=None):
    fields = {"tokens.npy": npy(np.asarray(tokens, np.uint16))}
    if segments is not None:
        fields["segments.npy"] = npy(np.asarray(segments, np.uint16))
    return Sample("row", fields)


def text(seed=0, padding=10):
    rng = np.random.default_rng(seed)
    words = rng.integers(200, 1000, 64)
    words[[0, 20]], words[[19, 40]] = SPECIAL["cls"], SPECIAL["sep"]
    words[64 - padding :] = SPECIAL["pad"]
    return words


def test_documents_are_numbered_and_positions_restart():
    found = documents(np.array([5, 5, 5, 9, 9, 2, 2]), np.array([False] * 6 + [True]))
    assert found["attention"].tolist() == [1, 1, 1, 2, 2, 3, 0]
    assert found["positions"].tolist() == [0, 1, 2, 0, 1, 0, 1]


def test_a_row_without_segments_is_one_document():
    row = PlainTokens(**FACTS).sample(row_of(text()), Draw(0, 0))
    assert row["tokens"].tolist() == text().tolist()
    assert row["attention"].tolist() == [1] * 54 + [0] * 10
    assert row["positions"].tolist() == list(range(64))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 40), st.floats(0.01, 0.9))
def test_only_ordinary_tokens_are_asked_for_and_exactly_the_ratio(seed, padding, ratio):
    tokens = text(seed, padding)
    row = MaskedTokens(**FACTS, mask_ratio=ratio).sample(row_of(tokens), Draw(1, seed))
    asked = row["targets"] != NOT_ASKED
    ordinary = ~np.isin(tokens, list(SPECIAL.values()))
    assert asked.sum() == max(1, round(ordinary.sum() * ratio))
    assert not (asked & ~ordinary).any()
    assert (row["targets"][asked] == tokens[asked]).all()
    assert (row["tokens"][~asked] == tokens[~asked]).all()


@settings(deadline=None, max_examples=200)
@given(packed_rows(), st.integers(0, 999), st.floats(0.05, 0.9))
def test_whole_words_are_asked_for_up_to_the_ratio(row, g, ratio):
    view = MaskedTokens(**PACKED_FACTS, mask_ratio=ratio, whole_word=True)
    found, plain, marks = view.sample(row, Draw(1, g)), view.row(row), view.marks(row)
    asked = found["targets"] != NOT_ASKED
    ordinary = ~np.isin(plain["tokens"], list(PACKED_FACTS["special_tokens"].values()))
    begins = (marks & 1 > 0) | ~ordinary | ~np.roll(ordinary, 1)
    words = [word for word in np.split(np.arange(len(begins)), np.flatnonzero(begins)) if ordinary[word].any()]
    assert all(asked[word].all() or not asked[word].any() for word in words)
    assert not asked[~ordinary].any()
    count = max(1, round(ordinary.sum() * ratio))
    fits = [word for word in words if not asked[word].any() and len(word) <= count - asked.sum()]
    assert not fits and (asked.sum() <= count or asked.sum() == min(map(len, words)))


def test_a_word_does_not_go_on_behind_a_special_token():
    places, begins = np.array([0, 1, 3, 4]), np.array([True, False, False, False])
    chosen = {tuple(choose_words(places, begins, 2, np.random.default_rng(seed)).tolist()) for seed in range(20)}
    assert chosen == {(0, 1), (3, 4)}


def test_words_are_chosen_alike_whatever_their_place():
    row = packed_row_of([30, 30])
    view = MaskedTokens(**PACKED_FACTS, whole_word=True)
    asked = np.mean([view.sample(row, Draw(0, g))["targets"] != NOT_ASKED for g in range(1500)], axis=0)
    ordinary = ~np.isin(view.row(row)["tokens"], list(PACKED_FACTS["special_tokens"].values()))
    assert abs(asked.sum() - 9) < 0.01  # 15% of 60, whole
    assert asked[ordinary].min() > 0.09 and asked[ordinary].max() < 0.21


def test_asked_tokens_are_hidden_swapped_and_kept_eight_to_one_to_one():
    view = MaskedTokens(**FACTS)
    fates = {"mask": 0, "kept": 0, "swapped": 0}
    swapped = set()
    for g in range(2000):
        tokens = text(g)
        row = view.sample(row_of(tokens), Draw(0, g))
        asked = row["targets"] != NOT_ASKED
        masked, kept = row["tokens"][asked] == SPECIAL["mask"], row["tokens"][asked] == tokens[asked]
        fates["mask"] += masked.sum()
        fates["kept"] += kept.sum()
        fates["swapped"] += (~masked & ~kept).sum()
        swapped |= set(row["tokens"][asked][~masked & ~kept].tolist())
    total = sum(fates.values())
    assert abs(fates["mask"] / total - 0.8) < 0.02
    assert abs(fates["kept"] / total - 0.1) < 0.02
    assert not swapped & set(SPECIAL.values())
    assert min(swapped) == 1 and max(swapped) >= 990  # 0 is padding


def test_every_slot_hides_other_tokens_and_the_same_ones_again():
    view = MaskedTokens(**FACTS)
    first, again, later = (view.sample(row_of(text()), Draw(0, g))["targets"] for g in (3, 3, 4))
    assert (first == again).all() and (first != later).any()


def test_a_row_of_special_tokens_asks_for_nothing():
    row = MaskedTokens(**FACTS).sample(row_of([101] + [102] * 63), Draw(0, 0))
    assert (row["targets"] == NOT_ASKED).all()


def test_a_batch_is_int64():
    rows = [MaskedTokens(**FACTS).sample(row_of(text(g), [0] * 30 + [1] * 34), Draw(0, g)) for g in range(3)]
    fields = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    batch = Batch(fields, ("a", "b", "c"), torch.arange(3), torch.ones(3), torch.zeros(3, dtype=torch.int64))
    done = MaskedTokens(**FACTS).batch(batch)
    assert set(done.fields) == {"tokens", "targets", "attention", "positions"}
    assert all(value.shape == (3, 64) and value.dtype == torch.int64 for value in done.fields.values())
    assert done["attention"].max() == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"txt": b"hello"}, "no tokens.npy"),
        ({"tokens.npy": b"\x93NUMPY rubbish"}, "damaged"),
        ({"tokens.npy": b""}, "damaged"),
        ({"tokens.npy": npy(np.array([object()] * 64))}, "damaged"),
        ({"tokens.npy": npy(np.zeros(63, np.uint16))}, "want 64 integers"),
        ({"tokens.npy": npy(np.zeros(64, np.float32))}, "want a line of integers"),
        ({"tokens.npy": npy(np.full(64, 1000, np.uint16))}, "outside the vocabulary"),
    ],
)
def test_a_damaged_row_is_a_sample_error(fields, words):
    with pytest.raises(SampleError, match=words):
        MaskedTokens(**FACTS).sample(Sample("row", fields), Draw(0, 0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"special_tokens": {"pad": 0}}, "no mask token"),
        ({"special_tokens": {"mask": 5000}}, "outside the vocabulary"),
        ({"mask_share": 0.95, "random_share": 0.1}, "more than 1"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        MaskedTokens(**{**FACTS, **change})
