"""`kill -9` of a worker or of the driver, in every phase of a run; resumed, the tables hold what they would have held.

The short form is part of the suite; `make test-faults` kills in each phase again and again, from seeds.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from schemas import FEATURES, FRAMES
from tests.fault_driver import EXPIRY_S, N_MEDIA

ROOT = Path(__file__).parent.parent
PATIENCE_S = 300
Rows = dict[tuple[Any, ...], Any]

# Phases of a worker, by the functions that a stack dump of it shows; phases of the driver, by what is on disk.
IN_WORKER = {
    "read": ("_read_media", "load_stream"),
    "decode": ("decode_reduced", "resize_window", "thumbnail"),
    "infer": ("infer_batch",),
}
OF_DRIVER = ("planned", "staged", "between the commits", "during the commit", "after the commit")


@dataclass(frozen=True)
class Attempt:
    """A driver process with the lake that it works on."""

    process: subprocess.Popen[str]
    lake: Path
    log: Path

    def workers(self) -> list[psutil.Process]:
        """The Python workers that Spark's daemon has forked."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                is_worker = "pyspark.daemon" in process.cmdline() and "pyspark.daemon" in process.parent().cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess, AttributeError):
                continue
            if is_worker:
                found.append(process)
        return found


def start(lake: Path, run_id: str, log: Path) -> Attempt:
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault_driver", str(lake), run_id],
            cwd=ROOT, stdout=output, stderr=output, text=True, start_new_session=True,
        )  # fmt: skip
    return Attempt(process, lake, log)


def kill_all(attempt: Attempt) -> None:
    """SIGKILL for the driver, its JVM and the workers, as a machine that is gone."""
    family = psutil.Process(attempt.process.pid).children(recursive=True)
    for process in [psutil.Process(attempt.process.pid), *family]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    attempt.process.wait()


def worker_in(phase: str) -> Callable[[Attempt], bool]:
    """Stop each worker, look at its stack, and kill it there if it is in the phase; True once one was killed."""

    def strike(attempt: Attempt) -> bool:
        for worker in attempt.workers():
            try:
                worker.send_signal(signal.SIGSTOP)
                dumped = subprocess.run(
                    [Path(sys.executable).with_name("py-spy"), "dump", "--nonblocking", "--pid", str(worker.pid)],
                    capture_output=True, text=True, timeout=30,
                ).stdout  # fmt: skip
                if any(f"{name} (" in dumped for name in IN_WORKER[phase]) and "featurize_media (" in dumped:
                    worker.kill()
                    return True
                worker.send_signal(signal.SIGCONT)
            except psutil.NoSuchProcess:
                continue
        return False

    return strike


def any_worker(cpu_s: float) -> Callable[[Attempt], bool]:
    """Kill a worker once it has worked so long, wherever it is."""

    def strike(attempt: Attempt) -> bool:
        for worker in attempt.workers():
            try:
                if sum(worker.cpu_times()[:2]) >= cpu_s:
                    worker.kill()
                    return True
            except psutil.NoSuchProcess:
                continue
        return False

    return strike


def logged(lake: Path, table: str) -> int:
    return len(list((lake / table / "_delta_log").glob("*.json")))


def driver_in(phase: str, lake: Path, *, commits: int) -> Callable[[Attempt], bool]:
    """Kill everything at the `commits`-th time that the files on disk show the phase; True once that was done."""
    frames, features = logged(lake, "frames"), logged(lake, "features")
    n_files = len(list((lake / "features").rglob("part-*.parquet")))

    def is_now(attempt: Attempt) -> bool:
        staging = attempt.lake / "_staging" / "k.featurize"
        if phase == "planned":
            return (staging / "plan" / "_SUCCESS").exists()
        if phase == "staged":
            return (staging / f"wave-{commits - 1}" / "_SUCCESS").exists()
        if phase == "between the commits":
            return logged(lake, "frames") >= frames + commits
        if phase == "during the commit":
            written = len(list((lake / "features").rglob("part-*.parquet"))) - n_files
            return written >= commits and logged(lake, "features") < features + written
        return logged(lake, "features") >= features + commits

    def strike(attempt: Attempt) -> bool:
        if is_now(attempt):
            kill_all(attempt)
            return True
        return False

    return strike


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


