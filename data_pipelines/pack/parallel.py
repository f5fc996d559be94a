"""Aligned sentences of two or more languages.

    thalweg data pack parallel multi30k/train data/en-de languages=en,de validation=multi30k/val

IN is the prefix of aligned files (`train.en`, `train.de`, or with `.gz`), a table (`.tsv`, columns as `languages`), or
JSON lines (`{"en": ..., "de": ...}`, or that under "translation"), gzipped or not. A sample is one pair: `en.txt` the
line as given, `en.npy` its tokens without any special ones, and so for each language; its key is the line's number from
0. Lines end at LF only, for other line breaks occur inside sentences. The tokenizer is one for all languages.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, tee, zip_longest
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.base import UserError
from data_pipelines.manifest import Facts
from data_pipelines.pack.corpus import JSON_LINES, opened, parsed
from data_pipelines.pack.spool import Spool, npy, token_type
from data_pipelines.pack.tokenizer import Languages, TextTokenizer, TokenizerConfig, obtain_tokenizer
from data_pipelines.pack.writer import Progress, Split, held_out, no_progress, shuffled, write_sets
from data_pipelines.shards import Dataset


class Config(TokenizerConfig):
    """Languages, what is held out, and the tokenizer."""

    languages: Languages = Field(min_length=2)
    """Of the sides, in order: `en,de`."""
    validation: str | None = None
    """Another IN, written as `val`."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the pairs held out as `val`, where `validation` is not given."""
    model: Literal["wordpiece", "bpe", "unigram"] = "bpe"
    """Trained on all sides together; see `data pack text`."""
    tagged: bool = False
    """The source sides are machine translations: pairs get a field `tag`, which views turn into the token <tag>."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.validation is not None and self.val_fraction > 0:
            raise ValueError("give validation or val_fraction, not both")
        if len(set(self.languages)) < len(self.languages):
            raise ValueError(f"languages {','.join(self.languages)} name one twice")
        return self


class Pair(NamedTuple):
    """A line's number and its texts, in the order of the languages."""

    number: int
    texts: tuple[str, ...]


class Pairs:
    """Aligned lines of one source, without those that are no pair.

    Attributes:
        digests: of each pair's texts.
        notes: what was left out, in words.
    """

    def __init__(self, source: str, languages: Sequence[str]) -> None:
        """Read all once.

        Raises:
            UserError: files are missing or misaligned, or hold no pair.
        """
        self._source, self._languages = source, languages
        left_out: Counter[str] = Counter()
        self.digests = []
        for _, found in self._all():
            if isinstance(found, str):
                left_out[found] += 1
            else:
                self.digests.append(hashlib.blake2b("\n".join(found).encode(), digest_size=16).hexdigest())
        self.notes = tuple(f"{count} lines {why} were left out" for why, count in sorted(left_out.items()))
        if not self.digests:
            raise UserError(
                f"data pack parallel: {source}: no pair in it" + "".join(f"; {note}" for note in self.notes)
            )

    def __len__(self) -> int:
        return len(self.digests)

    def __iter__(self) -> Iterator[Pair]:
        return (Pair(number, found) for number, found in self._all() if not isinstance(found, str))

    def _all(self) -> Iterator[tuple[int, tuple[str, ...] | str]]:
        """(line number, texts, or why it is no pair)."""
        for number, sides in enumerate(_read(self._source, self._languages)):
            yield number, _texts(sides, len(self._languages))


def _texts(sides: Sequence[bytes], count: int) -> tuple[str, ...] | str:
    if len(sides) != count:
        return f"without {count} sides"
    try:
        texts = tuple(side.removesuffix(b"\n").removesuffix(b"\r").decode() for side in sides)
    except UnicodeDecodeError:
        return "that are not UTF-8"
    return texts if all(text.strip() for text in texts) else "with an empty side"


def _read(source: str, languages: Sequence[str]) -> Iterator[Sequence[bytes]]:
    """The sides of each line; too few or too many where a line is no pair."""
    path = Path(source)
    name = path.name.removesuffix(".gz")
    if path.is_file() and name.endswith(".tsv"):
        return (line.removesuffix(b"\n").split(b"\t") for line in _lines(path))
    if path.is_file() and name.endswith(JSON_LINES):
        return (_sides_of_record(line, languages) for line in _lines(path) if line.strip())
    return _aligned([_side_file(source, language) for language in languages])


def _lines(path: Path) -> Iterator[bytes]:
    with opened(path) as file:
        yield from file


def _sides_of_record(line: bytes, languages: Sequence[str]) -> list[bytes]:
    record = parsed(line)
    sides = record.get("translation", record) if isinstance(record, dict) else None
    if not isinstance(sides, dict):
        return []
    texts = [sides.get(language) for language in languages]
    return [text.encode(errors="surrogatepass") for text in texts if isinstance(text, str)]


