"""The test set of a translation eval: sentences of two languages, and the tokenizer that a network knows them by."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from data_pipelines.base import UserError
from data_pipelines.batch import Sample
from data_pipelines.shards import Dataset
from data_pipelines.storage import join, read_bytes
from evals.protocol import EvalData


class Direction(NamedTuple):
    """Languages read and written."""

    source: str
    target: str

    @property
    def reverse(self) -> Direction:
        """The other way."""
        return Direction(self.target, self.source)


def languages(data: EvalData, source: str | None, target: str | None) -> Direction:
    """The direction asked for, or that of the training set's order of languages.

    Raises:
        UserError: a set is no parallel one, lacks a language, or the two sets have other tokenizers.
    """
    for dataset in (data.train, data.test):
        known = dataset.manifest.facts.languages or ()
        if len(known) < 2:
            raise UserError(
                f"data {dataset.path}: no pairs of sentences; name sets of `thalweg data pack parallel` with "
                f"data.train=... data.test=..."
            )
        for language in (source, target):
            if language is not None and language not in known:
                raise UserError(f"data {dataset.path} has no language {language!r}; it has {', '.join(known)}")
    first = data.train.manifest.facts.languages or ()
    source = source or next(language for language in first if language != target)
    target = target or next(language for language in first if language != source)
    if data.train.manifest.facts.tokenizer_digest != data.test.manifest.facts.tokenizer_digest:
        raise UserError(
            f"data: {data.test.path} was packed with another tokenizer than {data.train.path}; pack it again with "
            f"tokenizer={data.train.path}"
        )
    return Direction(source, target)


def tokenizer_of(dataset: Dataset) -> Tokenizer:
    """The tokenizer that a packed set was made with.

    Raises:
        UserError: it is not there, or damaged.
    """
    address = join(dataset.path, "tokenizer.json")
    try:
        return Tokenizer.from_str(read_bytes(address).decode())
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{address}: {error}; pack the set again") from None


def samples_of(dataset: Dataset) -> Iterator[Sample]:
    """Every sample in file order.

    Raises:
        SampleError: one is unreadable: a score over the rest would be another score.
    """
    for shard, size in enumerate(dataset.shard_sizes):
        for member in range(int(size)):
            yield dataset.read(shard, member)


@dataclass(frozen=True)
class Pairs:
    """A test set in one direction.

    Attributes:
        sources: raw text, in file order.
        references: raw text, of the target language.
        samples: the pairs as a view reads them.
    """

    direction: Direction
    keys: Sequence[str]
    sources: Sequence[str]
    references: Sequence[str]
    samples: Sequence[Sample]
    tokenizer: Tokenizer

    @classmethod
    def read(cls, dataset: Dataset, direction: Direction) -> Pairs:
        """A whole set.

        Raises:
            UserError: a reference is empty.
            SampleError: a sample is unreadable.
        """
        samples = list(samples_of(dataset))
        texts = [
            [sample.fields[f"{language}.txt"].decode() for sample in samples]
            for language in (direction.source, direction.target)
        ]
        empty = next((sample.key for sample, text in zip(samples, texts[1], strict=True) if not text.strip()), None)
        if empty is not None:
            raise UserError(f"data {dataset.path}: {empty} has an empty reference ({direction.target}); pack it again")
        keys = [sample.key for sample in samples]
        return cls(direction, keys, texts[0], texts[1], samples, tokenizer_of(dataset))

    def __len__(self) -> int:
        return len(self.keys)

    def round_trip(self) -> list[str]:
        """The references as the tokenizer gives them back: what a perfect network would be scored by."""
        return decoded(
            self.tokenizer, [self.tokenizer.encode(text, add_special_tokens=False).ids for text in self.references]
        )


def lines_of(path: str) -> list[str]:
    """Lines of a text file (.gz too) that are not blank.

    Raises:
        UserError: there are none, or it is no text.
    """
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else Path(path).open("rb") as file:
            lines = [line.strip() for line in file.read().decode().split("\n")]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"monolingual={path}: {error}") from None
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"monolingual={path}: no text in it")
    return lines


def decoded(tokenizer: Tokenizer, sentences: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
    """Text of token ids, special tokens left out."""
    return [text.strip() for text in tokenizer.decode_batch([list(map(int, ids)) for ids in sentences])]
