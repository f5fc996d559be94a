"""Documents from text files, JSON lines, Parquet, and data sets of the `datasets` library."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from pydantic import Field

from data_pipelines.base import UserError
from data_pipelines.pack.writer import PackConfig, held_out

PLAIN = (".txt", ".text")
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
HUB = "hub:"
RECORDS_AT_ONCE = 1000

Reader = Callable[[], Iterator[str | None]]
"""Reads its documents anew whenever it is called; None stands for one that is damaged."""


class CorpusConfig(PackConfig):
    """Where documents are in their files, and how many are held out."""

    val_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the documents held out as `val`; 0 writes `train` alone."""
    document: Literal["blank_line", "line", "file"] = "blank_line"
    """What ends a document of a text file; elsewhere each record is one."""
    field: str = "text"
    """Key of JSON lines, or column, that holds the text."""
    split: str = "train"
    """Which split of a data set of the hub."""


class Corpus:
    """Documents of some source, each on one side of the split for good.

    Attributes:
        is_val: (number of documents,) bool, which are held out.
        notes: what was left out, in words.
    """

    def __init__(self, source: str, config: CorpusConfig) -> None:
        """Read all once, to number the documents and to divide them.

        Raises:
            UserError: nothing to read, or no text in it.
        """
        self._readers = find_readers(source, config)
        damaged = 0
        digests = []
        for text in self._all():
            if text is None:
                damaged += 1
            else:
                digests.append(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
        if not digests:
            raise UserError(f"data pack text: {source}: no text in it")
        self.is_val: np.ndarray = held_out(digests, config.val_fraction, config.seed)
        self.notes = (f"{damaged} documents that are not UTF-8 or hold no text were left out",) if damaged else ()

    def __len__(self) -> int:
        return len(self.is_val)

    def documents(self) -> Iterator[str]:
        """All documents, stripped, in the order of their files."""
        return (text for text in self._all() if text is not None)

    def training_documents(self) -> Iterator[str]:
        """Those that are not held out."""
        return (text for text, is_val in zip(self.documents(), self.is_val, strict=True) if not is_val)

    def _all(self) -> Iterator[str | None]:
        for read in self._readers:
            for text in read():
                if text is None:
                    yield None
                elif stripped := text.strip():
                    yield stripped


def find_readers(source: str, config: CorpusConfig) -> list[Reader]:
    """One reader a file of the source: a file, a folder of files, a folder that `datasets` saved, or `hub:NAME`.

    Raises:
        UserError: there is nothing of that kind.
    """
    if source.startswith(HUB):
        return [_hub_reader(source.removeprefix(HUB), config)]
    path = Path(source)
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        raise UserError(
            f"data pack text: {path} holds several splits; name one: {', '.join(str(path / s) for s in splits)}"
        )
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return [_saved_reader(path, config)]
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _kind(p) is not None)
    if not paths:
        known = ", ".join((*PLAIN, *JSON_LINES, *PARQUET))
        raise UserError(f"data pack text: no text file ({known}; .gz too) at {source}")
    return [_file_reader(path, config) for path in paths]


def _file_reader(path: Path, config: CorpusConfig) -> Reader:
    kind = _kind(path)
    if kind == "json":
        return partial(_json_lines, path, config.field)
    if kind == "parquet":
        return partial(_parquet, path, config.field)
    return partial(_plain, path, config.document)


def _kind(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    kinds = {"plain": PLAIN, "json": JSON_LINES, "parquet": PARQUET}
    return next((kind for kind, suffixes in kinds.items() if name.endswith(suffixes)), None)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, unpacked where it is gzipped; reading it line by line cuts at LF only.

    Raises:
        UserError: it cannot be read, now or on the way.
    """
    try:
        with path.open("rb") as raw:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
    except (OSError, EOFError) as error:
        raise UserError(f"data pack: {path}: {error}") from None


def _plain(path: Path, ending: str) -> Iterator[str | None]:
    for raw in _cut(path, ending):
        try:
            yield raw.decode()
        except UnicodeDecodeError:
            yield None


def _cut(path: Path, ending: str) -> Iterator[bytes]:
    with opened(path) as file:
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


def _json_lines(path: Path, field: str) -> Iterator[str | None]:
    with opened(path) as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            record = parsed(line)
            if number == 0 and isinstance(record, dict):
                _want_field(path, field, record)
            value = record.get(field) if isinstance(record, dict) else None
            yield value if isinstance(value, str) else None


def parsed(line: bytes) -> Any:
    """The value of a JSON line, None where it is none."""
    try:
        return json.loads(line)
    except ValueError:  # not JSON, not UTF-8
        return None


def _parquet(path: Path, field: str) -> Iterator[str | None]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            _want_field(path, field, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=RECORDS_AT_ONCE, columns=[field]):
                yield from _texts(batch.column(0).to_pylist())
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"data pack text: {path}: {' '.join(str(error).split())}") from None


def _saved_reader(path: Path, config: CorpusConfig) -> Reader:
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(path))
    except Exception as error:  # damaged files raise whatever the format's parser raises
        raise UserError(f"data pack text: {path}: {' '.join(str(error).split())}") from None
    _want_field(path, config.field, data.column_names)
    return partial(_records, data, config.field)


def _hub_reader(name: str, config: CorpusConfig) -> Reader:
    from datasets import load_dataset

    try:
        data = load_dataset(name, split=config.split)
    except ValueError as error:  # an unknown split or configuration
        raise UserError(f"data pack text: {HUB}{name}: {' '.join(str(error).split())}") from None
    except Exception as error:  # connections fail in many ways
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"} else ""
        raise UserError(
            f"data pack text: {HUB}{name} cannot be had{offline}: {' '.join(str(error).split())[:200]}; where the hub "
            f"is in reach, save_to_disk(FOLDER) it and pack that folder"
        ) from None
    _want_field(name, config.field, data.column_names)
    return partial(_records, data, config.field)


def _records(data: Any, field: str) -> Iterator[str | None]:
    for batch in data.select_columns([field]).iter(RECORDS_AT_ONCE):
        yield from _texts(batch[field])


def _texts(values: Iterable[Any]) -> Iterator[str | None]:
    return (value if isinstance(value, str) else None for value in values)


def _want_field(where: object, field: str, names: Iterable[str]) -> None:
    if field not in names:
        raise UserError(f"data pack text: {where}: no {field!r} among {', '.join(names)}; choose with field=NAME")
