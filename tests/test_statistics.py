"""The short form of `make bench-stats`: alpha, coverage and power hold, and comparisons that break them are caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.comparisons import Case, Outcome, coverage, one_run, shown, simulated_null, stated, told_apart
from benchmarks.simulated import KINDS, Kind
from jobs.paired import POWER, Difference, Metric, compare

RUNS = 300
SURE = 1e-4  # how often a test may fail by chance
N_RESAMPLES = 300
OF = {kind.name: kind for kind in KINDS}


def case(kind: Kind, n_items: int = 200) -> Case:
    return simulated_null(kind, n_items, n_resamples=N_RESAMPLES)


def repeated(of: Case, compare: Callable[..., Difference] = compare, runs: int = RUNS) -> list[Outcome]:
    return [one_run(of, seed, compare) for seed in range(runs)]


def allowed(share: float, runs: int = RUNS) -> tuple[float, float]:
    """Which shares may be seen in so many runs where `share` is true."""
    low, high = binom.interval(1 - SURE, runs, share)
    return low / runs, high / runs


@pytest.mark.parametrize(("name", "runs"), [("accuracy", 300), ("F1", 300), ("error rate", 300), ("copies found", 100)])
def test_equal_variants_are_told_apart_as_often_as_alpha_allows_and_intervals_hold_zero(name: str, runs: int) -> None:
    found = repeated(case(OF[name]), runs=runs)
    assert allowed(0.05, runs)[0] <= told_apart(found) <= allowed(0.05, runs)[1]
    assert allowed(0.93, runs)[0] <= coverage(case(OF[name]), found) <= allowed(0.97, runs)[1]


def test_equal_detectors_are_told_apart_as_often_as_alpha_allows() -> None:
    found = repeated(case(OF["average precision"], 100), runs=60)
    assert told_apart(found) <= allowed(0.05, 60)[1]
    assert coverage(case(OF["average precision"], 100), found) >= allowed(0.93, 60)[0]


@pytest.mark.parametrize("name", ["accuracy", "ranking"])
def test_what_is_stated_as_detectable_is_detected_as_often_as_stated(name: str) -> None:
    before, after, correlation = stated(case(OF[name]), 5)
    assert correlation == pytest.approx(0.5, abs=0.15)
    for difference in (before, after):
        better = shown(case(OF[name]), difference)
        assert better.truth == pytest.approx(difference, rel=0.02)
        found = repeated(better)
        assert allowed(POWER - 0.05)[0] <= told_apart(found, 1) <= allowed(POWER + 0.05)[1]
        assert allowed(0.93)[0] <= coverage(better, found) <= allowed(0.97)[1]


# -- what is wrong is caught --------------------------------------------------------------------------------------


def unpaired(metric: Metric, n: int, *, seed: int, groups: None, n_resamples: int) -> Difference:
    """As if each variant had answered items of its own."""
    found = compare(metric, n, seed=seed, n_resamples=n_resamples)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=(2, n_resamples)).astype(float)
    nothing = np.zeros_like(counts[0])
    draws = metric(np.hstack([nothing, counts[1]])) - metric(np.hstack([counts[0], nothing]))
    return replace(found, standard_error=float(draws.std()), p_value=level(found, float(draws.std())))


def level(found: Difference, standard_error: float) -> float:
    from scipy.stats import norm

    return float(2 * norm.sf(abs(found.difference) / standard_error))


def overconfident(metric: Metric, n: int, *, seed: int, groups: None, n_resamples: int) -> Difference:
    """As if each item counted twice."""
    found = compare(metric, n, seed=seed, n_resamples=n_resamples)
    narrow = found.standard_error / np.sqrt(2)
    return replace(found, standard_error=narrow, p_value=level(found, narrow))


@pytest.mark.parametrize(
    ("name", "wrong", "is_too_wide"),
    [("accuracy", unpaired, True), ("F1", overconfident, False)],
)
def test_a_wrong_comparison_is_caught(name: str, wrong: Callable[..., Difference], is_too_wide: bool) -> None:
    found = repeated(case(OF[name]), wrong)
    if is_too_wide:
        assert coverage(case(OF[name]), found) > 0.97 and told_apart(found) < allowed(0.05)[0]
    else:
        assert coverage(case(OF[name]), found) < allowed(0.93)[0] and told_apart(found) > allowed(0.05)[1]
