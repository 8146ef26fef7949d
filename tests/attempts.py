"""Processes that attempt runs, what tests do to them, and whether the lake holds what it should afterwards."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from schemas import FEATURES, FRAMES, Table
from tests.fault_driver import ANSWER, EXPIRY_S

ROOT = Path(__file__).parent.parent
PATIENCE_S = 300
Rows = dict[tuple[Any, ...], Any]


@dataclass(frozen=True)
class Attempt:
    """A driver process with the lake that it works on."""

    process: subprocess.Popen[str]
    lake: Path
    log: Path

    def workers(self) -> list[psutil.Process]:
        """The Python workers that Spark's daemon has forked."""
        found = []
        for process in family(self.process):
            try:
                is_worker = "pyspark.daemon" in process.cmdline() and "pyspark.daemon" in process.parent().cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess, AttributeError):
                continue
            if is_worker:
                found.append(process)
        return found

    def executors(self) -> list[psutil.Process]:
        """The executors' JVMs of a local cluster."""
        found = []
        for process in family(self.process):
            try:
                command = process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if any(part.endswith("CoarseGrainedExecutorBackend") for part in command) and "java" in command[0]:
                found.append(process)
        return found


@dataclass(frozen=True)
class Driver:
    """A process with a Spark session that makes one attempt after another."""

    process: subprocess.Popen[str]
    log: Path

    def begin(self, lake: Path, run_id: str, *assignments: str) -> Attempt:
        """Begin an attempt; `ended` waits for its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(shlex.join([str(lake), run_id, *assignments]) + "\n")
        self.process.stdin.flush()
        return Attempt(self.process, lake, self.log)

    def ended(self) -> tuple[int, str]:
        """The exit code and the line that `lakelens` would end with."""
        assert self.process.stdout is not None
        until = time.monotonic() + PATIENCE_S
        while select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))[0]:
            line = self.process.stdout.readline()
            if line.startswith(ANSWER):
                code, message = json.loads(line.removeprefix(ANSWER))
                return code, message
            assert line, f"the driver is gone: {self.log.read_text()[-3000:]}"
        pytest.fail(f"no end within {PATIENCE_S} s: {self.log.read_text()[-3000:]}")

    def attempt(self, lake: Path, run_id: str, *assignments: str) -> tuple[int, str]:
        self.begin(lake, run_id, *assignments)
        return self.ended()


def start_driver(
    log: Path, *, master: str, root: Path = ROOT, within: Sequence[str] = (), **environment: str
) -> Driver:
    """Start a driver from the checkout at `root`, by the command `within` if there is one; `ended` waits for it."""
    with log.open("a") as output:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.fault_driver", master],
            cwd=root, env=os.environ | {"PYTHONPATH": str(root)} | environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, start_new_session=True,
        )  # fmt: skip
    return Driver(process, log)


def start(lake: Path, run_id: str, log: Path, *, master: str = "local[2]") -> Attempt:
    """A process that makes one attempt and ends."""
    return _started(lake, log, "tests.fault_driver", master, str(lake), run_id)


def start_command(lake: Path, log: Path, *arguments: str) -> Attempt:
    """A `lakelens` command on a lake."""
    return _started(lake, log, "jobs", *arguments, "--lake", str(lake))


def _started(lake: Path, log: Path, module: str, *arguments: str) -> Attempt:
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT, env=os.environ | {"SPARK_LOCAL_IP": "127.0.0.1"}, stdout=output, stderr=output, text=True,
            start_new_session=True,
        )  # fmt: skip
    return Attempt(process, lake, log)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """A driver's process, its JVM, the executors and the workers."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_all(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to all of a driver's processes: SIGKILL as a machine that is gone, SIGSTOP as one that sleeps."""
    for member in family(process):
        try:
            member.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def kill_all(process: subprocess.Popen[str]) -> None:
    signal_all(process, signal.SIGKILL)
    process.wait()


def until_struck(attempt: Attempt, strike: Callable[[Attempt], bool]) -> bool:
    """Whether the strike came before the process ended by itself."""
    began = time.monotonic()
    while attempt.process.poll() is None and time.monotonic() - began < PATIENCE_S:
        if strike(attempt):
            return True
        time.sleep(0.01)
    return False


def finish_run(lake: Path, log: Path) -> None:
    """Resume until the run has ended well."""
    for _ in range(5):
        time.sleep(EXPIRY_S)  # a killed driver's last heartbeat must be old
        attempt = start(lake, "k.featurize", log)
        if attempt.process.wait(timeout=PATIENCE_S) == 0:
            return
    pytest.fail(f"the run cannot be resumed: {log.read_text()[-3000:]}")


def logged(lake: Path, table: str) -> int:
    """How many commits a table has."""
    return len(list((lake / table / "_delta_log").glob("*.json")))


def at_driver_phase(phase: str, lake: Path, *, commits: int) -> Callable[[Attempt], bool]:
    """Whether the files on disk show the phase for the `commits`-th time from now."""
    frames, features = logged(lake, "frames"), logged(lake, "features")
    n_files = len(list((lake / "features").rglob("part-*.parquet")))

    def is_now(attempt: Attempt) -> bool:
        [*staging] = (attempt.lake / "_staging").glob("*")
        if phase == "planned":
            return any((run / "plan" / "_SUCCESS").exists() for run in staging)
        if phase == "staged":
            return any((run / f"wave-{commits - 1}" / "_SUCCESS").exists() for run in staging)
        if phase == "between the commits":
            return logged(lake, "frames") >= frames + commits
        if phase == "during the commit":
            written = len(list((lake / "features").rglob("part-*.parquet"))) - n_files
            return written >= commits and logged(lake, "features") < features + written
        return logged(lake, "features") >= features + commits

    return is_now


def tables_of(
    lake: Path | str, tables: Sequence[Table] = (FRAMES, FEATURES), options: dict[str, str] | None = None
) -> dict[str, Rows]:
    """frames and features, or other tables, by key; fails where a key comes twice. options: of the lake's store."""
    from deltalake import DeltaTable

    found: dict[str, Rows] = {}
    for table in tables:
        rows = DeltaTable(f"{lake}/{table.name}", storage_options=options).to_pyarrow_table().to_pylist()
        found[table.name] = {tuple(row[name] for name in table.key): row for row in rows}
        assert len(found[table.name]) == len(rows), f"{table.name} holds a key twice"
    return found


