"""What an experiment's page shows, from what was measured of its variants. Reads tables; draws nothing."""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import yaml

from jobs import evaluate
from jobs.compare import Candidate, Estimate, level
from jobs.experiment_file import Experiment
from jobs.experiment_report import ExperimentReport, Pair, Region, Variant
from jobs.lake import Lake, read, sql_text
from jobs.quality import GoldenItem, quality_interval
from jobs.runs import code_version
from jobs.sweep import Objectives, Trial, pareto_front
from jobs.variants import Measured, primary
from schemas import DOCUMENTS, FRAMES, GOLDEN

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

N_PAIRS = 12  # items shown in which the two differ most
N_SAID = 5  # of what a variant said of one
MILLION = 1_000_000


def variant_of(measured: Measured, experiment: Experiment, *, is_on_front: bool) -> Variant:
    """A variant as the page shows it."""
    p95, usd, first = level(measured.passes.p95_ms), dollars(measured), primary(measured.measurements, experiment)
    quality_low, quality_high = quality_interval(first, seed=experiment.seed) or (None, None)
    return Variant(
        name=measured.arm.name,
        featurizer=measured.arm.due.spec.id,
        fingerprint=measured.arm.due.fingerprint,
        is_baseline=measured.arm.name == experiment.baseline,
        settings={key: json.dumps(value) for key, value in measured.arm.settings.items()},
        quality=first.value,
        quality_low=quality_low,
        quality_high=quality_high,
        p95_ms=p95.value,
        p95_low=p95.low,
        p95_high=p95.high,
        usd_per_million=usd.value,
        usd_low=usd.low,
        usd_high=usd.high,
        error_rate=measured.error_rate,
        is_on_front=is_on_front,
    )


def dollars(measured: Measured) -> Estimate:
    """For a million media: CPU seconds at the price of a core."""
    usd_per_s = measured.arm.config.prices.usd_per_core_hour / 3600
    return level(measured.passes.cpu_s_per_media * usd_per_s * MILLION)


def pairs(
    spark: SparkSession, lake: Lake, baseline: Measured, candidate: Measured, items: Sequence[GoldenItem],
    experiment: Experiment,
) -> list[Pair]:  # fmt: skip
    """The items in whose own value the two differ most, with their pictures."""
    from pyspark.sql import functions as F

    theirs = {one.metric: one for one in candidate.measurements}
    wanted = primary(baseline.measurements, experiment)
    own = [wanted, *baseline.measurements]
    shown = next((one for one in own if not np.isnan(one.values).all()), None)
    if shown is None:
        return []
    change = np.nan_to_num(theirs[shown.metric].values - shown.values)
    order = [int(i) for i in np.argsort(-np.abs(change), kind="stable")[:N_PAIRS] if change[i] != 0]
    by_id = {item.item_id: item for item in items}
    media_ids = [by_id[shown.items[i]].media_id for i in order if shown.items[i] in by_id]
    thumbnails = {
        row.media_id: "data:image/jpeg;base64," + base64.b64encode(row.thumbnail).decode()
        for row in read(spark, lake, FRAMES)
        .where(F.col("media_id").isin([m for m in media_ids if m]) & (F.col("frame") == 0))
        .select("media_id", "thumbnail")
        .collect()
    }
    urls = {
        row.media_id: row.url
        for row in read(spark, lake, DOCUMENTS)
        .where(F.col("media_id").isin([m for m in media_ids if m]))
        .groupBy("media_id").agg(F.min("url").alias("url")).collect()
    }  # fmt: skip
    found = []
    for i in order:
        item = by_id.get(shown.items[i])
        media_id = item.media_id if item is not None else None
        expected = evaluate.labels_of(item) if item is not None else ()
        said = {side.arm.name: said_of(side.frames.get(media_id or "", ())) for side in (baseline, candidate)}
        found.append(
            Pair(
                title=(item.query if item is not None and item.query else None) or shown.items[i],
                url=urls.get(media_id or "", ""),
                thumbnail=thumbnails.get(media_id or ""),
                change=float(change[i]),
                metric=shown.metric,
                baseline=said[baseline.arm.name][0],
                candidate=said[candidate.arm.name][0],
                expected=expected,
                baseline_boxes=said[baseline.arm.name][1],
                candidate_boxes=said[candidate.arm.name][1],
                expected_boxes=[_region(b.label, b.box) for b in (item.boxes or ())] if item is not None else [],
            )
        )
    return found


