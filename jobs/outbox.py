"""What MLflow is told, as events: sent at once, or kept on disk while it cannot be reached and sent by a later run.

An event is data, so that one that was kept is sent by the same code. Knows no table and no job.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else its page opens on traces of chats
BATCH = 100  # parameters or tags of one request: a limit of MLflow's REST API, as is that of metrics
METRIC_BATCH = 1000
DESCRIPTION = "mlflow.note.content"  # MLflow's tag of the text, in Markdown, on the page of a run or an experiment
VECTOR_SPACE = "vector_space.yaml"
# A tracking server that is down is given up after seconds: by default MLflow tries for minutes, at every call.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # where --json prints one object
}  # fmt: skip
# Of its answers those by which MLflow refuses what it is told, so that telling it again changes nothing.
REFUSALS = (400, 404, 409, 413, 422)
EVENTS, SENT, FILES = "events.jsonl", "sent.json", "files"  # in a folder of kept events


@dataclass(frozen=True)
class TrackingStore:
    """Where runs are logged: a tracking URI, and where its artifacts go if the store does not decide that."""

    uri: str
    artifacts: str | None


@dataclass(frozen=True)
class Event:
    """One thing to tell. `data` is JSON; files stand at `data["path"]`."""

    kind: str
    run: str  # our key of the run, which is known before MLflow has an id for it
    data: dict[str, Any]


def reason_of(error: BaseException) -> str:
    """The first line of what an error says."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow will never take it, however often it is told."""
    if isinstance(error, (KeyError, TypeError, ValueError)):  # of a run that it refused, or not what its client takes
        return True
    status = getattr(error, "get_http_status_code", None)
    return status is not None and status() in REFUSALS


@dataclass(kw_only=True)
class Outbox:
    """What one command tells MLflow. From the first event that does not arrive on, all are kept, in order."""

    store: TrackingStore
    folder: Path  # where events are kept, one folder in it for each command
    warn: Callable[[str], None]
    ids: dict[str, str] = field(default_factory=dict)  # key of a run -> its id in MLflow
    _client: Any = None
    _kept: Path | None = None
    _events: IO[str] | None = None  # of the folder `_kept`; held while this command may add to it
    _is_lost: bool = False  # neither MLflow nor the folder takes anything

    def client(self) -> Any:
        """MLflow's client. Raises what MLflow raises."""
        if self._client is None:
            self._client = client_of(self.store)
        return self._client

    def tell(self, event: Event) -> None:
        """Send an event, or keep it. Whatever happens the caller goes on: a job is worth more than its log."""
        if self._is_lost:
            return
        if "path" in event.data and not Path(event.data["path"]).exists():
            self.warn(f"MLflow is not given {event.data['path']}, which is not there")
            return
        if self._kept is None:
            try:
                perform(self.client(), self.store, self.ids, event)
                return
            except Exception as e:
                if is_refusal(e):
                    self.warn(f"MLflow did not take {_named(event)}: {reason_of(e)}")
                    return
                reason = reason_of(e)
        try:
            if self._kept is None or self._events is None:
                self._kept = _begun(self.folder, self.store, self.ids)
                self._events = (self._kept / EVENTS).open("a")
                fcntl.flock(self._events, fcntl.LOCK_EX)
                at = without_credentials(self.store.uri)
                self.warn(f"MLflow at {at} cannot be used, what it misses is kept and sent later: {reason}")
            self._events.write(json.dumps(asdict(_with_files(event, self._kept))) + "\n")
            self._events.flush()
            os.fsync(self._events.fileno())
        except OSError as e:
            self._is_lost = True
            self.warn(f"MLflow cannot be used, and what it misses cannot be kept in {self.folder} and is lost: {e}")

    def close(self) -> None:
        """Let others send what was kept."""
        if self._events is not None:
            with suppress(OSError):  # of a disk that is full, on which it tries again to write
                self._events.close()


