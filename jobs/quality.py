"""What a featurizer's answers to a golden set are worth, metric by metric. Knows no lake and no model.

A measurement keeps what its metric needs of every item, so that it can be restricted to some of them (a slice) and
paired with another featurizer's on the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import corpus_metrics, item_metrics
from jobs.corpus_metrics import Classes, Copies, Data, Detections, Found, TwoColumns, Values, match_boxes
from jobs.golden_labels import LabelledBox
from jobs.paired import Difference, Metric, compare, level_interval, too_few

NAN = float("nan")
Pair = Callable[[Any, Any], Metric]  # of the data of two variants, the baseline's first
AT_HALF = slice(0, 1)  # of pycocotools' thresholds .5, .55, ... .95
COPY_FALSE_POSITIVE_RATES = ("1e-3", "1e-4")
RANKING: Mapping[str, Callable[..., float]] = {  # of scores and gains
    **{f"recall_at_{k}": partial(item_metrics.recall_at, k) for k in (1, 5, 10)},
    "mean_reciprocal_rank": item_metrics.reciprocal_rank,
    "ndcg_at_10": partial(item_metrics.ndcg_at, 10),
}


@dataclass(frozen=True, kw_only=True)
class GoldenItem:
    """A row of `golden`."""

    item_id: str
    kind: str  # of the set that it belongs to: boxes, labels, queries, copies or text
    media_id: str | None = None  # None: a query
    labels: tuple[str, ...] | None = None
    boxes: tuple[LabelledBox, ...] | None = None
    query: str | None = None
    relevant: Mapping[str, float] | None = None  # media_id -> gain
    copy_group: str | None = None
    text: tuple[str, ...] | None = None
    entities: tuple[str, ...] | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All N features that a featurizer found in one media, its frames one after another, best first in a frame."""

    vector: NDArray[np.float32]  # (N, dim), rows of NaN where a feature has none
    label: tuple[str | None, ...]
    score: NDArray[np.float64]  # (N,), NaN where a feature has none
    box: NDArray[np.float64]  # (N, 4) x0, y0, x1, y1 as fractions, rows of NaN where a feature has none
    text: tuple[str | None, ...]
    is_failed: bool = False  # the row was an error: it counts as having found nothing, whatever else is said


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of one featurizer on one golden set."""

    metric: str  # such as average_precision_50
    higher_is_better: bool
    items: tuple[str, ...]  # ids of what is resampled, in order
    values: NDArray[np.float64]  # (n,) each item's own value, NaN where it has none
    data: Any  # a Data
    pair: Pair

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """(n,): of items whose answers belong together, see jobs.paired.compare; None where each stands alone."""
        return self.data.groups if isinstance(self.data, Copies) else None

    @cached_property
    def value(self) -> float:
        """The metric over all items; NaN where it is not defined."""
        if not self.items:
            return NAN
        weights = np.repeat([1.0, 0.0], len(self.items))[None]
        return float(self.pair(self.data, self.data)(weights)[0])

    def differs(self, other: Measurement) -> NDArray[np.bool_]:
        """(n,): the items that the two answered differently."""
        found: NDArray[np.bool_] = self.data.differs(other.data)
        return found

    def only(self, keep: Sequence[int]) -> Measurement:
        """The same on the items at the places `keep`, such as those of a slice."""
        items = tuple(self.items[i] for i in keep)
        return replace(self, items=items, values=self.values[list(keep)], data=self.data.only(keep))


def compare_measurements(baseline: Measurement, candidate: Measurement, *, seed: int) -> Difference:
    """Candidate minus baseline; raises ValueError where they are not one metric of the same items in one order, or
    where the metric is not defined for one of them."""
    if baseline.metric != candidate.metric:
        raise ValueError(f"{baseline.metric} of the baseline and {candidate.metric} of the candidate are two metrics")
    different = [pair for pair in zip_longest(baseline.items, candidate.items) if pair[0] != pair[1]]
    if different:
        raise ValueError(
            f"{baseline.metric}: the baseline was measured on {len(baseline.items)} items, the candidate on "
            f"{len(candidate.items)}; {len(different)} differ, first {different[0][0]} and {different[0][1]}"
        )
    for name, value in (("baseline", baseline.value), ("candidate", candidate.value)):
        if np.isnan(value):
            raise ValueError(f"{baseline.metric} is not defined for the {name} on these {len(baseline.items)} items")
    return compare(baseline.pair(baseline.data, candidate.data), len(baseline.items), seed=seed, groups=baseline.groups)


def too_few_of(measured: Measurement, n_different: int) -> str | None:
    """Why a metric of these items has no interval, or None where it has one; see jobs.paired.too_few."""
    classes = measured.data.columns[1] if isinstance(measured.data, Classes) else None
    return too_few(measured.metric, len(measured.items), n_different, groups=measured.groups, classes=classes)


def quality_interval(measured: Measurement, *, seed: int) -> tuple[float, float] | None:
    """The 95 % interval of a metric of one featurizer; None where there are too few items for one."""
    if too_few_of(measured, 0) or np.isnan(measured.value):
        return None
    metric = measured.pair(measured.data, measured.data)
    return level_interval(metric, len(measured.items), seed=seed, groups=measured.groups)


def _ratio(
    metric: str, items: Sequence[str], above: Values, below: Values, *, higher_is_better: bool = True
) -> Measurement:
    """The sum of `above` over the sum of `below`; an item's own value is its own quotient."""
    return Measurement(
        metric=metric,
        higher_is_better=higher_is_better,
        items=tuple(items),
        values=np.divide(above, below, out=np.full(len(above), NAN), where=below > 0),
        data=TwoColumns((above, below)),
        pair=lambda a, b: corpus_metrics.ratio_metric(a.columns, b.columns),
    )


