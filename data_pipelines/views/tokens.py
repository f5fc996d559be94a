"""Rows of text: as an eval reads them, and with tokens hidden for a masked language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.base import SampleError, Strict
from data_pipelines.batch import Batch, Sample
from data_pipelines.decode import decode_array
from data_pipelines.views import Draw
from data_pipelines.views.masks import hidden_count

NOT_ASKED = -100
"""Target of tokens the loss leaves out, torch's `ignore_index`."""
BEGINS_WORD, BEGINS_SENTENCE = 1, 2
"""Bits of `marks.npy`."""


class PlainTokens(Strict):
    """Packed rows as they are: `tokens.npy` (N,) and, where a row holds several documents, `segments.npy` (N,).

    Fields of a batch, all (B, N) int64: tokens; attention, the number of a token's document within its row, from 1, and
    0 for padding (tokens see each other where numbers agree); positions, counted from the start of each document.
    """

    row_tokens: int = Field(gt=0)
    """N, tokens a row."""
    vocabulary_size: int = Field(gt=0)
    """Tokens are below it."""
    special_tokens: dict[str, int]
    """Ids by name; `pad` marks the padding where there is any."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a row that are looked at, N of the batch then; the rest is cut off."""

    @model_validator(mode="after")
    def _special_tokens_are_tokens(self) -> Self:
        beyond = {name: token for name, token in self.special_tokens.items() if not 0 <= token < self.vocabulary_size}
        if beyond:
            raise ValueError(f"special tokens {beyond} are outside the vocabulary of {self.vocabulary_size}")
        return self

    @model_validator(mode="after")
    def _rows_are_long_enough(self) -> Self:
        if self.max_tokens is not None and self.max_tokens > self.row_tokens:
            raise ValueError(f"max_tokens={self.max_tokens} is more than the rows' {self.row_tokens} tokens")
        return self

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        return self.row(sample)

    def row(self, sample: Sample) -> dict[str, np.ndarray]:
        """Tokens, attention and positions of a sample, each (N,) int32.

        Raises:
            SampleError: not a row of N known tokens.
        """
        tokens = self._cut(read_tokens(sample, "tokens.npy", self.vocabulary_size), "tokens.npy")
        segments = self._read(sample, "segments.npy") if "segments.npy" in sample.fields else np.zeros_like(tokens)
        padding = tokens == self.special_tokens.get("pad", -1)
        return {"tokens": tokens, **documents(segments, padding)}

    def marks(self, sample: Sample) -> np.ndarray:
        """(N,) bits `BEGINS_WORD` and `BEGINS_SENTENCE` of each token; special tokens and padding have none.

        Raises:
            SampleError: there are no marks, or not N.
        """
        if "marks.npy" not in sample.fields:
            raise SampleError("no marks.npy, which says where words and sentences begin; pack the text again")
        return self._read(sample, "marks.npy")

    def _read(self, sample: Sample, field: str) -> np.ndarray:
        return self._cut(read_integers(sample, field), field)

    def _cut(self, array: np.ndarray, field: str) -> np.ndarray:
        if array.shape != (self.row_tokens,):
            raise SampleError(f"{field} holds {array.dtype} {array.shape}, want {self.row_tokens} integers")
        return array[: self.max_tokens]

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`."""
        return batch.with_fields(**{name: array.long() for name, array in batch.fields.items()})


class MaskedTokens(PlainTokens):
    """Rows with some tokens hidden: what BERT learns to restore.

    Fields of a batch besides those of `PlainTokens`: targets (B, N) int64, the token to restore, -100
    where nothing is asked.

    Source: Devlin 2018, arXiv:1810.04805, section 3.1; drawn anew at every slot, as Liu 2019, arXiv:1907.11692.
    """

    mask_ratio: float = Field(default=0.15, gt=0, lt=1)
    """Share of a row's ordinary tokens that is asked for; at least one token."""
    mask_share: float = Field(default=0.8, ge=0, le=1)
    """Share of those that the mask token stands for."""
    random_share: float = Field(default=0.1, ge=0, le=1)
    """Share of those that another token stands for, any ordinary one; the rest stays as it is."""
    whole_word: bool = False
    """All tokens of a word are asked for, or none; needs `marks.npy`."""

    @model_validator(mode="after")
    def _shares_and_tokens_fit(self) -> Self:
        if self.mask_share + self.random_share > 1:
            raise ValueError(f"mask_share {self.mask_share} and random_share {self.random_share} sum to more than 1")
        if "mask" not in self.special_tokens:
            raise ValueError(f"no mask token among {sorted(self.special_tokens)}")
        if self.vocabulary_size <= len(self._special_ids):
            raise ValueError(f"a vocabulary of {self.vocabulary_size} holds no ordinary token")
        return self

    @property
    def _special_ids(self) -> list[int]:
        return sorted(set(self.special_tokens.values()))

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`."""
        row = self.row(sample)
        tokens, rng = row["tokens"], draw.rng("tokens")
        ordinary = np.flatnonzero(~np.isin(tokens, self._special_ids))
        count = max(1, hidden_count(len(ordinary), self.mask_ratio))
        if self.whole_word:
            asked = choose_words(ordinary, self.marks(sample)[ordinary] & BEGINS_WORD > 0, count, rng)
        else:
            asked = rng.permutation(ordinary)[:count]
        targets = np.full_like(tokens, NOT_ASKED)
        targets[asked] = tokens[asked]
        return {**row, "tokens": self._hide(tokens, asked, rng), "targets": targets}

    def _hide(self, tokens: np.ndarray, asked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        fate = rng.random(len(asked))
        hidden = tokens.copy()
        hidden[asked[fate < self.mask_share]] = self.special_tokens["mask"]
        swapped = asked[(fate >= self.mask_share) & (fate < self.mask_share + self.random_share)]
        hidden[swapped] = self._draw_ordinary(len(swapped), rng)
        return hidden

    def _draw_ordinary(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Tokens that are not special, all equally likely."""
        drawn = rng.integers(self.vocabulary_size - len(self._special_ids), size=count)
        for special in self._special_ids:  # ascending: each moves what lies at or above it up by one
            drawn += drawn >= special
        return drawn


