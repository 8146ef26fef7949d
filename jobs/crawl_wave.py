"""One wave of a crawl: fetched by tasks, staged once, committed to tables. Knows tables, not what is due."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.commit import find_commit, last_transaction, log_entries
from jobs.config import Config
from jobs.crawl_merges import PAGE_REFUSES, merge_documents, merge_found, merge_hosts
from jobs.fetch import fetch, held_by
from jobs.fetch_settings import Settings
from jobs.frontier import PLANNED, REFUSAL, any_refusal, within_budgets
from jobs.hosts import HostState
from jobs.lake import Lake, append, concurrency_errors, file_system, read, repeated, version
from jobs.log import logged
from jobs.outcomes import Outcome, Request
from jobs.runs import Run, RunTakenOver
from jobs.sources import SIGHTINGS
from jobs.taken_down import Takedowns
from jobs.urls import doc_id, host_bucket, registrable
from schemas import DOCUMENTS, FETCHES, HOSTS, MEDIA
from schemas.errors import Error, ErrorCode, error
from schemas.table import schema_ddl, spark_type

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BATCH_BYTES = 4 << 20  # of one Arrow batch to Spark: design, measured fastest for rows of 100 KB
BATCH_ROWS = 1000
READ_TOGETHER = 64 << 20  # bytes of an archive that one task reads in a row
ROWS_TOGETHER = 10_000  # of a table

_HELD = ("content", "pack_uri", "offset", "length", "size_bytes")
_FACTS = ("mime", "width", "height", "duration_s", "taken_at", "latitude", "longitude", "camera")
_ATTEMPT = pa.struct([f for f in FETCHES.columns if f.name not in ("doc_id", "run_id", "attempt", "url")])
_STATE = pa.struct([f for f in HOSTS.columns if f.name not in ("host_bucket", "first_seen_at", "run_id")])
# What a task is given: the documents of its hosts, and a row without doc_id for each host that is known.
GIVEN = pa.schema([*PLANNED, pa.field("state", _STATE)])
# What it gives: a row for each document with its next state, the bytes or where they are if there are any, and all
# attempts; and a row without doc_id for each host that it asked.
STAGED = pa.schema(
    [
        *(pa.field(f.name, f.type) for f in DOCUMENTS.columns),
        *(pa.field(name, MEDIA.columns.field(name).type) for name in (*_HELD, *_FACTS)),
        pa.field("is_unchanged", pa.bool_()),
        pa.field("is_final", pa.bool_()),
        pa.field("attempts", pa.list_(_ATTEMPT)),
        *(PLANNED.field(name) for name in ("n_attempts", "was_opted_out", "was_fetched_at")),
        pa.field("found", pa.list_(pa.struct([f for f in SIGHTINGS if f.name != "ordinal"]))),
        pa.field("state", _STATE),
    ]
)


# -- one task -----------------------------------------------------------------------------------------------------


def staged_row(planned: Mapping[str, Any], outcome: Outcome | None, problem: Error | None = None) -> dict[str, Any]:
    """The staged row of a planned document; without an `outcome` nothing was asked, for the reason in `problem`."""
    row: dict[str, Any] = {name: planned.get(name) for name in DOCUMENTS.columns.names}
    row |= dict.fromkeys(("media_id", "final_url", "etag", "last_modified"))
    row["media_type"] = planned["expects"]  # a page or sitemap, also where it was not had
    row |= {name: planned[name] for name in ("n_attempts", "was_opted_out", "was_fetched_at")}
    row |= {"attempts": [], "is_unchanged": False, "is_final": True}
    if outcome is None:
        is_opt_out = problem is not None and problem["code"] == ErrorCode.OPTED_OUT
        return row | {"error": problem, "opted_out": is_opt_out, "n_gone": 0}
    is_file = planned["root"] is not None
    last = outcome.attempts[-1] if outcome.attempts else None
    was_had = last if outcome.error is None else None  # an error's ETag says nothing of what is wanted
    return row | {
        "media_type": outcome.facts.media_type if outcome.held is not None else planned["expects"],
        "media_id": outcome.held and outcome.held.media_id,
        "final_url": was_had.final_url if was_had and was_had.final_url != planned["url"] else None,
        "moved_to": outcome.moved_to,
        "etag": planned["version"] if is_file else was_had and was_had.etag,
        "last_modified": planned["changed_at"] if is_file else was_had and was_had.last_modified,
        "fetched_at": last and last.started_at,
        "next_fetch_at": outcome.next_fetch_at,
        "recrawl_s": outcome.recrawl_s,
        "n_gone": outcome.n_gone,
        "opted_out": outcome.opted_out,
        "error": outcome.error,
        **{name: getattr(outcome.held, name, None) for name in _HELD},
        **{name: getattr(outcome.facts, name) for name in _FACTS},
        "is_unchanged": outcome.is_unchanged,
        "is_final": outcome.is_final,
        "attempts": [vars(attempt) for attempt in outcome.attempts],
        "found": None if outcome.found is None else [vars(one) for one in outcome.found],
    }


def refusal(planned: Mapping[str, Any], taken_down: Takedowns) -> Error | None:
    """Why a planned document is not asked for at all.

    A URL that cannot be fetched is `http_client_error`: like HTTP 400, the request itself is wrong and trying again is
    no use.
    """
    if planned["problem"] is not None:
        return error(ErrorCode.HTTP_CLIENT_ERROR, planned["problem"])
    if planned["opted_out"]:
        return error(ErrorCode.OPTED_OUT, planned["opted_out_by"] or PAGE_REFUSES)
    reason = taken_down.of_url(planned["doc_id"], planned["host"])
    if reason is None and planned["fetch_url"] != planned["url"]:
        reason = taken_down.of_url(doc_id(planned["fetch_url"]), planned["fetch_host"])
    return error(ErrorCode.TAKEN_DOWN, reason) if reason is not None else None


def request_of(planned: Mapping[str, Any]) -> Request:
    """What to ask for."""
    names = [field.name for field in fields(Request)]
    named = {"url": planned["fetch_url"], "host": planned["fetch_host"]}
    return Request(**{name: planned[name] for name in names if name not in named}, **named)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of a host the highest priority first, what has failed before last; of an archive as it lies there."""
    return row["root"] or "", row["offset"] or 0, -row["priority"], row["has_failed"], row["ordinal"]