def _mean(metric: str, items: Sequence[str], values: Values) -> Measurement:
    """The mean of the items' own values, over those that have one."""
    return _ratio(metric, items, np.nan_to_num(values), (~np.isnan(values)).astype(np.float64))


def _of_the_set(metric: str, items: Sequence[str], data: Data, pair: Pair, **stated: bool) -> Measurement:
    """A metric that items have no value of their own of."""
    stated = {"higher_is_better": True, **stated}
    values = np.full(len(items), NAN)
    return Measurement(metric=metric, items=tuple(items), values=values, data=data, pair=pair, **stated)


def _ids(items: Sequence[GoldenItem]) -> tuple[str, ...]:
    return tuple(item.item_id for item in items)


def _found(items: Sequence[GoldenItem], answers: Mapping[str, Answer]) -> list[Answer]:
    """The answer to each item, without features where it failed; raises ValueError where a media has none."""
    media_ids = [item.media_id or item.item_id for item in items]
    if missing := [media_id for media_id in media_ids if media_id not in answers]:
        raise ValueError(f"{len(missing)} of {len(items)} media have no answer, such as {missing[0]}: featurize them")
    return [cleared(answers[media_id]) for media_id in media_ids]


def cleared(answer: Answer) -> Answer:
    """`answer` without features if it failed."""
    if not answer.is_failed:
        return answer
    return replace(answer, vector=answer.vector[:0], label=(), score=answer.score[:0], box=answer.box[:0], text=())


def _expect_shape(name: str, values: NDArray[Any], **axes: int) -> None:
    if values.shape != tuple(axes.values()):
        raise ValueError(f"{name} is {values.shape}, needed: {', '.join(f'{n} {of}' for of, n in axes.items())}")


# -- objects ------------------------------------------------------------------------------------------------------


def detection(items: Sequence[GoldenItem], answers: Mapping[str, Answer]) -> list[Measurement]:
    """Average precision, box recall and calibration of detections in pictures whose boxes are known.

    answers: by media_id. pycocotools matches them, with at most 100 boxes of a class in a picture; of equal scores
    those of the lower item_id come first. Only the classes that the items label count. A detection without a score
    claims certainty. Raises ValueError where a media has no answer.
    """
    ids = _ids(items)
    found = _found(items, answers)
    order = sorted(range(len(items)), key=lambda i: ids[i])
    of_class = match_boxes([items[i].boxes or () for i in order], [_objects(found[i]) for i in order])
    everything = Detections(tuple(of_class.values())).only(np.argsort(order).tolist())
    n_hits, n_labelled = np.zeros((2, len(ids)))
    for one in everything.classes:
        n_hits += np.bincount(one.image[one.is_hit[0]], minlength=len(ids))
        n_labelled += one.n_labelled

    def precision(thresholds: slice) -> Pair:
        return lambda a, b: corpus_metrics.detection_metric(a.classes, b.classes, thresholds)

    def calibration(a: Detections, b: Detections) -> Metric:
        return corpus_metrics.detection_calibration_error(a.classes, b.classes)

    return [
        _of_the_set("average_precision_50", ids, everything, precision(AT_HALF)),
        _of_the_set("average_precision", ids, everything, precision(slice(None))),
        *(
            _of_the_set(f"average_precision_50/{name}", ids, Detections((matched,)), precision(AT_HALF))
            for name, matched in zip(of_class, everything.classes, strict=True)
        ),
        _ratio("box_recall_50", ids, n_hits, n_labelled),
        _of_the_set("calibration_error", ids, everything, calibration, higher_is_better=False),
    ]


