"""`lakelens takedown`: URLs, hosts and hashes that must not come back, and who asks for them. Knows no HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.command import FINISHED, Common, Ending, progress_of
from jobs.lake import Lake, file_system, lake_at, open_lake, read, repeated, version
from jobs.runs import JobResult, Run
from jobs.session import spark_session
from jobs.tables import console, grid
from jobs.taken_down import Takedown, Takedowns, names_of, takedowns_of
from jobs.urls import doc_id
from schemas import DOCUMENTS, TAKEDOWNS
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JOB = "takedown"
MET = pa.schema([("value", pa.string()), ("n", pa.int64())])
STAYS = (
    "the next crawl marks the documents that they meet taken_down; what the lake already holds of them stays until it "
    "is removed, and there is no command that removes it yet"
)


def met_by_host(batches: Iterable[pa.RecordBatch], hosts: frozenset[str]) -> Iterator[pa.RecordBatch]:
    """Batches of hosts with their number of documents (host, n) to those of the entries that speak for them (MET)."""
    for batch in batches:
        met = Counter[str]()
        for row in batch.to_pylist():
            met.update({name: row["n"] for name in names_of(row["host"]) if name in hosts})
        yield pa.RecordBatch.from_pylist([{"value": name, "n": n} for name, n in met.items()], schema=MET)


# -- the table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Added:
    """What became of an entry that was given."""

    entry: Takedown
    added_at: datetime  # the first time
    is_new: bool
    n_documents: int  # of the lake that it meets

    def facts(self) -> dict[str, Any]:
        """It, as JSON holds it."""
        entry = {"kind": self.entry.kind, "value": self.entry.value, "added_at": self.added_at.isoformat()}
        return {**entry, "is_new": self.is_new, "documents": self.n_documents}


def read_takedowns(spark: SparkSession, lake: Lake, *, at: int | None = None) -> Takedowns:
    """All that is taken down, to be asked about. at: the version of the table, None for the latest."""
    rows = read(spark, lake, TAKEDOWNS, version=at).select("kind", "value").collect()
    return takedowns_of(Takedown(row.kind, row.value) for row in rows)


def pins(spark: SparkSession, lake: Lake) -> Mapping[str, int]:
    """The version of the documents that are counted."""
    return {DOCUMENTS.name: version(spark, lake, DOCUMENTS)}


def add(
    spark: SparkSession, lake: Lake, run: Run, entries: Sequence[Takedown], *, reason: str | None,
    requested_by: str | None,
) -> list[Added]:  # fmt: skip
    """Write the entries that are not there yet, in their order; what was there before stays as it was."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    now = datetime.now(UTC)
    given = spark.createDataFrame(
        pa.table({"kind": [entry.kind for entry in entries], "value": [entry.value for entry in entries]})
    )
    texts = {"reason": reason, "requested_by": requested_by, "run_id": run.run_id}
    rows = given.withColumns({name: F.lit(text).cast("string") for name, text in texts.items()})
    rows = rows.withColumn("added_at", F.lit(now)).select(*TAKEDOWNS.columns.names)
    table = DeltaTable.forPath(spark, lake.table(TAKEDOWNS)).alias("t")
    same = "t.kind = s.kind AND t.value = s.value"
    run.check_owned()
    repeated(lambda: table.merge(rows.alias("s"), same).whenNotMatchedInsertAll().execute())
    there = read(spark, lake, TAKEDOWNS).join(F.broadcast(given), on=["kind", "value"], how="left_semi")
    stored = {Takedown(row.kind, row.value): row for row in there.collect()}
    run.progress("counting the documents that they meet")
    met = count_documents(spark, lake, entries)
    found = []
    for entry in entries:
        added_at = stored[entry].added_at.astimezone(UTC)
        is_new = added_at == now and stored[entry].run_id == run.run_id
        found.append(Added(entry=entry, added_at=added_at, is_new=is_new, n_documents=met.get(entry, 0)))
    return found


def count_documents(spark: SparkSession, lake: Lake, entries: Sequence[Takedown]) -> dict[Takedown, int]:
    """How many documents of the lake each entry meets; one that meets none is left out."""
    from pyspark.sql import functions as F

    documents = read(spark, lake, DOCUMENTS)
    met: dict[Takedown, int] = {}
    for kind, column in (("url", "doc_id"), ("hash", "media_id")):
        by_id = {doc_id(e.value) if kind == "url" else e.value: e for e in entries if e.kind == kind}
        if by_id:
            ids = spark.createDataFrame(pa.table({column: list(by_id)}))
            counts = documents.join(F.broadcast(ids), on=column, how="inner").groupBy(column).agg(F.count("*"))
            met |= {by_id[row[0]]: row[1] for row in counts.collect()}
    if hosts := frozenset(entry.value for entry in entries if entry.kind == "host"):
        by_host = documents.groupBy("host").agg(F.count("*").alias("n"))
        counts = by_host.mapInArrow(lambda batches: met_by_host(batches, hosts), schema_ddl(MET))
        met |= {Takedown("host", row[0]): row[1] for row in counts.groupBy("value").agg(F.sum("n")).collect()}
    return met


