"""`lakelens evaluate`: what featurizers are worth on golden sets, item by item. Knows tables, no metric's formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurizers.label_bridge import PROMPT
from featurizers.spec import TextSearch, featurizer_module
from jobs import health, quality
from jobs.config import Config, ConfigError
from jobs.golden import read_golden
from jobs.lake import Lake, append, read, version
from jobs.metrics import metric_key
from jobs.published import Champion, champions
from jobs.quality import Answer, GoldenItem, Measurement
from jobs.runs import JobResult, Run
from jobs.work import Due, Work
from schemas import EVALUATIONS, FEATURES, GOLDEN
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

VERSION_PREFIX = "golden_version/"  # and the name of a set: a run's metric, the version that it measured on
# What a featurizer of a kind is measured on.
MEASURES = {"concept": ("boxes", "labels", "queries", "copies"), "object": ("boxes",), "entity": ("text",)}


class FeaturesMissing(ValueError):
    """A golden set has media that the featurizer has not seen; the message says how to compute them."""


@dataclass(frozen=True)
class Frame:
    """One frame's row of `features`; all None where it failed."""

    frame: int
    features: Sequence[Mapping[str, Any]] | None


Frames = Mapping[str, Sequence[Frame]]  # media_id -> its frames in order


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a featurizer found in the media of a golden set, and every metric of it."""

    due: Due
    golden: str  # name@version
    items: Sequence[GoldenItem]
    frames: Frames  # of all media of the set, in the order of its items
    measurements: Sequence[Measurement]


def read_frames(
    spark: SparkSession, lake: Lake, due: Due, media_ids: Sequence[str], *, at: int
) -> dict[str, list[Frame]]:
    """What one fingerprint has of these media at a version of `features`; raises FeaturesMissing."""
    found = frames_of(spark, lake, due.spec.id, due.fingerprint, media_ids, at=at)
    missing = [media_id for media_id, frames in found.items() if not frames]
    if missing:
        raise FeaturesMissing(
            f"{len(missing)} of {len(found)} media have no features of {due.spec.id}#{due.fingerprint[:8]}, such as "
            f"{missing[0]}; run `lakelens featurize --featurizer {due.spec.id}` first"
        )
    return found


def frames_of(
    spark: SparkSession, lake: Lake, featurizer: str, fingerprint: str, media_ids: Sequence[str], *, at: int
) -> dict[str, list[Frame]]:
    """What one fingerprint has of each of these media; an empty list where it has nothing."""
    from pyspark.sql import functions as F

    wanted = F.broadcast(spark.createDataFrame([(media_id,) for media_id in media_ids], "media_id STRING"))
    rows = (
        read(spark, lake, FEATURES, version=at)
        .where((F.col("featurizer") == featurizer) & (F.col("fingerprint") == fingerprint))
        .join(wanted, on="media_id", how="left_semi")
        .select("media_id", "frame", "features")
        .orderBy("media_id", "frame")
        .collect()
    )
    found: dict[str, list[Frame]] = {media_id: [] for media_id in media_ids}
    for row in rows:
        features = None if row.features is None else [one.asDict() for one in row.features]
        found[row.media_id].append(Frame(row.frame, features))
    return found


def answer(frames: Sequence[Frame], dim: int) -> Answer:
    """All that was found in a media's frames, one after another."""
    found = [feature for frame in frames for feature in frame.features or ()]

    def rows(name: str, width: int) -> NDArray[np.float64]:
        nothing = [math.nan] * width
        return np.array([one[name] if one[name] is not None else nothing for one in found]).reshape(-1, width)

    return Answer(
        vector=rows("vector", dim).astype(np.float32),
        label=tuple(one["label"] for one in found),
        score=np.array([math.nan if one["score"] is None else one["score"] for one in found], np.float64),
        box=rows("box", 4),
        text=tuple(one["text"] for one in found),
        is_failed=all(frame.features is None for frame in frames),
    )


def media_vectors(frames: Frames, of_frame: Callable[[Frame], NDArray[np.float32] | None]) -> NDArray[np.float32]:
    """(M, K) unit vectors of media, in order: the mean of their frames'; a row of NaN where no frame has one."""
    means = []
    for each in frames.values():
        vectors = [vector for frame in each if (vector := of_frame(frame)) is not None]
        mean = np.mean(vectors, axis=0) if vectors else np.array([math.nan])
        means.append(mean / np.linalg.norm(mean))
    width = max((len(mean) for mean in means), default=1)
    return np.array([mean if len(mean) == width else np.full(width, math.nan) for mean in means], np.float32)


def first_vector(frame: Frame) -> NDArray[np.float32] | None:
    """The vector of the whole frame, which is its first feature's."""
    return np.array(frame.features[0]["vector"], np.float32) if frame.features else None


