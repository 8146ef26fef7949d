"""Spark in the pattern of Daft's published image classification notebook (Eventual-Inc/Daft, benchmarking/ai).

Two pandas_udf: the first decodes with Pillow, transforms with torchvision and returns the tensor as a list of floats;
the second stacks them and runs the model. 100 rows an Arrow batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.engines.serve import Run, Task, serve
from benchmarks.engines.spark_session import plain_session, run_labels


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """The notebook's plan over Parquet."""
    import pyspark
    from pyspark.sql.functions import col, pandas_udf
    from pyspark.sql.types import ArrayType, FloatType, StringType

    spark = plain_session(task["cores"], {"spark.sql.execution.arrow.maxRecordsPerBatch": "100"})

    def decode(contents: pd.Series) -> pd.Series:
        import numpy as np

        from benchmarks.engines.models import once, pillow_picture, transform

        apply = once("transform", lambda: transform(task))
        return pd.Series([apply(np.array(pillow_picture(data))).flatten().tolist() for data in contents])

    def predict(tensors: pd.Series) -> pd.Series:
        import numpy as np

        from benchmarks.engines.models import SIDE, once, predictor

        model = once("predictor", lambda: predictor(task))
        batch = np.vstack(tensors.tolist()).reshape(-1, 3, SIDE, SIDE).astype(np.float32)
        return pd.Series(model(batch))

    decode_udf = pandas_udf(decode, ArrayType(FloatType()))
    predict_udf = pandas_udf(predict, StringType())

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        rows = (
            spark.read.parquet(*files)
            .withColumn("tensor", decode_udf(col("content")))
            .filter(col("tensor").isNotNull())
            .withColumn("label", predict_udf(col("tensor")))
            .select("media_id", "label")
        )
        return run_labels(rows, collect)

    return run, {"pyspark": pyspark.__version__}


if __name__ == "__main__":
    serve(build)
