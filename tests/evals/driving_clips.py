"""Small clip sets in the packed format: rectangles that move over a panning, textured street."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset

CLASSES = ("road", "building", "car", "person")
COLOURS = ((128, 64, 128), (70, 70, 70), (0, 0, 142), (220, 20, 60))
SIZE = (32, 64)
FRAMES = 20


def pack_clips(
    out: Path, *, train: int = 6, test: int = 3, label_frames: tuple[int, ...] = (19,), frames: int = FRAMES,
    size: tuple[int, int] = SIZE, wrong_label: int | None = None, **facts: Any,
) -> list[Dataset]:  # fmt: skip
    """Training and test set of clips, labelled at `label_frames`."""
    described = Facts(
        **{
            "channels": 3, "image_size": size, "frames": frames, "frames_per_second": 17.0,
            "label_frames": label_frames, "colours": COLOURS, "moving_classes": (2, 3), **facts,
        }
    )  # fmt: skip
    splits = [
        Split(
            name=name,
            samples=_clips(name, count, label_frames, frames, size, wrong_label),
            num_samples=count,
            num_bytes=count * frames * 3000,
            describe=lambda: (described, ()),
            classes=CLASSES,
        )
        for name, count in (("train", train), ("val", test))
    ]
    return write_sets(out, splits, PackConfig(), name="rectangles", source="generated")


def render(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) and label maps (T, H, W), uint8."""
    height, width = size
    pan = int(rng.integers(1, 3))
    wall = rng.integers(60, 200, (height // 4, (width + pan * frames) // 4 + 1, 3)).astype(np.uint8)
    wall = wall.repeat(4, axis=0).repeat(4, axis=1)
    boxes = [
        (2, int(rng.integers(0, width)), int(rng.choice([-2, 2])), height // 2, 10, 16, (20, 20, 220)),
        (3, int(rng.integers(0, width)), int(rng.choice([-1, 1])), height // 3, 12, 6, (230, 30, 60)),
    ]
    images, labels = [], []
    for time in range(frames):
        image = wall[:height, pan * time : pan * time + width].copy()
        label = np.ones(size, np.uint8)
        image[3 * height // 4 :] = (90, 80, 90)
        label[3 * height // 4 :] = 0
        for number, start, speed, top, tall, wide, colour in boxes:
            columns = (start + speed * time + np.arange(wide)) % width
            image[top : top + tall, columns] = colour
            label[top : top + tall, columns] = number
        images.append(image)
        labels.append(label)
    return np.stack(images), np.stack(labels)


def _clips(
    split: str, count: int, label_frames: tuple[int, ...], frames: int, size: tuple[int, int], wrong_label: int | None
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    for number in range(count):
        images, labels = render(np.random.default_rng([number, len(split)]), frames, size)
        if wrong_label is not None:
            labels[:, 0, 0] = wrong_label
        fields = {f"{time:02d}.jpg": _encoded(image, "JPEG") for time, image in enumerate(images)}
        fields |= {f"{time:02d}.labels.png": _encoded(labels[time], "PNG") for time in label_frames}
        yield f"town_{number:06d}_000000", fields


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()
