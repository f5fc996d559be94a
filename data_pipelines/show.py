"""The first samples of a set, in words and as a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.base import SampleError, UserError
from data_pipelines.batch import Sample
from data_pipelines.contact_sheet import clip_frames, seen, sheet, stored
from data_pipelines.decode import decode_label
from data_pipelines.shards import Dataset
from data_pipelines.views import Draw, View

if TYPE_CHECKING:
    from data_pipelines.texts import Words


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
        fields = _fields(sample)
        label = decode_label(sample)
        names = dataset.classes or ()
        known = label is not None and label < len(names)
        words = "" if label is None else f"; class {label}" + (f" {names[label]!r}" if known else "")
        yield f"{sample.key!r}: {fields}{words}"
        if words_of is not None:
            yield from (f"  {line}" for line in words_of.lines(sample, view, Draw(0, position)))


def _fields(sample: Sample) -> str:
    """Fields with their sizes; the frames of a clip together."""
    frames = clip_frames(sample)
    sizes = {name: len(data) for name, data in sample.fields.items()}
    clip = [f"{len(frames)} frames {sum(sizes[name] for name in frames)} B"] if frames else []
    return ", ".join([*clip, *(f"{name} {size} B" for name, size in sizes.items() if name not in frames)])


def _words_of(dataset: Dataset) -> Words | None:
    if dataset.manifest.facts.vocabulary_size is None:
        return None
    from data_pipelines.texts import Words

    try:
        return Words(dataset)
    except FileNotFoundError:
        return None


def contact_sheet(dataset: Dataset, count: int, view: View | None = None) -> np.ndarray:
    """The first images or clips on one page, (H, W, 3) uint8; with a view, what it makes of each beside it.

    Raises:
        UserError: there are none among them.
    """
    samples = list(first_samples(dataset, count))
    strips = stored(samples) if view is None else seen(samples, view)
    if not strips:
        raise UserError(f"data show {dataset.path}: no images among its first {count} samples")
    return sheet(strips)
