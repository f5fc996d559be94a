"""Sources that `thalweg data pack` knows: one file each, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.base import UserError, did_you_mean, parse

if TYPE_CHECKING:
    from data_pipelines.pack.writer import Progress
    from data_pipelines.shards import Dataset

SOURCES = {
    "cityscapes": "data_pipelines.pack.cityscapes",
    "fashion_mnist": "data_pipelines.pack.fashion_mnist",
    "hf": "data_pipelines.pack.hf",
    "imagefolder": "data_pipelines.pack.imagefolder",
    "imagenet": "data_pipelines.pack.imagenet",
    "mnist": "data_pipelines.pack.mnist",
    "parallel": "data_pipelines.pack.parallel",
    "synthetic_driving": "data_pipelines.pack.synthetic_driving",
    "text": "data_pipelines.pack.text",
    "video": "data_pipelines.pack.video",
}
"""Modules by name; each has a `Config` and `pack(source, out, config, progress)`."""


def pack(
    name: str,
    source: str | None,
    out: Path,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[Dataset]:
    """Pack a source into `out/train` and `out/val`.

    Args:
        name: one of `SOURCES`.
        source: path the source reads from; None where it brings its data or knows where to find it.
        config: plain keys of the source's `Config`.
        progress: called with (stage, done, total).

    Returns:
        The written sets, training first.

    Raises:
        UserError: unknown source or key, nothing to pack, `out` not empty, no space.
        DataError: a worker was killed.
    """
    if name not in SOURCES:
        raise UserError(f"no source {name!r} to pack{did_you_mean(name, list(SOURCES))}")
    module = import_module(SOURCES[name])
    from data_pipelines.pack.stage import refuse_used
    from data_pipelines.pack.writer import no_progress

    settings = parse(module.Config, config or {}, f"data pack {name}")
    refuse_used(Path(out))  # not after hours of reading
    sets: list[Dataset] = module.pack(source, Path(out), settings, progress or no_progress)
    return sets
