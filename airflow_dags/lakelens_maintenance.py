"""The lake's housekeeping, once new rows are published. Knows only when, and that everything else comes first."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG
from lakelens_task import ACCEPTED, DEFAULTS, Lakelens, unlike_before

with DAG(
    "lakelens_maintenance",
    description="Compact, vacuum and forget, after new rows were published",
    schedule=[ACCEPTED],
    max_active_runs=1,
    deadline=unlike_before(timedelta(hours=12)),
    default_args=DEFAULTS | {"priority_weight": 5},
    tags={"lakelens"},
    doc_md="""
### Housekeeping
`lakelens maintain`, each time that `lakelens_daily` has published rows (an event of `lakelens_features`): it is they
that leave small files and old versions behind.
""",
):
    Lakelens(job="maintain", doc_md="Compaction of narrow tables, retention, vacuum, orphans.")
