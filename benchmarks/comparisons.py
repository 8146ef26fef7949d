"""Comparisons of samples from a population whose true difference is known, and how often they are right.

A sample is compared as `lakelens compare` does it, but without a lake. A/A: both variants answer by the same law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import real_answers, simulated
from benchmarks.real_answers import Pool
from benchmarks.simulated import Kind
from jobs.paired import Difference, compare, detectable, holm, judge, too_few

ALPHA, CONFIDENCE = 0.05, 0.95
DEAR = ("average precision", "average_precision", "copies")  # to resample
Compare = Callable[..., Difference]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A population and a sample size; `of` is a simulated kind, or a pool of real answers and one of its metrics."""

    name: str
    of: Kind | tuple[Pool, int]
    n_items: int
    effect: float  # 0: A/A
    truth: float
    n_resamples: int

    @property
    def is_dear(self) -> bool:
        """Whether a comparison takes ten times as long as one of means."""
        return any(name in self.name for name in DEAR)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One comparison; None throughout where the report refuses an interval."""

    p_value: float | None = None
    told: int = 0  # 1 better, -1 worse
    low: float | None = None
    high: float | None = None


def sampled(case: Case, seed: int) -> tuple[Any, Any, str | None]:
    """The metric of a sample, the groups of its items, and why it is not judged."""
    random = np.random.default_rng(seed)
    if isinstance(case.of, Kind):
        return case.of.simulate(random, case.n_items, case.effect), case.of.groups(case.n_items), None
    pool, i = case.of
    population = real_answers.populations(pool)[i]
    at = random.integers(0, len(population.differs), case.n_items)
    is_swapped = random.random(case.n_items) < (0.5 if case.effect == 0 else 0.0)
    n_different = int(population.differs[at].sum())
    classes = None if population.classes is None else population.classes[at]
    reason = too_few(pool.metrics[i], case.n_items, n_different, classes=classes)
    return population.drawn(at, is_swapped), None, reason


def one_run(case: Case, seed: int, compare: Compare = compare) -> Outcome:
    """One sample, compared and judged."""
    metric, groups, reason = sampled(case, seed)
    if reason is not None:
        return Outcome()
    found = compare(metric, case.n_items, seed=seed, n_resamples=case.n_resamples, groups=groups)
    judged = judge(found, adjusted_p=found.p_value, margin=1.0, higher_is_better=True, alpha=ALPHA)
    low, high = found.interval(CONFIDENCE)
    return Outcome(p_value=found.p_value, told={"better": 1, "worse": -1}.get(judged.verdict, 0), low=low, high=high)


def coverage(case: Case, found: Sequence[Outcome]) -> float:
    """The share of the intervals that hold the true difference."""
    inside = [one.low <= case.truth <= one.high for one in found if one.low is not None and one.high is not None]
    return float(np.mean(inside)) if inside else float("nan")


def told_apart(found: Sequence[Outcome], sign: int | None = None) -> float:
    """The share of the judged comparisons that end in `better` or `worse`, or in that of one sign."""
    judged = [one for one in found if one.p_value is not None]
    return float(np.mean([one.told != 0 if sign is None else one.told == sign for one in judged]))


def binomial_interval(runs: int) -> tuple[float, float]:
    """Which shares told apart 95 % of series of so many runs have, if alpha is kept."""
    from scipy.stats import binom

    low, high = binom.interval(0.95, runs, ALPHA)
    return float(low / runs), float(high / runs)


def family_wise(families: Sequence[Sequence[Outcome]]) -> float:
    """How often any metric of a family is told apart after Holm's correction; run i of each metric is one family."""
    told = []
    for family in zip(*families, strict=False):
        p_values = [one.p_value for one in family if one.p_value is not None]
        told.append(any(p < ALPHA for p in holm(p_values)))
    return float(np.mean(told))


def simulated_null(kind: Kind, n_items: int, *, n_resamples: int) -> Case:
    """A/A of a kind."""
    return Case(name=kind.name, of=kind, n_items=n_items, effect=0.0, truth=0.0, n_resamples=n_resamples)


def stated(null: Case, n_samples: int) -> tuple[float, float, float]:
    """What is stated as detectable before a run and after one, and how the two answers to an item correlate; means."""
    kind, rows = null.of, []
    assert isinstance(kind, Kind)
    for seed in range(n_samples):
        metric, groups, _ = sampled(null, 1_000_000 + seed)
        before = detectable(metric, null.n_items, seed=seed, groups=groups)
        found = compare(metric, null.n_items, seed=seed, n_resamples=1000, groups=groups)
        rows.append((before, found.detectable(null.n_items)))
    before, after = np.mean(rows, axis=0)
    # detectable() takes .5: the variance of the difference is 2 (1 - correlation) times that of one answer
    return float(before), float(after), float(1 - 0.5 * (after / before) ** 2)


def shown(null: Case, difference: float) -> Case:
    """A/B of the same kind, where the variants truly differ by so much."""
    assert isinstance(null.of, Kind)
    effect = simulated.effect_of(null.of, difference)
    return replace(null, effect=effect, truth=simulated.true_difference(null.of, effect))
