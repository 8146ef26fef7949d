"""Who may start a run, and which of two writers goes on."""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobs.lake import open_lake
from jobs.progress import unseen
from jobs.runs import (
    JobResult,
    RunAccepted,
    RunRefused,
    RunTakenOver,
    decide_start,
    executing,
    finish,
    judge,
    lease_held,
    run_rows,
)

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def row(run_id: str, status: str, *, started_s: float = 100, beat_s: float = 1) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "status": status,
        "started": NOW - timedelta(seconds=started_s),
        "heartbeat": NOW - timedelta(seconds=beat_s),
    }


def test_an_unknown_run_is_inserted() -> None:
    assert decide_start(None, now=NOW, expiry_s=60) == "insert"


def test_an_accepted_run_has_nothing_to_do() -> None:
    with pytest.raises(RunAccepted, match="r was accepted"):
        decide_start(row("r", "accepted"), now=NOW, expiry_s=60)


def test_a_live_run_is_refused_with_the_age_of_its_heartbeat() -> None:
    with pytest.raises(RunRefused, match="59 s old"):
        decide_start(row("r", "running", beat_s=59), now=NOW, expiry_s=60)


@pytest.mark.parametrize("status, beat_s", [("running", 61), ("failed", 1), ("rejected", 1), ("finished", 1)])
def test_a_dead_or_ended_run_is_taken_over(status: str, beat_s: float) -> None:
    assert decide_start(row("r", status, beat_s=beat_s), now=NOW, expiry_s=60) == "take_over"


@pytest.mark.spark
def test_a_driver_whose_lease_ran_out_looks_who_owns_its_run_before_it_goes_on(spark: Any, tmp_path: Path) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    given: dict[str, Any] = {"inputs": {}, "config_digest": "", "heartbeat_s": 300, "progress": unseen}
    started = partial(executing, spark, lake, job="featurize", **given)
    with pytest.raises(RunTakenOver), started(run_id="a.featurize", outputs={"f": "1"}, expiry_s=0.01) as late:
        time.sleep(0.1)
        late.check_owned()  # nobody came in between
        with started(run_id="a.featurize", outputs={"f": "1"}, expiry_s=0.01) as other:
            time.sleep(0.1)
            finish(spark, lake, other, JobResult(status="finished", message=""), mlflow_run_id=None)
        late.check_owned()
    [left] = run_rows(spark, lake)
    assert (left["owner"], left["status"]) == (other.owner, "finished")
    # judged under an owner that is not there any more, it is not marked
    assert judge(spark, lake, {"a.featurize": late.owner}, "accepted", expiry_s=300) == []
    assert judge(spark, lake, {"a.featurize": other.owner}, "accepted", expiry_s=300) == ["a.featurize"]


@pytest.mark.spark
def test_one_run_at_a_time_writes_a_vector_space_and_another_is_refused_until_it_ended_or_died(
    spark: Any, tmp_path: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    given: dict[str, Any] = {"inputs": {}, "config_digest": "", "heartbeat_s": 300, "progress": unseen}
    started = partial(executing, spark, lake, job="featurize", **given)
    refused = partial(pytest.raises, RunRefused, match=r"a\.featurize is writing")
    with started(run_id="a.featurize", outputs={"f": "1", "g": "1"}, expiry_s=300):
        with refused(), started(run_id="b.featurize", outputs={"e": "1", "g": "1"}, expiry_s=300):
            pass
        assert [row["run_id"] for row in run_rows(spark, lake)] == ["a.featurize"]
        assert run_rows(spark, lake, lease_held({"other": "1"}, expiry_s=300)) == []
        assert run_rows(spark, lake, lease_held({}, expiry_s=300)) == []
        with executing(spark, lake, job="crawl", run_id="x.crawl", outputs={}, expiry_s=300, **given):
            second = executing(spark, lake, job="crawl", run_id="y.crawl", outputs={}, expiry_s=300, **given)
            with pytest.raises(RunRefused, match=r"x\.crawl is writing"), second:
                pass
        with (
            pytest.raises(ValueError, match="stop here"),
            started(run_id="c.featurize", outputs={"f": "2"}, expiry_s=300),  # another fingerprint
        ):
            raise ValueError("stop here")
        with refused(), started(run_id="c.featurize", outputs={"f": "1"}, expiry_s=300):
            pass  # resumed for what it did not write before
        time.sleep(0.1)
        with started(run_id="d.featurize", outputs={"f": "1"}, expiry_s=0.05):  # a seems dead
            pass
    status = {row["run_id"]: row["status"] for row in run_rows(spark, lake)}
    assert status.pop("x.crawl") == "running"
    assert status == {"a.featurize": "running", "c.featurize": "failed", "d.featurize": "running"}
