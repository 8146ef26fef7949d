"""Spark's predict_batch_udf as its documentation shows it for tensors: a pandas_udf preprocesses, it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.engines.serve import Run, Task, serve
from benchmarks.engines.spark_session import plain_session, run_labels

BATCH_SIZE = 100


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """Pillow's crop as an array of floats, then predict_batch_udf with input_tensor_shapes."""
    import pyspark
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.functions import col, pandas_udf
    from pyspark.sql.types import ArrayType, FloatType, StringType

    spark = plain_session(task["cores"])

    def preprocess(contents: pd.Series) -> pd.Series:
        import numpy as np

        from benchmarks.engines.models import pillow_crop

        return pd.Series([pillow_crop(data).astype(np.float32).ravel() for data in contents])

    def make_predict():  # type: ignore[no-untyped-def]
        import numpy as np

        from benchmarks.engines.models import labels_of, once

        labels = once("labels", lambda: labels_of(task))
        return lambda images: np.array(labels(list(images.astype(np.uint8))))

    preprocess_udf = pandas_udf(preprocess, ArrayType(FloatType()))
    predict = predict_batch_udf(
        make_predict, return_type=StringType(), batch_size=BATCH_SIZE, input_tensor_shapes=[[224, 224, 3]]
    )

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        media = spark.read.parquet(*files)
        rows = media.withColumn("tensor", preprocess_udf(col("content"))).withColumn("label", predict(col("tensor")))
        rows = rows.select("media_id", "label")
        return run_labels(rows, collect)

    return run, {"pyspark": pyspark.__version__}


if __name__ == "__main__":
    serve(build)
