"""Flow and warping on scenes whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest

from evals.segmentation_forecasting.flow import backward_flow, warp


def texture(height=64, width=128, seed=0):
    """(H, W, 3) uint8 of smooth blobs: flow needs something to hold on to."""
    rng = np.random.default_rng(seed)
    rough = rng.random((height + 8, width + 8, 3))
    for axis in (0, 1):
        rough = np.lib.stride_tricks.sliding_window_view(rough, 9, axis=axis).mean(axis=-1)
    low, high = rough.min(), rough.max()
    return (255 * (rough - low) / (high - low)).astype(np.uint8)


@pytest.mark.parametrize(("down", "right"), [(0, 4), (3, 0), (-2, -5)])
def test_a_shifted_scene_is_found_where_it_came_from(down, right):
    before = texture()
    last = np.roll(before, (down, right), axis=(0, 1))
    inner = backward_flow(before, last)[12:-12, 12:-12]
    np.testing.assert_allclose(np.median(inner, axis=(0, 1)), (-right, -down), atol=0.15)


@pytest.mark.parametrize("steps", [1, 3])
def test_constant_motion_goes_on(steps):
    frames = [np.roll(texture(), 3 * number, axis=1) for number in range(2 + steps)]
    flow = backward_flow(frames[0], frames[1])
    warped, truth = warp(frames[1], flow, steps), frames[1 + steps]
    margin = 6 + 4 * steps
    inner = np.s_[8:-8, margin:-margin]
    copied = np.abs(frames[1][inner].astype(int) - truth[inner]).mean()
    assert np.abs(warped[inner].astype(int) - truth[inner]).mean() < copied / 4


def test_warping_by_a_known_flow_is_exact_and_holds_the_border():
    maps = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    flow = np.zeros((4, 6, 2), np.float32)
    flow[..., 0] = -1
    warped = warp(maps, flow, 2)
    np.testing.assert_array_equal(warped[:, 2:], maps[:, :-2])
    np.testing.assert_array_equal(warped[:, :2], maps[:, :1].repeat(2, axis=1))
    assert warped.dtype == maps.dtype


def test_softmax_maps_stay_shares_of_one():
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.ones(19), (16, 24)).astype(np.float32)
    flow = rng.normal(0, 3, (16, 24, 2)).astype(np.float32)
    np.testing.assert_allclose(warp(maps, flow, 1.7).sum(axis=-1), 1, atol=1e-5)


def test_grey_frames_have_a_flow_too():
    before = texture()[..., :1]
    flow = backward_flow(before, np.roll(before, 4, axis=1))
    assert np.median(flow[12:-12, 12:-12, 0]) == pytest.approx(-4, abs=0.15)
