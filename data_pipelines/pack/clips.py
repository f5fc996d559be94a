"""What sources of video share: frames and label maps of a snippet as the fields of one sample."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.decode import decode_image
from data_pipelines.views.image import Box, resize

BYTES_A_PIXEL = 0.25
"""About what a JPEG of a street takes; only to see beforehand whether the disk holds the set."""


def frame_name(number: int, frames: int) -> str:
    """The number of a frame as fields spell it, so that fields sort in time.

    >>> frame_name(7, 30), frame_name(7, 120)
    ('07', '007')
    """
    return f"{number:0{max(2, len(str(frames - 1)))}d}"


def clip_fields(frames: Sequence[np.ndarray], labels: Mapping[int, np.ndarray], quality: int) -> dict[str, bytes]:
    """The fields of a snippet: `00.jpg`, `01.jpg`, ... and `19.labels.png` where frame 19 is labelled.

    Args:
        frames: (H, W, 3) uint8 each.
        labels: (H, W) uint8 class numbers by frame number.
        quality: of the JPEGs.
    """
    names = [frame_name(number, len(frames)) for number in range(len(frames))]
    fields = {
        f"{name}.jpg": simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "RGB", "420")
        for name, frame in zip(names, frames, strict=True)
    }
    return fields | {f"{names[number]}.labels.png": png(classes) for number, classes in sorted(labels.items())}


def png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8, or (H, W) uint16, as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=4)
    return file.getvalue()


def scaled(data: bytes, height: int | None) -> np.ndarray:
    """Decode an image to (height, W, 3) uint8, its sides in proportion; as it is when None.

    Raises:
        SampleError: damaged, or no image.
    """
    image = decode_image(data)
    if height is None:
        return image
    rows, columns = image.shape[:2]
    return resize(image, Box(0, 0, columns, rows), height, width_for(height, rows, columns))


def scaled_labels(classes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) uint8 -> (height, width) uint8, each pixel the nearest one's class."""
    if classes.shape == (height, width):
        return classes
    return np.asarray(Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST))


def width_for(height: int, rows: int, columns: int) -> int:
    """The width that keeps the proportions of (rows, columns)."""
    return max(1, (2 * columns * height + rows) // (2 * rows))


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
