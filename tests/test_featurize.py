"""Media become rows of `features` exactly once, whatever happens between."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from jobs import featurize, runs
from jobs.commit import last_transaction
from jobs.config import Config, load_config
from jobs.lake import Lake, append, open_lake, read, version
from jobs.progress import unseen
from jobs.work import Selection, media_to_plan, prepare
from schemas import DOCUMENTS, FEATURES, FRAMES, MEDIA, MENTIONS
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
ID = "concept_efficientnet.lite0@1"


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((96, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


def add_media(spark: SparkSession, lake: Lake, contents: list[bytes]) -> list[str]:
    rows: list[dict[str, Any]] = []
    for content in contents:
        row: dict[str, Any] = dict.fromkeys(MEDIA.columns.names)
        row |= {"media_id": hashlib.sha256(content).hexdigest(), "content": content, "mime": "image/jpeg"}
        row |= {"size_bytes": len(content), "ingested_at": datetime.now(UTC)}
        rows.append(row)
    append(spark.createDataFrame([tuple(r.values()) for r in rows], schema_ddl(MEDIA.columns)), lake, MEDIA)
    return [row["media_id"] for row in rows]


@pytest.fixture(scope="module")
def config() -> Config:
    chosen = [f"featurize.featurizers=[{ID}]", "featurize.link_captions=false", "featurize.max_pixels=1000000"]
    return load_config(assignments=chosen)


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    return open_lake(spark, str(tmp_path / "lake with a space"))


def execute(
    spark: SparkSession,
    lake: Lake,
    config: Config,
    name: str,
    *,
    selection: Selection | None = None,
    while_running: Any = None,
) -> runs.JobResult:
    work = prepare(config.featurize)
    with runs.executing(
        spark, lake, run_id=f"{name}.featurize", job="featurize", inputs=featurize.pins(spark, lake),
        outputs=work.outputs, config_digest="d", heartbeat_s=60, expiry_s=300, progress=unseen,
    ) as run:  # fmt: skip
        if while_running is not None:
            while_running(run)
        result = featurize.run(spark, lake, config, run, work, selection or Selection())
        runs.finish(spark, lake, run, result, mlflow_run_id=None)
    return result


def keys(spark: SparkSession, lake: Lake) -> list[tuple[str, int]]:
    return sorted((row.media_id, row.frame) for row in read(spark, lake, FEATURES).collect())


def accept(spark: SparkSession, lake: Lake, *run_ids: str) -> None:
    owners = {row["run_id"]: row["owner"] for row in runs.run_rows(spark, lake) if row["run_id"] in run_ids}
    runs.judge(spark, lake, owners, "accepted", expiry_s=300)


def test_every_media_gets_one_row_broken_ones_an_error_and_a_second_run_adds_nothing(
    spark: SparkSession, lake: Lake, config: Config
) -> None:
    good = jpeg(1)
    bomb = io.BytesIO()
    Image.new("1", (2000, 2000)).save(bomb, "PNG")
    ids = add_media(spark, lake, [good, good[: len(good) // 2], b"no picture at all", bomb.getvalue()])
    execute(spark, lake, config, "a")
    rows = {row.media_id: row for row in read(spark, lake, FEATURES).collect()}
    assert sorted(rows) == sorted(ids)
    assert [rows[i].error.code if rows[i].error else None for i in ids] == [
        None, "truncated", "undecodable", "pixel_limit",
    ]  # fmt: skip
    assert all((row.features is None) != (row.error is None) for row in rows.values())
    assert len(rows[ids[0]].features) == 5 and len(rows[ids[0]].features[0].vector) == 1280
    assert [(f.media_id, f.width, f.height) for f in read(spark, lake, FRAMES).collect()] == [(ids[0], 96, 64)]
    before = version(spark, lake, FEATURES)
    execute(spark, lake, config, "b")
    assert version(spark, lake, FEATURES) == before


def test_after_an_accepted_run_only_the_new_media_are_planned(spark: SparkSession, lake: Lake, config: Config) -> None:
    add_media(spark, lake, [jpeg(1), jpeg(2)])
    execute(spark, lake, config, "a")
    accept(spark, lake, "a.featurize")
    [new] = add_media(spark, lake, [jpeg(3)])
    result = execute(spark, lake, config, "b")
    assert result.message.startswith("1 media")
    assert [r.media_id for r in read(spark, lake, FEATURES).where("run_id = 'b.featurize'").collect()] == [new]


def test_a_limited_run_leaves_the_rest_to_the_next(spark: SparkSession, lake: Lake, config: Config) -> None:
    ids = add_media(spark, lake, [jpeg(i) for i in range(4)])
    limited = execute(spark, lake, config, "a", selection=Selection(limit=1))
    assert not limited.whole_plan
    accept(spark, lake, "a.featurize")
    execute(spark, lake, config, "b")
    assert [key[0] for key in keys(spark, lake)] == sorted(ids)


def test_a_sample_takes_the_same_media_every_time_and_leaves_the_rest_to_the_next(
    spark: SparkSession, lake: Lake, config: Config
) -> None:
    ids = sorted(add_media(spark, lake, [jpeg(i) for i in range(8)]))
    sampled = [media_id for media_id in ids if int(media_id[:8], 16) < 0.4 * 2**32]
    assert 0 < len(sampled) < len(ids)
    assert not execute(spark, lake, config, "a", selection=Selection(sample=0.4)).whole_plan
    assert [key[0] for key in keys(spark, lake)] == sampled
    execute(spark, lake, config, "b", selection=Selection(sample=0.4))
    assert [key[0] for key in keys(spark, lake)] == sampled
    execute(spark, lake, config, "c")
    assert [key[0] for key in keys(spark, lake)] == ids


def test_a_run_that_was_taken_over_after_planning_commits_nothing_twice(
    spark: SparkSession, lake: Lake, config: Config
) -> None:
    """The slow attempt plans, another one finishes the work under the same run id, then the slow one goes on."""
    ids = add_media(spark, lake, [jpeg(i) for i in range(3)])
    work = prepare(config.featurize)
    arguments: dict[str, Any] = {
        "run_id": "a.featurize", "job": "featurize", "inputs": featurize.pins(spark, lake), "outputs": work.outputs,
        "config_digest": "d", "heartbeat_s": 600, "progress": unseen,
    }  # fmt: skip
    with (
        pytest.raises(runs.RunTakenOver, match="taken over"),
        runs.executing(spark, lake, **arguments, expiry_s=300) as slow,
    ):
        planned_wave = last_transaction(spark, lake, FEATURES, work.due[0].app_id) + 1
        with runs.executing(spark, lake, **arguments, expiry_s=0) as quick:
            runs.finish(spark, lake, quick, featurize.run(spark, lake, config, quick, work, Selection()),
                        mlflow_run_id=None)  # fmt: skip
        plan = media_to_plan(read(spark, lake, MEDIA)).selectExpr("media_id", f"array('{ID}') AS due", "file")
        files = [featurize.MediaFile(row.file, 3, 1000) for row in plan.select("file").distinct().collect()]
        staged = featurize.stage_wave(spark, plan, files, work.due, config.featurize, f"{lake.staging('slow')}/wave-0")
        featurize.append_frames(spark, lake, staged)
        featurize.commit_features(spark, lake, staged, work.due[0], slow, planned_wave, retries=False, n_files=1)
        runs.finish(spark, lake, slow, runs.JobResult(status="finished", message=""), mlflow_run_id=None)
    assert [key[0] for key in keys(spark, lake)] == sorted(ids)
    assert read(spark, lake, FRAMES).count() == 3
    assert [row["owner"] for row in runs.run_rows(spark, lake)] == [quick.owner]


def test_a_retryable_error_is_replaced_by_a_later_run_and_a_final_one_is_not(
    spark: SparkSession, lake: Lake, config: Config
) -> None:
    ids = add_media(spark, lake, [jpeg(1), jpeg(2), jpeg(3)])
    execute(spark, lake, config, "a")
    app_id = prepare(config.featurize).due[0].app_id
    for media_id, code in ((ids[0], "storage"), (ids[1], "undecodable")):
        spark.sql(
            f"UPDATE delta.`{lake.table(FEATURES)}` SET features = null, "
            f"error = named_struct('stage', 'decode', 'code', '{code}', 'detail', 'was away') "
            f"WHERE media_id = '{media_id}'"
        )
    waves = last_transaction(spark, lake, FEATURES, app_id)
    execute(spark, lake, config, "b")
    rows = {row.media_id: row for row in read(spark, lake, FEATURES).collect()}
    assert len(rows) == 3 == read(spark, lake, FEATURES).count()
    assert rows[ids[0]].error is None and rows[ids[0]].run_id == "b.featurize"
    assert rows[ids[1]].error.code == "undecodable" and rows[ids[1]].run_id == "a.featurize"
    assert last_transaction(spark, lake, FEATURES, app_id) == waves + 1
    execute(spark, lake, config, "c", selection=Selection(retry_errors=True))
    assert read(spark, lake, FEATURES).where("error IS NOT NULL").count() == 0


def test_captions_titles_and_positions_become_mentions_once(spark: SparkSession, lake: Lake, config: Config) -> None:
    [media_id] = add_media(spark, lake, [jpeg(1)])
    spark.sql(f"UPDATE delta.`{lake.table(MEDIA)}` SET latitude = 48.8566D, longitude = 2.3522D")
    row: dict[str, Any] = dict.fromkeys(DOCUMENTS.columns.names)
    row |= {
        "doc_id": "d1",
        "url": "http://h/a.jpg",
        "host": "h",
        "host_bucket": 1,
        "source": "s",
        "opted_out": False,
        "n_gone": 0,
    }
    row |= {"media_id": media_id, "caption": "A tram in Lisbon, Portugal", "page_title": "  "}
    append(spark.createDataFrame([tuple(row.values())], schema_ddl(DOCUMENTS.columns)), lake, DOCUMENTS)
    linking = load_config(assignments=[f"featurize.featurizers=[{ID}]"])
    for name in ("a", "b"):
        execute(spark, lake, linking, name)
    found = {r.source: [f.label for f in r.features] for r in read(spark, lake, MENTIONS).collect()}
    assert found == {"caption": ["city:2267057", "country:PT"], "gps": ["city:2988507"]}
    assert read(spark, lake, MENTIONS).count() == 2
