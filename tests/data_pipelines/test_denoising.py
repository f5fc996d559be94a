from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch, Sample
from data_pipelines.views import Draw
from data_pipelines.views.denoising import Denoising, infill, sentence_order, span_lengths
from data_pipelines.views.tokens import NOT_ASKED, PlainTokens
from tests.data_pipelines.packed_rows import FACTS, ROW, SPECIAL, packed_rows, row_of, text_of

MASK, SEP, PAD = SPECIAL["mask"], SPECIAL["sep"], SPECIAL["pad"]


def documents_in(row):
    """Tokens of each document of a plain row, and their marks."""
    plain = PlainTokens(**FACTS)
    fields, marks = plain.row(row), plain.marks(row)
    numbers = range(1, fields["attention"].max() + 1)
    return [(fields["tokens"][fields["attention"] == k], marks[fields["attention"] == k]) for k in numbers]


def words_of(tokens, marks):
    return np.split(tokens, np.flatnonzero(marks[1:] & 1) + 1)


@settings(deadline=None, max_examples=200)
@given(packed_rows(), st.integers(0, 99))
def test_labels_are_each_document_and_the_decoder_is_given_the_token_before(row, g):
    found = Denoising(**FACTS).sample(row, Draw(1, g))
    start = PlainTokens(**FACTS).row(row)["tokens"][0]
    for number, (tokens, _) in enumerate(documents_in(row), start=1):
        asked = found["target_attention"] == number
        expected = tokens[1:] if number == 1 else tokens
        assert found["labels"][asked].tolist() == expected.tolist()
        assert found["target"][asked].tolist() == [start, *expected[:-1]]
        for side in ("source", "target"):
            own = found[f"{side}_attention"] == number
            assert found[f"{side}_positions"][own].tolist() == list(range(own.sum()))
    assert (found["labels"][found["target_attention"] == 0] == NOT_ASKED).all()
    assert (found["source"][found["source_attention"] == 0] == PAD).all()


@settings(deadline=None, max_examples=200)
@given(packed_rows(), st.integers(0, 99), st.floats(0.05, 0.9), st.floats(0.5, 6))
def test_what_is_left_of_a_document_is_its_own_and_whole_words(row, g, ratio, mean):
    view = Denoising(**FACTS, mask_ratio=ratio, mean_span=mean, permute_sentences=False)
    found, start = view.sample(row, Draw(1, g)), PlainTokens(**FACTS).row(row)["tokens"][0]
    for number, (tokens, marks) in enumerate(documents_in(row), start=1):
        source = found["source"][found["source_attention"] == number]
        if number > 1:  # the row's first document has its start among its own tokens
            assert source[0] == start
            source = source[1:]
        assert len(source) <= len(tokens)
        left = source[source != MASK]
        body = ~np.isin(tokens, [SEP, 1, 5, 6])
        words = words_of(tokens[body], marks[body]) if body.any() else []
        gone = [word for word in words if not np.isin(word, left).any()]
        hidden = np.concatenate([tokens[:0], *gone])
        assert left.tolist() == tokens[~np.isin(tokens, hidden)].tolist()
        assert len(gone) == round(len(words) * ratio)
        if gone:
            assert (source == MASK).any()


@settings(deadline=None, max_examples=100)
@given(packed_rows(), st.integers(0, 99))
def test_words_are_hidden_as_wholes_in_sentences_that_moved(row, g):
    found = Denoising(**FACTS).sample(row, Draw(1, g))
    for number, (tokens, marks) in enumerate(documents_in(row), start=1):
        body = ~np.isin(tokens, [SEP, 1, 5, 6])
        left = np.isin(tokens[body], found["source"][found["source_attention"] == number])
        words = words_of(left, marks[body]) if body.any() else []
        assert all(word.all() or not word.any() for word in words)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(0, 999))
