"""YOLOv3-tiny: the anchors of its heads, how boxes are decoded and thinned, and what it finds in photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import labelled_photographs, object_average_precision
from featurizers import object_yolov3
from featurizers.delivery import fit, upright_boxes
from featurizers.object_yolov3 import (
    ANCHORS_PX,
    COARSE_ANCHORS,
    COCO_LABELS,
    FINE_ANCHORS,
    Boxes,
    box_vectors,
    decode_head,
    non_maximum_suppression,
)
from featurizers.spec import check_features, find_spec
from tests.contract_pictures import extracted, loaded, photograph

TINY = find_spec("object_yolov3.tiny@1")
TINY_ALL = find_spec("object_yolov3.tiny_all@1")


def head(grid: int, *, anchor: int, row: int, column: int, classes: dict[int, float]) -> Any:
    """Raw output of a head that is sure of one box of the anchor's own size in the middle of one cell."""
    raw = np.full((3, 85, grid, grid), -20.0, np.float32)
    raw[anchor, :4, row, column] = 0
    raw[anchor, 4, row, column] = 20
    for label, logit in classes.items():
        raw[anchor, 5 + label, row, column] = logit
    return raw.reshape(255, grid, grid)


def test_a_box_of_the_fine_head_has_the_size_of_the_second_to_fourth_anchor() -> None:
    for place, anchor in enumerate((1, 2, 3)):
        raw = head(26, anchor=place, row=12, column=7, classes={5: 20})
        found = decode_head(raw, FINE_ANCHORS, min_score=0.25, all_classes=False)
        size = (found.box[0, 2:] - found.box[0, :2]) * 416
        assert np.allclose(size, ANCHORS_PX[anchor], atol=1e-3)
        assert np.allclose((found.box[0, :2] + found.box[0, 2:]) / 2, [7.5 / 26, 12.5 / 26], atol=1e-6)


def test_a_box_of_the_coarse_head_has_the_size_of_the_fourth_to_sixth_anchor() -> None:
    for place, anchor in enumerate((3, 4)):
        found = decode_head(
            head(13, anchor=place, row=6, column=6, classes={0: 20}), COARSE_ANCHORS, min_score=0.25, all_classes=False
        )
        assert np.allclose((found.box[0, 2:] - found.box[0, :2]) * 416, ANCHORS_PX[anchor], atol=1e-3)


def test_a_box_has_its_best_class_or_all_of_them() -> None:
    raw = head(13, anchor=0, row=2, column=3, classes={16: 1.0, 15: 2.0, 7: -8.0})
    best = decode_head(raw, COARSE_ANCHORS, min_score=0.25, all_classes=False)
    assert [COCO_LABELS[label] for label in best.label] == ["cat"]
    assert best.score[0] == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-5)
    everything = decode_head(raw, COARSE_ANCHORS, min_score=0.25, all_classes=True)
    assert {COCO_LABELS[label] for label in everything.label} == {"cat", "dog"}


def boxes(rows: list[tuple[tuple[float, float, float, float], float, int]]) -> Boxes:
    box, score, label = zip(*rows, strict=True)
    return Boxes(box=np.array(box, np.float32), score=np.array(score, np.float32), label=np.array(label))


def test_of_overlapping_boxes_of_a_class_the_best_is_kept() -> None:
    here, nearly, there = (0.1, 0.1, 0.5, 0.5), (0.12, 0.1, 0.52, 0.5), (0.6, 0.6, 0.9, 0.9)
    found = non_maximum_suppression(
        boxes([(here, 0.5, 0), (nearly, 0.9, 0), (nearly, 0.4, 1), (there, 0.3, 0)]), max_overlap=0.45, max_boxes=100
    )
    assert found.score.tolist() == pytest.approx([0.9, 0.4, 0.3])
    assert found.label.tolist() == [0, 1, 0]


