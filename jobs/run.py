"""`lakelens run`: jobs in order as one pipeline, each a run of its own under one MLflow parent. Has no job's logic."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs import check, crawl, evaluate, featurize, golden, maintain, metrics, tracking
from jobs.command import FINISHED, REJECTED, Common, Ending, progress_of
from jobs.config import Config
from jobs.dollars import cost_usd, unexplained_share
from jobs.lake import Lake, lake_at, open_lake, read
from jobs.log import told_to_tasks
from jobs.meter import Meter, process_began
from jobs.progress import Progress, readable_s, readable_usd
from jobs.report import collect, write_page
from jobs.runs import JobResult, Run, RunAccepted, executing, finish, stored_run_id
from jobs.session import session_is_up, spark_session
from jobs.stage_times import times_of
from jobs.work import Selection
from jobs.work import prepare as prepare_work
from jobs.writer_lock import sole_writer
from schemas import TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession


BOOKKEEPING = "bookkeeping"  # what is done between two jobs


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


def prepare(name: str, config: Config, selection: Selection, judged: Sequence[str] = ()) -> Prepared:
    """Check all of a job that can be checked without Spark; raises what is wrong with it.

    selection: what featurize takes. judged: the runs that check judges; none: all that nothing covers.
    """
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
    if name == "maintain":
        return Prepared(
            name=name,
            outputs={},
            pins=maintain.pins,
            run=lambda spark, lake, run: maintain.run(spark, lake, config, run),
            is_measured=False,
        )
    check.vector_lengths(config)
    return Prepared(
        name=name,
        outputs={},
        pins=check.pins,
        run=lambda spark, lake, run: check.run(spark, lake, config, run, only=judged),
    )


def sole_writer_of(common: Common) -> AbstractContextManager[object]:
    """Be the only driver that writes the lake while a command lasts; raises WriterRefused, StoreRefused."""
    return sole_writer(
        lake_at(common.config.lake).uri,
        run_id=common.run_id,
        heartbeat_s=common.config.featurize.heartbeat_s,
        expiry_s=common.config.featurize.lease_expiry_s,
    )


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that ended."""

    run_id: str
    result: JobResult


def run_jobs(
    common: Common, names: Sequence[str], *, selection: Selection | None = None, judged: Sequence[str] = ()
) -> Ending:
    """Run jobs in order and report on them; a rejected one ends the pipeline. Raises what ends a job otherwise."""
    config = common.config
    tracking.tracking_store(lake_at(config.lake))
    jobs = [prepare(name, config, selection or Selection(), judged) for name in names]
    progress = progress_of(common)
    with ExitStack() as stack:
        stack.enter_context(progress.shown())
        stack.enter_context(sole_writer_of(common))
        progress(f"run {common.run_id}: starting Spark")
        began = time.monotonic() if session_is_up() else process_began()
        spark = spark_session(config.spark, f"lakelens {common.run_id}", lake=config.lake)
        progress.watch(lambda: _tasks(spark))
        meter = stack.enter_context(Meter(spark, config.spark, began=began).collecting())
        meter.started()
        lake = open_lake(spark, config.lake, create="crawl" in names)
        parent = stack.enter_context(
            tracking.pipeline_run(lake, config, name=common.run_id, warn=progress, tags={"jobs": ", ".join(names)})
        )
        done: list[Finished] = []
        skipped: list[str] = []
        for job in jobs:
            try:
                done.append(run_job(spark, lake, common, job, parent, progress, meter))
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
        report, total = None, meter.total
        if any(job.is_measured for job in jobs):
            progress("writing the report")
            report, total = _report(spark, lake, common, done, parent, meter)
            progress.note(_cost_line(total, config))
    statuses = [one.result.status for one in done]
    judged = next((status for status in statuses if status in ("accepted", "rejected")), statuses[-1])
    facts: dict[str, Any] = {
        "run_id": common.run_id,
        "lake": lake.uri,
        "status": judged,
        "jobs": {one.run_id: one.result.message for one in done},
    }
    messages = [*skipped, *(one.result.message for one in done)]
    if report is not None:
        facts["report"] = str(report)
        facts["usd"] = cost_usd(total, config.prices)
        facts["n_media"] = sum(total.n_media.values())
        messages.append(f"report at {report}")
    message = "; ".join(messages)
    return Ending(exit_code=REJECTED if judged == "rejected" else FINISHED, message=message, facts=facts)


