"""Runs as MLflow shows them: a parent for a pipeline, a child for each job. Knows no table; loses no job when down."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from jobs.config import Config, ConfigError
from jobs.lake import Lake
from jobs.runs import code_version

EXPERIMENT = "lakelens"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else its page opens on traces of chats
BATCH = 100  # parameters or tags of one request, MAX_VALUE and MAX_TAG their length: limits of MLflow's REST API
MAX_VALUE = 500
MAX_TAG = 5000
DESCRIPTION = "mlflow.note.content"  # MLflow's tag of the text, in Markdown, on the page of a run or an experiment
VECTOR_SPACE = "vector_space.yaml"
METRIC_BATCH = 1000
MAX_ADDRESS = 60  # of a lake in the name of a registered model, whose column in MLflow's tables has 256
SERVERS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")  # where one of them is set, models may lie outside of the lake
# A tracking server that is down is given up after seconds: by default MLflow tries for minutes, at every call.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # where --json prints one object
}  # fmt: skip


@dataclass(frozen=True)
class Store:
    """Where runs are logged: a tracking URI, and where its artifacts go if the store does not decide that."""

    uri: str
    artifacts: str | None


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A run as MLflow knows it; without `client` nothing is logged, and every function here does nothing."""

    client: Any
    mlflow_run_id: str | None
    experiment_id: str | None
    warn: Callable[[str], None]


def tracking_store(lake: Lake) -> Store:
    """MLFLOW_TRACKING_URI, else SQLite in a local lake; raises ConfigError for a remote lake without it."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return Store(uri=given, artifacts=None)
    folder = lake.local_folder()
    if folder is None:
        raise ConfigError(
            f"lake {lake.uri} is remote and MLFLOW_TRACKING_URI is not set; set it to the address of an MLflow server"
        )
    # MLflow refuses its old file store, and puts SQLite's artifacts into the working folder unless told otherwise.
    return Store(uri=f"sqlite:///{folder}/mlflow.db", artifacts=(Path(folder) / "mlartifacts").as_uri())


def flat_parameters(value: Any, prefix: str = "") -> dict[str, str]:
    """A nested configuration as `a.b` -> text; lists as JSON, user names and passwords of URLs left out."""
    if isinstance(value, Mapping) and value:
        pairs = [flat_parameters(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()]
        return {name: text for pair in pairs for name, text in pair.items()}
    text = value if isinstance(value, str) else json.dumps(value)
    return {prefix: without_credentials(text)[:MAX_VALUE]}


def without_credentials(text: str) -> str:
    """A text whose URLs no longer say who logs in."""
    return re.sub(r"(://)[^/\s@\"']+@", r"\1", text)


@contextmanager
def pipeline_run(
    lake: Lake, config: Config, *, name: str, tags: Mapping[str, str] | None = None, warn: Callable[[str], None],
    experiment: str | None = None,
) -> Iterator[Tracked]:  # fmt: skip
    """The parent run of a pipeline, with its resolved configuration as parameters and as an artifact.

    experiment: of MLflow; None: that of MLFLOW_EXPERIMENT_NAME, or the one for all runs.

    Whatever MLflow does, the block runs: where it cannot be reached, `warn` is called once and nothing is logged.
    Raises ConfigError for a remote lake without MLFLOW_TRACKING_URI.
    """
    store = tracking_store(lake)
    all_tags = {"lake": lake.uri, "code_version": code_version(), "config_digest": config.digest(), **(tags or {})}
    shown_in = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    tracked = _start(store, name=name, experiment=shown_in, tags=all_tags, warn=warn)
    with _ended(tracked):
        resolved = config.model_dump(mode="json")
        _log_parameters(tracked, flat_parameters(resolved))
        log_text(tracked, "config.yaml", without_credentials(yaml.safe_dump(resolved, sort_keys=False)))
        yield tracked


@contextmanager
def job_run(
    parent: Tracked,
    *,
    run_id: str,
    job: str,
    lake: Lake,
    config: Config,
    inputs: Mapping[str, int],
    outputs: Mapping[str, str],
) -> Iterator[Tracked]:
    """The child run of one job: parameters, the table versions it reads as inputs, fingerprints as tags."""
    tags = {"lake": lake.uri, "job": job, "lakelens_run_id": run_id, "code_version": code_version()}
    tags |= {f"fingerprint.{featurizer.replace('@', '.v')}": digest for featurizer, digest in outputs.items()}
    parameters = flat_parameters(config.model_dump(mode="json"))
    with child_run(parent, name=run_id, tags=tags, parameters=parameters) as tracked:
        log_inputs(tracked, lake, inputs)
        yield tracked


@contextmanager
def child_run(
    parent: Tracked, *, name: str, tags: Mapping[str, str], parameters: Mapping[str, str]
) -> Iterator[Tracked]:
    """A run within another; where MLflow does not take it, the block runs and nothing of it is logged."""
    tracked = _child(parent, name=name, tags=tags)
    with _ended(tracked):
        _log_parameters(tracked, parameters)
        yield tracked


@contextmanager
def continued(tracked: Tracked) -> Iterator[Tracked]:
    """A run that has ended, running again for a block."""
    attempt(
        tracked, "the status of the run", lambda: tracked.client.update_run(tracked.mlflow_run_id, status="RUNNING")
    )
    with _ended(tracked):
        yield tracked


def started_by() -> dict[str, str]:
    """MLflow's own tags of who and what started a run."""
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": " ".join(["lakelens", *sys.argv[1:2]]),
        "mlflow.source.type": "JOB",
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's numeric user without a name
        return str(os.getuid())


