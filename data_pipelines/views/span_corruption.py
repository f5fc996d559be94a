"""Documents with spans cut out, which a decoder names one after the other: T5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.batch import Sample
from data_pipelines.views import Draw
from data_pipelines.views.seq2seq import Pair, Seq2SeqRows, documents_of, fields_of


class SpanCorruption(Seq2SeqRows):
    """Each span gives way to a sentinel; the decoder says each sentinel and what stood there, then sep.

    Sentinels are numbered anew in every document. A document in which nothing was cut out asks for nothing. Encoder and
    decoder begin every document with the token its row begins with. Fields: `seq2seq.fields_of`, S = `source_tokens`,
    T = `target_tokens`.

    Source: Raffel 2019, arXiv:1910.10683, section 3.1.4 (baseline objective), with the mean span of section 3.3.4. Here
    spans lie anywhere (the authors' code always cuts out the last token), and their number is drawn so that it is right
    on average for documents of any length.
    """

    noise_ratio: float = Field(default=0.15, gt=0, lt=1)
    """Share of a row's text that is cut out, within one span."""
    mean_span: float = Field(default=3.0, ge=1)
    """Tokens a span, on average in each document."""

    @model_validator(mode="after")
    def _tokens_are_there(self) -> Self:
        missing = [name for name in ("pad", "cls", "sep") if name not in self.special_tokens]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} token among {sorted(self.special_tokens)}")
        if not self._sentinels:
            raise ValueError("the tokenizer has no sentinels; pack with sentinels=100")
        return self

    @property
    def _sentinels(self) -> list[int]:
        """Ids, as far as they are numbered from 0 without a gap."""
        found: list[int] = []
        while (token := self.special_tokens.get(f"sentinel:{len(found)}")) is not None:
            found.append(token)
        return found

    @property
    def target_tokens(self) -> int:
        """T, more than any row asks for."""
        spans = int(self.row_tokens * self.noise_ratio / self.mean_span) + 1
        return int(spans * self.mean_span) + 2 * spans

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        row, rng = self.row(sample), draw.rng("spans")
        documents = documents_of(row, np.zeros_like(row["tokens"]), self.special_tokens)
        sizes = np.array([len(document.body) for document in documents], np.int64)
        sentinels = np.array(self._sentinels, np.int32)
        pairs = []
        for document, spans in zip(documents, self._spans(sizes, rng), strict=True):
            begins, lengths = draw_spans(len(document.body), min(int(spans), len(sentinels)), self.mean_span, rng)
            kept, cut = cut_out(document.body, begins, lengths, sentinels)
            target = np.append(cut, self.special_tokens["sep"]) if len(cut) else cut
            pairs.append(Pair(np.concatenate([document.start, kept, document.end]), target))
        return fields_of(pairs, self._start(row), self.special_tokens["pad"], self.source_tokens, self.target_tokens)

    def _spans(self, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(D,) spans of each document: on average in proportion to its size, and in sum right within one."""
        wanted = np.concatenate([[0.0], np.cumsum(sizes)]) * self.noise_ratio / self.mean_span
        return np.diff(np.floor(wanted + rng.random())).astype(np.int64)


def draw_spans(size: int, spans: int, mean: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Spans of a text, in order, that do not touch; all arrangements are equally likely.

    Args:
        size: of the text; no more than half as many spans are drawn.

    Returns:
        begins and lengths, (K,) int64 each.
    """
    spans = min(spans, size // 2)
    noise = min(int(spans * mean), size - spans)
    borders = np.sort(rng.choice(noise - 1, spans - 1, replace=False)) + 1 if spans > 1 else np.zeros(0, np.int64)
    lengths = np.diff(np.concatenate([[0], borders, [noise]])) if spans else np.zeros(0, np.int64)
    kept_before = np.sort(rng.choice(size - noise + 1, spans, replace=False))
    return kept_before + np.cumsum(lengths) - lengths, lengths


def cut_out(
    text: np.ndarray, begins: np.ndarray, lengths: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(the text with sentinels for spans, sentinels and what they stand for).

    >>> cut_out(np.arange(9), np.array([1, 5]), np.array([2, 1]), np.array([90, 91]))
    (array([ 0, 90,  3,  4, 91,  6,  7,  8]), array([90,  1,  2, 91,  5]))
    """
    ends, count = begins + lengths, len(begins)
    pieces = np.split(text, np.stack([begins, ends], axis=1).ravel())
    marks = [sentinels[number : number + 1] for number in range(count)]
    kept = [piece for pair in zip(pieces[0::2], [*marks, text[:0]], strict=True) for piece in pair]
    cut = [piece for pair in zip(marks, pieces[1::2], strict=True) for piece in pair]
    return np.concatenate(kept), np.concatenate([text[:0], *cut])
