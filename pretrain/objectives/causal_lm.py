"""Causal language model: say which token comes next, from what stands before it in its document.

Source: Zhang 2022, arXiv:2205.01068, section 2 (OPT).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from data_pipelines.base import Strict, parse
from data_pipelines.batch import Batch
from data_pipelines.views.tokens import NOT_ASKED, PlainTokens
from pretrain.energies import cross_entropy
from pretrain.networks.causal import causal_network, hidden_states, vocabulary_logits
from pretrain.networks.documents import mean_of_tokens
from pretrain.networks.flops import forward_flops
from pretrain.objective import DataFacts, Encoder, Objective, Output
from pretrain.objectives.texts import preprocessor, token_settings


class CausalLanguageModel(Objective):
    """Write on, token by token; documents that share a row do not see each other."""

    class Config(Strict):
        """A decoder."""

        network: dict[str, Any] = Field(default_factory=lambda: {"architecture": "opt"})
        """`architecture: opt` and keys of its transformers config."""

    may_change = frozenset({"max_tokens"})

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        self.view: PlainTokens = parse(PlainTokens, token_settings(facts), "recipe objective")
        longest = self.view.row_tokens
        self.network = causal_network(config.network, "recipe objective, network", facts, longest=longest)

    def rows(self, batch: Batch) -> Tensor:
        """(), the tokens asked for: all but the first of each document."""
        return (_labels(batch) != NOT_ASKED).sum()

    def forward(self, batch: Batch) -> Output:
        """See `Objective.forward`; rows are the tokens asked for, embeddings mean hidden states of a text row."""
        states = self._states(batch)  # (B, N, D)
        labels = _labels(batch)
        asked = labels != NOT_ASKED
        loss = cross_entropy(vocabulary_logits(self.network, states[asked]), labels[asked]).sum()
        return Output(
            loss=loss,
            # of this micro batch, so that its mean over several lies a little above the exponential of the mean loss
            logs={"perplexity": (loss.detach() / asked.sum().clamp(min=1)).exp()},
            embeddings=mean_of_tokens(states, batch["attention"]).detach(),
        )

    def encoder(self) -> Encoder:
        """Network and vocabulary head: `AutoModel` opens the network, `AutoModelForCausalLM` both."""
        return Encoder(self.network, "network.", preprocessor(self.facts))

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) mean hidden states of rows made by `PlainTokens`."""
        return mean_of_tokens(self._states(batch), batch["attention"])

    def flops_per_sample(self) -> float:
        """Three forward passes of a text row of one document."""
        length, layers = self.view.row_tokens, self.network.config.num_hidden_layers
        # layers are alike: counting those of the largest networks one by one takes seconds
        one, two = (self._forward_flops(length, count) for count in (1, 2))
        return 3 * (one + (layers - 1) * (two - one))

    def _forward_flops(self, length: int, num_layers: int) -> float:
        """Of one row through a network of fewer layers and through the vocabulary."""
        config = copy.deepcopy(self.network.config)
        config.num_hidden_layers = num_layers
        with torch.device("meta"):
            twin = type(self.network)(config)
            row = torch.empty(1, length, dtype=torch.int64)
            asked = torch.empty(length - 1, twin.lm_head.in_features)
        body = forward_flops(lambda: hidden_states(twin, row, row, row))
        return body + forward_flops(lambda: vocabulary_logits(twin, asked))

    def _states(self, batch: Batch) -> Tensor:
        return hidden_states(self.network, batch["tokens"], batch["attention"], batch["positions"])


def _labels(batch: Batch) -> Tensor:
    """(B, N) int64, the token that follows in the same document; -100 where none does, and in rows of weight 0."""
    tokens, documents = batch["tokens"], batch["attention"]
    labels = torch.full_like(tokens, NOT_ASKED)
    follows = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0) & (batch.weight > 0)[:, None]
    labels[:, :-1] = torch.where(follows, tokens[:, 1:], NOT_ASKED)
    return labels
