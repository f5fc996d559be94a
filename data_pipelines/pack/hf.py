"""Any data set of the `datasets` library: of the hub, saved to disk, or in files that the library reads.

    thalweg data pack hf uoft-cs/cifar10 data/cifar10 validation=test
    thalweg data pack hf photos.parquet data/photos columns='{image: photo, cls: kind, txt: caption}'
    thalweg data pack hf NAME data/huge streaming=true val_fraction=0.01

IN is a folder of `save_to_disk`, a `.parquet`, `.jsonl`, `.json`, `.csv` or `.arrow` file, a folder of these or of
images, or a name on the hub. `columns` says which column becomes which field: `image` (named by what it holds: jpg,
png, ...; its bytes are passed through), `cls` (a class number), `txt`, `json`, `npy`, or NAME.txt and so on. Left out,
the first column of images, the first of class labels, and all of text are taken. Streamed rows are kept on disk beside
OUT until they can be shuffled.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.base import SampleError, UserError, canonical_json
from data_pipelines.manifest import Facts
from data_pipelines.pack.imagefolder import Shrinking, fitted, image_set_facts, key_of, left_out_note
from data_pipelines.pack.spool import SampleSpool, npy
from data_pipelines.pack.writer import (
    LeftOut,
    Made,
    Progress,
    Seen,
    Split,
    about_bytes,
    held_out,
    no_progress,
    shuffled,
    write_sets,
)
from data_pipelines.shards import Dataset

FILES = {"parquet": "parquet", "jsonl": "json", "json": "json", "csv": "csv", "arrow": "arrow"}
"""Builders of the library by the ending of a file."""
IMAGE, LABEL = "image", "cls"
KINDS = ("txt", "json", "npy")
MAGIC = {
    **{b"\xff\xd8": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"},
    **{b"II*\0": "tiff", b"MM\0*": "tiff", b"P5": "pgm", b"P6": "ppm"},
}
"""Field of an image by its first bytes."""


class Config(Shrinking):
    """Which rows and columns are packed, and as what."""

    split: str = "train"
    """Of the data set; the library's slices too: `train[:10%]`."""
    subset: str | None = None
    """Of a data set of the hub that has several, such as `en`."""
    validation: str | None = None
    """Another split, written as `val`."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the rows held out as `val`, where `validation` is not given."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column by field; see above."""
    key: str | None = None
    """Column that names the samples; they are numbered when unset."""
    streaming: bool = False
    """Read the rows in sequence, without a copy of the data set in the library's cache."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.validation is not None and self.val_fraction > 0:
            raise ValueError("give validation or val_fraction, not both")
        for name in self.columns:
            if name not in (IMAGE, LABEL) and name.rsplit(".", 1)[-1] not in KINDS:
                raise ValueError(f"columns: field {name!r} is none of {IMAGE}, {LABEL}, txt, json, npy, NAME.txt, ...")
        return self


@dataclass(frozen=True)
class Table:
    """One split of a data set, its images left encoded.

    Attributes:
        rows: of the library, by number or, streamed, in sequence.
        columns: column by field.
        classes: names of the class labels, where the data set has them.
        unused: columns that are not packed.
    """

    rows: Any
    columns: Mapping[str, str]
    classes: tuple[str, ...] | None
    unused: tuple[str, ...]


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write the rows of a data set, shuffled over all shards.

    Raises:
        UserError: no such data set, split or column, or no row that can be packed.
    """
    if source is None:
        raise UserError("data pack hf: want a data set: thalweg data pack hf NAME|FOLDER|FILE OUT")
    names = {"train": config.split, **({"val": config.validation} if config.validation else {})}
    tables = {side: _opened(source, split, config) for side, split in names.items()}
    write = partial(
        write_sets,
        out,
        config=config,
        name=Path(source).name.split(".")[0] or "hf",
        source=f"{source}, {' and '.join(names.values())}",
        licence=tables["train"].rows.info.license or "",
        progress=progress,
    )
    if not config.streaming:
        return write([split for side in tables for split in _splits(side, tables[side], config, names[side])])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent) as train, tempfile.TemporaryFile(dir=out.parent) as val:
        splits: list[Split] = []
        for (side, table), file in zip(tables.items(), (train, val), strict=False):
            splits += _streamed_splits(side, table, SampleSpool(file), config, names[side], progress)
        return write(splits)


