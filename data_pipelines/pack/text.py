"""Plain text to rows of tokens for masked language modelling.

    thalweg data pack text books/ data/books vocabulary_size=8192 row_tokens=128

Documents follow one another in rows of fixed length: each row begins with [CLS], each document ends with [SEP], a long
document goes on in the next row. A sample is one row: `tokens.npy`, and `segments.npy` that numbers the row's documents
from 1 (0 is padding), so that attention can keep them apart. The tokenizer is a WordPiece trained on the training
documents, or one you name; it is saved in the set.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO, Literal

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_pipelines.base import UserError
from data_pipelines.pack.writer import PackConfig, Progress, Split, held_out, no_progress, shuffled, write_sets
from data_pipelines.shards import Dataset, Facts

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
SUFFIXES = (".txt", ".text", ".txt.gz", ".text.gz")
PIECE_CHARACTERS = 1 << 16
"""Longer documents are tokenized in pieces, so that a line of 10 MB costs no more memory than a page."""
PIECES_AT_ONCE = 256
ALPHABET = 1000
"""Characters a trained vocabulary keeps at most, the rarest become [UNK]."""


class Config(PackConfig):
    """How text is cut into documents, tokens and rows."""

    val_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the documents held out as `val`; 0 writes `train` alone."""
    document: Literal["blank_line", "line", "file"] = "blank_line"
    """What ends a document."""
    row_tokens: int = Field(128, ge=8, le=65535)
    """Tokens a row."""
    vocabulary_size: int = Field(8192, ge=64)
    """Of the WordPiece trained here."""
    lowercase: bool = True
    """Of the WordPiece trained here; strips accents too, as BERT's uncased models do."""
    tokenizer: str | None = None
    """Folder with a tokenizer.json to use instead of training one."""


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write the text of a file, or of all text files below a folder, as rows of tokens.

    Raises:
        UserError: no text there, or the tokenizer lacks a special token.
    """
    if source is None:
        raise UserError("data pack text: want a text file or folder: thalweg data pack text IN OUT")
    corpus = Corpus(text_files(Path(source)), config)
    tokenizer = _load(Path(config.tokenizer)) if config.tokenizer else _train(corpus, config, progress)
    special = _special_ids(tokenizer)
    facts = Facts(
        vocabulary_size=tokenizer.get_vocab_size(),
        row_tokens=config.row_tokens,
        special_tokens=special,
        tokenizer_digest=hashlib.blake2b(tokenizer.to_str().encode(), digest_size=16).hexdigest(),
    )
    with tempfile.TemporaryFile() as train, tempfile.TemporaryFile() as val:
        splits = []
        for name, file in (("train", train), ("val", val)):
            rows = Rows(file, config.row_tokens, special, facts.vocabulary_size or 0)
            for number, tokens in _encode(tokenizer, corpus.documents(name)):
                rows.add(tokens)
                progress(f"tokenize {name}", number + 1, len(corpus))
            rows.finish()
            if len(rows):
                splits.append(_split(name, rows, facts, corpus.notes, tokenizer, config))
        return write_sets(
            out, splits, config, name=Path(source).name.split(".")[0] or "text", source=source, progress=progress
        )


def text_files(source: Path) -> list[Path]:
    """The file itself, or all text files below a folder, sorted.

    Raises:
        UserError: there are none.
    """
    found = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.name.endswith(SUFFIXES))
    if not found:
        raise UserError(f"data pack text: no text file ({', '.join(SUFFIXES)}) at {source}")
    return found


class Corpus:
    """Documents of some text files, each on one side of the split for good."""

    def __init__(self, files: Sequence[Path], config: Config) -> None:
        """Read all files once, to number the documents and to divide them."""
        self._files, self._ending = files, config.document
        self._undecodable = 0
        digests = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in self._all()]
        self._val = held_out(digests, config.val_fraction, config.seed)
        left_out, self._undecodable = self._undecodable, 0
        self.notes = (f"{left_out} documents that are not UTF-8 were left out",) if left_out else ()
        if not digests:
            raise UserError(f"data pack text: {files[0]}{' and others' if len(files) > 1 else ''}: no text in it")

    def __len__(self) -> int:
        return len(self._val)

    def documents(self, split: str) -> Iterator[tuple[int, str]]:
        """(number, text) of the documents on one side, in file order."""
        wanted = self._val == (split == "val")
        return ((number, text) for number, text in enumerate(self._all()) if wanted[number])

    def _all(self) -> Iterator[str]:
        for path in self._files:
            for raw in _cut(path, self._ending):
                try:
                    text = raw.decode().strip()
                except UnicodeDecodeError:
                    self._undecodable += 1
                    continue
                if text:
                    yield text


def _cut(path: Path, ending: str) -> Iterator[bytes]:
    """Raw documents of a file; lines end at LF only, for other line breaks occur inside sentences."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            if ending == "file":
                yield file.read()
                return
            lines: list[bytes] = []
            for line in file:
                if ending == "blank_line" and line.strip():
                    lines.append(line)
                    continue
                yield b"".join(lines) or line
                lines = []
            yield b"".join(lines)
    except (OSError, EOFError) as error:
        raise UserError(f"data pack text: {path}: {error}") from None


