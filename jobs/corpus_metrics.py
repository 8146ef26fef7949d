"""Metrics of a whole set as functions of weights on its items, for `jobs.paired`. Knows no lake and no model.

Each takes what the baseline and the candidate answered, in the order of the items, and returns a `Metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.average_precision import MatchedClass, mean_average_precision
from jobs.paired import Metric, Weights

N_CALIBRATION_BINS = 15  # Guo et al. 2017, On Calibration of Modern Neural Networks
Values = NDArray[np.float64]  # (n,)
OneVariant = Callable[[Weights], NDArray[np.float64]]


def _quotient(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = numerator / denominator
    return found


def ratio_metric(baseline: tuple[Values, Values], candidate: tuple[Values, Values]) -> Metric:
    """Sum over items of the first over the sum of the second: a mean with counts of 1, character error rate with edits
    and characters, precision with hits and finds, F1 with twice the hits and all finds and expectations together."""
    above, below = (np.concatenate([a, b]) for a, b in zip(baseline, candidate, strict=True))
    return lambda weights: _quotient(weights @ above, weights @ below)


def mean_over_classes(baseline: Values, candidate: Values, classes: NDArray[np.int64]) -> Metric:
    """The mean over classes (0..C-1, one an item) of the means of their items; a class without weight is left out."""
    values = np.concatenate([baseline, candidate])
    member = np.eye(int(classes.max()) + 1)[np.concatenate([classes, classes])]
    return lambda weights: np.nanmean(_quotient((weights * values) @ member, weights @ member), axis=1)


def calibration_error(
    baseline: tuple[Values, Values], candidate: tuple[Values, Values], *, n_bins: int = N_CALIBRATION_BINS
) -> Metric:
    """Expected calibration error of (confidence in 0..1, 1 where right): the mean distance of confidence and accuracy
    in bins of equal width."""
    confidence, right = (np.concatenate([a, b]) for a, b in zip(baseline, candidate, strict=True))
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    member = np.eye(n_bins)[bins]
    return lambda weights: _quotient(np.abs((weights * (confidence - right)) @ member).sum(axis=1), weights.sum(axis=1))


def detection_metric(
    baseline: Sequence[MatchedClass], candidate: Sequence[MatchedClass], thresholds: slice = slice(None)
) -> Metric:
    """Mean average precision; both variants matched on the same images, classes in the same order."""
    n = len(baseline[0].n_labelled)
    pooled = [_pooled(a, b, n) for a, b in zip(baseline, candidate, strict=True)]
    return lambda weights: mean_average_precision(pooled, weights, thresholds)


def _pooled(a: MatchedClass, b: MatchedClass, n: int) -> MatchedClass:
    """Both variants' detections as of 2n images, best first."""
    scores = np.concatenate([a.score, b.score])
    order = np.argsort(-scores, kind="stable")
    return MatchedClass(
        image=np.concatenate([a.image, b.image + n])[order],
        score=scores[order],
        is_hit=np.concatenate([a.is_hit, b.is_hit], axis=1)[:, order],
        is_ignored=np.concatenate([a.is_ignored, b.is_ignored], axis=1)[:, order],
        n_labelled=np.concatenate([a.n_labelled, b.n_labelled]),
    )


def copies_found_at(
    false_positive_rate: float, baseline: NDArray[np.float64], candidate: NDArray[np.float64], groups: NDArray[np.int64]
) -> Metric:
    """The share of the pairs of copies that are more similar than all but `false_positive_rate` of the other pairs.

    baseline, candidate: (n, n) similarities; groups: (n,), equal for copies. A pair weighs as its two items together,
    so that items are resampled, not pairs. Answers are not exchangeable item by item.
    """
    n = len(groups)
    one = [_copies_found(false_positive_rate, similarity, groups) for similarity in (baseline, candidate)]

    def found(weights: Weights) -> NDArray[np.float64]:
        is_candidate = weights[:, n:].any(axis=1)
        result = np.empty(len(weights))
        for variant, rows in ((0, ~is_candidate), (1, is_candidate)):
            if rows.any():
                result[rows] = one[variant](weights[rows, variant * n : (variant + 1) * n])
        return result

    return found


def _copies_found(rate: float, similarity: NDArray[np.float64], groups: NDArray[np.int64]) -> OneVariant:
    first, second = np.triu_indices(len(groups), 1)
    is_copy = groups[first] == groups[second]
    # of equal similarities those of other pairs come first: they earn nothing
    order = np.lexsort((is_copy, -similarity[first, second]))
    first, second, is_copy = first[order], second[order], is_copy[order]

    def found(weights: Weights) -> NDArray[np.float64]:
        result = np.empty(len(weights))
        for i, row in enumerate(weights):
            pair = row[first] * row[second]
            others = np.cumsum(np.where(is_copy, 0.0, pair))
            copies = np.cumsum(np.where(is_copy, pair, 0.0))
            if copies[-1] == 0 or others[-1] == 0:
                result[i] = np.nan
                continue
            within = np.searchsorted(others, rate * others[-1], side="right")
            result[i] = (copies[within - 1] if within else 0.0) / copies[-1]
        return result

    return found
