"""Two variants measured on the same items: the difference, its interval, its p-value and the verdict. Knows no lake.

A metric is a function of weights, (R, 2n) -> (R,): column i weighs item i as the baseline answered it and column n + i
as the candidate did. A mean, an average precision and a correlation are all of this form, so one bootstrap and one
permutation test serve them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]  # (R, 2n), at least 0: how often an answer is counted in each of R repetitions
Metric = Callable[[Weights], NDArray[np.float64]]  # -> (R,); NaN where it is not defined
Verdict = Literal["better", "worse", "equivalent", "undecided"]

N_RESAMPLES = 2000
CHUNK_CELLS = 4_000_000  # weights held at once, 32 MB
POWER = 0.8
# Below these, simulated 95 % intervals held the truth in less than 93 % of cases (benchmarks/README.md, "Statistics";
# `python -m benchmarks.statistics --limits`); the first beginning of a metric's name that fits counts.
MIN_ITEMS = {
    "calibration_error": 1000, "character_error_rate": 200, "average_precision": 100,
    "copies_found_at_1e-4": 320, "copies_found": 100, "": 50,
}  # fmt: skip
MIN_DIFFERENT = 10
MIN_OF_CLASS = 10  # a resampled mean of m items varies too little, by a factor of (m - 1) / m; of one item not at all


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Candidate minus baseline on n items."""

    n_items: int
    n_units: int  # of what is drawn: items, or groups of items that belong together
    baseline: float
    candidate: float
    difference: float
    standard_error: float  # of the difference, from the bootstrap
    p_value: float  # of no difference, two-sided: see `compare`

    def interval(self, confidence: float) -> tuple[float, float]:
        """Student's interval of the difference, with the bootstrap's standard error (Efron and Tibshirani 1993, An
        Introduction to the Bootstrap, chapter 12).

        n / (n - 1) makes the bootstrap's variance that of a sample. BCa is of a higher order on paper, but estimates a
        skewness: 95 % intervals of character error rates on 200 items held the truth in 91 % of cases, Student's in 94.
        """
        half = -_student_quantile((1 - confidence) / 2, self.n_units) * self.standard_error
        return self.difference - half, self.difference + half

    def detectable(self, n_items: int, *, alpha: float = 0.05, power: float = POWER) -> float:
        """The smallest true difference that `n_items` such items show with `power`, as these items paired the two."""
        return minimum_detectable_effect(self.standard_error * np.sqrt(self.n_items), n_items, alpha=alpha, power=power)


def mean_metric(baseline: NDArray[np.float64], candidate: NDArray[np.float64]) -> Metric:
    """The mean of one value for each item; `baseline` and `candidate` are (n,)."""
    values = np.concatenate([baseline, candidate])

    def mean(weights: Weights) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: NDArray[np.float64] = (weights @ values) / weights.sum(axis=1)
        return found

    return mean


def compare(
    metric: Metric,
    n_items: int,
    *,
    seed: int,
    n_resamples: int = N_RESAMPLES,
    groups: NDArray[np.int64] | None = None,
) -> Difference:
    """The difference of two variants on `n_items` items; equal seeds give equal answers.

    Items are resampled with both answers together (the pairing), and the p-value exchanges the two answers of an item
    at random, which changes nothing in distribution where the variants are equal.

    groups: (n,), equal for items that came into the set together, such as the copies of one picture: they are drawn
    together (Davison and Hinkley 1997, Bootstrap Methods and Their Application, section 3.8). Their answers belong
    together, as the similarities of pairs do, so that they cannot be exchanged one by one: the p-value is the level at
    which the interval begins to hold 0. None: each item stands alone.
    """
    random = np.random.default_rng(seed)
    units, n_units = _units(n_items, groups)
    everything = np.ones((1, n_items))
    baseline, candidate = (float(value[0]) for value in _both(metric, everything))
    observed = candidate - baseline

    def resampled(size: int) -> NDArray[np.float64]:
        base, new = _both(metric, _counts(random, n_units, size)[:, units])
        return new - base

    def exchanged(size: int) -> NDArray[np.float64]:
        swapped = (random.random((size, n_items)) < 0.5).astype(np.float64)
        return _exchanged_difference(metric, swapped)

    draws = _in_chunks(resampled, n_resamples, n_items)
    standard_error = float(np.nanstd(draws, ddof=1))
    if groups is None:
        p_value = _mid_p(_in_chunks(exchanged, n_resamples, n_items), observed)
    else:
        p_value = _level_of_zero(observed, standard_error, n_units)
    return Difference(
        n_items=n_items,
        n_units=n_units,
        baseline=baseline,
        candidate=candidate,
        difference=observed,
        standard_error=standard_error,
        p_value=p_value,
    )


