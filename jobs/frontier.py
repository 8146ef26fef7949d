"""What a crawl fetches and in which wave: sightings against documents and hosts. Knows tables, not how to fetch."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute

from jobs.config import Config, Source
from jobs.lake import Lake, read, remove_folder
from jobs.outcomes import REDIRECTS
from jobs.runs import Run
from jobs.sites import PAGE, SITEMAP
from jobs.sources import DESCRIPTION, ROWS_PER_BATCH, SIGHTINGS, Part, SourceError, part_sightings, source_parts
from jobs.urls import host_bucket, registrable
from jobs.waves import ANSWER_S, packed, per_round
from schemas import DOCUMENTS, FETCHES, HOSTS
from schemas.errors import RETRYABLE, ErrorCode
from schemas.table import schema_ddl, spark_type

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

PART_ORDINALS = 100_000  # of what is held in folders and archives, numbered by one task: one cannot number a billion
REFUSAL = ("opted_out", "opted_out_by")
DUE_ORDINAL = 1 << 62  # of what is due of sites: after all that sources show
# Of a wave, for each task: with a fifth of it waves end before all of their round is used (row C2 of benchmarks/).
TASK_DOCUMENTS = 15_000
PART_SHIFT = 40  # an ordinal is the number of the source's part and the place in it
# What is known of a document when it is fetched, and where: a redirect may have led to another host.
KNOWN = pa.schema(
    [
        ("was_had", pa.bool_()),
        ("was_opted_out", pa.bool_()),
        ("was_fetched_at", pa.timestamp("us", tz="UTC")),
        ("has_failed", pa.bool_()),
        ("media_id", pa.string()),
        ("final_url", pa.string()),
        ("etag", pa.string()),
        ("last_modified", pa.string()),
        ("recrawl_s", pa.float64()),
        ("n_gone", pa.int32()),
        ("fetch_url", pa.string()),
        ("fetch_host", pa.string()),
        ("n_attempts", pa.int32()),
        ("n_redirects", pa.int32()),
    ]
)
PLANNED = pa.schema([*SIGHTINGS, *KNOWN])
_PLAN = f"{schema_ddl(PLANNED)}, domain STRING, wave BIGINT"
_FAILED = pa.schema([*SIGHTINGS, pa.field("failure", pa.string())])


# -- sightings ----------------------------------------------------------------------------------------------------


def listed(parts: Iterable[tuple[int, Part]]) -> Iterator[pa.RecordBatch]:
    """The sightings of parts of sources, numbered; one that cannot be read is a row that says so and nothing else."""
    for number, part in parts:
        try:
            numbered = enumerate(part_sightings(part), start=number << PART_SHIFT)
            while rows := [{"ordinal": n, **vars(sighting)} for n, sighting in islice(numbered, ROWS_PER_BATCH)]:
                yield pa.RecordBatch.from_pylist(rows, schema=_FAILED)
        except SourceError as e:
            yield pa.RecordBatch.from_pylist([{"failure": str(e)}], schema=_FAILED)


def stage_sightings(spark: SparkSession, config: Config, uri: str) -> DataFrame:
    """List all sources, many parts at a time, into `uri`. Raises SourceError."""
    policy = frozenset(config.crawl.opt_outs)
    parts = [part for source in config.crawl.sources for part in source_parts(source, policy)]
    rows = [(number, pickle.dumps(part)) for number, part in enumerate(parts)]
    n_tasks = max(1, min(len(rows), 4 * spark.sparkContext.defaultParallelism))
    frame = spark.createDataFrame(rows, "number BIGINT, part BINARY").repartitionByRange(n_tasks, "number")

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = (row for batch in batches for row in batch.to_pylist())
        return listed((row["number"], pickle.loads(row["part"])) for row in found)

    frame.mapInArrow(task, schema_ddl(_FAILED)).write.mode("overwrite").parquet(uri)
    seen = spark.read.schema(schema_ddl(_FAILED)).parquet(uri)
    if failed := seen.where("failure IS NOT NULL").orderBy("failure").limit(1).collect():
        raise SourceError(failed[0]["failure"])
    return seen.select(*SIGHTINGS.names)


# -- plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a generation of a crawl does."""

    fetched: DataFrame  # rows of `PLANNED` with domain and wave; wave is null where this run will not come to it
    described: DataFrame  # rows of `PLANNED` of which only what is said about them changed
    counts: Mapping[str, int]  # sightings seen, distinct documents among them, and documents by action


@dataclass(frozen=True, kw_only=True)
class Span:
    """The time of a run: what was fetched before `since` was not by it, and what is due after `until` can wait."""

    since: datetime
    until: datetime


