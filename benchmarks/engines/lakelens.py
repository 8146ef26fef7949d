"""Ours: the engine as `featurize` runs it on Spark, with our session's settings, read from Parquet, written to noop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.engines.serve import Run, Task, serve


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """`mapInArrow` of the engine over all files."""
    import pyspark
    from pyspark.sql import functions as F

    from benchmarks.cheap.concept_mean_colour import MEAN
    from featurizers.concept_efficientnet import NAMES, NETWORK
    from featurizers.concept_efficientnet import SPECS as LITE0
    from jobs.config import Spark, load_config
    from jobs.featurize import featurized
    from jobs.session import spark_session
    from jobs.work import Due

    if task["featurizer"] == "mean_colour":
        due = Due(spec=MEAN, paths={}, fingerprint="benchmark")
    else:
        paths = {NETWORK: Path(task["network"]), NAMES: Path(task["names"])}
        due = Due(spec=LITE0[0], paths=paths, fingerprint="benchmark")
    spark = spark_session(Spark(master=f"local[{task['cores']}]", settings=task.get("spark", {})), "benchmark")
    config = load_config().featurize

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        media = spark.read.parquet(*files).select("media_id", "content", "pack_uri", "offset", "length", "mime")
        rows = featurized(spark, media.withColumn("due", F.array(F.lit(due.spec.id))), [due], config)
        if collect:
            labels = rows.select("media_id", F.col("results")[0]["features"][0]["label"])
            return {row[0]: row[1] for row in labels.collect()}
        rows.write.format("noop").mode("overwrite").save()
        return {}

    return run, {"pyspark": pyspark.__version__}


if __name__ == "__main__":
    serve(build)
