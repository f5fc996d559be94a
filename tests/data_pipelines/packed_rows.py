"""Packed rows of text as the views read them, for tests."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from data_pipelines.batch import Sample

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3, "unk": 4, "lang:de": 5, "lang:en": 6}
SPECIAL |= {f"sentinel:{number}": 10 + number for number in range(20)}
VOCABULARY = 1000
FIRST_ORDINARY = 40
ROW = 64
FACTS = {"row_tokens": ROW, "vocabulary_size": VOCABULARY, "special_tokens": SPECIAL}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def text_of(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, marks) of a document: every token another one where that is possible, words of 1 to 3 tokens."""
    rng = np.random.default_rng(seed)
    tokens = FIRST_ORDINARY + rng.permutation(VOCABULARY - FIRST_ORDINARY)[:size]
    words, sentences = rng.random(size) < 0.6, rng.random(size) < 0.15
    marks = (words | sentences) * 1 + sentences * 2
    marks[:1] = 3
    return tokens, marks.astype(np.uint8)


def row_of(sizes: Sequence[int], seed: int = 0, start: int = SPECIAL["cls"], cut: bool = False) -> Sample:
    """A row whose documents have `sizes` tokens; the last one goes on in the next row where `cut`."""
    tokens, segments, marks = np.zeros((3, ROW), np.int64)
    tokens[0], segments[0], place = start, 1, 1
    for number, size in enumerate(sizes, start=1):
        body, marked = text_of(size, seed + number)
        tokens[place : place + size], marks[place : place + size] = body, marked
        segments[place : place + size + 1] = number
        place += size
        if cut and number == len(sizes):
            segments[place:] = 0
            break
        tokens[place] = SPECIAL["sep"]
        place += 1
    tokens[segments == 0] = SPECIAL["pad"]
    fields = {
        "tokens": tokens.astype(np.uint16),
        "segments": segments.astype(np.uint16),
        "marks": marks.astype(np.uint8),
    }
    return Sample("row", {f"{name}.npy": npy(array) for name, array in fields.items()})


@st.composite
def packed_rows(draw: st.DrawFn) -> Sample:
    """Rows of any number of documents, some of one token, some cut, some padded."""
    sizes: list[int] = []
    while (room := ROW - 1 - sum(sizes) - len(sizes)) > 1 and draw(st.booleans() if sizes else st.just(True)):
        sizes.append(draw(st.integers(1, room - 1)))
    cut = draw(st.booleans())
    return row_of(sizes, draw(st.integers(0, 999)), draw(st.sampled_from([1, 5, 6])), cut)
