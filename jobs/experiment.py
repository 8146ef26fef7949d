"""`lakelens experiment FILE`: variants featurized, evaluated, timed in turn and compared. Knows no model's code."""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs import evaluate, featurize, tracking
from jobs.check import EXPERIMENT, reports_folder
from jobs.cli import FINISHED, Common, Ending
from jobs.compare import Asked, Estimate, errors_kept, level, limit_kept, lines, overall, slices_kept
from jobs.config import Config, ConfigError, load_config
from jobs.engine import EngineSettings
from jobs.experiment_report import Candidate, ExperimentReport, Pair, Region, Variant, pareto_front, render
from jobs.golden import read_golden
from jobs.inference import loaded_featurizers
from jobs.lake import Lake, lake_at, open_lake, read
from jobs.paired import detectable
from jobs.progress import Progress
from jobs.quality import GoldenItem, Measurement
from jobs.run import Prepared, run_job
from jobs.runs import code_version
from jobs.session import spark_session
from jobs.timing import Passes, Timed, interleaved
from jobs.work import Due, Selection, Work, prepare
from schemas import DOCUMENTS, FEATURES, FRAMES, GOLDEN, MEDIA

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

N_PAIRS = 12  # items shown in which the two differ most
N_SAID = 5  # of what a variant said of one
MILLION = 1_000_000


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VariantConf(_Part):
    """A featurizer, and what is set for it over the configuration, by dotted keys."""

    featurizer: str
    set: dict[str, Any] = Field(default_factory=dict)


class MetricConf(_Part):
    """The largest difference that does not matter."""

    margin: float = Field(gt=0)


class Limit(_Part):
    """Times the baseline's for p95_ms and usd_per_million, above the baseline's for error_rate."""

    at_most: float = Field(ge=0)


class Guardrails(_Part):
    p95_ms: Limit | None = None
    usd_per_million: Limit | None = None
    error_rate: Limit | None = None


class Experiment(_Part):
    """An experiment file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    question: str = ""
    golden: str  # a golden set, or set@version
    baseline: str
    variants: dict[str, VariantConf] = Field(min_length=2)
    metrics: dict[str, MetricConf] = Field(min_length=1)  # the first decides
    slices: tuple[str, ...] = ()
    guardrails: Guardrails = Guardrails()
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    repeats: int = Field(default=5, ge=3)
    timed_media: int = Field(default=24, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _baseline_is_a_variant(self) -> Experiment:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is {self.baseline!r}, allowed: {', '.join(self.variants)}")
        return self


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A variant that was checked before Spark started."""

    name: str
    config: Config
    work: Work

    @property
    def due(self) -> Due:
        """Its featurizer."""
        return self.work.due[0]


def read_experiment(path: Path) -> Experiment:
    """An experiment file; raises ConfigError, naming the key, the value and what is allowed."""
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"experiment {path} cannot be read: {' '.join(str(e).split())}") from e
    return checked(stated, f"experiment {path}")


def checked(stated: object, name: str) -> Experiment:
    """What is stated as an experiment; raises ConfigError, which names it."""
    try:
        return Experiment.model_validate(stated)
    except ValidationError as e:
        said = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in e.errors())
        raise ConfigError(f"{name}: {said}") from e


def arms(experiment: Experiment, base: Config) -> list[Arm]:
    """The variants, the baseline first; raises what is wrong with one of them."""
    names = [experiment.baseline, *(name for name in experiment.variants if name != experiment.baseline)]
    found = []
    for name in names:
        variant = experiment.variants[name]
        chosen = {"featurizers": [variant.featurizer], "link_captions": False}
        assignments = [f"{key}={json.dumps(value)}" for key, value in variant.set.items()]
        config = load_config((), assignments, {**base.model_dump(mode="json"), "featurize": {
            **base.featurize.model_dump(mode="json"), **chosen}})  # fmt: skip
        found.append(Arm(name=name, config=config, work=prepare(config.featurize)))
    return found


