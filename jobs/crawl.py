"""`lakelens crawl`: sources to fetches, documents and media, wave by wave. Knows tables, not how to fetch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.addresses import hosts_without_contact, parse_exemptions
from jobs.commit import find_commit, last_transaction, log_entries
from jobs.config import Config, ConfigError, Crawl
from jobs.fetch import Settings, fetch
from jobs.lake import Lake, append, concurrency_errors, file_system, lake_at, read, remove_folder, repeated, version
from jobs.log import logged, told_to_tasks
from jobs.outcomes import Outcome, Request
from jobs.packs import Packs, check_store
from jobs.runs import JobResult, Run, RunTakenOver
from jobs.sources import SIGHTINGS, check_source, sighting_batches, sightings
from schemas import DOCUMENTS, FETCHES, MEDIA
from schemas.errors import RETRYABLE, ErrorCode, error
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

BATCH_BYTES = 4 << 20  # of one Arrow batch to Spark: design, measured fastest for rows of 100 KB
BATCH_ROWS = 1000
PART_ORDINALS = 100_000  # sightings that are numbered by one task, for one task cannot number a billion
MAX_LISTED_BUCKETS = 200  # host buckets written into the MERGE condition; beyond, most files are touched anyway

# What a sighting says of a document; a later one that does not say it leaves what is known.
DESCRIPTION = ("page_url", "page_title", "caption", "license")
_HELD = ("content", "pack_uri", "offset", "length", "size_bytes")
_FACTS = ("mime", "width", "height", "duration_s", "taken_at", "latitude", "longitude", "camera")
_ATTEMPT = pa.struct([f for f in FETCHES.columns if f.name not in ("doc_id", "run_id", "attempt", "url")])
# One row for each planned document: its next state, the bytes or where they are if there are any, and all attempts.
STAGED = pa.schema(
    [
        *(pa.field(f.name, f.type) for f in DOCUMENTS.columns),
        *(pa.field(name, MEDIA.columns.field(name).type) for name in (*_HELD, *_FACTS)),
        pa.field("attempts", pa.list_(_ATTEMPT)),
    ]
)


# -- checks before Spark ------------------------------------------------------------------------------------------


def settings_of(crawl: Crawl) -> Settings:
    """The section `crawl` as the fetcher takes it; raises ConfigError."""
    contact = crawl.contact.strip() if crawl.contact else None
    if contact is not None and not (contact.isascii() and contact.isprintable() and ("@" in contact or "/" in contact)):
        raise ConfigError(f"crawl.contact = {crawl.contact!r} is not an e-mail address or URL")
    return Settings(
        contact=contact,
        exemptions=parse_exemptions(crawl.allow_addresses),
        max_connections_per_host=crawl.max_connections_per_host,
        delay_s=crawl.delay_s,
        connect_timeout_s=crawl.connect_timeout_s,
        timeout_s=crawl.timeout_s,
        max_bytes=crawl.max_bytes,
        max_redirects=crawl.max_redirects,
        max_attempts=crawl.max_attempts,
    )


def validate(config: Config) -> None:
    """Check the section `crawl` and that its sources are there; raises ConfigError, or SourceError naming a source."""
    crawl = config.crawl
    settings = settings_of(crawl)
    if not crawl.sources:
        raise ConfigError("crawl.sources is empty; name at least one: {name: photos, kind: folder, uri: /data/photos}")
    names = [source.name for source in crawl.sources]
    if repeated_names := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"crawl.sources: the name {repeated_names[0]} is given more than once")
    if crawl.max_bytes > crawl.inline_bytes:
        check_store(lake_at(config.lake).packs())
    without_contact = hosts_without_contact(settings.exemptions)
    for source in crawl.sources:
        check_source(source)
        if source.kind == "folder" or settings.contact is not None:
            continue
        for sighting in sightings(source):
            if sighting.problem is None and sighting.host not in without_contact:
                raise ConfigError(
                    f"crawl.contact is not set: an e-mail address or URL of yours is needed to fetch {sighting.url}; "
                    f"without one only loopback addresses in crawl.allow_addresses are fetched"
                )


def pins(spark: SparkSession, lake: Lake) -> Mapping[str, int]:
    """The versions of the tables that a crawl reads."""
    return {DOCUMENTS.name: version(spark, lake, DOCUMENTS)}


# -- one task -----------------------------------------------------------------------------------------------------


def staged_row(sighting: Mapping[str, Any], outcome: Outcome | None) -> dict[str, Any]:
    """The staged row of a planned document; `outcome` is None for a URL that cannot be fetched.

    Such a URL is `http_client_error`: like HTTP 400, the request itself is wrong and trying again is no use.
    """
    row: dict[str, Any] = {name: sighting.get(name) for name in DOCUMENTS.columns.names}
    row |= {"opted_out": False, "attempts": []}
    if outcome is None:
        return row | {"error": error(ErrorCode.HTTP_CLIENT_ERROR, sighting["problem"])}
    is_file = sighting["root"] is not None
    last = outcome.attempts[-1] if outcome.attempts else None
    return row | {
        "media_type": outcome.facts.media_type if outcome.held is not None else None,
        "media_id": outcome.held and outcome.held.media_id,
        "etag": sighting["version"] if is_file else last and last.etag,
        "last_modified": sighting["changed_at"] if is_file else last and last.last_modified,
        "fetched_at": last and last.started_at,
        "next_fetch_at": outcome.next_fetch_at,
        "opted_out": outcome.opted_out,
        "error": outcome.error,
        **{name: getattr(outcome.held, name, None) for name in _HELD},
        **{name: getattr(outcome.facts, name) for name in _FACTS},
        "attempts": [asdict(attempt) for attempt in outcome.attempts],
    }


def fetch_batches(batches: Iterable[pa.RecordBatch], settings: Settings) -> Iterator[pa.RecordBatch]:
    """Batches of sightings to batches of `STAGED`, one row for each; all of a host must come in one call."""
    planned = {row["doc_id"]: row for batch in batches for row in batch.to_pylist()}
    requests = [
        Request(doc_id=row["doc_id"], url=row["url"], host=row["host"], root=row["root"])
        for row in planned.values()
        if row["problem"] is None
    ]
    rows = [staged_row(row, None) for row in planned.values() if row["problem"] is not None]
    n_bytes = 0
    for outcome in fetch(requests, settings):
        rows.append(staged_row(planned[outcome.request.doc_id], outcome))
        n_bytes += len(outcome.content or b"")
        if n_bytes >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema=STAGED)
            rows, n_bytes = [], 0
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=STAGED)


# -- plan ---------------------------------------------------------------------------------------------------------


def stage_plan(spark: SparkSession, lake: Lake, config: Config, run: Run) -> tuple[DataFrame, dict[str, int]]:
    """All sightings, each document once, with what to do about it; and how many rows there are of each kind.

    `action` is `fetch` (new, due or changed), `describe` (only what is said about it changed) or `nothing`, and
    `wave` numbers the waves of what is fetched. Documents this run already fetched are not due again.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    seen_uri, plan_uri = f"{lake.staging(run.run_id)}/sightings", f"{lake.staging(run.run_id)}/plan"
    remove_folder(spark, seen_uri)
    n_seen = 0
    spark.createDataFrame([], schema_ddl(SIGHTINGS)).write.parquet(seen_uri)
    for batch in sighting_batches(config.crawl.sources):
        n_seen += batch.num_rows
        spark.createDataFrame(pa.Table.from_batches([batch])).write.mode("append").parquet(seen_uri)
    seen = spark.read.schema(schema_ddl(SIGHTINGS)).parquet(seen_uri)
    first = seen.groupBy("doc_id").agg(F.min_by(F.struct(*SIGHTINGS.names), "ordinal").alias("s")).select("s.*")
    known = read(spark, lake, DOCUMENTS).select(
        "doc_id",
        "host_bucket",
        F.struct("source", *DESCRIPTION).alias("was"),
        "fetched_at",
        "next_fetch_at",
        "etag",
    )
    joined = first.join(known, on=["doc_id", "host_bucket"], how="left")
    started = F.lit(run.started)
    untried = F.col("fetched_at").isNull() | (F.col("fetched_at") < started)
    changed = F.col("root").isNotNull() & ~F.col("etag").eqNullSafe(F.col("version"))
    due = F.col("was").isNull() | (untried & ((F.col("next_fetch_at") <= started) | changed))
    described = ~F.col("was").eqNullSafe(
        F.struct("source", *(F.coalesce(F.col(name), F.col(f"was.{name}")).alias(name) for name in DESCRIPTION))
    )
    action = F.when(F.coalesce(due, F.lit(False)), "fetch").when(described, "describe").otherwise("nothing")
    # Written first, then numbered: the numbers of a part start from how many rows the parts before it have.
    actions_uri = f"{lake.staging(run.run_id)}/actions"
    part = F.floor(F.col("ordinal") / PART_ORDINALS).alias("part")
    joined.select(*SIGHTINGS.names, action.alias("action"), part).write.mode("overwrite").parquet(actions_uri)
    actions = spark.read.schema(schema_ddl(SIGHTINGS) + ", action STRING, part BIGINT").parquet(actions_uri)
    parts = sorted(tuple(row) for row in actions.groupBy("action", "part").count().collect())
    starts, counts = [], dict[str, int]()
    for name, number, n_rows in parts:
        starts.append((name, number, counts.get(name, 0)))
        counts[name] = counts.get(name, 0) + n_rows
    first_places = spark.createDataFrame(starts, "action STRING, part BIGINT, start BIGINT")
    numbered = actions.join(F.broadcast(first_places), on=["action", "part"], how="inner")
    place = F.col("start") + F.row_number().over(Window.partitionBy("action", "part").orderBy("ordinal")) - 1
    wave = F.floor(place / config.crawl.wave_documents).cast("long").alias("wave")
    numbered.select(*SIGHTINGS.names, "action", wave).write.mode("overwrite").parquet(plan_uri)
    plan = spark.read.schema(schema_ddl(SIGHTINGS) + ", action STRING, wave BIGINT").parquet(plan_uri)
    return plan, {"seen": n_seen, "distinct": sum(counts.values()), **counts}


