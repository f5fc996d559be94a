"""A tokenizer for packing, trained here or loaded, and what it makes of text: tokens, and where words begin."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field
from tokenizers import Encoding, Tokenizer

from data_pipelines.base import UserError
from data_pipelines.pack.special_tokens import LANGUAGE, ROLES, SENTINEL, TAG, language_token, special_ids
from data_pipelines.pack.tokenizer_training import train
from data_pipelines.pack.writer import PackConfig, Progress
from data_pipelines.views.tokens import BEGINS_SENTENCE, BEGINS_WORD

PIECE_CHARACTERS = 1 << 13
"""Longer texts are tokenized in pieces, so that a line of 10 MB costs no more memory than a page."""
PIECES_AT_ONCE = 4096
CHARACTERS_AT_ONCE = 1 << 20
SENTENCE_ENDS = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+|\s*\n\s*")
"""What lies between two sentences: an end with closing quotes and blanks (of an abbreviation too), or a line break."""
LONGEST_END = 32
"""Characters before a piece in which the end of a sentence is looked for."""


def _language(value: Any) -> Any:
    """YAML reads `no` as false; here it is Norwegian."""
    if value is False:
        return "no"
    if isinstance(value, str) and not LANGUAGE.fullmatch(value):
        raise ValueError(f"want a code such as de or de_DE, got {value!r}")
    return value


def _languages(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


Language = Annotated[str, BeforeValidator(_language)]
Languages = Annotated[tuple[Language, ...], BeforeValidator(_languages)]
"""Also written as `en,de`."""


class TokenizerConfig(PackConfig):
    """Which tokenizer: one from a folder, or one of a kind and size, trained on the training split."""

    tokenizer: str | None = None
    """Folder with a tokenizer.json to use instead of training one: a packed set's, or of transformers."""
    model: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """Trained in the manner of BERT; of GPT-2, on bytes; of sentencepiece."""
    vocabulary_size: int = Field(8192, ge=64)
    """Of the tokenizer trained here; bytes and special tokens are in it."""
    lowercase: bool | None = None
    """Of the tokenizer trained here; a wordpiece then loses accents too, as BERT's uncased models. Unset: only that."""
    sentinels: int = Field(0, ge=0)
    """Tokens for span corruption, of the tokenizer trained here."""


