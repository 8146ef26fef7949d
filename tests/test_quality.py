"""What answers are worth is what pycocotools, scikit-learn and plain loops say, on all items and on some of them."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import (
    balanced_accuracy_score,
    label_ranking_average_precision_score,
    ndcg_score,
    precision_recall_fscore_support,
    roc_curve,
    top_k_accuracy_score,
)
from sklearn.preprocessing import MultiLabelBinarizer

from jobs.golden_labels import LabelledBox
from jobs.health import unlabelled
from jobs.item_metrics import edit_distance
from jobs.paired import Metric, compare, mean_metric
from jobs.quality import (
    Answer,
    GoldenItem,
    Measurement,
    class_retrieval,
    compare_measurements,
    copy_detection,
    detection,
    query_retrieval,
    text_reading,
    zero_shot,
)

N = 9
Numbers = NDArray[np.float64]


def answer(
    features: Sequence[tuple[str | None, float, Sequence[float] | None, str | None]] = (), *, is_failed: bool = False
) -> Answer:
    """Features as label, score, box and text."""
    return Answer(
        vector=np.full((len(features), 2), np.nan, np.float32),
        label=tuple(one[0] for one in features),
        score=np.array([one[1] for one in features], np.float64),
        box=np.array([one[2] or [math.nan] * 4 for one in features], np.float64).reshape(-1, 4),
        text=tuple(one[3] for one in features),
        is_failed=is_failed,
    )


def by_name(measured: Sequence[Measurement]) -> dict[str, Measurement]:
    """Measurements by metric, of which there is one each."""
    named = {one.metric: one for one in measured}
    assert len(named) == len(measured)
    return named


# -- generated sets: what is measured of some of their items ------------------------------------------------------


@dataclass(frozen=True)
class GoldenSet:
    """A golden set with answers; `measure` takes the places of items, and whether all answers failed."""

    n_items: int
    measure: Callable[[Sequence[int], bool], list[Measurement]]


def renamed(items: Sequence[GoldenItem], keep: Sequence[int]) -> list[GoldenItem]:
    """The items at the places `keep`; what is taken again has another id."""
    return [replace(items[i], item_id=f"{items[i].item_id}/{list(keep[:n]).count(i)}") for n, i in enumerate(keep)]


def pictures_with_boxes(seed: int, *, ties: bool = False) -> tuple[list[GoldenItem], dict[str, Answer]]:
    """Boxes with crowds, and detections near them, beside them, of other classes and of one that is labelled nowhere;
    the answers to items 2 and 5 failed or are empty."""
    random = np.random.default_rng(seed)
    items, answers = [], {}
    for i in range(N):
        boxes, features = [], []
        for _ in range(random.integers(0, 6)):
            corner, sides = random.uniform(0, 0.6, 2), random.uniform(0.05, 0.4, 2)
            label = str(random.choice(list("abcd")))
            near = np.concatenate([corner, corner + sides])
            x0, y0, x1, y1 = near.tolist()
            boxes.append(LabelledBox(label=label, box=(x0, y0, x1, y1), is_crowd=bool(random.random() < 0.15)))
            for _ in range(random.integers(0, 3)):
                said = label if random.random() < 0.8 else str(random.choice(list("abcdz")))
                features.append((said, (near + random.uniform(-0.05, 0.05, 4)).tolist()))
        for _ in range(random.integers(0, 4)):
            corner = random.uniform(0, 0.6, 2)
            features.append((str(random.choice(list("abcdz"))), [*corner.tolist(), *(corner + 0.2).tolist()]))
        found = [(a, round(random.random(), 1 if ties else 15), b, None) for a, b in features]
        items.append(GoldenItem(item_id=f"m{i}", kind="boxes", media_id=f"m{i}", boxes=tuple(boxes)))
        answers[f"m{i}"] = answer([*found, (None, 0.5, None, "no object")])
    answers["m2"], answers["m5"] = replace(answers["m2"], is_failed=True), answer()
    return items, answers


def failed(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    return {media_id: replace(one, is_failed=True) for media_id, one in answers.items()}


def detection_set(seed: int) -> GoldenSet:
    items, answers = pictures_with_boxes(seed)
    return GoldenSet(N, lambda keep, fails: detection(renamed(items, keep), failed(answers) if fails else answers))


def class_retrieval_set(seed: int) -> GoldenSet:
    random = np.random.default_rng(seed)
    relevant, scores = random.random((N, 20)) < 0.2, random.random((N, 20)).round(1)
    relevant[3], scores[:, 4] = False, np.nan

    def measure(keep: Sequence[int], fails: bool) -> list[Measurement]:
        said = np.full_like(scores, np.nan) if fails else scores
        return class_retrieval([f"c{i}" for i in keep], relevant[list(keep)], said[list(keep)])

    return GoldenSet(N, measure)


def queries(seed: int, n_media: int = 20) -> tuple[list[GoldenItem], list[str], Numbers]:
    """Queries with graded gains, the media, and scores without ties; item 3 has nothing relevant."""
    random = np.random.default_rng(seed)
    media_ids = [f"m{i}" for i in range(n_media)]
    gains = random.integers(1, 4, (N, n_media)) * (random.random((N, n_media)) < 0.25)
    gains[:, 0] = 1
    gains[3] = 0
    items = [
        GoldenItem(
            item_id=f"q{i}",
            kind="queries",
            query=f"query {i}",
            relevant={m: float(gain) for m, gain in zip(media_ids, row, strict=True) if gain or random.random() < 0.2},
        )
        for i, row in enumerate(gains)
    ]
    return items, media_ids, random.permutation(N * n_media).reshape(N, n_media) / (N * n_media)


def query_set(seed: int) -> GoldenSet:
    items, media_ids, scores = queries(seed)
    scores[:, 7] = np.nan

    def measure(keep: Sequence[int], fails: bool) -> list[Measurement]:
        said = np.full_like(scores, np.nan) if fails else scores
        return query_retrieval(renamed(items, keep), media_ids, said[list(keep)])

    return GoldenSet(N, measure)


def labelled(seed: int, n_labels: int = 1) -> tuple[list[GoldenItem], list[str], Numbers]:
    """Items of up to `n_labels` of seven classes, of which the last is no item's, and scores without ties."""
    random = np.random.default_rng(seed)
    classes = list("abcdefg")
    items = [
        GoldenItem(
            item_id=f"m{i}",
            kind="labels",
            media_id=f"m{i}",
            labels=tuple(random.choice(classes[:-1], random.integers(1, n_labels + 1), replace=False).tolist()),
        )
        for i in range(N)
    ]
    return items, classes, random.permutation(N * 7).reshape(N, 7) / (N * 7)


