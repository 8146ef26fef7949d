"""A Spark session as a notebook starts one: Spark's own defaults but for cores, memory and what the pattern sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

DRIVER_MEMORY = "4g"  # tensors as arrays of floats do not fit into the default 1 GB of heap


def plain_session(n_cores: int, settings: Mapping[str, str] | None = None) -> SparkSession:
    """A local session on `n_cores`."""
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(f"local[{n_cores}]").config("spark.driver.memory", DRIVER_MEMORY)
    builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
    for key, value in (settings or {}).items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def run_labels(rows: DataFrame, collect: bool) -> dict[str, str]:
    """Run a plan of columns media_id and label: its rows where they are to be collected, else into noop."""
    if collect:
        return {row["media_id"]: row["label"] for row in rows.collect()}
    rows.write.format("noop").mode("overwrite").save()
    return {}
