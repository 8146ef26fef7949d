"""What a crawl changes in documents and hosts, by MERGE: descriptions, states, takedowns. Knows no task and no plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.lake import Lake, read, repeated
from jobs.runs import Run
from jobs.sources import DESCRIPTION
from jobs.taken_down import NOTHING_TAKEN_DOWN, Takedowns
from jobs.urls import canonical_url, doc_id
from schemas import DOCUMENTS, HOSTS
from schemas.errors import ErrorCode
from schemas.table import Table, schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

NOT_YET = "seen, and not fetched yet"
# Of a document that must not be had any more, what is forgotten.
HAD = ("media_type", "media_id", "final_url", "etag", "last_modified", "next_fetch_at", "recrawl_s", "moved_to")
PAGE_REFUSES = "the page that shows it says so"
MAX_LISTED_BUCKETS = 200  # host buckets written into the MERGE condition; beyond, most files are touched anyway
_TAKEN_DOWN = pa.schema([("doc_id", pa.string()), ("host_bucket", pa.int32()), ("reason", pa.string())])


def merge_documents(spark: SparkSession, lake: Lake, staged: DataFrame) -> None:
    source = staged.select(*DOCUMENTS.columns.names, "is_unchanged", "is_final", "was_opted_out", "was_fetched_at")
    times: dict[str, str | Column] = {
        "fetched_at": "coalesce(s.fetched_at, t.fetched_at)",
        "next_fetch_at": "s.next_fetch_at",
        "n_gone": "s.n_gone",
        # Where it has moved to stays until that was asked.
        "moved_to": "IF(s.error.code <=> 'deferred', coalesce(s.moved_to, t.moved_to), s.moved_to)",
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
        # A wave committed late does not undo what another run has seen since; a page that has refused it since it was
        # planned is obeyed; what was had before outlives an error that is not final.
        is_newer = "(t.fetched_at IS NULL OR coalesce(s.fetched_at, s.was_fetched_at) >= t.fetched_at)"
        obeyed = merge.whenMatchedUpdate(
            condition="t.opted_out AND NOT s.opted_out AND NOT s.was_opted_out", set={"fetched_at": times["fetched_at"]}
        )
        unchanged = obeyed.whenMatchedUpdate(
            condition=f"{is_newer} AND s.is_unchanged", set=_description() | times | same
        )
        was_had = "t.fetched_at IS NOT NULL AND t.error IS NULL"
        keeps = f"{is_newer} AND s.error IS NOT NULL AND NOT s.is_final AND {was_had}"
        kept = unchanged.whenMatchedUpdate(condition=keeps, set=_description() | times)
        replaced = kept.whenMatchedUpdate(condition=is_newer, set=state | _description() | times)
        return replaced.whenNotMatchedInsert(values={name: f"s.{name}" for name in DOCUMENTS.columns.names})

    _merge(spark, lake, DOCUMENTS, "doc_id", source, clauses)


def merge_found(spark: SparkSession, lake: Lake, seen: DataFrame) -> None:
    """Write rows of `SIGHTINGS` that are asked for over HTTP into the frontier; what refuses to be had is not kept.

    Of a document that is known they say what nobody has said, or what the same page says otherwise now: pages that show
    the same picture, or a list that names it, do not take it from each other in turn.
    """
    from pyspark.sql import functions as F

    columns = [name for name in DOCUMENTS.columns.names if name in seen.columns]
    asked_for = seen.where("root IS NULL AND problem IS NULL")
    source = asked_for.select(*columns, "opted_out_by", F.col("expects").alias("media_type"))
    new: dict[str, str | Column] = {name: f"s.{name}" for name in (*columns, "media_type")} | {"n_gone": F.lit(0)}
    new["next_fetch_at"] = F.when(~F.col("s.opted_out"), F.lit(datetime.now(UTC)))
    is_refused = F.col("s.opted_out")
    new["error"] = F.struct(
        F.lit("fetch").alias("stage"),
        F.when(is_refused, str(ErrorCode.OPTED_OUT)).otherwise(str(ErrorCode.DEFERRED)).alias("code"),
        F.when(is_refused, F.coalesce("s.opted_out_by", F.lit(PAGE_REFUSES))).otherwise(NOT_YET).alias("detail"),
    )
    is_same_page = "t.source = s.source AND t.page_url <=> s.page_url"
    is_page = "t.depth IS NOT NULL"  # which others lead to as well
    said: dict[str, str | Column] = {
        name: f"CASE WHEN {is_page} THEN t.{name} WHEN {is_same_page} THEN coalesce(s.{name}, t.{name})"
        f" ELSE coalesce(t.{name}, s.{name}) END"
        for name in DESCRIPTION
    }
    differs = " OR ".join(f"NOT (t.{name} <=> {value})" for name, value in said.items())
    refused = said | {name: F.lit(None) for name in HAD} | {"opted_out": F.lit(True), "error": new["error"]}

    def clauses(merge: Any) -> Any:
        refuses = merge.whenMatchedUpdate(condition="s.opted_out AND NOT t.opted_out", set=refused)
        describes = refuses.whenMatchedUpdate(condition=differs, set=said)
        return describes.whenNotMatchedInsert(values=new)

    _merge(spark, lake, DOCUMENTS, "doc_id", source, clauses)


def merge_hosts(spark: SparkSession, lake: Lake, run: Run, staged: DataFrame) -> None:
    """Write what tasks found out about hosts; a wave that is committed twice counts their requests once."""
    from pyspark.sql import functions as F

    found = staged.where("state IS NOT NULL").select("host_bucket", "state.*")
    # A host is one task's; a second row of it would fail this MERGE for ever.
    found = found.groupBy("host").agg(F.max_by(F.struct(*found.columns), "last_asked_at").alias("one")).select("one.*")
    found = found.cache()
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


def describe(spark: SparkSession, lake: Lake, described: DataFrame) -> None:
    """Write what sightings newly say of documents that are not fetched."""
    source = described.select("doc_id", "host_bucket", "source", *DESCRIPTION)
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
    """Of batches of (doc_id, host_bucket, host, media_id, final_url) those that are taken down, with the reason."""
    for batch in batches:
        rows = []
        for row in batch.to_pylist():
            there = canonical_url(row["final_url"]) if row["final_url"] is not None else None
            reason = taken_down.of_url(row["doc_id"], row["host"]) or taken_down.of_hash(row["media_id"] or "")
            if reason is None and there is not None:
                reason = taken_down.of_url(doc_id(there.href), there.host)
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
    found = known.select("doc_id", "host_bucket", "host", "media_id", "final_url").mapInArrow(
        lambda batches: taken_down_batches(batches, taken_down), schema_ddl(_TAKEN_DOWN)
    )
    found = found.cache()
    try:
        n_found = found.count()
        marked: dict[str, str | Column] = {name: F.lit(None) for name in HAD}
        marked["error"] = "named_struct('stage', 'fetch', 'code', 'taken_down', 'detail', substr(s.reason, 1, 200))"
        if n_found:
            _merge(spark, lake, DOCUMENTS, "doc_id", found, lambda merge: merge.whenMatchedUpdate(set=marked))
        return n_found
    finally:
        found.unpersist()