def worded(search: TextSearch) -> Callable[[Frame], NDArray[np.float32] | None]:
    """A frame's vector in the space that words are looked up in."""

    def of_frame(frame: Frame) -> NDArray[np.float32] | None:
        if not frame.features:
            return None
        vectors = [one["vector"] for one in frame.features if one["vector"] is not None]
        labels = [str(one["label"]) for one in frame.features]
        scores = [math.nan if one["score"] is None else one["score"] for one in frame.features]
        return search.of_frame(np.array(vectors, np.float32), labels, np.array(scores, np.float32))

    return of_frame


def similarities(texts: NDArray[np.float32], pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, M) cosines of N texts and M pictures, NaN for a picture without a vector."""
    if np.isnan(pictures).all():
        return np.full((len(texts), len(pictures)), math.nan)
    return texts.astype(np.float64) @ pictures.T.astype(np.float64)


def labels_of(item: GoldenItem) -> tuple[str, ...]:
    """The classes that a picture shows."""
    if item.labels is not None:
        return item.labels
    return tuple(dict.fromkeys(box.label for box in item.boxes or ()))


def measurements(due: Due, items: Sequence[GoldenItem], frames: Frames, *, bridge_labels: int) -> list[Measurement]:
    """Every metric of a featurizer on a golden set; none where its kind is not measured on sets of that kind.

    frames: of all media of the set, in the order of its items.
    """
    kind, pictures = items[0].kind, [item for item in items if item.media_id is not None]
    if kind not in MEASURES[due.spec.kind]:
        return []
    if kind == "copies":
        return quality.copy_detection(pictures, media_vectors(frames, first_vector))
    if due.spec.kind != "concept":
        answers = {media_id: answer(each, due.spec.dim) for media_id, each in frames.items()}
        return quality.detection(items, answers) if kind == "boxes" else quality.text_reading(items, answers)
    search = text_search(due, bridge_labels)
    if search is None:
        return []
    vectors = media_vectors(frames, worded(search))
    if kind == "queries":
        queries = [item for item in items if item.query is not None]
        scores = similarities(search.of_texts([str(item.query) for item in queries]), vectors)
        return quality.query_retrieval(queries, list(frames), scores)
    classes = sorted({label for item in pictures for label in labels_of(item)})
    scores = similarities(search.of_texts([PROMPT.format(name) for name in classes]), vectors)
    relevant = np.array([[name in labels_of(item) for item in pictures] for name in classes])
    found = quality.class_retrieval(classes, relevant, scores)
    if kind == "boxes":
        return found
    return [*found, *quality.zero_shot(pictures, classes, scores.T, label_scores(list(frames.values()), classes))]


def label_scores(frames: Sequence[Sequence[Frame]], classes: Sequence[str]) -> NDArray[np.float64] | None:
    """(M, C): the score that M media give each class in their first frames, 0 without a name, NaN where they failed;
    None where no frame names a class, as of a model without labels."""
    found = np.full((len(frames), len(classes)), math.nan)
    column = {name: i for i, name in enumerate(classes)}
    is_named = False
    for row, each in zip(found, frames, strict=True):
        features = next((frame.features for frame in each if frame.features is not None), None)
        if features is None:
            continue
        row[:] = 0.0
        for one in features:
            if one["label"] in column and one["score"] is not None:
                row[column[one["label"]]], is_named = one["score"], True
    return found if is_named else None


def text_search(due: Due, bridge_labels: int) -> TextSearch | None:
    """How words lead to a featurizer's pictures, None where they do not."""
    make = getattr(featurizer_module(due.spec.family), "text_search", None)
    return None if make is None else make(due.spec, due.paths, n_labels=bridge_labels)


def evaluate_on(
    spark: SparkSession, lake: Lake, due: Due, golden: str, items: Sequence[GoldenItem], *, bridge_labels: int, at: int
) -> Evaluated:
    """Measure a featurizer on a golden set, `name@version`, from a version of `features`; raises FeaturesMissing."""
    media_ids = [item.media_id for item in items if item.media_id is not None]
    frames = read_frames(spark, lake, due, media_ids, at=at)
    found = measurements(due, items, frames, bridge_labels=bridge_labels)
    return Evaluated(due=due, golden=golden, items=items, frames=frames, measurements=found)


# -- the job ------------------------------------------------------------------------------------------------------


def validate(config: Config) -> None:
    """Raise ConfigError where there is nothing to evaluate on."""
    if not config.evaluate.golden:
        raise ConfigError("evaluate.golden is empty; name a golden set, as --golden NAME (see lakelens golden list)")


def pins(spark: SparkSession, lake: Lake) -> Mapping[str, int]:
    """The versions of the tables that an evaluation reads."""
    return {table.name: version(spark, lake, table) for table in (FEATURES, GOLDEN)}


