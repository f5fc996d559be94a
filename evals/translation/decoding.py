"""Beam search over a test set, on one rank or many, with the same result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pretrain.distributed import World


@dataclass(frozen=True)
class Search:
    """How hypotheses are found.

    Attributes:
        start: token that a translation begins with.
        end: token that ends it.
        pad: token that fills.
        max_tokens: of a translation, its end included.
        beams: hypotheses that are kept.
        length_penalty: exponent of the length that scores are divided by.
        at_once: sentences side by side.
    """

    start: int
    end: int
    pad: int
    max_tokens: int
    beams: int
    length_penalty: float
    at_once: int


def translate(
    network: PreTrainedModel, sentences: Sequence[np.ndarray], search: Search, world: World
) -> list[np.ndarray]:
    """Translations of token ids, in the order of `sentences`; the same on every rank.

    Batches are made of sentences of like length before they are dealt to the ranks, so that what stands beside a
    sentence, and with it the last bits of its numbers, does not depend on how many ranks there are.

    Args:
        sentences: (n,) tokens each, as the encoder reads them.
    """
    order = np.argsort([-len(sentence) for sentence in sentences], kind="stable")
    batches = [order[first : first + search.at_once] for first in range(0, len(order), search.at_once)]
    own = {
        int(place): tokens
        for batch in batches[world.rank :: world.world_size]
        for place, tokens in zip(
            batch, _translate(network, [sentences[i] for i in batch], search, world.device), strict=True
        )
    }
    found: dict[int, np.ndarray] = {}
    for part in world.gather_object(own):
        found.update(part)
    return [found[place] for place in range(len(sentences))]


@torch.inference_mode()
def _translate(
    network: PreTrainedModel, sentences: Sequence[np.ndarray], search: Search, device: torch.device
) -> list[np.ndarray]:
    tokens, seen = padded(sentences, search.pad, device)
    model: Any = network
    written: Tensor = model.generate(
        input_ids=tokens,
        attention_mask=seen,
        num_beams=search.beams,
        do_sample=False,
        length_penalty=search.length_penalty,
        early_stopping=search.beams > 1,
        max_new_tokens=search.max_tokens,
        decoder_start_token_id=search.start,
        bos_token_id=search.start,
        eos_token_id=search.end,
        pad_token_id=search.pad,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
    )
    return [_until(row, search.end) for row in written[:, 1:].cpu().numpy()]


def padded(sentences: Sequence[np.ndarray], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens (B, S) and what is no padding (B, S), int64."""
    longest = max(len(sentence) for sentence in sentences)
    tokens = torch.full((len(sentences), longest), pad, dtype=torch.int64)
    seen = torch.zeros_like(tokens)
    for row, sentence in enumerate(sentences):
        tokens[row, : len(sentence)] = torch.from_numpy(np.asarray(sentence, np.int64))
        seen[row, : len(sentence)] = 1
    return tokens.to(device), seen.to(device)


def _until(row: np.ndarray, end: int) -> np.ndarray:
    """The tokens in front of the first `end`."""
    ends = np.flatnonzero(row == end)
    return row[: ends[0]] if len(ends) else row
