"""`lakelens sample`: a small lake cut from a big one, whole in itself. Knows tables and keys, no model and no run."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.command import FINISHED, Common, Ending, progress_of
from jobs.commit import last_transaction
from jobs.config import ConfigError
from jobs.lake import (
    UNFINISHED,
    Lake,
    LakeError,
    append,
    file_system,
    lake_at,
    open_lake,
    read,
    remove_folder,
    rows_of,
    snapshot,
    version,
)
from jobs.packs import Packs, StorageFailed, check_store, open_pack
from jobs.runs import code_version, stored_run_id
from jobs.session import spark_session
from jobs.stores import store_of
from jobs.work import buckets, in_sample
from schemas import (
    DOCUMENTS,
    EVALUATIONS,
    FEATURES,
    FETCHES,
    FRAMES,
    GOLDEN,
    HOSTS,
    MEDIA,
    MENTIONS,
    RUNS,
    TABLES,
    TAKEDOWNS,
    Table,
)
from schemas.errors import ErrorCode
from schemas.table import create_ddl, schema_ddl, spark_type

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FILE_BYTES = 128 << 20  # of one file of the shard
IDS_AT_ONCE = 2_000_000  # of one broadcast, about 250 MB: rows with bytes and vectors are filtered, never shuffled
STRATA = ("host", "media_type", "error")
# What refers is pinned before what it refers to: a crawl and a run that go on add to the latter first.
PINNED = (EVALUATIONS, GOLDEN, MENTIONS, FEATURES, FRAMES, DOCUMENTS, FETCHES, MEDIA, HOSTS, TAKEDOWNS, RUNS)
HASHABLE: Mapping[str, tuple[tuple[Table, str], ...]] = {
    "url": (
        (DOCUMENTS, "url"),
        (DOCUMENTS, "final_url"),
        (DOCUMENTS, "moved_to"),
        (FETCHES, "url"),
        (FETCHES, "final_url"),
        (GOLDEN, "url"),
    ),
    "host": ((DOCUMENTS, "host"),),
    "page_url": ((DOCUMENTS, "page_url"),),
    "page_title": ((DOCUMENTS, "page_title"),),
    "caption": ((DOCUMENTS, "caption"),),
    "taken_at": ((MEDIA, "taken_at"),),
    "latitude": ((MEDIA, "latitude"),),
    "longitude": ((MEDIA, "longitude"),),
    "camera": ((MEDIA, "camera"),),
}
# Mentions hold words of what they were found in.
SOURCE_OF = {"caption": "caption", "page_title": "title", "latitude": "gps", "longitude": "gps"}
STILL_IDENTIFYING = (
    "pictures, thumbnails and what their bytes say of themselves (EXIF), text that was read in them, labels and "
    "queries of golden sets, and doc_id and media_id, which whoever has the URL or the bytes can compute"
)
_REFERENCES = pa.schema([f for f in MEDIA.columns if f.name != "content"])


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Which documents are taken, and what is hashed of them."""

    fraction: float
    strata: Sequence[str] = ()  # at least one document of each value of each
    where: str | None = None  # SQL condition on `documents`
    errors: Sequence[str] = ()  # only documents that carry one of these codes, themselves or in `features`
    hashed: Sequence[str] = ()

    def check(self) -> None:
        """Raise ConfigError for what is not known."""
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"--fraction {self.fraction:g} is not allowed: above 0 and at most 1")
        known = {"--stratify": STRATA, "--error": tuple(map(str, ErrorCode)), "--hash": tuple(HASHABLE)}
        for option, given in (("--stratify", self.strata), ("--error", self.errors), ("--hash", self.hashed)):
            if unknown := [name for name in given if name not in known[option]]:
                raise ConfigError(f"{option} {unknown[0]} is not known; allowed: {', '.join(known[option])}")


# -- which documents ----------------------------------------------------------------------------------------------


