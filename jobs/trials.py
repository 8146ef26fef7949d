"""The trials of a search: each featurized, measured and timed beside the baseline, and kept as a run. Proposes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import evaluate, tracking
from jobs.command import Common
from jobs.config import ConfigError
from jobs.experiment_file import Experiment
from jobs.experiment_tracking import RunOf
from jobs.lake import Lake, sql_text
from jobs.progress import Progress
from jobs.quality import GoldenItem
from jobs.run import Prepared, run_job
from jobs.runs import JobResult, run_rows, stored_run_id
from jobs.sweep import Search, Trial, key_of, variant, variant_name
from jobs.variants import Arm, Part, arm_of, measurements, primary, run_arm, timing
from schemas import FEATURES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TRIAL = "trial"
SETTINGS, GOLDEN_SET = "settings", "golden"  # keys of a trial's outputs
OBJECTIVES = ("quality", "p95_ratio", "usd_ratio")  # of its metrics
EARLIER = "trial_of_earlier_attempt"  # tag of MLflow: the run in which an earlier attempt measured a trial


def searched(
    spark: SparkSession, lake: Lake, common: Common, experiment: Experiment, baseline: Arm,
    items: Sequence[GoldenItem], part: Part, run_of: RunOf, progress: Progress, *, known: set[str],
) -> list[Trial]:  # fmt: skip
    """Try what a search proposes; each trial is a run, so that a search that died goes on where it was.

    known: fingerprints that are computed; those of the trials are added. Raises ConfigError where a trial of this run
    id was another one.
    """
    assert experiment.sweep is not None
    search = Search(experiment.sweep.over, seed=experiment.seed)
    trials: dict[str, Trial] = {}
    for number in range(experiment.sweep.trials):
        settings = search.ask()
        key = key_of(settings)
        if key not in trials:
            name = variant_name(settings)
            progress(f"trial {number + 1} of {experiment.sweep.trials}: {name}")
            mine = replace(common, run_id=f"{common.run_id}.{TRIAL}-{number}")
            arm = arm_of(name, variant(experiment.sweep, settings), common.config)
            stated = {SETTINGS: key, GOLDEN_SET: experiment.golden}
            before = _accepted(spark, lake, mine, stated)
            with run_of(arm) as run:
                if before is None:
                    run_arm(spark, lake, mine, arm, experiment.golden, run, progress, known=known)
                    job = trying(experiment, baseline, arm, items, part, stated)
                    found = run_job(spark, lake, mine, job, run, progress).result.metrics
                else:
                    found = before["metrics"]
                    tracking.log_tags(run, {EARLIER: before["mlflow_run_id"] or "not logged"})
                tracking.log_metrics(run, {f"{TRIAL}/{name}": found[name] for name in OBJECTIVES})
            quality, p95_ratio, usd_ratio = (found[name] for name in OBJECTIVES)
            trials[key] = Trial(name=name, settings=settings, objectives=(quality, p95_ratio, usd_ratio))
        search.tell(trials[key].objectives)
    return list(trials.values())


def _accepted(spark: SparkSession, lake: Lake, common: Common, stated: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The row of a trial that an earlier attempt measured; raises ConfigError where it was not what is stated."""
    mine = f"run_id = {sql_text(stored_run_id(common.run_id, TRIAL))} AND status = 'accepted'"
    row = next(iter(run_rows(spark, lake, mine)), None)
    if row is not None and (done := {name: row["outputs"][name] for name in stated}) != stated:
        raise ConfigError(
            f"run {row['run_id']} tried {done}, and the file now says {dict(stated)}; give a new --run-id"
        )
    return row


def trying(
    experiment: Experiment, baseline: Arm, arm: Arm, items: Sequence[GoldenItem], part: Part, stated: Mapping[str, str]
) -> Prepared:
    """The job that measures a variant on a part of the items, and times it in turn with the baseline.

    Its costs are ratios to the baseline's, so that trials of busy and of idle hours can be compared.

    stated: its SETTINGS and its GOLDEN_SET.
    """

    def run(spark: SparkSession, lake: Lake, _: object) -> JobResult:
        at = evaluate.pins(spark, lake)[FEATURES.name]
        frames, found = measurements(spark, lake, arm, experiment.golden, items, part, at=at, seen={})
        wanted = primary(found, experiment)
        if np.isnan(wanted.value):
            raise ConfigError(f"{wanted.metric} is not defined on the {len(wanted.items)} items that the search sees")
        timed = timing(spark, lake, experiment, [baseline, arm], frames)
        mine, theirs = timed[arm.name], timed[baseline.name]
        values = (
            wanted.value if wanted.higher_is_better else -wanted.value,
            float(np.median(mine.p95_ms / theirs.p95_ms)),
            float(np.median(mine.cpu_s / theirs.cpu_s)),
        )
        return JobResult(
            status="accepted",
            message=f"{arm.name}: {wanted.metric} {wanted.value:.4f}",
            outputs=stated,
            metrics=dict(zip(OBJECTIVES, values, strict=True)),
        )

    return Prepared(name=TRIAL, outputs={}, pins=evaluate.pins, run=run, is_measured=False)
