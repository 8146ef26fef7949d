"""A lake: the folder of its tables, how they are created, read and committed to. Knows Delta, not what is stored."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.writer_lock import WRITER_LOCK, check_same_store
from schemas import MEDIA, TABLES, Table
from schemas.table import create_ddl, schema_ddl, schema_difference

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

T = TypeVar("T")
STAGING = "_staging"
PACKS = "_packs"
WEIGHTS = "_weights"
REPORTS = "reports"
UNFINISHED = "_unfinished"  # an object that stands in a lake while it is cut from another
# What Hadoop and the stores' clients say of a request that no repetition mends; the address or the rights are wrong.
REFUSED = re.compile(
    "AccessControlException|AccessDenied|Forbidden|UnsupportedFileSystem|No FileSystem for scheme|"
    "UnknownStoreException|NoSuchBucket|NoAuthWithAWSException|InvalidAccessKeyId|SignatureDoesNotMatch"
)
TOO_NEW = re.compile("DELTA_UNSUPPORTED_FEATURES|DELTA_INVALID_PROTOCOL_VERSION")  # what Delta says of such a table
UNWRITABLE = re.compile(r"Read-only file system|Permission denied|Operation not permitted")
FEW_FILES = 1000  # whose names are listed for Spark one by one
UPDATE_ATTEMPTS = 20  # of one small update that keeps meeting others; each attempt takes about a second


class LakeError(ValueError):
    """The address is not a lake this code can use; the message says what is there and what was expected."""


@dataclass(frozen=True)
class Lake:
    """The root URI of one deployment's tables, without a trailing slash."""

    uri: str

    def table(self, table: Table) -> str:
        """URI of a table's folder."""
        return f"{self.uri}/{table.name}"

    def staging(self, run_id: str) -> str:
        """URI of the folder a run stages its waves in."""
        return f"{self.uri}/{STAGING}/{run_id}"

    def packs(self) -> str:
        """URI of the folder of the media that are too large for a row."""
        return f"{self.uri}/{PACKS}"

    def weights(self) -> str:
        """URI of the folder of the weights that a cluster's tasks load."""
        return f"{self.uri}/{WEIGHTS}"

    def local_folder(self) -> str | None:
        """The lake's path in the local file system, or None where it is remote."""
        return self.uri.removeprefix("file://") if self.uri.startswith("file://") else None


def lake_at(uri: str) -> Lake:
    """The lake at a URI or local path; a local path becomes absolute. Nothing is percent-encoded, as Hadoop has it."""
    if odd := sorted(set(uri) & set("*?[]{}\\`")):
        raise LakeError(f"lake {uri!r} has {' '.join(odd)} in its address, which Spark reads as a pattern; rename it")
    if "://" in uri:
        return Lake(uri.rstrip("/"))
    folder = Path(uri).expanduser().resolve()
    if folder.is_file():
        raise LakeError(f"lake {uri!r} is a file, a folder is needed")
    return Lake(f"file://{folder}")


def file_system(spark: SparkSession, uri: str) -> tuple[Any, Any]:
    """The Hadoop file system of a URI and the URI as its path, over py4j."""
    jvm = spark._jvm
    assert jvm is not None
    path = jvm.org.apache.hadoop.fs.Path(uri)
    return path.getFileSystem(spark._jsparkSession.sessionState().newHadoopConf()), path


def read_text(spark: SparkSession, uri: str) -> str:
    """A file's text, over py4j."""
    fs, path = file_system(spark, uri)
    jvm = spark._jvm
    assert jvm is not None
    stream = fs.open(path)
    try:
        return str(jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
    finally:
        stream.close()


def remove_folder(spark: SparkSession, uri: str) -> None:
    """Remove a folder and what it holds; one that is not there is no error."""
    fs, path = file_system(spark, uri)
    fs.delete(path, True)


def check_writable(spark: SparkSession, lake: Lake) -> None:
    """Raise LakeError where the lake takes no files: a read-only mount or snapshot, or no permission to write."""
    from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]

    fs, path = file_system(spark, f"{lake.uri}/.probe-{uuid.uuid4().hex}")
    try:
        fs.create(path, True).close()
        fs.delete(path, False)
    except Py4JJavaError as e:
        said = str(e.java_exception)
        if REFUSED.search(said) or UNWRITABLE.search(said):
            raise LakeError(f"lake {lake.uri} cannot be written to: {said.splitlines()[0]}") from e
        raise


