from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data_pipelines.device import (
    PHOTOMETRIC,
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    adjust_hue,
    adjust_saturation,
    affine_crop,
    gaussian_blur,
    keyed_normal,
    keyed_uniform,
    luma,
    mix_torch,
    normalize,
    photometric,
    solarize,
    to_float,
)
from data_pipelines.hashing import mix

UNCHANGED = (1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)


def pictures(batch=4, channels=3, size=12, seed=0):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_mix_broadcasts_like_numpy():
    rows, columns = np.arange(3)[:, None], np.arange(4)
    mixed = mix_torch(7, torch.from_numpy(rows), torch.from_numpy(columns))
    assert mixed.numpy().view(np.uint64).tolist() == mix(7, rows, columns).tolist()


@pytest.mark.parametrize("noise", [keyed_uniform, keyed_normal])
def test_noise_of_a_row_depends_on_its_key_alone(noise):
    keys = torch.tensor([11, -5, 2**62])
    together = noise(keys, (3, 4))
    assert together.shape == (3, 3, 4)
    for index in range(3):
        assert torch.equal(noise(keys[[index, 0]], (3, 4))[0], together[index])
    assert not torch.equal(noise(keys, (3, 4), "another purpose"), together)


def test_noise_has_its_distribution():
    uniform, normal = keyed_uniform(torch.arange(10), (20_000,)), keyed_normal(torch.arange(10), (20_000,))
    assert uniform.min() >= 0 and uniform.max() < 1
    for moment in (1, 2, 3):
        assert abs((uniform**moment).mean() - 1 / (moment + 1)) < 0.005
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01 and abs((normal**4).mean() - 3) < 0.1
    assert normal.isfinite().all()
    rows = torch.corrcoef(uniform)
    assert (rows - torch.eye(10)).abs().max() < 0.05


def test_normalised_pixels_have_the_formula():
    images = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    plain = (images.numpy() / 255 - mean) / std
    np.testing.assert_allclose(normalize(to_float(images), mean, std).numpy(), plain.transpose(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_parameters_that_change_nothing_change_nothing(channels):
    images = pictures(channels=channels)
    changed = photometric(images, torch.tensor([UNCHANGED] * 4), blur_radius=3)
    torch.testing.assert_close(changed, images, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_each_row_is_changed_by_its_own_parameters(name):
    images = pictures()
    parameters = torch.tensor([UNCHANGED] * 4)
    parameters[2, PHOTOMETRIC.index(name)] = 1.0 if name in {"solarize", "blur"} else 0.3
    changed = photometric(images, parameters, blur_radius=3)
    distance = (changed - images).abs().amax(dim=(1, 2, 3))
    assert distance[2] > 0.05
    assert distance[[0, 1, 3]].max() < 1e-5
    assert changed.min() >= 0 and changed.max() <= 1


def test_light_has_the_formulas():
    images, factor = pictures(), torch.tensor([0.5, 0.8, 1.0, 1.3])
    rows = factor[:, None, None, None]
    grey = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    torch.testing.assert_close(luma(images), grey)
    torch.testing.assert_close(adjust_brightness(images, factor), (images * rows).clamp(0, 1))
    mean = grey.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(adjust_contrast(images, factor), (mean + rows * (images - mean)).clamp(0, 1))
    torch.testing.assert_close(adjust_saturation(images, factor), (grey + rows * (images - grey)).clamp(0, 1))
    torch.testing.assert_close(adjust_gamma(images, factor), images**rows)


def test_no_saturation_is_grey():
    grey = adjust_saturation(pictures(), torch.zeros(4))
    torch.testing.assert_close(grey, luma(pictures()).expand(-1, 3, -1, -1))


def test_hue_turns_the_colours_and_keeps_the_brightness():
    images = 0.3 + 0.1 * pictures()
    turned = adjust_hue(images, torch.full((4,), 0.2))
    torch.testing.assert_close(luma(turned), luma(images), atol=1e-3, rtol=0)
    back = adjust_hue(turned, torch.full((4,), -0.2))
    torch.testing.assert_close(back, images, atol=1e-4, rtol=0)
    red = torch.tensor([0.5, 0.3, 0.3]).view(1, 3, 1, 1)
    for turns, strongest in ((1 / 3, 1), (-1 / 3, 2), (0.0, 0)):
        assert adjust_hue(red, torch.tensor([turns])).flatten().argmax() == strongest


def test_grey_has_no_hue():
    grey = pictures(channels=1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(adjust_hue(grey, torch.full((4,), 0.37)), grey, atol=2e-4, rtol=0)


def test_blur_is_the_gaussian_convolution():
    images, sigma, radius = pictures(batch=2, channels=3, size=9), torch.tensor([0.7, 1.6]), 3
    blurred = gaussian_blur(images, sigma, radius)
    for row in range(2):
        kernel = np.array([math.exp(-0.5 * (k / float(sigma[row])) ** 2) for k in range(-radius, radius + 1)])
        kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
        padded = np.pad(images[row].double().numpy(), ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, axis=(1, 2))
        np.testing.assert_allclose(blurred[row].numpy(), (windows * kernel).sum(axis=(3, 4)), atol=1e-5)


def test_solarized_pixels_are_inverted_above_the_threshold():
    images = torch.tensor([0.1, 0.49, 0.5, 0.9]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    changed = solarize(images, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(changed[0].flatten(), torch.tensor([0.1, 0.49, 0.5, 0.1]))
    assert torch.equal(changed[1], images[1])


def affine(*rows):
    return torch.tensor([rows], dtype=torch.float32)


def test_affine_crop_knows_left_from_right_and_up_from_down():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(affine_crop(image, affine((1, 0, 0), (0, 1, 0)), 4), image)
    torch.testing.assert_close(affine_crop(image, affine((-1, 0, 0), (0, 1, 0)), 4), image.flip(3))
    lower_left = affine_crop(image, affine((0.5, 0, -0.5), (0, 0.5, 0.5)), 2)
    torch.testing.assert_close(lower_left, image[:, :, 2:, :2])
    quarter_turn = affine_crop(image, affine((0, -1, 0), (1, 0, 0)), 4)
    torch.testing.assert_close(quarter_turn, image.rot90(1, dims=(2, 3)))


def test_beyond_the_edge_the_image_is_mirrored():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    shifted = affine_crop(image, affine((1, 0, 1.0), (0, 1, 0)), 4)
    torch.testing.assert_close(shifted, torch.cat([image[..., 2:], image[..., 2:].flip(3)], dim=3))
