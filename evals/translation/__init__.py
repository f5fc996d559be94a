"""Translation: a text network is fine-tuned on pairs of sentences, translates a test set, and is scored by sacrebleu.

An encoder-decoder is fine-tuned as it is, an encoder alone is given a fresh decoder. The fine-tuning is a run of the
pretraining engine below the eval's folder: same order, ranks, resume. The controls are the same training from the drawn
network (from scratch, `random_init`), and the source handed through untranslated (`raw`).

Scores are those of sacrebleu 2, on raw text; the signatures stand in the result's details. Numbers of other tokenizers,
or of tokenized references, are other numbers (Post 2018, arXiv:1804.08771).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import Field, model_validator

from data_pipelines.base import digest_of
from evals.protocol import EvalConfig, EvalData, Scores
from evals.translation.back_translation import back_translated
from evals.translation.lesson import Lesson, Taught
from evals.translation.scoring import Tokenization, by_length, scores, signatures
from evals.translation.sentences import Pairs, languages, lines_of
from evals.workplace import Workplace
from pretrain.export import LoadedEncoder

PROTOCOL = "translation/1"
SHOWN = 12
"""Sentences in the details."""


class Config(EvalConfig):
    """The fine-tuning and the search; the defaults are for a set of some 30,000 short sentences."""

    source: str | None = None
    """Language read; the first of the training set when unset."""
    target: str | None = None
    """Language written; the second when unset."""
    steps: int = Field(2_000, gt=0)
    """Of the fine-tuning."""
    global_batch: int = Field(128, gt=0)
    """Pairs an optimizer step."""
    accumulation: int = Field(1, gt=0)
    """Micro batches a step."""
    learning_rate: float = Field(5e-4, gt=0)
    """Its peak."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    max_tokens: int = Field(128, ge=4)
    """Longer sentences are cut, on either side."""
    decoder_layers: int = Field(6, gt=0)
    """Of the fresh decoder, where the checkpoint is an encoder alone."""
    beams: int = Field(5, gt=0)
    """Hypotheses that the search keeps."""
    length_penalty: float = Field(1.0)
    """Scores are divided by length to this power."""
    sentences_at_once: int = Field(32, gt=0)
    """Translated side by side; sentences of like length stand together."""
    tokenize: Tokenization = "13a"
    """sacrebleu's tokenizer for BLEU; "none" where the references are tokenized already."""
    monolingual: str | None = None
    """Text of the target language, a sentence a line, to be translated back and learned from too."""
    checkpoint_every: int = Field(500, gt=0)
    """Steps that a killed job loses at most."""

    @model_validator(mode="after")
    def _two_languages(self) -> Config:
        if self.source is not None and self.source == self.target:
            raise ValueError(f"source and target are both {self.source!r}")
        return self

    def settings(self) -> dict[str, Any]:
        """As `EvalConfig.settings`; monolingual text by its content."""
        plain = super().settings()
        if self.monolingual is not None:
            plain["monolingual"] = digest_of(lines_of(self.monolingual))
        return {name: value for name, value in plain.items() if name != "checkpoint_every"}


def run_on_ranks(encoder: LoadedEncoder, data: EvalData, config: Config, place: Workplace) -> Scores:
    """Metrics "bleu" and "chrf" in [0, 100], and "round_trip_bleu": the references through the tokenizer and back."""
    direction = languages(data, config.source, config.target)
    pairs = Pairs.read(data.test, direction)
    lesson = Lesson(data, direction, config, place)
    extra = [] if config.monolingual is None else [back_translated(encoder, lesson, config.monolingual)]
    taught = lesson.teach(encoder.folder, place.folder / "pretrained", extra)
    untrained = lesson.teach_control(encoder, PROTOCOL, extra)
    return Scores(
        metrics={
            **scores(taught.translations, pairs.references, config.tokenize),
            "round_trip_bleu": scores(pairs.round_trip(), pairs.references, config.tokenize)["bleu"],
        },
        controls={
            "raw": scores(pairs.sources, pairs.references, config.tokenize),
            "random_init": scores(untrained.translations, pairs.references, config.tokenize),
        },
        details=_details(pairs, taught, untrained, config),
    )


def _details(pairs: Pairs, taught: Taught, untrained: Taught, config: Config) -> dict[str, Any]:
    """What a reader wants beside two numbers."""
    chosen = range(0, len(pairs), max(1, len(pairs) // SHOWN))[:SHOWN]
    return {
        "direction": f"{pairs.direction.source}-{pairs.direction.target}",
        "signatures": signatures(config.tokenize),
        "by_length": by_length(pairs.sources, taught.translations, pairs.references, config.tokenize),
        "samples": [
            {
                "key": pairs.keys[i],
                "source": pairs.sources[i],
                "reference": pairs.references[i],
                "translation": taught.translations[i],
                "from_scratch": untrained.translations[i],
            }
            for i in chosen
        ],
        "alignments": [asdict(one) for one in taught.alignments],
    }