def stage_plan(
    spark: SparkSession, lake: Lake, config: Config, run: Run, span: Span, generation: int = 0
) -> Plan | None:
    """The plan of a generation: the first is of all that sources show and what is due of sites.

    Those after it are of what the ones before have left: found on pages, led to another host, not reached in its round;
    None where that is nothing.
    """
    from pyspark.sql import functions as F

    until = F.col("next_fetch_at") <= F.lit(span.until)
    if generation:
        seen = known_as_seen(spark, lake, config.crawl.sources, until & (F.col("next_fetch_at") >= F.lit(span.since)))
        if seen.isEmpty():  # nearly always: a scan, which costs less than a plan
            return None
    else:
        seen = stage_sightings(spark, config, f"{lake.staging(run.run_id)}/sightings")
        if sites := [source for source in config.crawl.sources if source.kind == "site"]:
            asked = F.col("error.code").isin(list(config.crawl.retry_errors))
            seen = seen.unionByName(known_as_seen(spark, lake, sites, until | F.coalesce(asked, F.lit(False))))
    return stage_actions(spark, lake, config, run, span, seen, f"plan-{generation}")


def known_as_seen(spark: SparkSession, lake: Lake, sources: Sequence[Source], condition: Column) -> DataFrame:
    """Documents of sources as sightings: the frontier."""
    from pyspark.sql import functions as F

    names = [source.name for source in sources]
    documents = read(spark, lake, DOCUMENTS).where(F.col("source").isin(names) & condition)
    pairs = (F.lit(value) for source in sources for value in (source.name, source.priority))
    given = {
        "ordinal": F.lit(DUE_ORDINAL),
        "opted_out": F.lit(False),  # such a document is due only where its error is to be tried again
        "priority": F.create_map(*pairs)[F.col("source")],
        "expects": F.when(F.col("media_type").isin(PAGE, SITEMAP), F.col("media_type")),
    }
    return documents.select(
        *(
            given.get(field.name, F.col(field.name) if field.name in documents.columns else F.lit(None))
            .cast(spark_type(field.type))
            .alias(field.name)
            for field in SIGHTINGS
        )
    )


def stage_actions(
    spark: SparkSession, lake: Lake, config: Config, run: Run, span: Span, seen: DataFrame, name: str
) -> Plan:
    """The plan of sightings, each document once.

    What is done about one is `fetch` (new, due or changed), `describe` (only what is said about it changed) or
    `nothing`. Documents this run already fetched are not due again, but for those that an answer has led to another
    host. Where a page of a site is a sighting of another kind too, it is a page.
    """
    from pyspark.sql import functions as F

    one = F.min_by(F.struct(*SIGHTINGS.names), F.struct(F.col("expects").isNull(), "ordinal")).alias("s")
    first = seen.groupBy("doc_id").agg(one, *any_refusal(), F.count("*").alias("n"))
    first = first.select(*(f"s.{name}" for name in SIGHTINGS.names if name not in REFUSAL), *REFUSAL, "n")
    documents = read(spark, lake, DOCUMENTS)
    was_had = F.col("fetched_at").isNotNull() & F.col("error").isNull()
    known = documents.select(
        "doc_id",
        "host_bucket",
        F.struct("source", *DESCRIPTION).alias("was"),
        was_had.alias("was_had"),
        F.col("error.code").alias("was_error"),
        F.col("opted_out").alias("was_opted_out"),
        *("fetched_at", "next_fetch_at", "moved_to"),
        *("media_id", "final_url", "etag", "last_modified", "recrawl_s", "n_gone"),
    )
    ours = read(spark, lake, FETCHES).where(F.col("run_id") == run.run_id)
    is_redirect = F.col("http_status").isin(*REDIRECTS) & F.col("error").isNull()
    ours = ours.groupBy("doc_id").agg(
        F.max("attempt").alias("n_attempts"), F.sum(F.when(is_redirect, F.col("n_requests"))).alias("n_redirects")
    )
    joined = first.join(known, on=["doc_id", "host_bucket"], how="left").join(ours, on="doc_id", how="left")
    moved = F.when(F.col("fetched_at") >= F.lit(span.since), F.col("moved_to"))
    failed = F.col("was_error").isin([str(code) for code in RETRYABLE - {ErrorCode.DEFERRED}])
    # The authority of a canonical URL is its host.
    fetch_host = F.when(moved.isNotNull(), F.regexp_extract(moved, "^[a-z]+://([^/?#]+)", 1)).otherwise(F.col("host"))
    actions = joined.select(
        *SIGHTINGS.names,
        F.coalesce("was_had", F.lit(False)).alias("was_had"),
        F.coalesce("was_opted_out", F.lit(False)).alias("was_opted_out"),
        F.col("fetched_at").alias("was_fetched_at"),
        F.coalesce(failed, F.lit(False)).alias("has_failed"),
        *("media_id", "final_url", "etag", "last_modified", "recrawl_s"),
        F.coalesce("n_gone", F.lit(0)).alias("n_gone"),
        F.coalesce(moved, F.col("url")).alias("fetch_url"),
        F.when(F.col("root").isNull(), fetch_host).otherwise("").alias("fetch_host"),
        F.coalesce("n_attempts", F.lit(0)).cast("int").alias("n_attempts"),
        F.coalesce("n_redirects", F.lit(0)).cast("int").alias("n_redirects"),
        action(span, config).alias("action"),
        "n",
    )
    return stage_waves(spark, lake, config, actions, lake.staging(run.run_id), name)


