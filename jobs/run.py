"""`lakelens run`: jobs in order as one pipeline, each a run of its own under one MLflow parent. Holds no job's logic."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import check, crawl, featurize, metrics, report, tracking
from jobs.cli import FINISHED, REJECTED, Common, Outcome
from jobs.config import Config
from jobs.featurize import Selection
from jobs.lake import REPORTS, Lake, open_lake, read
from jobs.progress import Progress
from jobs.runs import JobResult, Run, RunAccepted, code_version, executing, finish, stored_run_id
from jobs.session import spark_session
from schemas import TABLES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PIPELINE = ("crawl", "featurize", "check")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that was checked before Spark starts: what it pins, what it writes, and how it runs."""

    name: str
    outputs: Mapping[str, str]  # featurizer -> fingerprint
    pins: Callable[[SparkSession, Lake], Mapping[str, int]]
    run: Callable[[SparkSession, Lake, Run], JobResult]


def prepare(name: str, config: Config, selection: Selection) -> Prepared:
    """Check all of a job that can be checked without Spark; raises what is wrong with it."""
    if name == "crawl":
        crawl.validate(config)
        return Prepared(
            name=name, outputs={}, pins=crawl.pins, run=lambda spark, lake, run: crawl.run(spark, lake, config, run)
        )
    if name == "featurize":
        work = featurize.prepare(config.featurize)
        return Prepared(
            name=name,
            outputs=work.outputs,
            pins=featurize.pins,
            run=lambda spark, lake, run: featurize.run(spark, lake, config, run, work, selection),
        )
    return Prepared(
        name=name, outputs={}, pins=check.pins, run=lambda spark, lake, run: check.run(spark, lake, config, run)
    )


def run_jobs(common: Common, names: Sequence[str], *, selection: Selection | None = None) -> Outcome:
    """Run jobs in order; a rejected one ends the pipeline with exit code 3. Raises what ends a job otherwise."""