def open_lake(spark: SparkSession, uri: str, *, create: bool = True) -> Lake:
    """The lake at `uri`, the schemas of its tables compared with the code's; with `create` what is missing is made.

    Raises LakeError where the folder holds something else, where it or a table is missing and `create` is false, or
    where a table's schema differs, with the difference.
    """
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import AnalysisException

    lake = lake_at(uri)
    try:
        fs, root = file_system(spark, lake.uri)
        names = {status.getPath().getName() for status in fs.listStatus(root)} if fs.exists(root) else set()
        check_same_store(lake.uri, lambda uri: read_text(spark, uri) if WRITER_LOCK in names else "")
    except Py4JJavaError as e:
        said = str(e.java_exception)
        if REFUSED.search(said):
            raise LakeError(f"lake {lake.uri} cannot be opened: {said.splitlines()[0]}") from e
        raise
    names.discard(WRITER_LOCK)
    known = {table.name for table in TABLES}
    if UNFINISHED in names:
        raise LakeError(f"{lake.uri} is not whole: `lakelens sample` was cut short there; remove it and cut it again")
    if names and not names & known:
        raise LakeError(f"{lake.uri} is not a lake: it holds {', '.join(sorted(names)[:5])}, none of {sorted(known)}")
    if not names and not create:
        raise LakeError(f"{lake.uri} is not a lake: there is nothing; `lakelens crawl` or `lakelens demo` makes one")

    if not create and (missing := sorted(known - names)):
        raise LakeError(
            f"{lake.uri} has no table {', '.join(missing)}: a crawl is making the lake at this moment, or older code "
            "made it; `lakelens crawl` adds what is missing"
        )

    def ready(table: Table) -> list[str]:
        if table.name not in names:
            spark.sql(create_ddl(table, lake.table(table)))
            return []
        try:
            fields = spark.read.format("delta").load(lake.table(table)).schema.fields
        except AnalysisException as e:
            raise LakeError(f"{lake.table(table)} is not a Delta table: {str(e).splitlines()[0]}") from e
        except Exception as e:  # of a class that is known only to Delta
            said = next((line for line in str(e).splitlines() if TOO_NEW.search(line)), None)
            if said is None:
                raise
            raise LakeError(f"{lake.table(table)} was written by a newer Delta Lake than this one: {said}") from e
        found = {field.name: field.dataType.simpleString() for field in fields}
        return [f"{table.name}.{line}" for line in schema_difference(table, found)]

    with ThreadPoolExecutor(max_workers=4) as pool:
        differences = [line for lines in pool.map(ready, TABLES) for line in lines]
    if differences:
        raise LakeError(f"{lake.uri} was written by other code; tables differ: " + "; ".join(differences))
    return lake


def sql_text(text: str) -> str:
    """`text` as a literal of Spark SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def read(spark: SparkSession, lake: Lake, table: Table, *, version: int | None = None) -> DataFrame:
    """A table, now or at a version."""
    reader = spark.read.format("delta")
    if version is not None:
        reader = reader.option("versionAsOf", version)
    return reader.load(lake.table(table))


def file_of_row() -> Column:
    """Of a row just read, the file that holds it, as Spark's readers take it."""
    from pyspark.sql import functions as F

    # file_path is percent-encoded, and url_decode would take a plus sign for a space
    return F.expr("url_decode(replace(_metadata.file_path, '+', '%2B'))")


def rows_of(spark: SparkSession, lake: Lake, table: Table, ids: DataFrame, *, version: int | None = None) -> DataFrame:
    """The rows whose `ids.columns[0]` is among `ids`, which are few enough for every task.

    Where few files hold some, only those are read: a filter by a random id skips no file, and would read the bytes,
    thumbnails or vectors of all rows.
    """
    from pyspark.sql import functions as F

    rows, key, few = read(spark, lake, table, version=version), ids.columns[0], F.broadcast(ids)
    holding = rows.select(key, file_of_row().alias("file")).join(few, on=key, how="left_semi").select("file").distinct()
    files = [row.file for row in holding.limit(FEW_FILES + 1).collect()]
    if len(files) <= FEW_FILES:
        reader = spark.read.schema(schema_ddl(table.columns)).option("basePath", lake.table(table))
        rows = reader.parquet(*files) if files else rows.limit(0)
    return rows.join(few, on=key, how="left_semi").select(*table.columns.names)


def snapshot(spark: SparkSession, uri: str) -> Any:
    """Delta's own snapshot of a table, over py4j: the only way to a version or transaction without reading history."""
    jvm = spark._jvm
    assert jvm is not None
    none = jvm.scala.Option.apply(None)
    return jvm.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, uri).update(False, none, none)


def version(spark: SparkSession, lake: Lake, table: Table) -> int:
    """The table's latest version."""
    return int(snapshot(spark, lake.table(table)).version())


def concurrency_errors() -> tuple[type[Exception], ...]:
    """The exceptions by which Delta says that another writer was there first.

    Ask before the commit: the first call imports what turns Java's exceptions into these.
    """
    from delta import exceptions

    return (
        exceptions.ConcurrentAppendException,
        exceptions.ConcurrentDeleteDeleteException,
        exceptions.ConcurrentDeleteReadException,
        exceptions.ConcurrentTransactionException,
        exceptions.ConcurrentWriteException,
        exceptions.MetadataChangedException,
        exceptions.ProtocolChangedException,
        exceptions.DeltaConcurrentModificationException,
    )


def append(
    df: DataFrame,
    lake: Lake,
    table: Table,
    *,
    app_id: str | None = None,
    transaction: int | None = None,
    owner: str | None = None,
) -> None:
    """Append rows; with `app_id` and `transaction`, dropped silently by Delta where that version is already there."""
    writer = df.select(*table.columns.names).write.format("delta").mode("append")
    if table is MEDIA:  # pictures and videos are compressed: to try again takes a fifth of the time of writing them
        writer = writer.option("compression", "none")
    if app_id is not None and transaction is not None:
        writer = writer.option("txnAppId", app_id).option("txnVersion", transaction)
    if owner is not None:
        writer = writer.option("userMetadata", owner)
    writer.save(lake.table(table))


def repeated(commit: Callable[[], T]) -> T:
    """`commit()`, repeated while another writer keeps being there first; for updates that stay right when repeated."""
    lost = concurrency_errors()
    for left in reversed(range(UPDATE_ATTEMPTS)):
        try:
            return commit()
        except lost:
            if not left:
                raise
    raise AssertionError("unreachable")
