"""The history, for featurizers that have not seen it: one run for each day, wave by wave. Knows no order but that."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, CronDataIntervalTimetable, Param
from lakelens_task import BACKFILL, DEFAULTS, Waves

with DAG(
    BACKFILL,
    description="Featurize what was fetched before, wave by wave, behind everything else",
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2020, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"priority_weight": 1},
    params={
        "featurizers": Param([], type="array", items={"type": "string"}, description="Spec ids; none: the configured."),
        "limit": Param(10_000, type="integer", minimum=1, description="Media of a wave, which is checked as a whole."),
    },
    tags={"lakelens"},
    doc_md="""
### The history, at the lowest priority
```
airflow backfill create --dag-id lakelens_backfill --from-date 2026-01-01 --to-date 2026-06-30 --max-active-runs 1 \\
  --dag-run-conf '{"featurizers": ["object_yolov3.tiny@1"], "limit": 10000}'
```
makes one run for each day of the range; `waves` featurizes the media of the documents that were last fetched on it,
`limit` at a time, and publishes each wave by a check of its own.

* **Pausing this DAG** stops it after the wave at hand; unpausing goes on. No wave begins while `lakelens_daily` runs.
* **A rejected wave** is discarded, so that its rows are not in the way of fresh ones, and its day fails.
* **A day done again** finds nothing to do. Runs that the schedule makes by itself do nothing.
""",
):
    Waves(
        task_id="waves",
        doc_md="`lakelens featurize --limit N` and `lakelens check`, until a wave finds less than N media.",
    )