def _objects(answer: Answer) -> list[Found]:
    scores = np.nan_to_num(answer.score, nan=1.0).tolist()
    found = zip(answer.label, scores, answer.box.tolist(), strict=True)
    return [(label, score, box) for label, score, box in found if label is not None and not np.isnan(box).any()]


# -- concepts -----------------------------------------------------------------------------------------------------


def class_retrieval(
    classes: Sequence[str], relevant: NDArray[np.bool_], scores: NDArray[np.float64]
) -> list[Measurement]:
    """How well the names of C classes find the pictures that show them, among M media.

    relevant: (C, M); scores: (C, M), NaN for a media that failed, which is never found. Equal scores earn nothing.
    """
    _expect_shape("relevant", relevant, classes=len(classes), media=scores.shape[1])
    _expect_shape("scores", scores, classes=len(classes), media=scores.shape[1])
    metrics = {"retrieval_mean_average_precision": item_metrics.ranking_average_precision, **RANKING}
    return _means(metrics, classes, relevant.astype(np.float64), scores)


def query_retrieval(
    items: Sequence[GoldenItem], media_ids: Sequence[str], scores: NDArray[np.float64]
) -> list[Measurement]:
    """How well Q queries find what is relevant to them, by its gain, among M media.

    items: the queries among them count, in order; scores: (Q, M), NaN for a media that failed, which is never found.
    Raises ValueError where a relevant media is none of `media_ids`.
    """
    queries = [item for item in items if item.query is not None]
    _expect_shape("scores", scores, queries=len(queries), media=len(media_ids))
    wanted = {media_id for item in queries for media_id, gain in (item.relevant or {}).items() if gain > 0}
    if missing := sorted(wanted - set(media_ids)):
        raise ValueError(f"{len(missing)} of {len(wanted)} relevant media have no answer, such as {missing[0]}")
    gains = [[(item.relevant or {}).get(media_id, 0.0) for media_id in media_ids] for item in queries]
    return _means(RANKING, _ids(queries), np.array(gains, np.float64).reshape(scores.shape), scores)


def _means(
    metrics: Mapping[str, Callable[..., float]],
    ids: Sequence[str],
    gains: NDArray[np.float64],
    scores: NDArray[np.float64],
) -> list[Measurement]:
    """The mean of each metric over rows of scores and gains."""
    return [
        _mean(name, ids, np.array([of_one(*row) for row in zip(scores, gains, strict=True)], np.float64))
        for name, of_one in metrics.items()
    ]


def zero_shot(
    items: Sequence[GoldenItem],
    classes: Sequence[str],
    scores: NDArray[np.float64],
    confidence: NDArray[np.float64] | None = None,
) -> list[Measurement]:
    """How often the best of C classes is one of the item's labels.

    scores, confidence: (M, C), a row of NaN where the media failed, which is then wrong, at no confidence. A class of
    which the first label of an item is one is a class of the mean over classes. Raises ValueError where none of an
    item's labels is one of `classes`.
    """
    ids = _ids(items)
    for name, given in (("scores", scores), ("confidence", confidence)):
        if given is not None:
            _expect_shape(name, given, media=len(items), classes=len(classes))
    gains = np.array([[name in (item.labels or ()) for name in classes] for item in items], np.float64)
    if len(strangers := np.flatnonzero(~gains.any(axis=1))):
        item = items[strangers[0]]
        raise ValueError(f"{len(strangers)} items have none of the classes, such as {item.item_id}: {item.labels}")
    n_places = (1, 5) if len(classes) > 5 else (1,)
    found = _means({f"top_{k}": partial(item_metrics.is_in_top, k) for k in n_places}, ids, gains, scores)
    top_1 = found[0]
    of_class = np.unique([item.labels[0] for item in items if item.labels], return_inverse=True)[1]
    by_class = replace(
        top_1,
        metric="mean_per_class_accuracy",
        data=Classes((top_1.values, of_class.astype(np.float64))),
        pair=lambda a, b: corpus_metrics.mean_over_classes(a.columns[0], b.columns[0], a.columns[1].astype(np.int64)),
    )
    found.append(by_class)
    if confidence is not None:
        best = [int(np.argmin(item_metrics.ranks(row, gain))) for row, gain in zip(scores, gains, strict=True)]
        said = np.where(np.isnan(scores).all(axis=1), NAN, confidence[np.arange(len(items)), best])
        found.append(
            _of_the_set(
                "calibration_error",
                ids,
                TwoColumns((said, top_1.values)),
                lambda a, b: corpus_metrics.calibration_error(a.columns, b.columns),
                higher_is_better=False,
            )
        )
    return found


