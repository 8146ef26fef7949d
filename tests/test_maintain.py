"""What nobody needs goes, what a version, a row or a live run needs stays, and small files become few."""

from __future__ import annotations

import io
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.config import Maintain
from jobs.lake import Lake, append, read, version
from jobs.maintain import (
    COMPACTED,
    OBJECTS,
    Tidied,
    is_stale,
    kept_since,
    live_runs,
    modified_s,
    newest_s,
    old_objects,
    remove_orphans,
    said,
    tidy,
    written_by,
)
from jobs.progress import unseen
from schemas import FEATURES, FRAMES, GOLDEN, MEDIA, MENTIONS, RUNS, TABLES
from schemas.table import MAX_RETENTION_DAYS
from tests import rows, small_lake
from tests.attempts import Attempt, kill_all, logged, start_command, until_struck
from tests.rows import CONCEPT, NOW, run_row
from tests.test_check import NAMES
from tests.test_lake import broken_rules

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

WEEK = timedelta(hours=168)
OLD_S = 30 * 86400.0
EXPIRY_S = 300.0


def test_only_runs_that_show_life_hold_what_they_write() -> None:
    runs = [
        run_row("live.crawl", "crawl", status="running"),
        run_row("dead.featurize", "featurize", status="running", heartbeat=NOW - timedelta(hours=1)),
        run_row("done.featurize", "featurize"),
        run_row("me.maintain", "maintain", status="running"),
    ]
    live = live_runs(runs, now=NOW + timedelta(seconds=60), expiry_s=EXPIRY_S, but="me.maintain")
    assert [row["run_id"] for row in live] == ["live.crawl"]
    assert written_by(live) == dict.fromkeys(("media", "fetches", "documents", "hosts"), "live.crawl")
    assert written_by([run_row("x.new", "new")]).keys() == {table.name for table in TABLES}
    assert written_by([run_row("c.check", "check")]) == {}


def test_a_run_that_goes_on_for_longer_than_the_retention_keeps_what_it_pinned() -> None:
    long_ago = NOW - timedelta(days=20)
    assert kept_since([], now=NOW, retention=WEEK) == NOW - WEEK
    assert kept_since([run_row("a", "featurize", started=NOW)], now=NOW, retention=WEEK) == NOW - WEEK
    assert kept_since([run_row("a", "featurize", started=long_ago)], now=NOW, retention=WEEK) < long_ago


def test_nothing_is_to_be_kept_for_longer_than_tables_know_what_was_removed() -> None:
    assert Maintain(retention_hours=24 * MAX_RETENTION_DAYS)
    with pytest.raises(ValueError, match="less than or equal to"):
        Maintain(retention_hours=24 * MAX_RETENTION_DAYS + 1)


@pytest.mark.parametrize(
    ("job", "status", "beat", "stale"),
    [
        ("featurize", "running", timedelta(seconds=10), False),
        ("featurize", "running", timedelta(hours=1), True),
        ("featurize", "failed", timedelta(hours=1), True),
        ("crawl", "failed", timedelta(hours=1), False),
        ("crawl", "running", timedelta(hours=1), False),
        ("crawl", "failed", timedelta(days=8), True),
        ("crawl", "accepted", timedelta(seconds=10), True),
    ],
)
def test_staging_serves_a_live_run_and_a_crawl_that_may_be_resumed(
    job: str, status: str, beat: timedelta, stale: bool
) -> None:
    row = run_row("r", job, status=status, heartbeat=NOW - beat)
    assert is_stale(row, NOW, now=NOW, expiry_s=EXPIRY_S, keep=WEEK) is stale


def test_staging_of_no_known_run_goes_by_its_age() -> None:
    for age, stale in ((timedelta(days=6), False), (timedelta(days=8), True)):
        assert is_stale(None, NOW - age, now=NOW, expiry_s=EXPIRY_S, keep=WEEK) is stale


def test_the_age_of_an_object_is_read_as_each_store_tells_it() -> None:
    assert modified_s({"mtime": 5.5}) == 5.5
    assert modified_s({"LastModified": datetime.fromtimestamp(7, UTC)}) == 7
    assert modified_s({"name": "a", "size": 1}) is None  # unknown: kept


