"""Masked language model: say which tokens stood where some were hidden.

Source: Devlin 2018, arXiv:1810.04805, section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from data_pipelines.base import Strict, parse
from data_pipelines.batch import Batch
from data_pipelines.views.masks import hidden_count
from data_pipelines.views.tokens import NOT_ASKED, MaskedTokens
from pretrain.energies import cross_entropy
from pretrain.networks.documents import mean_of_tokens
from pretrain.networks.flops import forward_flops
from pretrain.networks.text import hidden_states, masked_lm_network, vocabulary_logits
from pretrain.objective import DataFacts, Encoder, Objective, Output
from pretrain.objectives.texts import preprocessor, token_settings


class MaskedLanguageModel(Objective):
    """Restore hidden tokens from both sides; documents that share a row do not see each other."""

    class Config(Strict):
        """A BERT-like network and how much is hidden from it."""

        encoder: dict[str, Any] = Field(default_factory=lambda: {"architecture": "bert"})
        """`architecture: bert | roberta | modernbert` and keys of its transformers config."""
        mask_ratio: float = Field(0.15, gt=0, lt=1)
        """Share of a row's tokens that is asked for."""
        mask_share: float = Field(0.8, ge=0, le=1)
        """Share of those that the mask token stands for."""
        random_share: float = Field(0.1, ge=0, le=1)
        """Share of those that another token stands for; the rest stays as it is."""
        whole_word: bool = False
        """All tokens of a word are asked for, or none."""
        unpadded: bool = False
        """Read documents one by one instead of rows under a mask: the same numbers, see `networks.unpadded`."""

    may_change = frozenset({"max_tokens"})

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        where = "recipe objective, encoder"
        self.network = masked_lm_network(config.encoder, where, facts, unpadded=config.unpadded)
        shares = config.model_dump(exclude={"encoder", "unpadded"})
        self.view: MaskedTokens = parse(MaskedTokens, {**token_settings(facts), **shares}, "recipe objective")

    def rows(self, batch: Batch) -> Tensor:
        """(), the tokens asked for."""
        return _asked(batch).sum()

    def forward(self, batch: Batch) -> Output:
        """See `Objective.forward`; rows are the tokens asked for, embeddings mean hidden states of a text row."""
        states = hidden_states(self.network, batch["tokens"], batch["attention"], batch["positions"])  # (B, N, D)
        asked = _asked(batch)
        # the vocabulary is the largest product here: only the asked tokens enter it
        logits = vocabulary_logits(self.network, states[asked])  # (M, K)
        targets = batch["targets"][asked]
        right = (logits.argmax(dim=-1) == targets).float()
        return Output(
            loss=cross_entropy(logits, targets).sum(),
            logs={"token_accuracy": right.sum() / asked.sum().clamp(min=1)},
            embeddings=mean_of_tokens(states, batch["attention"]).detach(),
        )

    def encoder(self) -> Encoder:
        """Network and vocabulary head: `AutoModel` opens the network, `AutoModelForMaskedLM` both."""
        return Encoder(self.network, "network.", preprocessor(self.facts))

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) mean hidden states of rows made by `PlainTokens`."""
        states = hidden_states(self.network, batch["tokens"], batch["attention"], batch["positions"])
        return mean_of_tokens(states, batch["attention"])

    def flops_per_sample(self) -> float:
        """Three forward passes of a text row that is one document, the vocabulary for the asked tokens only."""
        num_tokens = self.view.row_tokens
        with torch.device("meta"):
            twin = masked_lm_network(self.config.encoder, "recipe objective, encoder", self.facts)
            row = torch.empty(1, num_tokens, dtype=torch.int64)
            states = torch.empty(hidden_count(num_tokens, self.config.mask_ratio), twin.config.hidden_size)
        body = forward_flops(lambda: hidden_states(twin, row, row, row))
        return 3 * (body + forward_flops(lambda: vocabulary_logits(twin, states)))


def _asked(batch: Batch) -> Tensor:
    """(B, N) bool."""
    return (batch["targets"] != NOT_ASKED) & (batch.weight > 0)[:, None]
