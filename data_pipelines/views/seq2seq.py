"""What an encoder-decoder is shown: several documents side by side, each with its own target."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch
from data_pipelines.views.tokens import NOT_ASKED, PlainTokens

if TYPE_CHECKING:
    import torch

MULTIPLE = 8
"""Batches are cut to a multiple of this many tokens, so that few shapes occur."""
SIDES = {"source": ("source",), "target": ("target", "labels")}
"""What stands on each side of a pair, beside its attention and positions."""


class Document(NamedTuple):
    """One document of a packed row.

    Attributes:
        start: (1,) the token its row begins with: every document is read by itself, so each has its own; () where the
            row begins with its text.
        body: (n,) its text.
        marks: (n,) uint8 of the body: bit 0 begins a word, bit 1 a sentence.
        end: () or (1,) sep, unless the row ends before the document does.
    """

    start: np.ndarray
    body: np.ndarray
    marks: np.ndarray
    end: np.ndarray


class Pair(NamedTuple):
    """A document as the encoder reads it, and what the decoder is to say, (n,) tokens each; the target may be empty."""

    source: np.ndarray
    target: np.ndarray


def start_tokens(special_tokens: dict[str, int]) -> set[int]:
    """Tokens that a row may begin with: cls and the languages."""
    return {token for name, token in special_tokens.items() if name == "cls" or name.startswith("lang:")}


def documents_of(row: dict[str, np.ndarray], marks: np.ndarray, special_tokens: dict[str, int]) -> list[Document]:
    """The documents of a row of `PlainTokens`, in order, without padding."""
    tokens, attention = row["tokens"], row["attention"]
    used = int((attention > 0).sum())
    begun = int(used > 0 and int(tokens[0]) in start_tokens(special_tokens))
    borders = np.flatnonzero(np.diff(attention[begun:used])) + 1
    found = []
    for part, marked in zip(np.split(tokens[begun:used], borders), np.split(marks[begun:used], borders), strict=True):
        last = len(part) - int(len(part) > 0 and part[-1] == special_tokens.get("sep"))
        found.append(Document(tokens[:begun], part[:last], marked[:last], part[last:]))
    return found


def fields_of(
    pairs: Iterable[Pair], start: int, pad: int, source_tokens: int, target_tokens: int
) -> dict[str, np.ndarray]:
    """One sample of an encoder-decoder.

    The decoder is given `start` and then the target but its last token: at each place it is asked for the next one.

    Returns:
        source, source_attention, source_positions (source_tokens,); target, target_attention, target_positions, labels
        (target_tokens,), all int32. Attention is the number of the pair from 1, 0 for padding; positions are counted
        from the start of each pair; labels are `NOT_ASKED` for padding.

    Raises:
        SampleError: the pairs are longer than that.
    """
    pairs = list(pairs)
    given = [np.concatenate([[start], pair.target[:-1]]) if len(pair.target) else pair.target for pair in pairs]
    labels = _side([pair.target for pair in pairs], target_tokens, NOT_ASKED)[0]
    fields = {}
    for name, parts, size in (
        ("source", [pair.source for pair in pairs], source_tokens),
        ("target", given, target_tokens),
    ):
        fields[name], fields[f"{name}_attention"], fields[f"{name}_positions"] = _side(parts, size, pad)
    return {**fields, "labels": labels}


def _side(parts: list[np.ndarray], size: int, filler: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.array([len(part) for part in parts], np.int64)
    used = int(lengths.sum())
    if used > size:
        raise SampleError(f"{used} tokens do not fit into {size}")
    tokens = np.full(size, filler, np.int32)
    numbers, positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
    if used:
        tokens[:used] = np.concatenate(parts)
        numbers[:used] = np.repeat(np.arange(1, len(parts) + 1), lengths)
        positions[:used] = np.arange(used) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return tokens, numbers, positions


def without_padding(batch: Batch) -> Batch:
    """int64 fields, cut where all rows have nothing but padding left."""
    fields = {}
    for side, names in SIDES.items():
        size = row_size(batch[f"{side}_attention"])
        for name in (*names, f"{side}_attention", f"{side}_positions"):
            fields[name] = batch[name][:, :size].long()
    return batch.with_fields(**fields)


def row_size(attention: torch.Tensor) -> int:
    """Tokens that the longest of (B, N) rows needs, in `MULTIPLE`s, N at most."""
    used = int((attention > 0).any(dim=0).sum())
    return min(-(-max(used, 1) // MULTIPLE) * MULTIPLE, attention.shape[1])


class Seq2SeqRows(PlainTokens):
    """Packed rows as the base of views that spoil documents for an encoder and ask a decoder for them."""

    @property
    def source_tokens(self) -> int:
        """S: room for a start token in front of every document, and documents have two tokens at least but for ends."""
        return self.row_tokens + self.row_tokens // 2

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`."""
        return without_padding(batch)

    def _start(self, row: dict[str, np.ndarray]) -> int:
        """What decoders of this row begin with: its first token where that is a start (cls or a language), else cls."""
        first = int(row["tokens"][0])
        return first if first in start_tokens(self.special_tokens) else self.special_tokens["cls"]
