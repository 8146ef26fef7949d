"""`evaluations`: what each item of a golden set was worth, so that comparisons can be paired. Append only."""

import pyarrow as pa

from schemas.table import Table, column

EVALUATIONS = Table(
    name="evaluations",
    doc="One value for each item, metric and featurizer",
    key=("run_id", "featurizer", "fingerprint", "golden_set", "golden_version", "metric", "item_id"),
    columns=pa.schema(
        [
            column("run_id", pa.string(), "evaluate run that measured it"),
            column("featurizer", pa.string(), "spec id"),
            column("fingerprint", pa.string(), "digest of all that the vectors depend on, 32 hex digits"),
            column("golden_set", pa.string(), "name of the golden set"),
            column("golden_version", pa.int64(), "its version"),
            column("metric", pa.string(), "such as top_1 or recall_at_10; corpus metrics stand in `runs`"),
            column("item_id", pa.string(), "item of the golden set, or the label that pictures were asked for by"),
            column("value", pa.float64(), "the metric's value for this item", null="not defined for this item"),
        ]
    ),
    properties={"delta.dataSkippingStatsColumns": "run_id,featurizer,fingerprint,golden_set,golden_version,metric"},
)
