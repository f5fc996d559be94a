"""Judging by training: heads, or the whole encoder, learn labels in a run of their own, and the test set judges them.

What the linear probes of the papers and fine-tuning share. They stream augmented crops through the encoder at every
rank of the job, hold no features, and resume. The encoder's controls are trained in the same way: they are exports too,
of the same network untrained, and of a network that hands the pixels through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from pydantic import Field
from torch import nn

from data_pipelines.base import UserError, digest_of, parse
from data_pipelines.batch import Batch
from data_pipelines.loader import finite_batches
from data_pipelines.shards import Dataset
from data_pipelines.steps import steps_of
from data_pipelines.views.image import PlainImage
from evals.controls import RANDOM_INIT_SEED, refuse_unlabelled
from evals.features import cache_folder
from evals.finetuning import control_taught, loader_workers, taught
from evals.protocol import EvalConfig, EvalData, Scores
from evals.workplace import Workplace
from pretrain.config import Recipe
from pretrain.export import LoadedEncoder
from pretrain.networks.pixels import RAW_SIDE, Pixels
from pretrain.objective import Encoder, Objective
from pretrain.objectives.classify import Classify

HELD_OUT = 50
"""One training sample in so many teaches nothing: by these a head is chosen where there are several."""

_ROWS_EXAMINED = 128
_LEAST_STEPS_BETWEEN_CHECKPOINTS = 50
_STEPS_BETWEEN_LINES = 50
_NO_SPIKE = 1e9  # heads of too high a learning rate may swing; they must not end the others
_ZOOM = 256 / 224
"""Test images: the shorter side is so many times the network's size before the central square is cut out."""


@dataclass(frozen=True)
class Course:
    """How a protocol teaches.

    Attributes:
        objective: keys of `Classify.Config` besides encoder and classes.
        optim: keys of a recipe's `optim` besides `warmup`.
        zero_stage: of the engine.
    """

    objective: Mapping[str, Any]
    optim: Mapping[str, Any]
    zero_stage: int = 0


class SupervisedConfig(EvalConfig):
    """What every eval that teaches labels can be told."""

    classes: int | None = Field(None, gt=1)
    """How many there are, where the training set does not say."""
    epochs: float = Field(gt=0)
    """Of the training set."""
    warmup_epochs: float = Field(ge=0)
    """In which the learning rate rises."""
    global_batch: int = Field(gt=0)
    """Samples an optimizer step."""
    micro_step: int = Field(gt=0)
    """Most samples of a forward pass, over all ranks; batch norms see these."""

    def warmup(self) -> float:
        """As a share of all steps.

        Raises:
            UserError: nothing would be left of the training.
        """
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs={self.warmup_epochs:g} fill epochs={self.epochs:g}; set both")
        return self.warmup_epochs / self.epochs


def judge_by_training(
    encoder: LoadedEncoder, data: EvalData, config: SupervisedConfig, protocol: str, course: Course, place: Workplace
) -> Scores:
    """Teach and judge an encoder and its controls alike.

    Raises:
        UserError: the data has no labels, or does not fit the ranks of the job.
        SavedAndStopped: see `finetuning.finish`.
    """
    for dataset in (data.train, data.test):
        refuse_unlabelled(dataset)
    school = _School(encoder.view, data, config, course, place)
    metrics = json.loads(school.teach(place.folder / "pretrained", encoder.folder))
    controls = {}
    for name, (network, digest) in _controls(encoder).items():
        content = [protocol, config.settings(), data.digests(), digest, encoder.view.model_dump(mode="json")]
        where = cache_folder("controls") / digest_of(["control", *content])
        teach = partial(school.teach, where)
        told = control_taught(Encoder(network, "", encoder.preprocessor), where, place, teach)
        controls[name] = json.loads(told)
    return Scores(metrics=metrics, controls=controls)


def _controls(encoder: LoadedEncoder) -> dict[str, tuple[nn.Module, str]]:
    """Networks that learn as the encoder does, and what names each."""
    view = encoder.view
    pixels = Pixels(Pixels.Config(mean=view.mean, std=view.std))
    drawn = encoder.random_init(RANDOM_INIT_SEED)
    return {
        "raw": (pixels, digest_of(["raw", RAW_SIDE])),
        "random_init": (drawn.module, digest_of([RANDOM_INIT_SEED, encoder.network(), transformers.__version__])),
    }