def health_of(frames: Frames, before: Frames | None) -> dict[str, float]:
    """What can be told of a featurizer without labels, against another one's frames of the same media."""
    chosen = health.sample(list(frames))

    def side(of: Frames) -> list[Answer]:
        dim = _dim(of)
        return [answer(of[media_id], dim) for media_id in chosen]

    return health.figures(None if before is None else side(before), side(frames))


def _dim(frames: Frames) -> int:
    found = (one["vector"] for each in frames.values() for frame in each for one in frame.features or ())
    return next((len(vector) for vector in found if vector is not None), 1)


def champion_frames(
    spark: SparkSession, lake: Lake, due: Due, media_ids: Sequence[str], *, at: int
) -> tuple[Champion, dict[str, list[Frame]]] | None:
    """What readers have now of these media: the champion of the kind, where it is another and has them all."""
    standing = champions(spark, lake).get(due.spec.kind, [])
    if not standing or standing[-1].fingerprint == due.fingerprint:
        return None
    found = frames_of(spark, lake, standing[-1].featurizer, standing[-1].fingerprint, media_ids, at=at)
    return (standing[-1], found) if all(found.values()) else None


def evaluated(spark: SparkSession, lake: Lake, config: Config, run: Run, work: Work) -> Iterator[Evaluated]:
    """Measure every configured featurizer on every golden set that it can be measured on, one after another."""
    for name in config.evaluate.golden:
        run.progress(f"evaluating on {name}")
        number, items = read_golden(spark, lake, name, at=run.inputs[GOLDEN.name])
        golden, labels = f"{name.partition('@')[0]}@{number}", config.evaluate.bridge_labels
        for due in work.due:
            if items[0].kind in MEASURES[due.spec.kind]:
                at = run.inputs[FEATURES.name]
                yield evaluate_on(spark, lake, due, golden, items, bridge_labels=labels, at=at)


def run(spark: SparkSession, lake: Lake, config: Config, run: Run, work: Work) -> JobResult:
    """Measure every configured featurizer on every golden set that it can be measured on, and write that down."""
    return written(spark, lake, config, run, work, evaluated(spark, lake, config, run, work))


def written(
    spark: SparkSession, lake: Lake, config: Config, run: Run, work: Work, found: Iterable[Evaluated]
) -> JobResult:
    """Write down what was measured; raises ConfigError where nothing was.

    Beside what the labels say stands what can be told without them, `quality/health/...`: of the same media, against
    the champion of the kind where that is another vector space.
    """
    rows: list[tuple[object, ...]] = []
    metrics: dict[str, float] = {}
    said: list[str] = []
    notes: list[str] = []
    for one in found:
        due, (golden_set, _, number) = one.due, one.golden.partition("@")
        of_all = (run.run_id, due.spec.id, due.fingerprint, golden_set, int(number))
        metrics[f"{VERSION_PREFIX}{golden_set}"] = int(number)
        for each in one.measurements:
            metrics[f"quality/{golden_set}/{metric_key(due.spec.id)}/{each.metric}"] = each.value
            if np.isnan(each.values).all():  # a metric of the whole set, which no item has
                continue
            for item_id, value in zip(each.items, each.values.tolist(), strict=True):
                rows.append((*of_all, each.metric, item_id, None if math.isnan(value) else value))
        if one.measurements:
            media_ids = health.sample(list(one.frames))
            champion = champion_frames(spark, lake, due, media_ids, at=run.inputs[FEATURES.name])
            unlabelled = health_of(one.frames, champion and champion[1])
            key = f"quality/health/{golden_set}/{metric_key(due.spec.id)}"
            metrics |= {f"{key}/{figure}": value for figure, value in unlabelled.items()}
            first, who = one.measurements[0], f"{due.spec.id} on {one.golden}"
            said.append(f"{who}: {first.metric} {first.value:.3f}")
            values = ", ".join(f"{m.metric} {m.value:.3f}" for m in one.measurements if "/" not in m.metric)
            notes.append(f"{who}, {len(one.items)} items: {values}")
            against = f" (shifts against {champion[0]})" if champion and "score_shift" in unlabelled else ""
            notes.append(f"{who} without labels: {health.said(unlabelled)}{against}")
    if not said:
        allowed = "; ".join(f"{kind} on {', '.join(sets)}" for kind, sets in MEASURES.items())
        raise ConfigError(
            f"none of {', '.join(work.outputs)} is measured on {', '.join(config.evaluate.golden)}; allowed: {allowed}"
        )
    run.check_owned()
    new = spark.createDataFrame(rows, schema_ddl(EVALUATIONS.columns))
    append(new.coalesce(1), lake, EVALUATIONS, app_id=f"evaluate/{run.run_id}", transaction=0, owner=run.owner)
    return JobResult(status="finished", message="; ".join(said), metrics=metrics, outputs=work.outputs, notes=notes)
