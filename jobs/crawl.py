"""`lakelens crawl`: sources to fetches, documents and media, wave by wave. Knows tables, not how to fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.addresses import hosts_without_contact, parse_exemptions
from jobs.commit import last_transaction
from jobs.config import Config, ConfigError, Crawl, Source
from jobs.crawl_merges import describe, mark_taken_down, merge_found
from jobs.crawl_wave import (
    LEADS_ON,
    STAGED,
    application,
    commit_wave,
    found,
    led_on,
    stage_wave,
    staged_waves,
    wave_uri,
)
from jobs.fetch_settings import Settings
from jobs.frontier import renumbered, stage_actions, stage_led, stage_plan, within_budgets
from jobs.lake import Lake, lake_at, read, remove_folder, version
from jobs.log import told_to_tasks
from jobs.outcomes import REDIRECTS, Recrawl
from jobs.packs import Packs, check_store
from jobs.runs import JobResult, Run
from jobs.sites import Site
from jobs.sources import SourceError, check_source, sightings
from jobs.takedowns import read_takedowns
from jobs.urls import InvalidUrl, canonical_url, doc_id
from schemas import DOCUMENTS, FETCHES, MEDIA
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

DAY_S = 86400.0


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
    tried = attempts.agg(
        F.count("*").alias("n"),
        F.count(F.when(F.col("http_status").isin(*REDIRECTS) & F.col("error").isNull(), 1)).alias("moved"),
        F.count(F.when(F.col("http_status") == 304, 1)).alias("not_modified"),
        F.coalesce(F.sum("bytes"), F.lit(0)).alias("bytes"),
        F.coalesce(F.sum("ms"), F.lit(0.0)).alias("ms"),
        F.coalesce(F.sum("wait_ms"), F.lit(0.0)).alias("wait_ms"),
        F.coalesce(F.max(F.unix_micros("started_at")) - F.min(F.unix_micros("started_at")), F.lit(0)).alias("span_us"),
    ).collect()[0]
    span_s = max(tried["span_us"] / 1e6, tried["ms"] / 1e3 / max(1, tried["n"]), 1e-3)
    metrics = {
        "requests": tried["n"],
        "requests_per_s": tried["n"] / span_s,
        "bytes_per_s": tried["bytes"] / span_s,
        "not_modified": tried["not_modified"],
        "request_s": tried["ms"] / 1e3,
        "politeness_wait_s": tried["wait_ms"] / 1e3,
        "documents_untried": sum(row["count"] for row in by if not row["tried"]),
        "retries": tried["n"] - tried["moved"] - n_fetched,
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
    if staged := staged_waves(spark, lake, run):
        for transaction in staged:
            commit_wave(spark, lake, run, transaction)
        uris = [wave_uri(lake, run, transaction) for transaction in staged]
        merge_found(spark, lake, run, within_budgets(spark, lake, config, found(spark, uris)))
    remove_folder(spark, lake.staging(run.run_id))
    run.check_owned()
    taken_down = read_takedowns(spark, lake)
    n_taken_down = mark_taken_down(spark, lake, taken_down)
    settings = replace(settings_of(config.crawl), packs=packs, taken_down=taken_down, is_resumed=run.resumed)
    plan, counts = stage_plan(spark, lake, config, run)
    if counts.get("describe"):
        run.check_owned()
        describe(spark, lake, plan)
    waves, generation = plan, 0
    while uris := fetch_waves(spark, lake, config, run, waves, settings):
        generation += 1
        run.check_owned()
        waves = stage_next(spark, lake, config, run, uris, generation)
        for uri in uris:
            remove_folder(spark, uri)
    message, metrics = counted(spark, lake, run, plan, counts)
    remove_folder(spark, lake.staging(run.run_id))
    return JobResult(
        status="finished", message=message, metrics=metrics | {"documents_taken_down": float(n_taken_down)}
    )


def stage_next(
    spark: SparkSession, lake: Lake, config: Config, run: Run, uris: Sequence[str], generation: int
) -> DataFrame:
    """The plan of what committed waves have led to: hosts that other tasks ask, and what pages show and link."""
    led = stage_led(spark, lake, config, run, led_on(spark, lake, uris), generation)
    if not any(source.kind == "site" for source in config.crawl.sources):
        return led
    seen = within_budgets(spark, lake, config, found(spark, uris))
    run.check_owned()
    merge_found(spark, lake, run, seen)
    plan, counts = stage_actions(spark, lake, config, run, seen, f"found-{generation}")
    if counts.get("describe"):
        describe(spark, lake, plan)
    return led.unionByName(renumbered(plan, led))


def fetch_waves(
    spark: SparkSession, lake: Lake, config: Config, run: Run, plan: DataFrame, settings: Settings
) -> list[str]:
    """Fetch and commit a plan, wave by wave; where those waves are staged whose answers lead to more."""
    from pyspark.sql import functions as F

    sizes = plan.where("action = 'fetch'").groupBy("wave").count().orderBy("wave").collect()
    n_due, n_done = sum(size["count"] for size in sizes), 0
    led: list[str] = []
    for number, size in enumerate(sizes, start=1):
        run.check_owned()
        run.progress(f"crawling {n_due} documents, {n_done} done", wave=number)
        transaction = last_transaction(spark, lake, FETCHES, application(run)) + 1
        uri = wave_uri(lake, run, transaction)
        with told_to_tasks(spark, wave=number):
            stage_wave(
                spark, lake, plan.where((F.col("action") == "fetch") & (F.col("wave") == size["wave"])), settings, uri
            )
        staged = spark.read.schema(schema_ddl(STAGED)).parquet(uri)
        n_staged, n_leading = staged.agg(F.count("doc_id"), F.count_if(F.expr(LEADS_ON))).collect()[0]
        if n_staged != size["count"]:
            raise RuntimeError(f"{n_staged} documents were staged of {size['count']} planned")
        commit_wave(spark, lake, run, transaction)
        n_done += n_staged
        if n_leading:
            led.append(uri)
        else:
            remove_folder(spark, uri)
    return led