def test_boxes_that_overlap_less_than_the_limit_are_both_kept() -> None:
    rows = [((0.0, 0.0, 0.4, 0.4), 0.9, 3), ((0.2, 0.0, 0.6, 0.4), 0.8, 3)]  # intersection over union 1/3
    assert len(non_maximum_suppression(boxes(rows), max_overlap=0.45, max_boxes=100).score) == 2
    assert len(non_maximum_suppression(boxes(rows), max_overlap=0.30, max_boxes=100).score) == 1


def test_no_more_than_the_wanted_boxes_are_kept_and_none_of_none() -> None:
    corners = [(i / 200, 0.0, i / 200 + 0.001, 0.1) for i in range(150)]
    found = non_maximum_suppression(
        boxes([(c, 1 - i / 200, 0) for i, c in enumerate(corners)]), max_overlap=0.45, max_boxes=100
    )
    assert len(found.score) == 100 and found.score[-1] == pytest.approx(1 - 99 / 200)
    nothing = Boxes(box=np.zeros((0, 4), np.float32), score=np.zeros(0, np.float32), label=np.zeros(0, np.int64))
    assert len(non_maximum_suppression(nothing, max_overlap=0.45, max_boxes=100).score) == 0


def test_a_vector_is_the_mean_of_the_cells_by_how_much_of_them_the_box_covers() -> None:
    cells = np.zeros((3, 2, 2), np.float32)
    cells[0, 0, 0], cells[1, 0, 1], cells[2, 1] = 1, 1, 1
    box = np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0.25, 0, 1, 0.5], [0.9, 0.9, 0.9, 0.9]], np.float32)
    expected = np.array([[1, 0, 0], [1, 1, 0], [1, 2, 0], [0, 0, 1]], np.float32)
    assert np.allclose(box_vectors(cells, box), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.weights").write_bytes(bytes(20 + 4 * 1000))
    with pytest.raises(ValueError, match="holds 1000 numbers, YOLOv3-tiny has 8858734"):
        object_yolov3.read_darknet(tmp_path / "other.weights")


def test_a_picture_of_another_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"object_yolov3.tiny@1: picture of shape \(416, 400, 3\), allowed"):
        loaded(TINY)([np.zeros((416, 400, 3), np.uint8)])


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [("motorcycle", "motorcycle", [0.07, 0.11, 0.95, 0.91]), ("coffee", "cup", [0.25, 0.06, 0.71, 0.77])],
)
def test_an_object_is_found_where_it_is(name: str, label: str, expected: list[float]) -> None:
    picture = photograph(name)
    features = extracted(TINY, [picture])
    check_features(features, TINY, 1)
    assert features.label is not None and features.box is not None and features.label[0] == label
    height, width = picture.shape[:2]
    assert np.allclose(upright_boxes(features.box, TINY, width, height)[0], expected, atol=0.03)


def test_all_boxes_hold_those_of_the_working_point() -> None:
    picture = fit(photograph("motorcycle"), TINY)
    few, many = loaded(TINY)([picture]), loaded(TINY_ALL)([picture])
    check_features(many, TINY_ALL, 1)
    assert many.score is not None and few.score is not None and few.box is not None and many.box is not None
    assert 0 < len(few.score) < len(many.score) <= 100
    for box, score in zip(few.box, few.score, strict=True):
        assert np.any(np.isclose(many.score, score, atol=1e-6) & np.isclose(many.box, box, atol=1e-6).all(axis=1))


@pytest.fixture(scope="module")
def precision(dev_data: Path) -> dict[str, float]:
    return object_average_precision(labelled_photographs(dev_data))


def test_average_precision_reaches_the_reference(precision: dict[str, float]) -> None:
    assert precision["AP50"] >= 0.50
    assert precision["AP@[.5:.95]"] >= 0.25


def test_the_anchors_of_the_shipped_cfg_fall_short(
    precision: dict[str, float], dev_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_yolov3, "FINE_ANCHORS", (0, 1, 2))
    by_cfg = object_average_precision(labelled_photographs(dev_data))
    assert by_cfg["AP50"] < 0.40 < precision["AP50"]
