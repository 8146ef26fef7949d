"""A real Airflow on loopback for tests: its processes, its API, and a stand-in for `lakelens`. Knows no DAG."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.ports import free_port

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "airflow_dags"
COMPONENTS = (["api-server"], ["scheduler", "--skip-serve-logs"], ["dag-processor"])
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
STARTS_WITHIN_S, ENDS_WITHIN_S = 300, 900  # on a machine that others use too

# Notes how it was called and does what the plan says of its job: first entry first, the last one for all further calls.
STAND_IN = """
import json, os, subprocess, sys, time
from pathlib import Path
folder, job = Path(sys.argv[1]), sys.argv[2]
told = json.loads((folder / "plan.json").read_text()).get(job, [{}])
calls = folder / "calls.jsonl"
before = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
plan = told[min(sum(call["argv"][0] == job for call in before), len(told) - 1)]
child = subprocess.Popen(["sleep", "600"]).pid if plan.get("hangs") else None
with calls.open("a") as out:
    out.write(json.dumps({"argv": sys.argv[2:], "at": time.time(), "pid": os.getpid(), "child": child}) + "\\n")
time.sleep(600 if child else plan.get("takes_s", 0))
code = plan.get("exit_code", 0)
print("so it goes", file=sys.stderr)
told = {"command": job, "exit_code": code, "message": f"{job} ended", "n_media": plan.get("n_media", 0)}
print(json.dumps({name: value for name, value in told.items() if value is not None}))
sys.exit(code)
"""


@dataclass(frozen=True)
class StandIn:
    """A command that behaves as told, for what happens around a command."""

    folder: Path

    @property
    def command(self) -> str:
        return f"{sys.executable} {self.folder / 'stand_in.py'} {self.folder}"

    def plan(self, **jobs: list[dict[str, Any]]) -> None:
        """What each job does from now on; forgets the calls."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "stand_in.py").write_text(STAND_IN)
        (self.folder / "plan.json").write_text(json.dumps(jobs))
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def calls(self, job: str | None = None) -> list[dict[str, Any]]:
        """How it was called, in order."""
        file = self.folder / "calls.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [call for call in found if job in (None, call["argv"][0])]