def log_metrics(tracked: Tracked, metrics: Mapping[str, float]) -> None:
    """Log finite metrics, by the names of `jobs.metrics.flat`, in one request for each thousand."""

    def send() -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        found = [Metric(name, float(value), now_ms, 0) for name, value in metrics.items() if math.isfinite(value)]
        for start in range(0, len(found), METRIC_BATCH):
            tracked.client.log_batch(tracked.mlflow_run_id, metrics=found[start : start + METRIC_BATCH])

    attempt(tracked, "metrics", send)


def log_files(tracked: Tracked, paths: Sequence[str | Path]) -> None:
    """Keep local files and folders as artifacts, each under its own name."""
    for path in map(Path, paths):
        name, run_id = path.name, tracked.mlflow_run_id
        if path.is_dir():
            attempt(tracked, name, partial(_call, tracked, "log_artifacts", run_id, str(path), name))
        else:
            attempt(tracked, name, partial(_call, tracked, "log_artifact", run_id, str(path)))


def _call(tracked: Tracked, method: str, *arguments: Any) -> None:
    getattr(tracked.client, method)(*arguments)


def log_text(tracked: Tracked, name: str, text: str) -> None:
    """Keep a text as an artifact."""
    attempt(tracked, name, lambda: tracked.client.log_text(tracked.mlflow_run_id, text, name))


def log_table(tracked: Tracked, name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Keep rows of equal keys as a table that MLflow shows as one; `name` ends in .json. None, where there are none."""
    if rows:
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        attempt(tracked, name, lambda: tracked.client.log_table(tracked.mlflow_run_id, columns, name))


def log_figure(tracked: Tracked, name: str, draw: Callable[[], Any]) -> None:
    """Draw a figure of matplotlib, and keep it as an artifact."""
    attempt(tracked, name, lambda: tracked.client.log_figure(tracked.mlflow_run_id, draw(), name))


def log_tags(tracked: Tracked, tags: Mapping[str, str]) -> None:
    """Set tags, by which runs are searched."""

    def send() -> None:
        from mlflow.entities import RunTag

        found = [RunTag(_allowed(name), value[:MAX_TAG]) for name, value in tags.items()]
        for start in range(0, len(found), BATCH):
            tracked.client.log_batch(tracked.mlflow_run_id, tags=found[start : start + BATCH])

    attempt(tracked, "tags", send)


def describe_experiment(tracked: Tracked, text: str) -> None:
    """The text that stands on the page of MLflow's experiment."""

    def send() -> None:
        tracked.client.set_experiment_tag(tracked.experiment_id, DESCRIPTION, text)

    attempt(tracked, "a description", send)


def log_inputs(tracked: Tracked, lake: Lake, inputs: Mapping[str, int]) -> None:
    """Table versions as the datasets that a run reads."""

    def send() -> None:
        from mlflow.entities import Dataset, DatasetInput

        datasets = []
        for table, version in inputs.items():
            source = json.dumps({"uri": f"{lake.uri}/{table}", "delta_table_version": version})
            dataset = Dataset(name=table, digest=f"v{version}", source_type="delta", source=source)
            datasets.append(DatasetInput(dataset=dataset, tags=[]))
        if datasets:
            tracked.client.log_inputs(tracked.mlflow_run_id, datasets=datasets)

    attempt(tracked, "inputs", send)


def attempt(tracked: Tracked, what: str, send: Callable[[], object]) -> None:
    """Send something; where MLflow does not take it, warn and go on."""
    if tracked.client is None:
        return
    try:
        send()
    except Exception as e:  # a job is worth more than its log
        tracked.warn(f"MLflow did not take {what}: {str(e).splitlines()[0][:200] if str(e) else type(e).__name__}")


def _start(
    store: Store, *, name: str, experiment: str, tags: Mapping[str, str], warn: Callable[[str], None]
) -> Tracked:
    for key, value in (QUIET | PATIENCE).items():
        os.environ.setdefault(key, value)
    try:
        if store.uri.startswith("sqlite:///"):
            Path(store.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic"):  # which the import has set to INFO
            logging.getLogger(logger).setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=store.uri)
        experiment_id = _experiment(client, store, experiment)
        run = client.create_run(experiment_id, run_name=name, tags={**started_by(), **tags})
    except Exception as e:  # a job is worth more than its log
        reason = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        warn(f"MLflow at {without_credentials(store.uri)} cannot be used, nothing is logged there: {reason}")
        return Tracked(client=None, mlflow_run_id=None, experiment_id=None, warn=warn)
    return Tracked(client=client, mlflow_run_id=run.info.run_id, experiment_id=experiment_id, warn=warn)


def _experiment(client: Any, store: Store, name: str) -> str:
    for last in (False, True):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_location=store.artifacts, tags=EXPERIMENT_TAGS))
        except Exception:  # another process may have made it in between
            if last:
                raise
    raise AssertionError("unreachable")


