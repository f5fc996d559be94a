"""ImageNet-1k as it is handed out: the official tars, or image folders; classes by the sorted order of their synsets.

    thalweg data pack imagenet ~/imagenet data/imagenet

IN holds, of each split, a tar or a folder:

    ILSVRC2012_img_train.tar    a tar of one tar a synset      train/n01440764/*.JPEG
    ILSVRC2012_img_val.tar      50,000 images, no classes      val/n01440764/*.JPEG, or val/*.JPEG

and, where the validation images lie in no folders, their classes: `ILSVRC2012_devkit_t12.tar.gz`, Kaggle's
`LOC_val_solution.csv`, or a `val.txt` of lines "NAME SYNSET" or "NAME NUMBER", numbers in sorted order from 0.
Nothing is extracted: images are read out of the tars at their places.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from data_pipelines.base import UserError
from data_pipelines.decode import IMAGE_FIELDS
from data_pipelines.manifest import Facts
from data_pipelines.pack.imagefolder import Picture, Shrinking, image_files, split_of
from data_pipelines.pack.writer import Progress, Split, no_progress, write_sets
from data_pipelines.shards import Dataset
from data_pipelines.tar import Damage, Member, members

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
CLASSES = 1000
OFFICIAL = {"train": 1_281_167, "val": 50_000}
"""Images of each split."""
LABEL_FILES = ("val.txt", "LOC_val_solution.csv")
SYNSET = re.compile(r"n\d{8}")
_LABEL_LINE = re.compile(r"(?P<name>ILSVRC2012_val_\d{8})(?:\.JPEG)?[\s,]+(?P<label>n\d{8}|\d+)\b")


class Config(Shrinking):
    """What is expected of the images."""

    classes: int = Field(CLASSES, gt=1)
    """Synsets that must be there; another number for a subset."""


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write both splits, each shuffled over all its shards.

    Raises:
        UserError: a tar, folder, synset or class is missing, or a tar is damaged.
    """
    if source is None or not Path(source).is_dir():
        raise UserError(f"data pack imagenet: want a folder that holds {TRAIN_TAR} or train/, got {source}")
    folder = Path(source)
    expected = {split: images * config.classes // CLASSES for split, images in OFFICIAL.items()}
    train = list(_reported(_train_images(folder), "list train", expected["train"], progress))
    synsets = _checked_synsets({synset for synset, _ in train}, config.classes, folder)
    val = list(_reported(_val_images(folder, synsets), "list val", expected["val"], progress))
    absent = sorted(set(synsets) - {synset for synset, _ in val})
    if absent:
        raise UserError(f"data pack imagenet: no validation image of {_some(absent)} in {folder}")
    splits = [_split(name, images, synsets, config) for name, images in {"train": train, "val": val}.items()]
    return write_sets(out, splits, config, name="imagenet", source=source, progress=progress)


Found = tuple[str, Picture]
"""A synset and an image of it, not numbered yet."""


def _train_images(folder: Path) -> Iterator[Found]:
    if (folder / TRAIN_TAR).is_file():
        return _nested(folder / TRAIN_TAR)
    return _foldered(folder / "train", f"{TRAIN_TAR} or train/")


def _val_images(folder: Path, synsets: dict[str, int]) -> Iterator[Found]:
    if (folder / VAL_TAR).is_file():
        with (folder / VAL_TAR).open("rb") as file:
            pictures = list(_pictures_in(folder / VAL_TAR, file, 0, _size(file)))
    elif any((folder / "val").glob("n*/")):
        return _foldered(folder / "val", f"{VAL_TAR} or val/")
    else:
        pictures = [_file(folder / "val", path) for path in image_files(folder / "val")]
    if not pictures:
        raise UserError(f"data pack imagenet: no images in {VAL_TAR} or val/ of {folder}")
    return _named(pictures, _labels(folder, synsets), folder)


def _foldered(root: Path, wanted: str) -> Iterator[Found]:
    """Images of a folder of synset folders."""
    if not root.is_dir():
        raise UserError(f"data pack imagenet: no {wanted} in {root.parent}")
    for path in image_files(root):
        if not SYNSET.fullmatch(path.parts[0]):
            raise UserError(f"data pack imagenet: {root / path} lies in no synset folder (n and eight digits)")
        yield path.parts[0], _file(root, path)


def _named(pictures: Iterable[Picture], labels: dict[str, str], folder: Path) -> Iterator[Found]:
    for picture in pictures:
        if picture.key not in labels:
            raise UserError(f"data pack imagenet: the labels in {folder} name no class of {picture.key}")
        yield labels[picture.key], picture


def _file(root: Path, path: Path) -> Picture:
    whole = root / path
    return Picture(whole, path.stem, path.suffix[1:].lower(), None, whole.stat().st_size)


def _split(name: str, images: list[Found], synsets: dict[str, int], config: Config) -> Split:
    """A set to write; says so when it is not as large as the official one."""
    pictures = [_labelled(synset, picture, synsets) for synset, picture in images]
    split, official = split_of(name, pictures, tuple(synsets), config), OFFICIAL[name]
    if config.classes != CLASSES or len(pictures) == official:
        return split

    def describe() -> tuple[Facts, tuple[str, ...]]:
        facts, notes = split.describe()
        return facts, (f"{len(pictures):,} images were there, the official set has {official:,}", *notes)

    return replace(split, describe=describe)


def _labelled(synset: str, picture: Picture, synsets: dict[str, int]) -> Picture:
    """The same key whichever way the image came: synset/name."""
    key = f"{synset}/{picture.key}"
    return Picture(picture.path, key, picture.field, synsets[synset], picture.size, picture.start)


def _checked_synsets(found: set[str], classes: int, folder: Path) -> dict[str, int]:
    """Class numbers by synset, in sorted order."""
    if len(found) != classes:
        raise UserError(
            f"data pack imagenet: {len(found)} synsets in the training images of {folder}, want {classes}; "
            f"complete them, or say classes={len(found)} if it is a subset"
        )
    return {synset: number for number, synset in enumerate(sorted(found))}


# Tars --------------------------------------------------------------------------------------------------------------


class _Span:
    """A part of a file as the forward-only stream that `members` reads; passing over costs a seek."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def take(self, size: int) -> bytes:
        self._file.seek(self._start + self._at)
        data = self._file.read(min(size, self._size - self._at))
        self._at += len(data)
        return data

    def skip(self, size: int) -> int:
        step = min(size, self._size - self._at)
        self._at += step
        return step

    def tell(self) -> int:
        return self._at


def _files(path: Path, file: BinaryIO, start: int, size: int) -> Iterator[Member]:
    """Files of a tar that is a span of another file; offsets are those of the span."""
    for event in members(_Span(file, start, size)):
        if isinstance(event, Damage):
            raise UserError(f"data pack imagenet: {path}: byte {start + event.offset}: {event.reason}; fetch it again")
        if event.kind == "file":
            yield event


def _nested(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        for inner in _files(path, file, 0, _size(file)):
            synset = inner.name.rpartition("/")[2].removesuffix(".tar")
            if not SYNSET.fullmatch(synset):
                raise UserError(f"data pack imagenet: {path} holds {inner.name!r}, want n and eight digits, .tar")
            for picture in _pictures_in(path, file, inner.offset, inner.size):
                yield synset, picture


def _pictures_in(path: Path, file: BinaryIO, start: int, size: int) -> Iterator[Picture]:
    for member in _files(path, file, start, size):
        stem, _, suffix = member.name.rpartition("/")[2].rpartition(".")
        if suffix.lower() in IMAGE_FIELDS:
            yield Picture(path, stem, suffix.lower(), None, member.size, start + member.offset)


def _size(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END)


# Classes of validation images --------------------------------------------------------------------------------------


def _labels(folder: Path, synsets: dict[str, int]) -> dict[str, str]:
    """Synset by image name.

    Raises:
        UserError: no file of labels, or one that names other classes.
    """
    names = list(synsets)
    for file in LABEL_FILES:
        if (folder / file).is_file():
            return dict(_written_labels(folder / file, names))
    if (folder / DEVKIT).is_file():
        return dict(_devkit_labels(folder / DEVKIT, synsets))
    raise UserError(
        f"data pack imagenet: the classes of the validation images are unknown; put {DEVKIT}, "
        f"{LABEL_FILES[1]} or {LABEL_FILES[0]} into {folder}"
    )


def _written_labels(path: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = _LABEL_LINE.match(line)
        if match is None:
            if not line.strip() or number == 1:  # a table's heading
                continue
            raise UserError(f"data pack imagenet: {path}, line {number}: want NAME SYNSET or NAME NUMBER, got {line!r}")
        label = match["label"]
        known = label in names if label.startswith("n") else int(label) < len(names)
        if not known:
            raise UserError(f"data pack imagenet: {path}, line {number}: class {label} is none of the training images'")
        yield match["name"], label if label.startswith("n") else names[int(label)]


def _devkit_labels(path: Path, synsets: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The devkit numbers its classes in an order of its own, which stands in a Matlab file."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(f"data pack imagenet: reading {path.name} wants scipy; install it, or write val.txt") from None
    try:
        with tarfile.open(path, "r:gz") as devkit:
            truth, meta = (_devkit_file(devkit, name) for name in ("validation_ground_truth.txt", "meta.mat"))
        table = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        by_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
        labels = [by_number[int(number)] for number in truth.split()]
    except (tarfile.TarError, OSError, KeyError, ValueError) as error:
        raise UserError(f"data pack imagenet: {path} is no ILSVRC2012 devkit ({error}); fetch it again") from None
    strangers = sorted(set(labels) - synsets.keys())
    if strangers:
        raise UserError(f"data pack imagenet: {path} names {_some(strangers)}, which the training images lack")
    for number, synset in enumerate(labels, start=1):
        yield f"ILSVRC2012_val_{number:08d}", synset


def _devkit_file(devkit: tarfile.TarFile, ending: str) -> bytes:
    name = next((name for name in devkit.getnames() if name.endswith(ending)), None)
    file = devkit.extractfile(name) if name is not None else None
    if file is None:
        raise KeyError(f"no {ending} in it")
    return file.read()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more synsets" if len(names) > 3 else "")


def _reported(found: Iterable[Found], stage: str, expected: int, progress: Progress) -> Iterator[Found]:
    """The same, counted aloud: 1.3 million headers take minutes on a slow disk."""
    for done, image in enumerate(found):
        if done % 10_000 == 0:
            progress(stage, done, max(done, expected))
        yield image
