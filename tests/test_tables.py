"""What `lakelens tables` says of runs and sources."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from jobs.tables import age, described_run, freshness, grid, readable_bytes
from tests.rows import NOW

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def run_of(**changed: Any) -> dict[str, Any]:
    row = {"run_id": "a.check", "status": "accepted", "started": NOW - timedelta(minutes=5), "heartbeat": NOW}
    return row | {"covers": ["a.crawl"], "metrics": {}} | changed


def test_a_run_is_shown_with_its_gates_and_its_dollars() -> None:
    shown = described_run(
        run_of(metrics={"expectations": 31.0, "expectations_failed": 0.0, "usd": 0.02}), NOW, expiry_s=300
    )
    assert (shown["gates"], shown["usd"], shown["started"], shown["covers"]) == (
        "31 hold",
        0.02,
        "5 min ago",
        "a.crawl",
    )
    failing = run_of(status="rejected", metrics={"expectations": 31.0, "expectations_failed": 2.0})
    assert described_run(failing, NOW, expiry_s=300)["gates"] == "2 of 31 fail"
    assert described_run(run_of(), NOW, expiry_s=300)["gates"] == ""


def test_a_run_that_shows_no_life_is_dead_once_its_lease_is_over() -> None:
    silent = run_of(status="running", heartbeat=NOW - timedelta(seconds=301))
    assert described_run(silent, NOW, expiry_s=300)["status"] == "dead"
    assert described_run(silent, NOW, expiry_s=302)["status"] == "running"
    assert described_run(silent | {"status": "failed"}, NOW, expiry_s=300)["status"] == "failed"


def test_bytes_and_ages_are_in_the_unit_that_people_use() -> None:
    assert [readable_bytes(n) for n in (1023, 1536, 5 << 30)] == ["1023 B", "1.5 kB", "5.0 GB"]
    assert [age(NOW - timedelta(seconds=s), NOW) for s in (59, 7300, 200_000)] == ["59 s ago", "2 h ago", "2 d ago"]


def test_a_cell_is_shown_as_it_is_whatever_is_in_it() -> None:
    console = Console(file=io.StringIO(), width=100)
    texts = ["http://e.example/?a[/b]=1", "[bold]x", "[::1]", "a:cat:b", "ends with a \\"]
    console.print(grid("shown", ["value"], [{"value": text} for text in texts], []))
    assert isinstance(console.file, io.StringIO)
    assert [line.rstrip() for line in console.file.getvalue().splitlines()[2:]] == texts


@pytest.mark.spark
def test_sources_say_how_fresh_they_are_and_what_is_due(spark: SparkSession) -> None:
    day = timedelta(days=1)
    rows: list[tuple[Any, ...]] = [
        ("web", "page", None, NOW - 3 * day, NOW - day),
        ("web", None, "not_found", NOW - day, NOW + day),
        ("web", "sitemap", "deferred", None, NOW),
        ("photos", "image", None, NOW, None),
    ]
    ddl = "source STRING, media_type STRING, error STRING, fetched_at TIMESTAMP, next_fetch_at TIMESTAMP"
    documents = spark.createDataFrame(rows, ddl)
    found = [row.asDict() for row in freshness(documents, NOW).collect()]
    counts = [(row["source"], row["documents"], row["pages"], row["errors"], row["due"]) for row in found]
    assert counts == [("photos", 1, 0, 0, 0), ("web", 3, 2, 2, 2)]
    assert [(row["newest"].astimezone(NOW.tzinfo), row["oldest"].astimezone(NOW.tzinfo)) for row in found] == [
        (NOW, NOW),
        (NOW - day, NOW - 3 * day),
    ]
