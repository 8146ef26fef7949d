"""`python -m benchmarks.gpu` as on a bare machine: without Spark, MLflow and what else only jobs on Spark need."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.row import table

ROOT = Path(__file__).parent.parent
ABSENT = ("pyspark", "delta", "mlflow", "pydantic", "typer", "great_expectations", "pandas", "aiohttp", "spacy")
WITHOUT = f"""
import runpy, sys
finders = list(sys.meta_path)
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            return None
        specs = (finder.find_spec(name, path, target) for finder in finders if hasattr(finder, "find_spec"))
        return next((spec for spec in specs if spec is not None), None)
    def find_distributions(self, *which):
        for finder in finders:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(*which)
sys.meta_path[:] = [Bare()]
sys.argv[0] = "gpu"
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def bare(*arguments: str) -> str:
    """What the program prints where those packages are not installed."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_loop_runs_without_spark_from_a_file_of_batches(tmp_path: Path) -> None:
    file = str(tmp_path / "inputs.arrow")
    assert bare("inputs", file, "--images", "40", "--width", "200", "--height", "150").startswith("40 images in ")
    latest = gpu.LATEST.read_bytes() if gpu.LATEST.exists() else None
    said = bare(
        "measure", file, "--device", "cpu", "--models", "vit_tiny", "--precision", "bfloat16", "--seconds", "0",
        "--decode-threads", "2",
    )  # fmt: skip
    settings = json.loads(said.splitlines()[0])
    assert (settings["n_images"], settings["precision"], settings["gpu"]) == (40, "bfloat16", None)
    assert settings["cores_used"] > 0
    ours, peer = (float(cell) for cell in said.splitlines()[-1].split("|")[3:5])
    assert ours > 0 and peer > 0
    assert (gpu.LATEST.read_bytes() if gpu.LATEST.exists() else None) == latest  # a CPU's figures are not B13's


def test_a_program_that_knows_the_gpus_is_asked_how_busy_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho 90\necho 100\necho "$@" >&2\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with gpu.watching("0") as shares:
        time.sleep(0.5)
    assert shares == [0.9, 1.0]


def test_without_a_gpu_every_row_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = gpu.rows()
    assert [row.id for row in found] == ["B13.vit_b32", "B13.vit_l14", "B13.efficientnet", "B13.yolov3"]
    assert all(row.ours is None and row.ratio is None for row in found)
    assert table(found).count("not measured: no GPU") == 4
