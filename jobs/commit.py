"""Commits a wave exactly once: transaction ids, and the log that tells who won. Knows Delta, not what is committed."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.lake import Lake, concurrency_errors, file_system, read_text, snapshot, version
from jobs.runs import Run
from schemas import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

COMMIT_ATTEMPTS = 5  # of one wave, each after looking again at what is there


def last_transaction(spark: SparkSession, lake: Lake, table: Table, app_id: str) -> int:
    """The last transaction version an application has committed to the table, -1 for none."""
    found = snapshot(spark, lake.table(table)).transactions().get(app_id)
    return int(found.get()) if found.isDefined() else -1


def log_entries(spark: SparkSession, lake: Lake, table: Table, *, after: int) -> Iterator[list[dict[str, Any]]]:
    """The actions of each commit after version `after`, oldest first.

    Raises FileNotFoundError where the log no longer holds one of them.
    """
    for number in range(after + 1, version(spark, lake, table) + 1):
        uri = f"{lake.table(table)}/_delta_log/{number:020d}.json"
        fs, path = file_system(spark, uri)
        if not fs.exists(path):
            raise FileNotFoundError(f"{table.name}: the log no longer holds version {number}")
        text = read_text(spark, uri)
        yield [json.loads(line) for line in text.splitlines() if line]


def added_files(entries: Iterable[list[dict[str, Any]]]) -> list[str]:
    """Paths, relative to the table and URL-decoded, of the files that commits added."""
    return [urllib.parse.unquote(action["add"]["path"]) for entry in entries for action in entry if "add" in action]


@dataclass(frozen=True)
class Commit:
    """Who set a transaction version, and how many rows that commit wrote."""

    owner: str | None
    n_rows: int


def find_commit(entries: Iterable[list[dict[str, Any]]], app_id: str, transaction: int) -> Commit | None:
    """The commit among `entries` that set transaction `transaction` of `app_id`, if any."""
    for entry in entries:
        by_kind = {kind: action[kind] for action in entry for kind in action if kind in ("txn", "commitInfo")}
        txn = by_kind.get("txn", {})
        if txn.get("appId") == app_id and txn.get("version") == transaction:
            info = by_kind.get("commitInfo", {})
            metrics = info.get("operationMetrics", {})
            if info.get("operation") == "MERGE":
                n_rows = int(metrics.get("numTargetRowsInserted", 0)) + int(metrics.get("numTargetRowsUpdated", 0))
            else:
                n_rows = int(metrics.get("numOutputRows", 0))
            return Commit(owner=info.get("userMetadata"), n_rows=n_rows)
    return None


@contextmanager
def transaction_session(spark: SparkSession, app_id: str, transaction: int, owner: str) -> Iterator[SparkSession]:
    """A session of its own whose next MERGE carries a transaction id and an owner (Delta takes both from settings)."""
    session = spark.newSession()
    settings = {
        "spark.databricks.delta.write.txnAppId": app_id,
        "spark.databricks.delta.write.txnVersion": str(transaction),
        "spark.databricks.delta.commitInfo.userMetadata": owner,
    }
    try:
        for key, value in settings.items():
            session.conf.set(key, value)
        yield session
    finally:
        for key in settings:
            session.conf.unset(key)


def commit_wave(
    spark: SparkSession,
    lake: Lake,
    table: Table,
    run: Run,
    app_id: str,
    transaction: int,
    *,
    left: Callable[[int, int], DataFrame],
    write: Callable[[DataFrame, int], None],
) -> int:
    """Commit a wave exactly once; returns the number for the next one.

    transaction: the number after the last one of the snapshot that was planned on. left(version, transaction): the
    wave's rows that the table lacks at a version. write(rows, transaction): the commit, by transaction and owner. A
    commit that was lost, dropped silently or with a concurrency exception, is answered by looking again at what is
    there and committing what is left. Raises RunTakenOver, and CommitLost after too many attempts.
    """
    lost = concurrency_errors()
    for _ in range(COMMIT_ATTEMPTS):
        run.check_owned()
        before = version(spark, lake, table)
        rows = left(before, transaction)
        n_rows = rows.count()
        if not n_rows:
            return transaction
        with suppress(*lost):  # the log tells whether it was lost
            write(rows, transaction)
        commit = find_commit(log_entries(spark, lake, table, after=before), app_id, transaction)
        if commit is not None and commit.owner == run.owner and commit.n_rows == n_rows:
            return transaction + 1
        transaction = last_transaction(spark, lake, table, app_id) + 1
    raise CommitLost(f"{app_id}: the commit of a wave to {table.name} was lost {COMMIT_ATTEMPTS} times to others")


class CommitLost(RuntimeError):
    """Other writers were first every time; worth trying again later."""
