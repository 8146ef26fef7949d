"""`lakelens run`: jobs in order as one pipeline, each a run of its own under one MLflow parent. Has no job's logic."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jobs import check, crawl, evaluate, featurize, golden, metrics, tracking
from jobs.command import FINISHED, REJECTED, Common, Ending
from jobs.config import Config
from jobs.lake import Lake, lake_at, open_lake, read
from jobs.progress import Progress
from jobs.report import write_report
from jobs.runs import JobResult, Run, RunAccepted, executing, finish, stored_run_id
from jobs.session import spark_session
from jobs.work import Selection
from jobs.work import prepare as prepare_work
from schemas import TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession


def pipeline(config: Config) -> list[str]:
    """The jobs of a pipeline in order: golden sets and evaluations where some are configured."""
    golden_sets = ["golden"] if config.golden else []
    return ["crawl", *golden_sets, "featurize", "check", *(["evaluate"] if config.evaluate.golden else [])]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that was checked before Spark starts: what it pins, what it writes, and how it runs."""

    name: str
    outputs: Mapping[str, str]  # featurizer -> fingerprint
    pins: Callable[[SparkSession, Lake], Mapping[str, int]]
    run: Callable[[SparkSession, Lake, Run], JobResult]
    is_measured: bool = True  # by the rows of documents, media, frames, features and mentions that it commits