# Opening -----------------------------------------------------------------------------------------------------------


def _opened(source: str, split: str, config: Config) -> Table:
    import datasets

    try:
        rows = _load(source, split, config)
    except UserError:
        raise
    except (ValueError, KeyError) as error:  # an unknown split, subset or format
        raise UserError(f"data pack hf: {source}: {' '.join(str(error).split())}") from None
    except Exception as error:  # damaged files raise what their parser raises, connections fail in many ways
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"} else ""
        raise UserError(
            f"data pack hf: {source} cannot be had{offline}: {' '.join(str(error).split())[:200]}; where the hub is in "
            f"reach, save_to_disk(FOLDER) it and pack that folder"
        ) from None
    features = rows.features or datasets.Dataset.from_list(list(rows.take(1))).features
    columns = dict(config.columns) or _default_columns(features)
    for field, column in [*columns.items(), *([("key", config.key)] if config.key else [])]:
        if column not in features:
            raise UserError(f"data pack hf: {source}: no column {column!r} for {field} among {', '.join(features)}")
    if not columns:
        raise UserError(
            f"data pack hf: {source}: no column of images, class labels or text among {', '.join(features)}; name "
            f"some: columns='{{npy: COLUMN}}'"
        )
    if isinstance(features.get(columns.get(IMAGE)), datasets.Image):
        rows = rows.cast_column(columns[IMAGE], datasets.Image(decode=False))
    used = {*columns.values(), config.key}
    label = features.get(columns.get(LABEL))
    classes = tuple(label.names) if isinstance(label, datasets.ClassLabel) and label.names else None
    rows = rows.select_columns(sorted(name for name in used if name is not None))
    return Table(rows, columns, classes, tuple(name for name in features if name not in used))


def _load(source: str, split: str, config: Config) -> Any:
    """A split, by number or streamed."""
    import datasets

    path = Path(source)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(source)
        if isinstance(saved, datasets.DatasetDict):
            saved = saved[split]
        elif split != "train":
            raise UserError(f"data pack hf: {source} holds one split alone; leave out split={split}")
        return saved.to_iterable_dataset() if config.streaming else saved
    builder = FILES.get(path.suffix[1:].lower()) if path.is_file() else None
    if path.is_file() and builder is None:
        raise UserError(f"data pack hf: {source} is no file that `datasets` reads: want .{', .'.join(FILES)}")
    place = (builder,) if builder else (source, config.subset)
    files = {"data_files": {"train": source}} if builder else {}
    return datasets.load_dataset(*place, split=split, streaming=config.streaming, **files)


def _default_columns(features: Mapping[str, Any]) -> dict[str, str]:
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    texts = [name for name, kind in features.items() if getattr(kind, "dtype", None) in {"string", "large_string"}]
    columns = {field: found[0] for field, found in ((IMAGE, images), (LABEL, labels)) if found}
    return columns | {f"{re.sub(r'[^a-z0-9_]', '_', name.lower())}.txt": name for name in texts}


# Rows to samples ---------------------------------------------------------------------------------------------------


def _by_number(number: int, table: Table, config: Config, split: str) -> Made | LeftOut:
    return _sample(number, table.rows[number], table, config, split)


def _sample(number: int, row: Mapping[str, Any], table: Table, config: Config, split: str) -> Made | LeftOut:
    key = _key(number, split) if config.key is None else key_of(str(row[config.key]))
    fields: dict[str, bytes] = {}
    kind: tuple[int, ...] = ()
    for field, column in table.columns.items():
        try:
            if field == IMAGE:
                data = _encoded(row[column])
                name, content, kind = fitted(data, _image_field(data), config)
                fields[name] = content
            else:
                fields[field] = _content(field, row[column])
        except (SampleError, ValueError, TypeError, OSError) as error:
            reason = error.reason if isinstance(error, SampleError) else str(error)
            return LeftOut(f"row {number}, {column} ({reason})")
    return Made(key, fields, kind)


def _key(number: int, split: str) -> str:
    """Named by the split without the slice of it that may follow."""
    return f"{re.split(r'[^A-Za-z0-9_]', split)[0]}{number:09d}"


