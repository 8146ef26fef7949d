"""Engines as processes that take turns, pinned to the same cores, and what each turn costs. Knows no engine's code.

An engine is a module of `benchmarks.engines`, started once, which builds its session, makes one unmeasured pass and
then runs its task over as many files as it is told. A turn is one run over a few files and one over all: what the
images between the two cost is the figure, so that the start of sessions, jobs and actors and the load of models,
which some engines repeat in every run, are in none.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jobs.polling import polling

REPOSITORY = Path(__file__).parent.parent
BUILD = REPOSITORY / "build" / "bench"
ANSWER_TIMEOUT_S = 600  # an engine that says nothing for so long is ended
POLL_S = 0.5
SILENT = {  # Ray and Daft report their use to their makers otherwise
    "RAY_USAGE_STATS_ENABLED": "0",
    "DAFT_ANALYTICS_ENABLED": "0",
    "SCARF_NO_ANALYTICS": "true",
    "DO_NOT_TRACK": "true",
}
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the images cost that one run of an engine has more than another."""

    n_images: int
    wall_s: float
    cpu_s: float  # user and system, of the engine and all its descendants

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per image."""
        return self.cpu_s * 1000 / self.n_images

    @property
    def wall_ms(self) -> float:
        """Wall milliseconds per image."""
        return self.wall_s * 1000 / self.n_images


@dataclass(kw_only=True)
class Engine:
    """A running engine."""

    name: str
    process: subprocess.Popen[str]
    start_s: float  # from its start to the end of its unmeasured pass
    answer: Mapping[str, Any]  # of the unmeasured pass: `labels` by media_id, `versions`
    turns: list[Turn] = field(default_factory=list)


def tree_cpu_s(pid: int, seen: dict[tuple[int, float], float]) -> float:
    """CPU seconds of `pid` and its descendants, those that ended included.

    A process that was waited for counts through its parent; one that was not, through the last look at it that `seen`
    keeps. Each of the two sums is at most the truth, so the larger one is taken.
    """
    root = psutil.Process(pid)
    with_ended = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
            seen[process.pid, process.create_time()] = times.user + times.system
            with_ended += times.user + times.system + times.children_user + times.children_system
        except psutil.NoSuchProcess:
            continue
    return max(with_ended, sum(seen.values()))


def cores(n: int = 2) -> list[int]:
    """The first `n` cores that this process may use: what every engine is pinned to."""
    return sorted(os.sched_getaffinity(0))[:n]


def _pinned(where: Sequence[int]) -> None:
    """In the child: its cores, and that orphans among its descendants stay in its tree."""
    os.sched_setaffinity(0, where)
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def running(
    name: str, python: Path, module: str, task: Mapping[str, object], *, where: Sequence[int]
) -> Iterator[Engine]:
    """The engine `module` on the cores `where`, after its unmeasured pass. Raises RuntimeError with what it said."""
    BUILD.mkdir(parents=True, exist_ok=True)
    log = BUILD / f"{name}.log"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | SILENT
    started = time.perf_counter()
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.engines.{module}", json.dumps(task | {"cores": len(where)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=REPOSITORY,
            env=environment,
            preexec_fn=lambda: _pinned(where),
        )
    try:
        answer = _answer(name, process, log)
        yield Engine(name=name, process=process, start_s=time.perf_counter() - started, answer=answer)
    finally:
        _end(process)


def _answer(name: str, process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    timer = threading.Timer(ANSWER_TIMEOUT_S, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if not line:
        raise RuntimeError(f"engine {name} ended: {log.read_text(errors='replace')[-2000:]}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _end(process: subprocess.Popen[str]) -> None:
    """End the engine by closing its input, and what is left of its tree by force."""
    tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in tree:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def take_turn(engine: Engine, few: int, many: int, *, images_per_file: int) -> Turn:
    """Run an engine over a few files and over many; raises RuntimeError with what it said if it ends.

    A run that is not measured comes first: Spark ends Python workers that were idle for a minute, as they are while
    others take their turns, and the few files would pay for the new ones, which the many then would not.
    """
    _run(engine, few)
    few_wall_s, few_cpu_s = _run(engine, few)
    many_wall_s, many_cpu_s = _run(engine, many)
    turn = Turn(n_images=(many - few) * images_per_file, wall_s=many_wall_s - few_wall_s, cpu_s=many_cpu_s - few_cpu_s)
    engine.turns.append(turn)
    return turn


def _run(engine: Engine, n_files: int) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    log = BUILD / f"{engine.name}.log"
    seen: dict[tuple[int, float], float] = {}
    before = tree_cpu_s(engine.process.pid, seen)
    own_before = sum(seen.values())
    assert engine.process.stdin is not None
    with polling(lambda: tree_cpu_s(engine.process.pid, seen), every_s=POLL_S, name="cpu"):
        engine.process.stdin.write(f"{n_files}\n")
        engine.process.stdin.flush()
        answer = _answer(engine.name, engine.process, log)
    after = tree_cpu_s(engine.process.pid, {})
    tree_cpu_s(engine.process.pid, seen)
    return float(answer["wall_s"]), max(after - before, sum(seen.values()) - own_before)


def together(engines: Sequence[Engine], n_files: int) -> float:
    """Wall seconds of a run of several engines at once, from its begin to the end of the last."""
    started = time.perf_counter()
    for engine in engines:
        assert engine.process.stdin is not None
        engine.process.stdin.write(f"{n_files}\n")
        engine.process.stdin.flush()
    for engine in engines:
        _answer(engine.name, engine.process, BUILD / f"{engine.name}.log")
    return time.perf_counter() - started


def interleaved(
    engines: Sequence[Engine], few: int, many: int, *, images_per_file: int, n_rounds: int
) -> Mapping[str, str]:
    """Each engine once a round, one after the other, so that what else the machine does meets all alike.

    Returns what those said that ended, by name; the others went on without them.
    """
    ended: dict[str, str] = {}
    for _ in range(n_rounds):
        for engine in engines:
            if engine.name not in ended:
                try:
                    take_turn(engine, few, many, images_per_file=images_per_file)
                except RuntimeError as e:
                    ended[engine.name] = str(e)
    return ended


def median_cpu_ms(engine: Engine) -> float:
    """CPU milliseconds per image, the median of the turns."""
    return statistics.median(turn.cpu_ms for turn in engine.turns)


def median_wall_ms(engine: Engine) -> float:
    """Wall milliseconds per image, the median of the turns."""
    return statistics.median(turn.wall_ms for turn in engine.turns)
