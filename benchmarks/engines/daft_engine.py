"""Daft on its native runner.

`pattern` "native": decode_image().resize() of the documentation, then the model over the images of a batch;
"published": Daft's own image classification benchmark, a torchvision transform for each row to a tensor column;
"best": our decoder and the model fused in one class method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.engines.serve import Run, Task, serve

BATCH_SIZE = 100  # of the published benchmark


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """The pattern's plan over Parquet."""
    import daft
    import numpy as np
    from daft import DataType, col

    from benchmarks.engines import models

    daft.set_runner_native()

    @daft.cls(max_concurrency=task["cores"])
    class OnImages:
        def __init__(self) -> None:
            self.labels = models.labels_of(task)

        @daft.method.batch(return_dtype=DataType.string(), batch_size=BATCH_SIZE)
        def __call__(self, images: Any) -> list[str]:
            shape = (models.SIDE, models.SIDE, 3)
            return self.labels([np.asarray(image).reshape(shape) for image in images.to_pylist()])

    @daft.cls(max_concurrency=task["cores"])
    class OnTensors:
        def __init__(self) -> None:
            self.predict = models.predictor(task)

        @daft.method.batch(return_dtype=DataType.string(), batch_size=BATCH_SIZE)
        def __call__(self, tensors: Any) -> list[str]:
            return self.predict(np.array(tensors.to_pylist()))

    @daft.cls(max_concurrency=task["cores"])
    class Fused:
        def __init__(self) -> None:
            self.labels = models.fused(task)

        @daft.method.batch(return_dtype=DataType.string(), batch_size=BATCH_SIZE)
        def __call__(self, contents: Any) -> list[str]:
            return models.by_fours(self.labels, contents.to_pylist())

    def rows(files: Sequence[str]) -> Any:
        media = daft.read_parquet(list(files))
        if task["pattern"] == "best":
            return media.select("media_id", Fused()(col("content")).alias("label"))
        images = col("content").decode_image(mode=daft.ImageMode.RGB)
        if task["pattern"] == "native":
            resized = media.with_column("image", images.resize(models.SIDE, models.SIDE))
            return resized.select("media_id", OnImages()(col("image")).alias("label"))
        transform = models.transform(task)
        tensor = DataType.tensor(DataType.float32(), shape=(3, models.SIDE, models.SIDE))
        media = media.with_column("image", images)
        media = media.with_column("tensor", col("image").apply(lambda image: transform(image), return_dtype=tensor))
        return media.select("media_id", OnTensors()(col("tensor")).alias("label"))

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        found = rows(files).collect()
        if not collect:
            return {}
        columns = found.to_pydict()
        return dict(zip(columns["media_id"], columns["label"], strict=True))

    return run, {"daft": daft.__version__}


if __name__ == "__main__":
    serve(build)
