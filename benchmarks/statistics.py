"""Rows S1 and S2: how often equal variants are told apart, and how often intervals hold the truth, by simulation.

    python -m benchmarks.statistics [RUNS]

Populations whose true difference is known are sampled again and again; every sample is compared as `lakelens compare`
does it. A/A: both variants answer by the same law. A/B: the candidate is better by about what the sample can show.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from jobs.average_precision import MatchedClass
from jobs.corpus_metrics import calibration_error, copies_found_at, detection_metric, mean_over_classes, ratio_metric
from jobs.paired import Metric, compare, mean_metric

ALPHA, CONFIDENCE = 0.05, 0.95
N_RESAMPLES = 1000
RUNS = 1000
N_POPULATION = 20_000  # items in the sample that the true difference is read from
Simulated = Callable[[Any, int, float], Metric]  # random generator, items, effect


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of metric with a population for it."""

    name: str
    simulate: Simulated
    effect: float  # of A/B
    n_items: int = 200
    exchangeable: bool = True
    cost: int = 1  # how many times dearer than a mean: fewer runs


def accuracy(random: Any, n: int, effect: float) -> Metric:
    """Right or wrong; two of three items are answered alike."""
    alike = random.random(n) < 0.67
    baseline = random.random(n) < 0.6
    candidate = np.where(alike, baseline, random.random(n) < 0.6 + effect / 0.33)
    return mean_metric(baseline.astype(float), candidate.astype(float))


def ranking(random: Any, n: int, effect: float) -> Metric:
    """Values in 0..1 that pile up at both ends, as nDCG's do."""
    ease = random.beta(0.5, 0.5, n)
    return mean_metric(
        np.clip(ease + random.normal(0, 0.2, n), 0, 1), np.clip(ease + random.normal(effect, 0.2, n), 0, 1)
    )


def balanced(random: Any, n: int, effect: float) -> Metric:
    """Accuracy over five classes of unequal size."""
    classes = random.choice(5, n, p=[0.35, 0.25, 0.2, 0.1, 0.1])
    ease = random.normal(0, 1, n)
    answers = [(ease + random.normal(by, 1, n) > -0.5).astype(float) for by in (0.0, effect)]
    return mean_over_classes(answers[0], answers[1], classes)


def f1(random: Any, n: int, effect: float) -> Metric:
    """Entities of pictures: hits, false finds and misses of each."""
    n_there = random.poisson(2, n)
    both = []
    for by in (0.0, effect):
        hits, false = random.binomial(n_there, 0.7 + by), random.poisson(0.4, n)
        both.append((2.0 * hits, (n_there + hits + false).astype(float)))
    return ratio_metric(*both)


def calibration(random: Any, n: int, effect: float) -> Metric:
    """Scores that say too much by different amounts."""
    truth = random.beta(2, 1, n)
    both = []
    for by in (0.0, effect):
        said = np.clip(truth + 0.15 - by + random.normal(0, 0.05, n), 0, 1)
        both.append((said, (random.random(n) < truth).astype(float)))
    return calibration_error(both[0], both[1], n_bins=5)


def detection(random: Any, n: int, effect: float) -> Metric:
    """Six classes of objects, matched at one threshold."""
    n_labelled = random.poisson([[1.2], [0.8], [0.5], [0.4], [0.3], [0.3]], (6, n)).astype(float)

    def variant(by: float) -> list[MatchedClass]:
        classes = []
        for labelled in n_labelled:
            hits = random.binomial(labelled.astype(int), 0.6 + by)
            false = random.poisson(0.5, n)
            image = np.concatenate([np.repeat(np.arange(n), hits), np.repeat(np.arange(n), false)])
            is_hit = np.arange(len(image)) < hits.sum()
            score = np.where(is_hit, random.beta(3, 2, len(image)), random.beta(2, 3, len(image)))
            order = np.argsort(-score)
            nothing = np.zeros((1, len(image)), bool)
            classes.append(MatchedClass(image[order], score[order], is_hit[order][None], nothing, labelled))
        return classes

    return detection_metric(variant(0.0), variant(effect))


def copies(random: Any, n: int, effect: float) -> Metric:
    """Pairs of copies among other pictures; a larger effect blurs the copies less."""
    subject = np.repeat(random.normal(size=((n + 1) // 2, 8)), 2, axis=0)[:n]
    vectors = [subject + random.normal(0, 0.8 - by, (n, 8)) for by in (0.0, effect)]
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    return copies_found_at(0.001, units[0] @ units[0].T, units[1] @ units[1].T, np.arange(n) // 2)


KINDS = (
    Kind(name="accuracy", simulate=accuracy, effect=0.08),
    Kind(name="ranking", simulate=ranking, effect=0.05),
    Kind(name="accuracy by class", simulate=balanced, effect=0.3),
    Kind(name="F1", simulate=f1, effect=0.06),
    Kind(name="calibration error", simulate=calibration, effect=0.08),
    Kind(name="average precision", simulate=detection, effect=0.06, cost=5),
    Kind(name="copies found", simulate=copies, effect=0.1, exchangeable=False, n_items=200, cost=5),
)


@cache
def true_difference(kind: Kind, effect: float) -> float:
    """Candidate minus baseline in the population."""
    if effect == 0:
        return 0.0
    n = N_POPULATION if kind.exchangeable else 1500
    differences = []
    for seed in range(5 if kind.exchangeable else 20):
        metric = kind.simulate(np.random.default_rng(10_000_000 + seed), n, effect)
        nothing, everything = np.zeros((1, n)), np.ones((1, n))
        baseline = metric(np.hstack([everything, nothing]))[0]
        differences.append(float(metric(np.hstack([nothing, everything]))[0] - baseline))
    return float(np.mean(differences))


def one_run(kind: Kind, effect: float, seed: int) -> tuple[bool, bool]:
    """Whether the variants were told apart, and whether the interval held the true difference."""
    metric = kind.simulate(np.random.default_rng(seed), kind.n_items, effect)
    found = compare(metric, kind.n_items, seed=seed, n_resamples=N_RESAMPLES, exchangeable=kind.exchangeable)
    low, high = found.interval(CONFIDENCE)
    return found.p_value < ALPHA, low <= true_difference(kind, effect) <= high


def _run(job: tuple[Kind, float, int]) -> tuple[bool, bool]:
    return one_run(*job)


def main(arguments: list[str]) -> int:
    """Print a table of rates."""
    runs = int(arguments[0]) if arguments else RUNS
    print(
        "| metric | runs | A/A told apart | A/A coverage | A/B coverage | A/B told apart |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    with ProcessPoolExecutor(2) as pool:
        for kind in KINDS:
            n_runs = max(1, runs // kind.cost)
            rates = []
            for effect in (0.0, kind.effect):
                done = list(pool.map(_run, [(kind, effect, seed) for seed in range(n_runs)], chunksize=5))
                rates.append(np.mean(done, axis=0))
            print(
                f"| {kind.name} | {n_runs} | {rates[0][0]:.3f} | {rates[0][1]:.3f} | {rates[1][1]:.3f} "
                f"| {rates[1][0]:.3f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
