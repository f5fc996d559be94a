"""Denoising sequence-to-sequence model: read a spoilt document, write it as it was, or what is missing.

Source: Lewis 2019, arXiv:1910.13461 (BART); Liu 2020, arXiv:2001.08210 (mBART); Raffel 2019, arXiv:1910.10683 (T5).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from data_pipelines.base import Strict, parse
from data_pipelines.batch import Batch
from data_pipelines.views.denoising import Denoising
from data_pipelines.views.span_corruption import SpanCorruption
from pretrain.energies import cross_entropy
from pretrain.networks.documents import mean_of_tokens
from pretrain.networks.flops import forward_flops
from pretrain.networks.seq2seq import encode, forward, seq2seq_network, vocabulary_logits
from pretrain.objective import DataFacts, Encoder, Objective, Output
from pretrain.objectives.texts import asked, empty_pairs, preprocessor, token_settings


class Infilling(Strict):
    """Spans of words become one mask token each, sentences change places; the whole document is asked for."""

    name: Literal["infilling"] = "infilling"
    mask_ratio: float = Field(0.3, gt=0, lt=1)
    """Share of a document's words that is hidden."""
    mean_span: float = Field(3.0, gt=0)
    """Words a span, the mean of a Poisson distribution."""
    permute_sentences: bool = True

    def view(self, facts: DataFacts) -> Denoising:
        """What spoils the rows."""
        return parse(Denoising, {**token_settings(facts), **self.model_dump(exclude={"name"})}, "recipe objective")

    def lengths(self, row_tokens: int) -> tuple[float, float]:
        """Tokens read and tokens written of a row, on average."""
        return row_tokens * (1 - self.mask_ratio + self.mask_ratio / self.mean_span), row_tokens


class Spans(Strict):
    """Spans of tokens become a sentinel each; the sentinels and what they stand for are asked for."""

    name: Literal["spans"]
    noise_ratio: float = Field(0.15, gt=0, lt=1)
    """Share of a row's text that is cut out."""
    mean_span: float = Field(3.0, ge=1)
    """Tokens a span, on average."""

    def view(self, facts: DataFacts) -> SpanCorruption:
        """What spoils the rows."""
        return parse(SpanCorruption, {**token_settings(facts), **self.model_dump(exclude={"name"})}, "recipe objective")

    def lengths(self, row_tokens: int) -> tuple[float, float]:
        """Tokens read and tokens written of a row, on average."""
        spans = row_tokens * self.noise_ratio / self.mean_span
        return row_tokens * (1 - self.noise_ratio) + spans, row_tokens * self.noise_ratio + spans


class DenoisingSeq2Seq(Objective):
    """An encoder-decoder that mends text; documents that share a row do not see each other."""

    class Config(Strict):
        """An encoder-decoder and what is done to the text that it reads."""

        network: dict[str, Any] = Field(default_factory=lambda: {"architecture": "bart"})
        """`architecture: bart | mbart | t5` and keys of its transformers config."""
        noise: Infilling | Spans = Field(default_factory=Infilling, discriminator="name")
        """`name: infilling` (BART, mBART) or `name: spans` (T5), and its keys."""

    may_change = frozenset({"max_tokens"})

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        self.view: Denoising | SpanCorruption = config.noise.view(facts)
        longest = self.view.row_tokens
        self.network = seq2seq_network(config.network, "recipe objective, network", facts, longest=longest)

    def rows(self, batch: Batch) -> Tensor:
        """(), the tokens asked for."""
        return asked(batch).sum()

    def forward(self, batch: Batch) -> Output:
        """See `Objective.forward`; rows are the tokens asked for, embeddings mean states of the encoder."""
        states, chosen = forward(self.network, batch), asked(batch)
        logits, labels = vocabulary_logits(self.network, states.target[chosen]), batch["labels"][chosen]  # (M, K), (M,)
        right = (logits.argmax(dim=-1) == labels).float()
        return Output(
            loss=cross_entropy(logits, labels).sum(),
            logs={"token_accuracy": right.sum() / chosen.sum().clamp(min=1)},
            embeddings=mean_of_tokens(states.source, batch["source_attention"]).detach(),
        )

    def encoder(self) -> Encoder:
        """The whole network: `AutoModel` opens it without its vocabulary head, `AutoModelForSeq2SeqLM` with it."""
        return Encoder(self.network, "network.", preprocessor(self.facts))

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) mean states of the encoder over rows made by `PlainTokens`."""
        states = encode(self.network, batch["tokens"], batch["attention"], batch["positions"])
        return mean_of_tokens(states, batch["attention"])

    def flops_per_sample(self) -> float:
        """Three forward passes of a text row of average lengths, which is one document."""
        read, written = (round(length) for length in self.config.noise.lengths(self.view.row_tokens))
        with torch.device("meta"):
            twin = type(self.network)(self.network.config)
            batch = empty_pairs(source=read, target=written)
            states = torch.empty(written, twin.config.hidden_size)
        body = forward_flops(lambda: forward(twin, batch))
        return 3 * (body + forward_flops(lambda: vocabulary_logits(twin, states)))
