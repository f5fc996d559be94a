"""Documents with spans hidden and sentences out of order, which a decoder writes anew: BART and mBART."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.batch import Sample
from data_pipelines.views import Draw
from data_pipelines.views.masks import hidden_count
from data_pipelines.views.seq2seq import Document, Pair, Seq2SeqRows, documents_of, fields_of
from data_pipelines.views.tokens import BEGINS_SENTENCE, BEGINS_WORD


class Denoising(Seq2SeqRows):
    """Text infilling and sentence permutation, for each document of a row on its own.

    The encoder reads a document whose sentences are shuffled and in which spans of words became one mask token each,
    spans of no words included; the decoder writes the document as it was, sep included. Encoder and decoder begin every
    document with the token its row begins with: cls, or the language's. Fields: `seq2seq.fields_of`, S =
    `source_tokens`, T = N.

    Source: Lewis 2019, arXiv:1910.13461, section 2.2; the words as unit, and mBART's numbers (0.35, 3.5): Liu 2020,
    arXiv:2001.08210, section 2.1. A document never grows: surplus spans of no words are left out.
    """

    mask_ratio: float = Field(default=0.3, gt=0, lt=1)
    """Share of a document's words that is hidden, rounded to whole words."""
    mean_span: float = Field(default=3.0, gt=0)
    """Words a span, the mean of a Poisson distribution."""
    permute_sentences: bool = True
    """Sentences come in random order."""

    @model_validator(mode="after")
    def _tokens_are_there(self) -> Self:
        missing = [name for name in ("pad", "cls", "sep", "mask") if name not in self.special_tokens]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} token among {sorted(self.special_tokens)}")
        return self

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        row, rng = self.row(sample), draw.rng("denoising")
        documents = documents_of(row, self.marks(sample), self.special_tokens)
        pairs = [
            Pair(self._spoil(document, rng), np.concatenate([document.body, document.end])) for document in documents
        ]
        return fields_of(pairs, self._start(row), self.special_tokens["pad"], self.source_tokens, self.row_tokens)

    def _spoil(self, document: Document, rng: np.random.Generator) -> np.ndarray:
        body, marks = document.body, document.marks
        if len(body) == 0:
            return np.concatenate([document.start, document.end])
        if self.permute_sentences:
            order = sentence_order(marks, rng)
            body, marks = body[order], marks[order]
        spoilt = infill(body, marks, self.mask_ratio, self.mean_span, self.special_tokens["mask"], rng)
        return np.concatenate([document.start, spoilt, document.end])


def sentence_order(marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) places of a text's tokens, its sentences permuted; what precedes the first mark is a sentence too."""
    borders = np.flatnonzero(marks[1:] & BEGINS_SENTENCE) + 1
    sentences = np.split(np.arange(len(marks)), borders)
    return np.concatenate([sentences[place] for place in rng.permutation(len(sentences))])


def infill(
    tokens: np.ndarray, marks: np.ndarray, ratio: float, mean_span: float, mask: int, rng: np.random.Generator
) -> np.ndarray:
    """Replace spans of words by one mask token each.

    Args:
        tokens: (n,), n >= 1.
        marks: (n,) where words begin.

    Returns:
        At most n tokens.
    """
    borders = np.concatenate([[0], np.flatnonzero(marks[1:] & BEGINS_WORD) + 1, [len(tokens)]])
    words = len(borders) - 1
    lengths = span_lengths(hidden_count(words, ratio), mean_span, rng)
    kept_before = np.sort(rng.integers(words - lengths.sum() + 1, size=len(lengths)))
    begins = kept_before + np.cumsum(lengths) - lengths  # (K,) first word of each span
    parts, done = [], 0
    for begin, length in zip(begins, lengths, strict=True):
        parts += [tokens[borders[done] : borders[begin]], np.array([mask], tokens.dtype)]
        done = begin + length
    return np.concatenate([*parts, tokens[borders[done] :]])


def span_lengths(total: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """(K,) Poisson lengths, the last one cut so that they sum to `total`; K <= total, for which zeros are left out."""
    lengths: list[int] = []
    missing = total
    while missing > 0:
        lengths.append(min(int(rng.poisson(mean)), missing))
        missing -= lengths[-1]
    surplus = max(0, len(lengths) - total)
    zeros = [place for place, length in enumerate(lengths) if length == 0][:surplus]
    return np.delete(np.array(lengths, np.int64), zeros)
