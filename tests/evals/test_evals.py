"""What linear probe and k-NN report of features whose answer is known."""

from __future__ import annotations

import pytest
import torch

from evals import knn, linear_probe
from evals.features import FeatureTable


def table(samples, seed, **gaps):
    """Features of three classes; each kind tells them apart by its own gap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    kinds = {}
    for kind, gap in gaps.items():
        kinds[kind] = torch.randn(samples, 12, generator=generator)
        kinds[kind][torch.arange(samples), labels] += gap
    return FeatureTable(kinds, labels)


def both(**gaps):
    return table(150, 0, **gaps), table(300, 1, **gaps)


def test_a_probe_reports_every_budget_and_its_spread():
    metrics = linear_probe.judge(*both(pooled=3.0), linear_probe.Config(budgets=(5, 20), repeats=3))
    assert set(metrics) == {"top1@5", "top1_std@5", "top1@20", "top1_std@20", "top1@all"}
    assert metrics["top1@5"] < metrics["top1@all"]
    assert metrics["top1@all"] > 0.9
    assert metrics["top1_std@5"] > 0


def test_budgets_that_take_every_label_are_left_to_all():
    labels = torch.arange(30) % 3
    assert set(linear_probe.draws_of(labels, linear_probe.Config(budgets=(5, 10, 100)))) == {"5", "all"}


def test_draws_of_a_budget_do_not_depend_on_the_features():
    labels = torch.arange(90) % 3
    one, other = (linear_probe.draws_of(labels, linear_probe.Config(budgets=(5,))) for _ in range(2))
    assert [rows.tolist() for rows in one["5"]] == [rows.tolist() for rows in other["5"]]
    assert len({tuple(rows.tolist()) for rows in one["5"]}) == 5


@pytest.mark.parametrize("better", ["cls", "pooled"])
def test_the_kind_that_serves_training_data_speaks_for_all(better):
    gaps = {"cls": 0.5, "pooled": 0.5, better: 3.0}
    probe = linear_probe.judge(*both(**gaps), linear_probe.Config(budgets=(), repeats=1))
    assert probe["top1@all"] == probe[f"{better}.top1@all"] == max(probe.values())
    votes = knn.judge(*both(**gaps), knn.Config())
    for k in (1, 10, 20):
        assert votes[f"top1@k{k}"] == votes[f"{better}.top1@k{k}"]


def test_the_kind_is_not_chosen_by_the_test_set():
    train = table(150, 0, cls=3.0, pooled=0.5)
    test = table(300, 1, cls=0.0, pooled=3.0)
    metrics = linear_probe.judge(train, test, linear_probe.Config(budgets=()))
    assert metrics["top1@all"] == metrics["cls.top1@all"] < metrics["pooled.top1@all"]
    votes = knn.judge(train, test, knn.Config(k=(10,)))
    assert votes["top1@k10"] == votes["cls.top1@k10"] < votes["pooled.top1@k10"]


def test_one_neighbour_needs_no_weights():
    assert set(knn.judge(*both(pooled=1.0), knn.Config(k=(1, 5)))) == {"top1@k1", "top1@k5", "weighted@k5"}
