"""`lakelens maintain`: removes what a lake no longer needs and puts small files together. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.command import FINISHED, Common, Ending, progress_of
from jobs.config import Config
from jobs.lake import (
    STAGING,
    Lake,
    file_system,
    lake_at,
    open_lake,
    read,
    remove_folder,
    repeated,
    snapshot,
    sql_text,
    version,
)
from jobs.runs import JobResult, Run, run_rows, shows_life
from jobs.session import spark_session
from jobs.stores import open_store
from jobs.tables import console, grid, readable_bytes
from schemas import DOCUMENTS, EVALUATIONS, FEATURES, FETCHES, FRAMES, GOLDEN, MEDIA, MENTIONS, RUNS, TABLES, Table
from schemas.hosts import HOSTS
from schemas.table import schema_ddl
from schemas.takedowns import TAKEDOWNS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Not media: featurize plans by the files that its log adds, and rewriting bytes is dear. Nor frames, whose rows are
# nearly all thumbnail: a wave's file is tens of MB as it is, and to write a table of terabytes anew saves a reader
# only the opening of files.
COMPACTED = (FETCHES, DOCUMENTS, HOSTS, TAKEDOWNS, FEATURES, MENTIONS, GOLDEN, EVALUATIONS, RUNS)
FILE_BYTES = 128 << 20  # of a file that small ones are put together to; small are those of less than half of it
RUN_FILE_BYTES = 4 << 20  # of `runs`: each beat of a run's heart writes the file anew that holds its row
TABLES_AT_ONCE = 3  # a VACUUM is a few small stages, which leave cores idle between them
DELETED_AT_ONCE = 100  # objects, a second or so on a store, before it is looked again whether a crawl has begun
WRITES: Mapping[str, tuple[Table, ...]] = {
    "crawl": (MEDIA, FETCHES, DOCUMENTS, HOSTS),
    "takedown": (TAKEDOWNS,),
    "featurize": (FRAMES, FEATURES, MENTIONS),
    "experiment": (FRAMES, FEATURES, MENTIONS),
    "discard": (FEATURES, MENTIONS),
    "golden": (GOLDEN,),
    "evaluate": (EVALUATIONS,),
    "compare": (),
    "trial": (),
    "check": (),
    "promote": (),
    "rollback": (),
    "maintain": (),
}  # of a job that is not listed: every table
OBJECTS = pa.schema([("media_id", pa.string()), ("size_bytes", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class Tidied:
    """What was removed and put together, or with a dry run would be."""

    vacuumed: Mapping[str, int] = field(default_factory=dict)  # table -> files
    compacted: Mapping[str, int] = field(default_factory=dict)  # table -> small files that became fewer
    skipped: Mapping[str, str] = field(default_factory=dict)  # what was left alone -> why
    n_objects: int = 0
    object_bytes: int = 0
    staging: Sequence[str] = ()  # runs whose folder is gone


# -- what is no longer needed -------------------------------------------------------------------------------------


def live_runs(
    runs: Sequence[Mapping[str, Any]], *, now: datetime, expiry_s: float, but: str
) -> list[Mapping[str, Any]]:
    """Rows of runs that show life, but for one."""
    return [row for row in runs if shows_life(row, now=now, expiry_s=expiry_s) and row["run_id"] != but]


def written_by(live: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Table -> a live run that writes it."""
    return {table.name: str(row["run_id"]) for row in live for table in WRITES.get(row["job"], TABLES)}


def kept_since(live: Sequence[Mapping[str, Any]], *, now: datetime, retention: timedelta) -> datetime:
    """What was removed or written after this is kept: the retention, or as long as a live run reads what it pinned."""
    hour = timedelta(hours=1)  # clocks of machines and stores differ
    pinned: list[datetime] = [row["started"] - hour for row in live]
    return min([now - retention, *pinned])


def is_stale(
    row: Mapping[str, Any] | None, modified: datetime, *, now: datetime, expiry_s: float, keep: timedelta
) -> bool:
    """Whether the staging folder of a run, by its row of `runs`, serves nobody.

    What a crawl that ended early has staged is committed when it is resumed, so it is kept for a while; other jobs
    begin anew. A folder without a row is a plan's, or of a row that is gone: it goes by its age.
    """
    if row is None:
        return now - modified > keep
    if shows_life(row, now=now, expiry_s=expiry_s):
        return False
    if row["status"] in ("running", "failed") and row["job"] == "crawl":
        return bool(now - row["heartbeat"] > keep)
    return True


