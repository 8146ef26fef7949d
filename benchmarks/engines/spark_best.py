"""The best one can make of Spark's own UDFs: our decoder and the model fused in one, Arrow batches of 4 MB.

`pattern` "pandas_udf": an iterator pandas_udf; "predict_batch_udf": the bytes go into it, it decodes and predicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from benchmarks.engines.serve import Run, Task, serve
from benchmarks.engines.spark_session import plain_session, run_labels


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """One fused UDF over Parquet."""
    import pyspark
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.functions import col, pandas_udf
    from pyspark.sql.types import StringType

    spark = plain_session(task["cores"], {"spark.sql.execution.arrow.maxBytesPerBatch": "4m"})

    def featurize(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        from benchmarks.engines.models import by_fours, fused, once

        labels = once("fused", lambda: fused(task))
        for contents in batches:
            yield pd.Series(by_fours(labels, contents.tolist()))

    def make_predict():  # type: ignore[no-untyped-def]
        import numpy as np

        from benchmarks.engines.models import by_fours, fused, once

        labels = once("fused", lambda: fused(task))
        return lambda contents: np.array(by_fours(labels, contents.tolist()))

    if task["pattern"] == "pandas_udf":
        udf = pandas_udf(featurize, StringType())  # type: ignore[call-overload]
    else:
        udf = predict_batch_udf(make_predict, return_type=StringType(), batch_size=100)

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        rows = spark.read.parquet(*files).select("media_id", udf(col("content")).alias("label"))
        return run_labels(rows, collect)

    return run, {"pyspark": pyspark.__version__}


if __name__ == "__main__":
    serve(build)
