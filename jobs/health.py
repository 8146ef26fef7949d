"""What is told of a featurizer without labels: empty results, unused dimensions, shifts. Knows no lake and no model.

All of it is of a golden set's media, which stay the same: what moves is the featurizer and never the pictures. A change
of what is crawled is not seen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jobs import item_metrics
from jobs.quality import Answer, cleared

# At 2,000 media the index of an unchanged distribution stays below .03 (simulated as below), and the singular values of
# their vectors take about a second; more would cost more and tell nothing.
MAX_MEDIA = 2000
MAX_VECTORS = 2 * MAX_MEDIA  # a detector finds up to 100 things in each
# The population stability index is biased: of two samples of n of one distribution it is 18 / n on average, for 10 bins
# (9 degrees of freedom: Yurdakul and Naranjo 2020, Statistical properties of the population stability index), and twice
# that for the largest of 8 components. Simulated, 95 of 100 such pairs stay below .1, which is read as "little", from
# 400 media (scores, also with five equal ones in each) and 600 (vectors of 8 to 256 dimensions); at 100 media they
# reach .37 and .52. Two featurizers on the same media are no such samples, and differ less: the limit is a safe one.
MIN_MEDIA = 600


def sample(media_ids: Sequence[str]) -> list[str]:
    """At most MAX_MEDIA of them, the same ones every time: ids are digests, so the first are as good as drawn."""
    return sorted(set(media_ids))[:MAX_MEDIA]


def figures(before: Sequence[Answer] | None, after: Sequence[Answer]) -> dict[str, float]:
    """Those figures of `unlabelled` that mean something.

    before: another featurizer's answers to the same media; None: there is nothing to compare with. A shift is told
    where MIN_MEDIA media have something on both sides, that of vectors where both have the same dimension.
    """
    if before is not None and _width(before) != _width(after):
        before = [replace(one, vector=np.full((len(one.label), 1), math.nan, np.float32)) for one in before]
    found = unlabelled(before, after)
    for shift, part in (("score_shift", "score"), ("vector_shift", "vector")):
        if any(_n_with(part, side) < MIN_MEDIA for side in (before or (), after)):
            found.pop(shift, None)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def unlabelled(before: Sequence[Answer] | None, after: Sequence[Answer]) -> dict[str, float]:
    """What can be told of answers without labels; against those of before, where there are any.

    effective_dimensions: of the vectors of `after`; share_of_empty: of its answers, those that failed among them.
    score_shift, vector_shift: population stability index of the scores, and the largest of the vectors along the first
    principal components of `before`. NaN where there is nothing to look at.
    """
    scores, vectors = _pooled(after)
    found = {
        "effective_dimensions": item_metrics.effective_dimensions(vectors),
        "share_of_empty": float(np.mean([not cleared(answer).label for answer in after])) if after else math.nan,
    }
    if before is not None:
        old_scores, old_vectors = _pooled(before)
        found["score_shift"] = item_metrics.population_stability_index(old_scores, scores)
        found["vector_shift"] = item_metrics.vector_shift(old_vectors, vectors)
    return found


def _pooled(answers: Sequence[Answer]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """All scores, and the vectors: MAX_VECTORS of them at most, evenly taken."""
    found = [answer for answer in answers if cleared(answer).label]
    if not found:
        return np.zeros(0), np.zeros((0, 0), np.float32)
    scores, vectors = np.concatenate([one.score for one in found]), np.concatenate([one.vector for one in found])
    vectors = vectors[~np.isnan(vectors).any(axis=1)]
    return scores[~np.isnan(scores)], vectors[:: -(-len(vectors) // MAX_VECTORS) or 1]


def _width(answers: Sequence[Answer]) -> int:
    return max((one.vector.shape[1] for one in answers), default=0)


def _n_with(part: str, answers: Sequence[Answer]) -> int:
    return sum(not one.is_failed and bool((~np.isnan(getattr(one, part))).any()) for one in answers)


def said(found: dict[str, float]) -> str:
    """The figures in a line."""
    words = {
        "share_of_empty": "{:.1%} of the media empty",
        "effective_dimensions": "{:.0f} effective dimensions",
        "score_shift": "scores shifted by {:.2f}",
        "vector_shift": "vectors shifted by {:.2f}",
    }
    return ", ".join(text.format(found[name]) for name, text in words.items() if name in found)
