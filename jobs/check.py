"""`lakelens check`: the gates over the rows that no accepted run covers. Knows tables and rules, no model."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurizers.spec import KINDS
from jobs.config import Config
from jobs.expectations import Suite, describe_failure, validate
from jobs.gates import IS_PAGE, UNREAD, rules_of
from jobs.lake import REPORTS, Lake, read, repeated, version
from jobs.progress import unseen
from jobs.runs import (
    JobResult,
    Run,
    RunRefused,
    covered_run_ids,
    executing,
    finish,
    judge,
    new_run_name,
    run_rows,
    shows_life,
    stored_run_id,
)
from schemas import DOCUMENTS, FEATURES, FETCHES, FRAMES, MEDIA, MENTIONS, Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

JUDGED_JOBS = ("crawl", "featurize")
EXPERIMENT = "experiment"  # featurizes as well, for a comparison
JUDGED_TABLES = (FETCHES, DOCUMENTS, MEDIA, FRAMES, FEATURES, MENTIONS)


class CheckRefused(ValueError):
    """The rows of a run that was named cannot be judged or discarded; the message says why."""


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """A run whose rows are judged; `complete` once it did all that it planned."""

    run_id: str
    owner: str  # of the attempt that ended; another one since means that there are rows nobody judged
    complete: bool
    outputs: Mapping[str, str]  # featurizer -> fingerprint


def judged_runs(
    rows: Sequence[Mapping[str, Any]], covered: Sequence[str], *, now: datetime, expiry_s: float
) -> list[JudgedRun]:
    """The crawl and featurize runs among the rows of `runs` that nothing accepted covers and nobody still executes.

    And experiments whose vectors a featurize run wrote as well: else what they found stays unpublished.
    """
    judged = []
    written = {pair for row in rows if row["job"] in JUDGED_JOBS for pair in (row["outputs"] or {}).items()}
    for row in sorted(rows, key=lambda row: str(row["run_id"])):
        lives = shows_life(row, now=now, expiry_s=expiry_s)
        wanted = row["job"] == EXPERIMENT and written.issuperset((row["outputs"] or {}).items())
        if (row["job"] in JUDGED_JOBS or wanted) and row["run_id"] not in covered and not lives:
            complete = row["status"] not in ("running", "failed")
            outputs = dict(row["outputs"] or {})
            judged.append(JudgedRun(run_id=row["run_id"], owner=row["owner"], complete=complete, outputs=outputs))
    return judged


def _incomplete_frames(spark: SparkSession, features: DataFrame, judged: Sequence[JudgedRun]) -> DataFrame:
    """(media_id, frame, incomplete) of decoded frames that a complete run tried and that lack one of its featurizers.

    A run may have found some of its featurizers' rows already there, so the whole table is searched. The linker,
    which is no featurizer of frames, writes to `mentions`.
    """
    from pyspark.sql import functions as F

    outputs = [
        (run.run_id, featurizer, fingerprint)
        for run in judged
        if run.complete
        for featurizer, fingerprint in run.outputs.items()
        if featurizer.startswith(tuple(f"{kind}_" for kind in KINDS))
    ]
    expected = spark.createDataFrame(outputs, "run_id STRING, featurizer STRING, fingerprint STRING")
    here = features.where(F.col("featurizer").isin(sorted({featurizer for _, featurizer, _ in outputs})))
    tried = here.where(
        F.col("run_id").isin([run.run_id for run in judged]) & F.expr("coalesce(error.stage, '') <> 'decode'")
    )
    due = tried.select("run_id", "media_id", "frame").distinct().join(F.broadcast(expected), on="run_id", how="inner")
    missing = due.join(here.select(*FEATURES.key), on=list(FEATURES.key), how="left_anti")
    return missing.select("media_id", "frame").distinct().withColumn("incomplete", F.lit(True))


def _held_twice(media: DataFrame) -> DataFrame:
    """(media_id, held_twice) of media with a reference and bytes. The crawl writes references to files of their own,
    and only files that hold some are read here; that inline bytes are there is for the decoder to say."""
    from pyspark.sql import functions as F

    both = media.where("pack_uri IS NOT NULL AND content IS NOT NULL")
    return both.select("media_id", F.lit(True).alias("held_twice")).distinct()


def build_suites(
    spark: SparkSession, tables: Mapping[str, DataFrame], judged: Sequence[JudgedRun], *, dims: Mapping[str, int],
    max_error_rate: Mapping[str, float],
) -> list[Suite]:  # fmt: skip
    """A suite for each table, its rows a plan that Spark has not run.

    Judged are the rows of fetches, features and mentions that the judged runs wrote, and all of documents, media and
    frames, which are visible once committed. The documents' error rate counts the pictures and videos that a judged
    crawl attempted: many sound pages would hide that few pictures are, and dead links say nothing of pictures.
    """
    from pyspark.sql import functions as F

    run_ids = [run.run_id for run in judged]
    narrow = {name: df.drop(*UNREAD) for name, df in tables.items()}
    media = narrow["media"].select("media_id", F.lit(True).alias("media_known")).distinct()
    document = narrow["documents"].select("doc_id", F.lit(True).alias("document_known")).distinct()
    frame = narrow["frames"].select("media_id", "frame", F.lit(True).alias("frame_known")).distinct()
    by_run = F.col("run_id").isin(run_ids)
    attempted = narrow["fetches"].where(by_run).select("doc_id", F.lit(True).alias("attempted")).distinct()
    facts: dict[str, list[tuple[DataFrame, list[str]]]] = {
        "fetches": [(document, ["doc_id"])],
        "documents": [(media, ["media_id"]), (attempted, ["doc_id"])],
        "media": [(_held_twice(tables["media"]), ["media_id"])],
        "frames": [(media, ["media_id"])],
        "features": [
            (media, ["media_id"]),
            (frame, ["media_id", "frame"]),
            (_incomplete_frames(spark, narrow["features"], judged), ["media_id", "frame"]),
        ],
        "mentions": [(document, ["doc_id"])],
    }
    obeyed = "coalesce(error.code, '') IN ('opted_out', 'taken_down')"  # what is not to be had is no fault
    counted = {"documents": f"attempted AND NOT {IS_PAGE} AND NOT {obeyed}", "features": "true", "mentions": "true"}

    def suite(table: Table) -> Suite:
        whole = narrow[table.name]
        rows = whole.where(by_run) if "run_id" in whole.columns else whole
        # keys repeat within the whole table: an unjudged row must not double a published one
        same = whole.join(rows.select(table.key[0]).distinct(), on=table.key[0], how="left_semi")
        repeats = same.groupBy(*table.key).count().where("count > 1").select(*table.key, F.lit(True).alias("repeated"))
        for fact, on in [*facts[table.name], (repeats, list(table.key))]:
            rows = rows.join(fact, on=on, how="left")
        rules = rules_of(table, dims)
        failed = F.expr(f"CASE WHEN {counted.get(table.name, 'false')} THEN int(error IS NOT NULL) END")
        return Suite(
            table=table.name,
            key=table.key,
            rules=rules,
            max_error_rate=max_error_rate.get(table.name),
            rows=rows.select(
                *(F.col(name).alias(f"key_{name}") for name in table.key),
                (failed if "error" in whole.columns else F.lit(None).cast("int")).alias("failed"),
                *(F.expr(f"int(coalesce({rule.breach}, false))").alias(rule.name) for rule in rules),
            ),
        )

    return [suite(table) for table in JUDGED_TABLES]


def vector_lengths(config: Config) -> dict[str, int]:
    """The length of each known featurizer's vectors, configured models and the linker included, by id."""
    from featurizers.linking import LINKER_SPEC
    from featurizers.spec import all_specs
    from jobs.work import configured_spec

    configured = [configured_spec(name, config.featurize) for name in config.featurize.featurizers]
    return {spec.id: spec.dim for spec in [LINKER_SPEC, *all_specs(), *configured]}


