"""What one item of a golden set is worth: ranks, edits, hits and misses. Pure functions; knows no lake and no model.

Equal scores are broken against the system that gave them: where it cannot tell a relevant item from another, the other
comes first. A constant score therefore earns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_EDITS_OF_FOUND = 0.1  # of a line's characters
N_COMPONENTS = 8  # of vectors, in which a shift is looked for
NO_VARIANCE = 1e-9  # of unit vectors; float32 leaves 1e-14
MIN_FALSE_CHARACTERS = 3  # shorter lines that nobody labelled are noise, and cost nothing


def ranks(scores: NDArray[np.float64], gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,): the places, from 1, of N items by descending score; of equal scores the lower gain comes first. An item
    without a score (NaN) is never found: its place is infinite."""
    order = np.lexsort((gains, -scores))
    places = np.empty(len(scores))
    places[order] = np.arange(1, len(scores) + 1)
    places[np.isnan(scores)] = np.inf
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


def ranking_average_precision(scores: NDArray[np.float64], gains: NDArray[np.float64]) -> float:
    """The mean, over the relevant items, of the share of relevant ones among all down to it; NaN where none is."""
    places = np.sort(ranks(scores, gains)[gains > 0])
    return float(np.mean(np.arange(1, len(places) + 1) / places)) if len(places) else float("nan")


def ndcg_at(k: int, scores: NDArray[np.float64], gains: NDArray[np.float64]) -> float:
    """Normalised discounted cumulative gain of the first `k`, gains taken as they are (Järvelin and Kekäläinen 2002);
    NaN where none is relevant."""

    def discounted(places: NDArray[np.float64]) -> float:
        return float(np.sum(np.where(places <= k, gains / np.log2(places + 1), 0.0)))

    best = discounted(ranks(gains, gains))
    return discounted(ranks(scores, gains)) / best if best > 0 else float("nan")


def is_in_top(k: int, scores: NDArray[np.float64], gains: NDArray[np.float64]) -> bool:
    """Whether a relevant item is among the first `k`."""
    return bool((ranks(scores, gains)[gains > 0] <= k).any())


@dataclass(frozen=True)
class Counts:
    """Of the things expected in an item: found and expected, found only, expected only."""

    n_hits: int
    n_false: int
    n_missed: int


def set_counts(expected: Set[str], found: Set[str]) -> Counts:
    """Hits, false finds and misses."""
    return Counts(len(expected & found), len(found - expected), len(expected - found))


def edit_distance(a: str, b: str) -> int:
    """The fewest characters to insert, delete or replace between `a` and `b`: Myers 1999, as Hyyrö 2003 computes it,
    with a column of the table in the bits of one integer."""
    if not a:
        return len(b)
    everything, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    up, down, distance = everything, 0, len(a)  # where the column rises and falls by 1, and its last value
    for character in b:
        here = places.get(character, 0)
        same = (((here & up) + up) ^ up) | here | down
        right, left = down | ~(same | up), same & up
        distance += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(same | right)) & everything, right & same & everything
    return distance


@dataclass(frozen=True)
class Reading:
    """How well the lines of one picture were read."""

    n_edits: int
    n_characters: int  # of the expected lines
    n_lines: int  # expected
    n_lines_found: int  # with at most MAX_EDITS_OF_FOUND


def reading(expected: Sequence[str], found: Sequence[str]) -> Reading:
    """The fewest edits that make the expected lines of the found ones, in any order; characters are compared exactly,
    runs of white space as one space.

    An expected line that nothing was read for costs its length, as a found line that is left over does from
    MIN_FALSE_CHARACTERS on.
    """
    from scipy.optimize import linear_sum_assignment

    lines, texts = ([one for line in side if (one := " ".join(line.split()))] for side in (expected, found))
    lengths = np.array([len(line) for line in lines], np.float64)
    false = np.array([len(text) if len(text) >= MIN_FALSE_CHARACTERS else 0 for text in texts], np.float64)
    distances = np.array([[edit_distance(line, text) for text in texts] for line in lines], np.float64)
    distances = distances.reshape(len(lines), len(texts))
    # each line may also go to nothing, and nothing to each text
    costs = np.zeros((len(lines) + len(texts),) * 2)
    costs[: len(lines), : len(texts)] = distances
    costs[: len(lines), len(texts) :] = lengths[:, None]
    costs[len(lines) :, : len(texts)] = false
    is_found = distances <= MAX_EDITS_OF_FOUND * lengths[:, None]
    return Reading(
        n_edits=int(costs[linear_sum_assignment(costs)].sum()),
        n_characters=int(lengths.sum()),
        n_lines=len(lines),
        n_lines_found=int(is_found[linear_sum_assignment(is_found, maximize=True)].sum()),
    )


def population_stability_index(before: NDArray[np.float64], after: NDArray[np.float64], *, n_bins: int = 10) -> float:
    """How far a distribution has moved, over bins of equal share of `before`: below .1 little, above .25 much.

    Empty bins count half an item, so that the index stays finite. NaN where one of them is empty.
    """
    if not len(before) or not len(after):
        return float("nan")
    edges = np.unique(np.quantile(before, np.linspace(0, 1, n_bins + 1)[1:-1]))
    was, now = (np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) for x in (before, after))
    p, q = (np.maximum(counts, 0.5) / max(1, counts.sum()) for counts in (was, now))
    return float(np.sum((q - p) * np.log(q / p)))


def effective_dimensions(vectors: NDArray[np.float32]) -> float:
    """How many dimensions (N, dim) vectors really use: exp of the entropy of the shares of variance (Roy and
    Vetterli 2007, effective rank); 0 where they are all equal, NaN where there are none."""
    if not len(vectors):
        return float("nan")
    variances = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False).astype(np.float64) ** 2
    if variances.sum() <= 1e-12 * len(vectors):
        return 0.0
    shares = variances[variances > 0] / variances.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def vector_shift(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """The largest population stability index of (N, dim) vectors along the first N_COMPONENTS principal components of
    `before`; NaN where one of them is empty or `before` does not vary."""
    if not len(before) or not len(after):
        return float("nan")
    was, now = before.astype(np.float64), after.astype(np.float64)
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(was, rowvar=False, bias=True)))
    main = axes[:, variances > NO_VARIANCE][:, -N_COMPONENTS:]
    shifts = [population_stability_index(*both) for both in zip((was @ main).T, (now @ main).T, strict=True)]
    return max(shifts, default=float("nan"))