def chosen_documents(documents: DataFrame, features: DataFrame, sample: Sample) -> DataFrame:
    """(doc_id, media_id) of the documents that are taken.

    A document is in by its own digest, so that they are the same every time and a larger fraction holds a smaller
    one; of each stratum the first by digest is in as well. Raises ConfigError for a `where` that is no condition.
    """
    from pyspark.errors import AnalysisException, ParseException
    from pyspark.sql import functions as F

    try:
        asked = documents if sample.where is None else documents.where(sample.where)
    except (AnalysisException, ParseException) as e:
        raise ConfigError(f"--where {sample.where!r} is no condition on documents: {str(e).strip()}") from e
    asked = asked.select("doc_id", "media_id", "host", "media_type", F.col("error.code").alias("error"))
    failed = features.where("error IS NOT NULL").select("media_id", F.col("error.code").alias("code")).distinct()
    codes = (
        asked.where("error IS NOT NULL")
        .select("doc_id", F.col("error").alias("code"))
        .unionByName(asked.join(failed, on="media_id", how="inner").select("doc_id", "code"))
    )
    if sample.errors:
        wanted = codes.where(F.col("code").isin(list(sample.errors))).select("doc_id").distinct()
        asked = asked.join(wanted, on="doc_id", how="left_semi")
    picks = [asked.where(in_sample(F.col("doc_id"), sample.fraction)).select("doc_id")]
    for name in dict.fromkeys(sample.strata):
        valued = asked.join(codes, on="doc_id", how="left").drop("error") if name == "error" else asked
        value = "code" if name == "error" else name
        picks.append(valued.groupBy(value).agg(F.min("doc_id").alias("doc_id")).select("doc_id"))
    ids = reduce(lambda a, b: a.unionByName(b), picks).distinct()
    return asked.join(ids, on="doc_id", how="left_semi").select("doc_id", "media_id")


# -- their rows ---------------------------------------------------------------------------------------------------


def hashed_rows(rows: DataFrame, table: Table, hashed: Sequence[str], salt: str) -> DataFrame:
    """Rows with the columns named replaced: text by a digest, numbers and times by null.

    The digest of a URL is plain, for doc_id is its first digits anyway; that of other texts is salted. Details of
    fetch errors name URLs and go with them; mentions of a text that is hashed are left out, and takedowns of a kind
    that is, for whoever reads them needs the name itself.
    """
    from pyspark.sql import functions as F

    for name in hashed:
        for owner, column in HASHABLE[name]:
            if owner is table:
                type_name = spark_type(table.columns.field(column).type)
                text = F.col(column) if name == "url" else F.concat(F.lit(salt), F.col(column))
                digest = F.concat(F.lit("sha256:"), F.sha2(text, 256))
                rows = rows.withColumn(column, digest if type_name == "STRING" else F.lit(None).cast(type_name))
    if table in (DOCUMENTS, FETCHES) and "url" in hashed:
        bare = F.struct("error.stage", "error.code", F.lit("").alias("detail"))
        rows = rows.withColumn("error", F.when(F.col("error").isNotNull(), bare))
    if table is MENTIONS and (sources := sorted({SOURCE_OF[name] for name in hashed if name in SOURCE_OF})):
        rows = rows.where(~F.col("source").isin(sources))
    if table is TAKEDOWNS and (kinds := sorted({"url", "host"} & set(hashed))):
        rows = rows.where(~F.col("kind").isin(kinds))
    return rows.select(*table.columns.names)


def copied_objects(batches: Iterable[pa.RecordBatch], packs: Packs) -> Iterator[pa.RecordBatch]:
    """Rows of media held by reference, their objects copied into `packs`, and whether each was there (`is_there`).

    One that the big lake has lost is lost in the shard too: what fails there is to fail here. Raises StorageFailed for
    any other trouble.
    """
    for batch in batches:
        rows = batch.to_pylist()
        for row in rows:
            try:
                with open_pack(row["pack_uri"], row["offset"], row["length"]) as file:
                    packs.store(file, media_id=row["media_id"], size_bytes=row["length"])  # type: ignore[arg-type]
                row["is_there"] = True
            except StorageFailed as e:
                if not (e.__cause__ is None or isinstance(e.__cause__, FileNotFoundError)):
                    raise
                row["is_there"] = False
            row |= {"pack_uri": packs.uri_of(row["media_id"]), "offset": 0}
        yield pa.RecordBatch.from_pylist(rows, schema=_REFERENCES.append(pa.field("is_there", pa.bool_())))


