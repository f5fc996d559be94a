"""Where a network looks while it writes: attention as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from pretrain.objectives.translation import Translation

CELL = 18
FONT_SIZE = 13
INK, PAPER = (20, 20, 20), (255, 255, 255)
SHADE = np.array([16, 78, 139], np.float64)


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


def alignment(found: Alignment) -> np.ndarray:
    """(H, W, 3) uint8: a row a token written, a column a token read; dark where it looked."""
    font = ImageFont.load_default(FONT_SIZE)
    left = 8 + max(int(font.getlength(word)) for word in found.target)
    top = 8 + max(int(font.getlength(word)) for word in found.source)
    height, width = top + CELL * len(found.target) + 4, left + CELL * len(found.source) + 4
    page = Image.new("RGB", (width, height), PAPER)
    weights = np.asarray(found.weights, np.float64)
    shades = 255 - (255 - SHADE) * (weights / max(weights.max(), 1e-9))[..., None]  # (T, S, 3)
    grid = np.repeat(np.repeat(shades.astype(np.uint8), CELL - 1, axis=0), CELL - 1, axis=1)
    for row in range(len(found.target)):
        for column in range(len(found.source)):
            cell = grid[row * (CELL - 1) : (row + 1) * (CELL - 1), column * (CELL - 1) : (column + 1) * (CELL - 1)]
            page.paste(Image.fromarray(cell), (left + CELL * column, top + CELL * row))
    pen = ImageDraw.Draw(page)
    for row, word in enumerate(found.target):
        pen.text((left - 4, top + CELL * row + CELL // 2), word, INK, font, anchor="rm")
    words = Image.new("RGB", (top - 4, CELL * len(found.source)), PAPER)
    pen = ImageDraw.Draw(words)
    for column, word in enumerate(found.source):
        pen.text((0, CELL * column + CELL // 2), word, INK, font, anchor="lm")
    page.paste(words.rotate(90, expand=True), (left, 0))
    return np.asarray(page)
