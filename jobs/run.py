"""`lakelens run`: jobs in order as one pipeline, each a run of its own under one MLflow parent. Contains no job's logic."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs import check, crawl, featurize, runs
from jobs.cli import FINISHED, REJECTED, Common, Outcome
from jobs.config import Config
from jobs.featurize import Selection
from jobs.lake import Lake, open_lake
from jobs.progress import Progress
from jobs.runs import JobResult, Run, RunAccepted, executing, finish, stored_run_id
from jobs.session import spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PIPELINE = ("crawl", "featurize", "check")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job checked and ready before Spark starts: what it pins, what it writes, and how it runs."""

    name: str
    outputs: Mapping[str, str]  # featurizer -> fingerprint
    pins: Callable[[SparkSession, Lake], Mapping[str, int]]
    run: Callable[[SparkSession, Lake, Run], JobResult]


def prepare(name: str, config: Config, selection: Selection) -> Prepared:
    """Check all that a job needs that can be checked without Spark; raises what the job's own checks raise."""
    if name == "crawl":
        crawl.validate(config)
        return Prepared(
            name=name, outputs={}, pins=crawl.pins, run=lambda spark, lake, run: crawl.run(spark, lake, config, run)
        )
    if name == "featurize":
        due = featurize.due_featurizers(config.featurize)
        return Prepared(
            name=name,
            outputs={one.spec.id: one.fingerprint for one in due},
            pins=featurize.pins,
            run=lambda spark, lake, run: featurize.run(spark, lake, config, run, due, selection),
        )
    return Prepared(
        name=name, outputs={}, pins=check.pins, run=lambda spark, lake, run: check.run(spark, lake, config, run)
    )
