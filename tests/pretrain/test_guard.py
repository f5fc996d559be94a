"""Bad steps are recognised; the decision survives a resume."""

import math

import pytest

from pretrain.config import Train
from pretrain.guard import SETTLED, Guard


def settled(**changes) -> Guard:
    guard = Guard(Train(global_batch=8, **changes))
    for _ in range(SETTLED):
        guard.took(1.0)
    return guard


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_non_finite_step_is_bad_from_the_first_step_on(loss, norm):
    assert Guard(Train(global_batch=8)).complaint(loss, norm)


def test_spike_is_measured_against_the_median_and_only_once_settled():
    assert Guard(Train(global_batch=8)).complaint(1.0, 1e9) is None
    assert "101 is beyond 100 times" in settled().complaint(1.0, 101.0)
    assert settled().complaint(1.0, 99.0) is None


def test_budget_counts_bad_steps_in_a_row():
    guard = settled(max_skipped=2)
    assert [guard.skip() for _ in range(2)] == [False, False]
    guard.took(1.0)
    assert [guard.skip() for _ in range(3)] == [False, False, True]
    assert guard.skipped == 5


def test_restored_guard_decides_alike():
    guard, other = settled(), Guard(Train(global_batch=8))
    other.restore(guard.state())
    assert other.complaint(1.0, 101.0) == guard.complaint(1.0, 101.0)