def client_of(store: TrackingStore) -> Any:
    """A client of a tracking store, quiet and impatient. Raises what MLflow raises."""
    for key, value in (QUIET | PATIENCE).items():
        os.environ.setdefault(key, value)
    if store.uri.startswith("sqlite:///"):
        Path(store.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    for logger in ("mlflow", "alembic"):  # what goes wrong is said by `Outbox`, in one line
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=store.uri)


def without_credentials(text: str) -> str:
    """A text whose URLs no longer say who logs in."""
    return re.sub(r"(://)[^/\s@\"']+@", r"\1", text)


# -- kept events --------------------------------------------------------------------------------------------------


def _begun(folder: Path, store: TrackingStore, ids: dict[str, str]) -> Path:
    kept = folder / uuid.uuid4().hex
    (kept / FILES).mkdir(parents=True)
    (kept / SENT).write_text(json.dumps({"store": asdict(store), "n": 0, "ids": ids}))
    return kept


def _with_files(event: Event, kept: Path) -> Event:
    """An event whose files stand in the folder of kept events."""
    data = dict(event.data)
    if "path" in data:
        copy = kept / FILES / uuid.uuid4().hex / Path(data["path"]).name
        copy.parent.mkdir()
        if Path(data["path"]).is_dir():
            shutil.copytree(data["path"], copy)
        else:
            shutil.copyfile(data["path"], copy)
        data["path"] = str(copy.relative_to(kept))
    return Event(event.kind, event.run, data)


def send_kept(store: TrackingStore, folder: Path, warn: Callable[[str], None]) -> int:
    """Send what commands that have ended kept for `store`, in its order; how many events went.

    What does not arrive stays for the next time, and so does what cannot be read. A command that dies in between may
    send its last event twice.
    """
    n_sent = 0
    for kept in _kept_folders(folder):
        try:
            with (kept / EVENTS).open("r") as events:
                fcntl.flock(events, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused: a command adds to it, or sends it
                sent, arrived = _send(store, kept, _whole_lines(events.read()), warn)
                n_sent += sent
        except (BlockingIOError, FileNotFoundError):  # another command was here first
            continue
        except (OSError, ValueError, KeyError, TypeError) as e:
            warn(f"what MLflow missed cannot be sent from {kept}: {reason_of(e)}")
            continue
        if not arrived:
            break
    return n_sent


def _kept_folders(folder: Path) -> list[Path]:
    """The folders of kept events, the oldest first."""
    found = []
    for kept in folder.glob("*") if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # of a command that has just sent it
            found.append((kept.stat().st_mtime, kept))
    return [kept for _, kept in sorted(found)]


def _whole_lines(text: str) -> list[str]:
    """The lines that were written to their end: a full disk or a kill tears the last."""
    return text[: text.rfind("\n") + 1].splitlines()


def _send(store: TrackingStore, kept: Path, lines: list[str], warn: Callable[[str], None]) -> tuple[int, bool]:
    """How many events of a folder were sent now, and whether MLflow could be reached."""
    state = json.loads((kept / SENT).read_text())
    if state["store"] != asdict(store):
        return 0, True
    ids, first, client = state["ids"], state["n"], None
    for n, line in enumerate(lines[first:], start=first):
        event = Event(**json.loads(line))
        if "path" in event.data:
            event.data["path"] = str(kept / event.data["path"])
        try:
            client = client or client_of(store)
            perform(client, store, ids, event)
        except Exception as e:
            if not is_refusal(e):
                return n - first, False
            warn(f"MLflow did not take {_named(event)}: {reason_of(e)}")
        (kept / f"{SENT}.new").write_text(json.dumps({**state, "n": n + 1, "ids": ids}))
        (kept / f"{SENT}.new").rename(kept / SENT)
    shutil.rmtree(kept)
    return len(lines) - first, True


def _named(event: Event) -> str:
    named = event.data.get("name") or event.data.get("model")
    return f"{event.kind} {named}" if named else event.kind


# -- telling MLflow -----------------------------------------------------------------------------------------------


def perform(client: Any, store: TrackingStore, ids: dict[str, str], event: Event) -> None:
    """Tell MLflow one event; a new run's id is added to `ids`. Raises what MLflow raises."""
    data = event.data
    if event.kind == "run":
        tags = data["tags"] | ({"mlflow.parentRunId": ids[data["parent"]]} if data["parent"] else {})
        experiment_id = experiment_of(client, store, data["experiment"])
        run = client.create_run(experiment_id, run_name=data["name"], tags=tags, start_time=data["at_ms"])
        ids[event.run] = run.info.run_id
        return
    run_id = ids[event.run]
    if event.kind == "description":
        client.set_experiment_tag(experiment_of(client, store, data["experiment"]), DESCRIPTION, data["text"])
    elif event.kind == "status":
        if data["status"] == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, data["status"], end_time=data["at_ms"])
    elif event.kind == "values":
        _log_values(client, run_id, data)
    elif event.kind == "inputs":
        _log_inputs(client, run_id, data["tables"])
    elif event.kind == "text":
        client.log_text(run_id, data["text"], data["name"])
    elif event.kind == "table":
        client.log_table(run_id, data["columns"], data["name"])
    elif event.kind == "file" and Path(data["path"]).is_dir():
        client.log_artifacts(run_id, data["path"], data["name"])
    elif event.kind == "file":
        client.log_artifact(run_id, data["path"])
    elif event.kind == "version":
        version = _registered_version(client, run_id, data["model"], data["stands"])
        for name, value in data["tags"].items():
            client.set_model_version_tag(data["model"], version, name, value)
    elif event.kind == "alias" and data["stands"] is None:
        client.delete_registered_model_alias(data["model"], data["alias"])
    elif event.kind == "alias":
        version = _registered_version(client, run_id, data["model"], data["stands"])
        client.set_registered_model_alias(data["model"], data["alias"], version)
    else:
        raise ValueError(f"unknown event {event.kind!r}")


