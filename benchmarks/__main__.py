"""`python -m benchmarks [ONLY=B1,M1]`: run the rows, print one table, write results/latest.json. Asserts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from benchmarks import (
    crawl_simulation,
    crawl_speed,
    decode,
    dollars,
    gpu,
    int8,
    lakes,
    large_media,
    memory,
    pipeline,
    plan,
    recrawl,
    sharing,
    statistics,
    text,
)
from benchmarks.row import LATEST, Row, table, write

BENCHMARKS: Mapping[str, Callable[[], list[Row]]] = {
    "B1": decode.rows,
    "B2": decode.fast_rows,
    "B3": pipeline.notebook_rows,
    "B4": pipeline.predict_batch_rows,
    "B5": pipeline.daft_rows,
    "B6": pipeline.ray_rows,
    "B7": pipeline.model_rows,
    "B8": pipeline.tax_rows,
    "B9": lakes.backfill_rows,
    "B10": sharing.fusion_rows,
    "B11": sharing.video_rows,
    "B12": lakes.growth_rows,
    "B13": gpu.rows,
    "B14": text.rows,
    "C1": crawl_speed.rows,
    "C2": crawl_simulation.rows,
    "C3": recrawl.rows,
    "I1": int8.rows,
    "M1": memory.rows,
    "M2": large_media.rows,
    "P1": plan.rows,
    "S1": statistics.rows,
    "S3": dollars.rows,
}


def main(arguments: list[str]) -> int:
    """Run what ONLY names, as an argument or a variable of the environment, or everything; 2 for an unknown name."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    unknown = [name for name in given if name not in ("ONLY", "FEATURIZER")]
    os.environ.update({name: value for name, value in given.items() if name not in unknown})
    only = [name for name in os.environ.get("ONLY", "").split(",") if name] or list(BENCHMARKS)
    unknown += [name for name in only if name not in BENCHMARKS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; allowed: ONLY={','.join(BENCHMARKS)} FEATURIZER=ID", file=sys.stderr)
        return 2
    rows = [row for name in only for row in BENCHMARKS[name]()]
    write(rows)
    print(table(rows))
    print(f"written to {LATEST}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
