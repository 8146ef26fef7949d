"""An experiment, when someone asks for it. Knows its file and its priority, nothing of what is compared."""

from __future__ import annotations

from airflow.sdk import DAG, Context, Param
from lakelens_task import DEFAULTS, Lakelens


def file_of(context: Context) -> list[str]:
    """The experiment's file, and whether its baseline alone runs."""
    params = context["params"]
    return [params["file"], *(["--dry-run"] if params["dry_run"] else [])]


with DAG(
    "lakelens_experiment",
    description="Is B better than A? Featurize, evaluate, time and compare the variants of a file",
    schedule=None,
    default_args=DEFAULTS | {"priority_weight": 10},
    params={
        "file": Param(type="string", minLength=1, description="YAML of the experiment, a path on the worker."),
        "dry_run": Param(False, type="boolean", description="Only the baseline: what differences can the items show?"),
    },
    tags={"lakelens"},
    doc_md="""
### Is B better than A?
`lakelens experiment FILE`; the verdict is the task's XCom and its last line, which also names the page. Nothing that an
experiment computes is published. Each trigger is an experiment of its own; clearing a failed one resumes it.
""",
):
    Lakelens(job="experiment", options=file_of, doc_md="Featurizes what the variants lack, measures and compares them.")