def test_only_old_objects_with_names_of_media_are_listed(tmp_path: Path) -> None:
    import pyarrow as pa

    for name, age in (("a" * 64, OLD_S), ("b" * 64, 0), ("readme", OLD_S)):
        aged(tmp_path / name, age)
    batch = pa.RecordBatch.from_pydict({"folder": [f"file://{tmp_path}"]})
    [listed] = old_objects([batch], time.time() - WEEK.total_seconds())
    assert listed.schema == OBJECTS and listed.to_pylist() == [{"media_id": "a" * 64, "size_bytes": 1}]


def test_a_folder_is_as_old_as_its_newest_file_for_stores_keep_no_times_of_folders() -> None:
    class Files:
        """As Hadoop lists them, over py4j."""

        def __init__(self, *written_s: float) -> None:
            self.left = list(written_s)

        def listFiles(self, folder: str, recursive: bool) -> Files:
            return self if recursive else Files()

        def hasNext(self) -> bool:
            return bool(self.left)

        def next(self) -> Files:
            self.at = self.left.pop()
            return self

        def getModificationTime(self) -> int:
            return int(self.at * 1000)

    assert newest_s(Files(5, 900, 70), "folder") == 900
    assert newest_s(Files(), "folder") == 0


def test_what_was_done_and_what_was_left_alone_is_said() -> None:
    found = Tidied(vacuumed={"media": 2}, compacted={"runs": 5}, n_objects=1, object_bytes=2048, staging=["a.plan"])
    assert said(found, is_dry=False) == (
        "removed 2 files that no version refers to, 1 objects that no row refers to (2.0 kB), 1 staging folders; "
        "5 small files put together"
    )
    left = Tidied(skipped={"compaction of features": "run a.featurize writes it"})
    assert said(left, is_dry=True).endswith("; left alone: compaction of features, since run a.featurize writes it")


