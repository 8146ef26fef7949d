"""Entities that captions, titles and positions name, to `mentions`: a step of featurize that sees no pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurizers.linking import Linker, feature_row, load_linker, mention_features
from jobs.commit import commit_wave, last_transaction
from jobs.lake import Lake, append, read, version
from jobs.runs import Run
from jobs.shipped import at_hand
from schemas import DOCUMENTS, MEDIA, MENTIONS
from schemas.errors import ErrorCode, error
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from jobs.work import Due

ROWS_PER_PARTITION = 5_000  # about half a minute of linking on one core

SOURCES = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
    ]
)
LINKED = pa.schema([MENTIONS.columns.field(name) for name in ("doc_id", "source", "features", "error")])


def link_source(linker: Linker, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of LINKED for a row of SOURCES: a text is linked, a position gets its nearest place."""
    outcome = {"doc_id": row["doc_id"], "source": row["source"], "features": None, "error": None}
    try:
        if row["source"] == "gps":
            place = linker.nearest_place(row["latitude"], row["longitude"])
            features = [feature_row(place)] if place is not None else []
        else:
            features = mention_features(linker, [row["text"]])[0]
        return outcome | {"features": features}
    except Exception as e:  # one text's trouble is one row
        return outcome | {"error": error(ErrorCode.MODEL_FAILED, f"{type(e).__name__}: {e}")}


def link_batches(batches: Iterable[pa.RecordBatch], weights: Mapping[str, Path]) -> Iterator[pa.RecordBatch]:
    """Batches of SOURCES to batches of LINKED, a row for a row."""
    linker = load_linker(weights)
    for batch in batches:
        yield pa.RecordBatch.from_pylist([link_source(linker, row) for row in batch.to_pylist()], schema=LINKED)


def sources(spark: SparkSession, lake: Lake, inputs: Mapping[str, int]) -> DataFrame:
    """Rows of SOURCES: what the documents of the pinned versions say about themselves."""
    from pyspark.sql import functions as F

    documents = read(spark, lake, DOCUMENTS, version=inputs[DOCUMENTS.name])
    media = read(spark, lake, MEDIA, version=inputs[MEDIA.name])
    nowhere = F.lit(None).cast("double")
    texts = [
        documents.where(F.length(F.trim(F.col(column))) > 0).select(
            "doc_id",
            F.lit(source).alias("source"),
            F.col(column).alias("text"),
            nowhere.alias("latitude"),
            nowhere.alias("longitude"),
        )
        for source, column in (("caption", "caption"), ("title", "page_title"))
    ]
    positions = (
        documents.select("doc_id", "media_id")
        .join(media.select("media_id", "latitude", "longitude"), on="media_id", how="inner")
        .where("latitude IS NOT NULL AND longitude IS NOT NULL")
        .select("doc_id", F.lit("gps").alias("source"), F.expr("CAST(NULL AS STRING) AS text"), "latitude", "longitude")
    )
    return texts[0].unionByName(texts[1]).unionByName(positions)


def lacking(spark: SparkSession, lake: Lake, linker: Due, rows: DataFrame, *, at: int) -> DataFrame:
    """Those of `rows` whose (doc_id, source) has no mention of this fingerprint at a version."""
    from pyspark.sql import functions as F

    there = read(spark, lake, MENTIONS, version=at).where(F.col("fingerprint") == linker.fingerprint)
    return rows.join(there.select("doc_id", "source"), on=["doc_id", "source"], how="left_anti")


def due_sources(spark: SparkSession, lake: Lake, linker: Due, inputs: Mapping[str, int]) -> DataFrame:
    """The rows of SOURCES that have no mention of this fingerprint yet."""
    return lacking(spark, lake, linker, sources(spark, lake, inputs), at=version(spark, lake, MENTIONS))


def write_mentions(spark: SparkSession, lake: Lake, linker: Due, run: Run) -> int:
    """Link what has no mention of this fingerprint yet, as one commit; returns the rows written.

    They are staged first, so that the linker runs once whatever becomes of the commit.
    """
    from pyspark.sql import functions as F

    def link(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return link_batches(batches, at_hand(linker))

    due = due_sources(spark, lake, linker, run.inputs)
    n_due = due.count()
    if not n_due:
        return 0
    run.progress(f"linking {n_due} captions, titles and positions")
    path = f"{lake.staging(run.run_id)}/mentions"
    cores = spark.sparkContext.defaultParallelism
    n_partitions = max(min(cores, n_due), n_due // ROWS_PER_PARTITION)
    linked = due.select(*SOURCES.names).repartition(n_partitions).mapInArrow(link, schema_ddl(LINKED))
    linked.write.mode("overwrite").parquet(path)
    staged = spark.read.schema(schema_ddl(LINKED)).parquet(path)

    def left(at: int, wave: int) -> DataFrame:
        return lacking(spark, lake, linker, staged, at=at).select(
            "doc_id",
            "source",
            F.lit(linker.spec.id).alias("featurizer"),
            F.lit(linker.fingerprint).alias("fingerprint"),
            "features",
            "error",
            F.lit(run.run_id).alias("run_id"),
            F.lit(wave).cast("bigint").alias("wave"),
        )

    def write(rows: DataFrame, wave: int) -> None:
        append(rows.coalesce(1), lake, MENTIONS, app_id=linker.app_id, transaction=wave, owner=run.owner)

    wave = last_transaction(spark, lake, MENTIONS, linker.app_id) + 1
    commit_wave(spark, lake, MENTIONS, run, linker.app_id, wave, left=left, write=write)
    return n_due
