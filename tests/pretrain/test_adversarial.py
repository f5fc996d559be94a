"""Adversarial shaping: who is pushed where."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.shaping.adversarial import PatchDiscriminator, discriminator_loss, generator_loss


def test_losses_are_the_logarithms_of_the_books() -> None:
    real, generated = torch.tensor([0.3, -2.0]), torch.tensor([1.5, 0.1])
    plain = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(generated)).log().mean()
    assert discriminator_loss(real, generated).item() == pytest.approx(plain.item(), rel=1e-5)
    assert discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(generated).item() == pytest.approx(-torch.sigmoid(generated).log().mean().item(), rel=1e-5)


def test_a_generator_that_is_seen_through_still_has_a_gradient() -> None:
    logits = torch.tensor([-40.0], requires_grad=True)
    generator_loss(logits).backward()
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(-1)


def test_a_discriminator_learns_to_tell_noise_from_planes() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(2, width=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        real, generated = torch.rand(8, 2, 1, 1).expand(8, 2, 16, 16), torch.rand(8, 2, 16, 16)
        loss = discriminator_loss(network(real), network(generated))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network(real).shape == (8,)
    assert loss.item() < 0.5
