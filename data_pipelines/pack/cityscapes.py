"""Cityscapes as it is unpacked from the official archives: snippets of 30 frames, the 20th of them labelled.

    thalweg data pack cityscapes ~/cityscapes data/cityscapes height=128

Reads IN/leftImg8bit_sequence/{train,val}/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png and
IN/gtFine/{train,val}/CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png. Where there is no leftImg8bit_sequence, the single
labelled images of IN/leftImg8bit become snippets of one frame, enough to train a segmenter. Label ids become train ids.

Source: Cordts 2016, arXiv:1604.01685; leftImg8bit_sequence_trainvaltest.zip, gtFine_trainvaltest.zip.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from pydantic import Field

from data_pipelines.base import SampleError, UserError
from data_pipelines.decode import decode_image
from data_pipelines.manifest import Facts
from data_pipelines.pack.cityscapes_labels import CLASSES, COLOURS, MOVING, to_train_ids
from data_pipelines.pack.clips import (
    BYTES_A_PIXEL,
    clip_fields,
    few,
    jpeg,
    only_size,
    read_frames,
    read_labels,
    scaled,
    scaled_labels,
)
from data_pipelines.pack.writer import Made, PackConfig, Progress, Seen, Split, no_progress, shuffled, write_sets
from data_pipelines.shards import Dataset

SPLITS = ("train", "val")
SNIPPET = 30
FRAMES_PER_SECOND = 17.0
LICENCE = "Cityscapes: non-commercial, not to be passed on"

_IMAGE = re.compile(r"(?P<city>[^_]+)_(?P<sequence>\d+)_(?P<frame>\d+)_leftImg8bit\.png")


class Config(PackConfig):
    """Size of the frames, and whether labels are wanted."""

    height: int | None = Field(128, gt=0)
    """Of the packed frames in pixels, their sides in proportion; 128 is the forecasting protocol's, null keeps all."""
    quality: int = Field(90, ge=1, le=95)
    """JPEG quality."""
    labels: bool = True
    """false packs frames alone, and wants no gtFine."""


@dataclass(frozen=True)
class Snippet:
    """Consecutive frames of one drive.

    Attributes:
        labels: label maps by frame number in the snippet.
    """

    key: str
    frames: tuple[Path, ...]
    labels: dict[int, Path]


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write the snippets of `train` and `val`.

    Raises:
        UserError: not Cityscapes' layout; gtFine or labels of some snippets missing; snippets that lack frames; ids
            that no label has.
    """
    if source is None:
        raise UserError("data pack cityscapes: want its folder: thalweg data pack cityscapes IN OUT")
    return pack_layout(Path(source), out, config, progress, name="cityscapes", source=source, licence=LICENCE)


def pack_layout(
    folder: Path, out: Path, config: Config, progress: Progress, *, name: str, source: str, licence: str
) -> list[Dataset]:
    """Write what lies in a folder of Cityscapes' layout, whoever made it; see `pack`."""
    snippets = {split: found for split in SPLITS if (found := _snippets(folder, split, config))}
    if not snippets:
        raise UserError(
            f"data pack {name}: {folder} holds no leftImg8bit_sequence/{{{','.join(SPLITS)}}}/CITY/*_leftImg8bit.png, "
            f"and no such leftImg8bit; unpack Cityscapes' archives there"
        )
    splits = [_split(split, found, config) for split, found in snippets.items()]
    return write_sets(out, splits, config, name=name, source=source, licence=licence, progress=progress)


def _snippets(folder: Path, split: str, config: Config) -> list[Snippet]:
    """All snippets of a split, whole and, where wanted, labelled."""
    kind = "leftImg8bit_sequence" if (folder / "leftImg8bit_sequence").is_dir() else "leftImg8bit"
    length = SNIPPET if kind == "leftImg8bit_sequence" else 1
    drives: dict[tuple[str, str], dict[int, Path]] = {}
    for path in sorted((folder / kind / split).glob("*/*.png")):
        if match := _IMAGE.fullmatch(path.name):
            drives.setdefault((match["city"], match["sequence"]), {})[int(match["frame"])] = path
    cut = [_cut(name, frames, length) for name, frames in drives.items()]
    snippets = [snippet for whole, _ in cut for snippet in whole]
    torn = [words for _, parts in cut for words in parts]
    if torn:
        raise UserError(
            f"data pack: {len(torn)} of {len(torn) + len(snippets)} snippets of {folder / kind / split} lack frames: "
            f"{few(torn)}; unpack them again, or move them away"
        )
    return _labelled(snippets, folder, split) if config.labels and snippets else snippets