def any_refusal() -> list[Column]:
    """Of the sightings of a document, whether one is refused: each page that shows it may say so."""
    from pyspark.sql import functions as F

    return [F.max(name).alias(name) for name in REFUSAL]


def action(span: Span, config: Config) -> Column:
    """What to do about a document that is seen, from what is known of it."""
    from pyspark.sql import functions as F

    fetched_before = F.col("fetched_at").isNull() | (F.col("fetched_at") < F.lit(span.since))
    is_left = fetched_before | F.col("moved_to").isNotNull() | (F.col("was_error") == ErrorCode.DEFERRED)
    is_held, refuses = F.col("root").isNotNull(), F.col("opted_out") & ~F.col("was_opted_out")
    changed = is_held & ~F.col("etag").eqNullSafe(F.col("version"))
    failed = is_held & F.col("was_error").isin([str(code) for code in RETRYABLE])
    asked = F.col("was_error").isin(list(config.crawl.retry_errors))
    is_time = F.col("next_fetch_at") <= F.lit(span.until)
    was_unusable = F.col("fetched_at").isNull() & (F.col("was_error") == ErrorCode.HTTP_CLIENT_ERROR)
    is_usable = was_unusable & F.col("problem").isNull()  # another row names it in full
    due = F.col("was").isNull() | refuses | (is_left & (is_time | changed | failed | asked | is_usable))
    described = ~F.col("was").eqNullSafe(
        F.struct("source", *(F.coalesce(F.col(name), F.col(f"was.{name}")).alias(name) for name in DESCRIPTION))
    )
    return F.when(F.coalesce(due, F.lit(False)), "fetch").when(described, "describe").otherwise("nothing")