def golden_rows(golden: DataFrame, media_ids: DataFrame) -> DataFrame:
    """The items whose media are taken; of a query what is relevant among them, and no query without any.

    Their cards say how many items of the set are left.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    asked = golden.select(F.explode("relevant.media_id").alias("media_id"))
    asked = asked.unionByName(golden.where("media_id IS NOT NULL").select("media_id")).distinct()
    few = media_ids.join(F.broadcast(asked), on="media_id", how="left_semi")
    taken = F.broadcast(few.select(F.col("media_id").alias("taken")))
    key = ("golden_set", "golden_version", "item_id")
    pictures = golden.where("media_id IS NOT NULL").join(taken, on=F.col("media_id") == F.col("taken"), how="left_semi")
    answers = golden.where("media_id IS NULL").select(*key, F.explode("relevant").alias("answer"))
    answers = answers.join(taken, on=F.col("answer.media_id") == F.col("taken"), how="left_semi")
    answers = answers.groupBy(*key).agg(F.collect_list("answer").alias("relevant"))
    queries = golden.where("media_id IS NULL").drop("relevant").join(answers, on=list(key), how="inner")
    rows = pictures.select(*GOLDEN.columns.names).unionByName(queries.select(*GOLDEN.columns.names))
    n_items = F.count("*").over(Window.partitionBy("golden_set", "golden_version")).cast("string")
    card = F.regexp_replace("card", F.lit('"items": *[0-9]+'), F.concat(F.lit('"items": '), n_items))
    return rows.withColumn("card", card).select(*GOLDEN.columns.names)


def run_history(runs: DataFrame, versions: Mapping[str, int]) -> DataFrame:
    """All rows of `runs`, so that what is published and promoted is so in the shard.

    The versions that they read are the shard's, for it has no others; none has planned all that is in it, so that
    featurize plans over the whole shard; and none is running.
    """
    from pyspark.sql import functions as F

    pairs = [F.lit(part) for name, number in versions.items() for part in (name, number)]
    known = F.create_map(*pairs).cast("map<string,bigint>")
    lives = F.col("status") == "running"
    return (
        runs.withColumn("inputs", F.transform_values("inputs", lambda name, number: F.coalesce(known[name], number)))
        .withColumn("ended", F.when(lives, F.col("heartbeat")).otherwise(F.col("ended")))
        .withColumn("status", F.when(lives, F.lit("failed")).otherwise(F.col("status")))
        .withColumn("whole_plan", F.lit(False))
        .select(*RUNS.columns.names)
    )


# -- the shard ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a shard was made of."""

    n_documents: int
    n_media: int
    n_lost: int  # media held by reference whose object the big lake lacks
    of_documents: int  # in the big lake
    doc_id: str  # of one of its documents, with media where one has any


def begin_shard(spark: SparkSession, lake: Lake, uri: str) -> Lake:
    """An empty lake at `uri`, marked as unfinished; raises LakeError where something is there."""
    out = lake_at(uri)
    if f"{out.uri}/".startswith(f"{lake.uri}/") or f"{lake.uri}/".startswith(f"{out.uri}/"):
        raise LakeError(f"--out {out.uri} and the lake {lake.uri} are in one another; name another place")
    fs, root = file_system(spark, out.uri)
    there = [status.getPath().getName() for status in fs.listStatus(root)] if fs.exists(root) else []
    if UNFINISHED in there:
        raise LakeError(f"--out {out.uri} holds a sample that was cut short; remove it, or name another place")
    if there:
        raise LakeError(f"--out {out.uri} is not empty: it holds {', '.join(sorted(there)[:5])}; name another place")
    if not fs.createNewFile(file_system(spark, f"{out.uri}/{UNFINISHED}")[1]):
        raise LakeError(f"--out {out.uri}: another sample began to write there at the same moment; name another place")
    return out