def prepare(name: str, config: Config, selection: Selection) -> Prepared:
    """Check all of a job that can be checked without Spark; raises what is wrong with it."""
    if name == "crawl":
        crawl.validate(config)
        return Prepared(
            name=name, outputs={}, pins=crawl.pins, run=lambda spark, lake, run: crawl.run(spark, lake, config, run)
        )
    if name == "featurize":
        work = prepare_work(config.featurize, on_gpus=config.spark.gpus > 0)
        return Prepared(
            name=name,
            outputs=work.outputs,
            pins=featurize.pins,
            run=lambda spark, lake, run: featurize.run(spark, lake, config, run, work, selection),
        )
    if name == "golden":
        return Prepared(
            name=name,
            outputs={},
            pins=golden.pins,
            run=lambda spark, lake, run: golden.run(spark, lake, run, config.golden),
            is_measured=False,
        )
    if name == "evaluate":
        evaluate.validate(config)
        measured_work = prepare_work(config.featurize)
        return Prepared(
            name=name,
            outputs={},
            pins=evaluate.pins,
            run=lambda spark, lake, run: evaluate.run(spark, lake, config, run, measured_work),
            is_measured=False,
        )
    check.vector_lengths(config)
    return Prepared(
        name=name, outputs={}, pins=check.pins, run=lambda spark, lake, run: check.run(spark, lake, config, run)
    )


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that ended, and the machine time it took."""

    run_id: str
    result: JobResult
    time: metrics.RunMetrics


def run_jobs(common: Common, names: Sequence[str], *, selection: Selection | None = None) -> Ending:
    """Run jobs in order and report on them; a rejected one ends the pipeline. Raises what ends a job otherwise."""
    config = common.config
    tracking.tracking_store(lake_at(config.lake))
    jobs = [prepare(name, config, selection or Selection()) for name in names]
    progress = Progress(live=not (common.as_json or common.debug))
    with ExitStack() as stack:
        stack.enter_context(progress.shown())
        progress(f"run {common.run_id}: starting Spark")
        spark = spark_session(config.spark, f"lakelens {common.run_id}")
        progress.watch(lambda: _tasks(spark))
        lake = open_lake(spark, config.lake, create="crawl" in names)
        parent = stack.enter_context(
            tracking.pipeline_run(lake, config, name=common.run_id, warn=progress, tags={"jobs": ", ".join(names)})
        )
        done: list[Finished] = []
        skipped: list[str] = []
        for job in jobs:
            try:
                done.append(run_job(spark, lake, common, job, parent, progress))
            except RunAccepted as e:
                skipped.append(str(e))
                continue
            except BaseException as e:
                e.add_note(f"run_id={common.run_id}")
                raise
            if done[-1].result.status == "rejected":
                break
        if not done:
            return Ending(exit_code=FINISHED, message="; ".join(skipped))
        report = None
        if any(job.is_measured for job in jobs):
            progress("writing the report")
            report = _report(spark, lake, common, done, parent)
    statuses = [one.result.status for one in done]
    judged = next((status for status in statuses if status in ("accepted", "rejected")), statuses[-1])
    facts = {
        "run_id": common.run_id,
        "lake": lake.uri,
        "status": judged,
        "jobs": {one.run_id: one.result.message for one in done},
    }
    messages = [*skipped, *(one.result.message for one in done)]
    if report is not None:
        facts["report"] = str(report)
        messages.append(f"report at {report}")
    message = "; ".join(messages)
    return Ending(exit_code=REJECTED if judged == "rejected" else FINISHED, message=message, facts=facts)


def run_job(
    spark: SparkSession, lake: Lake, common: Common, job: Prepared, parent: tracking.Tracked, progress: Progress
) -> Finished:
    """Run one job as a run of its own: its row of `runs`, its metrics, its child of the MLflow run."""
    config, run_id = common.config, stored_run_id(common.run_id, job.name)
    began = time.monotonic()
    with (
        executing(
            spark,
            lake,
            run_id=run_id,
            job=job.name,
            inputs=job.pins(spark, lake),
            outputs=job.outputs,
            config_digest=config.digest(),
            heartbeat_s=config.featurize.heartbeat_s,
            expiry_s=config.featurize.lease_expiry_s,
            progress=progress,
        ) as run,
        tracking.job_run(
            parent, run_id=run_id, job=job.name, lake=lake, config=config, inputs=run.inputs, outputs=job.outputs
        ) as child,
    ):
        result = job.run(spark, lake, run)
        for note in result.notes:
            progress.note(note)
        progress("measuring")
        spent = metrics.job_time(
            job.name, wall_s=time.monotonic() - began, n_cores=spark.sparkContext.defaultParallelism
        )
        if job.is_measured:
            total = metrics.merge(measured(spark, lake, [run_id]), spent)
            result = replace(result, metrics=metrics.flat(total, config.prices) | dict(result.metrics))
        finish(spark, lake, run, result, mlflow_run_id=child.mlflow_run_id)
        tracking.log_metrics(child, result.metrics)
        tracking.log_files(child, result.artifacts)
    return Finished(run_id=run_id, result=result, time=spent)


def measured(spark: SparkSession, lake: Lake, run_ids: Sequence[str]) -> metrics.RunMetrics:
    """What the runs committed to any table of the lake."""
    return metrics.measure({table.name: read(spark, lake, table) for table in TABLES}, run_ids)


def _report(
    spark: SparkSession, lake: Lake, common: Common, done: Sequence[Finished], parent: tracking.Tracked
) -> Path:
    """Measure the jobs together, write their report, keep both with MLflow, and make the report the latest."""
    run_ids = list(dict.fromkeys(run_id for one in done for run_id in (*one.result.covers, one.run_id)))
    total = measured(spark, lake, run_ids)
    for one in done:
        total = metrics.merge(total, one.time)
    folder = check.reports_folder(lake, common.run_id)
    report = write_report(spark, lake, common.config, run_ids, folder / "report.html", metrics=total)
    if lake.local_folder() is not None:
        shutil.copyfile(report, folder.parent / "latest.html")
    tracking.log_metrics(parent, metrics.flat(total, common.config.prices))
    tracking.log_files(parent, [report])
    return report


def _tasks(spark: SparkSession) -> tuple[int, int]:
    """Finished and all tasks of the stages that are running."""
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage_id) for stage_id in tracker.getActiveStageIds()]
    found = [stage for stage in stages if stage is not None]
    return sum(s.numCompletedTasks for s in found), sum(s.numTasks for s in found)


def discard_run(common: Common, run_id: str) -> Ending:
    """Remove the rows of a rejected or failed run, so that the next plan computes them again."""
    spark = spark_session(common.config.spark, f"lakelens discard {run_id}")
    lake = open_lake(spark, common.config.lake, create=False)
    removed = check.discard(spark, lake, common.config, run_id)
    counts = ", ".join(f"{n} rows of {table}" for table, n in removed.items())
    return Ending(exit_code=FINISHED, message=f"discarded {counts} written by {run_id}", facts={"removed": removed})
