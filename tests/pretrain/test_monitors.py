"""Collapse figures against their definitions, and alarms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import Monitor
from pretrain.monitors import Alarms, EmbeddingStatistics, effective_rank, uniformity


def rankme(embeddings: np.ndarray) -> float:
    """The definition: entropy of the singular values of the (uncentred) embedding matrix."""
    singular = np.linalg.svd(embeddings, compute_uv=False)
    shares = singular / singular.sum()
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_effective_rank_of_the_moment_is_rankme_of_the_rows(seed, width, directions):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(64, directions)) @ rng.normal(size=(directions, width))
    assert effective_rank(rows.T @ rows) == pytest.approx(rankme(rows), rel=1e-3)


def test_collapsed_embeddings_have_rank_one_and_uniformity_zero():
    rows = torch.ones(32, 4)
    assert effective_rank((rows.T @ rows).double().numpy()) == pytest.approx(1.0, abs=1e-3)
    assert uniformity(rows) == pytest.approx(0.0, abs=1e-5)
    assert uniformity(torch.randn(512, 64)) < -3


def test_ranks_added_up_give_the_figures_of_all_rows():
    rows = torch.randn(96, 5) + 2
    whole, parts = EmbeddingStatistics(), [EmbeddingStatistics(), EmbeddingStatistics()]
    whole.add(rows)
    for part, half in zip(parts, rows.chunk(2), strict=True):
        part.add(half)
    total = sum(part.vector() for part in parts)
    expected, got = whole.read(whole.vector()), parts[0].read(total)
    for name in ("effective_rank", "embedding_std", "embedding_dimensions"):
        assert got[name] == pytest.approx(expected[name], rel=1e-6)
    assert got["embedding_std"] == pytest.approx(float(rows.std(0, correction=0).mean()), rel=1e-5)


def test_rank_is_not_told_from_fewer_rows_than_mean_anything():
    statistics = EmbeddingStatistics()
    statistics.add(torch.randn(8, 16))
    assert statistics.read(statistics.vector()) is None
    statistics.add(torch.randn(64, 16))
    assert statistics.read(statistics.vector()) is not None, "rows are kept until there are enough"


def test_alarm_is_raised_once_while_it_lasts_and_again_when_it_returns():
    alarms = Alarms(Monitor())
    collapsed = {"effective_rank": 2.0, "embedding_dimensions": 128.0}
    healthy = {"effective_rank": 90.0, "embedding_dimensions": 128.0}
    heard = [[kind for kind, _ in alarms.hear(figures)] for figures in [*[collapsed] * 4, healthy, *[collapsed] * 3]]
    assert heard == [[], [], ["collapse"], [], [], [], [], ["collapse"]]


def test_divergence_and_starvation_are_told_in_words():
    alarms = Alarms(Monitor())
    for _ in range(5):
        assert alarms.hear({"loss": 1.0}) == []
    heard = dict(alarms.hear({"loss": 100.0, "data_wait": 0.5}))
    assert "50% of the time" in heard["starvation"]
    assert "far above" in heard["divergence"]