def zero_shot_set(seed: int) -> GoldenSet:
    items, classes, scores = labelled(seed, n_labels=3)
    scores[4] = np.nan
    confidence = np.exp(3 * scores) / np.exp(3 * scores).sum(axis=1, keepdims=True)

    def measure(keep: Sequence[int], fails: bool) -> list[Measurement]:
        said = np.full_like(scores, np.nan) if fails else scores
        return zero_shot(renamed(items, keep), classes, said[list(keep)], confidence[list(keep)])

    return GoldenSet(N, measure)


def copies(seed: int) -> tuple[list[GoldenItem], NDArray[np.float32]]:
    """Groups of one to three copies; the first two are one picture twice, and the last failed."""
    random = np.random.default_rng(seed)
    groups = sorted(random.integers(0, 6, N).tolist())
    vectors = (random.normal(size=(6, 4))[groups] + random.normal(0, 0.7, (N, 4))).astype(np.float32)
    vectors[1], vectors[-1] = vectors[0], np.nan
    items = [GoldenItem(item_id=f"m{i}", kind="copies", media_id=f"m{i}", copy_group=f"g{groups[i]}") for i in range(N)]
    return items, vectors


def copy_set(seed: int) -> GoldenSet:
    items, vectors = copies(seed)

    def measure(keep: Sequence[int], fails: bool) -> list[Measurement]:
        said = np.full_like(vectors, np.nan) if fails else vectors
        return copy_detection(renamed(items, keep), said[list(keep)])

    return GoldenSet(N, measure)


def texts(seed: int) -> tuple[list[GoldenItem], dict[str, Answer]]:
    """Lines and entities, and what was read: with errors, too much and too little. The answers to items 2 and 5 failed
    or are empty, item 3 holds nothing, and of items 6 and 7 only one thing is known."""
    random = np.random.default_rng(seed)
    items, answers = [], {}

    def line() -> str:
        return "".join(random.choice(list("abA b"), random.integers(1, 9)))

    for i in range(N):
        lines = [line() for _ in range(random.integers(1, 4))]
        known = set(random.choice(list("pqrst"), random.integers(1, 4)).tolist())
        features: list[tuple[str | None, float, None, str | None]] = []
        for expected in [*lines, line()]:
            if random.random() < 0.8:
                wrong = random.random(len(expected)) < 0.2
                read = "".join("x" if bad else c for c, bad in zip(expected, wrong, strict=True))
                features.append((None, 0.9, None, read))
                features += [(str(random.choice(list("pqrst"))), 0.5, None, "surface")] * int(random.integers(0, 3))
        items.append(
            GoldenItem(
                item_id=f"m{i}",
                kind="text",
                media_id=f"m{i}",
                text=None if i == 6 else () if i == 3 else tuple(lines),
                entities=None if i == 7 else () if i == 3 else tuple(sorted(known)),
            )
        )
        answers[f"m{i}"] = answer(features)
    answers["m2"], answers["m5"] = replace(answers["m2"], is_failed=True), answer()
    return items, answers


def text_set(seed: int) -> GoldenSet:
    items, answers = texts(seed)
    # 6 and 7 are items of some metrics only
    known = [i for i in range(N) if i not in (6, 7)]

    def measure(keep: Sequence[int], fails: bool) -> list[Measurement]:
        return text_reading(renamed(items, [known[i] for i in keep]), failed(answers) if fails else answers)

    return GoldenSet(len(known), measure)


SETS: Mapping[str, Callable[[int], GoldenSet]] = {
    "detection": detection_set,
    "class_retrieval": class_retrieval_set,
    "query_retrieval": query_set,
    "zero_shot": zero_shot_set,
    "copy_detection": copy_set,
    "text_reading": text_set,
}