# -- the commands -------------------------------------------------------------------------------------------------


def said(found: Sequence[Added]) -> str:
    """What was added, in one line."""
    n_new = sum(one.is_new for one in found)
    n_met = sum(one.n_documents > 0 for one in found)
    known = f", there already: {len(found) - n_new}" if n_new < len(found) else ""
    return f"takedowns added: {n_new}{known}; meeting documents of the lake: {n_met}; {STAYS}"


def open_existing(spark: SparkSession, uri: str) -> Lake:
    """The lake at `uri` with the tables that older code did not make. Raises LakeError, also where there is no lake: a
    takedown in a wrong place would be believed to hold."""
    from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]

    is_there = False
    with suppress(Py4JJavaError):  # `open_lake` says why
        fs, path = file_system(spark, lake_at(uri).table(DOCUMENTS))
        is_there = fs.exists(path)
    return open_lake(spark, uri, create=is_there)


def add_takedowns(
    common: Common, entries: Sequence[Takedown], *, reason: str | None, requested_by: str | None
) -> Ending:
    """Add entries to the lake as a run; prints what each meets, or with --json tells it in the outcome."""
    from jobs import tracking
    from jobs.run import Prepared, run_job, sole_writer_of  # it knows the crawl, which asks what is taken down

    config = common.config
    tracking.tracking_store(lake_at(config.lake))
    progress = progress_of(common)
    found: list[Added] = []

    def run(spark: SparkSession, lake: Lake, run: Run) -> JobResult:
        run.progress(f"adding {len(entries)} takedowns")
        found[:] = add(spark, lake, run, entries, reason=reason, requested_by=requested_by)
        metrics = {"takedowns_added": float(sum(one.is_new for one in found))}
        return JobResult(status="finished", message=said(found), metrics=metrics)

    with progress.shown(), sole_writer_of(common):
        progress("takedown add: starting Spark")
        spark = spark_session(config.spark, "lakelens takedown add", lake=config.lake)
        lake = open_existing(spark, config.lake)
        prepared = Prepared(name=JOB, outputs={}, pins=pins, run=run, is_measured=False)
        with tracking.pipeline_run(lake, config, name=common.run_id, warn=progress, tags={"jobs": JOB}) as parent:
            done = run_job(spark, lake, common, prepared, parent, progress)
    if not common.as_json:
        rows = [
            {
                "kind": one.entry.kind,
                "value": one.entry.value,
                "documents": one.n_documents,
                "added": "now" if one.is_new else f"before, {one.added_at:%Y-%m-%d %H:%M} UTC",
            }
            for one in found
        ]
        console().print(grid("takedowns", ["kind", "value", "documents", "added"], rows, ["documents"]))
    facts = {"run_id": done.run_id, "lake": lake.uri, "takedowns": [one.facts() for one in found]}
    return Ending(exit_code=FINISHED, message=done.result.message, facts=facts)


def show_takedowns(common: Common) -> Ending:
    """Print all takedowns of the lake, oldest first; with --json they are in the outcome instead."""
    lake_at(common.config.lake)
    spark = spark_session(common.config.spark, "lakelens takedown list", lake=common.config.lake)
    lake = open_lake(spark, common.config.lake, create=False)
    found = [row.asDict() for row in read(spark, lake, TAKEDOWNS).orderBy("added_at", "kind", "value").collect()]
    for row in found:
        row["added_at"] = row["added_at"].astimezone(UTC)
    if found and not common.as_json:
        rows = [
            {
                "kind": row["kind"],
                "value": row["value"],
                "added": f"{row['added_at']:%Y-%m-%d %H:%M} UTC",
                "requested by": row["requested_by"] or "",
                "why": row["reason"] or "",
            }
            for row in found
        ]
        console().print(grid("takedowns", ["kind", "value", "added", "requested by", "why"], rows, []))
    return Ending(
        exit_code=FINISHED,
        message=f"{len(found)} takedowns in {lake.uri}",
        facts={"takedowns": [{**row, "added_at": row["added_at"].isoformat()} for row in found]},
    )