def copy_detection(items: Sequence[GoldenItem], vectors: NDArray[np.float32]) -> list[Measurement]:
    """The share of pairs of copies whose cosine is above that of all but a share of the other pairs.

    vectors: (M, dim), a row of NaN where the media failed: it is like none, at a cosine of -1. An item without a group
    has no copies.
    """
    _expect_shape("vectors", vectors, media=len(items), dimensions=vectors.shape[1])
    names = [f"item {item.item_id}" if item.copy_group is None else f"group {item.copy_group}" for item in items]
    groups = np.unique(names, return_inverse=True)[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    # rounded, for BLAS adds up in an order that depends on how many items there are, and equal must stay equal
    data = Copies(np.nan_to_num(unit @ unit.T, nan=-1.0).round(9), groups)

    def at(rate: str) -> Pair:
        return lambda a, b: corpus_metrics.copies_found_at(float(rate), a.similarity, b.similarity, a.groups)

    return [_of_the_set(f"copies_found_at_{rate}", _ids(items), data, at(rate)) for rate in COPY_FALSE_POSITIVE_RATES]


# -- text and entities --------------------------------------------------------------------------------------------


def text_reading(items: Sequence[GoldenItem], answers: Mapping[str, Answer]) -> list[Measurement]:
    """How well the lines in pictures were read, and which entities were found in them.

    Lines read are the texts of features without a label, entities the labels; items without known lines or entities
    are left out of what is about them. Raises ValueError where a media has no answer.

    character_error_rate: edits over labelled characters, see `item_metrics.reading`.
    entity_*: over all entities of all items, each counted once in an item.
    linking_accuracy: the share of labelled features whose label is expected; an entity that is read in two lines counts
    twice, one that is never read does not count.
    """
    found = dict(zip(_ids(items), _found(items, answers), strict=True))
    with_text = [item for item in items if item.text is not None]
    with_entities = [item for item in items if item.entities is not None]
    measured = []
    if with_text:
        lines = [item_metrics.reading(item.text or (), _lines(found[item.item_id])) for item in with_text]
        n_edits, n_characters, n_lines, n_found = np.array(
            [(one.n_edits, one.n_characters, one.n_lines, one.n_lines_found) for one in lines], np.float64
        ).T
        measured += [
            _ratio("character_error_rate", _ids(with_text), n_edits, n_characters, higher_is_better=False),
            _ratio("line_recall", _ids(with_text), n_found, n_lines),
        ]
    if with_entities:
        measured += _entities(with_entities, [found[item.item_id] for item in with_entities])
    return measured


def _lines(answer: Answer) -> list[str]:
    return [text for text, label in zip(answer.text, answer.label, strict=True) if text is not None and label is None]


def _entities(items: Sequence[GoldenItem], found: Sequence[Answer]) -> list[Measurement]:
    ids = _ids(items)
    expected = [set(item.entities or ()) for item in items]
    links = [[label for label in answer.label if label is not None] for answer in found]
    counts = [item_metrics.set_counts(one, set(labels)) for one, labels in zip(expected, links, strict=True)]
    hits, false, missed = np.array([(c.n_hits, c.n_false, c.n_missed) for c in counts], np.float64).T
    n_right = [sum(label in one for label in labels) for one, labels in zip(expected, links, strict=True)]
    return [
        _ratio("entity_precision", ids, hits, hits + false),
        _ratio("entity_recall", ids, hits, hits + missed),
        _ratio("entity_f1", ids, 2 * hits, 2 * hits + false + missed),
        _ratio("linking_accuracy", ids, np.array(n_right, np.float64), np.array([len(one) for one in links], float)),
    ]
