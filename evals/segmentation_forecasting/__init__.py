"""Forecasts of segmentation maps, as Luc et al. judge them: what a street will look like 0.18 s and 0.5 s ahead.

A segmentation head is trained on the encoder under judgement; forecasters learn from the maps that it draws, and are
judged beside a copy of the last input and its warp along the optical flow. Controls go the same way from an untrained
encoder, and from pixels. Source: Luc 2017, arXiv:1703.07684.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, Self

from pydantic import model_validator

from data_pipelines.base import UserError
from evals.controls import remembered
from evals.protocol import EvalConfig, EvalData, Scores
from evals.segmentation_forecasting.backbones import Backbone, backbones
from evals.segmentation_forecasting.clips import Clips, refuse_unlike, test_clips, training_clips
from evals.segmentation_forecasting.forecaster import MODELS, Forecaster
from evals.segmentation_forecasting.judging import judge
from evals.segmentation_forecasting.pictures import pictures
from evals.segmentation_forecasting.segmenter import Segmenter, SegmenterConfig, segmenter, soft_maps
from evals.segmentation_forecasting.training import ForecasterConfig, Material, train
from pretrain.export import LoadedEncoder

PROTOCOL = "segmentation_forecasting/1"

ModelName = Literal[
    "x2x", "s2s", "s2s_adv", "xs2x", "xs2s", "xs2xs", "s2s_finetuned", "s2s_batch", "xs2s_batch", "xs2xs_batch"
]


class Config(EvalConfig):
    """Which models, and the budgets of what is trained."""

    models: tuple[ModelName, ...] = ("s2s",)
    """Forecasters besides the references; the paper's tables have all of them."""
    segmenter: SegmenterConfig = SegmenterConfig()
    forecaster: ForecasterConfig = ForecasterConfig()

    @model_validator(mode="after")
    def _models_stand_behind_those_they_go_on_from(self) -> Self:
        for place, name in enumerate(self.models):
            needed = MODELS[name].finetunes
            if needed is not None and needed not in self.models[:place]:
                raise ValueError(f"{name} goes on from {needed}; name {needed} before it")
        return self


def run(encoder: LoadedEncoder, data: EvalData, config: Config) -> Scores:
    """Metrics "WHO.TERM.MEASURE", see `judging.judge`.

    Raises:
        UserError: a set holds no labelled clips, the two differ, or the encoder reads other images.
    """
    refuse_unlike(data.train, data.test)
    train_set, test_set = training_clips(data.train), test_clips(data.test)
    if encoder.view.channels != test_set.facts.channels:
        raise UserError(
            f"data {data.test.path} has frames of {test_set.facts.channels} channels, the encoder reads "
            f"{encoder.view.channels}; pack the clips alike"
        )
    sources = backbones(encoder)
    subject = _Trial("trained", sources.pop("trained"), train_set, test_set, config)
    metrics = subject.judged()
    strips, animations = pictures(subject.test, subject.segmenter, subject.forecasters)
    controls = {}
    for name, source in sources.items():
        content = [PROTOCOL, config.settings(), data.digests(), source.digest]
        controls[name] = remembered(content, partial(_judged, name, source, train_set, test_set, config))
    return Scores(metrics, controls, strips, animations)


def _judged(name: str, source: Backbone, train_set: Clips, test_set: Clips, config: Config) -> dict[str, float]:
    return _Trial(name, source, train_set, test_set, config).judged()


class _Trial:
    """Everything that is trained on one backbone, and its test."""

    segmenter: Segmenter
    test: Material
    forecasters: dict[str, Forecaster]

    def __init__(self, name: str, source: Backbone, train_set: Clips, test_set: Clips, config: Config) -> None:
        self._name = name
        self.segmenter, digest = segmenter(source, train_set, config.segmenter)
        self.test = Material(test_set, soft_maps(self.segmenter, digest, test_set))
        self.forecasters = {}
        if config.models:  # references alone need no maps to learn from
            material = Material(train_set, soft_maps(self.segmenter, digest, train_set))
            for model in config.models:
                self.forecasters[model] = train(model, material, config.forecaster, self.forecasters)

    def judged(self) -> dict[str, float]:
        return judge(self.test, self.segmenter, self.forecasters, self._name)