def run_job(
    spark: SparkSession, lake: Lake, common: Common, job: Prepared, parent: tracking.Tracked, progress: Progress,
    meter: Meter | None = None,
) -> Finished:  # fmt: skip
    """Run one job as a run of its own: its row of `runs`, its metrics, its child of the MLflow run.

    meter: of the pipeline, where the job is one of several whose cost is told together.
    """
    config, run_id = common.config, stored_run_id(common.run_id, job.name)
    progress.about(run_id=run_id, job=job.name)
    with (
        told_to_tasks(spark, run_id=run_id, job=job.name),
        Meter(spark, config.spark).collecting() if meter is None else nullcontext(meter) as meter,
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
        meter.lap(BOOKKEEPING)
        result = job.run(spark, lake, run)
        for note in result.notes:
            progress.note(note)
        progress("measuring")
        rows = measured(spark, lake, [run_id]) if job.is_measured else metrics.RunMetrics()
        spent = meter.lap(job.name, times_of(result.metrics))
        found = metrics.flat(metrics.merge(rows, spent), config.prices) if job.is_measured else {}
        found["usd"] = cost_usd(spent, config.prices)["total"]
        result = replace(result, metrics=found | dict(result.metrics))
        finish(spark, lake, run, result, mlflow_run_id=child.mlflow_run_id)
        tracking.log_metrics(child, result.metrics)
        tracking.log_files(child, result.artifacts)
    return Finished(run_id=run_id, result=result)


def measured(spark: SparkSession, lake: Lake, run_ids: Sequence[str]) -> metrics.RunMetrics:
    """What the runs committed to any table of the lake."""
    return metrics.measure({table.name: read(spark, lake, table) for table in TABLES}, run_ids)


def _report(
    spark: SparkSession, lake: Lake, common: Common, done: Sequence[Finished], parent: tracking.Tracked, meter: Meter
) -> tuple[Path, metrics.RunMetrics]:
    """Measure the jobs together, write their report, keep both with MLflow, and make the report the latest."""
    run_ids = list(dict.fromkeys(run_id for one in done for run_id in (*one.result.covers, one.run_id)))
    rows = measured(spark, lake, run_ids)
    report = collect(spark, lake, common.config, run_ids, metrics=rows)
    meter.lap("report")
    total = metrics.merge(rows, meter.total)
    folder = check.reports_folder(lake, common.run_id)
    page = write_page(replace(report, metrics=total), folder / "report.html")
    if lake.local_folder() is not None:
        shutil.copyfile(page, folder.parent / "latest.html")
    tracking.log_metrics(parent, metrics.flat(total, common.config.prices))
    tracking.log_files(parent, [page])
    return page, total


def _cost_line(total: metrics.RunMetrics, config: Config) -> str:
    usd, share = cost_usd(total, config.prices), unexplained_share(total, config.prices)
    wall_s = sum(total.wall_s.values())
    unexplained = f", {share:.1%} of the machine's price unexplained" if share is not None else ""
    return f"cost: {readable_usd(usd['total'])} for {readable_s(wall_s)}{unexplained}"


def _tasks(spark: SparkSession) -> tuple[int, int]:
    """Finished and all tasks of the stages that are running."""
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage_id) for stage_id in tracker.getActiveStageIds()]
    found = [stage for stage in stages if stage is not None]
    return sum(s.numCompletedTasks for s in found), sum(s.numTasks for s in found)


def discard_run(common: Common, run_id: str) -> Ending:
    """Remove the rows of a rejected or failed run, so that the next plan computes them again."""
    with sole_writer_of(common):
        spark = spark_session(common.config.spark, f"lakelens discard {run_id}", lake=common.config.lake)
        lake = open_lake(spark, common.config.lake, create=False)
        removed = check.discard(spark, lake, common.config, run_id)
    counts = ", ".join(f"{n} rows of {table}" for table, n in removed.items())
    return Ending(exit_code=FINISHED, message=f"discarded {counts} written by {run_id}", facts={"removed": removed})
