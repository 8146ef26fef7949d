"""Run identity: who executes a job, whether it still lives, what it pinned and how it ended. Knows no job."""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any, Literal

from jobs.lake import Lake, check_writable, read, repeated, sql_text
from jobs.polling import polling
from jobs.progress import unseen
from jobs.writer_lock import WriterLost, sole_writer
from schemas import RUNS
from schemas.table import spark_type

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ALONE = ("crawl",)  # jobs of which a lake has one at a time: what two know of a host's pauses would be half of it


class RunRefused(RuntimeError):
    """Another attempt lives and holds the run or the lease; worth trying again later."""


class RunPublished(ValueError):
    """What the run wrote before it failed was judged and published, so it can no longer grow."""


class RunAccepted(RuntimeError):
    """The run was accepted before: there is nothing to do."""


class RunTakenOver(RuntimeError):
    """Another attempt owns the run now; this one must stop."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attempt at a run."""

    run_id: str
    job: str
    owner: str
    inputs: Mapping[str, int]  # table -> version, pinned at the first attempt
    started: datetime  # of the first attempt
    resumed: bool
    progress: Callable[..., None] = unseen  # a jobs.progress.Progress, or alike
    check_owned: Callable[[], None] = field(default=lambda: None)  # raises RunTakenOver


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended: what goes into its row of `runs` and its last line."""

    status: Literal["finished", "accepted", "rejected"]
    message: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)  # featurizer -> fingerprint
    covers: Sequence[str] = ()
    whole_plan: bool = True
    artifacts: Sequence[str] = ()  # local files and folders for MLflow
    notes: Sequence[str] = ()  # lines for whoever watches


def new_run_name(now: datetime) -> str:
    """A run id for who gives none: time of start and four random hex digits."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def stored_run_id(given: str, job: str) -> str:
    """The id under which a job of a pipeline is stored: `<given>.<job>`."""
    return f"{given}.{job}"


def code_version() -> str:
    """The installed version of this code, `unknown` from a bare checkout or zip."""
    try:
        return package_version("lakelens")
    except PackageNotFoundError:
        return "unknown"


def shows_life(row: Mapping[str, Any], *, now: datetime, expiry_s: float) -> bool:
    """Whether a row of `runs` is of a run that goes on: its heart has beaten within `expiry_s` seconds."""
    return bool(row["status"] == "running" and (now - row["heartbeat"]).total_seconds() < expiry_s)


def decide_start(row: Mapping[str, Any] | None, *, now: datetime, expiry_s: float) -> Literal["insert", "take_over"]:
    """What to do about a run id whose row is `row`, if any.

    Raises RunAccepted for an accepted run and RunRefused for one that shows life within `expiry_s` seconds.
    """
    if row is None:
        return "insert"
    if row["status"] == "accepted":
        raise RunAccepted(f"run {row['run_id']} was accepted before; nothing to do")
    if shows_life(row, now=now, expiry_s=expiry_s):
        age_s = (now - row["heartbeat"]).total_seconds()
        raise RunRefused(
            f"run {row['run_id']} lives: its last heartbeat is {age_s:.0f} s old; if it died, it can be resumed once "
            f"that is {expiry_s:.0f} s (featurize.lease_expiry_s)"
        )
    return "take_over"


def lease_held(outputs: Mapping[str, str], *, expiry_s: float, job: str = "") -> str:
    """SQL condition on `runs`: a run that lives and writes one of the same (featurizer, fingerprint).

    Of a job in `ALONE` it is any that lives.
    """
    same = [f"outputs[{sql_text(featurizer)}] = {sql_text(fp)}" for featurizer, fp in outputs.items()]
    same += [f"job = {sql_text(job)}"] if job in ALONE else []
    return f"status = 'running' AND {_beats(expiry_s)} AND ({' OR '.join(same) or 'false'})"


def run_rows(spark: SparkSession, lake: Lake, condition: str = "true") -> list[dict[str, Any]]:
    """Rows of `runs` as mappings, timestamps with their zone."""
    rows = [row.asDict() for row in read(spark, lake, RUNS).where(condition).collect()]
    for row in rows:
        for name in ("started", "heartbeat", "ended"):
            row[name] = row[name].astimezone(UTC) if row[name] is not None else None
    return rows


def _literal(value: Any, type_name: str) -> str:
    if value is None:
        return f"CAST(NULL AS {type_name})"
    if isinstance(value, datetime):
        return f"TIMESTAMP {sql_text(value.astimezone(UTC).isoformat())}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        numbers = {k: v for k, v in value.items() if not (isinstance(v, float) and not math.isfinite(v))}
        return f"from_json({sql_text(json.dumps(numbers))}, {sql_text(type_name)})"
    if isinstance(value, (list, tuple)):
        return f"from_json({sql_text(json.dumps(list(value)))}, {sql_text(type_name)})"
    return sql_text(str(value))


def _set_clause(columns: Mapping[str, Any]) -> str:
    return ", ".join(
        f"`{name}` = {_literal(value, spark_type(RUNS.columns.field(name).type))}" for name, value in columns.items()
    )