def stage_waves(spark: SparkSession, lake: Lake, config: Config, actions: DataFrame, staging: str, name: str) -> Plan:
    """Write rows of `PLANNED` with their action and `n` sightings as a plan.

    In a wave a host has no more documents than its pauses let through in a round; of a host those of the highest
    priority come first, then those that have not failed before, in the order of the sources. Rows of a wave lie
    together, so that reading one reads little else.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    # Written first, then numbered: the numbers of a part start from how many rows the parts before it have.
    part = F.when(
        F.col("root").isNotNull(),
        F.shiftright("ordinal", PART_SHIFT) * F.lit(1 << 20)
        + F.floor(F.col("ordinal") % F.lit(1 << PART_SHIFT) / PART_ORDINALS),
    ).otherwise(0)
    remove_folder(spark, f"{staging}/{name}-actions")
    is_needed = F.col("action") != "nothing"  # of the others only the number
    actions = actions.withColumn("part", part.cast("long"))
    actions = actions.select("action", "n", *(F.when(is_needed, F.col(c)).alias(c) for c in (*PLANNED.names, "part")))
    actions.write.parquet(f"{staging}/{name}-actions")
    ddl = schema_ddl(PLANNED) + ", action STRING, n BIGINT, part BIGINT"
    actions = spark.read.schema(ddl).parquet(f"{staging}/{name}-actions")
    is_fetched = F.col("action") == "fetch"
    hosts = [F.when(is_fetched, F.col(name)).alias(name) for name in ("fetch_host", "part")]
    found = actions.groupBy(F.col("action"), *hosts).agg(F.count("*").alias("rows"), F.sum("n").alias("n")).toArrow()
    counts = {"seen": sum(found["n"].to_pylist()), "distinct": sum(found["rows"].to_pylist())}
    for row in found.group_by("action").aggregate([("rows", "sum")]).to_pylist():
        counts[row["action"]] = row["rows_sum"]
    to_fetch = found.filter(pa.compute.equal(found["action"], "fetch")).sort_by(
        [("fetch_host", "ascending"), ("part", "ascending")]
    )
    places = hosts_in_waves(
        to_fetch,
        crawl_delays(spark, lake, to_fetch),
        delay_s=config.crawl.delay_s,
        round_s=config.crawl.round_s,
        run_s=config.crawl.max_hours * 3600,
        wave_documents=config.crawl.wave_documents or TASK_DOCUMENTS * spark.sparkContext.defaultParallelism,
    )
    where = spark.createDataFrame(places)
    order = Window.partitionBy("fetch_host", "part").orderBy(F.desc("priority"), "has_failed", "ordinal")
    fetched = actions.where("action = 'fetch'").join(where, on=["fetch_host", "part"], how="inner")
    place = F.col("start") + F.row_number().over(order) - 1
    wave = (F.col("first_wave") + F.floor(place / F.col("per_wave"))).cast("long")
    fetched = fetched.withColumn("wave", F.when(place < F.col("most"), wave)).select(*PLANNED.names, "domain", "wave")
    spread = F.when(F.col("wave").isNull(), F.xxhash64("doc_id"))
    planned = fetched.repartition("wave", spread).sortWithinPartitions("wave")
    planned.write.mode("overwrite").parquet(f"{staging}/{name}")
    return Plan(
        fetched=spark.read.schema(_PLAN).parquet(f"{staging}/{name}"),
        described=actions.where("action = 'describe'"),
        counts=counts,
    )


def crawl_delays(spark: SparkSession, lake: Lake, found: pa.Table) -> Mapping[str, float]:
    """The Crawl-delay of those hosts that are known to have one, seconds."""
    if not any(found["fetch_host"].to_pylist()):
        return {}
    rows = read(spark, lake, HOSTS).where("crawl_delay_s > 0").select("host", "crawl_delay_s").collect()
    return {row["host"]: row["crawl_delay_s"] for row in rows}


def hosts_in_waves(
    found: pa.Table,
    delays_s: Mapping[str, float],
    *,
    delay_s: float,
    round_s: float,
    run_s: float,
    wave_documents: int,
) -> pa.Table:
    """For each (fetch_host, part), sorted, with its number of `rows`: what numbers its documents and their waves.

    What is held in folders and archives has no host and owes no pause. Of a host there are at most as many documents as
    its pauses let through in a run, and one where a pause outlasts a round.
    """
    rows, encoded = np.asarray(found["rows"], np.int64), found["fetch_host"].dictionary_encode()
    names = encoded.combine_chunks()  # sorted, so the codes are too
    hosts, index = names.dictionary.to_pylist(), names.indices.to_numpy()
    n_documents = np.bincount(index, weights=rows, minlength=len(hosts)).astype(np.int64)
    pauses = np.array([max(delay_s, delays_s.get(host, 0.0)) if host else 0.0 for host in hosts], np.float64)
    let_through = np.where(pauses > round_s, 1, np.maximum(1, run_s / (pauses + ANSWER_S)))
    most = np.where(pauses > 0, np.minimum(n_documents, let_through), n_documents).astype(np.int64)
    limits = per_round(pauses, round_s=round_s, wave_documents=wave_documents)
    # Documents lie by the bucket of their host: hosts of near buckets in one wave, so that its MERGE touches few files.
    near = np.array([host_bucket(host) for host in hosts], np.int64)
    first, per_wave = packed(most, limits, wave_documents=wave_documents, near=near)
    before = np.cumsum(rows) - rows
    start = before - before[np.searchsorted(index, index)]
    return pa.table(
        {
            "fetch_host": found["fetch_host"],
            "part": found["part"],
            "start": pa.array(start, pa.int64()),
            "most": pa.array(most[index], pa.int64()),
            "first_wave": pa.array(first[index], pa.int64()),
            "per_wave": pa.array(per_wave[index], pa.int64()),
            "domain": pa.array([registrable(host) if host else "" for host in hosts], pa.string()).take(names.indices),
        }
    )


def within_budgets(spark: SparkSession, lake: Lake, config: Config, seen: DataFrame) -> DataFrame:
    """Sightings without the pages above `max_pages` of a host: what a trap for crawlers makes up has an end."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    budgets = [(source.name, source.max_pages) for source in config.crawl.sources if source.kind == "site"]
    if not budgets:
        return seen
    hosts = seen.where("depth IS NOT NULL").select("host", "host_bucket").distinct()
    known = read(spark, lake, DOCUMENTS).where("depth IS NOT NULL")
    known = known.join(F.broadcast(hosts), on=["host", "host_bucket"], how="left_semi")
    n_known = known.groupBy("source", "host").agg(F.count("*").alias("n_known"))
    new = seen.where("depth IS NOT NULL").join(known.select("doc_id"), on="doc_id", how="left_anti")
    place = F.row_number().over(Window.partitionBy("source", "host").orderBy("depth", "doc_id"))
    placed = new.select("doc_id", "source", "host", place.alias("place"))
    placed = placed.join(n_known, on=["source", "host"], how="left")
    placed = placed.join(spark.createDataFrame(budgets, "source STRING, max_pages BIGINT"), on="source", how="inner")
    too_many = placed.where(F.col("place") + F.coalesce("n_known", F.lit(0)) > F.col("max_pages"))
    return seen.join(too_many.select("doc_id"), on="doc_id", how="left_anti")
