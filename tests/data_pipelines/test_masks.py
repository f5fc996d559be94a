from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.views.masks import block_mask, hidden_count, random_mask, rectangle, tube_mask

ratios = st.floats(0, 1)
grids = st.tuples(st.integers(1, 20), st.integers(1, 20))
seeds = st.integers(0, 2**32)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 500), ratios, seeds)
def test_random_mask_hides_exactly_the_ratio(num_tokens, ratio, seed):
    mask = random_mask(num_tokens, ratio, np.random.default_rng(seed))
    assert mask.shape == (num_tokens,)
    assert mask.sum() == hidden_count(num_tokens, ratio)


@settings(deadline=None, max_examples=50)
@given(grids, ratios, st.integers(1, 40), seeds)
def test_block_mask_hides_exactly_the_ratio(grid, ratio, min_block_tokens, seed):
    mask = block_mask(grid, ratio, np.random.default_rng(seed), min_block_tokens=min_block_tokens)
    assert mask.shape == grid
    assert mask.sum() == hidden_count(grid[0] * grid[1], ratio)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), grids, ratios, seeds)
def test_tube_mask_hides_the_same_places_in_every_frame(num_frames, grid, ratio, seed):
    mask = tube_mask(num_frames, grid, ratio, np.random.default_rng(seed))
    assert mask.shape == (num_frames, *grid)
    assert (mask == mask[0]).all()
    assert mask[0].sum() == hidden_count(grid[0] * grid[1], ratio)


@settings(deadline=None, max_examples=50)
@given(grids, st.data(), seeds)
def test_rectangle_lies_in_the_grid_and_covers_its_token(grid, data, seed):
    inside = tuple(data.draw(st.integers(0, length - 1)) for length in grid)
    rows, columns = rectangle(grid, (0.01, 1), (0.2, 5), np.random.default_rng(seed), inside)
    for place, stretch, length in zip(inside, (rows, columns), grid, strict=True):
        assert 0 <= stretch.start <= place < stretch.stop <= length


def test_rectangle_has_the_area_and_aspect_asked_for():
    rng = np.random.default_rng(0)
    blocks = [rectangle((100, 100), (0.15, 0.2), (0.75, 1.5), rng) for _ in range(500)]
    sides = np.array([[rows.stop - rows.start, columns.stop - columns.start] for rows, columns in blocks])
    areas, aspects = sides.prod(axis=1) / 1e4, sides[:, 0] / sides[:, 1]
    assert areas.min() >= 0.145 and areas.max() <= 0.205
    assert aspects.min() >= 0.72 and aspects.max() <= 1.55
    assert abs(np.log(aspects).mean() - np.log(np.sqrt(0.75 * 1.5))) < 0.05


def test_blocks_hang_together_more_than_single_tokens():
    rng = np.random.default_rng(0)

    def agreeing_neighbours(mask):
        return (mask[:, 1:] == mask[:, :-1]).mean()

    blocks = np.mean([agreeing_neighbours(block_mask((14, 14), 0.4, rng)) for _ in range(50)])
    single = np.mean([agreeing_neighbours(random_mask(196, 0.4, rng).reshape(14, 14)) for _ in range(50)])
    assert blocks > 0.8 > 0.6 > single


def test_every_token_is_hidden_about_equally_often():
    rng = np.random.default_rng(0)
    share = np.mean([random_mask(49, 0.75, rng) for _ in range(2000)], axis=0)
    assert np.abs(share - hidden_count(49, 0.75) / 49).max() < 0.05


def test_ratio_beyond_one_is_refused():
    with pytest.raises(ValueError, match="lies in"):
        random_mask(10, 1.5, np.random.default_rng(0))