def update_run(spark: SparkSession, lake: Lake, run_id: str, *, owner: str, **columns: Any) -> None:
    """Set columns of a run this attempt owns; raises RunTakenOver where it no longer does."""
    if not _update(spark, lake, f"run_id = {sql_text(run_id)} AND owner = {sql_text(owner)}", columns):
        raise RunTakenOver(f"run {run_id} was taken over by another attempt; this one stops")


def _update(spark: SparkSession, lake: Lake, condition: str, columns: Mapping[str, Any]) -> int:
    statement = f"UPDATE delta.`{lake.table(RUNS)}` SET {_set_clause(columns)} WHERE {condition}"
    return repeated(lambda: int(spark.sql(statement).collect()[0][0]))


def _insert(spark: SparkSession, lake: Lake, row: Mapping[str, Any], *, unless: str) -> None:
    """Insert a run unless its id is there or any row fulfils `unless`.

    The look is part of the statement's transaction: of two that insert at one moment the second conflicts and looks
    again, so that exactly one is in, whatever their clocks say.
    """
    values = ", ".join(f"{_literal(row[f.name], spark_type(f.type))} AS `{f.name}`" for f in RUNS.columns)
    runs = f"delta.`{lake.table(RUNS)}`"
    statement = (
        f"MERGE INTO {runs} t USING (SELECT {values} WHERE NOT EXISTS (SELECT 1 FROM {runs} WHERE {unless})) s "
        "ON t.run_id = s.run_id WHEN NOT MATCHED THEN INSERT *"
    )
    repeated(lambda: spark.sql(statement).collect())


@contextmanager
def executing(
    spark: SparkSession,
    lake: Lake,
    *,
    run_id: str,
    job: str,
    inputs: Mapping[str, int],
    outputs: Mapping[str, str],
    config_digest: str,
    heartbeat_s: float,
    expiry_s: float,
    progress: Callable[..., None],
) -> Iterator[Run]:
    """Hold a run for a `with` block: insert or resume it, keep its heart beating, mark it failed on error.

    Whoever uses it ends the run with `finish`. Raises RunAccepted, RunRefused (the id or the lease is held), and
    WriterRefused where Delta's log cannot keep two drivers apart and another writes the lake, and LakeError where the
    lake cannot be written to.
    """
    with (
        sole_writer(lake.uri, run_id=run_id, heartbeat_s=heartbeat_s, expiry_s=expiry_s) as check_sole,
        _executing(
            spark, lake, run_id=run_id, job=job, inputs=inputs, outputs=outputs, config_digest=config_digest,
            heartbeat_s=heartbeat_s, expiry_s=expiry_s, progress=progress, check_sole=check_sole,
        ) as run,
    ):  # fmt: skip
        yield run


@contextmanager
def _executing(
    spark: SparkSession, lake: Lake, *, run_id: str, job: str, inputs: Mapping[str, int], outputs: Mapping[str, str],
    config_digest: str, heartbeat_s: float, expiry_s: float, progress: Callable[..., None],
    check_sole: Callable[[], None],
) -> Iterator[Run]:  # fmt: skip
    """`executing` by the only driver that writes the lake; check_sole raises WriterLost where it is not any more."""
    check_writable(spark, lake)
    now = datetime.now(UTC)
    owner = secrets.token_hex(8)
    held = lease_held(outputs, expiry_s=expiry_s, job=job)
    rows = run_rows(spark, lake, f"run_id = {sql_text(run_id)}")
    row = rows[0] if rows else None
    if decide_start(row, now=now, expiry_s=expiry_s) == "insert":
        fresh: dict[str, Any] = dict.fromkeys(RUNS.columns.names)
        fresh |= {"run_id": run_id, "job": job, "owner": owner, "status": "running", "started": now, "heartbeat": now}
        fresh |= {"covers": [], "inputs": dict(inputs), "outputs": dict(outputs), "metrics": {}, "whole_plan": False}
        fresh |= {"config_digest": config_digest, "code_version": code_version()}
        _insert(spark, lake, fresh, unless=held)
        found = run_rows(spark, lake, f"run_id = {sql_text(run_id)}")
        if not found:
            raise _refused(spark, lake, held, expiry_s=expiry_s)
        if found[0]["owner"] != owner:
            raise RunRefused(f"run {run_id} was started by another attempt at the same moment")
        run = Run(run_id=run_id, job=job, owner=owner, inputs=inputs, started=now, resumed=False)
    else:
        assert row is not None
        condition = (
            f"run_id = {sql_text(run_id)} AND owner = {sql_text(row['owner'])} "
            f"AND heartbeat = {_literal(row['heartbeat'], 'TIMESTAMP')}"
        )
        if not covered_run_ids(spark, lake).where(f"run_id = {sql_text(run_id)}").isEmpty():
            raise RunPublished(f"run {run_id} ended early and what it wrote is published; give a new --run-id")
        taken = {"owner": owner, "status": "running", "heartbeat": now, "ended": None, "outputs": dict(outputs)}
        taken |= {"whole_plan": False, "config_digest": config_digest, "code_version": code_version()}
        if not _update(spark, lake, condition, taken):
            raise RunRefused(f"run {run_id} was resumed by another attempt at the same moment")
        run = Run(run_id=run_id, job=job, owner=owner, inputs=row["inputs"], started=row["started"], resumed=True)
        held = f"run_id <> {sql_text(run_id)} AND {held}"
        if run_rows(spark, lake, held):
            update_run(spark, lake, run_id, owner=owner, status="failed", ended=datetime.now(UTC))
            raise _refused(spark, lake, held, expiry_s=expiry_s)

    lost = threading.Event()
    beaten = [now]

    def beat_once() -> None:
        check_sole()
        beat_at = datetime.now(UTC)
        update_run(spark, lake, run_id, owner=owner, heartbeat=beat_at)
        beaten[0] = beat_at

    def beat() -> None:
        if lost.is_set():
            return
        try:
            beat_once()
        except RunTakenOver:
            lost.set()
        except Exception:  # one missed beat is no reason to stop; `check_owned` looks how long ago the last one was
            return

    def check_owned() -> None:
        check_sole()
        if lost.is_set():
            raise RunTakenOver(f"run {run_id} was taken over by another attempt; this one stops")
        if datetime.now(UTC) - beaten[0] >= timedelta(seconds=expiry_s):  # others may take this run for dead
            beat_once()

    try:
        with polling(beat, every_s=heartbeat_s, name="heartbeat"):
            yield Run(**{**run.__dict__, "progress": progress, "check_owned": check_owned})
    except BaseException as e:
        if isinstance(e, (RunTakenOver, WriterLost)):
            raise
        with _quietly():
            check_sole()
            mine = f"run_id = {sql_text(run_id)} AND owner = {sql_text(owner)}"
            failed = {"status": "failed", "ended": datetime.now(UTC)}
            if not _update(spark, lake, f"{mine} AND status = 'running'", failed) and not run_rows(spark, lake, mine):
                raise RunTakenOver(f"run {run_id} was taken over by another attempt; this one stops") from e
        raise