@pytest.fixture(params=itertools.product(SETS, range(4)), ids=lambda param: f"{param[0]}-{param[1]}")
def golden_set(request: pytest.FixtureRequest) -> GoldenSet:
    """Generated golden sets of every kind."""
    name, seed = request.param
    return SETS[name](seed)


def same(a: float, b: float) -> bool:
    """Equal to 1e-9, or both not defined."""
    return a == pytest.approx(b, abs=1e-9, nan_ok=True)


def test_a_restriction_to_some_items_is_measured_as_those_alone(golden_set: GoldenSet) -> None:
    everything = by_name(golden_set.measure(range(golden_set.n_items), False))
    random, n_defined = np.random.default_rng(0), 0
    for n in (1, 1, 1, 2, 3, 5, golden_set.n_items - 1):
        keep = random.permutation(golden_set.n_items)[:n].tolist()
        alone = by_name(golden_set.measure(keep, False))
        for name, one in everything.items():
            if name not in alone:  # of a class that these items do not have
                assert math.isnan(one.only(keep).value)
                continue
            assert same(one.only(keep).value, alone[name].value), (name, keep)
            assert one.only(keep).values.tolist() == pytest.approx(alone[name].values.tolist(), nan_ok=True)
            assert one.only(keep).items == tuple(one.items[i] for i in keep)
            n_defined += not math.isnan(alone[name].value)
    assert n_defined >= 4


def test_the_order_of_the_items_does_not_matter(golden_set: GoldenSet) -> None:
    everything = by_name(golden_set.measure(range(golden_set.n_items), False))
    order = np.random.default_rng(1).permutation(golden_set.n_items).tolist()
    for name, one in by_name(golden_set.measure(order, False)).items():
        assert same(one.value, everything[name].value), name
        assert one.values.tolist() == pytest.approx(everything[name].values[order].tolist(), nan_ok=True)


def test_an_item_of_weight_two_is_an_item_twice_in_both_variants(golden_set: GoldenSet) -> None:
    n = golden_set.n_items
    counts = np.random.default_rng(2).multinomial(n, np.full(n, 1 / n))
    weights, nothing = counts.astype(float), np.zeros(n)
    again = by_name(golden_set.measure(np.repeat(np.arange(n), counts).tolist(), False))
    for name, one in by_name(golden_set.measure(range(n), False)).items():
        if one.groups is None:  # copies of an item are copies
            pair = one.pair(one.data, one.data)
            found = pair(np.array([[*weights, *nothing], [*nothing, *weights]])).tolist()
            expected = again[name].value if name in again else math.nan
            assert same(found[0], expected) and same(found[1], expected), name


def test_a_candidate_that_failed_with_everything_found_nothing_and_leaves_the_baseline_as_it_is(
    golden_set: GoldenSet,
) -> None:
    everything = range(golden_set.n_items)
    fallen = by_name(golden_set.measure(everything, True))
    for name, one in by_name(golden_set.measure(everything, False)).items():
        n, candidate = len(one.items), fallen[name]
        values = one.pair(one.data, candidate.data)(np.repeat(np.eye(2), n, axis=1))
        assert same(values[0], one.value) and same(values[1], candidate.value), name
        nothing_was_said = name in ("calibration_error", "entity_precision", "linking_accuracy")
        nothing_is_there = math.isnan(one.value)  # crowds alone
        worst = 1.0 if name == "character_error_rate" else 0.0
        assert same(candidate.value, math.nan if nothing_was_said or nothing_is_there else worst), name


# -- objects ------------------------------------------------------------------------------------------------------