@dataclass(frozen=True)
class _School:
    """Teaches exports by one course and examines them."""

    view: PlainImage
    data: EvalData
    config: SupervisedConfig
    course: Course
    place: Workplace

    def teach(self, where: Path, export: Path) -> str:
        """Metrics of an export, as JSON.

        Args:
            where: folder of the run that teaches it.
        """
        return taught(self.recipe(export, where), self.place, lambda objective: json.dumps(self.examine(objective)))

    def recipe(self, export: Path, where: Path) -> Recipe:
        """The run that teaches."""
        course, train = self.course, self.data.train
        epoch = steps_of(1, train.num_samples, self.config.global_batch)
        on_gpu = self.place.world.device.type == "cuda"
        tree = {
            "name": where.name,
            "runs": str(where.parent),
            "objective": {"name": "classify", "encoder": str(export), "classes": self.classes(), **course.objective},
            "data": {"path": train.path, "workers": loader_workers(train.num_samples)},
            "train": {
                "global_batch": self.config.global_batch,
                "accumulation": accumulation(self.config.global_batch, self.config.micro_step),
                "epochs": self.config.epochs,
                "spike_factor": _NO_SPIKE,
            },
            "optim": {**course.optim, "warmup": self.config.warmup()},
            "engine": {"zero_stage": course.zero_stage, "precision": "bf16" if on_gpu else "fp32"},
            "checkpoint": {"every": max(epoch, _LEAST_STEPS_BETWEEN_CHECKPOINTS), "keep_last": 1},
            "monitor": {"log_every": _STEPS_BETWEEN_LINES, "tensorboard": False},
        }
        return parse(Recipe, tree, "eval")

    def classes(self) -> int:
        """Raises UserError where nobody says."""
        named = self.data.train.classes
        if self.config.classes is None and named is None:
            raise UserError(f"data {self.data.train.path} does not say how many classes it has; set classes=NUMBER")
        return self.config.classes or len(named or ())

    def examine(self, objective: Objective) -> dict[str, float]:
        """Metrics "top1", of the head that tells held-out training labels best, and "KIND.top1@lrBASE" of each."""
        assert isinstance(objective, Classify)
        accuracies = self.accuracies(objective, self.data.test, lambda batch: batch.weight > 0)
        chosen = next(iter(accuracies))
        if len(accuracies) > 1:
            untaught = objective.held_out
            held_out = self.accuracies(objective, self.data.train, lambda batch: (batch.weight > 0) & untaught(batch))
            chosen = max(held_out, key=lambda head: held_out[head])
        return {"top1": accuracies[chosen]} | {
            self.metric_of(head): accuracy for head, accuracy in accuracies.items() if len(accuracies) > 1
        }

    def metric_of(self, head: str) -> str:
        """The name under which a head's accuracy is told."""
        kind, _, number = head.rpartition("_")
        factors = self.course.objective.get("lr_factors", (1.0,))
        rate = f"@lr{self.course.optim['base_lr'] * factors[int(number)]:g}" if len(factors) > 1 else ""
        return f"{kind}.top1{rate}"

    @torch.no_grad()
    def accuracies(
        self, objective: Classify, dataset: Dataset, chosen: Callable[[Batch], torch.Tensor]
    ) -> dict[str, float]:
        """Share of rows told right, by head, over the `chosen` (B,) bool rows of a set."""
        world, view = self.place.world, exam_view(self.view, dataset)
        heads = list(objective.heads)
        tally = np.zeros(len(heads) + 2)  # right by head, then rows, then rows without a label
        for batch in finite_batches(
            dataset, view, seed=0, batch_size=_ROWS_EXAMINED, rank=world.rank, world_size=world.world_size,
            workers=loader_workers(dataset.num_samples),
        ):  # fmt: skip
            rows = chosen(batch)
            labels = batch["label"][rows]
            if not len(labels):
                continue
            images = view.batch(batch.to(world.device))["image"][rows.to(world.device)]
            told = [logits.argmax(dim=1).cpu() for logits in objective.logits(images).values()]
            right = [int((head == labels).sum()) for head in told]
            tally += [*right, len(labels), int((labels < 0).sum())]
        *right_of_all, total, unlabelled = world.sum(tally)
        if unlabelled or not total:
            raise UserError(
                f"data {dataset.path}: {int(unlabelled):,} of {int(total):,} samples to judge by have no label (.cls)"
            )
        return {head: float(right / total) for head, right in zip(heads, right_of_all, strict=True)}


def exam_view(view: PlainImage, dataset: Dataset) -> PlainImage:
    """The papers' central crop; images of the network's own size are taken whole."""
    if dataset.facts()["image_size"] == (view.image_size, view.image_size):
        return view
    return view.model_copy(update={"shorter_side": round(view.image_size * _ZOOM)})


def accumulation(global_batch: int, micro_step: int) -> int:
    """The fewest micro steps of at most `micro_step` samples.

    >>> accumulation(16_384, 2_048)
    8
    """
    return next(a for a in range(-(-global_batch // micro_step), global_batch + 1) if global_batch % a == 0)
