"""Metrics of a whole set as functions of weights on its items, for `jobs.paired`. Knows no lake and no model.

Each takes what the baseline and the candidate answered, in the order of the items, and returns a `Metric`. What is kept
of the answers can be restricted to some items, so that a metric can be taken of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from jobs.average_precision import MatchedClass, matched_classes, mean_average_precision
from jobs.golden_labels import LabelledBox
from jobs.paired import Metric, Weights

N_CALIBRATION_BINS = 15  # Guo et al. 2017, On Calibration of Modern Neural Networks
SIDE_PX = 1000  # of every picture to pycocotools, which counts in pixels; overlaps are the same at any size
LEAST_WEIGHT = 1e-300  # keeps 0 / 0 away
ROUNDING = 1e-12  # of sums of weights
SAME = 1e-6  # what two answers may be apart and count as one
Values = NDArray[np.float64]  # (n,)
Found = tuple[str, float, Sequence[float]]  # class, score, and x0, y0, x1, y1 as fractions of the picture
OneVariant = Callable[[Weights], NDArray[np.float64]]


class Data(Protocol):
    """What a metric needs of n items."""

    def only(self, keep: Sequence[int]) -> Self:
        """The same of the items at the places `keep`."""
        ...

    def differs(self, other: Self) -> NDArray[np.bool_]:
        """(n,): the items that the two answered differently."""
        ...


@dataclass(frozen=True)
class TwoColumns:
    """Two numbers of each item: numerator and denominator, or confidence and being right."""

    columns: tuple[Values, Values]

    def only(self, keep: Sequence[int]) -> Self:
        """The same of the items at the places `keep`."""
        first, second = self.columns
        return replace(self, columns=(first[list(keep)], second[list(keep)]))

    def differs(self, other: TwoColumns) -> NDArray[np.bool_]:
        """(n,): items of which a column is another."""
        mine, theirs = np.array(self.columns), np.array(other.columns)
        return ~np.asarray(np.isclose(mine, theirs, rtol=0, atol=SAME, equal_nan=True).all(axis=0))


@dataclass(frozen=True)
class Classes(TwoColumns):
    """Value and class of each item, for a mean over classes."""


@dataclass(frozen=True)
class Detections:
    """Detections matched to labelled boxes, class by class."""

    classes: tuple[MatchedClass, ...]

    def only(self, keep: Sequence[int]) -> Detections:
        """The same of the images `keep`."""
        return Detections(tuple(_of_images(matched, np.asarray(keep, np.int64)) for matched in self.classes))

    def differs(self, other: Detections) -> NDArray[np.bool_]:
        """(n,): images with another detection, score or hit in some class."""
        different = np.zeros(len(self.classes[0].n_labelled) if self.classes else 0, bool)
        for one, two in zip(self.classes, other.classes, strict=True):
            mine, theirs = (_by_image(matched) for matched in (one, two))
            for image in mine.keys() | theirs.keys():
                different[image] |= mine.get(image) != theirs.get(image)
        return different


@dataclass(frozen=True)
class Copies:
    """Similarities (n, n) of n items and the group of copies of each, (n,)."""

    similarity: NDArray[np.float64]
    groups: NDArray[np.int64]

    def only(self, keep: Sequence[int]) -> Copies:
        """The same of the items `keep`."""
        return Copies(self.similarity[np.ix_(keep, keep)], self.groups[list(keep)])

    def differs(self, other: Copies) -> NDArray[np.bool_]:
        """(n,): items that are more or less like some other."""
        return np.asarray((np.abs(self.similarity - other.similarity) > SAME).any(axis=1))


def _by_image(matched: MatchedClass) -> dict[int, list[tuple[object, ...]]]:
    """Image -> its detections, best first."""
    found: dict[int, list[tuple[object, ...]]] = {}
    for i, image in enumerate(matched.image.tolist()):
        answer = (round(float(matched.score[i]) / SAME), *matched.is_hit[:, i], *matched.is_ignored[:, i])
        found.setdefault(image, []).append(answer)
    return found


def _of_images(matched: MatchedClass, keep: NDArray[np.int64]) -> MatchedClass:
    """`matched` of the images `keep`, which become 0, 1, ...; equal scores stay in their order."""
    by_image = np.argsort(matched.image, kind="stable")
    first, last = (np.searchsorted(matched.image[by_image], keep, side=side) for side in ("left", "right"))
    image = np.repeat(np.arange(len(keep)), last - first)
    at = by_image[np.repeat(first, last - first) + np.arange(len(image)) - np.searchsorted(image, image)]
    order = np.argsort(at, kind="stable")  # detections are sorted by score
    at = at[order]
    return MatchedClass(
        image=image[order],
        score=matched.score[at],
        is_hit=matched.is_hit[:, at],
        is_ignored=matched.is_ignored[:, at],
        n_labelled=matched.n_labelled[keep],
    )


def match_boxes(labelled: Sequence[Sequence[LabelledBox]], found: Sequence[Sequence[Found]]) -> dict[str, MatchedClass]:
    """What was found in each picture against what is labelled in it, for each labelled class by name.

    Of equal scores those of the earlier picture come first; a class that is labelled nowhere is left out.
    """
    category = {name: i for i, name in enumerate(sorted({box.label for boxes in labelled for box in boxes}))}
    labels: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image, (boxes, things) in enumerate(zip(labelled, found, strict=True)):
        for one in boxes:
            bbox = _coco_box(one.box)
            labels.append(
                {
                    "id": len(labels) + 1, "image_id": image, "category_id": category[one.label], "bbox": bbox,
                    "area": bbox[2] * bbox[3], "iscrowd": int(one.is_crowd),
                }
            )  # fmt: skip
        detections += [
            {"image_id": image, "category_id": category[label], "bbox": _coco_box(box), "score": score}
            for label, score, box in things
            if label in category
        ]
    data_set = {
        "images": [{"id": image, "width": SIDE_PX, "height": SIDE_PX} for image in range(len(labelled))],
        "categories": [{"id": i, "name": name} for name, i in category.items()],
        "annotations": labels,
    }
    return dict(zip(category, matched_classes(data_set, detections), strict=True))


def _coco_box(box: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = (SIDE_PX * side for side in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _quotient(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def ratio_metric(baseline: tuple[Values, Values], candidate: tuple[Values, Values]) -> Metric:
    """Sum over items of the first over the sum of the second: a mean with counts of 1, character error rate with edits
    and characters, precision with hits and finds, F1 with twice the hits and all finds and expectations together."""
    above, below = (np.concatenate([a, b]) for a, b in zip(baseline, candidate, strict=True))
    return lambda weights: _quotient(weights @ above, weights @ below)


def mean_over_classes(baseline: Values, candidate: Values, classes: NDArray[np.int64]) -> Metric:
    """The mean over classes (0..C-1, one an item) of the means of their items; a class without weight is left out."""
    values = np.concatenate([baseline, candidate])
    member = np.eye(int(classes.max()) + 1)[np.concatenate([classes, classes])]
    valued = values[:, None] * member

    def mean(weights: Weights) -> NDArray[np.float64]:
        n_in_class = weights @ member
        means = np.where(n_in_class > 0, weights @ valued / np.maximum(n_in_class, LEAST_WEIGHT), 0.0)
        return _quotient(means.sum(axis=1), (n_in_class > 0).sum(axis=1))

    return mean


def calibration_error(
    baseline: tuple[Values, Values], candidate: tuple[Values, Values], *, n_bins: int = N_CALIBRATION_BINS
) -> Metric:
    """Expected calibration error of (confidence in 0..1, 1 where right): the mean distance of confidence and accuracy
    in bins of equal width. An item without a confidence (NaN) is left out."""
    confidence, right = (np.concatenate([a, b]) for a, b in zip(baseline, candidate, strict=True))
    said = np.flatnonzero(~np.isnan(confidence))
    gaps = _gaps(confidence[said], right[said], said, len(confidence), n_bins)
    return lambda weights: _mean_gap(weights @ gaps)


def detection_calibration_error(
    baseline: Sequence[MatchedClass], candidate: Sequence[MatchedClass], *, n_bins: int = N_CALIBRATION_BINS
) -> Metric:
    """Expected calibration error of the scores of detections, right where they hit at the lowest threshold, over the
    classes that have a label in the weighted images; a detection in a crowd is left out."""
    parts = []
    for matched in _all_pooled(baseline, candidate):
        said = ~matched.is_ignored[0]
        images, place = np.unique(matched.image[said], return_inverse=True)
        gaps = _gaps(matched.score[said], matched.is_hit[0, said].astype(np.float64), place, len(images), n_bins)
        parts.append((matched.n_labelled, images, gaps))

    def error(weights: Weights) -> NDArray[np.float64]:
        total = np.zeros((len(weights), n_bins + 1))
        for n_labelled, images, gaps in parts:
            is_labelled = weights @ n_labelled > 0
            total += np.where(is_labelled[:, None], weights[:, images] @ gaps, 0.0)
        return _mean_gap(total)

    return error


def _gaps(confidence: Values, right: Values, item: NDArray[np.int64], n_items: int, n_bins: int) -> NDArray[np.float64]:
    """(n_items, n_bins + 1): the sum of confidence - right of each item's answers in each bin, and their number."""
    gaps = np.zeros((n_items, n_bins + 1))
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    np.add.at(gaps, (item, bins), confidence - right)
    gaps[:, n_bins] = np.bincount(item, minlength=n_items)
    return gaps