def describe(spark: SparkSession, lake: Lake, plan: DataFrame) -> None:
    """Write what sightings newly say of documents that are not fetched."""
    source = plan.where("action = 'describe'").select("doc_id", "host_bucket", "source", *DESCRIPTION)
    _merge(spark, lake, source, lambda merge: merge.whenMatchedUpdate(set=_description()))


def _description() -> dict[str, str | Column]:
    return {"source": "s.source", **{name: f"coalesce(s.{name}, t.{name})" for name in DESCRIPTION}}


def _merge(spark: SparkSession, lake: Lake, source: DataFrame, clauses: Any) -> None:
    from delta.tables import DeltaTable

    buckets = sorted(row["host_bucket"] for row in source.select("host_bucket").distinct().collect())
    condition = "t.doc_id = s.doc_id AND t.host_bucket = s.host_bucket"
    if len(buckets) <= MAX_LISTED_BUCKETS:
        condition += f" AND t.host_bucket IN ({', '.join(map(str, buckets)) or 'NULL'})"
    table = DeltaTable.forPath(spark, lake.table(DOCUMENTS)).alias("t")
    repeated(lambda: clauses(table.merge(source.alias("s"), condition)).execute())


# -- waves --------------------------------------------------------------------------------------------------------


def application(run: Run) -> str:
    """Delta's transaction application id of a crawl run; its versions number the run's waves."""
    return f"crawl#{run.run_id}"


