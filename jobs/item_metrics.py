"""What one item of a golden set is worth: ranks, edits, hits and misses. Pure functions; knows no lake and no model.

Equal scores are broken against the system that gave them: where it cannot tell a relevant item from another, the other
comes first. A constant score therefore earns nothing.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def ranks(scores: NDArray[np.float64], gains: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,): the places, from 1, of N items by descending score; of equal scores the lower gain comes first."""
    order = np.lexsort((gains, -scores))
    places = np.empty(len(scores), np.int64)
    places[order] = np.arange(1, len(scores) + 1)
    return places


def recall_at(k: int, scores: NDArray[np.float64], gains: NDArray[np.float64]) -> float:
    """The share of the relevant items (gain above 0) among the first `k`; NaN where none is relevant."""
    relevant = gains > 0
    if not relevant.any():
        return float("nan")
    return float(np.sum(ranks(scores, gains)[relevant] <= k) / np.sum(relevant))


def reciprocal_rank(scores: NDArray[np.float64], gains: NDArray[np.float64]) -> float:
    """1 / the place of the first relevant item; NaN where none is relevant."""
    relevant = gains > 0
    return float(1 / ranks(scores, gains)[relevant].min()) if relevant.any() else float("nan")


def ndcg_at(k: int, scores: NDArray[np.float64], gains: NDArray[np.float64]) -> float:
    """Normalised discounted cumulative gain of the first `k`, gains taken as they are (Järvelin and Kekäläinen 2002);
    NaN where none is relevant."""

    def discounted(places: NDArray[np.int64]) -> float:
        return float(np.sum(np.where(places <= k, gains / np.log2(places + 1), 0.0)))

    best = discounted(ranks(gains, gains))
    return discounted(ranks(scores, gains)) / best if best > 0 else float("nan")


def is_in_top(k: int, scores: NDArray[np.float64], true_class: int) -> bool:
    """Whether the true class is among the `k` of the highest scores."""
    return int(np.sum(scores >= scores[true_class])) <= k


@dataclass(frozen=True)
class Counts:
    """Of the things expected in an item: found and expected, found only, expected only."""

    n_hits: int
    n_false: int
    n_missed: int


def set_counts(expected: Set[str], found: Set[str]) -> Counts:
    """Hits, false finds and misses."""
    return Counts(len(expected & found), len(found - expected), len(expected - found))


def population_stability_index(before: NDArray[np.float64], after: NDArray[np.float64], *, n_bins: int = 10) -> float:
    """How far a distribution has moved, over bins of equal share of `before`: below .1 little, above .25 much.

    Empty bins count half an item, so that the index stays finite.
    """
    edges = np.unique(np.quantile(before, np.linspace(0, 1, n_bins + 1)[1:-1]))
    was, now = (np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) for x in (before, after))
    p, q = (np.maximum(counts, 0.5) / max(1, counts.sum()) for counts in (was, now))
    return float(np.sum((q - p) * np.log(q / p)))


def effective_dimensions(vectors: NDArray[np.float32]) -> float:
    """How many dimensions (N, dim) vectors really use: exp of the entropy of the shares of variance (Roy and
    Vetterli 2007, effective rank); 0 where they are all equal."""
    variances = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False).astype(np.float64) ** 2
    if variances.sum() <= 1e-12 * len(vectors):
        return 0.0
    shares = variances[variances > 0] / variances.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))