# -- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a variant."""

    arm: Arm
    frames: evaluate.Frames
    measurements: Sequence[Measurement]
    passes: Passes
    error_rate: float


def run_arms(
    spark: SparkSession, lake: Lake, common: Common, experiment: Experiment, variants: Sequence[Arm],
    parent: tracking.Tracked, progress: Progress,
) -> None:  # fmt: skip
    """Featurize the golden set's media that a variant lacks, and evaluate it; equal fingerprints are computed once.

    The runs' job is `experiment`: a check does not judge them, so what a variant found is not published.
    """
    seen: set[str] = set()
    selection = Selection(golden=experiment.golden)
    for arm in variants:
        mine = replace(common, config=arm.config, run_id=f"{common.run_id}.{arm.name}")
        if arm.due.fingerprint not in seen:
            seen.add(arm.due.fingerprint)
            run_job(spark, lake, mine, featurizing(arm, selection), parent, progress)
        run_job(spark, lake, mine, evaluating(arm, experiment.golden), parent, progress)


def featurizing(arm: Arm, selection: Selection) -> Prepared:
    """The job that computes what a variant lacks."""
    return Prepared(
        name=EXPERIMENT,
        outputs=arm.work.outputs,
        pins=featurize.pins,
        run=lambda spark, lake, run: featurize.run(spark, lake, arm.config, run, arm.work, selection),
    )


def evaluating(arm: Arm, golden: str) -> Prepared:
    """The job that measures a variant item by item."""
    chosen = arm.config.evaluate.model_copy(update={"golden": (golden,)})
    config = arm.config.model_copy(update={"evaluate": chosen})
    return Prepared(
        name="evaluate",
        outputs={},
        pins=evaluate.pins,
        run=lambda spark, lake, run: evaluate.run(spark, lake, config, run, arm.work),
    )


def measure(
    spark: SparkSession, lake: Lake, experiment: Experiment, variants: Sequence[Arm], items: Sequence[GoldenItem],
    *, at: int,
) -> list[Measured]:  # fmt: skip
    """Every metric of every variant at one version of `features`, and what it costs, in turn on this machine."""
    media_ids = [item.media_id for item in items if item.media_id is not None]
    timed = timing(spark, lake, experiment, variants, media_ids)
    found = []
    for arm in variants:
        frames = evaluate.read_frames(spark, lake, arm.due, media_ids, at=at)
        measurements = evaluate.measurements(arm.due, items, frames, bridge_labels=arm.config.evaluate.bridge_labels)
        failed = [all(frame.features is None for frame in each) for each in frames.values()]
        found.append(
            Measured(
                arm=arm,
                frames=frames,
                measurements=measurements,
                passes=timed[arm.name],
                error_rate=float(np.mean(failed)),
            )
        )
    return found


def timing(
    spark: SparkSession, lake: Lake, experiment: Experiment, variants: Sequence[Arm], media_ids: Sequence[str]
) -> Mapping[str, Passes]:
    """Passes of all variants over the same media, the first by id, in turn."""
    from pyspark.sql import functions as F

    columns = ["media_id", "content", "pack_uri", "offset", "length", "mime"]
    chosen = sorted(set(media_ids))[: experiment.timed_media]
    table = (
        read(spark, lake, MEDIA).where(F.col("media_id").isin(chosen)).select(*columns).orderBy("media_id").toArrow()
    )
    [batch] = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    timed = []
    for arm in variants:
        settings = arm.config.featurize
        [loaded] = loaded_featurizers([(arm.due.spec, dict(arm.due.paths), arm.due.fingerprint)], "cpu")
        timed.append(
            Timed(
                name=arm.name,
                loaded=loaded,
                settings=EngineSettings(
                    max_pixels=settings.max_pixels,
                    max_frames_per_video=settings.max_frames_per_video,
                    decode_profile=settings.decode_profile,
                    decode_threads=1,
                ),
            )
        )
    return interleaved(timed, batch, n_repeats=experiment.repeats)


