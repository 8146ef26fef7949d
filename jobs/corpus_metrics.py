"""Metrics of a whole set as functions of weights on its items, for `jobs.paired`. Knows no lake and no model.

Each takes what the baseline and the candidate answered, in the order of the items, and returns a `Metric`. What is kept
of the answers can be restricted to some items, so that a metric can be taken of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from jobs.average_precision import MatchedClass, matched_classes, mean_average_precision
from jobs.golden_labels import LabelledBox
from jobs.paired import Metric, Weights

N_CALIBRATION_BINS = 15  # Guo et al. 2017, On Calibration of Modern Neural Networks
SIDE_PX = 1000  # of every picture to pycocotools, which counts in pixels; overlaps are the same at any size
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
    """Two numbers of each item: numerator and denominator, value and class, or confidence and being right."""

    columns: tuple[Values, Values]

    def only(self, keep: Sequence[int]) -> TwoColumns:
        """The same of the items at the places `keep`."""
        first, second = self.columns
        return TwoColumns((first[list(keep)], second[list(keep)]))

    def differs(self, other: TwoColumns) -> NDArray[np.bool_]:
        """(n,): items of which a column is another."""
        mine, theirs = np.array(self.columns), np.array(other.columns)
        return ~np.asarray(np.isclose(mine, theirs, rtol=0, atol=SAME, equal_nan=True).all(axis=0))


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
    return lambda weights: np.nanmean(_quotient((weights * values) @ member, weights @ member), axis=1)


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
            if not len(pair) or copies[-1] == 0 or others[-1] == 0:
                result[i] = np.nan
                continue
            within = np.searchsorted(others, rate * others[-1], side="right")
            result[i] = (copies[within - 1] if within else 0.0) / copies[-1]
        return result

    return found
