"""Rows B9 and B12: what a whole `featurize` run writes and how its time grows. Costs no model, compares no engine.

Each measurement is a process: `python -m benchmarks.lakes backfill`, or `run N_IMAGES FEATURIZER`, prints JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import BUILD, cores, tree_cpu_s
from benchmarks.pictures import PER_FILE, media_files
from benchmarks.row import Row, machine

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from jobs.lake import Lake
    from jobs.work import Due, Selection

SHARE = 0.1  # of the media that is backfilled
N_IMAGES = 1024
SIZES = (N_IMAGES, 4 * N_IMAGES, 16 * N_IMAGES)
GROWTH_REACH = 0.91


@contextmanager
def fresh_lake(spark: SparkSession, name: str, n_images: int) -> Iterator[Lake]:
    """A lake with `n_images` in `media`, in files of 128; removed afterwards."""
    from pyspark.sql import functions as F

    from jobs.lake import append, open_lake
    from schemas import MEDIA

    folder = BUILD / f"lake-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    lake = open_lake(spark, str(folder))
    pictures = spark.read.parquet(*media_files(N_IMAGES))
    for copy in range(n_images // N_IMAGES):
        content = F.concat("content", F.lit(copy.to_bytes(4)))
        rows = pictures.withColumn("content", content).withColumn("media_id", F.sha2(content, 256))
        rows = rows.withColumn("size_bytes", F.octet_length("content").cast("bigint"))
        append(rows.repartition(N_IMAGES // PER_FILE), lake, MEDIA)
    try:
        yield lake
    finally:
        shutil.rmtree(folder)


def featurize(
    spark: SparkSession, lake: Lake, due: Sequence[Due], run_id: str, selection: Selection
) -> dict[str, float]:
    """One `featurize` run as the command does it: its wall seconds, those of its commits, and its CPU seconds."""
    from jobs import featurize as job
    from jobs.config import load_config
    from jobs.runs import executing, finish
    from jobs.work import Work

    config = load_config()
    work = Work(due=due, linker=None)
    steps: list[tuple[float, bool]] = []  # when each step began, and whether it is a commit

    def progress(said: Any, **_: object) -> None:
        steps.append((time.perf_counter(), str(said).startswith("committing")))

    before, started = tree_cpu_s(os.getpid(), {}), time.perf_counter()
    with executing(
        spark,
        lake,
        run_id=run_id,
        job="featurize",
        inputs=job.pins(spark, lake),
        outputs=work.outputs,
        config_digest="benchmark",
        heartbeat_s=config.featurize.heartbeat_s,
        expiry_s=config.featurize.lease_expiry_s,
        progress=progress,
    ) as run:
        result = job.run(spark, lake, config, run, work, selection)
        finish(spark, lake, run, result, mlflow_run_id=None)
    ended = time.perf_counter()
    ends = [at for at, _ in steps[1:]] + [ended]
    commit_s = sum(end - at for (at, commits), end in zip(steps, ends, strict=True) if commits)
    return {"run_s": ended - started, "commit_s": commit_s, "cpu_s": tree_cpu_s(os.getpid(), {}) - before}


def ready(variant: str) -> Due:
    """EfficientNet-`lite0` or one of the cheap featurizers, `mean` or `grid`, ready to run."""
    from benchmarks.cheap.concept_mean_colour import GRID, MEAN
    from featurizers.concept_efficientnet import SPECS
    from featurizers.spec import prepared
    from featurizers.weights import resolve
    from jobs.work import Due

    spec, paths = resolve({"mean": MEAN, "grid": GRID, "lite0": SPECS[0]}[variant])
    return Due(spec=spec, paths=prepared(spec, paths) if paths else {}, fingerprint=f"benchmark-{variant}")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def backfill() -> dict[str, object]:
    """Bytes that a new 384-d featurizer of 10 % of the media adds to our lake, and MERGE to a table with the bytes."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    from jobs.lake import read
    from jobs.work import Selection
    from schemas import FEATURES, MEDIA

    spark = session()
    with fresh_lake(spark, "backfill", N_IMAGES) as lake:
        root = Path(lake.uri.removeprefix("file://"))
        featurize(spark, lake, [ready("mean")], "first", Selection())  # frames and thumbnails are there already
        before = {name: folder_bytes(root / name) for name in ("features", "frames", "runs", "media")}
        featurize(spark, lake, [ready("grid")], "second", Selection(sample=SHARE))
        added = {name: folder_bytes(root / name) - size for name, size in before.items()}
        made = read(spark, lake, FEATURES).where("featurizer LIKE '%.grid@1'")
        vectors = made.select("media_id", F.col("features")[0]["vector"].alias("vector"))
        n_files = read(spark, lake, MEDIA).select(F.input_file_name()).distinct().count()

        wide = BUILD / "wide"
        shutil.rmtree(wide, ignore_errors=True)
        media = read(spark, lake, MEDIA).withColumn("vector", F.lit(None).cast("array<float>"))
        media.write.format("delta").save(str(wide))
        wide_before = folder_bytes(wide)
        merge = DeltaTable.forPath(spark, str(wide)).alias("t").merge(vectors.alias("s"), "t.media_id = s.media_id")
        merge.whenMatchedUpdate(set={"vector": "s.vector"}).execute()
        counts = spark.read.format("delta").load(str(wide)).agg(F.count("*"), F.count("vector")).collect()[0]
        assert tuple(counts) == (N_IMAGES, vectors.count()), counts  # the MERGE did what ours did
        merged = folder_bytes(wide) - wide_before
        shutil.rmtree(wide)
    spark.stop()
    return {"added": added, "merged": merged, "n_backfilled": counts[1], "n_images": N_IMAGES, "media_files": n_files}


