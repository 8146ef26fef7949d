"""`lakelens golden`: labelled items to versions of golden sets, each written once. Knows no metric and no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.command import FINISHED, Common, Ending
from jobs.commit import commit_wave, last_transaction
from jobs.config import Golden
from jobs.golden_labels import GoldenError, LabelledBox, golden_rows, read_items
from jobs.lake import Lake, append, lake_at, open_lake, read, version
from jobs.quality import GoldenItem
from jobs.runs import JobResult, Run
from jobs.session import spark_session
from jobs.urls import doc_id
from schemas import DOCUMENTS, GOLDEN
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def media_of(spark: SparkSession, lake: Lake, urls: Sequence[str]) -> dict[str, str]:
    """URL -> media_id of documents; raises GoldenError for those that the lake does not hold as media."""
    from pyspark.sql import functions as F

    wanted = F.broadcast(spark.createDataFrame([(doc_id(url), url) for url in urls], "doc_id STRING, url STRING"))
    found = read(spark, lake, DOCUMENTS).select(
        "doc_id", "media_id", F.coalesce("error.code", "media_type").alias("what")
    )
    rows = wanted.join(found, on="doc_id", how="left").select("url", "media_id", "what").collect()
    there = {row.url: row.media_id for row in rows if row.media_id is not None}
    if len(there) < len(urls):
        absent = [f"{row.url} ({row.what or 'not crawled'})" for row in rows if row.media_id is None]
        raise GoldenError(
            f"{len(absent)} of {len(urls)} pictures of the labels are not in the lake, such as {', '.join(absent[:3])}"
        )
    return there


def pins(spark: SparkSession, lake: Lake) -> Mapping[str, int]:
    """The version of the documents that names are looked up in."""
    return {DOCUMENTS.name: version(spark, lake, DOCUMENTS)}


def run(spark: SparkSession, lake: Lake, run: Run, sets: Sequence[Golden]) -> JobResult:
    """Write a version of each golden set, unless the last one has the same items and card."""
    said = []
    for one in sets:
        items = read_items(one.kind, Path(one.labels), one.pictures)
        run.progress(f"looking up {len(items)} items of {one.name}")
        media_ids = media_of(spark, lake, list(dict.fromkeys(item.url for item in items if item.url is not None)))
        rows = golden_rows(one.name, one.kind, items, media_ids, one.card)
        number = write_version(spark, lake, run, rows)
        said.append(f"{one.name} version {number} with {len(rows)} items")
    return JobResult(status="finished", message=f"golden sets: {', '.join(said)}")


def write_version(spark: SparkSession, lake: Lake, run: Run, rows: Sequence[Mapping[str, Any]]) -> int:
    """Append `rows`, of one set, as its next version, or find them there as its last; returns the version."""
    from pyspark.sql import functions as F

    name, card = rows[0]["golden_set"], rows[0]["card"]
    fields = [f for f in GOLDEN.columns if f.name != "golden_version"]
    new = spark.createDataFrame([[row[f.name] for f in fields] for row in rows], schema_ddl(pa.schema(fields)))

    def left(at: int, transaction: int) -> DataFrame:
        there = read(spark, lake, GOLDEN, version=at).where(F.col("golden_set") == name)
        last = there.where(F.col("golden_version") == transaction).select("card").first()
        rows_left = new.limit(0) if last is not None and last.card == card else new
        return rows_left.withColumn("golden_version", F.lit(transaction + 1).cast("bigint"))

    def write(rows: DataFrame, transaction: int) -> None:
        append(rows.coalesce(1), lake, GOLDEN, app_id=app_id, transaction=transaction, owner=run.owner)

    app_id = f"golden/{name}"
    planned = last_transaction(spark, lake, GOLDEN, app_id) + 1
    return commit_wave(spark, lake, GOLDEN, run, app_id, planned, left=left, write=write)


def golden_sets(spark: SparkSession, lake: Lake) -> list[dict[str, Any]]:
    """Name, version, card and slices of every version of every golden set, the last version of a set first."""
    from pyspark.sql import functions as F

    found = (
        read(spark, lake, GOLDEN)
        .groupBy("golden_set", "golden_version")
        .agg(
            F.first("card").alias("card"),
            F.array_distinct(F.flatten(F.collect_list(F.map_keys("slices")))).alias("slices"),
        )
    )
    rows = found.orderBy("golden_set", F.desc("golden_version")).collect()
    return [
        {"golden": r.golden_set, "version": r.golden_version, **json.loads(r.card), "slices": sorted(r.slices)}
        for r in rows
    ]


def read_golden(spark: SparkSession, lake: Lake, name: str, *, at: int | None = None) -> tuple[int, list[GoldenItem]]:
    """The items of `name`, its last version, or of `name@version`; and the version. Raises GoldenError.

    at: the version of the table to look in, None for the latest.
    """
    from pyspark.sql import functions as F

    golden_set, _, wanted = name.partition("@")
    here = read(spark, lake, GOLDEN, version=at).where(F.col("golden_set") == golden_set)
    there = sorted(row.golden_version for row in here.select("golden_version").distinct().collect())
    if not there or (wanted and wanted not in map(str, there)):
        known = [f"{one['golden']}@{one['version']}" for one in golden_sets(spark, lake)]
        raise GoldenError(f"golden set {name!r} is not in the lake; there are: {', '.join(known) or 'none'}")
    number = int(wanted) if wanted else there[-1]
    rows = here.where(F.col("golden_version") == number)
    return number, [golden_item(row.asDict(recursive=True)) for row in rows.orderBy("item_id").collect()]


def golden_item(row: Mapping[str, Any]) -> GoldenItem:
    """A row of `golden` as metrics take it."""

    def several(name: str) -> tuple[str, ...] | None:
        return None if row[name] is None else tuple(row[name])

    return GoldenItem(
        item_id=row["item_id"],
        kind=row["kind"],
        media_id=row["media_id"],
        labels=several("labels"),
        boxes=None
        if row["boxes"] is None
        else tuple(LabelledBox(label=b["label"], box=tuple(b["box"]), is_crowd=b["is_crowd"]) for b in row["boxes"]),
        query=row["query"],
        relevant=None if row["relevant"] is None else {r["media_id"]: r["gain"] for r in row["relevant"]},
        copy_group=row["copy_group"],
        text=several("text"),
        entities=several("entities"),
        slices=row["slices"] or {},
    )


# -- the commands -------------------------------------------------------------------------------------------------


def overrides(name: str, kind: str, labels: Path, pictures: str | None, card: Mapping[str, str]) -> dict[str, Any]:
    """What `lakelens golden add` lays over the configuration: the set, and the folder of its pictures as a source."""
    folder = str(labels) if pictures is None and labels.is_dir() else pictures
    described = {"name": name, "kind": kind, "labels": str(labels), "pictures": folder or "", "card": dict(card)}
    if folder is None or folder.startswith(("http://", "https://")):
        return {"golden": [described]}
    return {"golden": [described], "crawl": {"sources": [{"name": f"golden.{name}", "kind": "folder", "uri": folder}]}}


def show_golden(common: Common) -> Ending:
    """Print the golden sets of the lake; with --json they are in the outcome instead."""
    from jobs.tables import console, grid

    lake_at(common.config.lake)
    spark = spark_session(common.config.spark, "lakelens golden list", lake=common.config.lake)
    lake = open_lake(spark, common.config.lake, create=False)
    found = golden_sets(spark, lake)
    if not common.as_json:
        headings = ["golden set", "version", "kind", "items", "slices", "licence", "what it is"]
        rows = [
            {
                "golden set": one["golden"],
                "version": one["version"],
                "kind": one["kind"],
                "items": one["items"],
                "slices": ", ".join(one["slices"]),
                "licence": one.get("licence", "not stated"),
                "what it is": one.get("what", ""),
            }
            for one in found
        ]
        console().print(grid("golden sets", headings, rows, ["version", "items"]))
    names = len({one["golden"] for one in found})
    return Ending(exit_code=FINISHED, message=f"{names} golden sets in {lake.uri}", facts={"golden": found})