def fetch_batches(batches: Iterable[pa.RecordBatch], settings: Settings) -> Iterator[pa.RecordBatch]:
    """Batches of `GIVEN` to batches of `STAGED`; all of a registrable domain must come in one call."""
    given = [row for batch in batches for row in batch.to_pylist()]
    states = [row["state"] for row in given if row["doc_id"] is None]
    known = [HostState(**{name: value for name, value in state.items() if name != "domain"}) for state in states]
    planned = {row["doc_id"]: row for row in given if row["doc_id"] is not None}
    del given
    rows, requests = [], []
    for row in sorted(planned.values(), key=_place):
        if (refused := refusal(row, settings.taken_down)) is not None:
            rows.append(staged_row(row, None, refused))
        else:
            requests.append(request_of(row))
    n_bytes = 0
    for one in fetch(requests, settings, known):
        if isinstance(one, HostState):
            state = vars(one) | {"domain": registrable(one.host)}
            rows.append({"host_bucket": host_bucket(one.host), "state": state})
        else:
            rows.append(staged_row(planned[one.request.doc_id], one))
            n_bytes += held_by(one)
        if n_bytes >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema=STAGED)
            rows, n_bytes = [], 0
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=STAGED)


# -- waves --------------------------------------------------------------------------------------------------------


def application(run: Run) -> str:
    """Delta's transaction application id of a crawl run; its versions number the run's waves."""
    return f"crawl#{run.run_id}"


def wave_uri(lake: Lake, run: Run, transaction: int) -> str:
    """Where a wave is staged."""
    return f"{lake.staging(run.run_id)}/wave={transaction}"


def stage_wave(spark: SparkSession, lake: Lake, planned: DataFrame, settings: Settings, uri: str) -> None:
    """Fetch the planned documents, each registrable domain in one task with what is known of its hosts, into `uri`."""
    from pyspark.sql import functions as F

    n_tasks = max(1, spark.sparkContext.defaultParallelism)
    at_once = F.when(F.col("held_as") == "parquet", ROWS_TOGETHER).otherwise(READ_TOGETHER)
    member = F.concat_ws(":", "root", F.floor(F.col("offset") / at_once))
    held = F.when(F.col("offset").isNull(), F.col("doc_id")).otherwise(member)
    rows = planned.select(
        *PLANNED.names,
        F.lit(None).cast(spark_type(_STATE)).alias("state"),
        F.when(F.col("root").isNull(), F.col("domain")).otherwise(held).alias("together"),
    )
    asked = planned.where("root IS NULL").select("domain").distinct()
    known = read(spark, lake, HOSTS).join(F.broadcast(asked), on="domain", how="left_semi")  # redirects lead to any
    states = known.select(
        *(F.lit(None).cast(spark_type(field.type)).alias(field.name) for field in PLANNED),
        F.struct(*(field.name for field in _STATE)).alias("state"),
        F.col("domain").alias("together"),
    )
    given = rows.unionByName(states).repartition(n_tasks, "together").select(*GIVEN.names)

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        is_again = context is not None and context.attemptNumber() > 0  # hosts may have been asked a moment ago
        return logged(fetch_batches(batches, replace(settings, is_resumed=settings.is_resumed or is_again)), "fetched")

    fetched = given.mapInArrow(task, schema_ddl(STAGED))
    # Rows may be a hundred megabytes: the sizes of row groups and pages are looked at after each, not each hundredth.
    checks = {"parquet.block.size.row.check.min": "1", "parquet.page.size.row.check.min": "1"}
    fetched.write.mode("overwrite").options(**checks, compression="none").parquet(uri)  # most of it is pictures


