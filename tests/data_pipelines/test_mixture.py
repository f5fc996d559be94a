import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.base import UserError
from data_pipelines.mixture import allot_lanes, weights_used

weights = st.lists(st.integers(1, 1000).map(lambda value: value / 10), min_size=1, max_size=6)


@given(weights, st.integers(1, 512))
@settings(max_examples=200, deadline=None)
def test_lanes_follow_the_weights_to_within_one(weights, num_lanes):
    try:
        lanes = allot_lanes(weights, num_lanes)
    except UserError as error:
        needed = int(re.search(r"num_lanes >= (\d+)", str(error)).group(1))
        assert needed > num_lanes
        lanes, num_lanes = allot_lanes(weights, needed), needed
    assert sum(lanes) == num_lanes
    assert min(lanes) >= 1
    for weight, count in zip(weights, lanes, strict=True):
        assert abs(count - weight / sum(weights) * num_lanes) < 1 + 1e-9


def test_the_largest_remainders_get_the_lanes_that_are_left():
    assert allot_lanes([0.45, 0.3, 0.25], 10) == [5, 3, 2]
    assert allot_lanes([5, 2.6, 2.4], 10) == [5, 3, 2]


def test_the_first_wins_a_tie_however_floats_round():
    assert allot_lanes([0.1, 0.1, 0.1], 4) == [2, 1, 1]
    assert allot_lanes([0.3, 0.1, 0.2], 9) == [5, 1, 3]  # quotas 4.5, 1.5, 3


def test_only_ratios_matter():
    assert allot_lanes([3, 1], 64) == allot_lanes([0.75, 0.25], 64) == [48, 16]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([999, 1], "weight 1 of dataset 1 .* needs num_lanes >= 1000"),
        ([1, 0], "above 0"),
        ([1, -2], "above 0"),
        ([float("nan")], "finite"),
        ([float("inf")], "finite"),
        ([], "empty"),
    ],
)
def test_what_cannot_be_a_mixture_is_refused_in_words(weights, message):
    with pytest.raises(UserError, match=message):
        allot_lanes(weights, 100)


def test_the_weights_really_used_are_told():
    assert weights_used(["web", "books"], allot_lanes([2, 1], 4)) == "web 0.75 (3 lanes), books 0.25 (1 lane)"
