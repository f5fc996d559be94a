"""Fine-tuning on pairs, and what the fine-tuned network makes of the test set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers

from data_pipelines.base import digest_of, parse
from data_pipelines.shards import Dataset
from evals.controls import RANDOM_INIT_SEED
from evals.features import cache_folder
from evals.finetuning import control_taught, loader_workers, taught
from evals.protocol import EvalData
from evals.translation.alignment import Alignment, align
from evals.translation.decoding import Search, translate
from evals.translation.sentences import Direction, Pairs, decoded
from evals.workplace import Workplace
from pretrain.config import Recipe
from pretrain.export import LoadedEncoder
from pretrain.objective import Encoder, Objective
from pretrain.objectives.translation import Translation

if TYPE_CHECKING:
    from evals.translation import Config

ALIGNED = 2
"""Sentences whose attention is kept."""
LONGEST_ALIGNED = 24
"""Tokens, so that they can be read in a picture."""
_STEPS_BETWEEN_LINES = 50


@dataclass(frozen=True)
class Taught:
    """What a fine-tuned network wrote.

    Attributes:
        translations: of the test set, in file order.
        alignments: where it looked, of a few sentences.
    """

    translations: list[str]
    alignments: list[Alignment]

    @classmethod
    def from_json(cls, text: str) -> Taught:
        """What `to_json` wrote."""
        plain = json.loads(text)
        return cls(plain["translations"], [Alignment(**one) for one in plain["alignments"]])

    def to_json(self) -> str:
        """For a file."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)


@dataclass(frozen=True)
class Lesson:
    """One direction, one budget: exports are taught by it and translate the test set."""

    data: EvalData
    direction: Direction
    config: Config
    place: Workplace

    def teach_control(self, encoder: LoadedEncoder, protocol: str, extra: Sequence[str]) -> Taught:
        """The same network untrained, taught likewise; remembered, for it does not depend on the run."""
        network = [encoder.network(), transformers.__version__, RANDOM_INIT_SEED]
        sets = [Dataset.open(path).digest for path in extra]
        content = [protocol, self.config.settings(), self.data.digests(), network, *sets]
        where = cache_folder("controls") / digest_of(["control", *content])
        drawn = Encoder(encoder.random_init(RANDOM_INIT_SEED).module, "", encoder.preprocessor)
        teach = partial(self._teach, where, extra)
        return Taught.from_json(control_taught(drawn, where, self.place, teach))

    def teach(self, export: Path, where: Path, extra: Sequence[str] = ()) -> Taught:
        """Fine-tune and translate, the first time.

        Args:
            where: folder of the run; what it wrote is kept beside it.
            extra: packed sets to learn from besides the training set.
        """
        return Taught.from_json(self._teach(where, extra, export))

    def _teach(self, where: Path, extra: Sequence[str], export: Path) -> str:
        return taught(self.recipe(export, where, extra), self.place, self._examine)

    def _examine(self, objective: Objective) -> str:
        """The test set translated, as JSON."""
        assert isinstance(objective, Translation)
        pairs = Pairs.read(self.data.test, self.direction)
        sources = [objective.view.source_of(sample) for sample in pairs.samples]
        written = translate(objective.network, sources, self.search(objective), self.place.world)
        short = [i for i, (s, t) in enumerate(zip(sources, written, strict=True)) if _fits(s) and _fits(t)]
        chosen = short[:: max(1, len(short) // ALIGNED)][:ALIGNED]
        alignments = [align(objective, sources[i], written[i], pairs.tokenizer) for i in chosen]
        return Taught(decoded(pairs.tokenizer, written), alignments).to_json()

    def recipe(self, export: Path, where: Path, extra: Sequence[str]) -> Recipe:
        """The run that teaches."""
        config, train = self.config, self.data.train
        on_gpu = self.place.world.device.type == "cuda"
        tree: dict[str, Any] = {
            "name": where.name,
            "runs": str(where.parent),
            "objective": {
                "name": "translation",
                "network": str(export),
                "source": self.direction.source,
                "target": self.direction.target,
                "max_source_tokens": config.max_tokens,
                "max_target_tokens": config.max_tokens,
                "label_smoothing": config.label_smoothing,
                "decoder_layers": config.decoder_layers,
            },
            "data": {"sources": self.sources(extra), "workers": loader_workers(train.num_samples)},
            "train": {
                "global_batch": config.global_batch,
                "accumulation": config.accumulation,
                "steps": config.steps,
            },
            "optim": {
                "base_lr": config.learning_rate,
                "lr_scaling": "none",
                "betas": [0.9, 0.98],
                "weight_decay": 0.01,
                "warmup": config.warmup,
                "clip_norm": 1.0,
            },
            "engine": {"zero_stage": 1, "precision": "bf16" if on_gpu else "fp32"},
            "checkpoint": {"every": config.checkpoint_every, "keep_last": 1},
            "monitor": {"log_every": _STEPS_BETWEEN_LINES, "tensorboard": False},
        }
        return parse(Recipe, tree, "eval translation")

    def sources(self, extra: Sequence[str]) -> list[dict[str, Any]]:
        """The training set and what is learned from besides, each by its size, but once in a batch at least."""
        sets = [self.data.train, *(Dataset.open(path) for path in extra)]
        least = 2 * sum(dataset.num_samples for dataset in sets) / self.config.global_batch
        return [{"path": dataset.path, "weight": max(dataset.num_samples, least)} for dataset in sets]

    def search(self, objective: Translation) -> Search:
        """Beam search as it was asked for."""
        view, config = objective.view, self.config
        return Search(
            start=view.start(view.target),
            end=view.special_tokens["sep"],
            pad=view.special_tokens["pad"],
            max_tokens=config.max_tokens,
            beams=config.beams,
            length_penalty=config.length_penalty,
            at_once=config.sentences_at_once,
        )


def _fits(tokens: np.ndarray) -> bool:
    return 4 <= len(tokens) <= LONGEST_ALIGNED
