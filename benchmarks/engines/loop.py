"""A bare loop in one process: read Parquet, decode with our decoder, infer. No engine at all.

`pattern` "": picture by picture; "same": as many at a time as our engine takes, and the thumbnails that it makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow.dataset

from benchmarks.engines.models import fused, with_thumbnails
from benchmarks.engines.serve import Run, Task, serve
from jobs.inference import CPU_BATCH_SIZE


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """The loop over all files."""
    same = task["pattern"] == "same"
    featurize, size = (with_thumbnails(task), CPU_BATCH_SIZE) if same else (fused(task), 1)

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        found: dict[str, str] = {}
        waiting: dict[str, memoryview] = {}
        media = pyarrow.dataset.dataset(list(files), format="parquet")
        for batch in media.to_batches(columns=["media_id", "content"], batch_size=32):
            for media_id, content in zip(batch.column(0), batch.column(1), strict=True):
                waiting[media_id.as_py()] = memoryview(content.as_buffer()).cast("B")
                if len(waiting) == size:
                    found.update(zip(waiting, featurize(list(waiting.values())), strict=True))
                    waiting = {}
        if waiting:
            found.update(zip(waiting, featurize(list(waiting.values())), strict=True))
        return found

    return run, {"pyarrow": pyarrow.__version__}


if __name__ == "__main__":
    serve(build)
