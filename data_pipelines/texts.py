"""What samples of packed text hold, counted and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from tokenizers import Tokenizer

from data_pipelines.base import SampleError
from data_pipelines.batch import Sample
from data_pipelines.manifest import Facts
from data_pipelines.shards import Dataset
from data_pipelines.storage import join, read_bytes
from data_pipelines.views import Draw, View
from data_pipelines.views.tokens import read_tokens

SHOWN_CHARACTERS = 400
TOKEN_FIELDS = ("tokens", "source", "target", "labels", "targets")
"""Fields of views that hold tokens; what is below 0 is not asked for."""


def tokens_of(sample: Sample, facts: Facts) -> dict[str, np.ndarray]:
    """Tokens by field, without padding: of a row of text, or of each side of a pair; nothing of other samples.

    Raises:
        SampleError: a field is absent, damaged, or of another vocabulary.
    """
    if facts.vocabulary_size is None:
        return {}
    fields = [f"{language}.npy" for language in facts.languages] or (["tokens.npy"] if facts.row_tokens else [])
    found = {name: read_tokens(sample, name, facts.vocabulary_size) for name in fields}
    if facts.row_tokens is None:
        return found
    return {name: tokens[tokens != facts.special_tokens.get("pad", -1)] for name, tokens in found.items()}


class Words:
    """Tokens of a set in words, by its own tokenizer."""

    def __init__(self, dataset: Dataset) -> None:
        """Raises FileNotFoundError where the set holds no tokenizer."""
        self._facts = dataset.manifest.facts
        self._tokenizer = Tokenizer.from_str(read_bytes(join(dataset.path, "tokenizer.json")).decode())

    def lines(self, sample: Sample, view: View | None, draw: Draw) -> Iterator[str]:
        """One line a field, cut at `SHOWN_CHARACTERS`; of what the view makes of the sample where one is given."""
        try:
            fields = tokens_of(sample, self._facts) if view is None else self._seen(view.sample(sample, draw))
        except SampleError as error:
            yield error.reason
            return
        for name, tokens in fields.items():
            text = " ".join(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False).split())
            yield f"{name}: {text[:SHOWN_CHARACTERS]}{'…' if len(text) > SHOWN_CHARACTERS else ''}"

    def _seen(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        pad = self._facts.special_tokens.get("pad", -1)
        seen = {name: np.asarray(fields[name]) for name in TOKEN_FIELDS if name in fields}
        return {name: tokens[(tokens >= 0) & (tokens != pad)] for name, tokens in seen.items()}
