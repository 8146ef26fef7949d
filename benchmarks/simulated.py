"""Populations with a known true difference, a kind of metric each, for `benchmarks.statistics`. Knows no featurizer.

The laws are such that the two variants' answers to an item correlate by about .5 in what they add to the metric, which
is what `jobs.paired.detectable` takes for granted before a first run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.average_precision import MatchedClass
from jobs.corpus_metrics import calibration_error, copies_found_at, detection_metric, mean_over_classes, ratio_metric
from jobs.paired import Metric, mean_metric

N_TRUTH = 200_000  # items of the sample that a true difference is read from
N_EFFECTS = 9  # whose true difference is computed; others lie between
DIMENSIONS, FALSE_POSITIVE_RATE = 8, 1e-3  # of copies
Simulate = Callable[[Any, int, float], Metric]  # random generator, items, effect


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of metric with a population for it; an effect of 0 makes the variants equal in law."""

    name: str
    metric: str  # as `lakelens evaluate` names one of the kind
    simulate: Simulate
    largest_effect: float  # that the population can show
    n_items: int = 200
    truth: Callable[[float], float] | None = None  # the true difference, where it can be had without a large sample
    groups_of: int | None = None  # items that are drawn together
    n_truth: int = N_TRUTH
    is_as_varied: bool = True  # the candidate's answers vary as the baseline's do, as `detectable` takes for granted

    def groups(self, n: int) -> NDArray[np.int64] | None:
        """The group of each of n items."""
        return None if self.groups_of is None else np.arange(n) // self.groups_of