def said_of(frames: Sequence[evaluate.Frame]) -> tuple[list[str], list[Region]]:
    """What was said of a media's first frame, best first, and where."""
    first = next((frame for frame in frames if frame.features is not None), None)
    features = first.features or () if first is not None else ()
    words = [
        " ".join(str(part) for part in (one["label"] or one["text"], _share(one["score"])) if part)
        for one in features[:N_SAID]
    ]
    boxes = [_region(one["label"] or one["text"] or "", one["box"]) for one in features if one["box"] is not None]
    return words, boxes[: 2 * N_SAID]


def _share(score: float | None) -> str:
    return "" if score is None else f"{score:.0%}"


def _region(label: str, box: Sequence[float]) -> Region:
    x0, y0, x1, y1 = (float(side) for side in box)
    return label, x0, y0, x1 - x0, y1 - y0


def page(
    spark: SparkSession, lake: Lake, experiment: Experiment, found: Sequence[Measured], items: Sequence[GoldenItem],
    number: int, inputs: Mapping[str, int], *, candidates: Sequence[Candidate], stated: Experiment, command: str,
    detectable: float, trials: Sequence[Trial],
) -> ExperimentReport:  # fmt: skip
    """All that the experiment's page shows.

    candidates: what was found about the others than the baseline; stated: the experiment as it was asked for, and by
    which command; detectable: what was foreseen of the baseline; trials: of a search, whose best are among the
    variants of `experiment`.
    """
    baseline, *others = found
    first = primary(baseline.measurements, experiment)
    sign = 1.0 if first.higher_is_better else -1.0

    def point(one: Measured) -> Objectives:
        quality = sign * primary(one.measurements, experiment).value
        return quality, level(one.passes.p95_ms).value, dollars(one).value

    front = pareto_front([point(one) for one in found])
    golden_set = experiment.golden.partition("@")[0]
    its_rows = f"golden_set = {sql_text(golden_set)} AND golden_version = {number}"
    card = read(spark, lake, GOLDEN).where(its_rows).select("card").first()
    return ExperimentReport(
        name=experiment.name,
        question=experiment.question,
        primary_metric=first.metric,
        written_at=datetime.now(UTC),
        lake=lake.uri,
        golden=golden_set,
        golden_version=number,
        n_items=len(first.items),
        card={key: str(value) for key, value in json.loads(card.card).items()} if card is not None else {},
        variants=[variant_of(one, experiment, is_on_front=on) for one, on in zip(found, front, strict=True)],
        candidates=candidates,
        pairs={one.arm.name: pairs(spark, lake, baseline, one, items, experiment) for one in others},
        detectable=detectable,
        trials=trials,
        costs={one.arm.name: {"decode and infer": dollars(one).value} for one in found},
        inputs=inputs,
        settings_text=yaml.safe_dump(stated.model_dump(mode="json"), sort_keys=False),
        commands=[command],
        versions={"lakelens": code_version(), "Spark": spark.version, "Python": platform.python_version()},
        notes=notes(experiment, found),
    )


def notes(experiment: Experiment, found: Sequence[Measured]) -> list[str]:
    """What the verdict does not say."""
    n = found[0].passes.media_ms.shape[1]
    said = [
        f"Latency and dollars are of {n} media of the golden set, {experiment.repeats} passes of each variant in turn "
        "in one process of one decode thread on this machine; other machines have other ratios.",
        "Dollars are CPU seconds of decoding and inference at conf/prices.yaml; crawling, storage and Spark are alike "
        "for all variants and left out.",
        "The verdict is about pictures like those of the golden set; its card says what it lacks.",
    ]
    same: dict[str, list[str]] = {}
    for one in found:
        same.setdefault(one.arm.due.fingerprint, []).append(one.arm.name)
    said += [
        f"{' and '.join(names)} share one fingerprint and were computed once."
        for names in same.values()
        if len(names) > 1
    ]
    return said
