"""Pictures of a set: its images and frames as they lie there, and as a view hands them to a network."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch, Sample
from data_pipelines.decode import decode_image, image_bytes
from data_pipelines.views import Draw, View
from data_pipelines.views.clips import MaskedClip, frame_fields
from data_pipelines.views.image import ImageView, MaskedImage

if TYPE_CHECKING:
    from torch import Tensor

CELL = 96
"""Pixels a side of one picture of the sheet, with its margin."""
MARGIN = 4
FRAMES = 8
"""Of a clip, evenly spaced."""
HIDDEN = 127
"""Grey of what a mask hides."""

Value = TypeVar("Value")
Strip: TypeAlias = list[np.ndarray]
"""Pictures side by side, each (H, W, 3) uint8."""


def stored(samples: Sequence[Sample]) -> list[Strip]:
    """The image of each sample, or frames of its clip; samples without a readable picture are left out."""
    strips = (_stored(sample) for sample in samples)
    return [strip for strip in strips if strip]


def seen(samples: Sequence[Sample], view: View) -> list[Strip]:
    """What is stored, and beside or below it what the view makes of it: crops, frames, and what masks leave of them.

    Samples that the view refuses are left out.
    """
    strips = []
    for position, sample in enumerate(samples):
        try:
            first, *more = _seen(_batch(sample, view, position), view) or [[]]
        except SampleError:
            continue
        original = _stored(sample)
        strips += [[*original, *first], *more] if len(original) == 1 else [original, first, *more]
    return [strip for strip in strips if strip]


def _stored(sample: Sample) -> Strip:
    try:
        frames = clip_frames(sample)
        if not frames:
            return [decode_image(image_bytes(sample))]
        return [decode_image(sample.fields[name]) for name in _spread(frames)]
    except SampleError:
        return []


def clip_frames(sample: Sample) -> list[str]:
    """Fields of a clip's frames; of other samples none."""
    try:
        return frame_fields(sample)
    except SampleError:
        return []


def _spread(frames: list[Value]) -> list[Value]:
    """At most `FRAMES` of them, first and last included."""
    if len(frames) <= FRAMES:
        return frames
    return [frames[place] for place in np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]


def _batch(sample: Sample, view: View, position: int) -> Batch:
    """A batch of one, its other half done on the CPU."""
    import torch

    fields = view.sample(sample, Draw(0, position))
    one = torch.zeros(1, dtype=torch.int64)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array))[None] for name, array in fields.items()}
    return view.batch(Batch(tensors, (sample.key,), one + position, one + 1.0, one, first=position))


def _seen(batch: Batch, view: View) -> list[Strip]:
    """Strips of a batch of one; none where the view is not of images."""
    if not isinstance(view, ImageView):
        return []
    if isinstance(view, MaskedClip):
        frames = [_pixels(frame, view) for frame in batch["clip"][0]]
        masks = batch["mask"][0].numpy().reshape(view.moments, *view.grid).repeat(view.tubelet_size, axis=0)
        return [_spread(frames), _spread([_masked(frame, mask) for frame, mask in zip(frames, masks, strict=True)])]
    strip = [_pixels(batch[name][0], view) for name in ("image", "view0", "view1") if name in batch.fields]
    if isinstance(view, MaskedImage):
        strip.append(_masked(strip[0], batch["mask"][0].numpy().reshape(view.grid)))
    return [strip]


def _pixels(image: Tensor, view: ImageView) -> np.ndarray:
    """(C, H, W), normalised -> (H, W, 3) uint8."""
    values = image.permute(1, 2, 0).numpy() * np.array(view.std) + np.array(view.mean)
    grey_or_colour = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    return np.broadcast_to(grey_or_colour, (*grey_or_colour.shape[:2], 3)).copy()


def _masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with hidden patches in grey; mask (rows, columns) bool."""
    size = image.shape[0] // mask.shape[0]
    return np.where(np.kron(mask, np.ones((size, size), bool))[..., None], np.uint8(HIDDEN), image)


def sheet(strips: Sequence[Strip]) -> np.ndarray:
    """All strips on one page, (H, W, 3) uint8: in a square where each is a single picture, else one below the other."""
    if all(len(strip) == 1 for strip in strips):
        columns = int(np.ceil(np.sqrt(len(strips))))
        pictures = [strip[0] for strip in strips]
        strips = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    columns = max(map(len, strips))
    rows = []
    for strip in strips:
        cells = [_cell(picture) for picture in strip]
        blank = np.full((CELL, CELL, 3), 255, np.uint8)
        rows.append(np.concatenate([*cells, *[blank] * (columns - len(cells))], axis=1))
    return np.concatenate(rows)


def _cell(pixels: np.ndarray) -> np.ndarray:
    """(CELL, CELL, 3): the picture centred on white, small ones enlarged without blur."""
    height, width = pixels.shape[:2]
    scale = (CELL - 2 * MARGIN) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(Image.fromarray(pixels).resize(size, method), ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return np.asarray(cell)


def to_png(page: np.ndarray) -> bytes:
    """A page as a file."""
    file = io.BytesIO()
    Image.fromarray(page).save(file, "PNG")
    return file.getvalue()


def to_terminal(page: np.ndarray, columns: int | None = None) -> list[str]:
    """A page in coloured half blocks, two pixels a character; needs a terminal of 24-bit colour."""
    width = min(columns or shutil.get_terminal_size().columns, page.shape[1])
    height = -(-page.shape[0] * width // page.shape[1] // 2) * 2
    small = np.asarray(Image.fromarray(page).resize((width, height), Image.Resampling.LANCZOS))
    return [
        "".join(
            "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*upper, *lower)
            for upper, lower in zip(small[row], small[row + 1], strict=True)
        )
        + "\x1b[0m"
        for row in range(0, height, 2)
    ]