def whole_run(n_images: int, variant: str) -> dict[str, object]:
    """Seconds of a run over a fresh lake, after one over a small lake that is not counted."""
    from jobs.work import Selection

    started = time.perf_counter()
    spark = session()
    session_s = time.perf_counter() - started
    for name, n in (("warm-up", N_IMAGES), ("whole", n_images)):
        with fresh_lake(spark, name, n) as lake:
            spent = featurize(spark, lake, [ready(variant)], name, Selection())
    spark.stop()
    return {"session_s": session_s, **spent}


def session() -> SparkSession:
    """A session on the benchmark's cores."""
    from jobs.config import Spark
    from jobs.session import spark_session

    return spark_session(Spark(master=f"local[{len(cores())}]"), "benchmark")


def measure(*arguments: str) -> dict[str, Any]:
    """What `main` prints, run on the benchmark's cores. Raises RuntimeError with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.lakes", *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores()),
    )
    if done.returncode:
        raise RuntimeError(f"benchmarks.lakes {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def backfill_rows() -> list[Row]:
    """B9."""
    measured = measure("backfill")
    ours = measured["added"]["features"]
    return [
        Row(
            id="B9",
            what=f"bytes written by a new 384-d featurizer of {SHARE:.0%} of the media, against MERGE beside the bytes",
            unit="bytes",
            ours=ours,
            peer=measured["merged"],
            ratio=round(measured["merged"] / ours, 1),
            reach=100,
            peer_version="Delta Lake 4.4.0 MERGE",
            settings={**measured, **machine()},
        )
    ]


def growth_rows() -> list[Row]:
    """B12."""
    measured = {n: measure("run", str(n), "mean") for n in SIZES}
    per_image = {n: found["run_s"] * 1000 / n for n, found in measured.items()}
    few, many = SIZES[0], SIZES[-1]
    return [
        Row(
            id="B12",
            what=f"a whole run of a cheap featurizer, commits included, for each of {few} images / of {many}",
            unit="wall_ms/image",
            ours=round(per_image[many], 3),
            peer=round(per_image[few], 3),
            ratio=round(per_image[few] / per_image[many], 3),
            reach=GROWTH_REACH,
            peer_version="itself, fewer",
            settings={
                "wall_ms_per_image": {str(n): round(ms, 3) for n, ms in per_image.items()},
                "seconds": {str(n): {k: round(v, 1) for k, v in found.items()} for n, found in measured.items()},
                "cores": cores(),
                **machine(),
            },
        )
    ]


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    print(json.dumps(backfill() if command == "backfill" else whole_run(int(rest[0]), rest[1])))
