"""The gates let sound rows through, reject each planted fault by its own rule, and name the rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.check import CheckRefused, JudgedRun, judged_runs
from jobs.config import load_config
from jobs.expectations import Judgement, describe_failure
from jobs.progress import unseen
from schemas import DOCUMENTS, FEATURES, FETCHES, FRAMES, MEDIA, MENTIONS, RUNS
from tests import rows
from tests.rows import CONCEPT, ENTITY, FINGERPRINTS, LINKER, OBJECT

DIMS = {CONCEPT: 1280, OBJECT: 256, ENTITY: 384, LINKER: 384}
BUDGET = {"documents": 0.2, "features": 0.1, "mentions": 0.05}
NAMES = [f"picture{i}" for i in range(12)]


def sound_tables() -> dict[str, list[dict[str, Any]]]:
    """Twelve pictures, one of them refused and one of them broken, that keep every rule."""
    *fine, refused = NAMES
    forbidden = {"stage": "fetch", "code": "robots_disallowed", "detail": "/private/"}
    no_media = {"media_id": None, "media_type": None, "error": forbidden}
    features = [row for name in fine[1:] for row in rows.understood(name)]
    features += rows.failed(fine[0], "truncated", detail="ends after 812 bytes")
    return {
        "fetches": [
            *(rows.fetch(name) for name in fine),
            rows.fetch(refused, http_status=None, error=forbidden, robots="disallowed"),
        ],
        "documents": [
            *(rows.document(name, page_url=rows.document("page")["url"]) for name in fine),
            rows.document(refused, **no_media),
            rows.document("page", media_id=None, media_type="page", depth=0),
        ],
        "media": [rows.media(name) for name in fine],
        "frames": [rows.frame(name) for name in fine[1:]],
        "features": features,
        "mentions": [rows.mention(name) for name in fine],
    }


def test_rows_of_live_covered_and_other_jobs_are_not_judged() -> None:
    now = rows.NOW + timedelta(hours=1)
    found = judged_runs(
        [
            rows.run_row("new.featurize", "featurize"),
            rows.run_row("live.featurize", "featurize", status="running", heartbeat=now - timedelta(seconds=20)),
            rows.run_row("dead.featurize", "featurize", status="running", heartbeat=now - timedelta(hours=1)),
            rows.run_row("published.featurize", "featurize", status="accepted"),
            rows.run_row("bad.crawl", "crawl", status="rejected"),
            rows.run_row("old.check", "check", status="accepted", covers=["published.featurize"]),
        ],
        ["published.featurize"],
        now=now,
        expiry_s=300,
    )
    assert [(run.run_id, run.complete) for run in found] == [
        ("bad.crawl", True),
        ("dead.featurize", False),
        ("new.featurize", True),
    ]


def test_an_experiment_is_judged_once_its_vectors_are_wanted() -> None:
    tried = rows.run_row("try.a.experiment", "experiment", outputs={rows.CONCEPT: "1" * 32})
    wanted = rows.run_row("all.featurize", "featurize", outputs={rows.CONCEPT: "1" * 32, rows.OBJECT: "2" * 32})
    other = rows.run_row("all.featurize", "featurize", outputs={rows.CONCEPT: "3" * 32})

    def judged(*found: rows.Row) -> list[str]:
        return [run.run_id for run in judged_runs(found, [], now=rows.NOW + timedelta(hours=1), expiry_s=300)]

    assert judged(tried) == []
    assert judged(tried, other) == ["all.featurize"]
    assert judged(tried, wanted) == ["all.featurize", "try.a.experiment"]


def test_a_failed_expectation_is_described_with_its_first_rows() -> None:
    broken = [{"media_id": name, "frame": "0"} for name in "abcd"]
    outcome = Judgement(
        table="features", rule="vector_norm", says="a vector is finite", passed=False, observed=4.0, allowed=0.0,
        n_rows=9, rows=broken,
    )  # fmt: skip
    assert describe_failure(outcome) == (
        "features.vector_norm: broken by 4 rows (a vector is finite): "
        "media_id=a frame=0, media_id=b frame=0, media_id=c frame=0, ..."
    )


def broken_rules(
    spark: Any, tmp_path: Path, tables: dict[str, list[dict[str, Any]]], runs: Any = None, only: str = ""
) -> dict[str, Any]:
    """The failed outcomes by table.rule, of one table only where it is named."""
    from jobs.check import build_suites
    from jobs.expectations import validate

    judged = runs or [
        JudgedRun(run_id="r.crawl", owner="o", complete=True, outputs={}),
        JudgedRun(run_id="r.featurize", owner="o", complete=True, outputs={**FINGERPRINTS, LINKER: "0" * 32}),
    ]
    frames = {
        t.name: rows.frame_of(spark, t, tables[t.name]) for t in (FETCHES, DOCUMENTS, MEDIA, FRAMES, FEATURES, MENTIONS)
    }
    suites = build_suites(spark, frames, judged, dims=DIMS, max_error_rate=BUDGET)
    outcomes = validate([suite for suite in suites if only in ("", suite.table)], tmp_path)
    return {f"{outcome.table}.{outcome.rule}": outcome for outcome in outcomes if not outcome.passed}


@pytest.mark.spark
def test_each_planted_fault_is_caught_by_its_own_rule_and_named(spark: Any, tmp_path: Path) -> None:
    """One faulty row for each rule, in one set of tables; a row may break only the rule it was planted for."""
    tables = sound_tables()
    planted: dict[str, Any] = {}

    def plant(rule: str, row: dict[str, Any]) -> None:
        table = rule.partition(".")[0]
        tables[table].append(row)
        planted[rule] = row

    def picture(name: str) -> None:
        tables["media"].append(rows.media(name))
        tables["frames"].append(rows.frame(name))
        tables["features"] += [row for row in rows.understood(name) if row["featurizer"] != CONCEPT]

    def concept(rule: str, features: list[dict[str, Any]] | None, **changed: Any) -> None:
        name = rule.replace(".", "-")
        picture(name)
        plant(rule, rows.feature(name, CONCEPT, features, **changed))

    fine = [rows.found(1280)]
    box = {"label": "cat", "score": 0.5}
    concept("features.features_or_error", fine, error={"stage": "infer", "code": "model_failed", "detail": ""})
    concept("features.error_code", None, error={"stage": "infer", "code": "truncated", "detail": ""})
    concept("features.error_detail", None, error={"stage": "infer", "code": "model_failed", "detail": "x" * 201})
    concept("features.vector_length", [rows.found(1279)])
    concept("features.vector_norm", [rows.found(1280) | {"vector": [math.nan, *rows.unit(1279)]}])
    concept("features.feature_not_empty", [rows.found(score=0.5)])
    concept("features.box_inside", [rows.found(1280, box=[0.6, 0.1, 0.5, 0.2], **box)])
    concept("features.score_range", [rows.found(1280, label="cat", score=1.5)])
    concept("features.fingerprint", fine, fingerprint="short")
    concept("features.times", fine, infer_ms=-1.0)
    tables["media"].append(rows.media("no-frame"))
    tables["features"] += rows.understood("no-frame")[1:]
    plant("features.frame_known", rows.understood("no-frame")[0])
    tables["frames"].append(rows.frame("no-media"))
    plant("frames.media_known", rows.frame("no-media", 5))
    picture("incomplete")
    planted["features.frame_complete"] = rows.understood("incomplete")[1]
    picture("twice")
    tables["features"].append(rows.understood("twice")[0])
    plant("features.key_unique", rows.understood("twice")[0] | {"run_id": "published.featurize"})
    plant("documents.media_known", rows.document("lost"))
    plant("documents.doc_id", rows.document(NAMES[1], doc_id="f" * 32))
    plant("documents.outcome", rows.document("nothing", media_id=None, media_type=None))
    plant("documents.media_type", rows.document(NAMES[2], url="http://example.org/x", media_type="sound"))
    planted["documents.media_type"]["doc_id"] = rows.document("x")["doc_id"]
    plant("fetches.document_known", rows.fetch("never planned"))
    plant("fetches.counts", rows.fetch(NAMES[1], attempt=0))
    plant("fetches.robots_decision", rows.fetch(NAMES[1], attempt=2, robots="perhaps"))
    plant("media.size", rows.media("hollow", size_bytes=0))
    plant("media.position", rows.media("off the map", latitude=91.0, longitude=0.0))
    plant("media.reference", rows.media("half packed", content=None, pack_uri="s3a://packs/1"))
    plant("media.held_once", rows.media("both", pack_uri="s3a://packs/1", offset=0, length=1000))
    plant("frames.time", rows.frame(NAMES[1], 400, time_s=4.0))
    plant("frames.size", rows.frame(NAMES[1], 500, width=0))
    plant("mentions.source", rows.mention(NAMES[1], source="pixels"))
    plant("mentions.document_known", rows.mention("nobody"))

    broken = broken_rules(spark, tmp_path, tables)
    for rule, row in planted.items():
        assert rule in broken, f"{rule} did not fail; failed: {sorted(broken)}"
        key = {"features": FEATURES, "documents": DOCUMENTS}.get(rule.partition(".")[0])
        if key is not None:
            named = [tuple(named.values()) for named in broken[rule].rows]
            assert tuple(str(row[name]) for name in key.key) in named, rule
    alone = {rule: outcome.observed for rule, outcome in broken.items() if rule in planted}
    # rows beside the planted ones that break a rule with them: those of the same frame, or of a faulty id
    expected = {"features.frame_known": 3, "features.frame_complete": 5, "frames.media_known": 2, "documents.doc_id": 2}
    for rule, observed in alone.items():
        assert observed == expected.get(rule, 1), f"{rule}: {observed} rows, {broken[rule].rows}"


@pytest.mark.spark
def test_too_many_errors_break_the_budget_and_the_failed_rows_are_named(spark: Any, tmp_path: Path) -> None:
    tables = sound_tables()
    for name in NAMES[1:4]:
        tables["features"] = [row for row in tables["features"] if row["media_id"] != rows.media_id(name)]
        tables["features"] += rows.failed(name, "undecodable")
    broken = broken_rules(spark, tmp_path, tables, only="features")
    assert list(broken) == ["features.error_rate"]
    assert broken["features.error_rate"].observed == pytest.approx(12 / 33)
    assert len(broken["features.error_rate"].rows) == 12


@pytest.mark.spark
def test_neither_pages_nor_what_is_not_to_be_had_moves_the_error_rate_of_pictures(spark: Any, tmp_path: Path) -> None:
    tables, gone = sound_tables(), {"stage": "fetch", "code": "not_found", "detail": ""}
    for i in range(40):
        tables["fetches"].append(rows.fetch(f"page{i}", error=gone if i < 5 else None))
        page = rows.document(f"page{i}", media_id=None, media_type="page", error=gone if i < 5 else None)
        tables["documents"].append(page)
    for name in ("lost", "missing", "moved"):
        tables["fetches"].append(rows.fetch(name, error=gone))
        tables["documents"].append(rows.document(name, media_id=None, media_type=None, error=gone))
    for code in ("taken_down", "opted_out"):
        obeyed = {"stage": "fetch", "code": code, "detail": ""}
        tables["fetches"].append(rows.fetch(code, error=obeyed))
        tables["documents"].append(rows.document(code, media_id=None, media_type=None, error=obeyed))
    broken = broken_rules(spark, tmp_path, tables, only="documents")
    assert list(broken) == ["documents.error_rate"]
    assert broken["documents.error_rate"].observed == pytest.approx(4 / 15)


@pytest.mark.spark
def test_a_killed_run_is_not_blamed_for_the_featurizers_it_had_not_come_to(spark: Any, tmp_path: Path) -> None:
    tables = sound_tables()
    tables["features"] = [row for row in tables["features"] if row["featurizer"] == CONCEPT]
    killed = [JudgedRun(run_id="r.featurize", owner="o", complete=False, outputs=FINGERPRINTS)]
    assert broken_rules(spark, tmp_path, tables, killed, only="features") == {}
    finished = [replace(killed[0], complete=True)]
    assert list(broken_rules(spark, tmp_path, tables, finished, only="features")) == ["features.frame_complete"]


def write_lake(spark: Any, tmp_path: Path, tables: dict[str, list[dict[str, Any]]], runs: list[dict[str, Any]]) -> Any:
    """A lake in Delta with these rows."""
    from jobs.lake import append, open_lake

    lake = open_lake(spark, str(tmp_path / "lake"))
    for table in (FETCHES, DOCUMENTS, MEDIA, FRAMES, FEATURES, MENTIONS):
        append(rows.frame_of(spark, table, tables[table.name]), lake, table)
    append(rows.frame_of(spark, RUNS, runs), lake, RUNS)
    return lake


@pytest.mark.spark
def test_a_bad_row_rejects_its_run_until_it_is_discarded(spark: Any, tmp_path: Path) -> None:
    from jobs import check
    from jobs.lake import read
    from jobs.published import published
    from jobs.runs import executing, finish, run_rows

    tables = sound_tables()
    bad = rows.understood("picture1", run_id="bad.featurize")[0]
    bad["features"] = [rows.found(1280) | {"vector": [0.5] * 1280}]
    tables["features"] = [row for row in tables["features"] if row["media_id"] != bad["media_id"]]
    tables["features"] += [bad, *rows.understood("picture1", run_id="bad.featurize")[1:]]
    runs = [
        rows.run_row("r.crawl", "crawl"),
        rows.run_row("r.featurize", "featurize"),
        rows.run_row("bad.featurize", "featurize"),
    ]
    lake = write_lake(spark, tmp_path, tables, runs)
    config = load_config()

    def checked(run_id: str, **chosen: Any) -> Any:
        with executing(
            spark, lake, run_id=run_id, job="check", inputs={}, outputs={}, config_digest="", heartbeat_s=300,
            expiry_s=300, progress=unseen,
        ) as run:  # fmt: skip
            result = check.run(spark, lake, config, run, **chosen)
            finish(spark, lake, run, result, mlflow_run_id=None)
            return result

    first = checked("1.check")
    assert first.status == "rejected"
    assert "features.vector_norm: broken by 1 rows" in first.message and bad["media_id"] in first.message
    assert published(spark, lake, FEATURES, CONCEPT).count() == 0
    gates = json.loads((tmp_path / "lake/reports/1.check/gates/gates.json").read_text())
    [broken] = [one for one in gates["expectations"] if not one["passed"]]
    assert broken["rows"][0]["featurizer"] == CONCEPT
    statuses = {row["run_id"]: row["status"] for row in run_rows(spark, lake)}
    assert statuses["bad.featurize"] == "rejected" and statuses["1.check"] == "rejected"

    with pytest.raises(CheckRefused, match=r"run nobody\.featurize cannot be judged"):
        checked("none.check", only=["r.crawl", "nobody.featurize"])
    alone = checked("alone.check", only=["r.crawl", "r.featurize"])
    assert (alone.status, alone.covers) == ("accepted", ["r.crawl", "r.featurize"]), alone.message
    assert published(spark, lake, FEATURES, CONCEPT).count() == 10

    with pytest.raises(CheckRefused, match="not known"):
        check.discard(spark, lake, config, "nobody.featurize")
    assert check.discard(spark, lake, config, "bad.featurize") == {"features": 3, "mentions": 0}
    second = checked("2.check")
    assert second.status == "accepted", second.message
    assert (tmp_path / "lake/reports/2.check/gates/index.html").is_file()
    of_concept = read(spark, lake, FEATURES).where(f"featurizer = '{CONCEPT}'")
    assert published(spark, lake, FEATURES, CONCEPT).count() == of_concept.count() == 10
    with pytest.raises(CheckRefused, match="is published"):
        check.discard(spark, lake, config, "r.featurize")
    assert checked("3.check").message.startswith("nothing to judge")
