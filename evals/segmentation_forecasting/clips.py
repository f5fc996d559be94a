"""Frames and label maps of a clip set, decoded once and kept on disk: memory holds what is being looked at."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.base import DataError, SampleError, UserError, digest_of
from data_pipelines.batch import Sample
from data_pipelines.decode import decode_image
from data_pipelines.manifest import Facts
from data_pipelines.shards import Dataset
from evals.features import alone, cache_folder
from evals.segmentation_forecasting.metrics import IGNORE
from evals.segmentation_forecasting.windows import HISTORY, targets, training_frames, window

LEAST_SIDE = 16
"""Pixels; SSIM and optical flow see nothing in smaller frames."""

CACHE_BYTES = 64 * 2**30
"""Of the decoded clips, and of the soft maps: what was used longest ago is forgotten beyond this size."""


@dataclass(frozen=True)
class Clips:
    """The frames of a set that an eval reads.

    Attributes:
        dataset: they come from.
        frames: numbers of the frames kept, ascending.
        images: (N, F, H, W, C) uint8, in file order.
        labels: (N, L, H, W) uint8 of the set's `label_frames`, 255 where a pixel is of no class.
    """

    dataset: Dataset
    frames: tuple[int, ...]
    images: np.ndarray
    labels: np.ndarray

    @property
    def facts(self) -> Facts:
        """Of the set."""
        return self.dataset.manifest.facts

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by number."""
        assert self.dataset.classes is not None
        return self.dataset.classes

    @property
    def targets(self) -> list[int]:
        """Frames that are foretold."""
        return targets(self.facts.label_frames)

    def places(self, numbers: Sequence[int]) -> list[int]:
        """Where frames of these numbers stand among `frames`."""
        return [self.frames.index(number) for number in numbers]

    def label(self, clip: int, frame: int) -> np.ndarray:
        """(H, W) uint8 of a labelled frame."""
        labels: np.ndarray = self.labels[clip, self.facts.label_frames.index(frame)]
        return labels

    def __len__(self) -> int:
        return len(self.images)


def training_clips(dataset: Dataset) -> Clips:
    """All frames of a training set that forecasters learn from, and all labelled ones.

    Raises:
        UserError: see `refuse_unfit`.
    """
    facts = dataset.manifest.facts
    refuse_unfit(dataset)
    return _open(dataset, {*training_frames(facts.frames or 0, facts.label_frames), *facts.label_frames})


def test_clips(dataset: Dataset) -> Clips:
    """The frames of a test set that lead to a target.

    Raises:
        UserError: see `refuse_unfit`.
    """
    refuse_unfit(dataset)
    return _open(
        dataset, {frame for target in targets(dataset.manifest.facts.label_frames) for frame in window(target)}
    )


def refuse_unfit(dataset: Dataset) -> None:
    """Say what a set lacks.

    Raises:
        UserError: it holds no clips of one size, no labels, or too few frames before a labelled one.
    """
    facts, where = dataset.manifest.facts, f"data {dataset.path}"
    if facts.frames is None or facts.image_size is None:
        raise UserError(
            f"{where} holds no clips of one size; make some with `thalweg data pack cityscapes`, `video` or "
            f"`synthetic_driving`"
        )
    if not facts.label_frames or not dataset.classes:
        raise UserError(f"{where} has no labelled frames; forecasts are judged by label maps, pack the set with them")
    if not targets(facts.label_frames):
        raise UserError(
            f"{where}: too few frames; no labelled frame ({_listed(facts.label_frames)}) has {HISTORY} frames before "
            f"it in clips of {facts.frames}"
        )
    height, width = facts.image_size
    if height % 2 or width % 2 or min(height, width) < LEAST_SIDE:
        raise UserError(
            f"{where}: frames of {height} x {width} pixels; pack them at an even size of at least {LEAST_SIDE} a side"
        )


def refuse_unlike(train: Dataset, test: Dataset) -> None:
    """Say in what two sets differ.

    Raises:
        UserError: in classes, size or channels.
    """
    one, other = train.manifest.facts, test.manifest.facts
    for what, left, right in (
        ("classes", train.classes, test.classes),
        ("image_size", one.image_size, other.image_size),
        ("channels", one.channels, other.channels),
    ):
        if left != right:
            raise UserError(
                f"data.train {train.path} and data.test {test.path} differ in {what} ({_listed(left)} and "
                f"{_listed(right)}); pack them alike"
            )


