"""Who may start a run, and which of two writers goes on."""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobs.lake import open_lake
from jobs.runs import (
    JobResult,
    RunAccepted,
    RunRefused,
    RunTakenOver,
    decide_start,
    executing,
    finish,
    judge,
    lease_holder,
    run_rows,
)

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def row(run_id: str, status: str, *, started_s: float = 100, beat_s: float = 1, **outputs: str) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "status": status,
        "started": NOW - timedelta(seconds=started_s),
        "heartbeat": NOW - timedelta(seconds=beat_s),
        "outputs": outputs,
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


def test_the_earlier_of_two_writers_of_one_vector_space_holds_the_lease() -> None:
    rows = [row("a", "running", started_s=10, f="1"), row("b", "running", started_s=5, f="1")]
    assert lease_holder(rows, "b", {"f": "1"}, now=NOW, expiry_s=60) == "a"
    assert lease_holder(rows, "a", {"f": "1"}, now=NOW, expiry_s=60) is None


def test_of_two_writers_that_start_at_one_moment_exactly_one_goes_on() -> None:
    rows = [row("a", "running", f="1"), row("b", "running", f="1")]
    holders = [lease_holder(rows, mine, {"f": "1"}, now=NOW, expiry_s=60) for mine in ("a", "b")]
    assert holders == [None, "a"]


def test_a_resumed_run_gives_way_to_any_live_writer_though_it_began_before() -> None:
    rows = [row("a", "running", started_s=100, f="1"), row("b", "running", started_s=5, f="1")]
    assert lease_holder(rows, "a", {"f": "1"}, now=NOW, expiry_s=60, resumed=True) == "b"


def test_where_a_lake_takes_one_writer_any_earlier_live_run_holds_it() -> None:
    rows = [row("a", "running", started_s=100, g="2"), row("b", "running", started_s=5, f="1")]
    assert lease_holder(rows, "b", {"f": "1"}, now=NOW, expiry_s=60, one_writer=True) == "a"


@pytest.mark.parametrize(
    "other",
    [
        row("a", "running", f="2"),  # another fingerprint
        row("a", "running", g="1"),  # another featurizer
        row("a", "running", beat_s=61, f="1"),  # dead
        row("a", "finished", f="1"),  # ended
    ],
)
def test_a_run_that_does_not_write_the_same_or_does_not_live_holds_nothing(other: dict[str, Any]) -> None:
    mine = row("b", "running", started_s=5, f="1")
    assert lease_holder([other, mine], "b", {"f": "1"}, now=NOW, expiry_s=60) is None


@pytest.mark.spark
def test_a_driver_whose_lease_ran_out_looks_who_owns_its_run_before_it_goes_on(spark: Any, tmp_path: Path) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    given: dict[str, Any] = {"inputs": {}, "config_digest": "", "heartbeat_s": 300, "progress": lambda text: None}
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

    refused = pytest.raises(RunRefused, match=r"b\.featurize is writing")
    with started(run_id="b.featurize", outputs={"f": "1"}, expiry_s=300), refused:
        started(run_id="c.featurize", outputs={"f": "1"}, expiry_s=300).__enter__()
    assert {row["run_id"] for row in run_rows(spark, lake)} == {"a.featurize", "b.featurize"}
