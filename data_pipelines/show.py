"""The first samples of a set, in words and as a contact sheet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data_pipelines.base import SampleError, UserError
from data_pipelines.batch import Sample
from data_pipelines.decode import decode_image, decode_label, image_bytes, image_field
from data_pipelines.shards import Dataset
from data_pipelines.views import Draw, View

if TYPE_CHECKING:
    from data_pipelines.texts import Words

CELL = 96
"""Pixels a side of one picture of the sheet, with its margin."""
MARGIN = 4


def first_samples(dataset: Dataset, count: int) -> Iterator[Sample]:
    """The first readable samples in file order."""
    for shard, size in enumerate(dataset.shard_sizes):
        for member in range(int(size)):
            if count <= 0:
                return
            try:
                yield dataset.read(shard, member)
            except SampleError:
                continue
            count -= 1


def describe(dataset: Dataset, count: int, view: View | None = None) -> Iterator[str]:
    """One line a sample: key, fields with sizes, class; below it packed text in words, as `view` shows it if given."""
    words_of = _words_of(dataset)
    for position, sample in enumerate(first_samples(dataset, count)):
        fields = ", ".join(f"{name} {len(data)} B" for name, data in sample.fields.items())
        label = decode_label(sample)
        names = dataset.classes or ()
        known = label is not None and label < len(names)
        words = "" if label is None else f"; class {label}" + (f" {names[label]!r}" if known else "")
        yield f"{sample.key!r}: {fields}{words}"
        if words_of is not None:
            yield from (f"  {line}" for line in words_of.lines(sample, view, Draw(0, position)))


def _words_of(dataset: Dataset) -> Words | None:
    if dataset.manifest.facts.vocabulary_size is None:
        return None
    from data_pipelines.texts import Words

    try:
        return Words(dataset)
    except FileNotFoundError:
        return None


def contact_sheet(dataset: Dataset, count: int, out: Path) -> None:
    """Write the first images in a square of cells, as PNG.

    Raises:
        UserError: the set has no images.
    """
    cells = []
    for sample in first_samples(dataset, count):
        if image_field(sample.fields) is None:
            continue
        try:
            cells.append(_cell(decode_image(image_bytes(sample))))
        except SampleError:
            continue
    if not cells:
        raise UserError(f"data show {dataset.path}: no images among its first {count} samples")
    columns = int(np.ceil(np.sqrt(len(cells))))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, "PNG")
    out.write_bytes(file.getvalue())


def _cell(pixels: np.ndarray) -> np.ndarray:
    """(CELL, CELL, 3): the image centred on white, small ones enlarged without blur."""
    height, width = pixels.shape[:2]
    scale = (CELL - 2 * MARGIN) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(Image.fromarray(pixels).resize(size, method), ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return np.asarray(cell)
