"""Where a network looks while it writes: the attention of its decoder, as numbers; the report draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from pretrain.objectives.translation import Translation


@dataclass(frozen=True)
class Alignment:
    """Attention of one sentence.

    Attributes:
        source: tokens read, as text.
        target: tokens written, as text.
        weights: (len(target), len(source)) as nested lists, each row sums to 1.
    """

    source: list[str]
    target: list[str]
    weights: list[list[float]]


@torch.inference_mode()
def align(objective: Translation, source: np.ndarray, written: np.ndarray, tokenizer: Tokenizer) -> Alignment:
    """Cross-attention, mean over heads and layers, of a sentence and its translation; the network stays without sdpa.

    Args:
        source: (S,) tokens as the encoder read them.
        written: (T,) tokens of the translation, without start and end.
    """
    network: Any = objective.network
    device = next(network.parameters()).device
    given = np.concatenate([[objective.view.start(objective.view.target)], written[:-1]])
    for part in (part for part in network.modules() if isinstance(part, PreTrainedModel)):
        part.set_attn_implementation("eager")  # the other paths keep no weights
    output = network(
        input_ids=torch.from_numpy(np.asarray(source, np.int64))[None].to(device),
        decoder_input_ids=torch.from_numpy(np.asarray(given, np.int64))[None].to(device),
        output_attentions=True,
        use_cache=False,
    )
    weights = torch.stack([layer[0].float().mean(dim=0) for layer in output.cross_attentions]).mean(dim=0)  # (T, S)
    return Alignment(
        source=[_shown(tokenizer, int(token)) for token in source],
        target=[_shown(tokenizer, int(token)) for token in written],
        weights=[[round(float(value), 4) for value in row] for row in weights.cpu()],
    )


def _shown(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token]).strip() or str(tokenizer.id_to_token(token))
