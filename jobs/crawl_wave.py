"""One wave of a crawl: fetched by tasks, staged once, committed to tables. Knows tables, not what is due."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.commit import find_commit, last_transaction, log_entries
from jobs.fetch import Settings, fetch
from jobs.frontier import DESCRIPTION, PLANNED
from jobs.hosts import HostState
from jobs.lake import Lake, append, concurrency_errors, file_system, read, repeated, version
from jobs.log import logged
from jobs.outcomes import Outcome, Request
from jobs.runs import Run, RunTakenOver
from jobs.taken_down import NOTHING_TAKEN_DOWN, Takedowns
from jobs.urls import canonical_url, host_bucket
from schemas import DOCUMENTS, FETCHES, HOSTS, MEDIA
from schemas.errors import RETRYABLE, Error, ErrorCode, error
from schemas.table import Table, schema_ddl, spark_type

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_TAKEN_DOWN = pa.schema([("doc_id", pa.string()), ("host_bucket", pa.int32()), ("reason", pa.string())])
BATCH_BYTES = 4 << 20  # of one Arrow batch to Spark: design, measured fastest for rows of 100 KB
BATCH_ROWS = 1000
READ_TOGETHER = 64 << 20  # bytes of an archive that one task reads in a row
ROWS_TOGETHER = 10_000  # of a table
MAX_LISTED_BUCKETS = 200  # host buckets written into the MERGE condition; beyond, most files are touched anyway

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
        pa.field("attempts", pa.list_(_ATTEMPT)),
        *(pa.field(name, PLANNED.field(name).type) for name in ("n_attempts", "n_redirects")),
        pa.field("moved_to", pa.string()),
        pa.field("moved_host", pa.string()),
        pa.field("state", _STATE),
    ]
)


# -- one task -----------------------------------------------------------------------------------------------------


def staged_row(planned: Mapping[str, Any], outcome: Outcome | None, problem: Error | None = None) -> dict[str, Any]:
    """The staged row of a planned document; without an `outcome` nothing was asked, for the reason in `problem`."""
    row: dict[str, Any] = {name: planned.get(name) for name in DOCUMENTS.columns.names}
    row |= {"media_id": None, "etag": None, "last_modified": None, "opted_out": False, "attempts": []}
    row |= {name: planned[name] for name in ("n_gone", "n_attempts", "n_redirects")} | {"is_unchanged": False}
    if outcome is None:
        is_opt_out = problem is not None and problem["code"] == ErrorCode.OPTED_OUT
        return row | {"error": problem, "opted_out": is_opt_out}
    is_file = planned["root"] is not None
    last = outcome.attempts[-1] if outcome.attempts else None
    return row | {
        "media_type": outcome.facts.media_type if outcome.held is not None else None,
        "media_id": outcome.held and outcome.held.media_id,
        "etag": planned["version"] if is_file else last and last.etag,
        "last_modified": planned["changed_at"] if is_file else last and last.last_modified,
        "fetched_at": last and last.started_at,
        "next_fetch_at": outcome.next_fetch_at,
        "recrawl_s": outcome.recrawl_s,
        "n_gone": outcome.n_gone,
        "opted_out": outcome.opted_out,
        "error": outcome.error,
        **{name: getattr(outcome.held, name, None) for name in _HELD},
        **{name: getattr(outcome.facts, name) for name in _FACTS},
        "is_unchanged": outcome.is_unchanged,
        "attempts": [asdict(attempt) for attempt in outcome.attempts],
        "n_redirects": outcome.request.n_redirects,
        "moved_to": outcome.moved_to,
        "moved_host": canonical_url(outcome.moved_to).host if outcome.moved_to is not None else None,
    }


def refusal(planned: Mapping[str, Any], taken_down: Takedowns) -> Error | None:
    """Why a planned document is not asked for at all.

    A URL that cannot be fetched is `http_client_error`: like HTTP 400, the request itself is wrong and trying again is
    no use.
    """
    if planned["problem"] is not None:
        return error(ErrorCode.HTTP_CLIENT_ERROR, planned["problem"])
    if planned["opted_out"]:
        return error(ErrorCode.OPTED_OUT, "the page that shows it says so")
    if (reason := taken_down.of_url(planned["doc_id"], planned["host"])) is not None:
        return error(ErrorCode.TAKEN_DOWN, reason)
    return None


def request_of(planned: Mapping[str, Any]) -> Request:
    """What to ask for."""
    names = [field.name for field in fields(Request)]
    named = {"url": planned["fetch_url"], "host": planned["fetch_host"]}
    return Request(**{name: planned[name] for name in names if name not in named}, **named)


def fetch_batches(batches: Iterable[pa.RecordBatch], settings: Settings) -> Iterator[pa.RecordBatch]:
    """Batches of `GIVEN` to batches of `STAGED`; all of a registrable domain must come in one call."""
    given = [row for batch in batches for row in batch.to_pylist()]
    known = [HostState(**row["state"]) for row in given if row["doc_id"] is None]
    planned = {row["doc_id"]: row for row in given if row["doc_id"] is not None}
    del given
    rows, requests = [], []
    # Of a host the highest priority first, then in the order of the sources; of an archive as it lies there.
    for row in sorted(
        planned.values(), key=lambda row: (row["root"] or "", row["offset"] or 0, -row["priority"], row["ordinal"])
    ):
        if (refused := refusal(row, settings.taken_down)) is not None:
            rows.append(staged_row(row, None, refused))
        else:
            requests.append(request_of(row))
    n_bytes = 0
    for one in fetch(requests, settings, known):
        if isinstance(one, HostState):
            rows.append({"host_bucket": host_bucket(one.host), "state": asdict(one)})
        else:
            rows.append(staged_row(planned[one.request.doc_id], one))
            n_bytes += len(one.content or b"")
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
    asked = planned.where("root IS NULL").select(F.col("fetch_host").alias("host"), "domain").distinct()
    known = read(spark, lake, HOSTS).join(asked, on="host", how="inner")
    states = known.select(
        *(F.lit(None).cast(spark_type(field.type)).alias(field.name) for field in PLANNED),
        F.struct(*(field.name for field in _STATE)).alias("state"),
        F.col("domain").alias("together"),
    )
    given = rows.unionByName(states).repartition(n_tasks, "together").select(*GIVEN.names)
    fetched = given.mapInArrow(lambda batches: logged(fetch_batches(batches, settings), "fetched"), schema_ddl(STAGED))
    # Rows may be a hundred megabytes: the sizes of row groups and pages are looked at after each, not each hundredth.
    checks = {"parquet.block.size.row.check.min": "1", "parquet.page.size.row.check.min": "1"}
    fetched.write.mode("overwrite").options(**checks).parquet(uri)


def commit_wave(spark: SparkSession, lake: Lake, run: Run, transaction: int) -> None:
    """Commit a staged wave to media, fetches and documents; each step is done once however often it is begun."""
    staged = spark.read.schema(schema_ddl(STAGED)).parquet(wave_uri(lake, run, transaction))
    run.check_owned()
    repeated(lambda: append(new_media(staged, read(spark, lake, MEDIA)), lake, MEDIA, owner=run.owner))
    run.check_owned()
    _append_fetches(spark, lake, run, staged, transaction)
    run.check_owned()
    _merge_documents(spark, lake, staged.where("doc_id IS NOT NULL"))
    run.check_owned()
    _merge_hosts(spark, lake, run, staged)


def new_media(staged: DataFrame, media: DataFrame) -> DataFrame:
    """The rows of `media` for content that is staged and not there yet, each once; moves no bytes between tasks.

    Those held by reference come last and in one part, so that a file has either bytes or references: who reads or
    checks references reads no bytes.
    """
    from pyspark.sql import functions as F

    ids = staged.where("media_id IS NOT NULL").groupBy("media_id").agg(F.min("doc_id").alias("doc_id"))
    new = ids.join(media.select("media_id"), on="media_id", how="left_anti")

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


def _merge_documents(spark: SparkSession, lake: Lake, staged: DataFrame) -> None:
    source = staged.select(*DOCUMENTS.columns.names, "is_unchanged")
    codes = ", ".join(f"'{code}'" for code in sorted(RETRYABLE))
    times: dict[str, str | Column] = {
        "fetched_at": "coalesce(s.fetched_at, t.fetched_at)",
        "next_fetch_at": "s.next_fetch_at",
        "n_gone": "s.n_gone",
    }
    same: dict[str, str | Column] = {
        "etag": "coalesce(s.etag, t.etag)",
        "last_modified": "coalesce(s.last_modified, t.last_modified)",
        "recrawl_s": "s.recrawl_s",
        "error": "s.error",
    }
    state: dict[str, str | Column] = {
        name: f"s.{name}" for name in DOCUMENTS.columns.names if name not in ("doc_id", "host_bucket")
    }

    def clauses(merge: Any) -> Any:
        # A wave committed late does not undo what another run has seen since; what was obtained before outlives an
        # error that will be tried again, and a page that is gone until it has been so a few times.
        is_newer = "coalesce(s.fetched_at >= t.fetched_at, true)"
        will_be_tried = f"(s.error.code IN ({codes}) OR (s.error.code = 'not_found' AND s.next_fetch_at IS NOT NULL))"
        unchanged = merge.whenMatchedUpdate(
            condition=f"{is_newer} AND s.is_unchanged", set=_description() | times | same
        )
        keeps = f"{is_newer} AND {will_be_tried} AND t.media_id IS NOT NULL"
        kept = unchanged.whenMatchedUpdate(condition=keeps, set=_description() | times)
        replaced = kept.whenMatchedUpdate(condition=is_newer, set=state | _description() | times)
        return replaced.whenNotMatchedInsert(values={name: f"s.{name}" for name in DOCUMENTS.columns.names})

    _merge(spark, lake, DOCUMENTS, "doc_id", source, clauses)


def _merge_hosts(spark: SparkSession, lake: Lake, run: Run, staged: DataFrame) -> None:
    """Write what tasks found out about hosts; a wave that is committed twice counts their requests once."""
    from pyspark.sql import functions as F

    found = staged.where("state IS NOT NULL").select("host_bucket", "state.*").cache()
    added = ("requests", "errors", "bytes", "wait_s", "busy_s")
    kept = [
        name for name in HOSTS.columns.names if name not in ("host", "host_bucket", "first_seen_at", "run_id", *added)
    ]
    robots = [name for name in kept if name.startswith("robots") or name == "crawl_delay_s"]
    set_: dict[str, str | Column] = {name: f"s.{name}" for name in kept}
    set_ |= {name: f"IF(s.robots_at IS NULL, t.{name}, s.{name})" for name in robots}
    set_ |= {name: f"t.{name} + s.{name}" for name in added} | {"run_id": F.lit(run.run_id)}
    new: dict[str, str | Column] = {name: f"s.{name}" for name in HOSTS.columns.names if name != "run_id"}
    new |= {"first_seen_at": "coalesce(s.last_asked_at, current_timestamp())", "run_id": F.lit(run.run_id)}

    def clauses(merge: Any) -> Any:
        is_newer = "t.last_asked_at IS NULL OR s.last_asked_at > t.last_asked_at"
        return merge.whenMatchedUpdate(condition=is_newer, set=set_).whenNotMatchedInsert(values=new)

    try:
        if not found.isEmpty():
            _merge(spark, lake, HOSTS, "host", found, clauses)
    finally:
        found.unpersist()


def moved(spark: SparkSession, lake: Lake, run: Run, uris: Iterable[str]) -> DataFrame:
    """The documents of staged waves whose answers led to hosts that other tasks ask, as rows of `PLANNED`."""
    from pyspark.sql import functions as F

    rows = spark.read.schema(schema_ddl(STAGED)).parquet(*uris).where("moved_to IS NOT NULL")
    attempts = (F.col("n_attempts") + F.size("attempts")).cast("int").alias("n_attempts")
    led = rows.select(
        "doc_id", F.col("moved_to").alias("fetch_url"), F.col("moved_host").alias("fetch_host"), attempts, "n_redirects"
    )
    known = read(spark, lake, DOCUMENTS).join(F.broadcast(led), on="doc_id", how="inner")
    given = {name for name in PLANNED.names if name in known.columns}
    missing = {"ordinal": F.lit(0), "priority": F.lit(0), "opted_out": F.lit(False)}
    return known.select(
        *(
            F.col(field.name)
            if field.name in given
            else missing.get(field.name, F.lit(None)).cast(spark_type(field.type)).alias(field.name)
            for field in PLANNED
        )
    )


def staged_waves(spark: SparkSession, lake: Lake, run: Run) -> list[int]:
    """The transactions of the waves that an attempt before this one staged whole, in order."""
    fs, root = file_system(spark, lake.staging(run.run_id))
    names = [status.getPath().getName() for status in fs.listStatus(root)] if fs.exists(root) else []
    waves = sorted(int(name.partition("=")[2]) for name in names if name.startswith("wave="))
    return [wave for wave in waves if fs.exists(file_system(spark, f"{wave_uri(lake, run, wave)}/_SUCCESS")[1])]


# -- merges -----------------------------------------------------------------------------------------------------------


def describe(spark: SparkSession, lake: Lake, plan: DataFrame) -> None:
    """Write what sightings newly say of documents that are not fetched."""
    source = plan.where("action = 'describe'").select("doc_id", "host_bucket", "source", *DESCRIPTION)
    _merge(spark, lake, DOCUMENTS, "doc_id", source, lambda merge: merge.whenMatchedUpdate(set=_description()))


def _description() -> dict[str, str | Column]:
    return {"source": "s.source", **{name: f"coalesce(s.{name}, t.{name})" for name in DESCRIPTION}}


def _merge(spark: SparkSession, lake: Lake, table: Table, key: str, source: DataFrame, clauses: Any) -> None:
    from delta.tables import DeltaTable

    buckets = sorted(row["host_bucket"] for row in source.select("host_bucket").distinct().collect())
    condition = f"t.{key} = s.{key} AND t.host_bucket = s.host_bucket"
    if len(buckets) <= MAX_LISTED_BUCKETS:
        condition += f" AND t.host_bucket IN ({', '.join(map(str, buckets)) or 'NULL'})"
    target = DeltaTable.forPath(spark, lake.table(table)).alias("t")
    repeated(lambda: clauses(target.merge(source.alias("s"), condition)).execute())


def taken_down_batches(batches: Iterable[pa.RecordBatch], taken_down: Takedowns) -> Iterator[pa.RecordBatch]:
    """Of batches of (doc_id, host_bucket, host, media_id) those that are taken down, with the reason."""
    for batch in batches:
        rows = []
        for row in batch.to_pylist():
            reason = taken_down.of_url(row["doc_id"], row["host"]) or taken_down.of_hash(row["media_id"] or "")
            if reason is not None:
                if row["media_id"] is not None:  # the only word of which bytes are to be removed
                    reason = f"{reason}; it was media {row['media_id']}"
                rows.append({"doc_id": row["doc_id"], "host_bucket": row["host_bucket"], "reason": reason})
        yield pa.RecordBatch.from_pylist(rows, schema=_TAKEN_DOWN)


def mark_taken_down(spark: SparkSession, lake: Lake, taken_down: Takedowns) -> int:
    """Mark what the lake knows and must not have any more; how many documents there were."""
    from pyspark.sql import functions as F

    if taken_down == NOTHING_TAKEN_DOWN:
        return 0
    known = read(spark, lake, DOCUMENTS).where("NOT error.code <=> 'taken_down'")
    found = known.select("doc_id", "host_bucket", "host", "media_id").mapInArrow(
        lambda batches: taken_down_batches(batches, taken_down), schema_ddl(_TAKEN_DOWN)
    )
    found = found.cache()
    try:
        n_found = found.count()
        gone = {name: F.lit(None) for name in ("media_type", "media_id", "etag", "last_modified", "next_fetch_at")}
        marked: dict[str, str | Column] = dict(gone)
        marked["error"] = "named_struct('stage', 'fetch', 'code', 'taken_down', 'detail', substr(s.reason, 1, 200))"
        if n_found:
            _merge(spark, lake, DOCUMENTS, "doc_id", found, lambda merge: merge.whenMatchedUpdate(set=marked))
        return n_found
    finally:
        found.unpersist()
