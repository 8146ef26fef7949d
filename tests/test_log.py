"""Log lines of JSON: on the driver, in tasks, and in the schema by which Spark reads its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from jobs.log import IN_TASKS, line, logged, told_to_tasks
from jobs.progress import Progress
from tests.test_architecture import ROOT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NOON = datetime(2026, 11, 28, 12, 0, 0, 1234, tzinfo=UTC)


def test_a_line_has_the_fields_of_sparks_structured_log_and_leaves_out_what_is_not_known() -> None:
    said = json.loads(line("committing", {"run_id": "a.crawl", "wave": 2, "task": None}, now=NOON))
    assert said == {
        "ts": "2026-11-28T12:00:00.001Z",
        "level": "INFO",
        "msg": "committing",
        "context": {"run_id": "a.crawl", "wave": "2"},
        "logger": "lakelens",
    }


def test_progress_in_json_says_of_which_run_job_and_wave_and_why_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(live=True, context={"run_id": "a"})
    with pytest.raises(OSError, match="gone"), shown.shown():
        shown("starting Spark")
        shown.about(run_id="a.featurize", job="featurize")
        shown(lambda: "featurizing", wave=3)
        shown("measuring")
        shown.note("what limited it")
        raise OSError("the store is gone\nin many words")
    lines = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    job = {"run_id": "a.featurize", "job": "featurize"}
    assert [(one["msg"], one["context"], one["level"]) for one in lines] == [
        ("starting Spark", {"run_id": "a"}, "INFO"),
        ("featurizing", {**job, "wave": "3"}, "INFO"),
        ("measuring", job, "INFO"),
        ("what limited it", job, "INFO"),
        ("the store is gone", job, "ERROR"),
    ]


def test_progress_in_words_says_nothing_of_a_failure_which_is_the_last_line_anyway(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(OSError, match="gone"), Progress(live=False).shown():
        raise OSError("the store is gone")
    assert capsys.readouterr().err == ""


@pytest.mark.spark
def test_a_task_that_is_to_log_says_whose_it_is_and_another_says_nothing(spark: SparkSession, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with open(log, "a") as file, redirect_stderr(file):
            yield from logged(batches, "done")

    asked = spark.range(5, numPartitions=1).mapInArrow(rows, "id LONG")
    with told_to_tasks(spark, run_id="a.featurize", job="featurize"):
        asked.collect()
        spark.sparkContext.setLocalProperty(IN_TASKS, "json")
        with told_to_tasks(spark, wave=4):
            asked.collect()
        asked.collect()
        spark.sparkContext.setLocalProperty(IN_TASKS, None)  # type: ignore[arg-type]
    asked.collect()
    lines = [json.loads(text)["context"] for text in Path(log).read_text().splitlines()]
    assert [(one["run_id"], one["job"], one.get("wave"), one["n_rows"], one["task"]) for one in lines] == [
        ("a.featurize", "featurize", "4", "5", "0"),
        ("a.featurize", "featurize", None, "5", "0"),
    ]


@pytest.mark.faults  # not that anything fails: a command from start to end
@pytest.mark.spark
def test_every_line_of_a_run_is_json_that_spark_reads_and_tasks_say_whose_they_are(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    settings = {
        "crawl.sources": json.dumps([{"name": "media", "kind": "folder", "uri": str(tmp_path / "media")}]),
        "spark.log": "json",
        "spark.master": "local[1]",
    }
    command = [sys.executable, "-m", "jobs", "crawl", "--lake", str(tmp_path / "lake"), "--run-id", "logged", "--json"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(text) for text in ended.stderr.splitlines() if not text.startswith("WARNING: Using incubator")]
    assert {one["logger"] for one in lines} >= {"lakelens"}
    [task] = [one["context"] for one in lines if one["msg"] == "fetched"]
    assert task["run_id"] == "logged.crawl" and task["job"] == "crawl" and task["wave"] == "1"
    assert task["task"] == "0" and task["attempt"] == "0" and task["n_rows"] == "1"
    assert {one["context"].get("job") for one in lines if "crawling" in one["msg"]} == {"crawl"}
