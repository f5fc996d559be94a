"""Controls: what the same judge says of raw pixels and of the same network untrained (promise 4).

They do not depend on the run, so their scores are cached by what they do depend on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers

from data_pipelines.base import UserError, digest_of, write_atomically
from data_pipelines.shards import Dataset
from data_pipelines.views.image import PlainImage
from evals.features import Compute, FeatureTable, Source, alone, best_device, cache_folder, extract
from evals.protocol import EvalConfig, EvalData, Scores
from pretrain.export import LoadedEncoder
from pretrain.networks.pixels import RAW_SIDE, raw_pixels

Judge = Callable[[FeatureTable, FeatureTable], Mapping[str, float]]
"""Metrics of training and test features."""

RANDOM_INIT_SEED = 0


def trained(encoder: LoadedEncoder) -> Source:
    """The encoder that is judged."""
    return Source(digest_of(["trained", encoder.digest]), encoder.view, lambda device: encoder.to(device).features)


def random_init(encoder: LoadedEncoder, seed: int = RANDOM_INIT_SEED) -> Source:
    """The same network, drawn by `seed` and never trained."""
    digest = digest_of(["random_init", seed, encoder.network(), transformers.__version__])
    return Source(digest, encoder.view, lambda device: encoder.random_init(seed).to(device).features)


def raw(view: PlainImage) -> Source:
    """Pixels in [0, 1] of the image that the encoder sees; not normalised, since cosines do better so."""
    return Source(digest_of(["raw", RAW_SIDE]), view, lambda device: _raw_pixels(view, device))


def _raw_pixels(view: PlainImage, device: torch.device) -> Compute:
    mean, std = (torch.tensor(values, device=device) for values in (view.mean, view.std))
    return lambda images: {"pixels": raw_pixels(images, mean, std)}


def with_controls(encoder: LoadedEncoder, data: EvalData, config: EvalConfig, protocol: str, judge: Judge) -> Scores:
    """Judge an encoder and its controls by the same features, data and config.

    Raises:
        UserError: the data has no labels, or the encoder reads no images.
    """
    for dataset in (data.train, data.test):
        refuse_unlabelled(dataset)
    controls = {"raw": raw(encoder.view), "random_init": random_init(encoder)}
    return Scores(
        metrics=judged(trained(encoder), data, judge),
        controls={name: _remembered(source, data, config, protocol, judge) for name, source in controls.items()},
    )


def judged(source: Source, data: EvalData, judge: Judge) -> dict[str, float]:
    """Metrics of one source of features.

    Raises:
        UserError: a sample has no label.
    """
    device = best_device()
    train, test = (extract(source, dataset).to(device) for dataset in (data.train, data.test))
    for table, dataset in ((train, data.train), (test, data.test)):
        missing = int((table.labels < 0).sum())
        if missing:
            raise UserError(f"data {dataset.path}: {missing:,} of {len(table.labels):,} samples have no label (.cls)")
    return dict(judge(train, test))


def _remembered(source: Source, data: EvalData, config: EvalConfig, protocol: str, judge: Judge) -> dict[str, float]:
    view, settings = source.view.model_dump(mode="json"), config.settings()
    content = [protocol, settings, data.digests(), source.digest, view]
    return remembered(content, lambda: judged(source, data, judge))


def remembered(content: Sequence[Any], compute: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """The scores of a control, computed the first time.

    Args:
        content: all that they depend on, as plain data.
        compute: makes them.
    """
    path = cache_folder("controls") / f"{digest_of(['control', *content])}.json"
    with alone(path):
        if path.is_file():
            scores: dict[str, float] = json.loads(path.read_text())
            return scores
        scores = dict(compute())
        write_atomically(path, json.dumps(scores, indent=1))
    return scores


def refuse_unlabelled(dataset: Dataset) -> None:
    """Raises UserError where a set has no field of labels."""
    if dataset.facts()["labels_field"] is None:
        raise UserError(
            f"data {dataset.path} has no labels; this eval wants a .cls field, set data.train and data.test"
        )