def wave_uri(lake: Lake, run: Run, transaction: int) -> str:
    """Where a wave is staged."""
    return f"{lake.staging(run.run_id)}/wave={transaction}"


def stage_wave(spark: SparkSession, planned: DataFrame, settings: Settings, uri: str) -> None:
    """Fetch the planned documents, one host in one task, and write their rows to `uri`."""
    from pyspark.sql import functions as F

    n_tasks = max(1, spark.sparkContext.defaultParallelism)
    by_host = F.when(F.col("root").isNotNull(), F.col("doc_id")).otherwise(F.col("host"))
    rows = planned.select(*SIGHTINGS.names).repartition(n_tasks, by_host)
    fetched = rows.mapInArrow(lambda batches: logged(fetch_batches(batches, settings), "fetched"), schema_ddl(STAGED))
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
    _merge_documents(spark, lake, staged)


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
    attempts = staged.select("doc_id", "url", F.posexplode("attempts").alias("place", "attempt_facts"))
    rows = attempts.select(
        "doc_id",
        F.lit(run.run_id).alias("run_id"),
        (F.col("place") + 1).cast("int").alias("attempt"),
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
    source = staged.select(*DOCUMENTS.columns.names)
    codes = ", ".join(f"'{code}'" for code in sorted(RETRYABLE))
    times: dict[str, str | Column] = {
        "fetched_at": "coalesce(s.fetched_at, t.fetched_at)",
        "next_fetch_at": "s.next_fetch_at",
    }
    state: dict[str, str | Column] = {
        name: f"s.{name}" for name in DOCUMENTS.columns.names if name not in ("doc_id", "host_bucket")
    }

    def clauses(merge: Any) -> Any:
        # A wave committed late does not undo what another run has seen since; what was obtained before outlives an
        # error that will be tried again.
        is_newer = "coalesce(s.fetched_at >= t.fetched_at, true)"
        keeps = f"{is_newer} AND s.error.code IN ({codes}) AND t.media_id IS NOT NULL"
        kept = merge.whenMatchedUpdate(condition=keeps, set=_description() | times)
        replaced = kept.whenMatchedUpdate(condition=is_newer, set=state | _description() | times)
        return replaced.whenNotMatchedInsertAll()

    _merge(spark, lake, source, clauses)


def staged_waves(spark: SparkSession, lake: Lake, run: Run) -> list[int]:
    """The transactions of the waves that an attempt before this one staged whole, in order."""
    fs, root = file_system(spark, lake.staging(run.run_id))
    names = [status.getPath().getName() for status in fs.listStatus(root)] if fs.exists(root) else []
    waves = sorted(int(name.partition("=")[2]) for name in names if name.startswith("wave="))
    return [wave for wave in waves if fs.exists(file_system(spark, f"{wave_uri(lake, run, wave)}/_SUCCESS")[1])]


def counted(
    spark: SparkSession, lake: Lake, run: Run, plan: DataFrame, counts: Mapping[str, int]
) -> tuple[str, dict[str, float]]:
    """What a crawl did, in words and as metrics beyond those of every run: documents by source, retries, new media."""
    from pyspark.sql import functions as F

    attempts = read(spark, lake, FETCHES).where(F.col("run_id") == run.run_id)
    # Documents without any attempt (an unusable URL, a host left alone) stand in `documents` alone.
    documents = read(spark, lake, DOCUMENTS)
    for rows, name in ((attempts, "tried"), (plan, "planned")):
        documents = documents.join(rows.select("doc_id", F.lit(True).alias(name)).distinct(), on="doc_id", how="left")
    ours = documents.where("tried OR (planned AND fetched_at IS NULL)")
    by = ours.groupBy("source", "tried", F.col("error").isNotNull().alias("failed")).count().collect()
    n_fetched = sum(row["count"] for row in by if row["tried"])
    by_source: dict[str, float] = {}
    for row in by:
        if row["tried"]:
            by_source[f"documents/{row['source']}"] = by_source.get(f"documents/{row['source']}", 0.0) + row["count"]
    stored = read(spark, lake, MEDIA).where(F.col("ingested_at") >= F.lit(run.started))
    stored = stored.join(ours.select("media_id"), on="media_id", how="left_semi")
    media = stored.agg(F.count("*").alias("n"), F.coalesce(F.sum("size_bytes"), F.lit(0)).alias("bytes")).collect()[0]
    metrics = {
        "documents_untried": sum(row["count"] for row in by if not row["tried"]),
        "retries": attempts.count() - n_fetched,
        "new_media": media["n"],
        "new_media_bytes": media["bytes"],
        "sightings": counts["seen"],
        "duplicates": counts["seen"] - counts["distinct"],
        **by_source,
    }
    n_failed, seen = sum(row["count"] for row in by if row["failed"]), counts["distinct"]
    said = f"{seen} documents seen, {n_fetched} fetched, {media['n']} new media, {n_failed} with errors"
    return said, {name: float(value) for name, value in metrics.items()}


def run(spark: SparkSession, lake: Lake, config: Config, run: Run) -> JobResult:
    """Fetch what is due of the configured sources. Raises SourceError, ConfigError, RunTakenOver.

    What an interrupted attempt left staged is committed, the rest is planned again on documents and fetched.
    """
    packs = Packs(
        uri=lake.packs(), partial_uri=f"{lake.staging(run.run_id)}/packs", inline_bytes=config.crawl.inline_bytes
    )
    settings = replace(settings_of(config.crawl), packs=packs)
    for transaction in staged_waves(spark, lake, run):
        commit_wave(spark, lake, run, transaction)
    remove_folder(spark, lake.staging(run.run_id))
    plan, counts = stage_plan(spark, lake, config, run)
    if counts.get("describe"):
        run.check_owned()
        describe(spark, lake, plan)
    n_due, size = counts.get("fetch", 0), config.crawl.wave_documents
    for wave, first in enumerate(range(0, n_due, size)):
        run.check_owned()
        run.progress(f"crawling {n_due} documents, {first} done", wave=wave + 1)
        transaction = last_transaction(spark, lake, FETCHES, application(run)) + 1
        planned = plan.where(f"action = 'fetch' AND wave = {wave}")
        with told_to_tasks(spark, wave=wave + 1):
            stage_wave(spark, planned, settings, wave_uri(lake, run, transaction))
        n_staged = spark.read.schema("doc_id STRING").parquet(wave_uri(lake, run, transaction)).count()
        if n_staged != min(size, n_due - first):
            raise RuntimeError(f"{n_staged} documents were staged of {min(size, n_due - first)} planned")
        commit_wave(spark, lake, run, transaction)
        remove_folder(spark, wave_uri(lake, run, transaction))
    message, metrics = counted(spark, lake, run, plan, counts)
    remove_folder(spark, lake.staging(run.run_id))
    return JobResult(status="finished", message=message, metrics=metrics)