def by_pycocotools(items: Sequence[GoldenItem], answers: Mapping[str, Answer]) -> Any:
    """COCOeval of pictures of 640 x 480."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = sorted({box.label for item in items for box in item.boxes or ()})

    def bbox(box: Sequence[float]) -> list[float]:
        return [640 * box[0], 480 * box[1], 640 * (box[2] - box[0]), 480 * (box[3] - box[1])]

    annotations = [
        {"image_id": i, "category_id": names.index(one.label), "bbox": bbox(one.box), "iscrowd": int(one.is_crowd)}
        for i, item in enumerate(items)
        for one in item.boxes or ()
    ]
    found = [
        {"image_id": i, "category_id": names.index(label), "bbox": bbox(box), "iscrowd": 0, "score": score}
        for i, item in enumerate(items)
        if not (one := answers[str(item.media_id)]).is_failed
        for label, box, score in zip(one.label, one.box.tolist(), one.score.tolist(), strict=True)
        if label in names
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for boxes in (annotations, found):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": i} for i in range(len(items))],
                "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
                "annotations": [{**b, "id": i + 1, "area": b["bbox"][2] * b["bbox"][3]} for i, b in enumerate(boxes)],
            }
            coco.createIndex()
            sets.append(coco)
        evaluation = COCOeval(*sets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_average_precision_is_pycocotools_in_all_and_for_each_class(seed: int, ties: bool) -> None:
    items, answers = pictures_with_boxes(seed, ties=ties)
    found, theirs = by_name(detection(items, answers)), by_pycocotools(items, answers)
    assert found["average_precision"].value == pytest.approx(theirs.stats[0], abs=1e-6)
    assert found["average_precision_50"].value == pytest.approx(theirs.stats[1], abs=1e-6)
    labelled_classes = sorted({box.label for item in items for box in item.boxes or ()})
    for k, name in enumerate(labelled_classes):
        precision = theirs.eval["precision"][0, :, k, 0, 2].mean()
        expected = math.nan if precision == -1 else precision  # the class has crowds alone
        assert same(found[f"average_precision_50/{name}"].value, expected)
    assert np.isnan(found["average_precision"].values).all()
    for one in detection(items[::-1], answers):
        assert same(one.value, found[one.metric].value)  # equal scores come in the order of the ids, not of the items


@pytest.mark.parametrize("seed", range(8))
def test_box_recall_and_calibration_count_the_matches_of_pycocotools(seed: int) -> None:
    items, answers = pictures_with_boxes(seed)
    found, theirs = by_name(detection(items, answers)), by_pycocotools(items, answers)
    hits, labelled_boxes = np.zeros(N), np.zeros(N)
    said: list[tuple[float, bool]] = []
    for one in theirs.evalImgs:
        if one is None or one["aRng"] != [0, 1e10]:
            continue
        labelled_boxes[one["image_id"]] += np.sum(one["gtIgnore"] == 0)
        for score, match, ignored in zip(one["dtScores"], one["dtMatches"][0], one["dtIgnore"][0], strict=True):
            if not ignored:
                hits[one["image_id"]] += match > 0
                said.append((score, match > 0))
    with np.errstate(invalid="ignore"):
        assert found["box_recall_50"].values.tolist() == pytest.approx((hits / labelled_boxes).tolist(), nan_ok=True)
    assert found["box_recall_50"].value == pytest.approx(hits.sum() / labelled_boxes.sum())
    gap = 0.0
    for b in range(15):
        here = [(score, hit) for score, hit in said if b / 15 <= score < (b + 1) / 15]
        gap += abs(sum(score for score, _ in here) - sum(hit for _, hit in here))
    assert found["calibration_error"].value == pytest.approx(gap / len(said), abs=1e-9)
    assert not found["calibration_error"].higher_is_better


def test_pictures_without_boxes_or_without_finds_are_no_error() -> None:
    empty = GoldenItem(item_id="m", kind="boxes", media_id="m", boxes=())
    box = LabelledBox(label="a", box=(0.1, 0.1, 0.5, 0.5))
    full, hit = replace(empty, boxes=(box,)), ("a", math.nan, (0.1, 0.1, 0.5, 0.5), None)
    nothing = by_name(detection([empty], {"m": answer([hit])}))
    assert set(nothing) == {"average_precision_50", "average_precision", "box_recall_50", "calibration_error"}
    assert all(math.isnan(one.value) for one in nothing.values())
    for one in (answer(), answer([hit], is_failed=True)):
        missed = by_name(detection([full], {"m": one}))
        assert [missed[m].value for m in ("average_precision", "average_precision_50/a", "box_recall_50")] == [0, 0, 0]
        assert math.isnan(missed["calibration_error"].value)
    sure = by_name(detection([full], {"m": answer([hit])}))
    ours = [sure[m].value for m in ("average_precision", "box_recall_50", "calibration_error")]
    assert ours == pytest.approx([1, 1, 0])


def test_media_without_an_answer_are_named() -> None:
    items, answers = pictures_with_boxes(0)
    del answers["m3"], answers["m4"]
    for measure in (detection, text_reading):
        with pytest.raises(ValueError, match="2 of 9 media have no answer, such as m3"):
            measure(items, answers)
    with pytest.raises(ValueError, match="1 of 2 relevant media have no answer, such as b"):
        query = GoldenItem(item_id="q", kind="queries", query="q", relevant={"a": 1, "b": 2, "c": 0})
        query_retrieval([query], ["a"], np.ones((1, 1)))


# -- concepts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_retrieval_by_class_is_scikit_learns_where_scores_differ(seed: int) -> None:
    random = np.random.default_rng(seed)
    relevant, scores = random.random((6, 30)) < 0.2, random.permutation(180).reshape(6, 30) / 180
    relevant[:, 3] = True
    found = by_name(class_retrieval(list("abcdef"), relevant, scores))
    expected = {
        "retrieval_mean_average_precision": label_ranking_average_precision_score(relevant, scores),
        "ndcg_at_10": ndcg_score(relevant, scores, k=10),
        "mean_reciprocal_rank": np.mean([1 / min(ranks_of(s, r)) for s, r in zip(scores, relevant, strict=True)]),
    }
    for k in (1, 5, 10):
        shares = [np.mean(np.array(ranks_of(s, r)) <= k) for s, r in zip(scores, relevant, strict=True)]
        expected[f"recall_at_{k}"] = np.mean(shares)
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected, abs=1e-6)
    assert found["recall_at_5"].items == tuple("abcdef")


def ranks_of(scores: Numbers, gains: NDArray[Any]) -> list[int]:
    """The places of what is relevant, after all that is not better and has at least its score."""
    return [
        1 + sum(s > score or (s == score and (other, j) < (gain, i)) for j, (s, other) in enumerate(both))
        for both in (list(zip(scores.tolist(), gains.tolist(), strict=True)),)
        for i, (score, gain) in enumerate(both)
        if gain > 0
    ]


@pytest.mark.parametrize("seed", range(10))
def test_of_equal_scores_the_wrong_ones_come_first(seed: int) -> None:
    random = np.random.default_rng(seed)
    relevant, scores = random.random((6, 30)) < 0.2, random.random((6, 30)).round(1)
    relevant[:, 3] = True
    found = by_name(class_retrieval(list("abcdef"), relevant, scores))
    precisions, reciprocals, gained = [], [], []
    for s, r in zip(scores, relevant, strict=True):
        places = sorted(ranks_of(s, r))
        precisions.append(np.mean([(i + 1) / place for i, place in enumerate(places)]))
        reciprocals.append(1 / places[0])
        best = sum(1 / math.log2(i + 2) for i in range(min(10, len(places))))
        gained.append(sum(1 / math.log2(place + 1) for place in places if place <= 10) / best)
        assert found["recall_at_5"].values[len(reciprocals) - 1] == np.mean([place <= 5 for place in places])
    assert found["retrieval_mean_average_precision"].values.tolist() == pytest.approx(precisions)
    assert found["mean_reciprocal_rank"].values.tolist() == pytest.approx(reciprocals)
    assert found["ndcg_at_10"].values.tolist() == pytest.approx(gained)
    constant = by_name(class_retrieval(["a"], relevant[:1], np.zeros((1, 30))))
    assert constant["recall_at_5"].value == 0 and constant["ndcg_at_10"].value == 0


@pytest.mark.parametrize("seed", range(10))
def test_retrieval_by_query_is_scikit_learns_with_graded_gains(seed: int) -> None:
    items, media_ids, scores = queries(seed)
    searched = GoldenItem(item_id="m0", kind="queries", media_id="m0")
    found = by_name(query_retrieval([*items, searched], media_ids, scores))
    gains = np.array([[(item.relevant or {}).get(m, 0) for m in media_ids] for item in items])
    there = [i for i in range(N) if i != 3]
    assert found["ndcg_at_10"].value == pytest.approx(ndcg_score(gains[there], scores[there], k=10), abs=1e-6)
    assert found["ndcg_at_10"].items == tuple(f"q{i}" for i in range(N))
    assert [math.isnan(value) for value in found["ndcg_at_10"].values] == [i == 3 for i in range(N)]
    for k in (1, 5, 10):
        best = np.argsort(-scores, axis=1)[:, :k]
        shares = [np.sum(gains[i, best[i]] > 0) / np.sum(gains[i] > 0) for i in there]
        assert found[f"recall_at_{k}"].value == pytest.approx(np.mean(shares))
    first = [next(1 / (n + 1) for n, j in enumerate(np.argsort(-scores[i])) if gains[i, j] > 0) for i in there]
    assert found["mean_reciprocal_rank"].value == pytest.approx(np.mean(first))


def test_a_media_that_failed_is_never_found_however_few_there_are() -> None:
    scores = np.array([[np.nan, 0.5, np.nan]])
    found = by_name(class_retrieval(["a"], np.array([[True, False, True]]), scores))
    assert {name: one.value for name, one in found.items()} == dict.fromkeys(found, 0.0)
    half = by_name(class_retrieval(["a"], np.array([[True, True, False]]), scores))
    assert half["recall_at_10"].value == 0.5 and half["retrieval_mean_average_precision"].value == 0.5
    item = GoldenItem(item_id="q", kind="queries", query="q", relevant={"a": 2.0})
    found = by_name(query_retrieval([item], ["a", "b"], np.array([[np.nan, 0.1]])))
    assert {name: one.value for name, one in found.items()} == dict.fromkeys(found, 0.0)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(10))
def test_zero_shot_is_scikit_learns_for_one_label(seed: int) -> None:
    items, classes, scores = labelled(seed)
    found = by_name(zero_shot(items, classes, scores, None))
    truth = [str(item.labels[0]) for item in items if item.labels]
    for k in (1, 5):
        expected = top_k_accuracy_score(truth, scores, k=k, labels=classes)
        assert found[f"top_{k}"].value == pytest.approx(expected, abs=1e-6)
    said = [classes[i] for i in scores.argmax(axis=1)]
    balanced = balanced_accuracy_score(truth, said)
    assert found["mean_per_class_accuracy"].value == pytest.approx(balanced, abs=1e-6)
    assert set(found) == {"top_1", "top_5", "mean_per_class_accuracy"}
    few = [replace(item, labels=("a",)) for item in items]
    assert "top_5" not in by_name(zero_shot(few, classes[:5], scores[:, :5], None))


@pytest.mark.parametrize("seed", range(10))
def test_zero_shot_with_several_labels_ties_and_failures_is_a_plain_loop(seed: int) -> None:
    items, classes, scores = labelled(seed, n_labels=3)
    scores = scores.round(1)
    scores[4] = np.nan
    confidence = np.random.default_rng(seed).random((N, 7))
    found = by_name(zero_shot(items, classes, scores, confidence))
    right: dict[int, list[bool]] = {1: [], 5: []}
    said = []
    for i, item in enumerate(items):
        wrong_first = sorted(range(7), key=lambda c: (-scores[i, c], classes[c] in (item.labels or ())))
        for k, them in right.items():
            them.append(i != 4 and any(classes[c] in (item.labels or ()) for c in wrong_first[:k]))
        said.append((confidence[i, wrong_first[0]], right[1][-1]))
    assert found["top_1"].values.tolist() == right[1] and found["top_5"].values.tolist() == right[5]
    of_class: dict[str, list[bool]] = {}
    for item, hit in zip(items, right[1], strict=True):
        of_class.setdefault((item.labels or ("",))[0], []).append(hit)
    accuracies = [np.mean(hits) for hits in of_class.values()]
    assert found["mean_per_class_accuracy"].value == pytest.approx(np.mean(accuracies))
    del said[4]  # said nothing, so that there is no confidence to be wrong
    gap = sum(abs(sum(s - hit for s, hit in said if b / 15 <= s < (b + 1) / 15)) for b in range(15))
    assert found["calibration_error"].value == pytest.approx(gap / 8, abs=1e-9)


def test_scores_and_labels_that_do_not_fit_are_named() -> None:
    items, classes, scores = labelled(0)
    with pytest.raises(ValueError, match=r"scores is \(9, 7\), needed: 9 media, 6 classes"):
        zero_shot(items, classes[:6], scores, None)
    with pytest.raises(ValueError, match=r"1 items have none of the classes, such as m0: \('zebra',\)"):
        zero_shot([replace(items[0], labels=("zebra",)), *items[1:]], classes, scores, None)
    with pytest.raises(ValueError, match=r"scores is \(9, 7\), needed: 2 classes, 7 media"):
        class_retrieval(["a", "b"], np.ones((2, 7), bool), scores)


# -- copies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_copies_found_are_those_of_the_roc_curve(seed: int) -> None:
    items, vectors = copies(seed)
    found = copy_detection(items, vectors)
    pairs = list(itertools.combinations(range(N), 2))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [-1.0 if np.isnan(cosine := float(unit[i] @ unit[j])) else round(cosine, 6) for i, j in pairs]
    is_copy = [items[i].copy_group == items[j].copy_group for i, j in pairs]
    fpr, tpr, _ = roc_curve(is_copy, cosines, drop_intermediate=False)
    assert [one.metric for one in found] == ["copies_found_at_1e-3", "copies_found_at_1e-4"]
    for one, rate in zip(found, (1e-3, 1e-4), strict=True):
        assert one.value == pytest.approx(tpr[fpr <= rate].max(), abs=1e-6)
        assert one.groups is not None and np.isnan(one.values).all()


def test_copies_that_failed_are_not_found_and_equal_similarities_earn_nothing() -> None:
    groups = ["g", "g", None, None]
    items = [GoldenItem(item_id=f"m{i}", kind="copies", media_id=f"m{i}", copy_group=g) for i, g in enumerate(groups)]
    vectors = np.array([[1, 0], [2, 0], [0, 1], [1, 1]], np.float32)
    assert [one.value for one in copy_detection(items, vectors)] == [1, 1]
    failed = vectors.copy()
    failed[0] = np.nan
    assert [one.value for one in copy_detection(items, failed)] == [0, 0]
    assert [one.value for one in copy_detection(items, np.ones((4, 2), np.float32))] == [0, 0]
    assert math.isnan(copy_detection(items[:1], vectors[:1])[0].value)


# -- text and entities --------------------------------------------------------------------------------------------


@cache
def edits(a: str, b: str) -> int:
    """Wagner and Fischer's edit distance."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))


