"""Pairs of sentences: read one language, write another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.base import SampleError, Strict
from data_pipelines.batch import Batch, Sample
from data_pipelines.views import Draw
from data_pipelines.views.seq2seq import Pair, fields_of
from data_pipelines.views.sharing import sharing_rows
from data_pipelines.views.tokens import read_tokens


class ParallelText(Strict):
    """A pair of a parallel set, in one direction.

    The encoder reads the source language's token, the sentence, sep; the decoder begins with the target language's
    token and writes the sentence and sep. Where the tokenizer has no token of a language, cls stands in. A pair with a
    field `tag` (back-translated) has the token `tag` behind the source language's: Caswell 2019, arXiv:1906.06442.
    Fields: `seq2seq.fields_of`; the pairs of a batch share rows (`sharing.sharing_rows`).
    """

    source: str
    """Language read."""
    target: str
    """Language written."""
    vocabulary_size: int = Field(gt=0)
    special_tokens: dict[str, int]
    max_source_tokens: int = Field(default=128, ge=4)
    """S; longer sentences are cut."""
    max_target_tokens: int = Field(default=128, ge=4)
    """T; longer sentences are cut, and then do not end in sep."""

    @model_validator(mode="after")
    def _tokens_are_there(self) -> Self:
        missing = [name for name in ("pad", "cls", "sep") if name not in self.special_tokens]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} token among {sorted(self.special_tokens)}")
        if self.source == self.target:
            raise ValueError(f"source and target are both {self.source!r}")
        return self

    def start(self, language: str) -> int:
        """The token that text of a language begins with."""
        return self.special_tokens.get(f"lang:{language}", self.special_tokens["cls"])

    def source_of(self, sample: Sample) -> np.ndarray:
        """(n,) what the encoder reads, n <= S."""
        begin = [self.start(self.source), *self._tag(sample)]
        text = self._text(sample, self.source)[: self.max_source_tokens - len(begin) - 1]
        return np.concatenate([begin, text, [self.special_tokens["sep"]]]).astype(np.int32)

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`; nothing is drawn."""
        written = np.append(self._text(sample, self.target), self.special_tokens["sep"])[: self.max_target_tokens]
        pair = Pair(self.source_of(sample), written)
        pad = self.special_tokens["pad"]
        return fields_of([pair], self.start(self.target), pad, self.max_source_tokens, self.max_target_tokens)

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`; pairs share rows."""
        return sharing_rows(batch, self.special_tokens["pad"])

    def _text(self, sample: Sample, language: str) -> np.ndarray:
        return read_tokens(sample, f"{language}.npy", self.vocabulary_size)

    def _tag(self, sample: Sample) -> list[int]:
        if "tag" not in sample.fields:
            return []
        if "tag" not in self.special_tokens:
            raise SampleError("a back-translated pair, but the tokenizer has no token `tag`", key=sample.key)
        return [self.special_tokens["tag"]]
