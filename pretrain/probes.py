"""Small models on frozen features: nearest neighbours and multinomial logistic regression.

The same code judges a run while it lives and every checkpoint afterwards. It is deterministic,
runs on whatever device the features lie on, and never holds more than a block of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.base import UserError
from data_pipelines.hashing import mix

L2_GRID = tuple(float(10.0**exponent) for exponent in np.arange(1.0, -5.5, -0.5))
"""Penalties tried by `linear_probe`, strongest first: each fit starts where the last one ended."""

MOST_SAMPLES_CROSSED = 500
"""Up to here every fifth of the training data is held out in turn; beyond, one fifth is large enough to choose by."""

_FOLDS = 5
_PATIENCE = 3  # weaker penalties that may be worse before the grid is left
_BLOCK_SCORES = 2**25  # 128 MiB of fp32


def neighbours(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` rows of `bank` nearest to each query by cosine, nearest first.

    Args:
        queries: (Q, D) of any length.
        bank: (N, D) with N >= k.

    Returns:
        Cosines (Q, k) and row numbers (Q, k) int64.

    Raises:
        ValueError: the bank holds fewer than `k` rows.
    """
    if len(bank) < k:
        raise ValueError(f"want {k} neighbours out of {len(bank)} rows")
    directions = F.normalize(bank.float(), dim=1).T
    rows = max(1, _BLOCK_SCORES // len(bank))
    found = [torch.topk(F.normalize(block.float(), dim=1) @ directions, k, dim=1) for block in queries.split(rows)]
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])


@dataclass(frozen=True)
class Votes:
    """Top-1 accuracies, shares in [0, 1], of one k.

    Attributes:
        majority: every neighbour has one vote; ties go to the lower class, as in scikit-learn.
        weighted: a neighbour's vote weighs exp(cosine / temperature).
    """

    majority: float
    weighted: float


def knn(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, k: int = 10, temperature: float | None = None
) -> float:
    """Top-1 accuracy, in [0, 1], of the `k` nearest training features; see `knn_sweep`.

    Args:
        temperature: of weighted votes; every neighbour has one vote when None.
    """
    votes = knn_sweep(train_x, train_y, test_x, test_y, (k,), temperature or 1.0)[k]
    return votes.majority if temperature is None else votes.weighted


def knn_sweep(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    k: Sequence[int] = (1, 10, 20),
    temperature: float = 0.07,
) -> dict[int, Votes]:
    """Classify by the nearest training features by cosine, all `k` in one pass.

    Args:
        train_x: (N, D); of a k beyond N, all N vote.
        train_y: (N,) int64 classes.
        test_x: (Q, D).
        test_y: (Q,) int64.
        k: numbers of neighbours, each > 0.
        temperature: of the weighted votes, > 0.

    Raises:
        UserError: the training labels cannot teach anything; see `check_labels`.

    Source: weighted votes, Wu 2018, arXiv:1805.01978, section 3.4.
    """
    check_labels(train_y)
    cosines, rows = neighbours(test_x, train_x, min(max(k), len(train_x)))
    labels = train_y[rows]
    weights = torch.exp((cosines - cosines[:, :1]) / temperature)  # relative to the nearest: never overflows
    classes = int(train_y.max()) + 1
    result = {}
    for count in k:
        majority = _vote(labels[:, :count], torch.ones_like(weights[:, :count]), classes)
        weighted = _vote(labels[:, :count], weights[:, :count], classes)
        result[count] = Votes(_share_equal(majority, test_y), _share_equal(weighted, test_y))
    return result


