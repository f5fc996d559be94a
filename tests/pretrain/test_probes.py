"""k-NN and linear probe against scikit-learn, and the choices that make a probe honest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from data_pipelines.base import UserError
from pretrain import probes


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y, dtype=torch.int64)
    return x[:1400], y[:1400], x[1400:], y[1400:]


def noisy(samples, width, seed, gap=0.6):
    """Features of which a few tell the class and the rest are noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(samples) % 2
    x = rng.normal(size=(samples, width)).astype(np.float32)
    x[:, :5] += gap * y[:, None]
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_agrees_with_scikit_learn(digits, k):
    train_x, train_y, test_x, test_y = digits
    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train_x, train_y)
    assert probes.knn(*digits, k=k) == pytest.approx(reference.score(test_x, test_y), abs=1 / len(test_y))


def test_weighted_votes_agree_with_their_formula(digits):
    train_x, train_y, test_x, test_y = (part.numpy() for part in digits)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (test_x, train_x)]
    cosines = unit[0] @ unit[1].T
    nearest = np.argsort(-cosines, axis=1)[:, :20]
    tally = np.zeros((len(test_y), 10))
    for row, columns in enumerate(nearest):
        for column in columns:
            tally[row, train_y[column]] += np.exp(cosines[row, column] / 0.07)
    expected = np.mean(tally.argmax(axis=1) == test_y)
    assert probes.knn_sweep(*digits, k=(20,), temperature=0.07)[20].weighted == pytest.approx(expected, abs=1e-3)
    assert probes.knn(*digits, k=20, temperature=0.07) == pytest.approx(expected, abs=1e-3)


def test_one_pass_for_many_k_equals_a_pass_for_each(digits):
    swept = probes.knn_sweep(*digits, k=(1, 7, 30))
    assert {k: votes.majority for k, votes in swept.items()} == {k: probes.knn(*digits, k=k) for k in (1, 7, 30)}


def test_small_blocks_change_nothing(digits, monkeypatch):
    whole = probes.knn_sweep(*digits), probes.linear_probe(*digits, l2_grid=(0.1, 0.01))
    monkeypatch.setattr(probes, "_BLOCK_SCORES", 40_000)
    blocked = probes.knn_sweep(*digits), probes.linear_probe(*digits, l2_grid=(0.1, 0.01))
    assert blocked[0] == whole[0]
    assert blocked[1].accuracy == pytest.approx(whole[1].accuracy, abs=1 / 397)


def test_more_neighbours_than_samples_means_all_of_them():
    x, y = torch.eye(3), torch.tensor([0, 1, 1])
    assert probes.knn(x, y, x, torch.tensor([1, 1, 1]), k=50) == 1.0


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_neighbours_are_the_largest_cosines_in_order(seed, k, zero_rows):
    rng = np.random.default_rng(seed)
    bank = rng.normal(size=(12, 4)).astype(np.float32)
    bank[:zero_rows] = 0
    queries = rng.normal(size=(7, 4)).astype(np.float32)
    cosines, rows = probes.neighbours(torch.from_numpy(queries), torch.from_numpy(bank), k)
    norms = np.maximum(np.linalg.norm(bank, axis=1), 1e-12)
    expected = queries @ bank.T / np.linalg.norm(queries, axis=1, keepdims=True) / norms
    np.testing.assert_allclose(cosines, np.sort(expected, axis=1)[:, ::-1][:, :k], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, rows.numpy(), axis=1), cosines, atol=1e-5)


@pytest.mark.parametrize("l2", [1.0, 0.1, 0.005])
def test_logistic_regression_agrees_with_scikit_learn(digits, l2):
    train_x, train_y, test_x, test_y = digits
    scaler = StandardScaler().fit(train_x)
    reference = LogisticRegression(C=1 / (l2 * len(train_x)), tol=1e-6, max_iter=2000)
    reference.fit(scaler.transform(train_x), train_y)
    model = probes.fit_logistic(train_x, train_y, l2, classes=10)
    expected = torch.tensor(reference.predict_proba(scaler.transform(test_x)), dtype=torch.float32)
    torch.testing.assert_close(model.logits(test_x).softmax(dim=1), expected, atol=0.02, rtol=0)
    assert model.score(test_x, test_y)[0] == pytest.approx(reference.score(scaler.transform(test_x), test_y), abs=0.003)


