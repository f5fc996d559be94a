"""Text to rows of tokens: for masked and causal language models, and for denoising.

    thalweg data pack text books/ data/books vocabulary_size=8192 row_tokens=128

IN is a text file (`.txt`), JSON lines, Parquet (all but that gzipped or not), a folder of these, a folder saved by
`datasets`, or `hub:NAME`. Documents follow one another in rows of fixed length: each row begins with [CLS], or with
the token of `language` where it is given; each document ends with [SEP], a long one goes on in the next row. A sample
is one row: `tokens.npy`; `segments.npy`, which numbers the row's documents from 1 (0 is padding), so that attention
can keep them apart; and `marks.npy`, bits for tokens that begin a word (1) or a sentence (2). The tokenizer is one you
name, or is trained on the training documents; it is saved in the set.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import Field

from data_pipelines.base import UserError
from data_pipelines.manifest import Facts
from data_pipelines.pack.corpus import Corpus, CorpusConfig
from data_pipelines.pack.rows import Rows
from data_pipelines.pack.tokenizer import Language, Languages, TextTokenizer, TokenizerConfig, obtain_tokenizer
from data_pipelines.pack.writer import Progress, Split, no_progress, shuffled, write_sets
from data_pipelines.shards import Dataset


class Config(CorpusConfig, TokenizerConfig):
    """How text is cut into documents, tokens and rows."""

    row_tokens: int = Field(128, ge=8, le=65535)
    """Tokens a row."""
    language: Language | None = None
    """Of the text; its token then begins every row."""
    languages: Languages = ()
    """Others that get a token in the tokenizer trained here, for text that will be packed with it."""


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write the text of a source as rows of tokens.

    Raises:
        UserError: no text there, or the tokenizer lacks a special token.
    """
    if source is None:
        raise UserError("data pack text: want a text file or folder: thalweg data pack text IN OUT")
    corpus = Corpus(source, config)
    languages = dict.fromkeys([*([config.language] if config.language else []), *config.languages])
    tokenizer = obtain_tokenizer(config, list(languages), corpus.training_documents, progress)
    start = _start(tokenizer, config)
    with tempfile.TemporaryFile() as train, tempfile.TemporaryFile() as val:
        sides = {
            name: Rows(file, config.row_tokens, start, tokenizer.special_tokens, tokenizer.vocabulary_size)
            for name, file in (("train", train), ("val", val))
        }
        for number, document in enumerate(tokenizer.encode(corpus.documents())):
            sides["val" if corpus.is_val[number] else "train"].add(document)
            progress("tokenize", number + 1, len(corpus))
        for rows in sides.values():
            rows.finish()
        splits = [_split(name, rows, corpus.notes, tokenizer, config) for name, rows in sides.items() if len(rows)]
        name = Path(source).name.split(".")[0] or "text"
        return write_sets(out, splits, config, name=name, source=source, progress=progress)


def _start(tokenizer: TextTokenizer, config: Config) -> int:
    if config.language is None:
        return tokenizer.special_tokens["cls"]
    start = tokenizer.special_tokens.get(f"lang:{config.language}")
    if start is None:
        raise UserError(
            f"data pack text: tokenizer={config.tokenizer} has no token for the language {config.language!r}, such as "
            f"<{config.language}>; train it with languages={config.language},..."
        )
    return start


def _split(name: str, rows: Rows, notes: tuple[str, ...], tokenizer: TextTokenizer, config: Config) -> Split:
    keys = [f"row{number:09d}" for number in range(len(rows))]
    facts = Facts(**tokenizer.facts(), row_tokens=config.row_tokens, tokens=rows.tokens, language=config.language)
    return Split(
        name=name,
        samples=((keys[row], rows.read(int(row))) for row in shuffled(keys, config.seed)),
        num_samples=len(rows),
        num_bytes=rows.num_bytes,
        describe=lambda: (facts, notes),
        extra_files=tokenizer.files(),
    )
