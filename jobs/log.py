"""Log lines of JSON, on the driver and in tasks, in the schema of Spark's own structured log. Knows no job.

`spark.read.schema(pyspark.logger.SPARK_LOG_SCHEMA).json(...)` reads them together with Spark's own, which carry the
same context: it travels to tasks as Spark's local properties, those of log4j's mapped diagnostic context (`mdc.`).
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

LOGGER = "lakelens"
MDC = "mdc."
IN_TASKS = "lakelens.log"  # the local property by which a task knows that it is to log


def line(message: str, context: Mapping[str, object], *, now: datetime, level: str = "INFO") -> str:
    """One event as one line of JSON; values of the context are text, those that are None are left out."""
    named = {name: str(value) for name, value in context.items() if value is not None}
    at = f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%S.}{now.microsecond // 1000:03d}Z"
    return json.dumps({"ts": at, "level": level, "msg": message, "context": named, "logger": LOGGER})


def one_line(error: BaseException) -> str:
    """What an error says, in one line: of a Python worker's the exception that ended it, without Spark's words."""
    try:
        said = str(error)
    except Exception:  # Java's exceptions ask the JVM for their text, and it may be what died
        return f"{type(error).__name__}: Spark's JVM is gone; the same --run-id resumes what was committed"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if type(error).__name__ == "Py4JJavaError":  # its first line names a method of Java; the last cause is the reason
        causes = re.findall(r"^(?:: |Caused by: )(?!java\.io\.EOFException)(.+)", said, re.M)
        return causes[-1] if causes else lines[0]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Failed|Unavailable|Incomplete)\b", line)]
    return raised[-1] if type(error).__name__ == "PythonException" and raised else lines[0]


def write(message: str, context: Mapping[str, object], *, level: str = "INFO") -> None:
    """Write one event to standard error, whole, whatever other threads write."""
    sys.stderr.write(line(message, context, now=datetime.now(UTC), level=level) + "\n")
    sys.stderr.flush()


@contextmanager
def told_to_tasks(spark: SparkSession, **context: object) -> Iterator[None]:
    """Tasks that this thread begins in the block know the context, as Spark's log does; they log where it is JSON."""
    properties = {f"{MDC}{name}": str(value) for name, value in context.items()}
    if spark.conf.get("spark.log.structuredLogging.enabled", "false") == "true":
        properties[IN_TASKS] = "json"
    before = {name: spark.sparkContext.getLocalProperty(name) for name in properties}
    for name, value in properties.items():
        spark.sparkContext.setLocalProperty(name, value)
    try:
        yield
    finally:
        for name, was in before.items():
            spark.sparkContext.setLocalProperty(name, was)  # type: ignore[arg-type]  # None unsets it


def logged(batches: Iterable[pa.RecordBatch], message: str) -> Iterator[pa.RecordBatch]:
    """The batches as they come; after the last, the task logs their rows and the seconds they took."""
    n_rows, began = 0, time.monotonic()
    for batch in batches:
        n_rows += batch.num_rows
        yield batch
    log_task(message, n_rows=n_rows, task_s=round(time.monotonic() - began, 3))


def log_task(message: str, **figures: object) -> None:
    """In a task that is to log: one event with what `told_to_tasks` told it, and which task it is."""
    from pyspark import TaskContext

    task = TaskContext.get()
    if task is None or task.getLocalProperty(IN_TASKS) is None:
        return
    told = {name: task.getLocalProperty(f"{MDC}{name}") for name in ("run_id", "job", "wave")}
    place = {"stage": task.stageId(), "task": task.partitionId(), "attempt": task.attemptNumber()}
    write(message, {**told, **place, **figures})