# -- the verdict --------------------------------------------------------------------------------------------------


def judged(experiment: Experiment, baseline: Measured, candidate: Measured, items: Sequence[GoldenItem]) -> Candidate:
    """The verdict on a candidate, without the pictures."""
    asked = Asked(
        margins={name: metric.margin for name, metric in experiment.metrics.items()},
        slices=experiment.slices,
        alpha=experiment.alpha,
        seed=experiment.seed,
    )
    slices = {item.item_id: item.slices for item in items}
    found = lines(baseline.measurements, candidate.measurements, slices, asked)
    rails = []
    if limit := experiment.guardrails.p95_ms:
        rails.append(limit_kept("p95_ms", baseline.passes.p95_ms, candidate.passes.p95_ms, at_most=limit.at_most))
    if limit := experiment.guardrails.usd_per_million:
        both = (baseline.passes.cpu_s_per_media, candidate.passes.cpu_s_per_media)
        rails.append(limit_kept("usd_per_million", *both, at_most=limit.at_most))
    if limit := experiment.guardrails.error_rate:
        rails.append(errors_kept(baseline.error_rate, candidate.error_rate, at_most=limit.at_most))
    if experiment.slices:
        rails.append(slices_kept(found))
    verdict, summary = overall(found, rails)
    return Candidate(name=candidate.arm.name, verdict=verdict, summary=summary, lines=found, guardrails=rails)


def primary(measured: Measured, experiment: Experiment) -> Measurement:
    """The measurement that decides."""
    wanted = next(iter(experiment.metrics))
    there = {one.metric: one for one in measured.measurements}
    if wanted not in there:
        raise ConfigError(f"metric {wanted!r} is not measured here; measured: {', '.join(there)}")
    return there[wanted]


