"""Attempts at featurize runs, in a process of its own that tests can kill, stop and starve.

`python -m tests.fault_driver MASTER LAKE RUN_ID [KEY=VALUE ...]` makes one attempt and ends; with MASTER alone it makes
one for each line `LAKE RUN_ID KEY=VALUE ...` of its input, and answers each with what `lakelens` would end with.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from jobs import featurize
from jobs.command import exit_code_of
from jobs.config import Config, Spark, load_config
from jobs.lake import append, open_lake
from jobs.log import one_line
from jobs.runs import executing, finish
from jobs.session import spark_session
from jobs.work import Selection, prepare
from schemas import MEDIA
from schemas.table import schema_ddl
from tests.pictures import encode

N_LARGE, N_SMALL = 150, 16
EXPIRY_S = 5.0
ANSWER = "ended: "
# What jobs.session sets for a local master, here for a local cluster too.
FEW_TASKS = {
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.ui.enabled": "false",
}
SETTINGS = [
    "featurize.featurizers=[concept_efficientnet.lite0@1, object_yolov3.tiny@1]",
    "featurize.link_captions=false",
    "featurize.wave_media=75",
    "featurize.heartbeat_s=1",
    f"featurize.lease_expiry_s={EXPIRY_S}",
]


def large_contents() -> list[bytes]:
    """Pictures large enough that decoding them is seen, a few of them broken."""
    random = np.random.default_rng(0)
    small = [random.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(N_LARGE)]
    whole = [encode(np.kron(pixels, np.ones((20, 20, 1), np.uint8)), "JPEG") for pixels in small]
    return [data[: len(data) // 2] if i % 25 == 3 else data for i, data in enumerate(whole)]


def small_contents() -> list[bytes]:
    """Pictures of one colour, every fourth of them red, and a broken one; of the size that concept_faulty takes."""
    colours = [(200, 10 + i, 10) if i % 4 == 0 else (10 + i, 120, 90) for i in range(N_SMALL)]
    whole = [encode(np.full((32, 32, 3), colour, np.uint8), "PNG") for colour in colours]
    return [data[: len(data) // 2] if i == N_SMALL - 1 else data for i, data in enumerate(whole)]


def fill(spark: Any, lake: Any, found: Sequence[bytes]) -> None:
    """`media` of several files, so that a run has several waves."""
    for part in (found[: len(found) // 2], found[len(found) // 2 :]):
        rows = []
        for content in part:
            row: dict[str, Any] = dict.fromkeys(MEDIA.columns.names)
            row |= {"media_id": hashlib.sha256(content).hexdigest(), "content": content, "mime": "image/jpeg"}
            rows.append(tuple((row | {"size_bytes": len(content), "ingested_at": datetime.now(UTC)}).values()))
        append(spark.createDataFrame(rows, schema_ddl(MEDIA.columns)).coalesce(1), lake, MEDIA)


def attempt(spark: Any, lake_uri: str, run_id: str, *assignments: str) -> None:
    """`fill large` or `fill small` as the run id makes the lake; any other is an attempt at that run."""
    config: Config = load_config(assignments=[*SETTINGS, *assignments])
    lake = open_lake(spark, lake_uri)
    if run_id.startswith("fill"):
        fill(spark, lake, large_contents() if run_id == "fill large" else small_contents())
        return
    work = prepare(config.featurize)
    with executing(
        spark, lake, run_id=run_id, job="featurize", inputs=featurize.pins(spark, lake), outputs=work.outputs,
        config_digest=config.digest(), heartbeat_s=config.featurize.heartbeat_s,
        expiry_s=config.featurize.lease_expiry_s, progress=lambda text, **context: print(text, file=sys.stderr),
    ) as run:  # fmt: skip
        selection = Selection(retry_errors=run_id.startswith("again"))
        finish(spark, lake, run, featurize.run(spark, lake, config, run, work, selection), mlflow_run_id=None)


def main(master: str, *given: str) -> None:
    spark = spark_session(Spark(master=master, driver_memory="1g", settings=FEW_TASKS), "faults")
    if given:
        attempt(spark, *given)
        return
    print(ANSWER + json.dumps([0, "ready"]), flush=True)
    for line in sys.stdin:
        answer = [0, ""]
        try:
            attempt(spark, *shlex.split(line))
        except Exception as e:
            answer = [exit_code_of(e), one_line(e)]
        print(ANSWER + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
