"""What any lake fulfils. Of the lake that --lake names (`pytest --lake=URI`), else of a small one made here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.check import EXPERIMENT, JUDGED_JOBS, JUDGED_TABLES, JudgedRun, build_suites, vector_lengths
from jobs.config import load_config
from jobs.lake import Lake, open_lake, read
from jobs.packs import PackFile
from jobs.runs import covered_run_ids, run_rows
from schemas import EVALUATIONS, FEATURES, FETCHES, GOLDEN, HOSTS, MEDIA, MENTIONS, RUNS, TABLES, TAKEDOWNS, Table
from schemas.runs import RUN_STATUSES
from schemas.table import column_doc
from tests import rows, small_lake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
MAX_OPENED = 100  # objects of media held by reference


@pytest.fixture(scope="module")
def lake(spark: SparkSession, request: pytest.FixtureRequest) -> Lake:
    uri = request.config.getoption("--lake")
    if uri is not None:
        return open_lake(spark, uri, create=False)
    small: Lake = request.getfixturevalue("small")
    return small


def broken_rules(spark: SparkSession, lake: Lake) -> dict[str, int]:
    """Rules of the gates that rows of the lake break, and by how many; every run's rows are looked at."""
    from pyspark.sql import functions as F

    runs = [
        JudgedRun(
            run_id=row["run_id"],
            owner=row["owner"],
            complete=row["status"] not in ("running", "failed"),
            outputs=row["outputs"] or {},
        )
        for row in run_rows(spark, lake)
        if row["job"] in (*JUDGED_JOBS, EXPERIMENT)
    ]
    tables = {table.name: read(spark, lake, table) for table in JUDGED_TABLES}
    suites = build_suites(spark, tables, runs, dims=vector_lengths(load_config()), max_error_rate={})
    found = {}
    for suite in suites:
        sums = suite.rows.agg(*(F.coalesce(F.sum(rule.name), F.lit(0)).alias(rule.name) for rule in suite.rules))
        found |= {f"{suite.table}.{name}": n for name, n in sums.collect()[0].asDict().items() if n}
    return found


def strangers(spark: SparkSession, lake: Lake) -> dict[str, int]:
    """References from one table to another that lead nowhere, and how many rows have them."""
    from pyspark.sql import functions as F

    run_ids = read(spark, lake, RUNS).select("run_id").distinct()
    media_ids = read(spark, lake, MEDIA).select("media_id").distinct()
    items = read(spark, lake, GOLDEN).select("golden_set", "golden_version", "item_id").distinct()

    def of_no_run(table: Table) -> int:
        rows = read(spark, lake, table).where("run_id IS NOT NULL")  # a host that was never asked has none
        return rows.join(run_ids, on="run_id", how="left_anti").count()

    found = {
        f"{table.name}.run_id": of_no_run(table)
        for table in (FETCHES, FEATURES, MENTIONS, EVALUATIONS, TAKEDOWNS, HOSTS)
    }
    golden = read(spark, lake, GOLDEN)
    relevant = golden.select(F.explode("relevant.media_id").alias("media_id"))
    asked = golden.where("media_id IS NOT NULL").select("media_id").unionByName(relevant)
    found["golden.media_id"] = asked.join(media_ids, on="media_id", how="left_anti").count()
    labels = golden.select("golden_set", "golden_version", F.explode("labels").alias("item_id")).distinct()
    measured = read(spark, lake, EVALUATIONS).join(items.unionByName(labels), on=items.columns, how="left_anti")
    found["evaluations.item_id"] = measured.count()
    covered = covered_run_ids(spark, lake)
    found["runs.covers"] = covered.join(run_ids, on="run_id", how="left_anti").count()
    return {name: n for name, n in found.items() if n}


def column_differences(spark: SparkSession, lake: Lake, table: Table) -> list[str]:
    """Columns whose name, nullability or documentation is not the code's."""
    there = read(spark, lake, table).schema
    found: Mapping[str, Any] = {field.name: field.metadata.get("comment") for field in there.fields}
    expected = {field.name: column_doc(field) for field in table.columns}
    return [f"{name}: {found.get(name)!r}" for name in {**expected, **found} if found.get(name) != expected.get(name)]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_columns_and_their_docs_are_those_of_the_code(spark: SparkSession, lake: Lake, table: Table) -> None:
    assert column_differences(spark, lake, table) == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_key_stands_once(spark: SparkSession, lake: Lake, table: Table) -> None:
    repeated = read(spark, lake, table).groupBy(*table.key).count().where("count > 1")
    assert [row.asDict() for row in repeated.limit(3).collect()] == []


def test_no_row_breaks_a_rule_of_the_gates(spark: SparkSession, lake: Lake) -> None:
    assert broken_rules(spark, lake) == {}


def test_what_a_row_refers_to_is_there(spark: SparkSession, lake: Lake) -> None:
    assert strangers(spark, lake) == {}


def test_what_is_held_by_reference_has_all_its_bytes(spark: SparkSession, lake: Lake) -> None:
    held = read(spark, lake, MEDIA).where("pack_uri IS NOT NULL").orderBy("media_id").limit(MAX_OPENED)
    for row in held.select("pack_uri", "offset", "length").collect():
        PackFile(row.pack_uri, row.offset, row.length).close()


def test_runs_have_a_known_status_and_only_one_that_goes_on_has_no_end(spark: SparkSession, lake: Lake) -> None:
    runs = run_rows(spark, lake)
    assert {row["status"] for row in runs} <= set(RUN_STATUSES)
    assert [row["run_id"] for row in runs if (row["ended"] is None) != (row["status"] == "running")] == []


def test_published_rows_are_of_runs_that_were_judged_whole_or_ended_early(spark: SparkSession, lake: Lake) -> None:
    """A check covers a run once it has ended; of a rejected run nothing is published unless a later check takes it."""
    statuses = {row["run_id"]: row["status"] for row in run_rows(spark, lake)}
    covered = [row.run_id for row in covered_run_ids(spark, lake).collect()]
    assert {run_id: statuses[run_id] for run_id in covered if statuses[run_id] not in ("accepted", "failed")} == {}


def test_no_table_has_deletion_vectors(spark: SparkSession, lake: Lake) -> None:
    for table in TABLES:
        details = spark.sql(f"DESCRIBE DETAIL delta.`{lake.table(table)}`").collect()[0]
        assert details.properties["delta.enableDeletionVectors"] == "false", table.name


@pytest.mark.faults
def test_a_row_that_breaks_the_contract_is_found(spark: SparkSession, small: Lake, tmp_path: Path) -> None:
    """The small lake with a duplicate of another run, a lost golden picture and a forbidden code."""
    from jobs.lake import append

    lake = small_lake.copied(small, tmp_path / "lake")
    [wrong] = [row for row in rows.understood(small_lake.NAMES[1]) if row["featurizer"] == rows.OBJECT]
    wrong |= {"run_id": "nobody.featurize", "frame": 5, "features": None}
    wrong["error"] = {"stage": "infer", "code": "made_up", "detail": ""}
    append(rows.frame_of(spark, FEATURES, [wrong | {"run_id": "r.featurize"}, wrong]), lake, FEATURES)
    lost = small_lake.golden_item("lost", kind="queries", media_id="f" * 64)
    append(rows.frame_of(spark, GOLDEN, [lost]), lake, GOLDEN)
    assert {"features.error_code", "features.key_unique", "features.frame_complete"} <= broken_rules(spark, lake).keys()
    assert strangers(spark, lake) == {"features.run_id": 1, "golden.media_id": 1}