def aged(path: Path, age_s: float) -> Path:
    """A file or folder that was written so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"x")
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def files(lake: Lake, table: str) -> set[Path]:
    """The data files of a table on disk."""
    return set(Path(lake.uri.removeprefix("file://"), table).rglob("*.parquet")) - set(
        Path(lake.uri.removeprefix("file://"), table, "_delta_log").rglob("*.parquet")
    )


def aborted_write(spark: SparkSession, lake: Lake) -> set[Path]:
    """An append to `media` of which one task writes its file and the other fails; the files it leaves behind."""
    from schemas.table import schema_ddl

    before = files(lake, "media")
    names = list(MEDIA.columns.names)

    def last_fails(batches: Any) -> Any:
        for batch in batches:
            if rows.media_id("fatal") in batch.column(0).to_pylist():
                time.sleep(2)
                raise ValueError("the task fails")
            yield batch

    staged = rows.frame_of(spark, MEDIA, [rows.media("orphan"), rows.media("fatal")]).repartitionByRange(2, "media_id")
    with pytest.raises(Exception, match="the task fails"):
        append(staged.mapInArrow(last_fails, schema_ddl(MEDIA.columns)).select(*names), lake, MEDIA)
    return files(lake, "media") - before


def tidied(spark: SparkSession, lake: Lake, *, retention: timedelta = WEEK, is_dry: bool = False) -> Tidied:
    return tidy(
        spark, lake, retention=retention, expiry_s=EXPIRY_S, run_id="m.maintain", is_dry=is_dry,
        progress=unseen,
    )  # fmt: skip


@pytest.mark.spark
@pytest.mark.faults
def test_orphans_of_aborted_writes_go_and_time_travel_within_the_retention_stays(
    spark: SparkSession, small: Lake, tmp_path: Path
) -> None:
    lake = small_lake.copied(small, tmp_path / "lake")
    for name in ("x", "y"):  # small files to be put together
        append(rows.frame_of(spark, MENTIONS, [rows.mention(name, doc_id=f"{name}" * 32)]).coalesce(1), lake, MENTIONS)
    at, n_mentions = version(spark, lake, MENTIONS), read(spark, lake, MENTIONS).count()
    orphans = aborted_write(spark, lake)
    assert orphans, "the aborted write left nothing behind"
    for path in orphans:
        aged(path, OLD_S)
    packs = small_lake.packs_of(lake)
    killed = {}  # what a crawl that is killed between an object and its row leaves
    for name, age in (("old", OLD_S), ("new", 0.0)):
        uri = packs.store(io.BytesIO(name.encode()), media_id=rows.media_id(name), size_bytes=len(name))
        killed[name] = aged(Path(uri.removeprefix("file://")), age)
    held = aged(Path(packs.uri_of(small_lake.LARGE_ID).removeprefix("file://")), OLD_S)
    staging = tmp_path / "lake" / "_staging"
    aged(staging / "r.featurize" / "plan" / "part", 0)
    aged(staging / "young.plan" / "part", 0)

    would = tidied(spark, lake, is_dry=True)
    assert (would.vacuumed["media"], would.n_objects, would.staging) == (len(orphans), 1, ["r.featurize"])
    assert would.compacted["mentions"] == 3 and would.compacted.keys() == {table.name for table in COMPACTED}
    assert all(path.exists() for path in (*orphans, *killed.values())) and (staging / "r.featurize").exists()

    crawling = run_row("c.crawl", "crawl", status="running", heartbeat=datetime.now(UTC), started=datetime.now(UTC))
    append(rows.frame_of(spark, RUNS, [crawling]), lake, RUNS)
    assert tidied(spark, lake).skipped == {
        "compaction of fetches": "run c.crawl writes it",
        "compaction of documents": "run c.crawl writes it",
        "objects that no row refers to": "crawl c.crawl goes on",
    }
    assert not any(path.exists() for path in orphans) and killed["old"].exists()
    spark.sql(f"UPDATE delta.`{lake.table(RUNS)}` SET status = 'finished' WHERE run_id = 'c.crawl'").collect()

    def crawled_meanwhile() -> list[str]:
        append(rows.frame_of(spark, MEDIA, [rows.media("meanwhile")]).coalesce(1), lake, MEDIA)
        return []

    before = datetime.now(UTC) - WEEK
    found = remove_orphans(spark, lake, before=before, crawls=crawled_meanwhile, is_dry=False)
    assert found == (0, 0, "a crawl has added media meanwhile") and killed["old"].exists()
    media_at, media_files = version(spark, lake, MEDIA), files(lake, "media")

    done = tidied(spark, lake)
    assert (done.n_objects, done.object_bytes, done.skipped) == (1, 3, {})
    assert not killed["old"].exists() and killed["new"].exists() and held.read_bytes() == small_lake.LARGE
    assert not (staging / "r.featurize").exists() and (staging / "young.plan").exists()
    assert version(spark, lake, MEDIA) == media_at and files(lake, "media") == media_files
    assert version(spark, lake, MENTIONS) > at
    assert spark.sql(f"DESCRIBE DETAIL delta.`{lake.table(MENTIONS)}`").collect()[0].numFiles == 1
    assert read(spark, lake, MENTIONS, version=at).count() == read(spark, lake, MENTIONS).count() == n_mentions
    again = tidied(spark, lake)
    assert (sum(again.vacuumed.values()), again.n_objects, again.staging, sum(again.compacted.values())) == (
        0,
        0,
        [],
        0,
    )

    gone = tidied(spark, lake, retention=timedelta(0))
    assert (
        gone.vacuumed["mentions"] == 3 and files(lake, "mentions") and read(spark, lake, MENTIONS).count() == n_mentions
    )
    assert {rule for rule in broken_rules(spark, lake) if not rule.startswith("mentions.document_known")} == set()


def make_work(spark: SparkSession, small: Lake, folder: Path) -> tuple[Lake, set[Path], Path]:
    """A small lake with all that maintain removes; the orphans of `media` and the object among it."""
    lake = small_lake.copied(small, folder)
    orphans = {aged(path, OLD_S) for path in aborted_write(spark, lake)}
    uri = small_lake.packs_of(lake).store(io.BytesIO(b"old"), media_id=rows.media_id("old"), size_bytes=3)
    for source in ("title", "gps"):
        append(rows.frame_of(spark, MENTIONS, [rows.mention(NAMES[2], source=source)]).coalesce(1), lake, MENTIONS)
    return lake, orphans, aged(Path(uri.removeprefix("file://")), OLD_S)


@pytest.mark.spark
@pytest.mark.faults
@pytest.mark.parametrize("phase", ["after the first vacuum", "between two compactions", "once an object is gone"])
def test_maintenance_that_was_killed_can_be_done_again(
    spark: SparkSession, small: Lake, tmp_path: Path, phase: str
) -> None:
    lake, orphans, old = make_work(spark, small, tmp_path / "lake")
    assert orphans and old.exists()
    n_commits = logged(tmp_path / "lake", "mentions")
    counts = {table.name: read(spark, lake, table).count() for table in TABLES if table is not RUNS}

    def strike(attempt: Attempt) -> bool:
        if phase == "after the first vacuum":
            return not any(path.exists() for path in orphans)
        if phase == "between two compactions":
            return logged(tmp_path / "lake", "mentions") > n_commits
        return not old.exists()

    attempt = start_command(tmp_path / "lake", tmp_path / "log", "maintain")
    assert until_struck(attempt, strike), (tmp_path / "log").read_text()[-3000:]
    kill_all(attempt.process)
    tidied(spark, lake)
    assert not old.exists() and not any(path.exists() for path in orphans)
    assert {table.name: read(spark, lake, table).count() for table in TABLES if table is not RUNS} == counts
    assert broken_rules(spark, lake) == {}
    again = tidied(spark, lake)
    assert (sum(again.vacuumed.values()), again.n_objects, sum(again.compacted.values())) == (0, 0, 0)


@pytest.mark.spark
def test_what_nobody_needs_goes_and_featurize_plans_no_file_again(
    spark: SparkSession, small: Lake, tmp_path: Path
) -> None:
    """The short form: an aborted write, a crawl killed before its row, small files; time travel and plans stay."""
    from featurizers.spec import find_spec
    from jobs.commit import last_transaction
    from jobs.work import Due, new_media_files

    lake, orphans, old = make_work(spark, small, tmp_path / "lake")
    assert orphans, "the aborted write left nothing behind"
    app_id = f"{CONCEPT}#{rows.FINGERPRINTS[CONCEPT]}"
    more = rows.feature("z", CONCEPT, [rows.found(1280)])
    append(rows.frame_of(spark, FEATURES, [more]).coalesce(1), lake, FEATURES, app_id=app_id, transaction=4)
    staged = small_lake.packs_of(lake).store(io.BytesIO(b"staged"), media_id=rows.media_id("staged"), size_bytes=6)
    kept = aged(Path(staged.removeprefix("file://")), OLD_S)  # of a crawl that is resumed an hour later
    wave = spark.createDataFrame([(rows.media_id("staged"), staged)], "media_id STRING, pack_uri STRING")
    wave.coalesce(1).write.parquet(f"{lake.uri}/_staging/f.crawl/wave=0")
    failed = run_row("f.crawl", "crawl", status="failed", heartbeat=datetime.now(UTC) - timedelta(hours=1))
    append(rows.frame_of(spark, RUNS, [failed]), lake, RUNS)
    aged(tmp_path / "lake/_staging/old.plan/part", OLD_S)
    aged(tmp_path / "lake/_staging/young.plan/part", 0)
    at, n_mentions = version(spark, lake, MENTIONS), read(spark, lake, MENTIONS).count()
    media_at, media_files = version(spark, lake, MEDIA), files(lake, "media") - orphans
    done = tidied(spark, lake)
    assert (done.vacuumed["media"], done.n_objects, done.compacted["mentions"]) == (len(orphans), 1, 3)
    assert not any(path.exists() for path in (*orphans, old)) and kept.exists()
    assert done.staging == ["old.plan"]
    assert (tmp_path / "lake/_packs" / small_lake.LARGE_ID[:2] / small_lake.LARGE_ID).exists()
    assert (version(spark, lake, MEDIA), files(lake, "media")) == (media_at, media_files)
    assert read(spark, lake, MENTIONS, version=at).count() == read(spark, lake, MENTIONS).count() == n_mentions
    due = Due(spec=find_spec(CONCEPT), paths={}, fingerprint=rows.FINGERPRINTS[CONCEPT])
    runs = [run_row("r.featurize", "featurize", status="accepted", inputs={"media": media_at})]
    planned = new_media_files(spark, lake, due, media_at, runs)
    assert planned is not None and planned[0] == []
    assert last_transaction(spark, lake, FEATURES, app_id) == 4
    assert len(files(lake, FRAMES.name)) == 1


@pytest.mark.spark
def test_a_version_that_was_pinned_is_read_however_old_its_commit_is(
    spark: SparkSession, small: Lake, tmp_path: Path
) -> None:
    lake = small_lake.copied(small, tmp_path / "lake")
    at, n_items = version(spark, lake, GOLDEN), read(spark, lake, GOLDEN).count()
    aged(tmp_path / "lake/golden/_delta_log" / f"{at:020}.json", 20 * 86400.0)
    append(read(spark, lake, GOLDEN), lake, GOLDEN)
    assert read(spark, lake, GOLDEN, version=at).count() == n_items
    keeps = "SHOW TBLPROPERTIES delta.`{}` ('delta.deletedFileRetentionDuration')"
    assert spark.sql(keeps.format(lake.table(GOLDEN))).collect()[0].value == "interval 30 days"
