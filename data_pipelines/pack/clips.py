"""What sources of video share: frames and label maps of a snippet as the fields of one sample."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from data_pipelines.base import UserError
from data_pipelines.pack.shard import Seen
from data_pipelines.views.image import Box, resize

BYTES_A_PIXEL = 0.35
"""About what a JPEG of a street takes; only to see beforehand whether the disk holds the set."""


def frame_name(number: int, frames: int) -> str:
    """The number of a frame as fields spell it, so that fields sort in time.

    >>> frame_name(7, 30), frame_name(7, 120)
    ('07', '007')
    """
    return f"{number:0{max(2, len(str(frames - 1)))}d}"


def clip_fields(frames: Sequence[bytes], labels: Mapping[int, np.ndarray]) -> dict[str, bytes]:
    """The fields of a snippet: `00.jpg`, `01.jpg`, ... and `19.labels.png` where frame 19 is labelled.

    Args:
        frames: JPEGs in the order of time.
        labels: (H, W) uint8 class numbers by frame number.
    """
    names = [frame_name(number, len(frames)) for number in range(len(frames))]
    fields = {f"{name}.jpg": frame for name, frame in zip(names, frames, strict=True)}
    return fields | {f"{names[number]}.labels.png": png(classes) for number, classes in sorted(labels.items())}


def read_frames(
    key: str, paths: Sequence[Path], read: Callable[[Path], tuple[bytes, tuple[int, int]]]
) -> tuple[list[bytes], tuple[int, int]]:
    """The frames of a snippet as JPEGs, in the order of `paths`, and their height and width.

    Args:
        read: a frame and its size.

    Raises:
        UserError: they differ in size.
    """
    frames = [read(path) for path in paths]
    sizes = {size for _, size in frames}
    if len(sizes) > 1:
        raise UserError(f"data pack: the frames of {key} differ in size: {sorted(sizes)}")
    return [data for data, _ in frames], sizes.pop()


def only_size(seen: Seen) -> tuple[int, int] | None:
    """(height, width) of all frames, None where clips, whose kind that is, differ."""
    (height, width), *others = seen.kinds
    return None if others else (height, width)


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 as a JPEG."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")
    return data


def png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8, or (H, W) uint16, as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=4)
    return file.getvalue()


def scaled(pixels: np.ndarray, height: int | None) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, W, 3), sides in proportion, the width an even number; as it is when None."""
    if height is None:
        return pixels
    rows, columns = pixels.shape[:2]
    width = 2 * max(1, (columns * height + rows) // (2 * rows))
    return resize(pixels, Box(0, 0, columns, rows), height, width)


def scaled_labels(classes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) uint8 -> (height, width) uint8, each pixel the nearest one's class."""
    if classes.shape == (height, width):
        return classes
    return np.asarray(Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST))


def read_labels(path: Path) -> np.ndarray:
    """A label map (H, W) uint8 as its file has it.

    Raises:
        UserError: no such map in it.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, UnidentifiedImageError):
        raise UserError(f"data pack: {path} is no readable label map; fetch it again") from None
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        kind = f"{pixels.dtype} of shape {pixels.shape}"
        raise UserError(f"data pack: {path} is no label map, it holds {kind}; want 8-bit numbers of classes")
    return pixels


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