def reports_folder(lake: Lake, run_id: str) -> Path:
    """Where a run's report and gate results go: in the lake where that is local, else a temporary folder."""
    local = lake.local_folder()
    return (Path(local) / REPORTS if local is not None else _temporary_reports()) / run_id


@functools.cache
def _temporary_reports() -> Path:
    return Path(tempfile.mkdtemp(prefix="lakelens-"))


def pins(spark: SparkSession, lake: Lake) -> dict[str, int]:
    """Versions of the judged tables when the check starts."""
    return {table.name: version(spark, lake, table) for table in JUDGED_TABLES}


def run(spark: SparkSession, lake: Lake, config: Config, run: Run, *, only: Sequence[str] = ()) -> JobResult:
    """Judge what no accepted run covers, or `only` runs of it; they are accepted or rejected together.

    Raises CheckRefused where one of `only` is not there or lives. Data docs and `gates.json` go to
    `<lake>/reports/<run_id>/gates`; the JSON holds every outcome with its rows.
    """
    covered = [row.run_id for row in covered_run_ids(spark, lake).collect()]
    now = datetime.now(UTC)
    judged = judged_runs(run_rows(spark, lake), covered, now=now, expiry_s=config.featurize.lease_expiry_s)
    if only:
        if unknown := sorted({*only} - {*covered} - {one.run_id for one in judged}):
            raise CheckRefused(
                f"run {unknown[0]} cannot be judged: it is no crawl or featurize run of {lake.uri} that ended"
            )
        judged = [one for one in judged if one.run_id in only]
    run_ids = [one.run_id for one in judged]
    if not judged:
        return JobResult(status="accepted", message="nothing to judge: an accepted run covers all there is")
    run.progress(f"judging {', '.join(run_ids)}")
    # Read after the runs were listed: what a run committed before it ended is seen, and nothing unjudged is covered.
    tables = {table.name: read(spark, lake, table) for table in JUDGED_TABLES}
    suites = build_suites(
        spark,
        tables,
        judged,
        dims=vector_lengths(config),
        max_error_rate=config.check.max_error_rate.model_dump(),
    )
    folder = reports_folder(lake, run.run_id) / "gates"
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = validate(suites, folder)
    failures = [outcome for outcome in outcomes if not outcome.passed]
    status: Any = "rejected" if failures else "accepted"
    described = {
        "run_id": run.run_id,
        "status": status,
        "judged_at": now.isoformat(),
        "covers": run_ids,
        "expectations": [asdict(outcome) for outcome in outcomes],
    }
    (folder / "gates.json").write_text(json.dumps(described, indent=1, allow_nan=False) + "\n")
    run.check_owned()
    owners = {one.run_id: one.owner for one in judged}
    marked = judge(spark, lake, owners, status, expiry_s=config.featurize.lease_expiry_s)
    if resumed := sorted(set(run_ids) - set(marked)):
        raise RunRefused(f"run {', '.join(resumed)} was resumed while it was judged; check again when it has ended")
    n_rows = {outcome.table: outcome.n_rows for outcome in outcomes}
    if failures:
        message = f"rejected {', '.join(run_ids)}: " + "; ".join(map(describe_failure, failures))
    else:
        counts = ", ".join(f"{n} {table}" for table, n in n_rows.items())
        message = f"accepted {', '.join(run_ids)}: {len(outcomes)} expectations hold over {counts}"
    return JobResult(
        status=status,
        message=message,
        metrics={"expectations": len(outcomes), "expectations_failed": len(failures)},
        covers=run_ids,
        artifacts=[str(folder)],
    )


