"""Differences, intervals and p-values are those of independent implementations, and the verdicts follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from jobs.paired import compare, holm, items_needed, judge, mean_metric, minimum_detectable_effect, too_few

Answers = tuple[NDArray[np.float64], NDArray[np.float64]]


def answers(seed: int, n: int = 200, effect: float = 0.0) -> Answers:
    """Scores in 0..1 of two variants that find the same items easy."""
    random = np.random.default_rng(seed)
    ease = random.beta(0.5, 0.5, n)
    return (
        np.clip(ease + random.normal(0, 0.2, n), 0, 1),
        np.clip(ease + random.normal(effect, 0.2, n), 0, 1),
    )


def test_the_interval_is_scipys_but_for_the_widening() -> None:
    baseline, candidate = answers(1)
    found = compare(mean_metric(baseline, candidate), 200, seed=0, n_resamples=20_000)
    theirs = stats.bootstrap((candidate - baseline,), np.mean, method="BCa", n_resamples=20_000, rng=0)
    widening = np.sqrt(200 / 199) * stats.t.ppf(0.975, 199) / stats.norm.ppf(0.975)
    low, high = found.interval(0.95)
    assert found.difference == pytest.approx(np.mean(candidate - baseline))
    assert found.standard_error == pytest.approx(theirs.standard_error, rel=0.03)
    assert (high - low) == pytest.approx(
        (theirs.confidence_interval.high - theirs.confidence_interval.low) * widening, rel=0.04
    )


def test_the_p_value_is_scipys_permutation_test_of_pairs() -> None:
    baseline, candidate = answers(2, n=60, effect=0.06)
    found = compare(mean_metric(baseline, candidate), 60, seed=0, n_resamples=20_000)
    theirs = stats.permutation_test(
        (candidate, baseline), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.01)


def test_equal_seeds_give_equal_answers_and_equal_variants_no_difference() -> None:
    baseline, candidate = answers(3)
    metric = mean_metric(baseline, candidate)
    first, second = (compare(metric, 200, seed=5, n_resamples=300) for _ in range(2))
    assert first.interval(0.9) == second.interval(0.9) and first.p_value == second.p_value
    same = compare(mean_metric(baseline, baseline), 200, seed=5, n_resamples=300)
    assert (same.difference, same.p_value, same.interval(0.95)) == (0.0, 1.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_several_p_values_are_adjusted_as_holm_does(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_what_can_be_detected_and_what_is_needed_are_each_others_inverse() -> None:
    effect = minimum_detectable_effect(0.3, 400)
    assert effect == pytest.approx(2.8016 * 0.3 / 20, rel=1e-4)
    assert items_needed(0.3, effect) in (400, 401)


@pytest.mark.parametrize(
    ("effect", "margin", "higher_is_better", "verdict"),
    [
        (0.2, 0.02, True, "better"),
        (0.2, 0.02, False, "worse"),
        (-0.2, 0.02, True, "worse"),
        (0.0, 0.2, True, "equivalent"),
        (0.0, 0.001, True, "undecided"),
    ],
)
def test_the_verdict_follows_from_the_interval_and_the_direction(
    effect: float, margin: float, higher_is_better: bool, verdict: str
) -> None:
    found = compare(mean_metric(*answers(4, effect=effect)), 200, seed=0, n_resamples=500)
    judged = judge(found, adjusted_p=found.p_value, margin=margin, higher_is_better=higher_is_better)
    assert judged.verdict == verdict
    assert (judged.n_more is not None) == (verdict == "undecided")


def test_too_few_items_or_too_few_that_differ_get_no_interval() -> None:
    assert too_few(50, 10) is None and too_few(500, 0) is None
    assert "49 items, at least 50" in str(too_few(49, 49))
    assert "only 9 items are answered differently" in str(too_few(500, 9))
