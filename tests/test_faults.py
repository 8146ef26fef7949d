"""`kill -9` of a worker, an executor or the driver, in every phase; in the end the tables hold what they should.

The short form is in test_disturbed_runs; `make test-faults` kills in each phase again and again, from seeds.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.attempts import (
    PATIENCE_S,
    Attempt,
    Rows,
    assert_same,
    at_driver_phase,
    finish_run,
    kill_all,
    start,
    tables_of,
    until_struck,
)
from tests.fault_driver import N_LARGE

# Phases of a worker, by the functions that a stack dump of it shows; phases of the driver, by what is on disk.
IN_WORKER = {
    "read": ("_read_media", "load_stream"),
    "decode": ("decode_reduced", "resize_window", "thumbnail"),
    "infer": ("infer_batch",),
}
OF_EXECUTOR = ("an executor at work", "an executor during the commit")
CLUSTER = "local-cluster[2,1,1024]"
MAX_TRIES = 4  # of 33 runs one ended unstruck
ENDED_WELL = "well"
OF_DRIVER = ("planned", "staged", "between the commits", "during the commit", "after the commit")


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


def an_executor(phase: str, lake: Path, *, cpu_s: float) -> Callable[[Attempt], bool]:
    """Kill the executor of a worker that has worked so long, or the first one while the features' files are written."""
    is_now = at_driver_phase("during the commit", lake, commits=1)

    def strike(attempt: Attempt) -> bool:
        try:
            executors = attempt.executors()
            if phase == "an executor at work":
                busy = {w.pid for w in attempt.workers() if sum(w.cpu_times()[:2]) >= cpu_s}
                executors = [e for e in executors if busy & {child.pid for child in e.children(recursive=True)}]
            elif not is_now(attempt):
                return False
            for executor in executors[:1]:
                executor.kill()
        except psutil.NoSuchProcess:  # a worker ended while it was looked at
            return False
        return bool(executors)

    return strike


def driver_in(phase: str, lake: Path, *, commits: int) -> Callable[[Attempt], bool]:
    """Kill everything at the `commits`-th time that the files on disk show the phase; True once that was done."""
    is_now = at_driver_phase(phase, lake, commits=commits)

    def strike(attempt: Attempt) -> bool:
        if is_now(attempt):
            kill_all(attempt.process)
            return True
        return False

    return strike


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Rows]]]:
    """A lake of media without features, and the tables of an undisturbed run over it."""
    folder = tmp_path_factory.mktemp("faults")
    for lake, run_id in (("base", "fill large"), ("undisturbed", "k.featurize")):
        if lake == "undisturbed":
            shutil.copytree(folder / "base", folder / lake)
        attempt = start(folder / lake, run_id, folder / "log")
        assert attempt.process.wait(timeout=PATIENCE_S) == 0, (folder / "log").read_text()[-3000:]
    expected = tables_of(folder / "undisturbed")
    assert len({key[0] for key in expected["features"]}) == N_LARGE
    yield folder / "base", expected
    shutil.rmtree(folder, ignore_errors=True)


def check_kill(lakes: tuple[Path, dict[str, Rows]], tmp_path: Path, phase: str, *, seed: int) -> None:
    """Kill in a phase, resume, compare. The seed decides how far the run has come.

    A phase as short as reading may be over whenever a worker is looked at: then another run is killed.
    """
    base, expected = lakes
    random = np.random.default_rng(seed)
    for number in range(MAX_TRIES):
        lake, log = tmp_path / f"lake-{number}", tmp_path / f"log-{number}"
        shutil.copytree(base, lake)
        if ended := strike_in(phase, lake, log, random):
            break
    else:
        pytest.fail(f"{MAX_TRIES} runs ended before a {phase}: {log.read_text()[-2000:]}")
    print(f"killed: {phase}, seed {seed}")
    assert (ended == ENDED_WELL) == (phase in OF_EXECUTOR), log.read_text()[-3000:]  # Spark gives its tasks to another
    if ended != ENDED_WELL:
        finish_run(lake, log)
    assert_same(tables_of(lake), expected)
    assert not list((lake / "_staging").glob("*/*")), "the resumed run left its staging behind"


def strike_in(phase: str, lake: Path, log: Path, random: np.random.Generator) -> str | None:
    """Begin a run, kill in the phase, and tell how the run ended; None where it ended before it could be struck."""
    attempt = start(lake, "k.featurize", log, master=CLUSTER if phase in OF_EXECUTOR else "local[2]")
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
        elif phase in OF_EXECUTOR:
            struck = until_struck(attempt, an_executor(phase, lake, cpu_s=float(random.uniform(2, 5))))
        else:
            struck = until_struck(attempt, driver_in(phase, lake, commits=int(random.integers(1, 3))))
        if not struck:
            return None
        return ENDED_WELL if attempt.process.wait(timeout=PATIENCE_S) == 0 else "with an error"
    finally:
        if attempt.process.poll() is None:
            kill_all(attempt.process)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("phase", ["a worker at work", *IN_WORKER, *OF_EXECUTOR, *OF_DRIVER])
def test_a_kill_in_any_phase_at_any_point_loses_and_doubles_nothing(
    lakes: tuple[Path, dict[str, Rows]], tmp_path: Path, phase: str, seed: int
) -> None:
    check_kill(lakes, tmp_path, phase, seed=seed)