def _mean_gap(total: NDArray[np.float64]) -> NDArray[np.float64]:
    return _quotient(np.abs(total[:, :-1]).sum(axis=1), total[:, -1])


def detection_metric(
    baseline: Sequence[MatchedClass], candidate: Sequence[MatchedClass], thresholds: slice = slice(None)
) -> Metric:
    """Mean average precision; both variants matched on the same images, classes in the same order."""
    pooled = _all_pooled(baseline, candidate)
    return lambda weights: mean_average_precision(pooled, weights, thresholds)


def _all_pooled(baseline: Sequence[MatchedClass], candidate: Sequence[MatchedClass]) -> list[MatchedClass]:
    return [_pooled(a, b) for a, b in zip(baseline, candidate, strict=True)]


def _pooled(a: MatchedClass, b: MatchedClass) -> MatchedClass:
    """Both variants' detections as of 2n images, best first."""
    n = len(a.n_labelled)
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
    false_positive_rate: float,
    baseline: NDArray[np.float64],
    candidate: NDArray[np.float64],
    groups: NDArray[np.int64],
    *,
    spread: float | None = None,
) -> Metric:
    """The share of the pairs of copies that are more similar than all but `false_positive_rate` of the other pairs.

    baseline, candidate: (n, n) similarities; groups: (n,), equal for copies. Items are weighed, not pairs: two items of
    different groups weigh as their product, and two copies as their geometric mean, for a group that is drawn twice
    stands for two groups, and its copies for twice as many pairs. Answers are not exchangeable item by item.

    spread: in a product a weight w counts as 1 + spread (w - 1); None: see `spread_of_others`.
    """
    n = len(groups)
    if spread is None:
        spread = spread_of_others(false_positive_rate, baseline, candidate, groups)
    one = [_copies_found(false_positive_rate, similarity, groups, spread) for similarity in (baseline, candidate)]

    def found(weights: Weights) -> NDArray[np.float64]:
        is_candidate = weights[:, n:].any(axis=1)
        result = np.empty(len(weights))
        for variant, rows in ((0, ~is_candidate), (1, is_candidate)):
            if rows.any():
                result[rows] = one[variant](weights[rows, variant * n : (variant + 1) * n])
        return result

    return found