@dataclass(frozen=True)
class Airflow:
    """A running Airflow."""

    home: Path
    url: str
    environment: Mapping[str, str]
    token: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What the API answers; raises urllib.error.HTTPError where it refuses."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token[0]}"}
        data = json.dumps(body).encode() if body is not None else None
        asked = urllib.request.Request(f"{self.url}/api/v2/{path}", data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def command(self, *arguments: str) -> str:
        """What an `airflow` command prints."""
        airflow = Path(self.environment["AIRFLOW_VENV"]) / "bin" / "airflow"
        done = subprocess.run([airflow, *arguments], env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def let(self, **variables: str) -> None:
        """Set the Variables lakelens_NAME."""
        for name, value in variables.items():
            body = {"key": f"lakelens_{name}", "value": value}
            try:
                self.ask("PATCH", f"variables/lakelens_{name}", body)
            except urllib.error.HTTPError:
                self.ask("POST", "variables", body)

    def pause(self, dag_id: str, *, is_paused: bool = True) -> None:
        self.ask("PATCH", f"dags/{dag_id}", {"is_paused": is_paused})

    def trigger(self, dag_id: str, run_id: str, *, date: datetime | None = None, **conf: Any) -> str:
        """Begin a run by hand; returns its id."""
        body = {"dag_run_id": run_id, "logical_date": date.isoformat() if date else None, "conf": conf}
        return str(self.ask("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def runs(self, dag_id: str) -> dict[str, str]:
        """Run id -> state."""
        found = self.ask("GET", f"dags/{dag_id}/dagRuns")["dag_runs"]
        return {run["dag_run_id"]: run["state"] for run in found}

    def tasks(self, dag_id: str, run_id: str) -> dict[str, tuple[str | None, int]]:
        """Task id -> state and number of the last try."""
        found = self.ask("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {task["task_id"]: (task["state"], task["try_number"]) for task in found}

    def ended(self, dag_id: str, run_id: str) -> str:
        """The state in which a run ends."""
        until(lambda: self.runs(dag_id).get(run_id) in ENDED, lambda: self.story(dag_id, run_id))
        return self.runs(dag_id)[run_id]

    def again(self, dag_id: str, run_id: str, *, only_failed: bool = False) -> str:
        """Clear a run and wait for its end."""
        body = {"dry_run": False, "only_failed": only_failed}
        self.ask("POST", f"dags/{dag_id}/dagRuns/{run_id}/clear", body)
        return self.ended(dag_id, run_id)

    def log(self, dag_id: str, run_id: str, task_id: str, *, attempt: int = 1) -> str:
        """The text of a task's log, with what exceptions say."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        lines = self.ask("GET", path)["content"]
        raised = [error["exc_value"] for line in lines for error in line.get("error_detail") or ()]
        return "\n".join([*(str(line.get("event")) for line in lines), *raised])

    def story(self, dag_id: str, run_id: str) -> str:
        """What to read when a run goes wrong."""
        said = [f"{dag_id} {self.runs(dag_id)}"]
        for task_id, (state, attempt) in self.tasks(dag_id, run_id).items():
            said.append(f"{task_id}: {state}, try {attempt}")
            with suppress(urllib.error.HTTPError):
                said.append(self.log(dag_id, run_id, task_id, attempt=attempt)[-2000:])
        return "\n".join(said)


def until(
    is_so: Callable[[], object], story: Callable[[], str] = lambda: "", *, within_s: float = ENDS_WITHIN_S
) -> None:
    """Wait until something is so; fails with the story where it is not in time."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < within_s, f"not within {within_s} s: {story()}"
        time.sleep(0.5)


@contextmanager
def running_airflow(home: Path, venv: Path, *, more_dags: Mapping[str, str]) -> Iterator[Airflow]:
    """Airflow with this checkout's DAGs and `more_dags` (file name -> source), until the block ends.

    The texts of alerts are lines of the file `alerts` in its home.
    """
    dags = home / "dags"
    shutil.copytree(FOLDER, dags, ignore=shutil.ignore_patterns("__pycache__", "requirements.lock"))
    for name, source in more_dags.items():
        (dags / name).write_text(source)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTHON"))} | {
        "AIRFLOW_VENV": str(venv),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "3",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "of the tests, and long enough for the signature, 64 bytes or so, as it says",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "LAKELENS_ALERT": shlex.join(["sh", "-c", f'echo "$0" >> {shlex.quote(str(home / "alerts"))}']),
        "NO_PROXY": "*",
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    airflow = Airflow(home, url, environment)
    airflow.command("db", "migrate")
    try:
        for component in COMPONENTS:
            with (home / f"{component[0]}.log").open("w") as log:
                airflow.processes.append(
                    subprocess.Popen(
                        [venv / "bin" / "airflow", *component], env=environment, stdout=log, stderr=log,
                        start_new_session=True,
                    )
                )  # fmt: skip
        until(lambda: _is_up(airflow), lambda: _logs(home), within_s=STARTS_WITHIN_S)
        airflow.ask("POST", "pools", {"name": "lakelens", "slots": 1})
        yield airflow
    finally:
        for process in airflow.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in airflow.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _is_up(airflow: Airflow) -> bool:
    """Whether the API answers, all components beat, and the DAGs are read."""
    with suppress(OSError):
        if not airflow.token:
            with urllib.request.urlopen(f"{airflow.url}/auth/token", timeout=10) as answer:
                airflow.token.append(json.loads(answer.read())["access_token"])
        health = airflow.ask("GET", "monitor/health")
        beats = all(health[part]["status"] == "healthy" for part in ("scheduler", "dag_processor"))
        n_read = int(airflow.ask("GET", "dags?exclude_stale=false")["total_entries"])
        return beats and n_read + int(airflow.ask("GET", "importErrors")["total_entries"]) >= len(
            [file for file in (airflow.home / "dags").glob("*.py") if "with DAG(" in file.read_text()]
        )
    return False


def _logs(home: Path) -> str:
    return "\n".join(f"{file.name}: {file.read_text()[-3000:]}" for file in sorted(home.glob("*.log")))