def _vote(labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    """The class of each row (Q,) that gathers the largest sum of `weights` (Q, k)."""
    rows = max(1, _BLOCK_SCORES // classes)
    winners = []
    for block, shares in zip(labels.split(rows), weights.split(rows), strict=True):
        tally = torch.zeros(len(block), classes, dtype=shares.dtype, device=shares.device)
        winners.append(tally.scatter_add_(1, block, shares).argmax(dim=1))
    return torch.cat(winners)


def _share_equal(predicted: Tensor, truth: Tensor) -> float:
    return (predicted == truth).double().mean().item()


@dataclass(frozen=True)
class LinearModel:
    """Multinomial logistic regression on standardised features.

    Attributes:
        mean: (D,) of the training features.
        std: (D,); 1 where a feature does not vary.
        weight: (C, D + 1), bias last.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Scores (N, C) of features (N, D)."""
        return (x.float() - self.mean) / self.std @ self.weight[:, :-1].T + self.weight[:, -1]

    def score(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Top-1 accuracy in [0, 1] and mean cross-entropy in nats of labelled features."""
        right, loss = 0.0, 0.0
        rows = _rows_of_block(x, self.weight)
        for features, labels in zip(x.split(rows), y.split(rows), strict=True):
            logits = self.logits(features)
            right += (logits.argmax(dim=1) == labels).sum().item()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
        return right / len(y), loss / len(y)


def fit_logistic(x: Tensor, y: Tensor, l2: float, classes: int, start: LinearModel | None = None) -> LinearModel:
    """Minimise mean cross-entropy + l2 / 2 |W|^2 by L-BFGS; the bias is not penalised.

    Args:
        x: (N, D) features, standardised here.
        y: (N,) int64 classes below `classes`.
        l2: penalty; scikit-learn's `C` is 1 / (N l2).
        start: a fit of the same `x` at another penalty; its standardisation and weights are taken over.
    """
    if start is None:
        mean, std = x.float().mean(dim=0), x.float().std(dim=0, correction=0)
        std = torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, 1.0)
        start = LinearModel(mean, std, torch.zeros(classes, x.shape[1] + 1, device=x.device))
    inputs = (x.float() - start.mean) / start.std
    weight = start.weight.clone()
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=200,
        tolerance_grad=1e-4,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        loss, weight.grad = _loss_and_gradient(inputs, y, weight, l2)
        return loss

    optimizer.step(objective)
    return LinearModel(start.mean, start.std, weight)


EV = 0
TOL = 1e-5


def _loss_and_gradient(inputs: Tensor, y: Tensor, weight: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """By hand and by blocks: autograd would keep the scores of all rows."""
    penalised = F.pad(weight[:, :-1], (0, 1))
    loss, gradient = weight.new_zeros(()), torch.zeros_like(weight)
    rows = _rows_of_block(inputs, weight)
    for features, labels in zip(inputs.split(rows), y.split(rows), strict=True):
        log_probability = F.log_softmax(features @ weight[:, :-1].T + weight[:, -1], dim=1)
        truth = labels[:, None]
        loss -= log_probability.gather(1, truth).sum()
        residual = log_probability.exp_()
        residual.scatter_add_(1, truth, residual.new_full(truth.shape, -1.0))
        gradient[:, :-1] += residual.T @ features
        gradient[:, -1] += residual.sum(dim=0)
    return loss / len(y) + 0.5 * l2 * penalised.square().sum(), gradient / len(y) + l2 * penalised


def _rows_of_block(x: Tensor, weight: Tensor) -> int:
    return max(1, _BLOCK_SCORES // max(len(weight), x.shape[1]))


@dataclass(frozen=True)
class Probe:
    """A linear probe and how it was chosen.

    Attributes:
        accuracy: top-1 on the test features, in [0, 1].
        l2: the penalty chosen.
        held_out_accuracy: top-1 on held-out training features at that penalty.
    """

    accuracy: float
    l2: float
    held_out_accuracy: float


def linear_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, l2_grid: Sequence[float] = L2_GRID, seed: int = 0
) -> Probe:
    """Fit a linear classifier whose penalty is chosen on held-out training features; the test set only judges.

    Args:
        train_x: (N, D).
        train_y: (N,) int64 classes.
        test_x: (Q, D).
        test_y: (Q,) int64; a class that was never taught counts as told wrong.
        l2_grid: penalties to choose from, strongest first.
        seed: of the held-out folds.

    Raises:
        UserError: the training labels cannot teach anything; see `check_labels`.
    """
    check_labels(train_y)
    classes = int(max(train_y.max(), test_y.max())) + 1
    l2, held_out_accuracy = choose_l2(train_x, train_y, classes, l2_grid, seed)
    model = fit_logistic(train_x, train_y, l2, classes)
    return Probe(model.score(test_x, test_y)[0], l2, held_out_accuracy)


def choose_l2(x: Tensor, y: Tensor, classes: int, l2_grid: Sequence[float], seed: int) -> tuple[float, float]:
    """The penalty of highest held-out accuracy, and that accuracy; cross-entropy decides between equals.

    Cross-entropy alone would shrink weak features, and so the controls, until they say nothing.
    """
    folds = held_out_folds(y, seed)
    tried = range(_FOLDS if len(y) <= MOST_SAMPLES_CROSSED else 1)
    splits = [(folds != fold, folds == fold) for fold in tried]
    data = [(x[fit], y[fit], x[held], y[held]) for fit, held in splits if fit.any() and held.any()]
    models: list[LinearModel | None] = [None] * len(data)
    scores: list[tuple[float, float]] = []
    for l2 in l2_grid:
        parts = []
        for index, (fit_x, fit_y, held_x, held_y) in enumerate(data):
            model = models[index] = fit_logistic(fit_x, fit_y, l2, classes, models[index])
            parts.append(model.score(held_x, held_y))
        scores.append((fmean(accuracy for accuracy, _ in parts), -fmean(loss for _, loss in parts)))
        if len(scores) - 1 - scores.index(max(scores)) >= _PATIENCE:
            break
    best = scores.index(max(scores))
    return l2_grid[best], scores[best][0]


def held_out_folds(y: Tensor, seed: int) -> Tensor:
    """A fold in 0..4 for every row (N,), each class spread evenly, the same on every machine."""
    labels = y.cpu().numpy()
    folds = np.empty(len(labels), dtype=np.int64)
    shuffled = np.argsort(mix(seed, "fold", np.arange(len(labels))), kind="stable")
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    folds[by_class] = np.arange(len(labels)) % _FOLDS
    return torch.from_numpy(folds).to(y.device)


def rows_per_class(y: Tensor, per_class: int, seed: int) -> Tensor:
    """Row numbers, ascending, of at most `per_class` rows of every class, drawn by `seed` alone."""
    labels = y.cpu().numpy()
    order = np.argsort(mix(seed, "budget", np.arange(len(labels))), kind="stable")
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return torch.from_numpy(np.sort(np.concatenate(chosen))).to(y.device)


def check_labels(y: Tensor) -> None:
    """Refuse labels that teach nothing.

    Raises:
        UserError: there are none, some are missing (negative), or all are of one class.
    """
    if not len(y):
        raise UserError("the training set of the probe is empty")
    missing = int((y < 0).sum())
    if missing:
        raise UserError(f"{missing} of {len(y)} samples have no label; probes want a .cls field in every sample")
    if bool((y == y[0]).all()):
        raise UserError(f"all {len(y)} training samples are of class {int(y[0])}; a probe wants two classes at least")
