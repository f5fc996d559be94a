"""The contract every objective fulfils: what to pull down, and what keeps the rest up.

An objective knows nothing of ranks, ZeRO, files or schedules. It is a `torch.nn.Module` that

* names the `view` it wants of a sample (`data_pipelines.views`),
* turns a batch into an `Output`,
* names the network that users keep (`encoder`), and
* draws what it does (`sketch`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data_pipelines.base import Strict, UserError, parse
from data_pipelines.batch import Batch
from data_pipelines.views import View


@dataclass(frozen=True)
class DataFacts:
    """What a packed set tells an objective before any sample is read.

    Attributes:
        channels: of its images; None for text.
        image_size: (height, width) of its images when they all agree, else None.
        vocabulary_size: of its tokenizer; None for images.
        row_tokens: tokens a packed text row; None for images.
        special_tokens: ids by name ("mask", "pad", "cls", "sep", "unk", "lang:de", "sentinel:0").
        tokenizer_digest: of its tokenizer.json; None for images.
        languages: of its text, where the set names them; of a mixture, all of them.
        frames: of every clip; None where a sample is no clip.
        frames_per_second: of its clips.
        label_frames: frames that are labelled in every clip.
        stills: some sets of the mixture hold single images beside the clips of others.
    """

    channels: int | None = None
    image_size: tuple[int, int] | None = None
    vocabulary_size: int | None = None
    row_tokens: int | None = None
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    tokenizer_digest: str | None = None
    languages: tuple[str, ...] = ()
    frames: int | None = None
    frames_per_second: float | None = None
    label_frames: tuple[int, ...] = ()
    stills: bool = False

    @classmethod
    def from_plain(cls, tree: Mapping[str, Any]) -> DataFacts:
        """Facts from what `asdict` gave, after a journey through JSON."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Output:
    """What a forward pass of one micro batch gives.

    Attributes:
        loss: (), the SUM over this rank's rows; rows of weight 0 count nothing.
        logs: detached scalars () worth a curve, means over the rank's rows.
        embeddings: (B, D) detached, what collapse monitors look at; None where there are none.
        energies: detached per-row energies, "positive" (B,) and "contrastive" (B,), where they exist.
    """

    loss: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None
    energies: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """An EMA copy that the engine keeps: fp32, on the partition each rank holds.

    Attributes:
        source: attribute path of the trained module, e.g. "encoder".
        target: attribute path of its frozen twin (same architecture, requires_grad False).
        momentum: of the twin, as a function of training progress in [0, 1].
    """

    source: str
    target: str
    momentum: Callable[[float], float]


@dataclass(frozen=True)
class Encoder:
    """What an export saves.

    Attributes:
        module: a `transformers.PreTrainedModel`, or a network of our own.
        prefix: its parameters' prefix inside the objective, e.g. "encoder.".
        preprocessor: plain data; what an image or a text needs before the network sees it
            (see `pretrain.export`).
    """

    module: nn.Module
    prefix: str
    preprocessor: Mapping[str, Any]


class Objective(nn.Module, ABC):
    """Base of all objectives; see the module's text and `docs/adding.md`."""

    class Config(Strict):
        """Each objective has its own, next to its code."""

    coupling: ClassVar[Literal["sample", "micro"]] = "sample"
    """`micro`: the loss of a row depends on the other rows of the micro step, over all ranks."""

    targets: tuple[Target, ...] = ()
    lr_factors: Mapping[str, float] = {}
    """Factors on the learning rate by prefix of parameter names; what has none is trained at the schedule's own."""
    view: View
    takes_stills_beside_clips: ClassVar[bool] = False
    """Whether one mixture may hold sets of images and sets of clips."""
    may_change: ClassVar[frozenset[str]] = frozenset()
    """Settings of the view that may be others at a stage of the curriculum: `image_size`, `max_tokens`."""

    def view_at(self, **settings: int) -> View:
        """The view at a stage of the curriculum.

        Raises:
            UserError: the network cannot take what such a view shows.
        """
        refused = sorted(set(settings) - self.may_change)
        if refused:
            able = f"; it can change {', '.join(sorted(self.may_change))}" if self.may_change else ""
            raise UserError(f"recipe curriculum: this objective keeps one {refused[0]} for a whole run{able}")
        assert isinstance(self.view, Strict)
        return parse(type(self.view), {**self.view.model_dump(), **settings}, "recipe curriculum")

    def rows(self, batch: Batch) -> Tensor:
        """(), how many rows the loss of `batch` sums over: samples here, masked tokens elsewhere.

        Known before the forward pass, so that the mean over the global batch does not depend on
        ranks or accumulation: the engine divides by the rows of all ranks and micro steps.
        """
        return batch.weight.sum()

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Loss and what to watch of one micro batch."""

    def after_step(self, step: int) -> None:
        """Called on every rank after optimizer step `step` was applied (queues, centres)."""

    def after_skip(self) -> None:
        """Called on every rank instead of `after_step` when a bad step was dropped: forget what its forwards noted."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """The network an export saves."""

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """(B, D) features of a batch made by `PlainImage` of this objective's preprocessor, for online probes."""

    @torch.no_grad()
    def sketch(self, batch: Batch) -> dict[str, np.ndarray]:
        """Pictures for the report by name, each (H, W, 3) uint8; empty where there is nothing to see."""
        return {}

    @abstractmethod
    def flops_per_sample(self) -> float:
        """Forward and backward FLOPs a sample, matmuls only; 6 x trained parameters x tokens unless better known."""
