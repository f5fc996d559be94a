"""The multi-scale convnet of Luc et al., and the table of models that are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.segmentation_forecasting.windows import INPUTS


@dataclass(frozen=True)
class Model:
    """A row of the paper's tables.

    Attributes:
        reads: frames ("x"), soft maps ("s"), or both.
        writes: likewise.
        at_once: frames foretold in one pass: 1, or 3 ("batch").
        adversarial: whether a discriminator helps to train it.
        finetunes: the model from which it goes on learning through its own forecasts.
    """

    reads: Literal["x", "s", "xs"]
    writes: Literal["x", "s", "xs"]
    at_once: int = 1
    adversarial: bool = False
    finetunes: str | None = None

    @property
    def feeds_itself(self) -> bool:
        """Whether its forecasts can stand among its inputs."""
        return self.reads == self.writes and self.at_once == 1


MODELS = {
    "x2x": Model("x", "x"),
    "s2s": Model("s", "s"),
    "s2s_adv": Model("s", "s", adversarial=True),
    "xs2x": Model("xs", "x"),
    "xs2s": Model("xs", "s"),
    "xs2xs": Model("xs", "xs"),
    "s2s_finetuned": Model("s", "s", finetunes="s2s"),
    "s2s_batch": Model("s", "s", at_once=3),
    "xs2s_batch": Model("xs", "s", at_once=3),
    "xs2xs_batch": Model("xs", "xs", at_once=3),
}
"""By name, as in tables 1 and 2 of Luc 2017; single forecasts are fed back for the mid term where they can be."""


class Forecaster(nn.Module):
    """Two scales that foretell the change from the last input: half the size first, then full size.

    Each is four convolutions of `width`, 2 * `width`, `width` and the output's channels, with ReLU between them: all
    3 x 3 at half size; 5 x 5, 3 x 3, 3 x 3 and 5 x 5 at full size, which also reads the forecast of half the size.

    Departures from the paper, for budgets of hundreds of steps where theirs are millions: the change from the last
    input is foretold, last layers start at zero so that an untrained network copies it, and there is no tanh.

    Source: Luc 2017, arXiv:1703.07684, section 3.2, width 128; their published code.
    """

    def __init__(self, model: Model, channels: int, classes: int, width: int) -> None:
        """Draw it.

        Args:
            channels: of a frame.
            classes: of a soft map.
            width: channels of the first layer.
        """
        super().__init__()
        self.foretold = foretold(model, channels)
        self.at_once = model.at_once
        read = INPUTS * channels_of(model.reads, channels, classes)
        written = model.at_once * channels_of(model.writes, channels, classes)
        self.coarse = _convolutions(read, written, width, (3, 3, 3, 3))
        self.fine = _convolutions(read + written, written, width, (5, 3, 3, 5))

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """Foretell at both scales.

        Args:
            past: (B, 4, C, H, W), frames before soft maps where both are read; H and W even.

        Returns:
            (B, A, C', H / 2, W / 2) and (B, A, C', H, W) of A forecasts.
        """
        half = halved(past)
        change = self.coarse(half.flatten(1, 2))
        guess = self._copies(half) + change
        doubled = F.interpolate(torch.cat([guess, change], dim=1), scale_factor=2, mode="nearest")
        guess_doubled, change_doubled = doubled.chunk(2, dim=1)
        forecast = (
            self._copies(past) + change_doubled + self.fine(torch.cat([past.flatten(1, 2), guess_doubled], dim=1))
        )
        return guess.unflatten(1, (self.at_once, -1)), forecast.unflatten(1, (self.at_once, -1))

    def _copies(self, past: Tensor) -> Tensor:
        """The last input in the place of each forecast: (B, A * C', H, W)."""
        return past[:, -1, self.foretold].repeat(1, self.at_once, 1, 1)


def halved(images: Tensor) -> Tensor:
    """(..., H, W) to (..., H / 2, W / 2), means of four."""
    return F.avg_pool2d(images.flatten(0, -4), 2).unflatten(0, images.shape[:-3])


def channels_of(what: str, channels: int, classes: int) -> int:
    """Of frames "x", soft maps "s" or both."""
    return channels * ("x" in what) + classes * ("s" in what)


def foretold(model: Model, channels: int) -> slice:
    """Which channels of an input are foretold."""
    if model.reads == model.writes:
        return slice(None)
    return slice(channels) if model.writes == "x" else slice(channels, None)


def _convolutions(read: int, written: int, width: int, sizes: tuple[int, int, int, int]) -> nn.Sequential:
    widths = (read, width, 2 * width, width, written)
    layers: list[nn.Module] = []
    for wide, narrow, size in zip(widths[:-1], widths[1:], sizes, strict=True):
        layers += [nn.Conv2d(wide, narrow, size, padding=size // 2), nn.ReLU()]
    last = layers[-2]
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers[:-1])
