"""A metered process whose tasks sleep, fail and are forgotten: `python -m tests.meter_driver FOLDER` says its laps."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from jobs.config import Spark
from jobs.meter import Meter, engine_tasks, process_began
from jobs.session import spark_session
from jobs.stage_times import StageTimes

SLEPT_S = 0.5  # by each task
N_FORGOTTEN = 40  # stages of one task
KEPT = 10  # stages that Spark's status store keeps
FORGOTTEN_S = 0.1
ENGINE = StageTimes(infer_s=1.0, write_s=0.25)


def main(folder: Path) -> None:
    settings = {"spark.ui.retainedStages": str(KEPT), "spark.ui.retainedJobs": str(KEPT), "spark.task.cpus": "1"}
    spark = spark_session(Spark(master="local[2,2]", settings=settings), "meter")
    context, meter = spark.sparkContext, Meter(spark, Spark(), began=process_began())
    laps = {"start": meter.started()}

    def sleep(part: Iterable[int]) -> int:
        time.sleep(SLEPT_S)
        return sum(part)

    def fail_once(part: Iterator[int]) -> int:
        time.sleep(SLEPT_S)
        if 3 in part and not (folder / "failed").exists():
            (folder / "failed").touch()
            raise RuntimeError("the first attempt fails")
        return 0

    def rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        time.sleep(SLEPT_S)
        yield from batches

    for job in (sleep, fail_once):
        context.parallelize(range(4), 4).mapPartitions(lambda part, job=job: [job(part)]).count()  # type: ignore[misc]
        laps[job.__name__] = meter.lap(job.__name__)
    with engine_tasks(spark):
        spark.range(8).repartition(2).mapInArrow(rows, "id long").write.parquet(str(folder / "rows"))
    laps["featurize"] = meter.lap("featurize", ENGINE)
    for _ in range(N_FORGOTTEN):
        context.parallelize([0], 1).foreach(lambda _: time.sleep(FORGOTTEN_S))
    laps["forgotten"] = meter.lap("forgotten")
    laps["total"] = meter.total
    print(json.dumps({name: lap.to_json() for name, lap in laps.items()}))
    print(time.monotonic() - process_began())
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
