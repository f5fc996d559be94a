from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.views import Draw
from data_pipelines.views.span_corruption import SpanCorruption, draw_spans
from data_pipelines.views.tokens import NOT_ASKED, PlainTokens
from tests.data_pipelines.packed_rows import FACTS, SPECIAL, packed_rows, row_of

SENTINELS = [SPECIAL[f"sentinel:{number}"] for number in range(20)]
SEP = SPECIAL["sep"]


def parts(found, number):
    """What the encoder reads of a document, and what the decoder is asked for, as lists."""
    source = found["source"][found["source_attention"] == number]
    return source.tolist(), found["labels"][found["target_attention"] == number].tolist()


def put_back(source, target):
    """The text, by reading spans off the target; sentinels in their order, without sep."""
    spans, current = {}, None
    for token in target:
        if token in SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    restored = [t for token in source for t in (spans.pop(token) if token in SENTINELS else [token])]
    assert not spans
    return restored


@settings(deadline=None, max_examples=300)
@given(packed_rows(), st.integers(0, 99), st.floats(0.05, 0.6), st.floats(1, 5))
def test_the_text_is_restored_from_source_and_target(row, g, ratio, mean):
    view = SpanCorruption(**FACTS, noise_ratio=ratio, mean_span=mean)
    found, plain = view.sample(row, Draw(2, g)), PlainTokens(**FACTS).row(row)
    assert found["labels"].shape == found["target"].shape == (view.target_tokens,)
    for number in range(1, plain["attention"].max() + 1):
        source, target = parts(found, number)
        tokens = plain["tokens"][plain["attention"] == number].tolist()
        if target:
            assert target[-1] == SEP
            assert [t for t in target if t in SENTINELS] == SENTINELS[: sum(t in SENTINELS for t in source)]
            given = found["target"][found["target_attention"] == number].tolist()
            assert given == [plain["tokens"][0], *target[:-1]]
        if number > 1:  # the row's first document has its start among its own tokens
            assert source.pop(0) == plain["tokens"][0]
        assert put_back(source, target[:-1]) == tokens
    assert (found["labels"][found["target_attention"] == 0] == NOT_ASKED).all()


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 999), st.integers(1, 4))
def test_the_ratio_holds_within_one_span(g, documents):
    sizes = [60 // documents - 1] * documents
    found = SpanCorruption(**FACTS).sample(row_of(sizes, g), Draw(0, g))
    labels = found["labels"][found["labels"] != NOT_ASKED]
    noise = (~np.isin(labels, [*SENTINELS, SEP])).sum()
    assert abs(noise - 0.15 * sum(sizes)) < 3


def test_short_documents_are_cut_as_often_as_long_ones():
    noise = text = 0
    for g in range(600):
        labels = SpanCorruption(**FACTS).sample(row_of([6] * 8, g), Draw(0, g))["labels"]
        noise += (~np.isin(labels, [*SENTINELS, SEP, NOT_ASKED])).sum()
        text += 48
    assert abs(noise / text - 0.15) < 0.005


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 60), st.integers(0, 20), st.floats(1, 8), st.integers(0, 999))
def test_spans_lie_apart_and_inside(size, spans, mean, seed):
    begins, lengths = draw_spans(size, spans, mean, np.random.default_rng(seed))
    ends = begins + lengths
    assert (lengths >= 1).all() and (begins[1:] > ends[:-1]).all()
    assert len(begins) == min(spans, size // 2)
    if len(begins):
        assert begins[0] >= 0 and ends[-1] <= size
        assert lengths.sum() == min(int(len(begins) * mean), size - len(begins))


def test_every_place_is_cut_out_alike():
    hits = np.zeros(30)
    for seed in range(6000):
        begins, lengths = draw_spans(30, 3, 3.0, np.random.default_rng(seed))
        for begin, length in zip(begins, lengths, strict=True):
            hits[begin : begin + length] += 1
    assert abs(hits[5:25] / 6000 - 0.3).max() < 0.05
    assert hits.min() > 0


def test_every_slot_draws_anew_and_the_same_again():
    view, row = SpanCorruption(**FACTS), row_of([30, 30])
    first, again, later = (view.sample(row, Draw(0, g))["source"].tolist() for g in (3, 3, 4))
    assert first == again != later


def test_a_tokenizer_without_sentinels_is_refused():
    tokens = {name: token for name, token in SPECIAL.items() if not name.startswith("sentinel")}
    with pytest.raises(ValidationError, match="sentinels=100"):
        SpanCorruption(**{**FACTS, "special_tokens": tokens})
