"""The DAGs as a real Airflow runs them: by `make test-airflow`, on a small lake and with a stand-in for `lakelens`."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.airflow_server import ROOT, Airflow, StandIn, running_airflow, until
from tests.attempts import logged

pytestmark = pytest.mark.airflow
DAILY, BACKFILL, EXPERIMENT = "lakelens_daily", "lakelens_backfill", "lakelens_experiment"
MAINTENANCE = "lakelens_maintenance"
FLOATS, INT8 = "concept_efficientnet.lite0@1", "concept_efficientnet.lite0_int8@1"
POKE_S = 20  # between two waves of a backfill
SHOWN = ("coffee", "rocket", "chelsea", "moon", "camera")
LATE = """
from datetime import timedelta
from airflow.sdk import DAG
from lakelens_task import DEFAULTS, Lakelens, by_date
with DAG("late", schedule=None, deadline=by_date(timedelta(seconds=1)), default_args=DEFAULTS):
    Lakelens(job="crawl")
"""


@dataclass(frozen=True)
class Place:
    """Where the pictures, the lake and the files of configuration stand."""

    folder: Path

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    def show(self, name: str, *, cut: bool = False) -> None:
        """Put a photograph into the source's folder; cut off, it becomes an error."""
        from benchmarks.quality import sample_image
        from tests.pictures import encode

        data = encode(sample_image(name), "JPEG", quality=90)
        (self.folder / "pictures").mkdir(exist_ok=True)
        (self.folder / "pictures" / f"{name}.jpg").write_bytes(data[: len(data) // 2] if cut else data)

    def configure(self, *, max_error_rate: float) -> Path:
        """The configuration that the commands are given."""
        source = {"name": "pictures", "kind": "folder", "uri": str(self.folder / "pictures")}
        stated = {
            "crawl": {"sources": [source]},
            "featurize": {"featurizers": [FLOATS], "link_captions": False},
            "check": {"max_error_rate": {"features": max_error_rate}},
        }
        file = self.folder / "lake.yaml"
        file.write_text(json.dumps(stated))
        return file

    def lakelens(self, *arguments: str) -> None:
        """A command of Lakelens on the lake, outside Airflow."""
        command = [sys.executable, "-m", "jobs", *arguments, "--lake", str(self.lake), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def rows(self, table: str) -> list[dict[str, Any]]:
        from deltalake import DeltaTable

        found: list[dict[str, Any]] = DeltaTable(str(self.lake / table)).to_pyarrow_table().to_pylist()
        return found

    def commits(self) -> dict[str, int]:
        return {name: logged(self.lake, name) for name in ("media", "frames", "features", "evaluations")}

    def published(self) -> set[tuple[str, str]]:
        """(media_id, featurizer) of the rows that accepted runs cover."""
        covered = {run for row in self.rows("runs") if row["status"] == "accepted" for run in row["covers"]}
        return {(row["media_id"], row["featurizer"]) for row in self.rows("features") if row["run_id"] in covered}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    home = tmp_path_factory.mktemp("airflow")
    with running_airflow(home, Path(os.environ["AIRFLOW_VENV"]), more_dags={"late.py": LATE}) as running:
        yield running


@pytest.fixture
def stand_in(airflow: Airflow, tmp_path: Path) -> StandIn:
    """A stand-in as the command of the DAGs, which are all paused but for what waits for a trigger."""
    stand_in = StandIn(tmp_path / "stand-in")
    stand_in.plan()
    airflow.let(command=stand_in.command, lake="/nowhere", conf="", golden="few")
    for dag_id in (DAILY, EXPERIMENT, BACKFILL, MAINTENANCE, "late"):
        airflow.pause(dag_id, is_paused=dag_id in (BACKFILL, MAINTENANCE))
    until(lambda: airflow.runs(DAILY) and set(airflow.runs(DAILY).values()) <= {"success", "failed"})  # the schedule's
    return stand_in


@pytest.fixture
def small_lake(airflow: Airflow, place: Place) -> Place:
    """Lakelens itself as the command of the DAGs, on a lake of its own."""
    use(airflow, place)
    return place


def use(airflow: Airflow, place: Place) -> None:
    command = f"env PYTHONPATH={ROOT} {sys.executable} -m jobs"
    airflow.let(command=command, lake=str(place.lake), conf=str(place.folder / "lake.yaml"), golden="few")


@pytest.fixture(scope="module")
def day(airflow: Airflow, place: Place) -> str:
    """The first run of the schedule, on four photographs and a golden set of them."""
    for name in SHOWN[:4]:
        place.show(name)
    conf = place.configure(max_error_rate=0.1)
    labels = place.folder / "labels.csv"
    with labels.open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label"), ("coffee.jpg", "espresso"), ("chelsea.jpg", "tabby cat")])
    add = ("golden", "add", "few", "--kind", "labels", "--labels", str(labels))
    place.lakelens(*add, "--pictures", str(place.folder / "pictures"), "--conf", str(conf))
    use(airflow, place)
    airflow.pause(DAILY, is_paused=False)
    until(lambda: airflow.runs(DAILY), within_s=60)
    [run_id] = airflow.runs(DAILY)
    assert airflow.ended(DAILY, run_id) == "success", airflow.story(DAILY, run_id)
    return run_id


def test_a_day_is_fetched_featurized_judged_measured_and_told_of(airflow: Airflow, day: str, place: Place) -> None:
    assert airflow.ask("GET", "importErrors")["import_errors"] == []
    assert airflow.tasks(DAILY, day) == dict.fromkeys(("crawl", "featurize", "check", "evaluate"), ("success", 1))
    yesterday = datetime.now(UTC) - timedelta(days=1, hours=2)  # the interval's start, 02:00 UTC or later
    name = f"daily-{yesterday:%Y%m%d}T020000Z"
    statuses = {row["run_id"]: row["status"] for row in place.rows("runs") if row["run_id"].startswith(name)}
    accepted = {f"{name}.{job}": "accepted" for job in ("crawl", "featurize", "check")}
    assert statuses == accepted | {f"{name}.evaluate": "finished"}
    assert len(place.published()) == 4
    assert {row["golden_set"] for row in place.rows("evaluations")} == {"few"}
    events = airflow.ask("GET", "assets/events")["asset_events"]
    assert [(one["source_task_id"], one["extra"]["run_id"]) for one in events if one["source_run_id"] == day] == [
        ("check", name)
    ]
    assert "expectations hold over" in airflow.log(DAILY, day, "check")


def test_a_day_done_again_adds_nothing(airflow: Airflow, day: str, small_lake: Place) -> None:
    before = small_lake.commits(), small_lake.published()
    assert airflow.again(DAILY, day) == "success"
    assert {attempt for _, attempt in airflow.tasks(DAILY, day).values()} == {2}
    assert (small_lake.commits(), small_lake.published()) == before


def test_a_rejected_day_is_not_tried_again_publishes_nothing_and_goes_on_once_it_is_set_right(
    airflow: Airflow, day: str, small_lake: Place
) -> None:
    before = small_lake.published()
    small_lake.show(SHOWN[4], cut=True)
    small_lake.configure(max_error_rate=0)
    run_id = airflow.trigger(DAILY, "cut:1~2")
    assert airflow.ended(DAILY, run_id) == "failed"
    assert airflow.tasks(DAILY, run_id) == {
        "crawl": ("success", 1),
        "featurize": ("success", 1),
        "check": ("failed", 1),
        "evaluate": ("upstream_failed", 0),
    }
    assert "rejected by its gates: rejected daily-cut-1-2" in airflow.log(DAILY, run_id, "check")
    until(lambda: f"{DAILY}.check of {run_id} failed: rejected by" in alerts(airflow))
    assert all(one["source_run_id"] != run_id for one in airflow.ask("GET", "assets/events")["asset_events"])
    assert small_lake.published() == before
    small_lake.configure(max_error_rate=1)
    assert airflow.again(DAILY, run_id, only_failed=True) == "success"
    assert len(small_lake.published()) == 5


def test_a_backfill_gives_the_history_to_another_featurizer_day_by_day(
    airflow: Airflow, day: str, small_lake: Place
) -> None:
    small_lake.configure(max_error_rate=1)
    today = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    days = [today - timedelta(days=days) for days in (4, 3)]
    fetched = fetched_on(
        small_lake, dict(zip(("coffee", "rocket", "chelsea"), (days[0], days[0], days[1]), strict=True))
    )
    airflow.pause(BACKFILL, is_paused=False)
    create_backfill(airflow, days, featurizers=[INT8], limit=3)
    until(lambda: list(backfilled(airflow).values()) == ["success"] * 2, lambda: str(airflow.runs(BACKFILL)))
    rows = [row for row in small_lake.rows("features") if row["featurizer"] == INT8]
    assert {row["media_id"]: row["run_id"][:17] for row in rows} == {
        media_id: f"backfill-{at:%Y%m%d}" for media_id, at in fetched.items()
    }
    assert {media_id for media_id, featurizer in small_lake.published() if featurizer == INT8} == set(fetched)


def fetched_on(place: Place, days: dict[str, datetime]) -> dict[str, datetime]:
    """Let the documents of these pictures be as old as that; returns media_id -> day."""
    when = " ".join(f"WHEN url LIKE '%/{name}.jpg' THEN TIMESTAMP '{at.isoformat()}'" for name, at in days.items())
    changed = f"UPDATE delta.`{place.lake}/documents` SET fetched_at = CASE {when} ELSE fetched_at END"
    program = "from jobs.config import Spark; from jobs.session import spark_session as begin; import sys\n"
    program += "begin(Spark(master='local[1]'), 'tests').sql(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, changed], cwd=ROOT, check=True)
    rows = {Path(row["url"]).stem: row for row in place.rows("documents")}
    assert all(rows[name]["fetched_at"] == at for name, at in days.items())
    return {rows[name]["media_id"]: at for name, at in days.items()}


def create_backfill(airflow: Airflow, days: list[datetime], **conf: Any) -> None:
    """As README.md says."""
    asked = f"backfills?dag_id={BACKFILL}"
    until(lambda: all(one["completed_at"] for one in airflow.ask("GET", asked)["backfills"]))  # one at a time
    dates = ("--from-date", f"{min(days):%Y-%m-%d}", "--to-date", f"{max(days):%Y-%m-%d}")
    told = ("--max-active-runs", "1", "--dag-run-conf", json.dumps(conf))
    airflow.command("backfill", "create", "--dag-id", BACKFILL, *dates, *told)


def one_day_filled_in(airflow: Airflow, *, days_ago: int) -> str:
    """How the run of a backfill of one day ended, in waves of 5 media."""
    airflow.pause(BACKFILL, is_paused=False)
    before = set(backfilled(airflow))
    create_backfill(airflow, [datetime.now(UTC) - timedelta(days=days_ago)], limit=5)
    [run_id] = set(backfilled(airflow)) - before
    return airflow.ended(BACKFILL, run_id)


def run_id_given(call: dict[str, Any]) -> str:
    return str(call["argv"][call["argv"].index("--run-id") + 1])


def backfilled(airflow: Airflow) -> dict[str, str]:
    return {run_id: state for run_id, state in airflow.runs(BACKFILL).items() if run_id.startswith("backfill")}


def test_what_is_worth_retrying_waits_for_another_try_and_a_wrong_request_does_not(
    airflow: Airflow, stand_in: StandIn
) -> None:
    stand_in.plan(crawl=[{"exit_code": 1}], experiment=[{"exit_code": 2}])
    wrong = airflow.trigger(EXPERIMENT, "wrong", file="/a file.yaml")
    retried = airflow.trigger(DAILY, "retried")
    assert airflow.ended(EXPERIMENT, wrong) == "failed"
    assert airflow.tasks(EXPERIMENT, wrong) == {"experiment": ("failed", 1)}
    assert "wrong request: experiment ended" in airflow.log(EXPERIMENT, wrong, "experiment")
    assert stand_in.calls("experiment")[0]["argv"] == [
        "experiment", "/a file.yaml", "--lake", "/nowhere", "--run-id", "experiment-wrong", "--json",
    ]  # fmt: skip
    until(lambda: airflow.tasks(DAILY, retried).get("crawl") == ("up_for_retry", 1))
    assert "exit code 1, worth retrying: crawl ended" in airflow.log(DAILY, retried, "crawl")
    until(lambda: "failed: wrong request: experiment ended" in alerts(airflow))
    assert "retried" not in alerts(airflow)
    airflow.ask("PATCH", f"dags/{DAILY}/dagRuns/{retried}", {"state": "failed"})


def test_ending_a_task_ends_all_that_its_command_started(airflow: Airflow, stand_in: StandIn) -> None:
    stand_in.plan(experiment=[{"hangs": True}])
    run_id = airflow.trigger(EXPERIMENT, "endless", file="a.yaml")
    until(lambda: stand_in.calls())
    [call] = stand_in.calls()
    assert lives(call["pid"]) and lives(call["child"])
    path = f"dags/{EXPERIMENT}/dagRuns/{run_id}/taskInstances/experiment"
    airflow.ask("PATCH", path, {"new_state": "failed"})
    until(lambda: not lives(call["pid"]) and not lives(call["child"]), within_s=60)
    assert airflow.ended(EXPERIMENT, run_id) == "failed"


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_that_takes_too_long_is_told_of(airflow: Airflow, stand_in: StandIn) -> None:
    stand_in.plan(crawl=[{"takes_s": 8}])
    run_id = airflow.trigger("late", "slow", date=datetime.now(UTC))
    told = f"late has not ended within 0:00:01 from where its data begin: {run_id}"
    until(lambda: told in alerts(airflow), lambda: alerts(airflow))
    assert airflow.ended("late", run_id) == "success"


def alerts(airflow: Airflow) -> str:
    file = airflow.home / "alerts"
    return file.read_text() if file.exists() else ""


def test_new_rows_set_off_the_housekeeping(airflow: Airflow, stand_in: StandIn) -> None:
    airflow.pause(MAINTENANCE, is_paused=False)
    before = set(airflow.runs(MAINTENANCE))
    assert airflow.ended(DAILY, airflow.trigger(DAILY, "told")) == "success"
    until(lambda: set(airflow.runs(MAINTENANCE)) - before)
    [run_id] = set(airflow.runs(MAINTENANCE)) - before
    assert airflow.ended(MAINTENANCE, run_id) == "success"
    [call] = stand_in.calls("maintain")
    assert call["argv"][:3] == ["maintain", "--lake", "/nowhere"]


def test_a_backfill_waits_for_fresh_data_stops_between_two_waves_when_paused_and_goes_on(
    airflow: Airflow, stand_in: StandIn
) -> None:
    waves_find = [{"n_media": n} for n in (5, 5, 2)]
    stand_in.plan(crawl=[{"takes_s": 8}], featurize=[{}, *waves_find])  # the first is the fresh data's
    daily = airflow.trigger(DAILY, "fresh")
    until(lambda: airflow.tasks(DAILY, daily).get("crawl") == ("running", 1))
    airflow.pause(BACKFILL, is_paused=False)
    create_backfill(airflow, [datetime.now(UTC) - timedelta(days=9)], limit=5)

    def waves() -> list[dict[str, Any]]:
        return [call for call in stand_in.calls("featurize") if "--limit" in call["argv"]]

    assert airflow.ended(DAILY, daily) == "success"
    [measured] = stand_in.calls("evaluate")
    until(lambda: len(waves()) == 1)
    assert waves()[0]["at"] > measured["at"]
    airflow.pause(BACKFILL)
    time.sleep(2 * POKE_S)
    assert len(waves()) == 1 and len(stand_in.calls("check")) == 2
    airflow.pause(BACKFILL, is_paused=False)
    [run_id] = [run_id for run_id, state in backfilled(airflow).items() if state == "running"]
    assert airflow.ended(BACKFILL, run_id) == "success"
    assert len(waves()) == 3 and len({call["argv"][-2] for call in waves()}) == 3
    assert waves()[0]["argv"][:3] == ["featurize", "--limit", "5"]


def test_a_rejected_wave_is_discarded_and_ends_its_day(airflow: Airflow, stand_in: StandIn) -> None:
    stand_in.plan(featurize=[{"n_media": 5}], check=[{"exit_code": 3}, {"exit_code": 0}])
    assert one_day_filled_in(airflow, days_ago=12) == "failed"
    [featurized] = stand_in.calls("featurize")
    judged, discarded = stand_in.calls("check")
    given = run_id_given(featurized)
    assert judged["argv"][:3] == ["check", "--run", f"{given}.featurize"] and run_id_given(judged) == given
    assert discarded["argv"][:3] == ["check", "--discard", f"{given}.featurize"]


def test_a_rejected_wave_that_cannot_be_discarded_is_told_of(airflow: Airflow, stand_in: StandIn) -> None:
    stand_in.plan(featurize=[{"n_media": 5}], check=[{"exit_code": 3}, {"exit_code": 1}])
    assert one_day_filled_in(airflow, days_ago=15) == "failed"
    [featurized] = stand_in.calls("featurize")
    until(lambda: f"{run_id_given(featurized)}.featurize is to be discarded yet: check ended" in alerts(airflow))


def test_a_wave_that_was_accepted_before_is_followed_by_the_next(airflow: Airflow, stand_in: StandIn) -> None:
    stand_in.plan(featurize=[{"n_media": None}, {"n_media": 2}])
    assert one_day_filled_in(airflow, days_ago=18) == "success"
    assert len(stand_in.calls("featurize")) == 2


def test_nothing_listens_but_on_loopback(airflow: Airflow) -> None:
    parents = [psutil.Process(process.pid) for process in airflow.processes]
    own = {process.pid for parent in parents for process in (parent, *parent.children(recursive=True))}
    listening = [one for one in psutil.net_connections("inet") if one.status == "LISTEN" and one.pid in own]
    assert listening and {one.laddr.ip for one in listening} == {"127.0.0.1"}
