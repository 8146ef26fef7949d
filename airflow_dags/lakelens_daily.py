"""What is new, every day: fetched, featurized, judged and measured. Knows the order, the schedule and the deadline."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, Context, CronDataIntervalTimetable
from airflow.sdk.exceptions import AirflowSkipException
from lakelens_task import ACCEPTED, DAILY, DEFAULTS, Lakelens, by_date, setting


def golden_sets(context: Context) -> list[str]:
    """The golden sets that the Variable lakelens_golden names; without any there is nothing to measure on."""
    names = setting("golden", "").split()
    if not names:
        raise AirflowSkipException("the Variable lakelens_golden names no golden set")
    return [part for name in names for part in ("--golden", name)]


with DAG(
    DAILY,
    description="Fetch, featurize, judge and measure what is new",
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    deadline=by_date(timedelta(hours=36)),  # of the day that ended at 02:00: published by 14:00
    default_args=DEFAULTS | {"priority_weight": 100},
    tags={"lakelens"},
    doc_md="""
### Fresh data, every day
`crawl` fetches what is due, `featurize` computes what is missing, `check` judges all rows that nothing accepted
covers yet, `evaluate` measures the featurizers on golden sets.

* **Acceptance is publication.** Once `check` has accepted, readers see the new rows, and the asset has an event.
* **Rejected** (exit code 3): the run stops, and readers keep what they had. The task's last line says which rule failed
  on which rows. Set right what is wrong, or `lakelens check --discard RUN`, and clear the failed task.
* **Doing a day again** resumes it; where it was accepted, nothing is left to do.
""",
):
    crawl = Lakelens(job="crawl", doc_md="Sources to `fetches`, `documents`, `media`.")
    featurize = Lakelens(job="featurize", doc_md="`media` to `frames`, `features`, `mentions`.")
    check = Lakelens(job="check", outlets=[ACCEPTED], doc_md="The quality gates; acceptance publishes.")
    evaluate = Lakelens(
        job="evaluate", options=golden_sets, doc_md="What the featurizers are worth on the golden sets, item by item."
    )
    crawl >> featurize >> check >> evaluate
