"""Metrics of weighted items are those of a set in which items occur as often as they weigh; both variants apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_curve

from jobs.average_precision import matched_classes, mean_average_precision
from jobs.corpus_metrics import (
    Copies,
    Detections,
    TwoColumns,
    calibration_error,
    copies_found_at,
    detection_calibration_error,
    detection_metric,
    mean_over_classes,
    ratio_metric,
    spread_of_others,
)
from jobs.paired import Metric
from tests.test_average_precision import N_IMAGES, generated

N = 40


def of(metric: Metric, counts: NDArray[np.int64]) -> tuple[float, float]:
    """The metric of the baseline and of the candidate with these counts of the items."""
    nothing = np.zeros_like(counts)
    weights = np.array([[*counts, *nothing], [*nothing, *counts]], np.float64)
    baseline, candidate = metric(weights).tolist()
    return baseline, candidate


@pytest.fixture(params=range(4))
def drawn(request: pytest.FixtureRequest) -> tuple[Any, NDArray[np.int64]]:
    """A random generator, and how often each of N items occurs; every time for the first."""
    random = np.random.default_rng(request.param)
    return random, np.ones(N, np.int64) if request.param == 0 else random.multinomial(N, [1 / N] * N)


def test_f1_and_accuracy_by_class_are_scikit_learns(drawn: tuple[Any, NDArray[np.int64]]) -> None:
    random, counts = drawn
    truth = random.integers(0, 3, N)
    answers = [np.where(random.random(N) < right, truth, random.integers(0, 3, N)) for right in (0.5, 0.8)]
    again = np.repeat(np.arange(N), counts)
    balanced = mean_over_classes(*((answer == truth).astype(float) for answer in answers), truth)
    is_it, said = truth == 1, [answer == 1 for answer in answers]
    f1 = ratio_metric(*((2.0 * (one & is_it), 1.0 * one + is_it) for one in said))
    for i, answer in enumerate(answers):
        assert of(balanced, counts)[i] == pytest.approx(balanced_accuracy_score(truth[again], answer[again]), abs=1e-6)
        assert of(f1, counts)[i] == pytest.approx(f1_score(is_it[again], said[i][again]), abs=1e-6)


def test_calibration_error_is_the_weighted_distance_in_each_bin(drawn: tuple[Any, NDArray[np.int64]]) -> None:
    random, counts = drawn
    confidence, right = random.random((2, N)), random.integers(0, 2, (2, N)).astype(float)
    metric = calibration_error((confidence[0], right[0]), (confidence[1], right[1]), n_bins=5)
    again = np.repeat(np.arange(N), counts)
    for i in range(2):
        said, was = confidence[i][again], right[i][again]
        expected = sum(
            abs(said[here].mean() - was[here].mean()) * here.mean()
            for low in np.arange(5) / 5
            if (here := (said >= low) & (said < low + 0.2)).any()
        )
        assert of(metric, counts)[i] == pytest.approx(expected, abs=1e-6)


def test_what_was_said_without_confidence_is_left_out_and_nothing_said_is_no_number() -> None:
    silent, right = np.array([0.9, np.nan, 0.2]), np.array([1.0, 1.0, 0.0])
    once = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0]], float)
    found = calibration_error((silent, right), (np.full(3, 0.5), right))(once)
    assert found.tolist() == pytest.approx([0.15, 1 / 6, np.nan], nan_ok=True)
    assert np.isnan(ratio_metric((right, 0 * right), (right, right))(once[:1])).all()


def test_detections_of_a_class_are_calibrated_where_it_is_labelled() -> None:
    labels, found = generated(5, ties=False)
    classes = matched_classes(labels, found)
    counts = np.zeros((1, 2 * N_IMAGES))
    counts[0, N_IMAGES + 1 : N_IMAGES + 4] = [1, 2, 3]
    gaps, n = np.zeros(15), 0.0
    for matched in classes:
        if not counts[0, N_IMAGES:] @ matched.n_labelled:
            continue
        answers = zip(matched.image, matched.score, matched.is_hit[0], matched.is_ignored[0], strict=True)
        for image, score, is_hit, is_ignored in answers:
            if not is_ignored:
                gaps[int(score * 15)] += counts[0, N_IMAGES + image] * (score - is_hit)
                n += counts[0, N_IMAGES + image]
    error = detection_calibration_error(matched_classes(labels, []), classes)
    assert error(counts)[0] == pytest.approx(np.abs(gaps).sum() / n)
    assert np.isnan(error(counts[:, ::-1])[0])  # the baseline found nothing


def test_copies_found_are_those_of_the_roc_curve_of_groups_that_occur_as_often_as_they_weigh(
    drawn: tuple[Any, NDArray[np.int64]],
) -> None:
    random, counts = drawn
    groups = np.arange(N) // 2
    counts = counts[groups]
    vectors = [np.repeat(random.normal(size=(N // 2, 8)), 2, axis=0) + random.normal(size=(N, 8)) for _ in range(2)]
    similarity = [(v @ v.T).round(1) for v in vectors]  # some are equal
    again = np.repeat(np.arange(N), counts)
    # two occurrences of a group are two groups, and their pairs are neither copies nor others
    occurrence = np.concatenate([np.arange(count) for count in counts]) if counts.any() else np.zeros(0, np.int64)
    first, second = np.triu_indices(len(again), 1)
    is_copy = (groups[again[first]] == groups[again[second]]) & (occurrence[first] == occurrence[second])
    is_other = groups[again[first]] != groups[again[second]]
    kept = is_copy | is_other
    for rate in (0.05, 0.3):
        metric = copies_found_at(rate, similarity[0], similarity[1], groups, spread=1.0)
        for i in range(2):
            fpr, tpr, _ = roc_curve(
                is_copy[kept], similarity[i][again[first], again[second]][kept], drop_intermediate=False
            )
            assert of(metric, counts)[i] == pytest.approx(tpr[fpr <= rate].max(), abs=1e-6)


def test_pairs_are_resampled_less_the_more_of_their_number_each_pair_adds_alone() -> None:
    random, groups = np.random.default_rng(3), np.arange(300)
    alone = [np.triu(random.random((300, 300)), 1) for _ in range(2)]
    alone = [one + one.T for one in alone]
    assert spread_of_others(0.01, alone[0], alone[1], groups) == pytest.approx(np.sqrt(np.sqrt(2) - 1), abs=0.03)
    popular = [np.add.outer(one, one) for one in random.normal(size=(2, 300))]  # a few pictures are like all others
    assert spread_of_others(0.01, popular[0], popular[1], groups) > 0.95
    assert spread_of_others(0.01, alone[0], alone[0], groups) < 0.7 and spread_of_others(0, *alone, groups) == 1


def test_copies_among_nothing_else_and_nothing_without_copies_are_no_number() -> None:
    alike = np.ones((2, 2))
    for groups in ([0, 0], [0, 1]):
        assert np.isnan(of(copies_found_at(0.1, alike, alike, np.array(groups)), np.ones(2, np.int64))).all()


def test_each_variants_average_precision_is_its_own() -> None:
    labels, found = generated(3, ties=False)
    others = generated(4, ties=False)[1]
    baseline, candidate = matched_classes(labels, found), matched_classes(labels, others)
    counts = np.random.default_rng(0).multinomial(N_IMAGES, [1 / N_IMAGES] * N_IMAGES)
    alone = [mean_average_precision(one, counts[None].astype(float))[0] for one in (baseline, candidate)]
    assert of(detection_metric(baseline, candidate), counts) == pytest.approx(alone, abs=1e-12)


def test_items_that_are_answered_differently_are_told_whatever_the_metric() -> None:
    ones = np.ones(4)
    columns = TwoColumns((np.array([0, 1, np.nan, 0.5]), ones))
    other = TwoColumns((np.array([0, 0.9, np.nan, 0.5 + 1e-9]), ones))
    assert columns.differs(other).tolist() == [False, True, False, False]
    labels, detections = generated(0, ties=False)
    matched = Detections(tuple(matched_classes(labels, detections)))
    image_id = detections[0]["image_id"]
    changed = [{**detections[0], "score": 0.123}, *detections[1:]]
    assert not matched.differs(matched).any()
    place = sorted(image["id"] for image in labels["images"]).index(image_id)
    apart = matched.differs(Detections(tuple(matched_classes(labels, changed))))
    assert np.flatnonzero(apart).tolist() == [place]
    alike = np.eye(3)
    moved = alike.copy()
    moved[0, 2] = moved[2, 0] = 0.5
    groups = np.arange(3)
    assert Copies(alike, groups).differs(Copies(moved, groups)).tolist() == [True, False, True]
