"""Differences, intervals and p-values are those of independent implementations, and the verdicts follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from jobs.paired import (
    Difference,
    compare,
    deciding_items,
    detectable,
    holm,
    items_needed,
    judge,
    level_interval,
    mean_metric,
    minimum_detectable_effect,
    too_few,
)

Answers = tuple[NDArray[np.float64], NDArray[np.float64]]


def answers(seed: int, n: int = 200, effect: float = 0.0) -> Answers:
    """Scores in 0..1 of two variants that find the same items easy."""
    random = np.random.default_rng(seed)
    ease = random.beta(0.5, 0.5, n)
    return (
        np.clip(ease + random.normal(0, 0.2, n), 0, 1),
        np.clip(ease + random.normal(effect, 0.2, n), 0, 1),
    )


def test_the_interval_of_a_mean_is_students_of_the_differences() -> None:
    baseline, candidate = answers(1)
    found = compare(mean_metric(baseline, candidate), 200, seed=0, n_resamples=20_000)
    theirs = stats.ttest_rel(candidate, baseline).confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(candidate - baseline))
    assert found.interval(0.95) == pytest.approx((theirs.low, theirs.high), abs=0.02 * (theirs.high - theirs.low))
    bootstrap = stats.bootstrap((candidate - baseline,), np.mean, n_resamples=20_000, rng=0)
    assert found.standard_error == pytest.approx(bootstrap.standard_error, rel=0.03)


def test_the_p_value_of_right_and_wrong_answers_is_mcnemars_mid_p() -> None:
    only_baseline, only_candidate, n = 4, 13, 80
    baseline, candidate = np.zeros(n), np.zeros(n)
    baseline[:only_baseline] = 1
    candidate[only_baseline : only_baseline + only_candidate] = 1
    found = compare(mean_metric(baseline, candidate), n, seed=0, n_resamples=50_000)
    n_different = only_baseline + only_candidate
    exact = stats.binomtest(only_baseline, n_different).pvalue
    mid_p = exact - stats.binom.pmf(only_baseline, n_different, 0.5)
    assert found.p_value == pytest.approx(mid_p, abs=0.002) and exact > mid_p + 0.01


def test_items_of_a_group_are_drawn_together_and_not_exchanged() -> None:
    baseline, candidate = answers(6, n=60)
    twice = mean_metric(np.repeat(baseline, 2), np.repeat(candidate, 2))
    found = compare(twice, 120, seed=0, groups=np.repeat(np.arange(60), 2) + 7)
    once = compare(mean_metric(baseline, candidate), 60, seed=0)
    assert (found.n_items, found.n_units) == (120, 60)
    assert found.interval(0.9) == pytest.approx(once.interval(0.9))
    assert found.interval(1 - found.p_value - 1e-6)[0] < 0 < found.interval(1 - found.p_value + 1e-6)[1]
    low, high = found.interval(1 - found.p_value)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)


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


def test_what_can_be_detected_after_a_run_follows_from_how_the_variants_were_paired() -> None:
    baseline, candidate = answers(8)
    metric = mean_metric(baseline, candidate)
    found = compare(metric, 200, seed=0)
    deviation = float(np.std(candidate - baseline))
    assert found.detectable(200) == pytest.approx(minimum_detectable_effect(deviation, 200), rel=0.05)
    assert found.detectable(800) == pytest.approx(found.detectable(200) / 2)
    correlation = float(np.corrcoef(baseline, candidate)[0, 1])
    assert detectable(metric, 200, seed=0, correlation=correlation) == pytest.approx(found.detectable(200), rel=0.1)


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


def told_equivalent(n_candidates: int, *, corrected: bool) -> float:
    """How often any of so many candidates that differ by just the margin is said to be equivalent."""
    random, n_families, margin, error = np.random.default_rng(9), 400, 0.05, 0.01

    def is_equivalent(difference: float) -> bool:
        found = Difference(
            n_items=400, n_units=400, baseline=0.5, candidate=0.5 + difference, difference=difference,
            standard_error=error, p_value=1.0,
        )  # fmt: skip
        together = n_candidates if corrected else 1
        judged = judge(found, adjusted_p=1.0, margin=margin, higher_is_better=True, n_candidates=together)
        return judged.verdict == "equivalent"

    families = random.normal(-margin, error, (n_families, n_candidates)).tolist()
    return float(np.mean([any(map(is_equivalent, family)) for family in families]))


def test_of_many_candidates_that_are_not_equivalent_any_is_called_so_as_often_as_alpha_allows() -> None:
    low, high = (float(share) / 400 for share in stats.binom.interval(0.999, 400, 0.05))
    assert low <= told_equivalent(1, corrected=True) <= high
    assert low <= told_equivalent(12, corrected=True) <= high
    assert told_equivalent(12, corrected=False) > 0.3


def test_too_few_items_or_too_few_that_differ_get_no_interval() -> None:
    assert too_few("top_1", 50, 10) is None and too_few("top_1", 500, 0) is None
    assert "49 items, at least 50" in str(too_few("top_1", 49, 49))
    assert "only 9 items are answered differently" in str(too_few("top_1", 500, 9))
    assert "99 items, at least 100" in str(too_few("average_precision_50/dog", 99, 99))


def test_groups_of_copies_count_instead_of_items_and_each_class_of_a_mean_needs_some() -> None:
    groups = np.concatenate([np.repeat(np.arange(20), 10), 20 + np.arange(300)])  # twenty pictures in ten forms, others
    assert "20 groups of copies, at least 100" in str(too_few("copies_found_at_1e-3", 500, 500, groups=groups))
    assert too_few("copies_found_at_1e-3", 200, 200, groups=np.arange(200) // 2) is None
    classes = np.repeat([0.0, 1.0], [191, 9])
    assert "a class has 9 items, at least 10" in str(too_few("mean_per_class_accuracy", 200, 200, classes=classes))


def test_what_is_undecided_says_how_many_items_would_decide_it_if_the_difference_stays() -> None:
    def found(difference: float, standard_error: float) -> Difference:
        return Difference(
            n_items=200, n_units=200, baseline=0.5, candidate=0.5 + difference, difference=difference,
            standard_error=standard_error, p_value=0.13,
        )  # fmt: skip

    near = deciding_items(found(0.0105, 0.007), margin=0.02)  # shown at 1.96 errors, within the margin at 1.64
    assert near == pytest.approx(200 * min((1.96 * 0.007 / 0.0105) ** 2, (1.645 * 0.007 / 0.0095) ** 2), abs=2)
    assert deciding_items(found(0.0, 0.02), margin=0.02) == pytest.approx(200 * 1.645**2, abs=2)
    assert deciding_items(found(0.03, 0.02), margin=0.02) == pytest.approx(200 * (1.96 * 2 / 3) ** 2, abs=2)
    assert deciding_items(found(0.5, 0.001), margin=0.02) == 201


def test_one_variant_has_the_interval_of_its_own_mean() -> None:
    baseline, candidate = answers(7)
    low, high = level_interval(mean_metric(baseline, candidate), 200, seed=0)
    half = stats.t.ppf(0.975, 199) * np.std(baseline, ddof=1) / np.sqrt(200)
    assert (low, high) == pytest.approx((baseline.mean() - half, baseline.mean() + half), abs=0.1 * half)