def cut(
    spark: SparkSession, lake: Lake, out: Lake, sample: Sample, *, run_id: str, progress: Callable[[str], None]
) -> Cut:
    """Write the shard of `lake` to `out`, which `begin_shard` made. Raises ConfigError where no document is taken."""
    from pyspark.sql import functions as F

    progress("choosing documents")
    began, salt = datetime.now(UTC), secrets.token_hex(16)
    pinned = {table.name: version(spark, lake, table) for table in PINNED}
    source = {table.name: read(spark, lake, table, version=pinned[table.name]) for table in PINNED}
    staging = out.staging("sample")
    chosen = chosen_documents(source["documents"], source["features"], sample)
    chosen.write.parquet(f"{staging}/documents")
    doc_ids = spark.read.schema("doc_id STRING, media_id STRING").parquet(f"{staging}/documents")
    doc_ids.where("media_id IS NOT NULL").select("media_id").distinct().write.parquet(f"{staging}/media")
    media_ids = spark.read.schema("media_id STRING").parquet(f"{staging}/media")
    n_documents, n_media, of_documents = doc_ids.count(), media_ids.count(), source["documents"].count()
    if not n_documents:
        raise ConfigError(
            f"no document is in the sample: --fraction {sample.fraction:g} of {of_documents} documents"
            + "".join(f", {option} {value}" for option, value in (("--where", sample.where),) if value)
            + "".join(f", --error {code}" for code in sample.errors)
            + "; take more, or --stratify for at least one of each"
        )
    for table in TABLES:
        spark.sql(create_ddl(table, out.table(table)))
    share = n_documents / of_documents

    def copy(table: Table, ids: DataFrame, n_ids: int, write: Callable[[DataFrame, Table, int], None]) -> None:
        progress(f"copying {table.name}")
        parts, key = buckets(n_ids, of=IDS_AT_ONCE), ids.columns[0]
        for part in parts:
            some = ids.where(F.col(key).startswith(part))
            if len(parts) == 1:
                rows = rows_of(spark, lake, table, some, version=pinned[table.name])
            else:  # millions of ids are in every file
                rows = source[table.name].join(F.broadcast(some), on=key, how="left_semi")
            write(hashed_rows(rows, table, sample.hashed, salt), table, len(parts))

    def write_rows(rows: DataFrame, table: Table, n_parts: int) -> None:
        n_bytes = share * int(snapshot(spark, lake.table(table)).sizeInBytes())
        append(rows.repartition(math.ceil(n_bytes / n_parts / FILE_BYTES) or 1), out, table)

    def write_media(rows: DataFrame, table: Table, n_parts: int) -> None:
        write_rows(rows.where("pack_uri IS NULL"), table, n_parts)  # a file has either bytes or references
        references = rows.where("pack_uri IS NOT NULL").select(*_REFERENCES.names)
        packs = Packs(uri=out.packs(), partial_uri=f"{staging}/packs", inline_bytes=0)
        copied = references.repartition(spark.sparkContext.defaultParallelism).mapInArrow(
            lambda batches: copied_objects(batches, packs), f"{schema_ddl(_REFERENCES)}, is_there BOOLEAN"
        )
        copied.write.mode("append").parquet(f"{staging}/references")

    for table in (FETCHES, DOCUMENTS, MENTIONS):
        copy(table, doc_ids.select("doc_id"), n_documents, write_rows)
    copy(MEDIA, media_ids, n_media, write_media)
    references = spark.read.schema(f"{schema_ddl(_REFERENCES)}, is_there BOOLEAN").parquet(f"{staging}/references")
    append(references.withColumn("content", F.lit(None).cast("binary")).coalesce(1), out, MEDIA)
    for table in (FRAMES, FEATURES):
        copy(table, media_ids, n_media, write_rows)
    progress("copying takedowns and hosts")
    # Nothing comes back in a shard either; who asked for it, and why, is nobody's business there.
    asked = {name: F.lit(None).cast("string") for name in ("reason", "requested_by")}
    taken_down = hashed_rows(source["takedowns"].withColumns(asked), TAKEDOWNS, sample.hashed, salt)
    append(taken_down.coalesce(1), out, TAKEDOWNS)
    met = read(spark, out, DOCUMENTS).select("host").distinct()  # digests, where hosts are hashed, which meet none
    write_rows(source["hosts"].join(met, on="host", how="left_semi"), HOSTS, 1)
    progress("copying golden sets and evaluations")
    items = hashed_rows(golden_rows(source["golden"], media_ids), GOLDEN, sample.hashed, salt).cache()
    for row in items.select("golden_set").distinct().collect():
        app_id = f"golden/{row.golden_set}"  # whose transactions number the versions of a set
        number, of_set = last_transaction(spark, lake, GOLDEN, app_id), F.col("golden_set") == row.golden_set
        append(items.where(of_set).coalesce(1), out, GOLDEN, app_id=app_id, transaction=number)
    key = ["golden_set", "golden_version", "item_id"]
    measured = source["evaluations"].join(F.broadcast(items.select(*key)), on=key, how="left_semi")
    write_rows(measured, EVALUATIONS, 1)
    items.unpersist()
    progress("copying runs")
    versions = {table.name: version(spark, out, table) for table in TABLES}
    taken: dict[str, Any] = dict.fromkeys(RUNS.columns.names)
    taken |= {"run_id": run_id, "job": "sample", "owner": secrets.token_hex(8), "status": "finished", "started": began}
    taken |= {"heartbeat": datetime.now(UTC), "ended": datetime.now(UTC), "covers": [], "inputs": pinned, "outputs": {}}
    taken |= {"metrics": {"fraction": float(sample.fraction), "documents": float(n_documents)}, "whole_plan": True}
    taken |= {"config_digest": "", "code_version": code_version()}
    this = spark.createDataFrame([tuple(taken.values())], schema_ddl(RUNS.columns))
    append(run_history(source["runs"], versions).unionByName(this).coalesce(1), out, RUNS)
    n_lost = references.where("NOT is_there").count()
    one = doc_ids.agg(F.min_by("doc_id", F.struct(F.col("media_id").isNull(), "doc_id"))).collect()[0][0]
    remove_folder(spark, staging)
    remove_folder(spark, f"{out.uri}/{UNFINISHED}")  # one object: before it was no lake, now it is one
    return Cut(n_documents=n_documents, n_media=n_media, n_lost=n_lost, of_documents=of_documents, doc_id=one)