def variant_of(measured: Measured, experiment: Experiment, *, is_on_front: bool) -> Variant:
    """A variant as the page shows it."""
    p95, usd = level(measured.passes.p95_ms), dollars(measured)
    variant = experiment.variants[measured.arm.name]
    return Variant(
        name=measured.arm.name,
        featurizer=measured.arm.due.spec.id,
        fingerprint=measured.arm.due.fingerprint,
        is_baseline=measured.arm.name == experiment.baseline,
        settings={key: json.dumps(value) for key, value in variant.set.items()},
        quality=primary(measured, experiment).value,
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
    wanted = primary(baseline, experiment)
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


# -- the command --------------------------------------------------------------------------------------------------


def two_featurizers(
    baseline: str, candidate: str, *, golden: str, metrics: Sequence[str], margin: float
) -> Experiment:
    """The experiment of `lakelens compare`; raises ConfigError."""
    described = {
        "name": "compare",
        "question": f"Is {candidate} better than {baseline}?",
        "golden": golden,
        "baseline": "baseline",
        "variants": {"baseline": {"featurizer": baseline}, "candidate": {"featurizer": candidate}},
        "metrics": {metric: {"margin": margin} for metric in metrics},
    }
    return checked(described, "lakelens compare")


def run_experiment(common: Common, experiment: Experiment, command: str) -> Ending:
    """Featurize, evaluate, time and compare the variants; writes the page. Raises what ends it otherwise.

    command: what the reader of the page types to do it again.
    """
    tracking.tracking_store(lake_at(common.config.lake))
    variants = arms(experiment, common.config)
    progress = Progress(live=not (common.as_json or common.debug))
    with ExitStack() as stack:
        stack.enter_context(progress.shown())
        progress(f"experiment {experiment.name}: starting Spark")
        spark = spark_session(common.config.spark, f"lakelens experiment {experiment.name}")
        lake = open_lake(spark, common.config.lake, create=False)
        number, items = read_golden(spark, lake, experiment.golden)
        pinned = replace_golden(experiment, number)
        parent = stack.enter_context(
            tracking.pipeline_run(
                lake,
                common.config,
                name=common.run_id,
                experiment=experiment.name,
                warn=progress,
                tags={"jobs": "experiment", "golden": pinned.golden, "baseline": experiment.baseline},
            )
        )
        try:
            run_arms(spark, lake, common, pinned, variants, parent, progress)
            progress("timing the variants in turn")
            inputs = evaluate.pins(spark, lake)
            found = measure(spark, lake, pinned, variants, items, at=inputs[FEATURES.name])
            progress("comparing")
            report = page(spark, lake, pinned, found, items, number, inputs, command)
        except BaseException as e:
            e.add_note(f"run_id={common.run_id}")
            raise
        file = reports_folder(lake, common.run_id) / "experiment.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(report), encoding="utf-8")
        tracking.log_files(parent, [file])
        tracking.log_metrics(parent, flat(report))
    said = "; ".join(f"{one.name} is {one.verdict}: {one.summary}" for one in report.candidates)
    facts = {
        "run_id": common.run_id,
        "lake": lake.uri,
        "golden": pinned.golden,
        "verdicts": {one.name: one.verdict for one in report.candidates},
        "report": str(file),
    }
    return Ending(exit_code=FINISHED, message=f"{said} report at {file}", facts=facts)


def replace_golden(experiment: Experiment, number: int) -> Experiment:
    """The experiment on exactly this version of its golden set."""
    return experiment.model_copy(update={"golden": f"{experiment.golden.partition('@')[0]}@{number}"})


def page(
    spark: SparkSession, lake: Lake, experiment: Experiment, found: Sequence[Measured], items: Sequence[GoldenItem],
    number: int, inputs: Mapping[str, int], command: str,
) -> ExperimentReport:  # fmt: skip
    """All that the experiment's page shows."""
    baseline, *others = found
    first = primary(baseline, experiment)
    sign = 1.0 if first.higher_is_better else -1.0
    points = [
        (sign * primary(one, experiment).value, level(one.passes.p95_ms).value, dollars(one).value) for one in found
    ]
    front = pareto_front(points)
    candidates = [
        replace(judged(experiment, baseline, one, items), pairs=pairs(spark, lake, baseline, one, items, experiment))
        for one in others
    ]
    card = read(spark, lake, GOLDEN).where(
        f"golden_set = '{experiment.golden.partition('@')[0]}' AND golden_version = {number}"
    ).select("card").first()  # fmt: skip
    return ExperimentReport(
        name=experiment.name,
        question=experiment.question,
        primary_metric=first.metric,
        written_at=datetime.now(UTC),
        lake=lake.uri,
        golden=experiment.golden.partition("@")[0],
        golden_version=number,
        n_items=len(first.items),
        card={key: str(value) for key, value in json.loads(card.card).items()} if card is not None else {},
        variants=[variant_of(one, experiment, is_on_front=on) for one, on in zip(found, front, strict=True)],
        candidates=candidates,
        detectable=detectable(first.pair(first.data, first.data), len(first.items), seed=experiment.seed),
        costs={one.arm.name: {"decode and infer": dollars(one).value} for one in found},
        inputs=inputs,
        settings_text=yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False),
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


def flat(report: ExperimentReport) -> dict[str, float]:
    """The comparison as MLflow's metrics: `<candidate>/<metric>/...` of all items."""
    named: dict[str, float] = {}
    for candidate in report.candidates:
        for line in candidate.lines:
            if line.slice is None:
                key = f"{candidate.name}/{line.metric}"
                named |= {f"{key}/difference": line.difference}
                if line.low is not None and line.high is not None:
                    named |= {f"{key}/low": line.low, f"{key}/high": line.high}
    for variant in report.variants:
        named |= {
            f"{variant.name}/quality": variant.quality,
            f"{variant.name}/p95_ms": variant.p95_ms,
            f"{variant.name}/usd_per_million": variant.usd_per_million,
            f"{variant.name}/error_rate": variant.error_rate,
        }
    return named
