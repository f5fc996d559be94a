"""Nearest neighbours by cosine on frozen features: no training, no choice but which kind of features to read.

The kind is chosen, for each k, on a fifth of the training data, in the same way for the encoder and for each control.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt

from evals.controls import with_controls
from evals.features import FeatureTable
from evals.protocol import EvalConfig, EvalData, Scores
from pretrain.export import LoadedEncoder
from pretrain.probes import Votes, check_labels, held_out_folds, knn_sweep

PROTOCOL = "knn/1"


class Config(EvalConfig):
    """How many neighbours vote, and how."""

    k: tuple[PositiveInt, ...] = Field((1, 10, 20), min_length=1)
    """Numbers of neighbours."""
    temperature: float = Field(0.07, gt=0)
    """Of the weighted votes."""


def run(encoder: LoadedEncoder, data: EvalData, config: Config) -> Scores:
    """Metrics "top1@kK" by majority and "weighted@kK" by exp(cosine / temperature); "KIND.top1@kK" for each kind."""
    return with_controls(encoder, data, config, PROTOCOL, lambda train, test: judge(train, test, config))


def judge(train: FeatureTable, test: FeatureTable, config: Config) -> dict[str, float]:
    """Let every kind of features vote at every k."""
    check_labels(train.labels)
    tested = {kind: _votes(train, test, kind, config) for kind in train.kinds}
    held_out = _held_out_votes(train, config) if len(tested) > 1 else tested
    metrics: dict[str, float] = {}
    for k in config.k:
        best = max(held_out, key=lambda kind: held_out[kind][k].majority)
        metrics[f"top1@k{k}"] = tested[best][k].majority
        if k > 1:
            metrics[f"weighted@k{k}"] = tested[best][k].weighted
        if len(tested) > 1:
            metrics |= {f"{kind}.top1@k{k}": votes[k].majority for kind, votes in tested.items()}
    return metrics


def _votes(train: FeatureTable, test: FeatureTable, kind: str, config: Config) -> dict[int, Votes]:
    return knn_sweep(train.kinds[kind], train.labels, test.kinds[kind], test.labels, config.k, config.temperature)


def _held_out_votes(train: FeatureTable, config: Config) -> dict[str, dict[int, Votes]]:
    """What a fifth of the training data says of each kind."""
    held_out = held_out_folds(train.labels, seed=0) == 0
    fit, judge_by = (
        FeatureTable({kind: x[rows] for kind, x in train.kinds.items()}, train.labels[rows])
        for rows in (~held_out, held_out)
    )
    return {kind: _votes(fit, judge_by, kind, config) for kind in train.kinds}