def spread_of_others(
    rate: float, baseline: NDArray[np.float64], candidate: NDArray[np.float64], groups: NDArray[np.int64]
) -> float:
    """How far weights of resampled items are to go from 1 in other pairs, in 0..1.

    The number of other pairs above a threshold varies from set to set by a part I that comes with the groups and a part
    P that each pair adds alone. Weights of variance a make that a I + (2 a + a^2) P, so that plain resampling (a = 1)
    counts P three times (Arcones and Giné 1992, On the bootstrap of U and V statistics, have the limit where there is
    nothing but P). a is chosen to make it I + P, of the pairs that one variant has above its threshold and the other
    has not (of one variant alone: of those above); P is their number, I + 2 P what their numbers in each group vary by
    (Efron and Stein 1981, The jackknife estimate of variance).
    """
    first, second = np.triu_indices(len(groups), 1)
    is_other = groups[first] != groups[second]
    first, second = first[is_other], second[is_other]
    n_above = int(rate * len(first))
    above = np.zeros((2, len(first)))
    for variant, similarity in enumerate((baseline, candidate)):
        above[variant, np.argsort(-similarity[first, second], kind="stable")[:n_above]] = 1
    sign = above[1] - above[0] if (above[0] != above[1]).any() else above[0] - n_above / max(len(first), 1)
    n_groups = int(groups.max()) + 1 if len(groups) else 0
    of_group = sum(np.bincount(groups[side], sign, minlength=n_groups) for side in (first, second))
    alone = float(np.sum(sign**2))
    if alone == 0:
        return 1.0
    shared = max(0.0, float(np.sum(of_group**2)) - 2 * alone)
    both = shared + 2 * alone
    return float(np.sqrt((np.sqrt(both**2 + 4 * alone * (shared + alone)) - both) / (2 * alone)))