@pytest.mark.parametrize("seed", range(5))
def test_the_edit_distance_is_the_textbooks(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(60):
        a, b = ("".join(random.choice(list("abcä"), random.integers(0, 9))) for _ in range(2))
        assert edit_distance(a, b) == edits(a, b), (a, b)
    assert edit_distance("x" * 100, "x" * 70 + "y" * 40) == 40


def every_assignment(lines: Sequence[str], found: Sequence[str]) -> list[tuple[int, int]]:
    """(edits, lines found) of each way to give every expected line one of the found ones or none."""
    ways = []
    for chosen in itertools.product([None, *range(len(found))], repeat=len(lines)):
        used = [one for one in chosen if one is not None]
        if len(used) > len(set(used)):
            continue
        each = [(line, "" if one is None else found[one]) for line, one in zip(lines, chosen, strict=True)]
        left = sum(len(found[i]) for i in range(len(found)) if i not in used and len(found[i]) >= 3)
        ways.append(
            (left + sum(edits(*both) for both in each), sum(10 * edits(*both) <= len(both[0]) for both in each))
        )
    return ways


@pytest.mark.parametrize("seed", range(15))
def test_lines_are_read_as_the_best_of_all_assignments_says(seed: int) -> None:
    items, answers = texts(seed)
    found = by_name(text_reading(items, answers))
    total = np.zeros(4)
    for item in items:
        if item.text is None:
            continue
        one = answers[item.item_id]
        lines = [line for t in item.text if (line := " ".join(t.split()))]
        read = [
            line
            for t, label in zip(one.text, one.label, strict=True)
            if label is None and not one.is_failed and (line := " ".join(str(t).split()))
        ]
        ways = every_assignment(lines, read)
        mine = np.array([min(w[0] for w in ways), sum(map(len, lines)), max(w[1] for w in ways), len(lines)], float)
        at = found["character_error_rate"].items.index(item.item_id)
        for name, above, below in (("character_error_rate", *mine[:2]), ("line_recall", *mine[2:])):
            assert same(found[name].values[at], above / below if below else math.nan), (name, lines, read)
        total += mine
    assert found["character_error_rate"].value == pytest.approx(total[0] / total[1], abs=1e-9)
    assert found["line_recall"].value == pytest.approx(total[2] / total[3], abs=1e-9)
    assert not found["character_error_rate"].higher_is_better and found["line_recall"].higher_is_better
    assert "m6" not in found["line_recall"].items and "m7" in found["line_recall"].items


@pytest.mark.parametrize("seed", range(15))
def test_entities_found_are_scikit_learns_micro_average(seed: int) -> None:
    items, answers = texts(seed)
    found = by_name(text_reading(items, answers))
    items = [item for item in items if item.entities is not None]
    links = [
        [] if (one := answers[item.item_id]).is_failed else [label for label in one.label if label] for item in items
    ]
    binary = MultiLabelBinarizer(classes=list("pqrst"))
    truth, said = (binary.fit_transform(one) for one in ([item.entities for item in items], links))
    theirs = precision_recall_fscore_support(truth, said, average="micro", zero_division=np.nan)[:3]
    ours = [found[f"entity_{name}"].value for name in ("precision", "recall", "f1")]
    assert ours == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    right = [label in (item.entities or ()) for item, labels in zip(items, links, strict=True) for label in labels]
    assert found["linking_accuracy"].value == pytest.approx(np.mean(right))
    assert found["entity_f1"].items == tuple(f"m{i}" for i in range(N) if i != 7)
    for i, item in enumerate(items):
        hits = len(set(links[i]) & set(item.entities or ()))
        n = len(set(links[i])), len(item.entities or ())
        assert same(found["entity_precision"].values[i], hits / n[0] if n[0] else math.nan)
        assert same(found["entity_recall"].values[i], hits / n[1] if n[1] else math.nan)
        assert same(found["entity_f1"].values[i], 2 * hits / sum(n) if sum(n) else math.nan)


@pytest.mark.parametrize(
    ("expected", "read", "error_rate", "recall"),
    [
        (["EXIT  NOW"], [" EXIT NOW "], 0, 1),
        (["EXIT"], ["exit"], 1, 0),
        (["twenty characters xx"], ["twenty characters yy"], 0.1, 1),
        (["nineteen characters"], ["nineteen charactexx"], 2 / 19, 0),
        (["one", "two"], ["two"], 0.5, 0.5),
        (["one", "one"], ["one"], 0.5, 0.5),
        (["one"], ["one", "two"], 1, 1),
        (["one"], ["one", "tw"], 0, 1),
        (["a"], ["xy"], 1, 0),
        (["one"], [], 1, 0),
        ([], ["one"], math.nan, math.nan),
        (["  "], [], math.nan, math.nan),
    ],
)
def test_what_lines_cost(expected: list[str], read: list[str], error_rate: float, recall: float) -> None:
    item = GoldenItem(item_id="m", kind="text", media_id="m", text=tuple(expected))
    found = by_name(text_reading([item], {"m": answer([(None, 1.0, None, line) for line in read])}))
    assert set(found) == {"character_error_rate", "line_recall"}
    assert same(found["character_error_rate"].value, error_rate) and same(found["line_recall"].value, recall)


def test_an_answer_that_failed_counts_as_nothing_read_whatever_it_holds() -> None:
    item = GoldenItem(item_id="m", kind="text", media_id="m", text=("one",), entities=("p",))
    one = answer([(None, 1.0, None, "one"), ("p", 1.0, None, "one")])
    assert {m.metric: m.value for m in text_reading([item], {"m": one})} == {
        "character_error_rate": 0, "line_recall": 1, "entity_precision": 1, "entity_recall": 1, "entity_f1": 1,
        "linking_accuracy": 1,
    }  # fmt: skip
    failed = by_name(text_reading([item], {"m": replace(one, is_failed=True)}))
    assert failed["character_error_rate"].value == 1
    assert [failed[name].value for name in ("line_recall", "entity_recall", "entity_f1")] == [0, 0, 0]


# -- comparisons --------------------------------------------------------------------------------------------------


def test_a_comparison_is_that_of_the_paired_metric() -> None:
    one, two = (by_name(zero_shot(*labelled(seed), None))["top_5"] for seed in (0, 1))
    found = compare_measurements(one, two, seed=3)
    theirs = compare(mean_metric(one.values, two.values), N, seed=3)
    assert (found.baseline, found.candidate, found.p_value) == (one.value, two.value, theirs.p_value)
    assert found.interval(0.9) == theirs.interval(0.9)
    copied = [copy_detection(*copies(0))[0], copy_detection(copies(0)[0], copies(7)[1])[0]]
    not_exchanged = compare_measurements(copied[0], copied[1], seed=0)
    metric = copied[0].pair(copied[0].data, copied[1].data)
    assert not_exchanged.p_value == compare(metric, N, seed=0, groups=copied[0].groups).p_value


def test_a_metric_is_computed_once_and_anew_of_other_items() -> None:
    items = [GoldenItem(item_id=str(i), kind="labels", labels=("cat",)) for i in range(4)]
    top_1 = zero_shot(items, ["cat", "dog"], np.array([[1, 0], [1, 0], [1, 0], [0, 1]], float))[0]
    computed = []

    def counted(a: Any, b: Any) -> Metric:
        computed.append(1)
        return top_1.pair(a, b)

    counting = replace(top_1, pair=counted)
    assert [counting.value for _ in range(3)] == [0.75] * 3 and len(computed) == 1
    assert [counting.only([2, 3]).value, counting.only([3]).value, counting.value] == [0.5, 0.0, 0.75]


def test_what_cannot_be_compared_is_refused_with_what_differs() -> None:
    items, classes, scores = labelled(0)
    one = by_name(zero_shot(items, classes, scores, None))
    with pytest.raises(ValueError, match="top_1 of the baseline and top_5 of the candidate"):
        compare_measurements(one["top_1"], one["top_5"], seed=0)
    with pytest.raises(ValueError, match="on 9 items, the candidate on 8; 1 differ, first m8 and None"):
        compare_measurements(one["top_1"], one["top_1"].only(range(8)), seed=0)
    with pytest.raises(ValueError, match="9 items, the candidate on 9; 2 differ, first m0 and m1"):
        compare_measurements(one["top_1"], one["top_1"].only([1, 0, *range(2, 9)]), seed=0)
    silent = by_name(zero_shot(items, classes, scores, np.full_like(scores, np.nan)))["calibration_error"]
    with pytest.raises(ValueError, match="calibration_error is not defined for the baseline on these 9 items"):
        compare_measurements(silent, silent, seed=0)


# -- without labels -----------------------------------------------------------------------------------------------


def with_vectors(vectors: Numbers, scores: Numbers) -> list[Answer]:
    """Answers of 100 objects and a text without vector and score each."""
    found = []
    for first in range(0, len(vectors), 100):
        here = slice(first, first + 100)
        one = answer([*(("a", float(score), None, None) for score in scores[here]), (None, math.nan, None, "text")])
        no_vector = np.full((1, vectors.shape[1]), np.nan)
        found.append(replace(one, vector=np.concatenate([vectors[here], no_vector]).astype(np.float32)))
    return found


def test_a_shift_of_scores_or_of_vectors_shows_in_its_own_figure() -> None:
    random = np.random.default_rng(0)
    scale = np.array([5.0, 3, 2, 1, 0.5, 0])
    before = with_vectors(random.normal(0, 1, (3000, 6)) * scale, random.random(3000))
    same_vectors = random.normal(0, 1, (3000, 6)) * scale
    calm = unlabelled(before, with_vectors(same_vectors, random.random(3000)))
    assert calm["score_shift"] < 0.02 and calm["vector_shift"] < 0.02
    louder = unlabelled(before, with_vectors(same_vectors, random.random(3000) ** 2))
    assert louder["score_shift"] > 0.25 and louder["vector_shift"] < 0.02
    moved = unlabelled(before, with_vectors(same_vectors + np.eye(6)[3], random.random(3000)))
    assert moved["vector_shift"] > 0.25 and moved["score_shift"] < 0.02
    # an axis along which `before` is flat shows nothing: there is no share to compare with
    flat = unlabelled(before, with_vectors(same_vectors - np.eye(6)[5], random.random(3000)))
    assert flat["vector_shift"] < 0.02


def test_a_shift_behind_the_first_eight_components_does_not_count() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(0, 1, (2, 3000, 9)) * np.arange(10, 1, -1)
    for axis, is_seen in ((7, True), (8, False)):
        after = vectors[1].copy()
        after[:, axis] += 4
        shift = unlabelled(with_vectors(vectors[0], np.ones(3000)), with_vectors(after, np.ones(3000)))["vector_shift"]
        assert (shift > 0.25) == is_seen and (shift < 0.05) != is_seen


def test_health_of_one_set_alone_has_dimensions_and_the_share_of_empty() -> None:
    random = np.random.default_rng(1)
    plane = np.hstack([random.normal(0, 1, (1000, 2)), np.zeros((1000, 4))])
    answers = with_vectors(plane, np.ones(1000))
    wild = replace(with_vectors(np.full((1, 6), 1e6), np.ones(1))[0], is_failed=True)
    found = unlabelled(None, [*answers, answer(), wild])
    assert set(found) == {"effective_dimensions", "share_of_empty"}
    assert found["effective_dimensions"] == pytest.approx(2, abs=0.02)
    assert found["share_of_empty"] == pytest.approx(2 / 12)
    # failed answers are not looked at
    assert unlabelled([*answers, wild], answers)["vector_shift"] == unlabelled(answers, answers)["vector_shift"] == 0
    nothing = unlabelled([answer()], [answer(is_failed=True)])
    assert nothing.pop("share_of_empty") == 1 and np.isnan(list(nothing.values())).all()
