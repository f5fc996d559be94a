import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.base import UserError
from data_pipelines.order import check_batch, default_lanes, legal_world_sizes, micro_positions, steps_of

sizes = {
    "global_batch": st.integers(1, 240),
    "accumulation": st.integers(1, 9),
    "world_size": st.integers(1, 20),
    "num_lanes": st.integers(1, 64),
}


@given(st.fixed_dictionaries(sizes))
@settings(max_examples=400, deadline=None)
def test_exactly_the_sizes_that_share_out_equally_are_legal(chosen):
    batch, accumulation, ranks, lanes = (chosen[name] for name in sizes)
    fits = batch % lanes == 0 and lanes % ranks == 0 and batch % (ranks * accumulation) == 0
    try:
        check_batch(**chosen)
        accepted = True
    except UserError:
        accepted = False
    assert accepted == fits
    if batch % lanes == 0:
        assert (ranks in legal_world_sizes(batch, accumulation, lanes)) == fits


@given(st.fixed_dictionaries(sizes), st.sampled_from([0, -1]))
@settings(max_examples=400, deadline=None)
def test_who_follows_the_advice_arrives_at_a_legal_batch(chosen, side):
    for _ in range(4):
        try:
            check_batch(**chosen)
            return
        except UserError as error:
            chosen = _advised(chosen, str(error), side)
    check_batch(**chosen)


def _advised(chosen, message, side):
    """`chosen` with the last advice of the message taken: its first (0) or last (-1) value."""
    ranks = re.search(r"start ([\d or]+) ranks?", message)
    if ranks:
        return {**chosen, "world_size": int(ranks.group(1).split(" or ")[side])}
    name, values = re.findall(r"(\w+)=(\d+(?: or \d+)?)", message)[-1]
    return {**chosen, name: int(values.split(" or ")[side])}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            (100, 1, 1, 64),
            r"global_batch=100 is no multiple of num_lanes=64; set global_batch=64 or 128, or .*50 or 100",
        ),
        ((128, 1, 3, 64), r"num_lanes=64 is no multiple of world_size=3: .* start 2 or 4 ranks"),
        ((128, 3, 2, 64), r"no multiple of world_size \* accumulation = 2 \* 3; set accumulation=2 or 4"),
        ((128, 1, 0, 64), r"world_size=0 must be at least 1"),
    ],
)
def test_the_nearest_legal_values_are_named(chosen, message):
    with pytest.raises(UserError, match=message):
        check_batch(*chosen)


@given(st.integers(1, 10), st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 5]), st.integers(0, 10**13))
@settings(max_examples=100, deadline=None)
def test_ranks_take_a_micro_step_apart_into_equal_shares(rows, world_size, accumulation, start):
    batch = rows * world_size * accumulation
    for micro in range(accumulation):
        shares = [micro_positions(start, batch, accumulation, micro, rank, world_size) for rank in range(world_size)]
        assert {len(share) for share in shares} == {rows}
        assert all((share % world_size == rank).all() for rank, share in enumerate(shares))
        first = start + micro * batch // accumulation
        assert sorted(np.concatenate(shares).tolist()) == list(range(first, first + batch // accumulation))


def test_lanes_follow_from_the_global_batch_alone():
    assert [default_lanes(batch) for batch in (1, 30, 4096, 8192, 10_000, 8191)] == [1, 30, 4096, 4096, 2500, 1]


def test_steps_read_every_sample_and_not_a_batch_more():
    assert steps_of(1, 100, 32) == 4
    assert steps_of(2, 96, 32) == 6
    assert steps_of(1.5, 10, 4) == 4
    assert steps_of(0.1, 1000, 10) == 10  # the float 0.1 lies above 1/10
    assert all(steps_of(Fraction(steps * 32, 49), 49, 32) == steps for steps in range(1, 99))
    assert steps_of(800, 10**10, 4096) == 1_953_125_000
