"""Ray Data on one machine.

`pattern` "published": map -> map_batches of the published image classification benchmark, a torchvision transform for
each row, then a pool of actors with the model; "best": our decoder and the model fused in one map_batches.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.engines.serve import Run, Task, serve

BATCH_SIZE = 100  # of the published benchmark


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """The pattern's plan over Parquet."""
    import numpy as np
    import ray
    import ray.data

    from benchmarks.engines import models

    n_cores = task["cores"]
    environment = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=n_cores, include_dashboard=False, runtime_env=environment, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False

    def transform_image(row: dict[str, Any]) -> dict[str, Any]:
        apply = models.once("transform", lambda: models.transform(task))
        tensor = apply(models.pillow_picture(row["content"]))
        return {"media_id": row["media_id"], "tensor": tensor.numpy()}

    class OnTensors:
        def __init__(self) -> None:
            self.predict = models.predictor(task)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"media_id": batch["media_id"], "label": np.array(self.predict(batch["tensor"]))}

    class Fused:
        def __init__(self) -> None:
            self.labels = models.fused(task)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {
                "media_id": batch["media_id"],
                "label": np.array(models.by_fours(self.labels, list(batch["content"]))),
            }

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        media = ray.data.read_parquet(list(files), columns=["media_id", "content"])
        # Actors hold no core of their own: the published benchmark's hold a GPU and leave the cores to the transform.
        actors = {"concurrency": n_cores, "num_cpus": 0.01, "batch_size": BATCH_SIZE}
        if task["pattern"] == "best":
            rows = media.map_batches(Fused, **actors)
        else:
            rows = media.map(transform_image).map_batches(OnTensors, **actors)
        found = rows.select_columns(["media_id", "label"]).take_all()
        return {row["media_id"]: row["label"] for row in found} if collect else {}

    return run, {"ray": ray.__version__}


if __name__ == "__main__":
    serve(build)
