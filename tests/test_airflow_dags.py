"""What the DAG files say and how their commands run, without Airflow: their tasks are commands, run ids are allowed."""

from __future__ import annotations

import ast
import json
import signal
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
from typer.main import get_command

from airflow_dags.lakelens_command import GRACE_S, Outcome, allowed_run_id, command_line, end, follow, run_id_of, start
from jobs.cli import app
from jobs.command import BAD_USAGE, FINISHED, REJECTED, RUN_ID, WORTH_RETRYING

FOLDER = Path(__file__).parent.parent / "airflow_dags"
DAY = datetime(2026, 11, 27, 2, tzinfo=UTC)


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in found if ast.unparse(call.func).split(".")[-1] == name]


def test_each_file_holds_one_dag_of_its_own_name() -> None:
    ids = {file.stem: file.read_text() for file in FOLDER.glob("*.py")}
    dags = {name: calls(ast.parse(source), "DAG") for name, source in ids.items()}
    assert {name for name, found in dags.items() if found} == {
        "lakelens_daily", "lakelens_backfill", "lakelens_experiment", "lakelens_maintenance",
    }  # fmt: skip
    assert all(len(found) <= 1 for found in dags.values())


def test_the_files_import_airflow_and_the_standard_library_alone() -> None:
    for file in FOLDER.glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
        own = {other.stem for other in FOLDER.glob("*.py")}
        assert {name.split(".")[0] for name in names} <= {"airflow"} | own | set(sys.stdlib_module_names), file


def test_the_commands_that_tasks_run_are_commands_of_lakelens_with_these_options() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    used = set[str]()
    for file in FOLDER.glob("lakelens_*.py"):
        tree = ast.parse(file.read_text())
        used |= {
            ast.literal_eval(word.value)
            for call in calls(tree, "Lakelens")
            for word in call.keywords
            if word.arg == "job"
        }
        used |= {
            call.args[0].value
            for call in calls(tree, "run")
            if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
        }
    assert used == {"crawl", "featurize", "check", "evaluate", "experiment", "maintain"}
    options = {"featurize": ["--limit", "--where", "--featurizer"], "check": ["--discard"], "evaluate": ["--golden"]}
    options["experiment"] = ["--dry-run"]
    for name in used:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert known.issuperset([*options.get(name, []), "--lake", "--conf", "--run-id", "--json"]), name


def test_exit_codes_mean_what_the_commands_mean_by_them() -> None:
    [refused] = [
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse((FOLDER / "lakelens_task.py").read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REFUSED"
    ]
    assert refused.keys() == {BAD_USAGE, REJECTED} and not refused.keys() & {FINISHED, WORTH_RETRYING}


def test_a_run_is_named_by_its_interval_and_else_by_airflows_id() -> None:
    elsewhere = DAY.astimezone(timezone(timedelta(hours=9)))
    for start_at in (DAY, elsewhere):
        assert run_id_of("lakelens_daily", airflow_run_id="x", interval_start=start_at) == "daily-20261127T020000Z"
    by_hand = run_id_of("lakelens_daily", airflow_run_id="manual__2026-11-28T02:00:00.5+00:00", interval_start=None)
    assert by_hand == "daily-manual__2026-11-28T02-00-00.5+00-00"


@pytest.mark.parametrize("name", ["manual__2026-11-28T02:00:00+00:00", "a..b", "daily~1: x/y", "x" * 250, "ü" * 250])
def test_whatever_airflow_calls_a_run_is_allowed_and_leaves_room(name: str) -> None:
    assert RUN_ID.fullmatch(allowed_run_id(f"daily-{name}") + "-12-100.featurize")


def test_long_run_ids_that_differ_in_their_end_stay_apart() -> None:
    assert allowed_run_id("x" * 250 + "1") != allowed_run_id("x" * 250 + "2")


def test_a_command_line_has_its_job_before_its_options() -> None:
    said = command_line(["spark-submit", "m.py"], "check", ["--x"], lake="s3a://b", conf=["a.yaml"], run_id="r")
    assert " ".join(said) == "spark-submit m.py check --x --lake s3a://b --conf a.yaml --run-id r --json"
    assert "--run-id" not in command_line(["lakelens"], "check", [], lake="l", conf=[], run_id=None)


def test_lines_come_one_by_one_and_the_outcome_is_what_json_told_whatever_is_said_after_it() -> None:
    told = json.dumps({"command": "check", "exit_code": 3, "message": "rejected a"})
    code = f"import sys; print('one', file=sys.stderr, flush=True); print({told!r}); print('late'); sys.exit(3)"
    said = list[str]()
    outcome = follow(start([sys.executable, "-c", code]), said.append)
    assert (outcome.exit_code, outcome.message) == (3, "rejected a") and said == ["one", told, "late"]


def test_a_command_that_dies_without_a_word_has_its_last_line_as_message() -> None:
    code = "import os; print('about to', flush=True); os.kill(os.getpid(), 9)"
    assert follow(start([sys.executable, "-c", code]), str) == Outcome(exit_code=-9, message="about to")


def test_ending_a_command_interrupts_it_and_kills_what_it_started() -> None:
    code = """
import signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", deaf])
try:
    print(child.pid, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(1)
"""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in what a shell starts in the background
    try:
        process = start([sys.executable, "-c", code])
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    began = time.monotonic()
    end(process)
    assert process.returncode == 1 and time.monotonic() - began < GRACE_S
    child.wait(5)


def test_what_a_command_leaves_behind_ends_with_it() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    said, began = list[str](), time.monotonic()
    follow(start([sys.executable, "-c", code]), said.append)
    while psutil.pid_exists(int(said[0])) and psutil.Process(int(said[0])).status() != "zombie":
        assert time.monotonic() - began < 10
    assert time.monotonic() - began < 10
