"""Frozen features of a run's validation set, from the cache that its evals filled, and the images they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.base import SampleError, UserError
from evals.report.record import RunRecord

if TYPE_CHECKING:
    from data_pipelines.shards import Dataset

MOST_SAMPLES = 20_000
"""A larger set is left alone: its features may not be cached, and a report should not take long."""

ImageOf = Callable[[int], np.ndarray | None]
"""Decodes the picture of a row, (H, W, C) uint8; None where it cannot be had."""


@dataclass(frozen=True)
class Features:
    """Frozen features of a set.

    Attributes:
        kind: which of the encoder's features.
        vectors: (N, D) float32.
        labels: (N,) int64, -1 where unknown.
        classes: their names, as far as they have any.
        step: of the checkpoint.
    """

    kind: str
    vectors: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    step: int
    image: ImageOf


def newest_features(run: RunRecord) -> Features:
    """Features of the validation set by the newest export.

    Raises:
        ThalwegError: why there are none, in words.
    """
    folder = _newest_export(run)
    path = _test_set(run, folder.name)

    from data_pipelines.shards import Dataset
    from evals.controls import trained
    from evals.features import extract
    from pretrain.export import load_encoder

    dataset = Dataset.open(path)
    if dataset.facts()["channels"] is None:
        raise UserError("the validation set holds no images")
    if dataset.num_samples > MOST_SAMPLES:
        raise UserError(f"the validation set has more than {MOST_SAMPLES:,} samples")
    table = extract(trained(load_encoder(folder)), dataset)
    kind = "pooled" if "pooled" in table.kinds else sorted(table.kinds)[0]
    return Features(
        kind=kind,
        vectors=table.kinds[kind].float().numpy(),
        labels=table.labels.numpy(),
        classes=dataset.classes or (),
        step=int(folder.name.removeprefix("step-")),
        image=_image_reader(dataset, len(table.labels)),
    )


def is_local(path: Any) -> bool:
    """Whether `path` names something on this machine's disks: a report fetches nothing over a network."""
    return isinstance(path, str) and "://" not in path and Path(path).exists()


def _newest_export(run: RunRecord) -> Path:
    exports = [path for path in run.directory.exports.glob("step-*") if (path / "config.json").is_file()]
    exports = [path for path in exports if path.name.removeprefix("step-").isdecimal()]
    if not exports:
        raise UserError("no checkpoint of the run has been exported yet; the first eval makes an export")
    return max(exports, key=lambda path: int(path.name.removeprefix("step-")))


def _test_set(run: RunRecord, step: str) -> str:
    """The set that the evals of this step were judged by, else the run's own validation set."""
    judged = [one.data for one in run.judgements if f"step-{one.step:08d}" == step]
    data = run.config.get("data")
    known = [_path(facts.get("test")) for facts in judged] + [
        data.get("validation") if isinstance(data, Mapping) else None
    ]
    named = [path for path in known if path]
    if not named:
        raise UserError("the run names no validation set")
    for path in named:
        if is_local(path):
            return str(path)
    raise UserError(f"the validation set {named[0]} is not on this machine")


def _path(facts: Any) -> Any:
    return facts.get("path") if isinstance(facts, Mapping) else None


def _image_reader(dataset: Dataset, rows: int) -> ImageOf:
    """Rows are samples in file order; where some were unreadable nobody knows which row is which."""
    from data_pipelines.decode import decode_image, image_bytes

    if rows != dataset.num_samples:
        return lambda row: None
    ends = np.cumsum(dataset.shard_sizes)
    channels = dataset.facts()["channels"]

    def image(row: int) -> np.ndarray | None:
        shard = int(np.searchsorted(ends, row, side="right"))
        member = row - int(ends[shard] - dataset.shard_sizes[shard])
        try:
            return decode_image(image_bytes(dataset.read(shard, member)), channels)
        except SampleError:
            return None

    return image
