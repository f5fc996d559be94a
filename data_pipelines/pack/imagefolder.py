"""A folder of images, one subfolder a class or flat, bytes passed through as they are.

    thalweg data pack imagefolder ~/pictures data/pictures val_fraction=0.05

`IN/train` and `IN/val`, where both exist, become the two splits; else `val_fraction` of the keys is held out.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from pydantic import Field

from data_pipelines.base import SampleError, UserError
from data_pipelines.decode import IMAGE_FIELDS, EncodedImage, decode_image, image_facts, shrink_factor
from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import (
    LeftOut,
    Made,
    PackConfig,
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

SPLITS = ("train", "val")
SAME_FIELD = {"jpeg": "jpg", "tif": "tiff"}
NAMES_IN_A_NOTE = 5


class Shrinking(PackConfig):
    """How large images are shrunk, on request."""

    max_side: int | None = Field(None, gt=0)
    """Shrinks images whose longer side exceeds this many pixels, and writes those as JPEG."""
    quality: int = Field(90, ge=1, le=95)
    """JPEG quality of shrunk images."""


class Config(Shrinking):
    """How images are split, and how they are shrunk."""

    val_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the images held out as `val`; 0 writes `train` alone."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image to pack: a file, or a span of one.

    Attributes:
        path: of the file that holds it.
        field: its lower-case extension.
        label: its class; None in a flat folder.
        size: bytes.
        start: of the image in the file.
    """

    path: Path
    key: str
    field: str
    label: int | None
    size: int
    start: int = 0

    @property
    def where(self) -> str:
        """For notes."""
        return printable(str(self.path)) + (f", {self.key}.{self.field}" if self.start else "")

    def read(self) -> bytes:
        """The encoded image."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write the images of a folder, shuffled over all shards.

    Raises:
        UserError: no folder, or no images in it.
    """
    if source is None:
        raise UserError("data pack imagefolder: want a folder of images: thalweg data pack imagefolder IN OUT")
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"data pack imagefolder: {source} is no folder")
    classes, pictures = _collect(folder, config)
    splits = [split_of(name, members, classes, config) for name, members in pictures.items() if members]
    return write_sets(out, splits, config, name=folder.resolve().name or "images", source=source, progress=progress)


def _collect(folder: Path, config: Config) -> tuple[tuple[str, ...] | None, dict[str, list[Picture]]]:
    """Class names and pictures by split."""
    if all((folder / split).is_dir() for split in SPLITS):
        roots = {split: folder / split for split in SPLITS}
    else:
        roots = {"train": folder}
    files = {split: list(image_files(root)) for split, root in roots.items()}
    for split, found in files.items():
        if not found:
            raise UserError(f"data pack imagefolder: no images (.{', .'.join(IMAGE_FIELDS)}) in {roots[split]}")
    names = sorted({path.parts[0] for found in files.values() for path in found if len(path.parts) > 1})
    flat = any(len(path.parts) == 1 for found in files.values() for path in found)
    labels = None if flat else {name: number for number, name in enumerate(names)}
    pictures = {split: _pictures(roots[split], found, labels) for split, found in files.items()}
    if len(roots) == 1:
        everything = pictures["train"]
        side = held_out([picture.key for picture in everything], config.val_fraction, config.seed)
        pictures = {
            "train": [picture for picture, out in zip(everything, side, strict=True) if not out],
            "val": [picture for picture, out in zip(everything, side, strict=True) if out],
        }
    return (None if labels is None else tuple(map(printable, names))), pictures


def image_files(root: Path) -> Iterator[Path]:
    """Paths of image files below `root`, relative to it, in a fixed order; links to folders are followed once."""
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for name in sorted(files):
            if name.rsplit(".", 1)[-1].lower() in IMAGE_FIELDS and not name.startswith("."):
                yield (Path(folder) / name).relative_to(root)