def _side_file(prefix: str, language: str) -> Path:
    candidates = [Path(f"{prefix}.{language}"), Path(f"{prefix}.{language}.gz")]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UserError(
            f"data pack parallel: neither {' nor '.join(map(str, candidates))} is there; IN is the prefix of aligned "
            f"files, a .tsv or a .jsonl"
        )
    return found


def _aligned(paths: Sequence[Path]) -> Iterator[tuple[bytes, ...]]:
    for sides in zip_longest(*map(_lines, paths)):
        if None in sides:
            counts = ", ".join(f"{path} has {sum(1 for _ in _lines(path))} lines" for path in paths)
            raise UserError(f"data pack parallel: files are not aligned: {counts}")
        yield sides


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write aligned lines, each with the tokens of its sides.

    Raises:
        UserError: no pairs there, files of different length, or the tokenizer lacks a special token.
    """
    if source is None:
        raise UserError("data pack parallel: want aligned text: thalweg data pack parallel IN OUT languages=en,de")
    sides = {"train": Pairs(source, config.languages)}
    is_val = held_out(sides["train"].digests, config.val_fraction, config.seed)
    if config.validation is not None:
        sides["val"] = Pairs(config.validation, config.languages)

    def training_texts() -> Iterator[str]:
        return (text for pair, val in zip(sides["train"], is_val, strict=True) if not val for text in pair.texts)

    tokenizer = obtain_tokenizer(config, config.languages, training_texts, progress)
    with tempfile.TemporaryFile() as train, tempfile.TemporaryFile() as val:
        files = {"train": train, "val": val}
        sets = {name: _PackedPairs(Spool(file, _fields(config)), config) for name, file in files.items()}
        for name, pairs in sides.items():
            for place, (pair, tokens) in enumerate(_tokenized(pairs, tokenizer, len(config.languages))):
                held = name == "train" and is_val[place]
                sets["val" if held else name].add(pair, tokens, tokenizer)
                progress(f"tokenize {name}", place + 1, len(pairs))
        notes = {name: sides.get(name, sides["train"]).notes + _unknown(tokenizer, config) for name in sets}
        splits = [sets[name].split(name, notes[name], tokenizer) for name in sets if len(sets[name].keys)]
        name = Path(source).name.split(".")[0] or "parallel"
        return write_sets(out, splits, config, name=name, source=source, progress=progress)


def _fields(config: Config) -> list[str]:
    tag = ["tag"] if config.tagged else []
    return [*chain.from_iterable((f"{language}.txt", f"{language}.npy") for language in config.languages), *tag]


def _tokenized(
    pairs: Iterable[Pair], tokenizer: TextTokenizer, sides: int
) -> Iterator[tuple[Pair, tuple[np.ndarray, ...]]]:
    """Each pair with the tokens of its sides, (n,) each, without blanks at the ends."""
    pairs, again = tee(pairs)
    tokens = tokenizer.tokens(text.strip() for pair in again for text in pair.texts)
    for pair in pairs:
        yield pair, tuple(islice(tokens, sides))


def _unknown(tokenizer: TextTokenizer, config: Config) -> tuple[str, ...]:
    missing = [language for language in config.languages if f"lang:{language}" not in tokenizer.special_tokens]
    return (f"the tokenizer has no token for {', '.join(missing)}: its start token stands in",) if missing else ()


class _PackedPairs:
    """The pairs of one split as they will be written."""

    def __init__(self, spool: Spool, config: Config) -> None:
        self.keys: list[str] = []
        self._spool, self._config = spool, config
        self._tokens = 0

    def add(self, pair: Pair, tokens: Sequence[np.ndarray], tokenizer: TextTokenizer) -> None:
        kind = token_type(tokenizer.vocabulary_size)
        contents = chain.from_iterable(
            (text.encode(), npy(side.astype(kind))) for text, side in zip(pair.texts, tokens, strict=True)
        )
        self._spool.add(*contents, *([b"1"] if self._config.tagged else []))
        self.keys.append(f"pair{pair.number:09d}")
        self._tokens += sum(map(len, tokens))

    def split(self, name: str, notes: tuple[str, ...], tokenizer: TextTokenizer) -> Split:
        facts = Facts(**tokenizer.facts(), tokens=self._tokens, languages=self._config.languages)
        keys = self.keys
        return Split(
            name=name,
            samples=((keys[place], self._spool.read(int(place))) for place in shuffled(keys, self._config.seed)),
            num_samples=len(keys),
            num_bytes=self._spool.num_bytes,
            describe=lambda: (facts, notes),
            extra_files=tokenizer.files(),
        )