def kept(folder: str, digest: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """An uint8 array in a file of the cache, made the first time; pages of it are in memory as they are used."""
    path = cache_folder(folder) / f"{digest}.npy"
    with alone(path):
        found = _read(path, shape)
        if found is not None:
            return found
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            fill(array)
            array.flush()
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
        _forget_oldest(path.parent)
        found = _read(path, shape)
    if found is None:
        raise DataError(f"cache {path} cannot be read back; is its disk sound?")
    return found


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
        path.touch()
    except (FileNotFoundError, ValueError):
        return None
    return array if array.shape == shape else None


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
    held = sum(path.stat().st_size for path in files)
    for path in files[:-1]:
        if held <= CACHE_BYTES:
            return
        held -= path.stat().st_size
        with suppress(OSError):
            path.unlink()


def _open(dataset: Dataset, numbers: set[int]) -> Clips:
    facts, frames = dataset.manifest.facts, tuple(sorted(numbers))
    assert facts.image_size is not None and facts.channels is not None
    count, size = dataset.num_samples, facts.image_size
    images = kept(
        "clips",
        digest_of(["images", dataset.digest, frames]),
        (count, len(frames), *size, facts.channels),
        lambda out: _decode_images(dataset, frames, out),
    )
    labels = kept(
        "clips",
        digest_of(["labels", dataset.digest]),
        (count, len(facts.label_frames), *size),
        lambda out: _decode_labels(dataset, out),
    )
    return Clips(dataset, frames, images, labels)


def _samples(dataset: Dataset) -> Iterator[Sample]:
    for shard, count in enumerate(dataset.shard_sizes.tolist()):
        for member in range(count):
            yield dataset.read(shard, member)


def _decode_images(dataset: Dataset, frames: Sequence[int], out: np.ndarray) -> None:
    for row, sample in zip(out, _samples(dataset), strict=True):
        fields = _by_number(sample, "")
        for place, frame in enumerate(frames):
            row[place] = _fitting(decode_image(_field(sample, fields, frame), out.shape[-1]), out.shape[2:], sample)


def _decode_labels(dataset: Dataset, out: np.ndarray) -> None:
    for row, sample in zip(out, _samples(dataset), strict=True):
        fields = _by_number(sample, ".labels")
        for place, frame in enumerate(dataset.manifest.facts.label_frames):
            numbers = decode_image(_field(sample, fields, frame), 1)[..., 0]
            wrong = numbers[(numbers != IGNORE) & (numbers >= len(dataset.classes or ()))]
            if wrong.size:
                raise UserError(
                    f"data {dataset.path}: label map {frame} of {sample.key} holds {wrong.max()}, want classes "
                    f"0..{len(dataset.classes or ()) - 1}, or {IGNORE} for none; pack the set with its class numbers"
                )
            row[place] = _fitting(numbers, out.shape[2:], sample)


def _by_number(sample: Sample, suffix: str) -> dict[int, bytes]:
    """Contents of the fields NUMBER[SUFFIX].EXTENSION by their number."""
    found = {}
    for name, content in sample.fields.items():
        stem = name.rpartition(".")[0]
        number = stem.removesuffix(suffix)
        if stem.endswith(suffix) and number.isdecimal():
            found[int(number)] = content
    return found


def _field(sample: Sample, fields: dict[int, bytes], frame: int) -> bytes:
    if frame not in fields:
        raise SampleError(f"no frame {frame} among its {len(fields)}", key=sample.key, shard=sample.shard)
    return fields[frame]


def _fitting(pixels: np.ndarray, shape: tuple[int, ...], sample: Sample) -> np.ndarray:
    if pixels.shape != shape:
        raise SampleError(f"a map of {pixels.shape}, want {shape}", key=sample.key, shard=sample.shard)
    return pixels


def _listed(values: object) -> str:
    words = [str(value) for value in values] if isinstance(values, tuple) else [str(values)]
    return ", ".join(words if len(words) <= 6 else [*words[:3], "…", words[-1]])