def _cut(drive: tuple[str, str], frames: dict[int, Path], length: int) -> tuple[list[Snippet], list[str]]:
    """Runs of consecutive frames in snippets of `length`; and what is left over, in words."""
    whole, torn = [], []
    for _, run in groupby(enumerate(sorted(frames)), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        for start in range(0, len(numbers), length):
            part = numbers[start : start + length]
            name = "_".join((*drive, f"{part[0]:06d}"))
            if len(part) == length:
                whole.append(Snippet(name, tuple(frames[number] for number in part), {}))
            else:
                torn.append(f"{name} ({len(part)} of {length})")
    return whole, torn


def _labelled(snippets: Sequence[Snippet], folder: Path, split: str) -> list[Snippet]:
    """The snippets with their label maps, all at the same frames."""
    root = folder / "gtFine" / split
    if not root.is_dir():
        raise UserError(
            f"data pack: {root} is missing; unpack gtFine_trainvaltest.zip beside the images, or set labels=false"
        )
    there = {path.name: path for path in root.glob("*/*_gtFine_labelIds.png")}
    found = []
    for snippet in snippets:
        names = [path.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png") for path in snippet.frames]
        labels = {number: there[name] for number, name in enumerate(names) if name in there}
        found.append(Snippet(snippet.key, snippet.frames, labels))
    wanted = sorted({number for snippet in found for number in snippet.labels})
    without = [snippet.key for snippet in found if sorted(snippet.labels) != wanted or not wanted]
    if without:
        frames = f"frame {', '.join(map(str, wanted))} of the others" if wanted else "any frame"
        raise UserError(
            f"data pack: {len(without)} of {len(found)} snippets have no label map for {frames} in {root}: "
            f"{few(without)}; complete gtFine, or set labels=false"
        )
    return found


def _split(name: str, snippets: list[Snippet], config: Config) -> Split:
    ordered = [snippets[place] for place in shuffled([snippet.key for snippet in snippets], config.seed)]
    _, (height, width) = _frame(ordered[0].frames[0], config)
    seen = Seen()
    return Split(
        name=name,
        samples=ordered,
        num_samples=len(ordered),
        num_bytes=int(BYTES_A_PIXEL * height * width * sum(len(snippet.frames) for snippet in ordered)),
        describe=lambda: (_facts(ordered[0], seen), ()),
        classes=CLASSES if ordered[0].labels else None,
        make=partial(_sample, config=config),
        seen=seen,
    )


def _facts(snippet: Snippet, seen: Seen) -> Facts:
    label_frames = tuple(sorted(snippet.labels))
    return Facts(
        channels=3,
        image_size=only_size(seen),
        frames=len(snippet.frames),
        frames_per_second=FRAMES_PER_SECOND,
        label_frames=label_frames,
        colours=COLOURS if label_frames else (),
        moving_classes=MOVING if label_frames else (),
    )


def _sample(snippet: Snippet, config: Config) -> Made:
    frames, size = read_frames(snippet.key, snippet.frames, lambda path: _frame(path, config))
    labels = {number: _label_map(path, *size) for number, path in snippet.labels.items()}
    return Made(snippet.key, clip_fields(frames, labels), size)


def _frame(path: Path, config: Config) -> tuple[bytes, tuple[int, int]]:
    """A JPEG, and its height and width."""
    try:
        pixels = scaled(decode_image(path.read_bytes()), config.height)
    except (SampleError, OSError) as error:
        reason = error.reason if isinstance(error, SampleError) else error.strerror
        raise UserError(f"data pack: {path}: {reason}; fetch it again") from None
    return jpeg(pixels, config.quality), (pixels.shape[0], pixels.shape[1])


def _label_map(path: Path, height: int, width: int) -> np.ndarray:
    """Train ids of a file of label ids, at the frames' size."""
    try:
        return scaled_labels(to_train_ids(read_labels(path)), height, width)
    except ValueError as error:
        raise UserError(f"data pack: {path}: {error}; want the ids 0 to 33 of *_gtFine_labelIds.png") from None