def modified_s(info: Mapping[str, Any]) -> float | None:
    """When an object was written, in seconds since 1970, as the different stores of fsspec say it; None if unknown."""
    for name in ("mtime", "LastModified", "last_modified"):
        match info.get(name):
            case datetime() as value:
                return value.timestamp()
            case int() | float() as value:
                return float(value)
    return None


def old_objects(batches: Iterable[pa.RecordBatch], before_s: float) -> Iterator[pa.RecordBatch]:
    """The objects (OBJECTS) in each `folder` that were written before a time and are named as crawls name them."""
    for batch in batches:
        for uri in batch.column("folder").to_pylist():
            filesystem, path = open_store(uri)
            filesystem.invalidate_cache()  # a Python worker outlives its task
            found = []
            for info in filesystem.ls(path, detail=True):
                name, written = info["name"].rstrip("/").rpartition("/")[2], modified_s(info)
                if re.fullmatch(r"[0-9a-f]{64}", name) and written is not None and written < before_s:
                    found.append({"media_id": name, "size_bytes": info["size"]})
            yield pa.RecordBatch.from_pylist(found, schema=OBJECTS)


# -- the steps ----------------------------------------------------------------------------------------------------


@contextmanager
def tidying_session(spark: SparkSession) -> Iterator[SparkSession]:
    """A session of its own for the settings of OPTIMIZE and VACUUM."""
    session = spark.newSession()
    settings = {
        # The configuration bounds the retention, and live runs lengthen it; Delta's own check knows only a week.
        "spark.databricks.delta.retentionDurationCheck.enabled": "false",
        "spark.databricks.delta.vacuum.parallelDelete.enabled": "true",
        # VACUUM lists in so many tasks; with the default of 10,000 the small tables of a test took minutes.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(4 * spark.sparkContext.defaultParallelism),
        # No commits that say so: the run's row does, and the versions of `media` are what featurize plans by.
        "spark.databricks.delta.vacuum.logging.enabled": "false",
    }
    for key, value in settings.items():
        session.conf.set(key, value)
    yield session


def file_bytes(table: Table) -> int:
    """Bytes of a file that small ones of a table are put together to."""
    return RUN_FILE_BYTES if table is RUNS else FILE_BYTES