def discard(spark: SparkSession, lake: Lake, config: Config, run_id: str) -> dict[str, int]:
    """Remove the rows of a rejected or failed run from features and mentions, under the lease of what it writes.

    Returns the rows removed by table. Raises CheckRefused for a run that is not there, published or alive, and
    RunRefused where another run is writing the same features.
    """
    rows = [row for row in run_rows(spark, lake) if row["run_id"] == run_id]
    covered = [row.run_id for row in covered_run_ids(spark, lake).collect()]
    if not rows:
        raise CheckRefused(f"run {run_id!r} is not known in {lake.uri}; `lakelens tables` lists the runs")
    if run_id in covered:
        raise CheckRefused(f"run {run_id} is published; only what no accepted run covers can be discarded")
    now = datetime.now(UTC)
    if not judged_runs(rows, covered, now=now, expiry_s=config.featurize.lease_expiry_s):
        raise CheckRefused(
            f"run {run_id} ({rows[0]['job']}) is {rows[0]['status']}; discarded are crawl and featurize runs that ended"
        )
    with executing(
        spark,
        lake,
        run_id=stored_run_id(new_run_name(now), "discard"),
        job="discard",
        inputs={},
        outputs=rows[0]["outputs"] or {},
        config_digest=config.digest(),
        heartbeat_s=config.featurize.heartbeat_s,
        expiry_s=config.featurize.lease_expiry_s,
        progress=unseen,
    ) as run:
        removed = {}
        for table in (FEATURES, MENTIONS):
            run.check_owned()
            removed[table.name] = _delete(spark, lake, table, run_id)
        counts = ", ".join(f"{n} {table}" for table, n in removed.items())
        result = JobResult(
            status="finished", message=f"discarded {counts} of {run_id}", outputs=rows[0]["outputs"] or {}
        )
        finish(spark, lake, run, result, mlflow_run_id=None)
    return removed


def _delete(spark: SparkSession, lake: Lake, table: Table, run_id: str) -> int:
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    rows = F.col("run_id") == run_id
    n_rows = read(spark, lake, table).where(rows).count()
    if n_rows:
        repeated(lambda: DeltaTable.forPath(spark, lake.table(table)).delete(rows))
    return n_rows