def tables_of(lake: Path) -> dict[str, Rows]:
    """frames and features by key; fails where a key comes twice."""
    from deltalake import DeltaTable

    found: dict[str, Rows] = {}
    for table in (FRAMES, FEATURES):
        rows = DeltaTable(str(lake / table.name)).to_pyarrow_table().to_pylist()
        found[table.name] = {tuple(row[name] for name in table.key): row for row in rows}
        assert len(found[table.name]) == len(rows), f"{table.name} holds a key twice"
    return found


def assert_same(killed: dict[str, Rows], undisturbed: dict[str, Rows]) -> None:
    """The contract's rule: same keys, labels and errors; vectors within 1e-4 cosine distance, scores and boxes 1e-4."""
    for table, rows in undisturbed.items():
        assert killed[table].keys() == rows.keys(), table
    for key, row in undisturbed["features"].items():
        found = killed["features"][key]
        assert found["error"] == row["error"]
        assert len(found["features"] or ()) == len(row["features"] or ())
        for one, other in zip(found["features"] or (), row["features"] or (), strict=True):
            assert one["label"] == other["label"]
            assert np.allclose(one["score"], other["score"], atol=1e-4)
            assert (one["box"] is None) == (other["box"] is None)
            assert one["box"] is None or np.allclose(one["box"], other["box"], atol=1e-4)
            assert (one["vector"] is None) == (other["vector"] is None)
            assert one["vector"] is None or 1 - np.dot(one["vector"], other["vector"]) <= 1e-4


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Rows]]]:
    """A lake of media without features, and the tables of an undisturbed run over it."""
    folder = tmp_path_factory.mktemp("faults")
    for lake, run_id in (("base", "fill"), ("undisturbed", "k.featurize")):
        if lake == "undisturbed":
            shutil.copytree(folder / "base", folder / lake)
        attempt = start(folder / lake, run_id, folder / "log")
        assert attempt.process.wait(timeout=PATIENCE_S) == 0, (folder / "log").read_text()[-3000:]
    expected = tables_of(folder / "undisturbed")
    assert len({key[0] for key in expected["features"]}) == N_MEDIA
    yield folder / "base", expected
    shutil.rmtree(folder, ignore_errors=True)


def check_kill(lakes: tuple[Path, dict[str, Rows]], tmp_path: Path, phase: str, *, seed: int) -> None:
    """Kill in a phase, resume, compare. The seed decides how far the run has come."""
    base, expected = lakes
    lake, log = tmp_path / "lake", tmp_path / "log"
    shutil.copytree(base, lake)
    random = np.random.default_rng(seed)
    attempt = start(lake, "k.featurize", log)
    try:
        if phase in IN_WORKER:
            strike, ready_after = worker_in(phase), float(random.uniform(0, 3))
            began: list[float] = []

            def delayed(attempt: Attempt) -> bool:
                if attempt.workers() and not began:
                    began.append(time.monotonic())
                return bool(began) and time.monotonic() - began[0] >= ready_after and strike(attempt)

            struck = until_struck(attempt, delayed)
        elif phase == "a worker at work":
            struck = until_struck(attempt, any_worker(float(random.uniform(4, 6))))
        else:
            struck = until_struck(attempt, driver_in(phase, lake, commits=int(random.integers(1, 3))))
        assert struck, f"the run ended before a {phase}: {log.read_text()[-2000:]}"
        print(f"killed: {phase}, seed {seed}")
        assert attempt.process.wait(timeout=PATIENCE_S) != 0
    finally:
        if attempt.process.poll() is None:
            kill_all(attempt)
    finish_run(lake, log)
    assert_same(tables_of(lake), expected)
    assert not list((lake / "_staging").glob("*/*")), "the resumed run left its staging behind"


@pytest.mark.spark
def test_a_run_that_was_killed_between_its_commits_and_resumed_leaves_what_an_undisturbed_one_does(
    lakes: tuple[Path, dict[str, Rows]], tmp_path: Path
) -> None:
    check_kill(lakes, tmp_path, "between the commits", seed=1)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("phase", ["a worker at work", *IN_WORKER, *OF_DRIVER])
def test_a_kill_in_any_phase_at_any_point_loses_and_doubles_nothing(
    lakes: tuple[Path, dict[str, Rows]], tmp_path: Path, phase: str, seed: int
) -> None:
    check_kill(lakes, tmp_path, phase, seed=seed)
