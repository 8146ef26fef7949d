"""What cores did is read from Spark: run time of tasks, failed attempts, cores that waited; all of a process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.config import Spark
from jobs.meter import Meter, own_cores
from jobs.metrics import RunMetrics
from tests.meter_driver import ENGINE, FORGOTTEN_S, KEPT, N_FORGOTTEN, SLEPT_S

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Driven:
    """What a metered process printed, and the seconds that it took from outside."""

    laps: Mapping[str, RunMetrics]
    age_s: float
    outside_s: float


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Driven:
    folder, began = tmp_path_factory.mktemp("meter"), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.meter_driver", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    laps, age_s = done.stdout.splitlines()[-2:]
    read = {name: RunMetrics.from_json(text) for name, text in json.loads(laps).items()}
    return Driven(read, float(age_s), time.monotonic() - began)


@pytest.mark.spark
def test_a_task_that_failed_once_is_waste_and_a_clean_job_has_none(driven: Driven) -> None:
    clean, failed = driven.laps["sleep"].core_s, driven.laps["fail_once"].core_s
    assert clean["waste"] == 0 and clean["sleep"] >= 4 * SLEPT_S
    assert failed["fail_once"] >= 4 * SLEPT_S  # with the attempt that went well
    assert SLEPT_S <= failed["waste"] < failed["fail_once"]


@pytest.mark.spark
def test_the_engines_tasks_are_told_from_others_and_by_its_own_clock(driven: Driven) -> None:
    core_s = driven.laps["featurize"].core_s
    assert (core_s["infer"], core_s["write"]) == (ENGINE.infer_s, ENGINE.write_s)
    assert core_s["read"] > 0  # the stage that deals the rows out
    assert core_s.get("featurize", 0.0) == 0
    assert driven.laps["featurize"].moved_bytes["written"] > 0


@pytest.mark.spark
def test_what_spark_has_forgotten_is_unexplained_and_not_taken_for_idle(driven: Driven) -> None:
    lap = driven.laps["forgotten"]
    unexplained_s = sum(lap.held_core_s.values()) - sum(lap.core_s.values())
    assert unexplained_s > (N_FORGOTTEN - KEPT) * FORGOTTEN_S
    assert unexplained_s > 1.5 * lap.core_s["forgotten"]  # three of four stages were forgotten


@pytest.mark.spark
def test_the_laps_are_all_of_the_process_from_its_start(driven: Driven) -> None:
    total = driven.laps["total"]
    assert sum(total.held_core_s.values()) == pytest.approx(2 * sum(total.wall_s.values()))
    assert sum(total.wall_s.values()) == pytest.approx(driven.age_s, abs=0.3)
    assert driven.age_s < driven.outside_s
    assert total.wall_s["start"] > 1 and total.core_s["start"] == pytest.approx(2 * total.wall_s["start"])


@pytest.mark.spark
def test_a_meter_counts_nothing_of_what_ran_before_it(spark: Any) -> None:
    spark.sparkContext.parallelize(range(2), 2).foreach(lambda _: time.sleep(0.3))
    meter = Meter(spark, Spark())
    assert meter.lap("nothing").core_s.get("nothing", 0.0) == 0.0
    spark.range(10).write.format("noop").mode("overwrite").save()
    assert 0 < meter.lap("something").core_s["something"] < 30


def test_cores_of_this_machine_are_those_of_its_master() -> None:
    assert own_cores("local[3,2]") == 3 and own_cores("local-cluster[2,4,1024]") == 8
    assert own_cores("spark://host:7077") is None


def test_the_age_of_a_process_is_counted_from_its_start() -> None:
    code = (
        "import time; time.sleep(.5); from jobs.meter import process_began; print(time.monotonic() - process_began())"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= time.monotonic() - began
