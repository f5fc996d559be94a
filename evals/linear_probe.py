"""Linear probe on frozen features, at several label budgets.

Multinomial logistic regression on standardised features. Its L2 penalty, and which kind of features to read, are
chosen by accuracy on held-out training data, in the same way for the encoder and for each control.
"""

from __future__ import annotations

from statistics import fmean, pstdev

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from evals.controls import with_controls
from evals.features import FeatureTable
from evals.protocol import EvalConfig, EvalData, Scores
from pretrain.export import LoadedEncoder
from pretrain.probes import L2_GRID, Probe, check_labels, linear_probe, rows_per_class

PROTOCOL = "linear_probe/1"


class Config(EvalConfig):
    """How many labels, how often."""

    budgets: tuple[PositiveInt, ...] = (10, 100)
    """Labels a class; all of them always count as a budget too."""
    repeats: int = Field(5, gt=0)
    """Draws of the labelled samples at each budget below all."""
    l2_grid: tuple[PositiveFloat, ...] = Field(L2_GRID, min_length=1)
    """Penalties to choose from, strongest first."""


def run(encoder: LoadedEncoder, data: EvalData, config: Config) -> Scores:
    """Metrics "top1@BUDGET", for each kind of features "KIND.top1@BUDGET", and "top1_std@BUDGET" over the draws."""
    return with_controls(encoder, data, config, PROTOCOL, lambda train, test: judge(train, test, config))


def judge(train: FeatureTable, test: FeatureTable, config: Config) -> dict[str, float]:
    """Probe every kind of features at every budget."""
    check_labels(train.labels)
    metrics: dict[str, float] = {}
    for budget, draws in draws_of(train.labels, config).items():
        by_kind = {
            kind: [
                linear_probe(x[rows], train.labels[rows], test.kinds[kind], test.labels, config.l2_grid, seed)
                for seed, rows in enumerate(draws)
            ]
            for kind, x in train.kinds.items()
        }
        metrics |= _summary(by_kind, budget)
    return metrics


def draws_of(labels: Tensor, config: Config) -> dict[str, list[Tensor]]:
    """Rows to learn from by budget; budgets that would take every sample are left to "all"."""
    draws = {}
    for budget in sorted(set(config.budgets)):
        rows = [rows_per_class(labels, budget, seed) for seed in range(config.repeats)]
        if len(rows[0]) < len(labels):
            draws[str(budget)] = rows
    return {**draws, "all": [labels.new_tensor(range(len(labels)))]}


def _summary(by_kind: dict[str, list[Probe]], budget: str) -> dict[str, float]:
    """The kind that predicts held-out training labels best speaks for all."""
    best = max(by_kind.values(), key=lambda probes: fmean(probe.held_out_accuracy for probe in probes))
    metrics = {f"top1@{budget}": fmean(probe.accuracy for probe in best)}
    if len(best) > 1:
        metrics[f"top1_std@{budget}"] = pstdev(probe.accuracy for probe in best)
    if len(by_kind) > 1:
        metrics |= {f"{kind}.top1@{budget}": fmean(p.accuracy for p in probes) for kind, probes in by_kind.items()}
    return metrics