@contextmanager
def _quietly() -> Iterator[None]:
    """The original error matters more than that the run could not be marked failed; its heartbeat will expire.

    Not where the run or the lake was taken over: then what failed did so because its staging was removed under it.
    """
    try:
        yield
    except (RunTakenOver, WriterLost):
        raise
    except Exception:
        return


def _refused(spark: SparkSession, lake: Lake, held: str, *, expiry_s: float) -> RunRefused:
    holders = [row["run_id"] for row in run_rows(spark, lake, held)] or ["another"]  # it may have ended by now
    return RunRefused(
        f"run {holders[0]} is writing to {lake.uri}; run this one again when it has ended, or, if it died, once its "
        f"last heartbeat is {expiry_s:.0f} s old"
    )


def finish(spark: SparkSession, lake: Lake, run: Run, result: JobResult, *, mlflow_run_id: str | None) -> None:
    """Write how a run ended; raises RunTakenOver where another attempt owns it, WriterLost where another writes."""
    run.check_owned()
    update_run(
        spark,
        lake,
        run.run_id,
        owner=run.owner,
        status=result.status,
        ended=datetime.now(UTC),
        outputs=result.outputs,
        metrics=result.metrics,
        covers=list(result.covers),
        whole_plan=result.whole_plan,
        mlflow_run_id=mlflow_run_id,
    )


def covered_run_ids(spark: SparkSession, lake: Lake) -> DataFrame:
    """The run_ids whose rows are published, one column `run_id`."""
    from pyspark.sql import functions as F

    return read(spark, lake, RUNS).where("status = 'accepted'").select(F.explode("covers").alias("run_id")).distinct()


def judge(
    spark: SparkSession,
    lake: Lake,
    owners: Mapping[str, str],
    status: Literal["accepted", "rejected"],
    *,
    expiry_s: float,
) -> list[str]:
    """Mark the judged runs and return those marked: not one that came back to life meanwhile.

    owners: run_id -> the owner that its rows were judged under. A run that ended early keeps the status failed, since
    it did not do all it was to do. Each gets a new owner, so that an attempt that wakes up later finds it taken.
    """
    if not owners:
        return []
    listed = ", ".join(f"({sql_text(run_id)}, {sql_text(owner)})" for run_id, owner in owners.items())
    owner = secrets.token_hex(8)
    statement = (
        f"UPDATE delta.`{lake.table(RUNS)}` SET owner = {sql_text(owner)}, "
        f"status = CASE WHEN status IN ('running', 'failed') THEN 'failed' ELSE {sql_text(status)} END "
        f"WHERE (run_id, owner) IN ({listed}) AND NOT (status = 'running' AND {_beats(expiry_s)})"
    )
    repeated(lambda: spark.sql(statement).collect())
    return [row["run_id"] for row in run_rows(spark, lake, f"owner = {sql_text(owner)}")]


def _beats(expiry_s: float) -> str:
    alive_since = datetime.now(UTC) - timedelta(seconds=expiry_s)
    return f"heartbeat > {_literal(alive_since, 'TIMESTAMP')}"