class Rows:
    """Rows of tokens, kept in a file until they are shuffled."""

    def __init__(self, file: IO[bytes], row_tokens: int, special: dict[str, int], vocabulary_size: int) -> None:
        self._file, self._special = file, special
        self._dtype = np.dtype("<u2") if vocabulary_size <= 2**16 else np.dtype("<i4")
        self._tokens = np.full(row_tokens, special["pad"], self._dtype)
        self._segments = np.zeros(row_tokens, "<u2")
        self._used = 0
        self._count = 0
        self._sizes = (len(_npy(self._tokens)), len(_npy(self._segments)))

    def __len__(self) -> int:
        return self._count

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, both fields."""
        return sum(self._sizes)

    def add(self, tokens: np.ndarray) -> None:
        """Append a document's tokens, (T,), and its end mark."""
        tokens = np.append(tokens, self._special["sep"])
        segment = int(self._segments.max()) + 1
        while len(tokens):
            if self._used == 0:
                self._put(np.array([self._special["cls"]]), segment := 1)
            room = len(self._tokens) - self._used
            self._put(tokens[:room], segment)
            tokens = tokens[room:]
            if self._used == len(self._tokens):
                self._flush()

    def finish(self) -> None:
        """Write the last row, padded."""
        if self._used:
            self._flush()

    def read(self, row: int) -> dict[str, bytes]:
        """The fields of a row."""
        self._file.seek(row * self.row_bytes)
        tokens, segments = (self._file.read(size) for size in self._sizes)
        return {"tokens.npy": tokens, "segments.npy": segments}

    def _put(self, tokens: np.ndarray, segment: int) -> None:
        stop = self._used + len(tokens)
        self._tokens[self._used : stop] = tokens
        self._segments[self._used : stop] = segment
        self._used = stop

    def _flush(self) -> None:
        self._file.write(_npy(self._tokens) + _npy(self._segments))
        self._tokens[:] = self._special["pad"]
        self._segments[:] = 0
        self._used = 0
        self._count += 1


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _pieces(text: str) -> Iterator[str]:
    """A document in pieces of about `PIECE_CHARACTERS`, cut at blanks where there are some."""
    start = 0
    while start < len(text):
        stop = start + PIECE_CHARACTERS
        blank = text.rfind(" ", start + 1, stop) if stop < len(text) else -1
        stop = blank if blank > 0 else stop
        yield text[start:stop]
        start = stop


def _encode(tokenizer: Tokenizer, documents: Iterator[tuple[int, str]]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, token ids (T,) int64) of each document; many short ones are tokenized at once."""
    pieces = ((number, piece) for number, text in documents for piece in _pieces(text))
    for number, parts in groupby(_encode_pieces(tokenizer, pieces), key=itemgetter(0)):
        yield number, np.concatenate([ids for _, ids in parts])


def _encode_pieces(tokenizer: Tokenizer, pieces: Iterator[tuple[int, str]]) -> Iterator[tuple[int, np.ndarray]]:
    while group := list(islice(pieces, PIECES_AT_ONCE)):
        encoded = tokenizer.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
        for (number, _), piece in zip(group, encoded, strict=True):
            yield number, np.array(piece.ids, np.int64)


def _train(corpus: Corpus, config: Config, progress: Progress) -> Tokenizer:
    """A WordPiece of the training documents, in the manner of BERT; equal text gives an equal vocabulary."""
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    counts: Counter[str] = Counter()
    for number, text in corpus.documents("train"):
        counts.update(normalizer.normalize_str(text))
        progress("count characters", number + 1, len(corpus))
    alphabet = sorted(counts, key=lambda c: (-counts[c], c))
    rare = dict.fromkeys(map(ord, alphabet[ALPHABET:]), " ")
    # The trainer numbers the inner characters in the random order of a hash map, and breaks ties of merges by number.
    # Naming them beforehand fixes the order.
    inner = [f"##{c}" for c in alphabet[:ALPHABET] if c.isalnum() or ord(c) > 127]
    scratch = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    scratch.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocabulary_size, special_tokens=[*SPECIAL_TOKENS.values(), *inner], show_progress=False
    )
    progress("train the tokenizer", 0, len(corpus))
    scratch.train_from_iterator(
        (normalizer.normalize_str(piece).translate(rare) for _, d in corpus.documents("train") for piece in _pieces(d)),
        trainer,
    )
    return _word_piece(scratch.get_vocab(), normalizer)


def _word_piece(vocabulary: dict[str, int], normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return tokenizer


def _load(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json" if folder.is_dir() else folder
    try:
        return Tokenizer.from_str(path.read_text())
    except FileNotFoundError:
        raise UserError(f"data pack text: tokenizer={folder}: no tokenizer.json there") from None
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"data pack text: tokenizer={path}: {error}") from None


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids by role; RoBERTa-like names serve where BERT's are absent."""
    other_names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    ids = {}
    for role, name in SPECIAL_TOKENS.items():
        candidates = (tokenizer.token_to_id(name), tokenizer.token_to_id(other_names[role]))
        found = next((number for number in candidates if number is not None), None)
        if found is None:
            raise UserError(f"data pack text: the tokenizer has neither {name} nor {other_names[role]}")
        ids[role] = found
    return ids


def _split(name: str, rows: Rows, facts: Facts, notes: tuple[str, ...], tokenizer: Tokenizer, config: Config) -> Split:
    keys = [f"row{number:09d}" for number in range(len(rows))]
    roles = {f"{role}_token": tokenizer.id_to_token(number) for role, number in facts.special_tokens.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    return Split(
        name=name,
        samples=((keys[row], rows.read(int(row))) for row in shuffled(keys, config.seed)),
        num_samples=len(rows),
        num_bytes=len(rows) * rows.row_bytes,
        describe=lambda: (facts, notes),
        extra_files={
            "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
            "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True).encode(),
        },
    )
