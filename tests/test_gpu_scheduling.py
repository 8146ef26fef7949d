"""GPUs as Spark lends them, on a machine that need not have any: a discovery script says that there are two."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from jobs.featurize import n_partitions
from jobs.work import MediaFile
from tests.gpu_driver import N_MEDIA

ROOT = Path(__file__).parent.parent
GPUS = """#!/bin/sh
echo '{"name": "gpu", "addresses": ["0", "1"]}'
"""
FEATURIZER = """
import json, os, threading, time
from pathlib import Path
import numpy as np
from featurizers.spec import Features

SPECS = ()
GPU_LANES = 2

def threads(kind):
    return sum(thread.name.startswith(kind) for thread in threading.enumerate())

def load(spec, weights, device):
    from pyspark import TaskContext

    def extract(images):
        context = TaskContext.get()
        seen = {"device": device, "task": context.taskAttemptId(), "cpus": context.cpus(), "pid": os.getpid()}
        seen |= {"n": len(images), "started": time.time()}
        time.sleep(0.05)
        seen |= {"ended": time.time(), "decoding": threads("decode"), "inferring": threads("infer")}
        with Path(spec.setting["log"]).open("a") as log:
            log.write(json.dumps(seen) + "\\n")
        return Features(image=np.arange(len(images), dtype=np.int32), vector=np.ones((len(images), 1), np.float32))

    return extract
"""


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the featurizer was given, batch by batch, in a wave on two GPUs with two cores each."""
    folder = tmp_path_factory.mktemp("gpus")
    (folder / "gpus.sh").write_text(GPUS)
    (folder / "gpus.sh").chmod(0o755)
    (folder / "concept_device.py").write_text(FEATURIZER)
    # Executors look for featurizers in this folder too.
    (folder / "sitecustomize.py").write_text(f"import featurizers\nfeaturizers.__path__.append({str(folder)!r})\n")
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_driver", str(folder)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.spark
def test_every_task_is_given_a_gpu_and_the_work_spreads_over_both(batches: list[dict[str, Any]]) -> None:
    assert sum(batch["n"] for batch in batches) == N_MEDIA
    pairs = {(batch["task"], batch["device"]) for batch in batches}
    assert len(pairs) == len({task for task, _ in pairs}) >= 4
    assert {device for _, device in pairs} == {"cuda:0", "cuda:1"}


@pytest.mark.spark
def test_a_gpu_has_one_task_at_a_time_and_one_process(batches: list[dict[str, Any]]) -> None:
    n_tasks = []
    for device in ("cuda:0", "cuda:1"):
        spans: dict[int, list[float]] = defaultdict(list)
        for batch in batches:
            if batch["device"] == device:
                spans[batch["task"]] += [batch["started"], batch["ended"]]
        ordered = sorted((min(times), max(times)) for times in spans.values())
        n_tasks.append(len(ordered))
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered))
        assert len({batch["pid"] for batch in batches if batch["device"] == device}) == 1
    assert min(n_tasks) >= 1 and max(n_tasks) >= 2  # on a busy machine one executor may be late


@pytest.mark.spark
def test_a_task_decodes_with_as_many_threads_as_it_has_cores_and_infers_two_batches_at_once(
    batches: list[dict[str, Any]],
) -> None:
    assert {batch["cpus"] for batch in batches} == {2}
    assert max(batch["decoding"] for batch in batches) == 2
    assert max(batch["inferring"] for batch in batches) == 2


@pytest.mark.parametrize(
    ("n_media", "mib", "cores", "n_gpus", "n"),
    [
        (1000, 10, 4, 0, 32),  # small tasks for CPUs
        (10, 10, 4, 0, 10),
        (1000, 3200, 4, 0, 100),
        (100, 51200, 4, 0, 100),  # videos by reference: no task without any
        (1000, 10, 16, 2, 2),  # one long one for each GPU
        (1000, 1025, 16, 2, 4),  # as many for each
        (1000, 0, 16, 2, 1),
        (1, 10, 16, 2, 1),
    ],
)
def test_tasks_are_small_on_cpus_and_long_on_gpus(n_media: int, mib: int, cores: int, n_gpus: int, n: int) -> None:
    files = [MediaFile("a", n_media // 2, mib << 19), MediaFile("b", n_media - n_media // 2, mib << 19)]
    assert n_partitions(files, cores=cores, n_gpus=n_gpus) == n
