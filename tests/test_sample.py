"""A shard is whole in itself, the same every time, and no lake before it is finished."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from jobs.config import ConfigError
from jobs.lake import UNFINISHED, Lake, LakeError, append, open_lake, read, rows_of
from jobs.packs import Packs
from jobs.sample import Sample, begin_shard, chosen_documents, copied_objects, cut, hashed_rows
from jobs.work import buckets
from schemas import DOCUMENTS, EVALUATIONS, FEATURES, FETCHES, GOLDEN, MEDIA, MENTIONS, RUNS
from tests import rows, small_lake
from tests.attempts import PATIENCE_S, ROOT, kill_all
from tests.test_lake import broken_rules, strangers

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ALL = Sample(fraction=1)


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (Sample(fraction=0), "--fraction 0 is not allowed: above 0 and at most 1"),
        (Sample(fraction=1, strata=["colour"]), "--stratify colour is not known; allowed: host, media_type, error"),
        (Sample(fraction=1, errors=["broken"]), "--error broken is not known; allowed: robots_disallowed, "),
        (Sample(fraction=1, hashed=["url", "media_id"]), "--hash media_id is not known; allowed: url, host, page_url"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is_allowed(sample: Sample, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sample.check()
    assert str(refused.value).startswith(said)


def test_ids_are_cut_into_as_many_buckets_as_a_broadcast_needs() -> None:
    assert [len(buckets(n, of=10)) for n in (0, 10, 11, 160, 161)] == [1, 1, 16, 16, 256]


def test_an_object_is_copied_and_one_that_is_lost_stays_lost(tmp_path: Path) -> None:
    big, shard = (
        Packs(uri=f"file://{tmp_path}/{name}/_packs", partial_uri=f"file://{tmp_path}/{name}/part", inline_bytes=0)
        for name in ("big", "shard")
    )
    uri = big.store(io.BytesIO(b"bytes"), media_id=rows.media_id("bytes"), size_bytes=5)
    described = [
        {"media_id": rows.media_id(name), "pack_uri": where, "offset": 0, "length": 5, "size_bytes": 5}
        for name, where in (("bytes", uri), ("lost", big.uri_of(rows.media_id("lost"))))
    ]
    names = [f for f in MEDIA.columns if f.name != "content"]
    batch = pa.RecordBatch.from_pylist(
        [dict.fromkeys(MEDIA.columns.names) | row for row in described], schema=pa.schema(names)
    )
    [copied] = copied_objects([batch], shard)
    assert copied.column("is_there").to_pylist() == [True, False]
    there, lost = (Path(uri.removeprefix("file://")) for uri in copied.column("pack_uri").to_pylist())
    assert there.read_bytes() == b"bytes" and there.is_relative_to(tmp_path / "shard") and not lost.exists()


def some_documents(spark: SparkSession) -> tuple[Any, Any]:
    """500 documents of a host, one of another; one media with an error in `features`, one document with its own."""
    found = [rows.document(f"p{i}") for i in range(498)]
    found += [rows.document("alone", host="alone.example"), rows.document("broken")]
    forbidden = {"stage": "fetch", "code": "robots_disallowed", "detail": ""}
    found.append(rows.document("refused", media_id=None, media_type=None, error=forbidden))
    failed = rows.failed("broken", "truncated")
    return rows.frame_of(spark, DOCUMENTS, found), rows.frame_of(spark, FEATURES, failed)


@pytest.mark.faults  # half a minute; what the long form has beside the kills
@pytest.mark.spark
def test_a_larger_fraction_holds_a_smaller_one_and_each_stratum_is_in_both(spark: SparkSession) -> None:
    documents, features = some_documents(spark)

    def chosen(fraction: float, **changed: Any) -> set[str]:
        sample = Sample(fraction=fraction, **changed)
        return {row.doc_id for row in chosen_documents(documents, features, sample).collect()}

    few, many = chosen(0.1), chosen(0.3)
    assert few < many and 30 <= len(few) <= 70 and 120 <= len(many) <= 180
    tiny = chosen(1e-9, strata=["host", "error", "media_type"])
    named = {name: rows.document(name)["doc_id"] for name in ("alone", "broken", "refused")}
    assert set(named.values()) <= tiny and len(tiny) <= 5
    assert tiny <= chosen(0.1, strata=["host", "error", "media_type"])
    assert chosen(1, errors=["truncated"]) == {named["broken"]}
    assert chosen(1, where="error.code = 'robots_disallowed'") == {named["refused"]}
    with pytest.raises(ConfigError, match="--where 'colour = 1' is no condition on documents"):
        chosen(1, where="colour = 1")


@pytest.mark.spark
def test_what_is_hashed_says_nothing_and_keeps_its_keys(spark: SparkSession) -> None:
    document = rows.document("a", caption="Berlin", page_title="Ada's garden")
    hashed = hashed_rows(rows.frame_of(spark, DOCUMENTS, [document]), DOCUMENTS, ["url", "caption"], "salt").first()
    assert hashed is not None and hashed.url.startswith("sha256:" + document["doc_id"])
    assert hashed.caption.startswith("sha256:") and hashed.page_title == "Ada's garden"
    media = rows.frame_of(spark, MEDIA, [rows.media("a", latitude=52.5, longitude=13.4, camera="mine")])
    position = hashed_rows(media, MEDIA, ["latitude", "camera"], "salt").first()
    assert position is not None and (position.latitude, position.longitude) == (None, 13.4)
    assert position.camera.startswith("sha256:")
    mentions = rows.frame_of(spark, MENTIONS, [rows.mention("a"), rows.mention("a", source="title")])
    assert [row.source for row in hashed_rows(mentions, MENTIONS, ["caption"], "salt").collect()] == ["title"]


def ids_of(spark: SparkSession, lake: Lake) -> dict[str, int]:
    tables = (DOCUMENTS, FETCHES, MEDIA, FEATURES, MENTIONS, GOLDEN, EVALUATIONS)
    return {table.name: read(spark, lake, table).count() for table in tables}


@pytest.mark.spark
def test_a_shard_stands_alone_and_its_readers_see_what_they_would(
    spark: SparkSession, small: Lake, tmp_path: Path
) -> None:
    from jobs.commit import last_transaction
    from jobs.published import champions, published

    whole = begin_shard(spark, small, str(tmp_path / "whole"))
    hashed = replace(ALL, hashed=["url", "page_url"])
    made = cut(spark, small, whole, hashed, run_id="s.sample", progress=lambda text: None)
    assert made.doc_id == rows.document(small_lake.NAMES[1])["doc_id"], "a page comes first, and has nothing to explain"
    assert open_lake(spark, whole.uri, create=False) == whole
    assert ids_of(spark, whole) == ids_of(spark, small)
    assert broken_rules(spark, whole) == strangers(spark, whole) == {}
    held = read(spark, whole, MEDIA).where("pack_uri IS NOT NULL").collect()
    assert [row.media_id for row in held] == [small_lake.LARGE_ID]
    copied = Path(held[0].pack_uri.removeprefix("file://"))
    assert copied.is_relative_to(tmp_path / "whole") and copied.read_bytes() == small_lake.LARGE
    assert published(spark, whole, FEATURES, "concept").count() == published(spark, small, FEATURES, "concept").count()
    assert champions(spark, whole).keys() == {"concept"}
    assert last_transaction(spark, whole, GOLDEN, "golden/few") == 0  # the next version is 2, as in the big lake
    runs = {row.run_id: row for row in read(spark, whole, RUNS).collect()}
    assert not any(row.whole_plan for run_id, row in runs.items() if run_id != "s.sample")
    assert not (tmp_path / "whole" / UNFINISHED).exists() and not list((tmp_path / "whole" / "_staging").iterdir())


@pytest.mark.spark
@pytest.mark.faults
def test_a_shard_of_one_document_has_all_that_belongs_to_it(spark: SparkSession, small: Lake, tmp_path: Path) -> None:
    only = Sample(fraction=1, where=f"doc_id = '{rows.document(small_lake.NAMES[1])['doc_id']}'")
    few = begin_shard(spark, small, str(tmp_path / "few"))
    cut(spark, small, few, only, run_id="s.sample", progress=lambda text: None)
    assert broken_rules(spark, few) == strangers(spark, few) == {}
    assert ids_of(spark, few) == {
        "documents": 1, "fetches": 1, "media": 1, "features": 4, "mentions": 1, "golden": 2, "evaluations": 1
    }  # fmt: skip
    query = read(spark, few, GOLDEN).where("query IS NOT NULL").first()
    assert query is not None and [one.media_id for one in query.relevant] == [rows.media_id(small_lake.NAMES[1])]
    assert '"items": 2' in query.card


@pytest.mark.spark
def test_who_only_reads_makes_no_table(spark: SparkSession, small: Lake, tmp_path: Path) -> None:
    lake = small_lake.copied(small, tmp_path / "lake")
    shutil.rmtree(tmp_path / "lake" / "evaluations")  # of a crawl that is about to make it
    with pytest.raises(LakeError, match="has no table evaluations: a crawl is making the lake at this moment"):
        open_lake(spark, lake.uri, create=False)
    assert not (tmp_path / "lake" / "evaluations").exists()
    open_lake(spark, lake.uri)
    assert (tmp_path / "lake" / "evaluations" / "_delta_log").is_dir()


@pytest.mark.spark
def test_rows_of_a_few_media_are_read_from_the_files_that_hold_them(
    spark: SparkSession, small: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyspark.sql import functions as F

    lake = small_lake.copied(small, tmp_path / "a lake+100%")
    more = [rows.feature(f"more{i}", rows.CONCEPT, []) for i in range(3)]
    for row in more:
        append(rows.frame_of(spark, FEATURES, [row]).coalesce(1), lake, FEATURES)
    wanted = [small_lake.LARGE_ID, rows.media_id("more1"), "0" * 64]
    ids = spark.createDataFrame([(media_id,) for media_id in wanted], "media_id STRING")
    found = rows_of(spark, lake, FEATURES, ids)
    assert len(found.inputFiles()) < len(read(spark, lake, FEATURES).inputFiles())
    expected = read(spark, lake, FEATURES).where(F.col("media_id").isin(wanted))
    assert found.schema.simpleString() == expected.schema.simpleString()
    assert found.exceptAll(expected).isEmpty() and found.count() == expected.count() > 5
    assert rows_of(spark, lake, FEATURES, ids.limit(0)).isEmpty()
    monkeypatch.setattr("jobs.lake.FEW_FILES", 0)
    assert rows_of(spark, lake, FEATURES, ids).count() == expected.count()


@pytest.mark.spark
def test_a_shard_that_was_cut_short_is_no_lake_and_nothing_is_written_over(
    spark: SparkSession, small: Lake, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def killed(text: str) -> None:
        if text == "copying features":
            raise Killed

    out = begin_shard(spark, small, str(tmp_path / "shard"))
    with pytest.raises(Killed):
        cut(spark, small, out, ALL, run_id="s.sample", progress=killed)
    with pytest.raises(LakeError, match="is not whole: `lakelens sample` was cut short there"):
        open_lake(spark, str(tmp_path / "shard"))
    with pytest.raises(LakeError, match="holds a sample that was cut short; remove it"):
        begin_shard(spark, small, str(tmp_path / "shard"))
    with pytest.raises(LakeError, match=r"is not empty: it holds .*; name another place"):
        begin_shard(spark, small, str(tmp_path))
    with pytest.raises(LakeError, match="are in one another"):
        begin_shard(spark, small, f"{small.uri}/shard")
    nothing = begin_shard(spark, small, str(tmp_path / "nothing"))
    with pytest.raises(
        ConfigError, match=r"no document is in the sample: --fraction 1 of 14 documents, --error storage"
    ):
        cut(spark, small, nothing, replace(ALL, errors=["storage"]), run_id="s.sample", progress=lambda text: None)


@pytest.mark.spark
@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_sample_that_is_ended_leaves_nothing_and_one_that_is_killed_says_so(
    small: Lake, tmp_path: Path, how: signal.Signals
) -> None:
    out, log = tmp_path / "shard", tmp_path / "log"
    command = [sys.executable, "-m", "jobs", "sample", "--lake", small.uri, "--out", str(out), "--fraction", "1"]

    def begun() -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)

    process, until = begun(), time.monotonic() + PATIENCE_S
    while not list(out.glob("documents/_delta_log/*1.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert process.poll() is None and (out / UNFINISHED).exists(), log.read_text()
    if how == signal.SIGINT:
        process.send_signal(how)
        assert process.wait(timeout=PATIENCE_S) != 0
        assert not out.exists()
    else:
        kill_all(process)
        again = begun()
        assert again.wait(timeout=PATIENCE_S) == 2
        assert f"--out {out.as_uri()} holds a sample that was cut short; remove it" in log.read_text()
        shutil.rmtree(out)
    assert begun().wait(timeout=PATIENCE_S) == 0, log.read_text()
    assert not (out / UNFINISHED).exists()
