"""A wave on a cluster of two GPUs that are only said to be there: `python -m tests.gpu_driver FOLDER`.

The featurizer `concept_device`, which FOLDER holds, writes into FOLDER/log what it was given, and when.
"""

from __future__ import annotations

import hashlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from featurizers.spec import FeaturizerSpec
from jobs import featurize
from jobs.config import Spark, load_config
from jobs.session import spark_session
from jobs.work import Due, MediaFile
from schemas import MEDIA
from tests.pictures import encode, noise

N_MEDIA = 60
SPEC = {
    "family": "concept_device", "variant": "v", "version": 1, "kind": "concept", "dim": 1, "image_size": 16,
    "fit": "crop", "batch_size": 3, "weights": (),
}  # fmt: skip


def main(folder: Path) -> None:
    """Stage the wave by the code of `lakelens featurize`; FOLDER/gpus.sh is asked which GPUs there are."""
    contents = [encode(noise(200, 200, seed=seed), "JPEG") for seed in range(N_MEDIA)]
    rows: list[dict[str, Any]] = [
        {
            **dict.fromkeys(MEDIA.columns.names),
            "media_id": hashlib.sha256(content).hexdigest(),
            "content": content,
            "mime": "image/jpeg",
            "size_bytes": len(content),
            "ingested_at": datetime.now(UTC),
        }
        for content in contents
    ]
    media = folder / "media.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=MEDIA.columns), media)
    spec = FeaturizerSpec(**SPEC, settings=(("log", str(folder / "log")),))  # type: ignore[arg-type]
    found = {"spark.worker.resource.gpu.discoveryScript": str(folder / "gpus.sh")}
    spark = spark_session(Spark(master="local[4]", gpus=2, settings=found), "gpus")
    planned = [(row["media_id"], str(media), [spec.id]) for row in rows]
    plan = spark.createDataFrame(planned, "media_id string, file string, due array<string>")
    featurize.GPU_PARTITION_BYTES = sum(map(len, contents)) // 8  # four tasks for each GPU
    files = [MediaFile(str(media), N_MEDIA, sum(map(len, contents)))]
    due = [Due(spec=spec, paths={}, fingerprint="0" * 32)]
    staged = featurize.stage_wave(spark, plan, files, due, load_config().featurize, str(folder / "staged"))
    featurize.check_complete(staged, plan, files)
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
