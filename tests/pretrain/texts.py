"""Rows of several documents made by hand, for tests of text networks and objectives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipelines.batch import Batch
from pretrain.objective import DataFacts

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCABULARY = 40
FACTS = DataFacts(vocabulary_size=VOCABULARY, row_tokens=16, special_tokens=SPECIAL)
TINY = {
    "bart": {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    },
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "opt": {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}  # fmt: skip
TINY["mbart"] = TINY["bart"]


def document(length: int, seed: int) -> Tensor:
    """(length,) ordinary tokens."""
    return torch.randint(5, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def packed(rows: Sequence[Sequence[Tensor]], length: int, prefix: str = "") -> dict[str, Tensor]:
    """Fields of rows of documents, padded to `length`; `prefix` is "", "source_" or "target_"."""
    tokens = torch.full((len(rows), length), SPECIAL["pad"])
    attention, positions = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for row, documents in enumerate(rows):
        start = 0
        for number, part in enumerate(documents, start=1):
            place = slice(start, start + len(part))
            tokens[row, place], attention[row, place] = part, number
            positions[row, place] = torch.arange(len(part))
            start += len(part)
    name = prefix.rstrip("_") or "tokens"
    return {name: tokens, f"{prefix}attention": attention, f"{prefix}positions": positions}


def batch_of(**fields: Tensor) -> Batch:
    """A batch of these fields, every row with weight."""
    count = len(next(iter(fields.values())))
    numbers = torch.arange(count)
    return Batch(fields, tuple(map(str, range(count))), numbers, torch.ones(count), numbers)
