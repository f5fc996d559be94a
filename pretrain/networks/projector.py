"""Projectors and predictors: small perceptrons between an encoder and its loss."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from data_pipelines.base import Strict


class Projector(nn.Module):
    """Linear, batch norm, ReLU, again and again; the last layer is linear, or normalised too.

    Source: Chen 2020, arXiv:2002.05709 (2 layers); Chen 2021, arXiv:2104.02057, section 4.
    """

    class Config(Strict):
        """Size and norms."""

        num_layers: int = Field(default=2, ge=1)
        hidden_size: int = Field(default=256, gt=0)
        output_size: int = Field(default=64, gt=0)
        batch_norm: bool = True
        """After every hidden layer."""
        final_norm: bool = False
        """A batch norm without scale and shift after the last layer."""

    def __init__(self, config: Config, input_size: int) -> None:
        super().__init__()
        hidden = [config.hidden_size] * (config.num_layers - 1)
        layers: list[nn.Module] = []
        for width, following in zip([input_size, *hidden], hidden, strict=False):
            layers.append(nn.Linear(width, following, bias=not config.batch_norm))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(following))
            layers.append(nn.ReLU(inplace=True))
        last = hidden[-1] if hidden else input_size
        layers.append(nn.Linear(last, config.output_size, bias=not config.final_norm))
        if config.final_norm:
            layers.append(nn.BatchNorm1d(config.output_size, affine=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, output_size)."""
        projected: Tensor = self.layers(features)
        return projected