class Encoded(NamedTuple):
    """Tokens of a text, (n,) int64, and where words and sentences begin, (n,) uint8."""

    tokens: np.ndarray
    marks: np.ndarray


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and what packing knows of it.

    Attributes:
        special_tokens: ids by role; `lang:de`, `sentinel:0`, `tag` where there are such.
    """

    tokenizer: Tokenizer
    special_tokens: dict[str, int]

    @cached_property
    def vocabulary_size(self) -> int:
        """Above every id; vocabularies may have gaps."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def facts(self) -> dict[str, Any]:
        """What `Facts` says of a tokenizer."""
        return {
            "vocabulary_size": self.vocabulary_size,
            "special_tokens": self.special_tokens,
            "tokenizer_digest": hashlib.blake2b(self.tokenizer.to_str().encode(), digest_size=16).hexdigest(),
        }

    def files(self) -> dict[str, bytes]:
        """What a packed set holds of it; `AutoTokenizer` opens it."""
        names = {role: self.tokenizer.id_to_token(number) for role, number in self.special_tokens.items()}
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings |= {f"{role}_token": names[role] for role in ROLES if role in names}
        settings |= {"bos_token": names["cls"], "eos_token": names["sep"]}
        more = [name for role, name in names.items() if role not in ROLES]
        if more:
            settings["additional_special_tokens"] = more
        return {
            "tokenizer.json": self.tokenizer.to_str(pretty=True).encode(),
            "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True).encode(),
        }

    def tokens(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """(n,) int64 tokens of each text, in order. Names of special tokens in a text are plain words."""
        for parts in self._encoded(texts, self.tokenizer.encode_batch_fast):
            yield np.concatenate([np.array(encoding.ids, np.int64) for _, encoding in parts])

    def encode(self, texts: Iterable[str]) -> Iterator[Encoded]:
        """As `tokens`, with marks, for which the tokenizer has to follow the places of characters."""
        for parts in self._encoded(texts, self.tokenizer.encode_batch):
            tokens, marks = zip(*map(self._marked, parts), strict=True)
            yield Encoded(np.concatenate(tokens), np.concatenate(marks))

    def _encoded(
        self, texts: Iterable[str], encode: Callable[..., list[Encoding]]
    ) -> Iterator[Iterator[tuple[_Piece, Encoding]]]:
        """The pieces of each text; those of many short texts are tokenized at once."""
        self.tokenizer.encode_special_tokens = True
        groups = _groups(_Piece(number, text, *ends) for number, text in enumerate(texts) for ends in pieces_of(text))
        encoded = (
            pair
            for group in groups
            for pair in zip(group, encode([piece.text for piece in group], add_special_tokens=False), strict=True)
        )
        return (parts for _, parts in groupby(encoded, key=lambda pair: pair[0].number))

    def _marked(self, pair: tuple[_Piece, Encoding]) -> Encoded:
        piece, encoding = pair
        tokens = np.array(encoding.ids, np.int64)
        marks = self._word_starts(tokens, encoding) * np.uint8(BEGINS_WORD)
        for place in piece.sentence_starts():
            token = encoding.char_to_token(place)
            if token is not None:
                marks[token] = BEGINS_WORD | BEGINS_SENTENCE
        return Encoded(tokens, marks)

    def _word_starts(self, tokens: np.ndarray, encoding: Encoding) -> np.ndarray:
        """(n,) bool, by the tokenizer's own words; by their leading "▁" where it does not cut text into words first."""
        starts = np.ones(len(tokens), bool)
        if self._spelled_starts is not None:
            starts[1:] = self._spelled_starts[tokens[1:]]
        else:
            words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
            starts[1:] = words[1:] != words[:-1]
        return starts

    @cached_property
    def _spelled_starts(self) -> np.ndarray | None:
        if self.tokenizer.pre_tokenizer is not None:
            return None
        starts = np.zeros(self.vocabulary_size, bool)
        starts[[number for token, number in self.tokenizer.get_vocab().items() if token.startswith("▁")]] = True
        return starts


class _Piece(NamedTuple):
    """The stretch [begin, stop) of text number `number`, which is `whole`."""

    number: int
    whole: str
    begin: int
    stop: int

    @property
    def text(self) -> str:
        return self.whole[self.begin : self.stop]

    def sentence_starts(self) -> list[int]:
        """Places in the piece where sentences begin."""
        return [start - self.begin for start in sentence_starts(self.whole, self.begin, self.stop)]


def sentence_starts(text: str, begin: int, stop: int) -> list[int]:
    """Places of first characters in [begin, stop), by `SENTENCE_ENDS`.

    >>> sentence_starts('So it is. "Is it?" Pi is 3.14.', 0, 30)
    [0, 10, 19]
    """
    matches = SENTENCE_ENDS.finditer(text, max(0, begin - LONGEST_END), stop)
    starts = [0, *(match.end() for match in matches)]
    return [start for start in starts if begin <= start < stop]


def pieces_of(text: str) -> Iterator[tuple[int, int]]:
    """[begin, stop) of stretches of about `PIECE_CHARACTERS`, cut at blanks where there are some; of nothing, one."""
    begin = 0
    while True:
        stop = min(begin + PIECE_CHARACTERS, len(text))
        blank = text.rfind(" ", begin + 1, stop) if stop < len(text) else -1
        stop = blank if blank > 0 else stop
        yield begin, stop
        if stop == len(text):
            return
        begin = stop


def _groups(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    group: list[_Piece] = []
    characters = 0
    for piece in pieces:
        group.append(piece)
        characters += piece.stop - piece.begin
        if len(group) == PIECES_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield group
            group, characters = [], 0
    if group:
        yield group


def obtain_tokenizer(
    config: TokenizerConfig, languages: Sequence[str], texts: Callable[[], Iterator[str]], progress: Progress
) -> TextTokenizer:
    """The tokenizer a config asks for.

    Args:
        languages: get tokens of their own in a tokenizer trained here.
        texts: reads the training text anew whenever it is called.

    Raises:
        UserError: it cannot be loaded, or lacks a special token.
    """
    if config.tokenizer is not None:
        return load_tokenizer(Path(config.tokenizer), languages)
    more = [*map(language_token, languages), *(SENTINEL.format(number) for number in range(config.sentinels))]

    def pieces() -> Iterator[str]:
        return (text[begin:stop] for text in texts() for begin, stop in pieces_of(text))

    tokenizer = train(
        config.model,
        pieces,
        vocabulary_size=config.vocabulary_size,
        lowercase=config.model == "wordpiece" if config.lowercase is None else config.lowercase,
        more=more + [TAG] * (len(languages) > 1),
        progress=progress,
    )
    return TextTokenizer(tokenizer, special_ids(tokenizer, {}, languages))


def load_tokenizer(path: Path, languages: Sequence[str] = ()) -> TextTokenizer:
    """A tokenizer from a tokenizer.json, or the folder of one; its tokenizer_config.json says what roles tokens play.

    Raises:
        UserError: it is not there, damaged, or lacks a token that rows need.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_str(file.read_text())
    except FileNotFoundError:
        raise UserError(f"data pack: tokenizer={path}: no tokenizer.json there") from None
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"data pack: tokenizer={file}: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        settings = json.loads((file.parent / "tokenizer_config.json").read_text())
    except (FileNotFoundError, ValueError):
        settings = {}
    return TextTokenizer(tokenizer, special_ids(tokenizer, settings, languages))
