"""Values of single items are scikit-learn's where scores differ, and earn nothing where they do not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from jobs.item_metrics import (
    Counts,
    effective_dimensions,
    is_in_top,
    ndcg_at,
    population_stability_index,
    ranking_average_precision,
    ranks,
    recall_at,
    reciprocal_rank,
    set_counts,
    vector_shift,
)


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_are_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.permutation(30).astype(float)
    gains = 1.0 * random.integers(0, 4, 30) * (random.random(30) < 0.3)
    gains[3] = 1
    assert ndcg_at(10, scores, gains) == pytest.approx(ndcg_score([gains], [scores], k=10), abs=1e-6)
    alone = np.arange(30) == 3
    assert ranking_average_precision(scores, gains) == pytest.approx(
        label_ranking_average_precision_score([gains > 0], [scores]), abs=1e-6
    )
    # of a single relevant item, average precision is the reciprocal rank
    assert reciprocal_rank(scores, alone.astype(float)) == pytest.approx(
        label_ranking_average_precision_score([alone], [scores]), abs=1e-6
    )
    for k in (1, 5, 10):
        first = np.argsort(-scores)[:k]
        assert recall_at(k, scores, gains) == pytest.approx(np.sum(gains[first] > 0) / np.sum(gains > 0), abs=1e-6)
        assert is_in_top(k, scores, 1.0 * alone) == bool(top_k_accuracy_score([3], [scores], k=k, labels=np.arange(30)))


def test_equal_scores_are_broken_against_the_system() -> None:
    scores, gains = np.zeros(4), np.array([0.0, 2.0, 1.0, 0.0])
    assert ranks(scores, gains).tolist() == [1, 4, 3, 2]
    assert recall_at(2, scores, gains) == 0.0
    assert reciprocal_rank(scores, gains) == pytest.approx(1 / 3)
    second = np.array([0.0, 1.0, 0.0, 0.0])
    assert not is_in_top(3, scores, second) and is_in_top(4, scores, second)


def test_what_has_no_score_is_never_found() -> None:
    scores, gains = np.array([np.nan, 0.5, 0.1]), np.array([1.0, 0.0, 1.0])
    assert ranks(scores, gains).tolist() == [np.inf, 1, 2]
    assert recall_at(3, scores, gains) == 0.5 and reciprocal_rank(scores, gains) == 0.5
    assert ranking_average_precision(scores, gains) == pytest.approx((1 / 2 + 0) / 2)
    assert ndcg_at(3, scores, gains) == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    assert not is_in_top(3, scores, np.array([1.0, 0.0, 0.0]))


def test_where_nothing_is_relevant_there_is_no_value() -> None:
    nothing = np.zeros(3)
    metrics = (partial(recall_at, 1), reciprocal_rank, ranking_average_precision, partial(ndcg_at, 1))
    assert np.isnan([metric(nothing, nothing) for metric in metrics]).all()


def test_found_and_expected_sets_are_counted() -> None:
    assert set_counts({"a", "b"}, {"b", "c", "d"}) == Counts(n_hits=1, n_false=2, n_missed=1)
    assert set_counts(set(), set()) == Counts(0, 0, 0)


def test_a_shift_of_scores_shows_in_the_stability_index_and_noise_does_not() -> None:
    random = np.random.default_rng(0)
    before = random.normal(0, 1, 5000)
    assert population_stability_index(before, random.normal(0, 1, 5000)) < 0.02
    assert population_stability_index(before, random.normal(1, 1, 5000)) > 0.25
    assert np.isfinite(population_stability_index(before, np.full(100, 99.0)))


def test_vectors_in_a_plane_use_two_dimensions_and_equal_ones_none() -> None:
    random = np.random.default_rng(0)
    plane = np.zeros((1000, 64), np.float32)
    plane[:, :2] = random.normal(0, 1, (1000, 2))
    assert effective_dimensions(plane) == pytest.approx(2, abs=0.01)
    assert effective_dimensions(random.normal(0, 1, (5000, 64)).astype(np.float32)) > 60
    assert effective_dimensions(np.ones((10, 64), np.float32)) == 0


def test_without_vectors_there_is_no_shift_and_no_dimension() -> None:
    nothing, some = np.zeros((0, 4), np.float32), np.eye(4, dtype=np.float32)
    assert np.isnan([vector_shift(nothing, some), vector_shift(some, nothing), effective_dimensions(nothing)]).all()
    assert np.isnan([vector_shift(some[:1], some), population_stability_index(np.zeros(0), np.zeros(3))]).all()
