"""`lakelens experiment FILE`: variants featurized, evaluated, timed in turn and compared. Knows no model's code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from jobs import evaluate, featurize, tracking
from jobs.check import EXPERIMENT, reports_folder
from jobs.command import FINISHED, Common, Ending
from jobs.config import Config, load_config
from jobs.engine import EngineSettings
from jobs.experiment_file import Experiment
from jobs.experiment_page import Arm, Measured, page
from jobs.experiment_report import Candidate, render
from jobs.experiment_tracking import log_experiment, variant_runs
from jobs.golden import read_golden
from jobs.inference import loaded_featurizers
from jobs.lake import Lake, lake_at, open_lake, read
from jobs.progress import Progress
from jobs.promote import BASELINE, CANDIDATE, COMPARE
from jobs.quality import GoldenItem
from jobs.run import Prepared, run_job
from jobs.runs import JobResult, RunAccepted
from jobs.session import spark_session
from jobs.timing import Passes, Timed, interleaved
from jobs.work import Selection, prepare
from schemas import FEATURES, MEDIA

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


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


def run_arms(
    spark: SparkSession, lake: Lake, common: Common, experiment: Experiment, variants: Sequence[Arm],
    run_of: Callable[[Arm], tracking.Tracked], progress: Progress,
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
            run_job(spark, lake, mine, featurizing(arm, selection), run_of(arm), progress)
        run_job(spark, lake, mine, evaluating(arm, experiment.golden), run_of(arm), progress)


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
        is_measured=False,
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
        run_of = stack.enter_context(variant_runs(parent, lake, pinned))
        try:
            run_arms(spark, lake, common, pinned, variants, run_of, progress)
            progress("timing the variants in turn")
            inputs = evaluate.pins(spark, lake)
            found = measure(spark, lake, pinned, variants, items, at=inputs[FEATURES.name])
            progress("comparing")
            report = page(spark, lake, pinned, found, items, number, inputs, command)
            for one, candidate in zip(found[1:], report.candidates, strict=True):
                mine = replace(common, run_id=f"{common.run_id}.{candidate.name}")
                with suppress(RunAccepted):  # it is written already
                    run_job(spark, lake, mine, concluding(found[0], one, candidate, inputs), run_of(one.arm), progress)
        except BaseException as e:
            e.add_note(f"run_id={common.run_id}")
            raise
        file = reports_folder(lake, common.run_id) / "experiment.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(report), encoding="utf-8")
        tracking.log_files(parent, [file])
        log_experiment(parent, run_of, lake, pinned, found, report)
    said = "; ".join(f"{one.name} is {one.verdict}: {one.summary}" for one in report.candidates)
    facts = {
        "run_id": common.run_id,
        "lake": lake.uri,
        "golden": pinned.golden,
        "verdicts": {one.name: one.verdict for one in report.candidates},
        "report": str(file),
    }
    return Ending(exit_code=FINISHED, message=f"{said} report at {file}", facts=facts)


def concluding(baseline: Measured, candidate: Measured, found: Candidate, inputs: Mapping[str, int]) -> Prepared:
    """The job that writes down a verdict: accepted where it is better or equivalent, rejected where it is worse."""
    both = {BASELINE: baseline, CANDIDATE: candidate}
    status: dict[str, Literal["finished", "accepted", "rejected"]] = {
        "better": "accepted", "equivalent": "accepted", "worse": "rejected",
    }  # fmt: skip
    result = JobResult(
        status=status.get(found.verdict, "finished"),
        message=f"{found.name} is {found.verdict}",
        outputs={key: f"{one.arm.due.spec.id}#{one.arm.due.fingerprint}" for key, one in both.items()},
        metrics={f"difference/{line.metric}": line.difference for line in found.lines if line.slice is None},
    )
    return Prepared(
        name=COMPARE,
        outputs={},
        pins=lambda spark, lake: inputs,
        run=lambda spark, lake, run: result,
        is_measured=False,
    )


def replace_golden(experiment: Experiment, number: int) -> Experiment:
    """The experiment on exactly this version of its golden set."""
    return experiment.model_copy(update={"golden": f"{experiment.golden.partition('@')[0]}@{number}"})
