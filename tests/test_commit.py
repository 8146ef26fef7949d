"""What the log of a table says about who committed what, and a wave that another writer commits at the same time."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.commit import Commit, added_files, commit_wave, find_commit
from jobs.lake import Lake, append, open_lake, read
from jobs.runs import Run
from schemas import FEATURES
from schemas.table import schema_ddl

APPEND = [
    {"commitInfo": {"operation": "WRITE", "userMetadata": "me", "operationMetrics": {"numOutputRows": "7"}}},
    {"txn": {"appId": "f#1", "version": 3}},
    {"add": {"path": "featurizer=a%401/part-1%20x.parquet"}},
]
MERGE = [
    {
        "commitInfo": {
            "operation": "MERGE",
            "userMetadata": "other",
            "operationMetrics": {"numTargetRowsInserted": "2", "numTargetRowsUpdated": "3", "numOutputRows": "90"},
        }
    },
    {"txn": {"appId": "f#1", "version": 4}},
]
PLAIN = [{"commitInfo": {"operation": "WRITE"}}, {"add": {"path": "part-2.parquet"}}, {"remove": {"path": "x"}}]


def test_a_commit_is_found_by_application_and_version_with_its_owner_and_rows() -> None:
    entries = [PLAIN, APPEND, MERGE]
    assert find_commit(entries, "f#1", 3) == Commit(owner="me", n_rows=7)
    assert find_commit(entries, "f#1", 4) == Commit(owner="other", n_rows=5)


def test_a_commit_of_another_version_or_application_is_not_mine() -> None:
    assert find_commit([PLAIN, APPEND], "f#1", 4) is None
    assert find_commit([PLAIN, APPEND], "f#2", 3) is None


def test_added_files_are_decoded_and_removed_ones_left_out() -> None:
    entries = json.loads(json.dumps([APPEND, PLAIN]))
    assert added_files(entries) == ["featurizer=a@1/part-1 x.parquet", "part-2.parquet"]


APP_ID = "f@1#1"
MINE, OTHERS = range(4), range(2, 6)  # media of two writers' waves; as many, and two are in both


def wave_of(spark: Any, media: Iterable[int], run_id: str) -> Any:
    blank = dict.fromkeys(FEATURES.columns.names) | {"frame": 0, "featurizer": "f@1", "fingerprint": "1", "wave": 0}
    rows = [blank | {"media_id": f"{i}", "features": [], "run_id": run_id} for i in media]
    return spark.createDataFrame([tuple(row.values()) for row in rows], schema_ddl(FEATURES.columns)).coalesce(1)


def before_the_write(rows: Any, lake: Lake, transaction: int, others: Callable[[], None], tmp_path: Path) -> None:
    """The other commit is there when the write begins: Delta drops the write without a word."""
    others()
    append(rows, lake, FEATURES, app_id=APP_ID, transaction=transaction, owner="me")


def during_the_write(rows: Any, lake: Lake, transaction: int, others: Callable[[], None], tmp_path: Path) -> None:
    """The other commit lands while the write's tasks run: Delta raises."""
    begun, landed = tmp_path / "begun", tmp_path / "landed"

    def wait(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        begun.touch()
        while not landed.exists():
            time.sleep(0.01)
        yield from batches

    def land() -> None:
        while not begun.exists():
            time.sleep(0.01)
        others()
        landed.touch()

    other = threading.Thread(target=land)
    other.start()
    try:
        waiting = rows.mapInArrow(wait, rows.schema)
        append(waiting, lake, FEATURES, app_id=APP_ID, transaction=transaction, owner="me")
    finally:
        other.join()


@pytest.mark.spark
@pytest.mark.parametrize(
    ("writes", "raised"),
    [(before_the_write, []), (during_the_write, ["ConcurrentTransactionException"])],
    ids=["silently", "loudly"],
)
def test_a_wave_that_another_writer_commits_first_is_lost_and_what_is_left_of_it_committed(
    writes: Callable[..., None], raised: list[str], spark: Any, tmp_path: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    run = Run(run_id="mine", job="featurize", owner="me", inputs={}, started=datetime.now(UTC), resumed=False)
    transactions, failures = [], []

    def left(at: int, wave: int) -> Any:
        there = read(spark, lake, FEATURES, version=at).select("media_id")
        return wave_of(spark, MINE, "mine").join(there, on="media_id", how="left_anti").select(*FEATURES.columns.names)

    def others() -> None:
        append(wave_of(spark, OTHERS, "other"), lake, FEATURES, app_id=APP_ID, transaction=0, owner="other")

    def write(rows: Any, transaction: int) -> None:
        transactions.append(transaction)
        if len(transactions) > 1:
            append(rows, lake, FEATURES, app_id=APP_ID, transaction=transaction, owner="me")
            return
        try:
            writes(rows, lake, transaction, others, tmp_path)
        except Exception as e:
            failures.append(type(e).__name__)
            raise

    assert commit_wave(spark, lake, FEATURES, run, APP_ID, 0, left=left, write=write) == 2
    assert (transactions, failures) == ([0, 1], raised)
    rows = sorted((row.media_id, row.run_id) for row in read(spark, lake, FEATURES).collect())
    assert rows == [(f"{i}", "mine" if i < 2 else "other") for i in range(6)]
