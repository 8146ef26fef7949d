"""Average precision of detections when images are weighted, for many weightings at once. Knows no lake.

pycocotools matches detections to labelled boxes; what is ours is the accumulation, which gives for each row of weights
what pycocotools would give for a set in which each image occurs as often as its weight says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_CELLS = 100_000  # weights of detections at once: what stays in a core's cache
RECALLS = np.linspace(0, 1, 101)  # where precision is read off, as COCO does


@dataclass(frozen=True)
class MatchedClass:
    """Detections and labelled boxes of one class in n images, D detections at T thresholds of overlap."""

    image: NDArray[np.int64]  # (D,) best first
    score: NDArray[np.float64]  # (D,)
    is_hit: NDArray[np.bool_]  # (T, D)
    is_ignored: NDArray[np.bool_]  # (T, D) neither a hit nor a miss: matched to a crowd
    n_labelled: NDArray[np.float64]  # (n,) boxes to be found in each image


def matched_classes(labels: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> list[MatchedClass]:
    """Match `detections` (COCO results) to `labels` (a COCO data set), image by image in the order of their ids."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(labels)
        truth.createIndex()
        found = COCO()
        found.dataset = {**labels, "annotations": _annotations(detections)}
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [evaluation.params.maxDets[-1]]
        evaluation.evaluate()
    n_images = len(evaluation.params.imgIds)
    parts = [evaluation.evalImgs[first : first + n_images] for first in range(0, len(evaluation.evalImgs), n_images)]
    return [_matched(part, n_images, len(evaluation.params.iouThrs)) for part in parts]


def _annotations(detections: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    annotations = []
    for i, detection in enumerate(detections):
        _, _, width, height = detection["bbox"]
        annotations.append({**detection, "id": i + 1, "area": width * height, "iscrowd": 0})
    return annotations


def _matched(
    per_image: Sequence[Mapping[str, NDArray[np.float64]] | None], n_images: int, n_overlaps: int
) -> MatchedClass:
    there = [(i, one) for i, one in enumerate(per_image) if one is not None]
    scores = np.concatenate([np.zeros(0), *(np.asarray(one["dtScores"], float) for _, one in there)])
    order = np.argsort(-scores, kind="stable")
    nothing = np.zeros((n_overlaps, 0), bool)
    hit = np.concatenate([nothing, *(one["dtMatches"].astype(bool) for _, one in there)], axis=1)[:, order]
    ignored = np.concatenate([nothing, *(one["dtIgnore"].astype(bool) for _, one in there)], axis=1)[:, order]
    image = np.concatenate([np.zeros(0, np.int64), *(np.full(len(one["dtScores"]), i) for i, one in there)])[order]
    n_labelled = np.zeros(n_images)
    for i, one in there:
        n_labelled[i] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
    return MatchedClass(image.astype(np.int64), scores[order], hit & ~ignored, ignored, n_labelled)


def average_precision(
    matched: MatchedClass, weights: NDArray[np.float64], thresholds: slice = slice(None)
) -> NDArray[np.float64]:
    """(R, T): the average precision of a class for each of R weightings, (R, n), and threshold; NaN without a label.

    Precision is made non-increasing and read at 101 recalls. Recall rises at hits only and precision is highest there,
    so that only hits are looked at, and no detection after the last of them.
    """
    hit, ignored = matched.is_hit[thresholds], matched.is_ignored[thresholds]
    result = np.zeros((len(weights), len(hit)))
    n_labelled = weights @ matched.n_labelled
    result[n_labelled == 0] = np.nan
    counts = np.any(weights > 0, axis=0)[matched.image]
    at_hits = np.flatnonzero(hit.any(axis=0) & counts)
    if not len(at_hits):
        return result
    kept = np.flatnonzero(counts[: at_hits[-1] + 1])
    n_rows = max(1, BLOCK_CELLS // len(kept))
    for first in range(0, len(weights), n_rows):
        rows = slice(first, first + n_rows)
        counted = weights[rows][:, matched.image[kept]]
        tried = np.cumsum(counted, axis=1)
        for t in range(len(hit)):
            at = np.flatnonzero(hit[t, kept])
            if not len(at):
                continue
            not_tried = np.flatnonzero(ignored[t, kept])
            before = np.searchsorted(not_tried, at)  # how many ignored ones come before each hit
            left_out = np.cumsum(counted[:, not_tried], axis=1)
            left_out = np.hstack([np.zeros((len(counted), 1)), left_out])[:, before]
            found = _interpolated(counted[:, at], tried[:, at] - left_out, n_labelled[rows])
            result[rows, t] = np.where(n_labelled[rows] == 0, np.nan, found)
    return result


def _interpolated(
    weight: NDArray[np.float64], tried: NDArray[np.float64], n_labelled: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R,): from the weights (R, H) of H hits, and of all that was tried down to each."""
    hits = np.cumsum(weight, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.nan_to_num(hits / n_labelled[:, None])
    precision = hits / (tried + np.spacing(1))
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    n_reached = _n_reached(recall)
    n_new = np.diff(n_reached, axis=1, prepend=0)
    mean: NDArray[np.float64] = np.einsum("rh,rh->r", best_from_here, n_new) / len(RECALLS)
    return mean


def _n_reached(recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of RECALLS are at most `recall`: np.searchsorted(RECALLS, recall, side="right"), 4 times as fast."""
    near = np.minimum(recall * (len(RECALLS) - 1), len(RECALLS) - 1).astype(np.int64)
    is_below, is_above = RECALLS[near] > recall, np.append(RECALLS, np.inf)[near + 1] <= recall
    return (near + 1 - is_below + is_above).astype(np.float64)


def mean_average_precision(
    classes: Sequence[MatchedClass], weights: NDArray[np.float64], thresholds: slice = slice(None)
) -> NDArray[np.float64]:
    """(R,): the mean over thresholds and over the classes that have a label in the weighted images."""
    total = np.zeros(len(weights))
    n_classes = np.zeros(len(weights))
    for matched in classes:
        value = average_precision(matched, weights, thresholds).mean(axis=1)
        total += np.where(np.isnan(value), 0, value)
        n_classes += ~np.isnan(value)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / n_classes