def assert_same(disturbed: dict[str, Rows], undisturbed: dict[str, Rows]) -> None:
    """The contract's rule: same keys, labels and errors; vectors within 1e-4 cosine distance, scores and boxes 1e-4."""
    for table, rows in undisturbed.items():
        assert disturbed[table].keys() == rows.keys(), table
    for key, row in undisturbed["features"].items():
        found = disturbed["features"][key]
        assert found["error"] == row["error"]
        assert len(found["features"] or ()) == len(row["features"] or ())
        for one, other in zip(found["features"] or (), row["features"] or (), strict=True):
            assert one["label"] == other["label"]
            assert np.allclose(one["score"], other["score"], atol=1e-4)
            assert (one["box"] is None) == (other["box"] is None)
            assert one["box"] is None or np.allclose(one["box"], other["box"], atol=1e-4)
            assert (one["vector"] is None) == (other["vector"] is None)
            assert one["vector"] is None or abs(1 - np.dot(one["vector"], other["vector"])) <= 1e-4


def checkout_with_one_more_featurizer(folder: Path) -> Path:
    """A copy of this checkout that holds tests/faulty_featurizer.py as featurizers/concept_faulty.py."""
    for name in ("jobs", "featurizers", "schemas", "conf", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(folder / "tests" / "faulty_featurizer.py", folder / "featurizers" / "concept_faulty.py")
    return folder
