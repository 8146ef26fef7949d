"""An attempt at a featurize run, as a process that tests can kill: `python -m tests.fault_driver LAKE RUN_ID`."""

from __future__ import annotations

import hashlib
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np

from jobs import featurize
from jobs.config import Config, Spark, load_config
from jobs.lake import append, open_lake
from jobs.runs import executing, finish
from jobs.session import spark_session
from jobs.work import Selection, prepare
from schemas import MEDIA
from schemas.table import schema_ddl
from tests.pictures import encode

N_MEDIA = 150
HEARTBEAT_S, EXPIRY_S = 1.0, 5.0
SETTINGS = [
    "featurize.featurizers=[concept_efficientnet.lite0@1, object_yolov3.tiny@1]",
    "featurize.link_captions=false",
    "featurize.wave_media=75",
]


def contents() -> list[bytes]:
    """Pictures large enough that decoding them is seen, a few of them broken."""
    random = np.random.default_rng(0)
    small = [random.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(N_MEDIA)]
    whole = [encode(np.kron(pixels, np.ones((20, 20, 1), np.uint8)), "JPEG") for pixels in small]
    return [data[: len(data) // 2] if i % 25 == 3 else data for i, data in enumerate(whole)]


def fill(spark: Any, lake: Any) -> None:
    """`media` of several files, so that a run has several waves."""
    found = contents()
    for part in (found[: N_MEDIA // 2], found[N_MEDIA // 2 :]):
        rows = []
        for content in part:
            row: dict[str, Any] = dict.fromkeys(MEDIA.columns.names)
            row |= {"media_id": hashlib.sha256(content).hexdigest(), "content": content, "mime": "image/jpeg"}
            rows.append(tuple((row | {"size_bytes": len(content), "ingested_at": datetime.now(UTC)}).values()))
        append(spark.createDataFrame(rows, schema_ddl(MEDIA.columns)).coalesce(1), lake, MEDIA)


def main(lake_uri: str, run_id: str) -> None:
    """`fill` as the run id makes the lake; any other is an attempt at that run."""
    config: Config = load_config(assignments=SETTINGS)
    spark = spark_session(Spark(master="local[2]", driver_memory="1g"), "faults")
    lake = open_lake(spark, lake_uri)
    if run_id == "fill":
        fill(spark, lake)
        return
    work = prepare(config.featurize)
    with executing(
        spark, lake, run_id=run_id, job="featurize", inputs=featurize.pins(spark, lake), outputs=work.outputs,
        config_digest=config.digest(), heartbeat_s=HEARTBEAT_S, expiry_s=EXPIRY_S, progress=print,
    ) as run:  # fmt: skip
        finish(spark, lake, run, featurize.run(spark, lake, config, run, work, Selection()), mlflow_run_id=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