def _units(n_items: int, groups: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], int]:
    """(n,): what each item is drawn with, 0..G-1; and G."""
    units = np.arange(n_items) if groups is None else np.unique(groups, return_inverse=True)[1]
    return units, int(units.max()) + 1


def _counts(random: np.random.Generator, n_units: int, size: int) -> NDArray[np.float64]:
    """(size, n_units): how often each is drawn, with replacement; `multinomial` would take 5 times as long."""
    drawn = random.integers(0, n_units, (size, n_units)) + n_units * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * n_units).reshape(size, n_units).astype(np.float64)


def _mid_p(under_null: NDArray[np.float64], observed: float) -> float:
    """The share of exchanges that give a greater difference and half of those that give an equal one, the observed
    among them: of few different answers the whole share would find too little (Fagerland, Lydersen and Laake 2013, The
    McNemar test for binary matched-pairs data)."""
    tolerance = 1e-12 * max(1.0, abs(observed))
    if abs(observed) <= tolerance:
        return 1.0
    away = np.abs(under_null) - abs(observed)
    return float((np.sum(away > tolerance) + 0.5 * (1 + np.sum(np.abs(away) <= tolerance))) / (1 + len(away)))


def _both(metric: Metric, item_weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nothing = np.zeros_like(item_weights)
    return metric(np.hstack([item_weights, nothing])), metric(np.hstack([nothing, item_weights]))


def _exchanged_difference(metric: Metric, swapped: NDArray[np.float64]) -> NDArray[np.float64]:
    return metric(np.hstack([swapped, 1 - swapped])) - metric(np.hstack([1 - swapped, swapped]))


def _in_chunks(draw: Callable[[int], NDArray[np.float64]], n_rows: int, n_items: int) -> NDArray[np.float64]:
    size = max(1, CHUNK_CELLS // (2 * n_items))
    return np.concatenate([draw(min(size, n_rows - first)) for first in range(0, n_rows, size)])


def _student_quantile(level: float, n_units: int) -> float:
    from scipy.stats import t

    return float(np.sqrt(n_units / (n_units - 1)) * t.ppf(level, n_units - 1))


def _level_of_zero(observed: float, standard_error: float, n_units: int) -> float:
    """1 - the confidence of the widest interval that does not hold 0."""
    from scipy.stats import t

    if standard_error == 0:
        return float(observed == 0)
    return float(2 * t.sf(abs(observed) / standard_error / np.sqrt(n_units / (n_units - 1)), n_units - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several (Holm 1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return [float(p) for p in adjusted]


def minimum_detectable_effect(
    standard_deviation: float, n_items: int, *, alpha: float = 0.05, power: float = POWER
) -> float:
    """The smallest true mean difference that `n_items` items show with `power`; of paired differences with this
    standard deviation."""
    from scipy.stats import norm

    return float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * standard_deviation / np.sqrt(n_items))


def detectable(
    metric: Metric,
    n_items: int,
    *,
    seed: int,
    groups: NDArray[np.int64] | None = None,
    correlation: float = 0.5,
    alpha: float = 0.05,
    power: float = POWER,
) -> float:
    """The smallest true difference that `n_items` items are likely to show, known from the baseline alone.

    Of a metric of any form: its bootstrap standard error stands for the variance of an item, and the answers of two
    variants to one item are taken to correlate by `correlation`.
    """
    deviation = _spread(metric, n_items, seed=seed, groups=groups) * np.sqrt(n_items) * np.sqrt(2 * (1 - correlation))
    return minimum_detectable_effect(deviation, n_items, alpha=alpha, power=power)


def level_interval(
    metric: Metric, n_items: int, *, seed: int, groups: NDArray[np.int64] | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Student's interval of one variant's own metric, the baseline's of `metric`, as `Difference.interval` has it."""
    value = float(metric(np.repeat([1.0, 0.0], n_items)[None])[0])
    half = -_student_quantile((1 - confidence) / 2, _units(n_items, groups)[1])
    half *= _spread(metric, n_items, seed=seed, groups=groups)
    return value - half, value + half


def _spread(metric: Metric, n_items: int, *, seed: int, groups: NDArray[np.int64] | None) -> float:
    """The bootstrap's standard error of the baseline's metric."""
    random = np.random.default_rng(seed)
    units, n_units = _units(n_items, groups)

    def resampled(size: int) -> NDArray[np.float64]:
        counts = _counts(random, n_units, size)[:, units]
        return metric(np.hstack([counts, np.zeros_like(counts)]))

    return float(np.nanstd(_in_chunks(resampled, N_RESAMPLES, n_items), ddof=1))


def items_needed(standard_deviation: float, effect: float, *, alpha: float = 0.05, power: float = POWER) -> int:
    """How many items show a true mean difference of `effect` with `power`."""
    from scipy.stats import norm

    return int(np.ceil(((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * standard_deviation / effect) ** 2))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A difference as it is judged."""

    verdict: Verdict
    reason: str
    n_more: int | None = None  # items that would decide an undecided one


def min_items(metric: str) -> int:
    """How many items, or groups of copies, a metric of this name needs for an interval."""
    return next((n for name, n in MIN_ITEMS.items() if metric.startswith(name)), MIN_ITEMS[""])


def too_few(
    metric: str,
    n_items: int,
    n_different: int,
    *,
    groups: NDArray[np.int64] | None = None,
    classes: NDArray[np.float64] | None = None,
) -> str | None:
    """Why no interval is given, or None where one is.

    n_different: items that the two variants answer differently; groups: those of at least two items count instead of
    the items; classes: whose means are averaged.
    """
    needed, there, of = min_items(metric), n_items, "items"
    if groups is not None:
        there, of = int(np.sum(np.unique(groups, return_counts=True)[1] > 1)), "groups of copies"
    if there < needed:
        return f"{there} {of}, at least {needed} are needed for an interval"
    if classes is not None and (fewest := int(np.unique(classes, return_counts=True)[1].min())) < MIN_OF_CLASS:
        return f"a class has {fewest} items, at least {MIN_OF_CLASS} of each are needed for an interval"
    if 0 < n_different < MIN_DIFFERENT:
        return f"only {n_different} items are answered differently, at least {MIN_DIFFERENT} are needed for an interval"
    return None


def judge(
    difference: Difference,
    *,
    adjusted_p: float,
    margin: float,
    higher_is_better: bool,
    alpha: float = 0.05,
    n_candidates: int = 1,
) -> Judged:
    """The verdict on one metric.

    margin: the largest difference that does not matter. `better` or `worse` where the difference is significant after
    the correction for several tests; `equivalent` where the interval of 1 - 2 alpha lies within the margin (two
    one-sided tests, Schuirmann 1987); else `undecided`.
    n_candidates: that share the alpha of equivalence (Bonferroni), for whoever tries many finds one that looks
    equivalent. Metrics and slices do not: a candidate is accepted as equivalent by one metric, chosen beforehand.
    """
    shared = alpha / n_candidates
    low, high = difference.interval(1 - 2 * shared)
    if adjusted_p < alpha:
        is_better = (difference.difference > 0) == higher_is_better
        return Judged(verdict="better" if is_better else "worse", reason=f"p = {adjusted_p:.2g} is below {alpha:g}")
    if -margin < low and high < margin:
        return Judged(
            verdict="equivalent",
            reason=f"the difference is between {low:+.3g} and {high:+.3g}, within {margin:g} of none",
        )
    return Judged(
        verdict="undecided",
        reason=f"the difference may be anything between {low:+.3g} and {high:+.3g}; {margin:g} would matter",
        n_more=deciding_items(difference, margin=margin, alpha=shared) - difference.n_items,
    )


def deciding_items(difference: Difference, *, margin: float, alpha: float = 0.05) -> int:
    """How many items would decide a difference that stays as it is: show it, or that it lies within the margin.

    At least one more than there are.
    """
    from scipy.stats import norm

    away = abs(difference.difference)
    shown = (norm.ppf(1 - alpha / 2) * difference.standard_error / away) ** 2 if away else np.inf
    within = (norm.ppf(1 - alpha) * difference.standard_error / (margin - away)) ** 2 if away < margin else np.inf
    return max(difference.n_items + 1, int(np.ceil(min(shown, within) * difference.n_items)))