def choose_words(places: np.ndarray, begins: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Whole words in random order, passing over those that would make it more than `count` tokens.

    Args:
        places: (n,) ascending places of ordinary tokens in their row.
        begins: (n,) bool, which of them begin a word; so does a token behind a gap.

    Returns:
        (m,) of the places, m <= count; more only where every word is longer than that: then one word.

    Source: the whole-word masking of Devlin's code of 2019 (create_pretraining_data.py).
    """
    borders = np.flatnonzero(begins[1:] | (np.diff(places) > 1)) + 1
    words = np.split(places, borders)
    chosen: list[np.ndarray] = []
    room = count
    for number in rng.permutation(len(words)):
        if len(words[number]) <= room:
            chosen.append(words[number])
            room -= len(words[number])
        if room == 0:
            break
    return np.concatenate(chosen) if chosen else min(words, key=len)


def read_integers(sample: Sample, field: str) -> np.ndarray:
    """(n,) int32 from a field in NumPy's format.

    Raises:
        SampleError: it is absent, damaged, or no line of integers.
    """
    try:
        array = decode_array(sample.fields[field])
    except KeyError:
        raise SampleError(f"no {field} among the fields {sorted(sample.fields)}") from None
    except SampleError as error:
        raise SampleError(f"{field}: {error.reason}") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise SampleError(f"{field} holds {array.dtype} {array.shape}, want a line of integers")
    return array.astype(np.int32)


def read_tokens(sample: Sample, field: str, vocabulary_size: int) -> np.ndarray:
    """`read_integers` that are tokens.

    Raises:
        SampleError: also where a token is outside the vocabulary.
    """
    tokens = read_integers(sample, field)
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= vocabulary_size):
        raise SampleError(f"{field}: token {tokens.max()} is outside the vocabulary of {vocabulary_size}")
    return tokens


def documents(segments: np.ndarray, padding: np.ndarray) -> dict[str, np.ndarray]:
    """Number documents and the tokens within each.

    Args:
        segments: (N,) any numbers that change where a document ends.
        padding: (N,) bool.

    Returns:
        attention (N,) int32, documents from 1, 0 for padding; positions (N,) int32, from 0 in each document.

    >>> documents(np.array([7, 7, 7, 4, 4, 4]), np.array([False] * 5 + [True]))["attention"]
    array([1, 1, 1, 2, 2, 0], dtype=int32)
    """
    changes = np.flatnonzero(segments[1:] != segments[:-1]) + 1
    starts, ends = np.append(0, changes), np.append(changes, len(segments))
    sizes = ends - starts
    attention = np.repeat(np.arange(1, len(starts) + 1, dtype=np.int32), sizes)
    attention[padding] = 0
    positions = np.arange(len(segments), dtype=np.int32)
    positions -= np.repeat(starts.astype(np.int32), sizes)
    return {"attention": attention, "positions": positions}