def commit_wave(spark: SparkSession, lake: Lake, config: Config, run: Run, transaction: int) -> None:
    """Commit a staged wave to media, fetches, documents and hosts; each step is done once however often it is begun.

    What pages lead to is in `documents` before the pages are: an unchanged one does not tell it again.
    """
    staged = spark.read.schema(schema_ddl(STAGED)).parquet(wave_uri(lake, run, transaction))
    run.check_owned()
    repeated(lambda: append(new_media(staged, read(spark, lake, MEDIA)), lake, MEDIA, owner=run.owner))
    run.check_owned()
    _append_fetches(spark, lake, run, staged, transaction)
    run.check_owned()
    if staged.where("size(found) > 0").limit(1).collect():
        merge_found(spark, lake, within_budgets(spark, lake, config, found(staged)))
        run.check_owned()
    merge_documents(spark, lake, staged.where("doc_id IS NOT NULL"))
    run.check_owned()
    merge_hosts(spark, lake, run, staged)


def new_media(staged: DataFrame, media: DataFrame) -> DataFrame:
    """The rows of `media` for content that is staged and not there yet, each once; moves no bytes between tasks.

    Those held by reference come last and in one part, so that a file has either bytes or references: who reads or
    checks references reads no bytes.
    """
    from pyspark.sql import functions as F

    ids = staged.where("media_id IS NOT NULL").groupBy("media_id").agg(F.min("doc_id").alias("doc_id"))
    known = media.select("media_id").join(F.broadcast(ids.select("media_id")), on="media_id", how="left_semi")
    new = ids.join(known, on="media_id", how="left_anti")  # in two steps: the ids of all media are read, not shuffled

    def rows(staged: DataFrame) -> DataFrame:
        found = staged.join(F.broadcast(new), on=["media_id", "doc_id"], how="left_semi")
        return found.withColumn("ingested_at", F.col("fetched_at")).select(*MEDIA.columns.names)

    references = staged.where("pack_uri IS NOT NULL").withColumn("content", F.lit(None).cast("binary"))
    return rows(staged.where("pack_uri IS NULL")).unionByName(rows(references).coalesce(1))


def _append_fetches(spark: SparkSession, lake: Lake, run: Run, staged: DataFrame, transaction: int) -> None:
    from pyspark.sql import functions as F

    if last_transaction(spark, lake, FETCHES, application(run)) >= transaction:
        return  # an attempt before this one got that far
    attempts = staged.select("doc_id", "url", "n_attempts", F.posexplode("attempts").alias("place", "attempt_facts"))
    rows = attempts.select(
        "doc_id",
        F.lit(run.run_id).alias("run_id"),
        (F.col("n_attempts") + F.col("place") + 1).cast("int").alias("attempt"),
        "url",
        "attempt_facts.*",
    )
    before = version(spark, lake, FETCHES)
    with suppress(*concurrency_errors()):  # the log tells whether it was lost
        append(rows, lake, FETCHES, app_id=application(run), transaction=transaction, owner=run.owner)
    commit = find_commit(log_entries(spark, lake, FETCHES, after=before), application(run), transaction)
    if commit is None or commit.owner != run.owner:
        raise RunTakenOver(f"wave {transaction} of run {run.run_id} was committed by another attempt; this one stops")


def found(staged: DataFrame) -> DataFrame:
    """What pages and sitemaps lead to, as rows of `SIGHTINGS`, each document once; any page may refuse it."""
    from pyspark.sql import functions as F

    rows = staged.select(F.explode("found").alias("one")).select("one.*")
    # What is a page and a picture is a page; of a picture what says something of it comes first.
    order = F.struct(F.col("expects").isNull(), "depth", F.col("caption").isNull(), "page_url")
    one = F.min_by(F.struct(*rows.columns), order).alias("one")
    each = rows.groupBy("doc_id").agg(one, *any_refusal())
    names = [name for name in SIGHTINGS.names if name not in (*REFUSAL, "ordinal")]
    each = each.select(F.lit(0).cast("long").alias("ordinal"), *(f"one.{name}" for name in names), *REFUSAL)
    return each.select(*SIGHTINGS.names)


def staged_waves(spark: SparkSession, lake: Lake, run: Run) -> list[int]:
    """The transactions of the waves that an attempt before this one staged whole, in order."""
    fs, root = file_system(spark, lake.staging(run.run_id))
    names = [status.getPath().getName() for status in fs.listStatus(root)] if fs.exists(root) else []
    waves = sorted(int(name.partition("=")[2]) for name in names if name.startswith("wave="))
    return [wave for wave in waves if fs.exists(file_system(spark, f"{wave_uri(lake, run, wave)}/_SUCCESS")[1])]
