"""`lakelens crawl`: sources to fetches, documents and media, wave by wave. Knows tables, not how to fetch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from jobs.addresses import hosts_without_contact, parse_exemptions
from jobs.commit import last_transaction
from jobs.config import Config, ConfigError, Crawl, Source
from jobs.crawl_merges import describe, mark_taken_down, merge_found
from jobs.crawl_report import crawl_report
from jobs.crawl_wave import STAGED, application, commit_wave, stage_wave, staged_waves, wave_uri
from jobs.fetch_settings import Settings
from jobs.frontier import Span, stage_plan
from jobs.lake import Lake, lake_at, read, remove_folder, version
from jobs.log import told_to_tasks
from jobs.outcomes import Recrawl
from jobs.packs import Packs, check_store
from jobs.runs import JobResult, Run
from jobs.sites import Site
from jobs.sources import SourceError, check_source, sightings
from jobs.takedowns import read_takedowns
from jobs.urls import InvalidUrl, canonical_url, doc_id
from schemas import DOCUMENTS, FETCHES, HOSTS, MEDIA
from schemas.errors import ErrorCode, stage_of
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

HOUR_S, DAY_S = 3600.0, 86400.0


# -- checks before Spark ------------------------------------------------------------------------------------------


def site_of(source: Source) -> Site:
    """A source of kind site as the fetcher takes it. Raises SourceError."""
    try:
        starts = [canonical_url(url, drop=source.drop_parameters) for url in source.start]
    except InvalidUrl as e:
        raise SourceError(f"source {source.name}: start: {e}") from e
    return Site(
        source=source.name,
        hosts=frozenset(source.hosts) or frozenset(url.host for url in starts),
        depth=source.depth,
        sitemaps=source.sitemaps,
        starts=frozenset(doc_id(url.href) for url in starts),
        follows=not source.hosts,
        priority=source.priority,
        drop=source.drop_parameters,
    )


def settings_of(crawl: Crawl) -> Settings:
    """The section `crawl` as the fetcher takes it; raises ConfigError."""
    contact = crawl.contact.strip() if crawl.contact else None
    if contact is not None and not (contact.isascii() and contact.isprintable() and ("@" in contact or "/" in contact)):
        raise ConfigError(f"crawl.contact = {crawl.contact!r} is not an e-mail address or URL")
    codes = sorted(code for code in ErrorCode if stage_of(code) == "fetch")
    if unknown := sorted(set(crawl.retry_errors) - set(codes)):
        raise ConfigError(f"crawl.retry_errors: {unknown[0]!r} is not one of {', '.join(codes)}")
    return Settings(
        sites={source.name: site_of(source) for source in crawl.sources if source.kind == "site"},
        contact=contact,
        exemptions=parse_exemptions(crawl.allow_addresses),
        max_connections_per_host=crawl.max_connections_per_host,
        delay_s=crawl.delay_s,
        rate_per_minute=crawl.rate_per_minute,
        burst=crawl.burst,
        round_s=crawl.round_s,
        n_connections=crawl.connections_per_task,
        opt_outs=frozenset(crawl.opt_outs),
        recrawl=Recrawl(
            first_s=crawl.recrawl.first_days * DAY_S,
            least_s=crawl.recrawl.least_days * DAY_S,
            most_s=crawl.recrawl.most_days * DAY_S,
            n_gone=crawl.recrawl.n_gone,
        ),
        connect_timeout_s=crawl.connect_timeout_s,
        timeout_s=crawl.timeout_s,
        max_bytes=crawl.max_bytes,
        max_redirects=crawl.max_redirects,
        max_attempts=crawl.max_attempts,
        asks_rules_again=ErrorCode.ROBOTS_DISALLOWED in crawl.retry_errors,
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
        if source.kind in ("folder", "warc", "webdataset") or settings.contact is not None:
            continue
        for sighting in sightings(source, settings.opt_outs):
            is_asked_for = sighting.problem is None and sighting.root is None and not sighting.opted_out
            if is_asked_for and sighting.host not in without_contact:
                raise ConfigError(
                    f"crawl.contact is not set: an e-mail address or URL of yours is needed to fetch {sighting.url}; "
                    f"without one only loopback addresses in crawl.allow_addresses are fetched"
                )


def pins(spark: SparkSession, lake: Lake) -> Mapping[str, int]:
    """The versions of the tables that a crawl reads."""
    return {DOCUMENTS.name: version(spark, lake, DOCUMENTS)}


def counted(
    spark: SparkSession, lake: Lake, config: Config, run: Run, counts: Mapping[str, int]
) -> tuple[str, dict[str, float]]:
    """What a crawl did, in words and as metrics beyond those of every run: requests, waits, documents by source."""
    from pyspark.sql import functions as F

    fetches = read(spark, lake, FETCHES)
    attempts = fetches.where(F.col("run_id") == run.run_id).groupBy("doc_id").agg(F.count("*").alias("n_attempts"))
    # Documents without any attempt (an unusable URL, a host left alone) stand in `documents` alone.
    documents = read(spark, lake, DOCUMENTS).join(attempts, on="doc_id", how="left")
    tried = F.col("n_attempts").isNotNull()
    untried = F.col("fetched_at").isNull() & F.col("source").isin([source.name for source in config.crawl.sources])
    ours = documents.where(tried | untried)
    by = ours.groupBy("source", tried.alias("tried"), F.col("error.code").alias("code"))
    found = by.agg(F.count("*").alias("n"), F.sum("n_attempts").alias("n_attempts")).collect()
    n_fetched, n_attempts = (sum(row[name] for row in found if row["tried"]) for name in ("n", "n_attempts"))
    by_source: dict[str, float] = {}
    for row in found:
        if row["tried"]:
            by_source[f"documents/{row['source']}"] = by_source.get(f"documents/{row['source']}", 0.0) + row["n"]
    stored = read(spark, lake, MEDIA).where(F.col("ingested_at") >= F.lit(run.started))
    stored = stored.join(ours.select("media_id"), on="media_id", how="left_semi")
    media = stored.agg(F.count("*").alias("n"), F.coalesce(F.sum("size_bytes"), F.lit(0)).alias("bytes")).collect()[0]
    over_http = crawl_report(
        {"fetches": fetches, "hosts": read(spark, lake, HOSTS)}, [run.run_id], delay_s=config.crawl.delay_s
    )
    metrics = {
        "documents_untried": sum(row["n"] for row in found if not row["tried"]),
        "retries": n_attempts - n_fetched - (over_http.moved if over_http else 0),
        "new_media": media["n"],
        "new_media_bytes": media["bytes"],
        "sightings": counts["seen"],
        "duplicates": counts["seen"] - counts["distinct"],
        **(over_http.metrics() if over_http else {}),
        **by_source,
    }
    n_known, codes = sum(row["n"] for row in found), Counter[str]()
    for row in found:
        codes.update({row["code"]: row["n"]} if row["code"] is not None else {})
    which = ", ".join(f"{code} {n}" for code, n in codes.most_common())
    seen = max(counts["distinct"], n_known)  # pages lead to more than the sources show
    said = f"{seen} documents seen, {n_fetched} fetched, {media['n']} new media, {codes.total()} with errors"
    said += f" ({which})" if which else ""
    return said, {name: float(value) for name, value in metrics.items()}


def run(spark: SparkSession, lake: Lake, config: Config, run: Run) -> JobResult:
    """Fetch what is due of the configured sources. Raises SourceError, ConfigError, RunTakenOver.

    What an interrupted attempt left staged is committed, the rest is planned again on documents and fetched. What pages
    lead to, what answers lead to another host and what a round did not reach is planned again until there is none, or
    a plan got nowhere, or the time of the run is over.
    """
    if spark.sparkContext.getConf().get("spark.speculation", "false") == "true":
        raise ConfigError("spark.speculation is true: a task run twice asks its hosts twice; allowed: false")
    since, ends_at = min(run.started, datetime.now(UTC)), time.monotonic() + config.crawl.max_hours * HOUR_S
    packs = Packs(
        uri=lake.packs(), partial_uri=f"{lake.staging(run.run_id)}/packs", inline_bytes=config.crawl.inline_bytes
    )
    for transaction in staged_waves(spark, lake, run):
        commit_wave(spark, lake, config, run, transaction)
    remove_folder(spark, lake.staging(run.run_id))
    run.check_owned()
    n_taken_down = mark_taken_down(spark, lake, read_takedowns(spark, lake))
    settings = replace(settings_of(config.crawl), packs=packs, is_resumed=run.resumed)
    span = Span(since=since, until=max(run.started, datetime.now(UTC)))
    first = plan = stage_plan(spark, lake, config, run, span)
    assert first is not None
    if first.counts.get("describe"):
        run.check_owned()
        describe(spark, lake, first.described)
    if not (later := first.fetched.where("wave IS NULL")).isEmpty():
        run.check_owned()
        merge_found(spark, lake, later)
    generation = 0
    while plan is not None and fetch_waves(spark, lake, config, run, plan.fetched, settings, ends_at=ends_at):
        generation += 1
        run.check_owned()
        # What its host lets us ask for within a round is waited for.
        span = Span(since=since, until=datetime.now(UTC) + timedelta(seconds=config.crawl.round_s))
        plan = stage_plan(spark, lake, config, run, span, generation)
    message, metrics = counted(spark, lake, config, run, first.counts)
    message += f", {n_taken_down} taken down" if n_taken_down else ""
    remove_folder(spark, lake.staging(run.run_id))
    return JobResult(
        status="finished", message=message, metrics=metrics | {"documents_taken_down": float(n_taken_down)}
    )


def fetch_waves(
    spark: SparkSession, lake: Lake, config: Config, run: Run, plan: DataFrame, settings: Settings, *, ends_at: float
) -> bool:
    """Fetch and commit a plan, wave by wave; whether it got anywhere, so that there may be more to do.

    After `ends_at`, on the monotonic clock, no wave begins: what is left of the plan is left to the next run.
    """
    from pyspark.sql import functions as F

    due = plan.where("wave IS NOT NULL")
    sizes = due.groupBy("wave").count().orderBy("wave").collect()
    n_due, n_done, n_settled = sum(size["count"] for size in sizes), 0, 0
    for number, size in enumerate(sizes, start=1):
        run.check_owned()
        if time.monotonic() > ends_at:
            merge_found(spark, lake, due.where(F.col("wave") >= size["wave"]))
            return False
        run.progress(f"crawling {n_due} documents, {n_done} done", wave=number)
        transaction = last_transaction(spark, lake, FETCHES, application(run)) + 1
        uri = wave_uri(lake, run, transaction)
        settings = replace(settings, taken_down=read_takedowns(spark, lake))
        with told_to_tasks(spark, wave=number):
            stage_wave(spark, lake, due.where(F.col("wave") == size["wave"]), settings, uri)
        staged = spark.read.schema(schema_ddl(STAGED)).parquet(uri)
        is_settled = F.expr("doc_id IS NOT NULL AND (NOT error.code <=> 'deferred' OR moved_to IS NOT NULL)")
        n_staged, n_settled_here = staged.agg(F.count("doc_id"), F.count_if(is_settled)).collect()[0]
        if n_staged != size["count"]:
            raise RuntimeError(f"{n_staged} documents were staged of {size['count']} planned")
        commit_wave(spark, lake, config, run, transaction)
        remove_folder(spark, uri)
        n_done, n_settled = n_done + n_staged, n_settled + n_settled_here
    return n_settled > 0