def experiment_of(client: Any, store: TrackingStore, name: str) -> str:
    """The id of an experiment, made where there is none. Raises what MLflow raises."""
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


def _log_values(client: Any, run_id: str, data: dict[str, Any]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(name, value, data["at_ms"], 0) for name, value in data.get("metrics", {}).items()]
    for start in range(0, len(metrics), METRIC_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRIC_BATCH])
    params = [Param(name, value) for name, value in data.get("params", {}).items()]
    for start in range(0, len(params), BATCH):
        client.log_batch(run_id, params=params[start : start + BATCH])
    tags = [RunTag(name, value) for name, value in data.get("tags", {}).items()]
    for start in range(0, len(tags), BATCH):
        client.log_batch(run_id, tags=tags[start : start + BATCH])


def _log_inputs(client: Any, run_id: str, tables: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput

    datasets = []
    for name, (uri, version) in tables.items():
        source = json.dumps({"uri": uri, "delta_table_version": version})
        dataset = Dataset(name=name, digest=f"v{version}", source_type="delta", source=source)
        datasets.append(DatasetInput(dataset=dataset, tags=[]))
    client.log_inputs(run_id, datasets=datasets)


def _registered_version(client: Any, run_id: str, model: str, stands: dict[str, str]) -> str:
    """The version that stands for stands["fingerprint"] in a registered model; both are made where there is none.

    What a version stands for lies in VECTOR_SPACE among the run's artifacts; a version is no weights.
    """
    import yaml
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(model)
    except MlflowException as e:
        if not is_refusal(e):
            raise
        said = "Vector spaces of one kind in one lake, a version for each fingerprint; `champion` is what readers get."
        client.create_registered_model(model, tags={"lake": stands["lake"]}, description=said)
    there = client.search_model_versions(f"name = '{model}' and tags.fingerprint = '{stands['fingerprint']}'")
    if there:
        return str(there[0].version)
    client.log_text(run_id, yaml.safe_dump(stands, sort_keys=False), VECTOR_SPACE)
    source = f"runs:/{run_id}/{VECTOR_SPACE}"  # a server takes no other path of a local lake
    made = client.create_model_version(model, source, run_id=run_id, tags=stands, description=stands["featurizer"])
    return str(made.version)