def _copies_found(rate: float, similarity: NDArray[np.float64], groups: NDArray[np.int64], spread: float) -> OneVariant:
    first, second = np.triu_indices(len(groups), 1)
    is_copy = groups[first] == groups[second]
    copies = (first[is_copy], second[is_copy])
    # of equal similarities those of other pairs come first: they earn nothing
    order = np.lexsort((is_copy, -similarity[first, second]))
    first, second, is_copy = first[order], second[order], is_copy[order]
    members = np.eye(int(groups.max()) + 1)[groups] if len(groups) else np.zeros((0, 0))
    n_first = 4 * int(np.ceil(rate * len(order))) + len(copies[0])  # pairs that decide nearly always

    def found(weights: Weights) -> NDArray[np.float64]:
        of_copies = np.sqrt(weights[:, copies[0]] * weights[:, copies[1]])
        of_others = 1 + spread * (weights - 1)
        n_others = (of_others.sum(axis=1) ** 2 - ((of_others @ members) ** 2).sum(axis=1)) / 2
        hits, allowed = np.zeros(len(weights)), rate * n_others * (1 + ROUNDING)
        rows, upto = np.arange(len(weights)), n_first
        while len(rows):
            upto = min(upto, len(order))
            one, two, is_one = first[:upto], second[:upto], is_copy[:upto]
            others = np.where(
                is_one, 0.0, of_others[rows].take(one, axis=1) * of_others[rows].take(two, axis=1)
            ).cumsum(axis=1)
            within = others <= allowed[rows, None]
            hits[rows] = (
                np.sqrt(weights[rows].take(one, axis=1) * weights[rows].take(two, axis=1)) * (is_one & within)
            ).sum(axis=1)
            rows, upto = rows[within[:, -1:].any(axis=1) & (upto < len(order))], 4 * upto
        n_copies = of_copies.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where((n_copies == 0) | (n_others <= 0), np.nan, hits / n_copies)

    return found
