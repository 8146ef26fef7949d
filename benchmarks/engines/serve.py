"""How an engine answers `benchmarks.measure`: one unmeasured pass, then one for each line. Knows no engine.

The task, a JSON object: `media` the Parquet files with columns media_id and content, `cores`, `featurizer`
"mean_colour" or "lite0", `network` and `names` the files of the latter. A line is how many of the files to take.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Task = Mapping[str, Any]
Run = Callable[[Sequence[str], bool], Mapping[str, str]]  # files, collect -> label by media_id, none unless it collects


def serve(build: Callable[[Task], tuple[Run, Mapping[str, str]]]) -> None:
    """`build` the engine of sys.argv's task, which gives its run and its versions; then run it for each line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    task = json.loads(sys.argv[1])
    run, versions = build(task)
    labels = run(task["media"], True)
    print(json.dumps({"labels": dict(labels), "versions": dict(versions)}), file=answers, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        run(task["media"][: int(line)], False)
        print(json.dumps({"wall_s": time.perf_counter() - started}), file=answers, flush=True)
