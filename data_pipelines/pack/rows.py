"""Documents, one behind the other, cut into rows of fixed length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

import numpy as np

from data_pipelines.pack.spool import Spool, npy, token_type
from data_pipelines.pack.tokenizer import Encoded

FIELDS = ("tokens.npy", "segments.npy", "marks.npy")


class Rows:
    """Rows of tokens, kept in a file until they are shuffled.

    Attributes:
        tokens: without padding, of all rows.
    """

    def __init__(
        self, file: IO[bytes], row_tokens: int, start: int, special: Mapping[str, int], vocabulary_size: int
    ) -> None:
        """Rows begin with the token `start`, documents end with `sep`, and `pad` fills the last row."""
        self._spool = Spool(file, FIELDS)
        self._start, self._end, self._pad = start, special["sep"], special["pad"]
        blank = np.zeros(row_tokens, token_type(vocabulary_size))
        self._row = {"tokens.npy": blank, "segments.npy": blank.astype("<u2"), "marks.npy": blank.astype("u1")}
        self._used = self._segment = self.tokens = 0

    def __len__(self) -> int:
        return len(self._spool)

    @property
    def num_bytes(self) -> int:
        """Of all rows."""
        return self._spool.num_bytes

    def add(self, document: Encoded) -> None:
        """Append a document and its end."""
        tokens, marks = np.append(document.tokens, self._end), np.append(document.marks, 0)
        row_tokens = len(self._row["tokens.npy"])
        self._segment += 1
        while len(tokens):
            if self._used == 0:
                self._segment = 1
                self._put(np.array([self._start]), np.zeros(1, np.uint8))
            room = row_tokens - self._used
            self._put(tokens[:room], marks[:room])
            tokens, marks = tokens[room:], marks[room:]
            if self._used == row_tokens:
                self._flush()

    def finish(self) -> None:
        """Write the last row, padded."""
        if self._used:
            self._flush()

    def read(self, row: int) -> dict[str, bytes]:
        """The fields of a row."""
        return self._spool.read(row)

    def _put(self, tokens: np.ndarray, marks: np.ndarray) -> None:
        stop = self._used + len(tokens)
        for name, values in zip(FIELDS, (tokens, self._segment, marks), strict=True):
            self._row[name][self._used : stop] = values
        self._used = stop

    def _flush(self) -> None:
        for name, filler in zip(FIELDS, (self._pad, 0, 0), strict=True):
            self._row[name][self._used :] = filler
        self._spool.add(*map(npy, self._row.values()))
        self.tokens += self._used
        self._used = 0