def _mixed(random: Any, alike: float, one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """`other`, but `one` for a share `alike` of the items."""
    return np.where(random.random(len(one)) < alike, one, other)


def accuracy(random: Any, n: int, effect: float) -> Metric:
    """Right or wrong; half of the items are answered alike."""
    baseline = random.random(n) < 0.45
    candidate = _mixed(random, 0.5, baseline, random.random(n) < 0.45 + 2 * effect)
    return mean_metric(baseline.astype(float), candidate.astype(float))


def ranking(random: Any, n: int, effect: float) -> Metric:
    """Values in 0..1 that pile up at both ends, as nDCG's do."""
    ease = random.beta(0.5, 0.5, n)
    baseline, candidate = (np.clip(ease + random.normal(by, 0.37, n), 0, 1) for by in (0.0, effect))
    return mean_metric(baseline, candidate)


def reciprocal_rank(random: Any, n: int, effect: float) -> Metric:
    """1 / the place of the first right answer: 1, 1/2, 1/3, ..."""
    ease = random.beta(0.6, 1.2, n)
    places = [random.geometric(np.clip(ease + by, 0.01, 1)) for by in (0.0, effect)]
    return mean_metric(*(1 / place for place in places))


def by_class(random: Any, n: int, effect: float) -> Metric:
    """Accuracy over five classes of unequal size."""
    classes = random.choice(5, n, p=[0.35, 0.25, 0.2, 0.1, 0.1])
    ease = random.normal(0, 1.45, n)
    baseline, candidate = ((ease + random.normal(by, 1, n) > 0.2).astype(float) for by in (0.0, effect))
    return mean_over_classes(baseline, candidate, classes)


def f1(random: Any, n: int, effect: float) -> Metric:
    """Entities of pictures: hits, false finds and misses of each."""
    n_there, ease, clutter = random.poisson(2, n), random.beta(1.5, 1.5, n), random.gamma(0.6, 0.7, n)
    both = []
    for by in (0.0, effect):
        hits, false = random.binomial(n_there, np.clip(ease + by, 0, 1)), random.poisson(clutter)
        both.append((2.0 * hits, (n_there + hits + false).astype(float)))
    return ratio_metric(*both)


def error_rate(random: Any, n: int, effect: float) -> Metric:
    """Edits over characters: most pictures are read well, a few hardly at all; the candidate reads more noise."""
    return _misread(random, n, fewer=0.0, more=effect)


def fewer_errors(random: Any, n: int, effect: float) -> Metric:
    """The same, but the candidate misreads a smaller share of the characters, so that its error rate varies less."""
    return _misread(random, n, fewer=effect, more=0.0)


def _misread(random: Any, n: int, *, fewer: float, more: float) -> Metric:
    n_characters = 5 + random.poisson(random.gamma(2, 15, n))
    hard = random.gamma(0.35, 0.35, n)
    both = []
    for less, noise in ((0.0, 0.0), (fewer, more)):
        share = np.clip(hard * random.gamma(1, 1, n) * (1 - less), 0, 1)
        n_edits = random.binomial(n_characters, share) + random.poisson(noise * n_characters)
        both.append((n_edits.astype(float), n_characters.astype(float)))
    return ratio_metric(*both)


def calibration(random: Any, n: int, effect: float) -> Metric:
    """Scores that claim too much."""
    truth = random.beta(2, 1, n)
    right = random.random(n) < truth
    both = []
    for by in (0.0, effect):
        answered = _mixed(random, 0.72, right, random.random(n) < truth)
        said = np.clip(truth + 0.2 * (1 - by) + random.normal(0, 0.05, n), 0, 1)
        both.append((said, answered.astype(float)))
    return calibration_error(both[0], both[1])


def detection(random: Any, n: int, effect: float) -> Metric:
    """Six classes of objects, matched at one threshold."""
    n_labelled = random.poisson([[1.2], [0.8], [0.5], [0.4], [0.3], [0.3]], (6, n))
    baseline = [_detected(random, labelled, 0.0) for labelled in n_labelled]
    candidate = []
    alike = random.random(n) < 0.48
    for one, labelled in zip(baseline, n_labelled, strict=True):
        other, same = _detected(random, labelled, effect), alike[one.image]
        keep = ~alike[other.image]
        candidate.append(
            _sorted(
                np.concatenate([one.image[same], other.image[keep]]),
                np.concatenate([one.score[same], other.score[keep]]),
                np.concatenate([one.is_hit[0, same], other.is_hit[0, keep]]),
                labelled,
            )
        )
    return detection_metric(baseline, candidate)


def _detected(random: Any, n_labelled: NDArray[np.int64], effect: float) -> MatchedClass:
    n = len(n_labelled)
    hits, false = random.binomial(n_labelled, 0.6 + effect), random.poisson(0.5, n)
    image = np.concatenate([np.repeat(np.arange(n), hits), np.repeat(np.arange(n), false)])
    is_hit = np.arange(len(image)) < hits.sum()
    score = np.where(is_hit, random.beta(3, 2, len(image)), random.beta(2, 3, len(image)))
    return _sorted(image, score, is_hit, n_labelled)


def _sorted(
    image: NDArray[np.int64], score: NDArray[np.float64], is_hit: NDArray[np.bool_], n_labelled: NDArray[np.int64]
) -> MatchedClass:
    order = np.argsort(-score, kind="stable")
    nothing = np.zeros((1, len(image)), bool)
    return MatchedClass(image[order], score[order], is_hit[order][None], nothing, n_labelled.astype(float))


def copies(random: Any, n: int, effect: float) -> Metric:
    """Pairs of copies among other pictures; a larger effect blurs the copies less."""
    baseline, candidate = _vectors(
        random, np.repeat(random.normal(size=((n + 1) // 2, DIMENSIONS)), 2, axis=0)[:n], effect
    )
    return copies_found_at(FALSE_POSITIVE_RATE, baseline @ baseline.T, candidate @ candidate.T, np.arange(n) // 2)


def _vectors(random: Any, subject: NDArray[np.float64], effect: float) -> list[NDArray[np.float64]]:
    """(n, DIMENSIONS) unit vectors of each variant, whose noise is in part the same."""
    together = random.normal(size=subject.shape)
    found = []
    for by in (0.0, effect):
        noise = np.sqrt(0.75) * together + np.sqrt(0.25) * random.normal(size=subject.shape)
        vectors = subject + (0.45 - by) * noise
        found.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return found


@cache
def copies_truth(effect: float) -> float:
    """The true difference of `copies`: from pairs that share no picture."""
    random = np.random.default_rng(7)
    one, other = random.normal(size=(2, N_TRUTH, DIMENSIONS))

    def cosines(left: NDArray[np.float64], right: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        both = zip(_vectors(random, left, effect), _vectors(random, right, effect), strict=True)
        return [np.einsum("ij,ij->i", *pair) for pair in both]

    found = [
        np.mean(of_copies > np.quantile(of_others, 1 - FALSE_POSITIVE_RATE))
        for of_copies, of_others in zip(cosines(one, one), cosines(one, other), strict=True)
    ]
    return float(found[1] - found[0])


KINDS = (
    Kind(name="accuracy", metric="top_1", simulate=accuracy, largest_effect=0.2),
    Kind(name="ranking", metric="ndcg_at_10", simulate=ranking, largest_effect=0.6),
    Kind(name="reciprocal rank", metric="mean_reciprocal_rank", simulate=reciprocal_rank, largest_effect=0.6),
    Kind(name="accuracy by class", metric="mean_per_class_accuracy", simulate=by_class, largest_effect=2.0),
    Kind(name="F1", metric="entity_f1", simulate=f1, largest_effect=0.5),
    Kind(name="error rate", metric="character_error_rate", simulate=error_rate, largest_effect=0.2),
    Kind(
        name="error rate, fewer errors",
        metric="character_error_rate",
        simulate=fewer_errors,
        largest_effect=1.0,
        is_as_varied=False,
    ),
    Kind(name="calibration error", metric="calibration_error", simulate=calibration, largest_effect=1.0, n_items=1000),
    Kind(
        name="average precision", metric="average_precision_50", simulate=detection, largest_effect=0.4, n_truth=40_000
    ),
    Kind(
        name="copies found",
        metric="copies_found_at_1e-3",
        simulate=copies,
        largest_effect=0.4,
        truth=copies_truth,
        n_items=400,
        groups_of=2,
    ),
)


@cache
def true_difference(kind: Kind, effect: float) -> float:
    """Candidate minus baseline in the population."""
    if effect == 0:
        return 0.0
    if kind.truth is not None:
        return kind.truth(effect)
    metric = kind.simulate(np.random.default_rng(10_000_019), kind.n_truth, effect)
    weights = np.repeat(np.eye(2), kind.n_truth, axis=1)
    baseline, candidate = metric(weights).tolist()
    return float(candidate - baseline)


@cache
def _curve(kind: Kind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Effects, and the size of the true difference at each."""
    effects = kind.largest_effect * np.linspace(0, 1, N_EFFECTS)
    return effects, np.abs([true_difference(kind, float(effect)) for effect in effects])


def effect_of(kind: Kind, difference: float) -> float:
    """The effect that makes the true difference about so large, in whichever direction the metric moves."""
    from scipy.interpolate import PchipInterpolator

    effects, differences = _curve(kind)
    if differences[-1] < difference:
        raise ValueError(
            f"{kind.name}: a difference of {difference:.3f} is asked, at most {differences[-1]:.3f} can be"
        )
    return float(PchipInterpolator(differences, effects)(difference))