def printable(name: str) -> str:
    """A file name as text; bytes that are not UTF-8 are spelled out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def key_of(name: str) -> str:
    """A sample key that every tar reader splits alike: dots, control characters and "%" as %XX.

    >>> key_of("birds/no.1")
    'birds/no%2E1'
    """
    key = "".join(f"%{ord(c):02X}" if c in ".%" or ord(c) < 32 or ord(c) == 127 else c for c in printable(name))
    return "%5F" + key[1:] if key.startswith("__") else key  # webdataset passes over names that begin with "__"


def _pictures(root: Path, files: Sequence[Path], labels: dict[str, int] | None) -> list[Picture]:
    keys = [key_of(str(path.with_suffix(""))) for path in files]
    uses = Counter(keys)
    return [
        Picture(
            path=root / path,
            key=key if uses[key] == 1 else key_of(str(path)),
            field=path.suffix[1:].lower(),
            label=None if labels is None else labels[path.parts[0]],
            size=(root / path).stat().st_size,
        )
        for path, key in zip(files, keys, strict=True)
    ]


def split_of(name: str, pictures: list[Picture], classes: tuple[str, ...] | None, config: Shrinking) -> Split:
    """The pictures as a set to write, shuffled; unreadable ones are left out with a note."""
    make, seen = partial(_sample, config=config), Seen()
    ordered = [pictures[place] for place in shuffled([picture.key for picture in pictures], config.seed)]
    as_they_are = sum(picture.size for picture in pictures)
    return Split(
        name=name,
        samples=ordered,
        num_samples=len(pictures),
        num_bytes=as_they_are if config.max_side is None else about_bytes(ordered, make),
        describe=lambda: (image_set_facts(seen, classes is not None), left_out_note(seen)),
        classes=classes,
        make=make,
        seen=seen,
    )


def image_set_facts(seen: Seen, labelled: bool) -> Facts:
    """What a set tells of its images, whose kinds are (height, width, channels)."""
    sizes = {kind[:2] for kind in seen.kinds}
    return Facts(
        channels=max((kind[2] for kind in seen.kinds), default=1),
        image_size=(min(sizes)[0], min(sizes)[1]) if len(sizes) == 1 else None,
        labels_field="cls" if labelled else None,
    )


def left_out_note(seen: Seen, what: str = "files that are no readable images") -> tuple[str, ...]:
    """How many were left out, and the first of them."""
    if not seen.left_out:
        return ()
    more = len(seen.left_out) - NAMES_IN_A_NOTE
    shown = "; ".join(seen.left_out[:NAMES_IN_A_NOTE]) + (f"; and {more} more" if more > 0 else "")
    return (f"{len(seen.left_out)} {what} were left out: {shown}",)


def _sample(picture: Picture, config: Shrinking) -> Made | LeftOut:
    label = {} if picture.label is None else {"cls": str(picture.label).encode()}
    try:
        field, data, kind = fitted(picture.read(), picture.field, config)
    except (SampleError, OSError) as error:
        reason = error.reason if isinstance(error, SampleError) else error.strerror
        return LeftOut(f"{picture.where} ({reason})")
    return Made(picture.key, {field: data, **label}, kind)


def fitted(data: bytes, name: str, config: Shrinking) -> tuple[str, bytes, tuple[int, int, int]]:
    """(field, bytes, (height, width, channels)) of an image, shrunk where that is asked for.

    Args:
        name: its lower-case extension.

    Raises:
        SampleError: it is none, or damaged.
    """
    height, width, channels = image_facts(data)
    if config.max_side is not None and max(height, width) > config.max_side:
        name, data = "jpg", _shrunk(data, channels, config.max_side, config.quality)
        height, width, channels = image_facts(data)
    return SAME_FIELD.get(name, name), data, (height, width, channels)


def _shrunk(data: bytes, channels: int, max_side: int, quality: int) -> bytes:
    """A JPEG, upright, whose longer side is `max_side` pixels."""
    encoded = EncodedImage(data, channels)
    shrink = shrink_factor(max(encoded.height, encoded.width) / max_side / 2)  # the rest with a better filter
    pixels = encoded.pixels(shrink)[0] if shrink > 1 else decode_image(data, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