def test_a_warm_start_ends_where_a_cold_one_does(digits):
    train_x, train_y, test_x, _ = digits
    strong = probes.fit_logistic(train_x, train_y, 1.0, classes=10)
    warm = probes.fit_logistic(train_x, train_y, 0.01, classes=10, start=strong)
    cold = probes.fit_logistic(train_x, train_y, 0.01, classes=10)
    torch.testing.assert_close(warm.logits(test_x).softmax(1), cold.logits(test_x).softmax(1), atol=0.02, rtol=0)


def test_the_chosen_penalty_beats_a_fixed_one_where_some_labels_are_wrong():
    (train_x, train_y), test = noisy(200, 80, seed=0, gap=1.0), noisy(2000, 80, seed=1, gap=1.0)
    wrong = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.1
    train_y = torch.where(wrong, 1 - train_y, train_y)
    chosen = probes.linear_probe(train_x, train_y, *test)
    fixed = probes.linear_probe(train_x, train_y, *test, l2_grid=(1e-4,))
    assert chosen.l2 > 0.1
    assert chosen.accuracy > fixed.accuracy + 0.05


def test_weak_features_are_not_shrunk_to_silence():
    chosen = [probes.linear_probe(*noisy(200, 80, seed), *noisy(1000, 80, 50 + seed)).accuracy for seed in range(4)]
    assert min(chosen) > 0.58


def test_the_test_set_has_no_say_in_the_penalty():
    train, test = noisy(200, 100, seed=0), noisy(100, 100, seed=1)
    shuffled = test[0], test[1].flip(0)
    one, other = probes.linear_probe(*train, *test), probes.linear_probe(*train, *shuffled)
    assert (one.l2, one.held_out_accuracy) == (other.l2, other.held_out_accuracy)
    assert one.accuracy != other.accuracy


def test_scale_and_constant_features_change_nothing(digits):
    train_x, train_y, test_x, test_y = digits
    stretched = [torch.cat([1000 * x + 5, torch.full((len(x), 3), 7.0)], dim=1) for x in (train_x, test_x)]
    plain = probes.linear_probe(*digits, l2_grid=(0.1, 0.01))
    other = probes.linear_probe(stretched[0], train_y, stretched[1], test_y, l2_grid=(0.1, 0.01))
    assert other.accuracy == pytest.approx(plain.accuracy, abs=0.006)
    assert other.l2 == plain.l2


def test_a_probe_is_the_same_every_time(digits):
    small = digits[0][:300], digits[1][:300], digits[2], digits[3]
    assert probes.linear_probe(*small) == probes.linear_probe(*small)


def test_a_class_that_was_never_taught_counts_as_wrong():
    train, (test_x, _) = noisy(60, 6, seed=0), noisy(10, 6, seed=1)
    assert probes.linear_probe(*train, test_x, torch.full((10,), 5)).accuracy == 0
    assert probes.knn(*train, test_x, torch.full((10,), 5)) == 0


def test_collapsed_features_give_chance_and_no_error():
    y = torch.arange(40) % 2
    same = torch.ones(40, 8)
    assert probes.linear_probe(same, y, same, y).accuracy == pytest.approx(0.5)
    assert probes.knn(same, y, same, y) == pytest.approx(0.5)


@given(st.lists(st.integers(0, 4), min_size=5, max_size=80), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_folds_hold_every_class_evenly(labels, seed):
    y = torch.tensor(labels)
    folds = probes.held_out_folds(y, seed)
    sizes = torch.bincount(folds, minlength=5)
    assert sizes.max() - sizes.min() <= 1
    for label in y.unique():
        of_class = torch.bincount(folds[y == label], minlength=5)
        assert of_class.max() - of_class.min() <= 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_budget_takes_as_many_of_every_class_as_it_says(labels, per_class, seed):
    y = torch.tensor(labels)
    rows = probes.rows_per_class(y, per_class, seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    for label in y.unique():
        assert (y[rows] == label).sum() == min(per_class, int((y == label).sum()))


def test_draws_of_a_budget_differ_by_seed():
    y = torch.arange(100) % 2
    assert probes.rows_per_class(y, 10, 0).tolist() != probes.rows_per_class(y, 10, 1).tolist()


@pytest.mark.parametrize(
    ("labels", "words"),
    [([], "empty"), ([0, 1, -1], "1 of 3 samples have no label"), ([3, 3, 3], "all 3 training samples are of class 3")],
)
def test_labels_that_teach_nothing_are_refused(labels, words):
    y = torch.tensor(labels, dtype=torch.int64)
    with pytest.raises(UserError, match=words):
        probes.linear_probe(torch.ones(len(y), 2), y, torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