def _child(parent: Tracked, *, name: str, tags: Mapping[str, str]) -> Tracked:
    nothing = Tracked(client=None, mlflow_run_id=None, experiment_id=None, warn=parent.warn)
    if parent.client is None:
        return nothing
    named = {_allowed(key): value[:MAX_TAG] for key, value in tags.items()}
    all_tags = {**started_by(), **named, "mlflow.parentRunId": str(parent.mlflow_run_id)}
    try:
        run = parent.client.create_run(parent.experiment_id, run_name=name, tags=all_tags)
    except Exception as e:  # a job is worth more than its log
        parent.warn(f"MLflow did not take run {name}, it is not logged there: {str(e)[:200]}")
        return nothing
    return Tracked(
        client=parent.client, mlflow_run_id=run.info.run_id, experiment_id=parent.experiment_id, warn=parent.warn
    )


@contextmanager
def _ended(tracked: Tracked) -> Iterator[None]:
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        attempt(tracked, "the end of the run", lambda: tracked.client.set_terminated(tracked.mlflow_run_id, status))


def _log_parameters(tracked: Tracked, parameters: Mapping[str, str]) -> None:
    def send() -> None:
        from mlflow.entities import Param

        found = [Param(_allowed(name), value) for name, value in parameters.items()]
        for start in range(0, len(found), BATCH):
            tracked.client.log_batch(tracked.mlflow_run_id, params=found[start : start + BATCH])

    attempt(tracked, "parameters", send)


def _allowed(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name)


# -- registered models --------------------------------------------------------------------------------------------


def model_of(lake: Lake, kind: str) -> str:
    """The registered model whose versions are a lake's vector spaces of a kind.

    On a server, which lakes may share, its name ends in the lake's address, in letters that every registry allows,
    and in 8 digits that tell apart what is then spelled alike.
    """
    model = f"{EXPERIMENT}-{kind}"
    if not any(map(os.environ.get, SERVERS)):
        return model
    address = re.sub(r"[^A-Za-z0-9]+", "-", lake.uri.partition("://")[2])[-MAX_ADDRESS:].strip("-")
    return f"{model}-{address}-{hashlib.sha256(lake.uri.encode()).hexdigest()[:8]}"


def registered_version(tracked: Tracked, model: str, tags: Mapping[str, str]) -> str:
    """The version that stands for tags["fingerprint"] in a registered model; both are made where there is none.

    tags: of the version; the model gets that of its lake. What a version stands for lies in VECTOR_SPACE among the
    run's artifacts; a version is no weights. Raises what MLflow raises.
    """
    from mlflow.exceptions import MlflowException

    client = tracked.client
    try:
        client.get_registered_model(model)
    except MlflowException:
        said = "Vector spaces of one kind in one lake, a version for each fingerprint; `champion` is what readers get."
        client.create_registered_model(model, tags={"lake": tags["lake"]}, description=said)
    there = client.search_model_versions(f"name = '{model}' and tags.fingerprint = '{tags['fingerprint']}'")
    if there:
        return str(there[0].version)
    client.log_text(tracked.mlflow_run_id, yaml.safe_dump(dict(tags), sort_keys=False), VECTOR_SPACE)
    source = f"runs:/{tracked.mlflow_run_id}/{VECTOR_SPACE}"  # a server takes no other path of a local lake
    made = client.create_model_version(
        model, source, run_id=tracked.mlflow_run_id, tags=dict(tags), description=tags.get("featurizer")
    )
    return str(made.version)


def tag_version(tracked: Tracked, model: str, version: str, tags: Mapping[str, str]) -> None:
    """Lay tags over those of a version; raises what MLflow raises."""
    for name, value in tags.items():
        tracked.client.set_model_version_tag(model, version, name, value[:MAX_TAG])


def set_alias(tracked: Tracked, model: str, alias: str, tags: Mapping[str, str] | None) -> None:
    """Let `alias` name the version with tags["fingerprint"], or nothing; raises what MLflow raises."""
    if tags is None:
        tracked.client.delete_registered_model_alias(model, alias)
    else:
        version = registered_version(tracked, model, tags)
        tracked.client.set_registered_model_alias(model, alias, version)
