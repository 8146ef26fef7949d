"""What a process's cores did between two moments, read from Spark's status store. Knows no job and no price."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.config import Spark
from jobs.dollars import Attempt, Held, core_seconds, gpu_seconds, held_core_s
from jobs.metrics import RunMetrics, merge
from jobs.polling import polling
from jobs.session import local_cores
from jobs.stage_times import StageTimes

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ENGINE = "lakelens engine"  # the description of the Spark jobs that run models
COLLECT_S = 15.0  # Spark's status store keeps the last 1,000 stages and 100,000 tasks
SETTLE_MS = 5000  # for the events of tasks that have ended to reach the status store
ENDED = ("SUCCESS", "FAILED", "KILLED")
LOOK_BACK = 100  # stages: one that is done may be tried again when an executor is lost with what it had shuffled
IMPORTED = time.monotonic()


def process_began() -> float:
    """When this process was started, on the monotonic clock; where there is no /proc, when this module was imported."""
    try:
        # The name of the program, in brackets, may hold anything; what follows it is numbers (proc_pid_stat(5)).
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - (float(Path("/proc/uptime").read_text().split()[0]) - started)
    except OSError:
        return IMPORTED


def own_cores(master: str) -> int | None:
    """Cores of a master that is this machine alone (`local[4]`, `local-cluster[1,4,1024]`); None for a cluster."""
    if found := re.fullmatch(r"local-cluster\[(\d+),\s*(\d+),\s*\d+\]", master):
        return int(found[1]) * int(found[2])
    return local_cores(master)


@contextmanager
def engine_tasks(spark: SparkSession) -> Iterator[None]:
    """The Spark jobs that the block starts run models: their tasks are told from others in the status store."""
    spark.sparkContext.setLocalProperty("spark.job.description", ENGINE)
    try:
        yield
    finally:
        spark.sparkContext.setLocalProperty("spark.job.description", None)  # type: ignore[arg-type]


class Meter:
    """Measures laps that follow each other without a gap; `total` is all of them."""

    def __init__(self, spark: SparkSession, config: Spark, *, began: float | None = None) -> None:
        """`began`: when the first lap did, on the monotonic clock; now if not given."""
        jvm = spark._jvm
        assert jvm is not None
        self.total = RunMetrics()  # of all laps
        self._context = spark.sparkContext._jsc.sc()
        self._kind = config.gpu_kind if config.gpus else None
        self._task_cpus = int(spark.conf.get("spark.task.cpus", "1") or 1)
        self._own_cores = own_cores(str(spark.sparkContext.master))
        self._json = jvm.com.fasterxml.jackson.databind.ObjectMapper()
        self._json.registerModule(jvm.com.fasterxml.jackson.module.scala.DefaultScalaModule())
        self._stages = jvm.java.lang.Class.forName("org.apache.spark.status.StageDataWrapper")
        self._executors = jvm.java.lang.Class.forName("org.apache.spark.status.ExecutorSummaryWrapper")
        self._lock = threading.Lock()
        self._done: set[tuple[int, int]] = set()  # stages whose tasks were read, of those that may be seen again
        self._first_stage = 0  # those before are done
        self._attempts: list[Attempt] = []
        self._seen_s = self._unseen_s = 0.0  # of tasks that have ended since: read one by one, and not
        self._began = began if began is not None else time.monotonic()
        self._began_s = time.time() - (time.monotonic() - self._began)
        self._ended_before_s = self._settled()[1]
        self._attempts = []  # what ran before is not ours

    @contextmanager
    def collecting(self) -> Iterator[Meter]:
        """Read the status store now and then while the block lasts, before it forgets."""

        def collect() -> None:
            with suppress(Exception):  # the next lap reads again, or says that Spark is gone
                self._collect()

        with polling(collect, every_s=COLLECT_S, name="meter"):
            yield self

    def lap(self, name: str, engine: StageTimes | None = None) -> RunMetrics:
        """The seconds since the last lap, as those of a job.

        engine: what the engine's tasks measured meanwhile.
        """
        executors, ended_s = self._settled()
        now_s, now = time.time(), time.monotonic()
        during, wall_s = (self._began_s, now_s), now - self._began
        with self._lock:
            attempts, self._attempts = self._attempts, []
        self._seen_s += sum(a.finished_s - a.launched_s for a in attempts)
        # Executors' totals are written a little later than their last task: what is missing now is not so in the end.
        unseen_s = max(0.0, ended_s - self._ended_before_s - self._seen_s - self._unseen_s)
        self._unseen_s += unseen_s
        held = executors if self._own_cores is None else [Held(self._own_cores)]
        core_s = core_seconds(
            name,
            attempts,
            during=during,
            held=held,
            cpus_per_task=self._task_cpus,
            engine=engine,
            unseen_s=unseen_s,
        )
        paid_s = held_core_s(held, during) if self._own_cores is None else self._own_cores * wall_s
        moved = {
            "read": sum(a.read_bytes for a in attempts),
            "written": sum(a.written_bytes for a in attempts),
        }
        lap = RunMetrics(wall_s={name: wall_s}, core_s=core_s, held_core_s={name: paid_s}, moved_bytes=moved)
        if self._kind is not None:
            per_core = 1 / self._task_cpus  # a task has one GPU
            gpu_s = gpu_seconds(core_s, kind=self._kind, gpus_per_core=per_core, engine=engine)
            lap = merge(lap, RunMetrics(gpu_s=gpu_s, held_gpu_s={self._kind: paid_s * per_core}))
        self._began_s, self._began = now_s, now
        self.total = merge(self.total, lap)
        return lap

    def started(self) -> RunMetrics:
        """A first lap in which no task ran: all of it is what it takes to start.

        A cluster's executors, if any are there yet, wait for the driver: the next lap has their seconds.
        """
        now_s, now = time.time(), time.monotonic()
        wall_s = now - self._began
        core_s = {"start": wall_s * self._own_cores} if self._own_cores is not None else {}
        lap = RunMetrics(wall_s={"start": wall_s}, core_s=core_s, held_core_s=core_s)
        if self._kind is not None and core_s:
            gpu_s = core_s["start"] / self._task_cpus
            lap = merge(lap, RunMetrics(gpu_s={f"{self._kind}/start": gpu_s}, held_gpu_s={self._kind: gpu_s}))
        self._began_s, self._began = now_s if self._own_cores is not None else self._began_s, now
        self.total = merge(self.total, lap)
        return lap

    def _settled(self) -> tuple[list[Held], float]:
        """Read what is new once the events that are under way have arrived; the executors, and all their tasks'
        seconds, which Spark keeps adding up whatever it forgets of single tasks."""
        from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]

        with suppress(Py4JJavaError):  # it took longer: those tasks go into the next lap
            self._context.listenerBus().waitUntilEmpty(SETTLE_MS)
        self._collect()
        # Not `executorList`, which gives the driver's uptime for the time of its tasks.
        view = self._context.statusStore().store().view(self._executors)
        executors = [wrapped["info"] for wrapped in self._read(view)]
        held = [
            Held(one["totalCores"], one["addTime"] / 1000, (one.get("removeTime") or float("inf")) / 1000)
            for one in executors
        ]
        return held, sum(one["totalDuration"] for one in executors) / 1000

    def _read(self, value: Any) -> Any:
        return json.loads(self._json.writeValueAsString(value))

    def _collect(self) -> None:
        with self._lock:
            store = self._context.statusStore()
            view = store.store().view(self._stages).index("stageId").first(self._first_stage)
            waiting, last = [], 0
            for stage in (wrapped["info"] for wrapped in self._read(view)):
                key = (stage["stageId"], stage["attemptId"])
                last = max(last, key[0])
                if key in self._done:
                    continue
                if stage["status"] in ("ACTIVE", "PENDING") or stage["numActiveTasks"]:
                    waiting.append(key[0])
                    continue
                self._done.add(key)
                if stage["status"] != "SKIPPED":
                    tasks = self._read(store.taskList(*key, stage["numTasks"] * 4 + 1000))
                    self._attempts += [_attempt(stage, task) for task in tasks if task["status"] in ENDED]
            self._first_stage = max(0, min([*waiting, last + 1 - LOOK_BACK]))
            self._done = {key for key in self._done if key[0] >= self._first_stage}


def _attempt(stage: Mapping[str, Any], task: Mapping[str, Any]) -> Attempt:
    """A task of Spark's REST API (TaskData) that has ended, in a stage (StageData)."""
    measured, succeeded = task["taskMetrics"], task["status"] == "SUCCESS"
    worked_ms = None
    if measured is not None and (succeeded or measured["executorRunTime"] > 0):
        names = ("executorDeserializeTime", "executorRunTime", "resultSerializationTime")
        worked_ms = sum(measured[name] for name in names)
    launched_s = task["launchTime"] / 1000
    is_engine = stage["description"] == ENGINE
    return Attempt(
        stage=stage["stageId"],
        partition=task["partitionId"],
        launched_s=launched_s,
        finished_s=launched_s + task["duration"] / 1000,
        worked_s=None if worked_ms is None else worked_ms / 1000,
        succeeded=succeeded,
        feeds=is_engine and not stage["outputBytes"],
        infers=is_engine and stage["outputBytes"] > 0,
        read_bytes=measured["inputMetrics"]["bytesRead"] if measured is not None else 0,
        written_bytes=measured["outputMetrics"]["bytesWritten"] if measured is not None else 0,
    )
