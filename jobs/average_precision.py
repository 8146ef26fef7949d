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


def average_precision(matched: MatchedClass, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, T): the average precision of a class for each of R weightings, (R, n), and threshold; NaN without a label.

    Precision is made non-increasing and read at 101 recalls. Recall rises at hits only and precision is highest there,
    so that only hits are looked at.
    """
    n_labelled = weights @ matched.n_labelled
    result = np.zeros((len(weights), len(matched.is_hit)))
    result[n_labelled == 0] = np.nan
    counted = weights[:, matched.image]
    for t, (hit, ignored) in enumerate(zip(matched.is_hit, matched.is_ignored, strict=True)):
        at = np.flatnonzero(hit)
        if not len(at):
            continue
        hits = np.cumsum(counted[:, at], axis=1)
        tried = np.cumsum(np.where(ignored, 0.0, counted), axis=1)[:, at]
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = hits / n_labelled[:, None]
        precision = hits / (tried + np.spacing(1))
        best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        n_reached = np.searchsorted(RECALLS, recall, side="right")
        n_new = np.diff(n_reached, axis=1, prepend=0)
        found = (best_from_here * n_new).sum(axis=1) / len(RECALLS)
        result[:, t] = np.where(n_labelled == 0, np.nan, found)
    return result


def mean_average_precision(
    classes: Sequence[MatchedClass], weights: NDArray[np.float64], thresholds: slice = slice(None)
) -> NDArray[np.float64]:
    """(R,): the mean over thresholds and over the classes that have a label in the weighted images."""
    total = np.zeros(len(weights))
    n_classes = np.zeros(len(weights))
    for matched in classes:
        value = average_precision(matched, weights)[:, thresholds].mean(axis=1)
        total += np.where(np.isnan(value), 0, value)
        n_classes += ~np.isnan(value)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / n_classes
