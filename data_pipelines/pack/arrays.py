"""Small grey images that are arrays already (MNIST and its kin), written as PNG and class number."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import PackConfig, Progress, Split, write_sets
from data_pipelines.shards import Dataset

Row = tuple[str, np.ndarray, int]
"""(key, (H, W) uint8 pixels, class number)."""


def write_image_arrays(
    out: Path,
    rows: Mapping[str, Sequence[Row]],
    config: PackConfig,
    *,
    name: str,
    source: str,
    classes: tuple[str, ...],
    licence: str = "",
    progress: Progress,
) -> list[Dataset]:
    """Write one set for each entry of `rows`, in the order given; all images have one size."""
    return write_sets(
        out,
        [_split(split, entries, classes) for split, entries in rows.items()],
        config,
        name=name,
        source=source,
        licence=licence,
        progress=progress,
    )


def _split(name: str, rows: Sequence[Row], classes: tuple[str, ...]) -> Split:
    height, width = rows[0][1].shape
    return Split(
        name=name,
        samples=_encoded(rows),
        num_samples=len(rows),
        num_bytes=len(rows) * height * width // 2,
        describe=lambda: (Facts(channels=1, image_size=(height, width), labels_field="cls"), ()),
        classes=classes,
    )


def _encoded(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for key, pixels, label in rows:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        yield key, {"png": file.getvalue(), "cls": str(label).encode()}
