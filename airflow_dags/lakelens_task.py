"""`lakelens` commands as Airflow tasks: settings, pools, retries, alerts. Knows what exit codes mean, and no job."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import (
    Asset,
    BaseOperator,
    BaseSensorOperator,
    Context,
    DeadlineAlert,
    DeadlineReference,
    SyncCallback,
    Variable,
)
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from lakelens_command import Outcome, command_line, end, follow, run_id_of, start

DAILY, BACKFILL = "lakelens_daily", "lakelens_backfill"
POOL = "lakelens"
ACCEPTED = Asset("lakelens_features")  # an event of it: a check has published new rows
REFUSED = {2: "wrong request", 3: "rejected by its gates"}  # exit codes for which trying again changes nothing
OF_INTERVALS = ("scheduled", "backfill")  # the types of DAG runs that stand for a data interval of their own
log = logging.getLogger(__name__)


def alert(text: str) -> None:
    """Log it, and hand it to the command that LAKELENS_ALERT of the environment names, as its last argument.

    Not a Variable: Airflow denies those to what it calls when a deadline is missed.
    """
    log.error(text)
    if command := shlex.split(os.environ.get("LAKELENS_ALERT", "")):
        subprocess.run([*command, text], timeout=60, check=True)


def task_failed(context: Context) -> None:
    """Alert that a task failed for good."""
    ti = context["ti"]
    alert(f"{ti.dag_id}.{ti.task_id} of {ti.run_id} failed: {context.get('exception')}")


def deadline_missed(by: str, context: dict[str, Any]) -> None:
    """Alert that a DAG run has not ended in time."""
    run = context["dag_run"]
    alert(f"{run['dag_id']} has not ended {by}: {run['dag_run_id']}")


def deadline(reference: Any, interval: timedelta, by: str) -> DeadlineAlert:
    """An alert for a DAG run that has not ended `interval` after `reference`, which `by` names in words.

    Not of DeadlineReference.DAGRUN_QUEUED_AT: Airflow 3.3 cannot clear a failed run that has one (its issue 70368).
    """
    return DeadlineAlert(
        reference=reference, interval=interval, callback=SyncCallback(deadline_missed, kwargs={"by": by})
    )


def by_date(interval: timedelta) -> DeadlineAlert:
    """An alert for a DAG run that has not ended `interval` after its data begin; none for a run without a date."""
    return deadline(DeadlineReference.DAGRUN_LOGICAL_DATE, interval, f"within {interval} from where its data begin")


def unlike_before(interval: timedelta) -> DeadlineAlert:
    """An alert for a DAG run that takes `interval` longer than the last ten did on average; none for the first."""
    average = DeadlineReference.AVERAGE_RUNTIME(max_runs=10, min_runs=1)
    return deadline(average, interval, f"{interval} later than usual")


DEFAULTS: dict[str, Any] = {
    "owner": "lakelens",
    "pool": POOL,
    "weight_rule": "absolute",
    "retries": 4,  # after 2, 4, 8 and 16 minutes: a lease of a driver that died is free after 5
    "retry_delay": timedelta(minutes=2),
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(minutes=30),
    "on_failure_callback": task_failed,
}


def setting(name: str, default: str | None = None) -> str:
    """The Variable lakelens_NAME; raises AirflowFailException where it has neither a value nor a default."""
    value = str(Variable.get(f"lakelens_{name}", default=default or ""))
    if not value and default is None:
        raise AirflowFailException(f"the Variable lakelens_{name} is not set; README.md says what it holds")
    return value


class Command(BaseOperator):
    """Runs `lakelens` commands; whatever ends the task ends their processes."""

    process: subprocess.Popen[str] | None = None

    def run_id(self, context: Context) -> str:
        """The run id that commands of this DAG run are given."""
        run = context["dag_run"]
        start = context["data_interval_start"] if run.run_type in OF_INTERVALS else None
        return run_id_of(run.dag_id, airflow_run_id=run.run_id, interval_start=start)

    def run(self, job: str, *options: str, run_id: str | None) -> Outcome:
        """Run a command to its end, its lines in the task's log."""
        command = command_line(
            shlex.split(setting("command", "lakelens")), job, options,
            lake=setting("lake"), conf=shlex.split(setting("conf", "")), run_id=run_id,
        )  # fmt: skip
        self.log.info(shlex.join(command))
        try:
            self.process = start(command)
        except OSError as e:
            raise AirflowFailException(f"lakelens_command {command[0]!r} cannot be executed: {e}") from e
        return follow(self.process, self.log.info)

    def on_kill(self) -> None:
        """End the command that runs."""
        if self.process is not None:
            end(self.process)


def finished(outcome: Outcome) -> Outcome:
    """`outcome` of a command that ended well; else raises AirflowFailException, or RuntimeError if a retry may help."""
    if outcome.exit_code in REFUSED:
        raise AirflowFailException(f"{REFUSED[outcome.exit_code]}: {outcome.message}")
    if outcome.exit_code:
        raise RuntimeError(f"exit code {outcome.exit_code}, worth retrying: {outcome.message}")
    return outcome


class Lakelens(Command):
    """`lakelens JOB` as a task of the same name; what it told is its XCom, and the extra of its asset events."""

    def __init__(self, *, job: str, options: Callable[[Context], Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(task_id=kwargs.pop("task_id", job), **kwargs)
        self.job, self.options = job, options

    def execute(self, context: Context) -> dict[str, Any]:
        options = self.options(context) if self.options is not None else ()
        facts = finished(self.run(self.job, *options, run_id=self.run_id(context))).facts
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {key: facts[key] for key in ("run_id", "lake") if key in facts}
        return facts


class Waves(Command, BaseSensorOperator):
    """Featurizes what documents of the data interval lack, `limit` media at a time, each wave checked when it is done.

    Between two waves the task holds neither a slot nor a process, so that pausing the DAG stops it there, and no wave
    begins while a run of lakelens_daily is on its way.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", poke_interval=20, timeout=timedelta(days=365), **kwargs)

    def poke(self, context: Context) -> bool:
        ti, params = context["ti"], context["params"]
        if context["dag_run"].run_type != "backfill":
            raise AirflowSkipException(f"nothing to fill in; airflow backfill create --dag-id {ti.dag_id} names days")
        if ti.get_dr_count(dag_id=DAILY, states=["running"]):
            self.log.info("waiting: %s comes first", DAILY)
            return False
        # An id of its own for each try of a wave: a check of lakelens_daily may publish what a failed one has written.
        run_id = f"{self.run_id(context)}-{ti.try_number}-{context['task_reschedule_count']}"
        since, until = (context[f"data_interval_{side}"].isoformat() for side in ("start", "end"))
        where = f"fetched_at >= TIMESTAMP '{since}' AND fetched_at < TIMESTAMP '{until}'"
        chosen = [part for one in params["featurizers"] for part in ("--featurizer", one)]
        limited = ("--limit", str(params["limit"]), "--where", where)
        wave = finished(self.run("featurize", *limited, *chosen, run_id=run_id))
        written = f"{run_id}.featurize"
        checked = self.run("check", "--run", written, run_id=run_id)
        if checked.exit_code == 3:  # left there, the rows would have the next check of lakelens_daily rejected too
            discarded = self.run("check", "--discard", written, run_id=None)
            if discarded.exit_code:
                raise AirflowFailException(f"{checked.message}; {written} is to be discarded yet: {discarded.message}")
        finished(checked)
        n_media = wave.facts.get("n_media", params["limit"])  # not told of a wave that was accepted before
        return bool(n_media < params["limit"])
