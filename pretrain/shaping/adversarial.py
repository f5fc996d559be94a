"""Adversarial shaping: a discriminator holds the energy of generated samples up, the generator pulls it down."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """What a discriminator minimises: surprise at what is real and what is not, in nats.

    Args:
        real: logits (B,) that real samples are real.
        generated: logits (B,) of generated ones, detached from their generator.

    Returns:
        (), 2 log 2 where it cannot tell them apart.

    Source: Goodfellow 2014, arXiv:1406.2661, equation 1.
    """
    return F.softplus(-real.float()).mean() + F.softplus(generated.float()).mean()


def generator_loss(generated: Tensor) -> Tensor:
    """What a generator minimises: -log D of its samples, whose gradient does not vanish where D is sure.

    Args:
        generated: logits (B,) that its samples are real.

    Source: Goodfellow 2014, arXiv:1406.2661, section 3; Mathieu 2016, arXiv:1511.05440, equation 4.
    """
    return F.softplus(-generated.float()).mean()


class PatchDiscriminator(nn.Module):
    """Convolutions that halve the resolution twice, then a score at every place, averaged."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B,)."""
        logits: Tensor = self.layers(images)
        return logits.mean(dim=(1, 2, 3))
