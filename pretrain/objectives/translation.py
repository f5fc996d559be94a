"""Translation: read a sentence of one language, write it in another.

Not self-supervised: this is how a text network is judged (`evals.translation`), as a run like any other, with its
order, ranks and resume.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from data_pipelines.base import Strict, UserError, parse
from data_pipelines.batch import Batch
from data_pipelines.views.parallel import ParallelText
from data_pipelines.views.tokens import NOT_ASKED
from pretrain.energies import cross_entropy, smoothed
from pretrain.networks.documents import mean_of_tokens
from pretrain.networks.flops import forward_flops
from pretrain.networks.translator import encoder_states, target_states, translator, vocabulary_logits
from pretrain.networks.vocabulary import vocabulary
from pretrain.objective import DataFacts, Encoder, Objective, Output
from pretrain.objectives.texts import empty_pairs, preprocessor


class Translation(Objective):
    """Cross-entropy of the next token of a translation, smoothed over the vocabulary."""

    class Config(Strict):
        """A network and a direction."""

        network: str | dict[str, Any]
        """Folder of an export, an encoder-decoder's or an encoder's; or `architecture: bart | mbart | t5` and keys."""
        source: str
        """Language read; one of the data's."""
        target: str
        """Language written."""
        max_source_tokens: int = Field(128, ge=4)
        """Longer sentences are cut."""
        max_target_tokens: int = Field(128, ge=4)
        label_smoothing: float = Field(0.1, ge=0, lt=1)
        """Share of the target that is spread over the whole vocabulary."""
        decoder_layers: int = Field(6, gt=0)
        """Of the fresh decoder, where the export is an encoder alone."""

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        for language in (config.source, config.target):
            if language not in facts.languages:
                known = ", ".join(facts.languages) or "none: it is no parallel set (`thalweg data pack parallel`)"
                raise UserError(f"recipe objective: the data has no language {language!r}; it has {known}")
        chosen = config.model_dump(include={"source", "target", "max_source_tokens", "max_target_tokens"})
        known_tokens = {
            "vocabulary_size": vocabulary(facts)["vocab_size"],
            "special_tokens": dict(facts.special_tokens),
        }
        self.view: ParallelText = parse(ParallelText, {**chosen, **known_tokens}, "recipe objective")
        self.network = translator(
            config.network,
            "recipe objective, network",
            facts,
            longest=max(config.max_source_tokens, config.max_target_tokens),
            decoder_layers=config.decoder_layers,
        )

    def rows(self, batch: Batch) -> Tensor:
        """(), the tokens to write."""
        return _asked(batch).sum()

    def forward(self, batch: Batch) -> Output:
        """See `Objective.forward`; rows are the tokens to write, `surprise` is the loss without smoothing, in nats."""
        chosen = _asked(batch)
        logits = vocabulary_logits(self.network, target_states(self.network, batch)[chosen])  # (M, K)
        labels = batch["labels"][chosen]  # (M,)
        count = chosen.sum().clamp(min=1)
        surprise = cross_entropy(logits, labels)  # (M,)
        right = (logits.argmax(dim=-1) == labels).float()
        return Output(
            loss=smoothed(surprise, logits, labels, self.config.label_smoothing).sum(),
            logs={"token_accuracy": right.sum() / count, "surprise": surprise.detach().sum() / count},
        )

    def encoder(self) -> Encoder:
        """The whole network; `AutoModelForSeq2SeqLM` opens it."""
        return Encoder(self.network, "network.", {**preprocessor(self.facts), "languages": list(self.facts.languages)})

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) mean states of the encoder over rows made by `PlainTokens`."""
        states = encoder_states(self.network, batch["tokens"], batch["attention"], batch["positions"])
        return mean_of_tokens(states, batch["attention"])

    def flops_per_sample(self) -> float:
        """Three forward passes of a pair of the greatest lengths."""
        read, written = self.config.max_source_tokens, self.config.max_target_tokens
        twin = copy.deepcopy(self.network).to("meta")
        with torch.device("meta"):
            batch = empty_pairs(source=read, target=written)
            states = torch.empty(written, _width(twin))
        body = forward_flops(lambda: target_states(twin, batch))
        return 3 * (body + forward_flops(lambda: vocabulary_logits(twin, states)))


def _asked(batch: Batch) -> Tensor:
    """Which `labels` (R, T) are to be written, bool; those of pairs without weight are not, see `sharing_rows`."""
    return batch["labels"] != NOT_ASKED


def _width(network: Any) -> int:
    """Of the decoder's states."""
    config = getattr(network.config, "decoder", None) or network.config
    return int(config.hidden_size)
