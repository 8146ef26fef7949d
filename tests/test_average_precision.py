"""Weighted average precision is pycocotools' on a set in which images occur as often as they weigh."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jobs.average_precision import matched_classes, mean_average_precision

N_IMAGES, N_CLASSES = 12, 4


def generated(seed: int, *, ties: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO data set with crowds and detections near its boxes, beside them and of the wrong class."""
    random = np.random.default_rng(seed)
    labels: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []

    def detect(image_id: int, category_id: int, box: Sequence[int]) -> None:
        score = round(random.random(), 1) if ties else random.random()
        bbox = [*map(int, box[:2]), *(max(1, int(side)) for side in box[2:])]
        found.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score})

    for image_id in range(1, N_IMAGES + 1):
        for _ in range(random.integers(0, 6)):
            box = [*random.integers(0, 70, 2), *random.integers(5, 30, 2)]
            category = int(random.integers(0, N_CLASSES))
            labels.append(
                {
                    "id": len(labels) + 1, "image_id": image_id, "category_id": category, "bbox": list(map(int, box)),
                    "area": int(box[2] * box[3]), "iscrowd": int(random.random() < 0.15),
                }
            )  # fmt: skip
            for _ in range(random.integers(0, 3)):
                near = category if random.random() < 0.8 else int(random.integers(0, N_CLASSES))
                detect(image_id, near, [a + b for a, b in zip(box, random.integers(-4, 5, 4), strict=True)])
        for _ in range(random.integers(0, 4)):
            detect(image_id, int(random.integers(0, N_CLASSES)), [*random.integers(0, 70, 2), 20, 20])
    images = [{"id": i + 1, "width": 100, "height": 100} for i in range(N_IMAGES)]
    categories = [{"id": c, "name": str(c)} for c in range(N_CLASSES)]
    return {"images": images, "annotations": labels, "categories": categories}, found


def repeated(
    labels: dict[str, Any], found: Sequence[dict[str, Any]], counts: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The set with each image as often as its count says."""
    images, annotations, detections = [], [], []
    for image, count in zip(labels["images"], counts, strict=True):
        for _ in range(count):
            new_id = len(images) + 1
            images.append({**image, "id": new_id})
            annotations += [{**a, "image_id": new_id} for a in labels["annotations"] if a["image_id"] == image["id"]]
            detections += [{**d, "image_id": new_id} for d in found if d["image_id"] == image["id"]]
    annotations = [{**a, "id": i + 1} for i, a in enumerate(annotations)]
    return {**labels, "images": images, "annotations": annotations}, detections


def by_pycocotools(labels: dict[str, Any], found: Sequence[dict[str, Any]]) -> list[float]:
    """AP over .5:.95 and AP at .5; NaN where there is nothing to find."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, detections = COCO(), COCO()
        truth.dataset = labels
        sized = [{**d, "id": i + 1, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0} for i, d in enumerate(found)]
        detections.dataset = {**labels, "annotations": sized}
        truth.createIndex()
        detections.createIndex()
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [np.nan if value == -1 else float(value) for value in evaluation.stats[:2]]


@pytest.mark.parametrize("seed", range(6))
def test_with_equal_weights_it_is_pycocotools_also_where_scores_are_equal(seed: int) -> None:
    labels, found = generated(seed, ties=True)
    classes, weights = matched_classes(labels, found), np.ones((1, N_IMAGES))
    ours = [mean_average_precision(classes, weights)[0], mean_average_precision(classes, weights, slice(0, 1))[0]]
    assert ours == pytest.approx(by_pycocotools(labels, found), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_an_image_of_weight_two_counts_as_two_images_and_of_weight_zero_as_none(seed: int) -> None:
    labels, found = generated(seed, ties=False)
    counts = np.random.default_rng(seed).multinomial(N_IMAGES, [1 / N_IMAGES] * N_IMAGES, size=3)
    ours = mean_average_precision(matched_classes(labels, found), counts.astype(np.float64))
    theirs = [by_pycocotools(*repeated(labels, found, row.tolist()))[0] for row in counts]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-6, nan_ok=True)


def test_nothing_found_is_zero_and_nothing_to_find_is_not_a_number() -> None:
    labels, found = generated(0, ties=False)
    weights = np.ones((1, N_IMAGES))
    assert mean_average_precision(matched_classes(labels, []), weights).tolist() == [0.0]
    empty = {**labels, "annotations": []}
    assert np.isnan(mean_average_precision(matched_classes(empty, found), weights)).all()