def test_putting_spans_back_for_their_masks_restores_the_text(size, seed):
    tokens, marks = text_of(size, seed)
    source = infill(tokens, marks, 0.3, 3.0, MASK, np.random.default_rng(seed)).tolist()
    restored, place = [], 0
    for token, following in zip(source, [*source[1:], None], strict=True):
        if token != MASK:
            assert token == tokens[place]
            restored.append(token)
            place += 1
        elif following != MASK:  # neighbours share what lies between
            stop = size if following is None else int(np.flatnonzero(tokens == following)[0])
            restored += tokens[place:stop].tolist()
            place = stop
    assert restored == tokens.tolist()


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(0, 999))
def test_sentences_move_as_wholes(size, seed):
    _, marks = text_of(size, seed)
    order = sentence_order(marks, np.random.default_rng(seed))
    assert sorted(order) == list(range(size))
    starts = set(np.flatnonzero(marks & 2).tolist()) | {0}
    broken = [int(b) for a, b in pairwise(order) if b != a + 1]
    assert set(broken) <= starts


def test_every_order_of_sentences_comes_up():
    marks = np.array([3, 1, 3, 1, 3], np.uint8)
    orders = {tuple(sentence_order(marks, np.random.default_rng(seed)).tolist()) for seed in range(200)}
    assert len(orders) == 6


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 200), st.floats(0.1, 8), st.integers(0, 999))
def test_spans_cover_exactly_what_is_hidden(total, mean, seed):
    lengths = span_lengths(total, mean, np.random.default_rng(seed))
    assert lengths.sum() == total and len(lengths) <= total


def test_spans_are_poisson_and_some_hide_nothing():
    lengths = span_lengths(30_000, 3.0, np.random.default_rng(0))
    assert abs(lengths.mean() - 3) < 0.1
    assert abs((lengths == 0).mean() - np.exp(-3)) < 0.01
    assert abs(lengths.var() - 3) < 0.2


def test_sentences_of_one_document_stay_in_it():
    row = row_of([20, 20, 18])
    found = Denoising(**FACTS).sample(row, Draw(0, 0))
    for number, (tokens, _) in enumerate(documents_in(row), start=1):
        source = found["source"][found["source_attention"] == number]
        assert set(source[1:].tolist()) - {MASK} <= set(tokens.tolist())
        assert source[0] == SPECIAL["cls"] and source[-1] == SEP


def test_every_slot_draws_anew_and_the_same_again():
    view, row = Denoising(**FACTS), row_of([30, 30])
    first, again, later = (view.sample(row, Draw(0, g))["source"].tolist() for g in (3, 3, 4))
    assert first == again != later


def test_a_batch_is_int64_and_loses_padding_alone():
    view = Denoising(**FACTS)
    rows = [view.sample(row_of(sizes), Draw(0, 0)) for sizes in ([10], [7, 8])]
    fields = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    batch = Batch(fields, ("a", "b"), torch.arange(2), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    done = view.batch(batch)
    assert {value.dtype for value in done.fields.values()} == {torch.int64}
    assert done["labels"].shape == done["target"].shape == done["target_attention"].shape == (2, 24)
    for name in fields:
        size = done[name].shape[1]
        assert (done[name] == fields[name][:, :size]).all()
        assert not fields[name.split("_")[0].replace("labels", "target") + "_attention"][:, size:].any()


def test_rows_without_marks_ask_to_be_packed_again():
    row = row_of([20])
    bare = Sample("row", {name: data for name, data in row.fields.items() if name != "marks.npy"})
    with pytest.raises(SampleError, match="pack the text again"):
        Denoising(**FACTS).sample(bare, Draw(0, 0))
    file = io.BytesIO()
    np.save(file, np.zeros(ROW - 1, np.uint8))
    with pytest.raises(SampleError, match=r"marks.npy holds .* want 64"):
        Denoising(**FACTS).sample(Sample("row", {**row.fields, "marks.npy": file.getvalue()}), Draw(0, 0))


def test_a_tokenizer_without_mask_is_refused():
    tokens = {name: token for name, token in SPECIAL.items() if name != "mask"}
    with pytest.raises(ValidationError, match="no mask token"):
        Denoising(**{**FACTS, "special_tokens": tokens})