def _encoded(value: Any) -> bytes:
    """An image's bytes, as the library has them or behind the path it gives."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        value = Path(value["path"]).read_bytes() if data is None and value.get("path") else data
    if not isinstance(value, bytes):
        raise ValueError(f"no encoded image but {type(value).__name__}")
    return value


def _image_field(data: bytes) -> str:
    name = next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)
    if name is None:
        raise SampleError("no image of a known kind")
    return name


def _content(field: str, value: Any) -> bytes:
    if value is None:
        raise ValueError("is empty")
    if field == LABEL:
        if int(value) != value or value < 0:
            raise ValueError(f"holds {value!r}, no class number")
        return str(int(value)).encode()
    kind = field.rsplit(".", 1)[-1]
    if kind == "txt":
        if not isinstance(value, str):
            raise ValueError(f"holds {type(value).__name__}, no text")
        return value.encode()
    return canonical_json(value) if kind == "json" else npy(_numbers(value))


def _numbers(value: Any) -> np.ndarray:
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"holds {numbers.dtype}, no numbers")
    return np.ascontiguousarray(numbers)


# Splits ------------------------------------------------------------------------------------------------------------


def _splits(side: str, table: Table, config: Config, split: str) -> Iterator[Split]:
    """The sets made of one split; rows by number, so in any process and in any order."""
    make = partial(_by_number, table=table, config=config, split=split)
    count = len(table.rows)
    if config.key is None:
        keys = [_key(number, split) for number in range(count)]
    else:
        keys = [key_of(str(key)) for key in table.rows[config.key]]
    if not keys:
        raise UserError(f"data pack hf: the split {split!r} holds no rows")
    num_bytes = about_bytes(range(count), make)
    for name, numbers in _sides(side, keys, config):
        seen = Seen()
        yield Split(
            name=name,
            samples=numbers[shuffled([keys[number] for number in numbers], config.seed)].tolist(),
            num_samples=len(numbers),
            num_bytes=num_bytes * len(numbers) // count,
            describe=partial(_described, table, seen),
            classes=table.classes if LABEL in table.columns else None,
            make=make,
            identity=table.rows._fingerprint,
            seen=seen,
        )


def _streamed_splits(
    side: str, table: Table, spool: SampleSpool, config: Config, split: str, progress: Progress
) -> Iterator[Split]:
    """The same of rows that come in sequence: all are kept in a file first."""
    left_out: list[str] = []
    for number, row in enumerate(table.rows):
        sample = _sample(number, row, table, config, split)
        if isinstance(sample, LeftOut):
            left_out.append(sample.words)
        else:
            spool.add(sample)
        progress(f"read {side}", number + 1, number + 1)
    if not spool.keys:
        raise UserError(f"data pack hf: the split {split!r} holds no row that can be packed: {'; '.join(left_out[:3])}")
    for name, numbers in _sides(side, spool.keys, config):
        order = numbers[shuffled([spool.keys[number] for number in numbers], config.seed)]
        seen = Seen(left_out=left_out if name == side else [])
        yield Split(
            name=name,
            samples=map(spool.read, order.tolist()),
            num_samples=len(numbers),
            num_bytes=spool.num_bytes * len(numbers) // len(spool.keys),
            describe=partial(_described, table, seen),
            classes=table.classes if LABEL in table.columns else None,
            seen=seen,
        )


def _sides(side: str, keys: Sequence[str], config: Config) -> Iterator[tuple[str, np.ndarray]]:
    """Names of sets, and the places of their keys; none without any."""
    held = held_out(list(keys), config.val_fraction if side == "train" else 0.0, config.seed)
    for name, chosen in ((side, ~held), ("val", held)):
        if chosen.any():
            yield name, np.flatnonzero(chosen)


def _described(table: Table, seen: Seen) -> tuple[Facts, tuple[str, ...]]:
    labelled = LABEL in table.columns
    facts = (
        image_set_facts(seen, labelled) if IMAGE in table.columns else Facts(labels_field=LABEL if labelled else None)
    )
    unused = (f"columns that were not packed: {', '.join(table.unused)}",) if table.unused else ()
    return facts, unused + left_out_note(seen, "rows that cannot be packed")