def small_files(spark: SparkSession, lake: Lake, table: Table) -> int:
    """How many small files of the table have another beside them in their partition."""
    from pyspark.sql import DataFrame
    from pyspark.sql import functions as F

    files = DataFrame(snapshot(spark, lake.table(table)).allFiles().toDF(), spark)
    small = (
        files.where(F.col("size") < file_bytes(table) // 2)
        .groupBy(F.to_json("partitionValues").alias("partition"))
        .count()
    )
    return sum(row["count"] for row in small.where("count > 1").collect())


def vacuum(session: SparkSession, lake: Lake, table: Table, *, hours: float, is_dry: bool) -> int:
    """Remove files of the table that no version of the last `hours` refers to; returns how many."""
    statement = f"VACUUM delta.`{lake.table(table)}` RETAIN {hours:.4f} HOURS"
    n_files = session.sql(f"{statement} DRY RUN").count()
    if n_files and not is_dry:
        session.sql(statement).collect()
    return n_files


def remove_orphans(
    spark: SparkSession, lake: Lake, *, before: datetime, crawls: Callable[[], Sequence[str]], is_dry: bool
) -> tuple[int, int, str | None]:
    """Remove objects that no row of `media` refers to and that were written before a time.

    Returns their number, their bytes, and why it stopped early. They are known by their names, which are media ids,
    for a lake may have moved and `pack_uri` still names its old place. A crawl that gets the same bytes again relies
    on an object that is there, so nothing is removed while one lives or once one has added media; it takes seconds from
    its row in `runs` to its first object, longer than the objects of one look take to be removed.
    """
    from pyspark.sql import functions as F

    fs, root = file_system(spark, lake.packs())
    if not fs.exists(root):
        return 0, 0, None
    names = [status.getPath().getName() for status in fs.listStatus(root)]
    folders = [(f"{lake.packs()}/{name}",) for name in sorted(names) if re.fullmatch(r"[0-9a-f]{2}", name)]
    if not folders:
        return 0, 0, None
    before_s = before.timestamp()
    listed = spark.createDataFrame(folders, "folder STRING").repartition(min(len(folders), 64))
    old = listed.mapInArrow(lambda batches: old_objects(batches, before_s), schema_ddl(OBJECTS))
    at = version(spark, lake, MEDIA)
    held = read(spark, lake, MEDIA, version=at).where("pack_uri IS NOT NULL").select("media_id")
    if waves := staged_waves(spark, lake):  # a crawl that is resumed commits what it has staged
        staged = spark.read.schema("media_id STRING, pack_uri STRING").parquet(*waves)
        held = held.unionByName(staged.where("pack_uri IS NOT NULL").select("media_id"))
    orphans = old.join(held, on="media_id", how="left_anti").select(*OBJECTS.names)
    if is_dry:
        row = orphans.agg(F.count("*"), F.coalesce(F.sum("size_bytes"), F.lit(0))).collect()[0]
        return int(row[0]), int(row[1]), None
    n_objects = n_bytes = 0
    filesystem, root_path = open_store(lake.packs())
    for i, row in enumerate(orphans.toLocalIterator()):
        if i % DELETED_AT_ONCE == 0:
            if living := crawls():
                return n_objects, n_bytes, f"crawl {living[0]} goes on"
            if version(spark, lake, MEDIA) != at:
                return n_objects, n_bytes, "a crawl has added media meanwhile"
        with suppress(FileNotFoundError):  # another maintain was here first
            filesystem.rm_file(f"{root_path}/{row.media_id[:2]}/{row.media_id}")
        n_objects, n_bytes = n_objects + 1, n_bytes + row.size_bytes
    return n_objects, n_bytes, None


def staged_waves(spark: SparkSession, lake: Lake) -> list[str]:
    """The folders of the waves that crawls have staged and not committed."""
    fs, pattern = file_system(spark, f"{lake.uri}/{STAGING}/*/wave=*")
    return [status.getPath().toString() for status in fs.globStatus(pattern) or ()]


def newest_s(fs: Any, folder: Any) -> float:
    """When a folder's newest file was written, in seconds since 1970: stores keep no times of folders. 0: no file."""
    files, newest = fs.listFiles(folder, True), 0.0
    while files.hasNext():
        newest = max(newest, files.next().getModificationTime() / 1000)
    return newest


def stale_staging(
    spark: SparkSession, lake: Lake, *, now: datetime, expiry_s: float, keep: timedelta, but: str
) -> list[str]:
    """The run ids whose staging folders serve nobody."""
    fs, root = file_system(spark, f"{lake.uri}/{STAGING}")
    if not fs.exists(root):
        return []
    folders = {status.getPath().getName(): status for status in fs.listStatus(root)}
    known = ", ".join(map(sql_text, folders)) or "NULL"
    rows = {row["run_id"]: row for row in run_rows(spark, lake, f"run_id IN ({known})")}

    def is_old(name: str) -> bool:
        row, status = rows.get(name), folders[name]
        seconds = newest_s(fs, status.getPath()) if row is None else 0
        written = datetime.fromtimestamp(seconds or status.getModificationTime() / 1000, UTC)
        return is_stale(row, written, now=now, expiry_s=expiry_s, keep=keep)

    return [name for name in sorted(folders) if name != but and is_old(name)]


def tidy(
    spark: SparkSession, lake: Lake, *, retention: timedelta, expiry_s: float, run_id: str, is_dry: bool,
    progress: Callable[[str], None], check_owned: Callable[[], None] = lambda: None,
) -> Tidied:  # fmt: skip
    """All steps; each can be cut short and begun again. With `is_dry` nothing is changed."""
    now = datetime.now(UTC)

    def living() -> list[Mapping[str, Any]]:
        running = run_rows(spark, lake, "status = 'running'")
        return live_runs(running, now=datetime.now(UTC), expiry_s=expiry_s, but=run_id)

    since = kept_since(living(), now=now, retention=retention)
    hours = (now - since).total_seconds() / 3600
    skipped: dict[str, str] = {}
    with tidying_session(spark) as session:
        progress("vacuuming")
        check_owned()
        with ThreadPoolExecutor(max_workers=TABLES_AT_ONCE) as pool:
            counts = pool.map(lambda table: vacuum(session, lake, table, hours=hours, is_dry=is_dry), TABLES)
            vacuumed = {table.name: n for table, n in zip(TABLES, counts, strict=True)}
        compacted: dict[str, int] = {}
        for table in COMPACTED:
            progress(f"compacting {table.name}")
            check_owned()
            if table.name in (busy := written_by(living())):
                skipped[f"compaction of {table.name}"] = f"run {busy[table.name]} writes it"
                continue
            compacted[table.name] = small_files(spark, lake, table)
            if compacted[table.name] and not is_dry:
                repeated(partial(_optimize, session, lake, table))
    progress("looking for objects that no row refers to")
    check_owned()

    def crawls() -> list[str]:
        return [str(row["run_id"]) for row in living() if MEDIA in WRITES.get(row["job"], TABLES)]

    n_objects, n_bytes, why = remove_orphans(spark, lake, before=since, crawls=crawls, is_dry=is_dry)
    if why is not None:
        skipped["objects that no row refers to"] = why
    progress("looking for what ended runs have staged")
    check_owned()
    stale = stale_staging(spark, lake, now=datetime.now(UTC), expiry_s=expiry_s, keep=now - since, but=run_id)
    for name in () if is_dry else stale:
        remove_folder(spark, lake.staging(name))
    return Tidied(
        vacuumed=vacuumed,
        compacted=compacted,
        skipped=skipped,
        n_objects=n_objects,
        object_bytes=n_bytes,
        staging=stale,
    )


def _optimize(session: SparkSession, lake: Lake, table: Table) -> None:
    from delta.tables import DeltaTable

    # What has half the size is left alone, so that what was put together once is not written again every time.
    session.conf.set("spark.databricks.delta.optimize.minFileSize", str(file_bytes(table) // 2))
    session.conf.set("spark.databricks.delta.optimize.maxFileSize", str(file_bytes(table)))
    DeltaTable.forPath(session, lake.table(table)).optimize().executeCompaction()


# -- the command --------------------------------------------------------------------------------------------------


def said(found: Tidied, *, is_dry: bool) -> str:
    """What was done, or would be, in one line."""
    parts = [
        f"{sum(found.vacuumed.values())} files that no version refers to",
        f"{found.n_objects} objects that no row refers to ({readable_bytes(found.object_bytes)})",
        f"{len(found.staging)} staging folders",
    ]
    put = f"{sum(found.compacted.values())} small files {'to put' if is_dry else 'put'} together"
    left = "; ".join(f"left alone: {what}, since {why}" for what, why in found.skipped.items())
    return f"{'would remove' if is_dry else 'removed'} {', '.join(parts)}; {put}" + (f"; {left}" if left else "")


def pins(spark: SparkSession, lake: Lake) -> dict[str, int]:
    """The versions of all tables as it begins, for whoever asks later what was put together."""
    return {table.name: version(spark, lake, table) for table in TABLES if table is not RUNS}


def run(spark: SparkSession, lake: Lake, config: Config, run: Run) -> JobResult:
    """Tidy the lake as a run."""
    found = tidy(
        spark, lake, retention=timedelta(hours=config.maintain.retention_hours),
        expiry_s=config.featurize.lease_expiry_s, run_id=run.run_id, is_dry=False, progress=run.progress,
        check_owned=run.check_owned,
    )  # fmt: skip
    metrics = {f"vacuumed/{name}": float(n) for name, n in found.vacuumed.items()}
    metrics |= {f"compacted/{name}": float(n) for name, n in found.compacted.items()}
    metrics |= {"orphans": float(found.n_objects), "orphan_bytes": float(found.object_bytes)}
    metrics |= {"staging_folders": float(len(found.staging))}
    return JobResult(status="finished", message=said(found, is_dry=False), metrics=metrics)


def show_dry_run(common: Common) -> Ending:
    """Print what maintain would do; changes nothing."""
    lake_at(common.config.lake)
    progress = progress_of(common)
    with progress.shown():
        progress("starting Spark")
        spark = spark_session(common.config.spark, "lakelens maintain --dry-run", lake=common.config.lake)
        lake = open_lake(spark, common.config.lake, create=False)
        found = tidy(
            spark, lake, retention=timedelta(hours=common.config.maintain.retention_hours),
            expiry_s=common.config.featurize.lease_expiry_s, run_id="", is_dry=True, progress=progress,
        )  # fmt: skip
    if not common.as_json:
        rows = [
            {"table": table.name, "files to remove": str(found.vacuumed[table.name]),
             "small files": str(found.compacted[table.name]) if table.name in found.compacted else "left alone"}
            for table in TABLES
        ]  # fmt: skip
        numbers = ["files to remove", "small files"]
        console().print(grid("tables", ["table", *numbers], rows, numbers), "")
        for name in found.staging:
            print(f"staging folder of run {name}")
    facts: dict[str, Any] = {"lake": lake.uri, "vacuumed": dict(found.vacuumed), "compacted": dict(found.compacted)}
    facts |= {"objects": found.n_objects, "object_bytes": found.object_bytes, "staging": list(found.staging)}
    return Ending(exit_code=FINISHED, message=said(found, is_dry=True), facts=facts | {"skipped": dict(found.skipped)})