def show_sample(common: Common, sample: Sample, out_uri: str) -> Ending:
    """Cut a shard; the lake that it is cut from is only read."""
    sample.check()
    lake_at(common.config.lake)
    check_store(lake_at(out_uri).packs())
    progress = progress_of(common)
    with progress.shown():
        progress("starting Spark")
        on_store = common.config.lake if store_of(common.config.lake) else out_uri
        spark = spark_session(common.config.spark, f"lakelens sample {common.run_id}", lake=on_store)
        lake = open_lake(spark, common.config.lake, create=False)
        out = begin_shard(spark, lake, out_uri)
        try:
            made = cut(spark, lake, out, sample, run_id=stored_run_id(common.run_id, "sample"), progress=progress)
        except BaseException:  # what was begun is no lake, and in the way of another try
            with suppress(Exception):
                remove_folder(spark, out.uri)
            raise
    lost = f", {made.n_lost} of them without the object that the lake has lost" if made.n_lost else ""
    hashed = f"; {', '.join(sample.hashed)} hashed, still identifying: {STILL_IDENTIFYING}" if sample.hashed else ""
    said = f"{made.n_documents} of {made.of_documents} documents and their {made.n_media} media{lost} in {out.uri}"
    said += f"; one of them: lakelens explain --lake {out_uri} {made.doc_id}"
    facts = {"lake": lake.uri, "out": out.uri, "documents": made.n_documents, "of_documents": made.of_documents}
    facts |= {"doc_id": made.doc_id, "media": made.n_media, "lost_objects": made.n_lost, "hashed": list(sample.hashed)}
    return Ending(exit_code=FINISHED, message=said + hashed, facts=facts)
