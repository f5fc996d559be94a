"""Energies are low for what belongs together, and one number a row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.energies import cosine, cross_entropy, gradient_difference, l1, l2, normalize_patches, smooth_l1


@given(seed=st.integers(0, 99), energy=st.sampled_from([l1, l2, smooth_l1, cosine]))
def test_an_energy_is_a_number_a_row_and_least_at_the_target(seed: int, energy: object) -> None:
    assert callable(energy)
    predicted, target = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    assert energy(predicted, target).shape == (3, 4)
    assert (energy(predicted, target) >= 0).all()
    assert energy(target, target).abs().max() < 1e-6


def test_energies_are_those_of_the_books() -> None:
    zero, two = torch.zeros(1, 2), torch.tensor([[2.0, 0.5]])
    assert l2(two, zero).item() == pytest.approx((4 + 0.25) / 2)
    assert l1(two, zero).item() == pytest.approx((2 + 0.5) / 2)
    assert smooth_l1(two, zero).item() == pytest.approx((1.5 + 0.125) / 2)
    assert smooth_l1(two, zero, beta=4).item() == pytest.approx((4 / 8 + 0.25 / 8) / 2)
    assert cosine(torch.tensor([[1.0, 0]]), torch.tensor([[-3.0, 0]])).item() == pytest.approx(2)
    assert cosine(torch.tensor([[1.0, 0]]), torch.tensor([[0, 9.0]])).item() == pytest.approx(1)
    assert cross_entropy(torch.zeros(1, 8), torch.tensor([3])).item() == pytest.approx(math.log(8))


def test_gradient_difference_is_the_sum_of_mathieu_over_the_numbers_of_pairs() -> None:
    predicted, target = torch.rand(2, 2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    for each, wanted, energy in zip(predicted, target, gradient_difference(predicted, target), strict=True):
        rows = sum(
            abs(abs(wanted[c, i, j] - wanted[c, i - 1, j]) - abs(each[c, i, j] - each[c, i - 1, j]))
            for c in range(3) for i in range(1, 5) for j in range(6)
        )  # fmt: skip
        columns = sum(
            abs(abs(wanted[c, i, j - 1] - wanted[c, i, j]) - abs(each[c, i, j - 1] - each[c, i, j]))
            for c in range(3) for i in range(5) for j in range(1, 6)
        )  # fmt: skip
        assert energy.item() == pytest.approx(float(rows / (3 * 4 * 6) + columns / (3 * 5 * 5)), rel=1e-5)


def test_blur_and_a_shift_of_all_pixels_are_told_apart_by_gradients() -> None:
    edge = torch.zeros(1, 1, 4, 8)
    edge[..., 4:] = 1
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 4, 8)
    assert gradient_difference(edge + 0.3, edge).item() == pytest.approx(0, abs=1e-6)
    assert gradient_difference(ramp, edge).item() > 0.2


def test_half_precision_is_widened_first() -> None:
    predicted, target = torch.full((1, 4096), 300.0, dtype=torch.float16), torch.zeros(1, 4096, dtype=torch.float16)
    assert l2(predicted, target).item() == 90_000  # beyond float16
    assert cross_entropy(torch.zeros(1, 8, dtype=torch.bfloat16), torch.tensor([0])).dtype == torch.float32


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10), shift=st.floats(-10, 10))
def test_patches_are_normalised_and_come_back(seed: int, scale: float, shift: float) -> None:
    patches = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(seed)) * scale + shift
    normalised, mean, std = normalize_patches(patches)
    torch.testing.assert_close(normalised.mean(dim=-1), torch.zeros(2, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.var(dim=-1), torch.ones(2, 3), rtol=0, atol=1e-3)
    torch.testing.assert_close(normalised * std + mean, patches, rtol=1e-4, atol=1e-4)


def test_a_flat_patch_normalises_to_zero() -> None:
    normalised, _, _ = normalize_patches(torch.full((1, 16), 0.7))
    assert normalised.abs().max() < 1e-3
