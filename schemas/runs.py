"""`runs`: one row for each execution of a job: who owns it, what it read, what it wrote, how it ended."""

import pyarrow as pa

from schemas.table import Table, column

RUN_STATUSES = ("running", "finished", "accepted", "rejected", "failed")

RUNS = Table(
    name="runs",
    doc="Executions of jobs",
    key=("run_id",),
    columns=pa.schema(
        [
            column("run_id", pa.string(), "<given>.<job>"),
            column("job", pa.string(), "crawl, featurize, check, ..."),
            column("owner", pa.string(), "random id of the attempt that holds the run"),
            column("status", pa.string(), ", ".join(RUN_STATUSES)),
            column("started", pa.timestamp("us", tz="UTC"), "first start, UTC"),
            column("heartbeat", pa.timestamp("us", tz="UTC"), "last sign of life, UTC"),
            column("ended", pa.timestamp("us", tz="UTC"), "when it ended, UTC", null="it has not"),
            column("covers", pa.list_(pa.string()), "run_ids judged together with this run by a check"),
            column("inputs", pa.map_(pa.string(), pa.int64()), "table -> version it reads"),
            column(
                "outputs",
                pa.map_(pa.string(), pa.string()),
                "featurizer -> fingerprint it writes, judges or promotes; baseline and candidate of a comparison",
            ),
            column("metrics", pa.map_(pa.string(), pa.float64()), "what was measured, from committed rows"),
            column("whole_plan", pa.bool_(), "true once all that its inputs held was done; false under a limit"),
            column("config_digest", pa.string(), "SHA-256 of the resolved configuration"),
            column("code_version", pa.string(), "version of this code"),
            column("mlflow_run_id", pa.string(), "the MLflow run", null="none was logged"),
        ]
    ),
    properties={"delta.dataSkippingStatsColumns": "run_id,job,status,started,heartbeat"},
)
