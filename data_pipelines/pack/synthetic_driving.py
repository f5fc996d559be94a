"""Rendered drives in Cityscapes' layout, for where Cityscapes itself may not go.

    thalweg data pack synthetic_driving data/driving sequences=300
    thalweg data pack synthetic_driving data/driving layout=~/driving

Every sequence is drawn by key: its number and `seed` alone decide its pixels, on any machine. Frames, label ids and
instance ids are written as Cityscapes names them (no polygons, no colour maps), then packed as `cityscapes` is.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from data_pipelines.base import UserError
from data_pipelines.pack import cityscapes
from data_pipelines.pack.cityscapes import FRAMES_PER_SECOND, SNIPPET
from data_pipelines.pack.clips import png
from data_pipelines.pack.driving.keyed import Keyed
from data_pipelines.pack.driving.render import render
from data_pipelines.pack.writer import PackConfig, Progress, no_progress
from data_pipelines.shards import Dataset

LABELLED = 19
"""The frame with a label map, as in Cityscapes."""
CITIES = {"train": "eastfield", "val": "westfield"}
WORTH_A_PROCESS = 4
"""Sequences; fewer are rendered sooner than another process starts."""


class Config(PackConfig):
    """How much is rendered."""

    sequences: int = Field(250, ge=2)
    """Of 30 frames each, held-out ones included."""
    val_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the sequences held out as `val`."""
    height: int = Field(128, ge=32)
    """Of the frames in pixels; they are twice as wide."""
    quality: int = Field(90, ge=1, le=95)
    """JPEG quality of the packed frames."""
    label_every: int | None = Field(None, gt=0)
    """Labels every so many frames instead of the 20th alone."""
    layout: Path | None = None
    """Folder that keeps the rendered files; nothing is kept when unset."""


@dataclass(frozen=True)
class Job:
    """One sequence to render into a folder; travels to another process."""

    folder: Path
    split: str
    number: int
    config: Config

    @property
    def labelled(self) -> tuple[int, ...]:
        """Frames with label maps."""
        every = self.config.label_every
        return (LABELLED,) if every is None else tuple(range(0, SNIPPET, every))

    def run(self) -> None:
        """Write frames and labels."""
        city, height = CITIES[self.split], self.config.height
        images, labels = (self.folder / kind / self.split / city for kind in ("leftImg8bit_sequence", "gtFine"))
        keyed = Keyed(self.config.seed, "synthetic_driving", city, self.number)
        for frame, picture in enumerate(render(keyed, SNIPPET, FRAMES_PER_SECOND, height, 2 * height)):
            name = f"{city}_{self.number:06d}_{frame:06d}"
            (images / f"{name}_leftImg8bit.png").write_bytes(png(picture.image))
            if frame in self.labelled:
                (labels / f"{name}_gtFine_labelIds.png").write_bytes(png(picture.labels))
                (labels / f"{name}_gtFine_instanceIds.png").write_bytes(png(picture.instances))


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Render, then pack.

    Raises:
        UserError: a path was given to read from, or `layout` holds something already.
    """
    if source is not None:
        raise UserError(f"synthetic_driving renders its own data; leave out {source!r}")
    with _folder(out, config.layout) as folder:
        _render_all(folder, config, progress)
        chosen = {"height": None, "quality": config.quality, "labels": True}
        shards = config.model_dump(include=set(PackConfig.model_fields))
        return cityscapes.pack_layout(
            folder,
            out,
            cityscapes.Config(**chosen, **shards),
            progress,
            name="synthetic_driving",
            source=f"rendered: {config.sequences} sequences of seed {config.seed}",
            licence="none needed",
        )


@contextmanager
def _folder(out: Path, layout: Path | None) -> Iterator[Path]:
    """Where files are rendered to."""
    if layout is None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.rendered-") as folder:
            yield Path(folder)
        return
    layout = layout.expanduser()
    if layout.exists() and (not layout.is_dir() or any(layout.iterdir())):
        raise UserError(f"data pack synthetic_driving: layout={layout} exists and is not empty; name a new folder")
    yield layout


def _render_all(folder: Path, config: Config, progress: Progress) -> None:
    held_out = min(max(1, round(config.val_fraction * config.sequences)), config.sequences - 1)
    counts = {"train": config.sequences - held_out, "val": held_out}
    for split, city in CITIES.items():
        for kind in ("leftImg8bit_sequence", "gtFine"):
            (folder / kind / split / city).mkdir(parents=True)
    jobs = [Job(folder, split, number, config) for split, count in counts.items() for number in range(count)]
    processes = min(len(os.sched_getaffinity(0)), len(jobs) // WORTH_A_PROCESS)
    if processes < 2:
        for done, job in enumerate(jobs):
            progress("render", done, len(jobs))
            job.run()
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(Job.run, jobs)):
            progress("render", done + 1, len(jobs))
