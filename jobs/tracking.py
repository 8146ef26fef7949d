"""Runs as MLflow shows them: a parent for a pipeline, a child for each job. Knows no table; loses no job when down."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from featurizers.weights import cache_dir
from jobs.config import Config, ConfigError
from jobs.lake import Lake
from jobs.outbox import Event, Outbox, TrackingStore, send_kept, without_credentials
from jobs.runs import code_version

EXPERIMENT = "lakelens"
MAX_VALUE = 500  # of a parameter, MAX_TAG of a tag: limits of MLflow's REST API
MAX_TAG = 5000
MAX_ADDRESS = 60  # of a lake in the name of a registered model, whose column in MLflow's tables has 256
SERVERS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")  # where one of them is set, models may lie outside of the lake
OUTBOX = "_mlflow_outbox"  # in a local lake: what MLflow could not be told yet


@dataclass(frozen=True)
class Tracked:
    """A run of MLflow's, in the experiment of this name; one without an outbox is told nothing."""

    outbox: Outbox | None = None
    experiment: str = EXPERIMENT
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def mlflow_run_id(self) -> str | None:
        """Its id in MLflow; None while MLflow does not know it."""
        return self.outbox.ids.get(self.key) if self.outbox is not None else None

    def tell(self, kind: str, **data: Any) -> None:
        """Tell MLflow something of this run, now or later."""
        if self.outbox is not None:
            self.outbox.tell(Event(kind, self.key, data))


def tracking_store(lake: Lake) -> TrackingStore:
    """MLFLOW_TRACKING_URI, else SQLite in a local lake; raises ConfigError for a remote lake without it."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return TrackingStore(uri=given, artifacts=None)
    folder = lake.local_folder()
    if folder is None:
        raise ConfigError(
            f"lake {lake.uri} is remote and MLFLOW_TRACKING_URI is not set; set it to the address of an MLflow server"
        )
    # MLflow refuses its old file store, and puts SQLite's artifacts into the working folder unless told otherwise.
    return TrackingStore(uri=f"sqlite:///{folder}/mlflow.db", artifacts=(Path(folder) / "mlartifacts").as_uri())


def flat_parameters(value: Any, prefix: str = "") -> dict[str, str]:
    """A nested configuration as `a.b` -> text; lists as JSON, user names and passwords of URLs left out."""
    if isinstance(value, Mapping) and value:
        pairs = [flat_parameters(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()]
        return {name: text for pair in pairs for name, text in pair.items()}
    text = value if isinstance(value, str) else json.dumps(value)
    return {prefix: without_credentials(text)[:MAX_VALUE]}


def outbox_folder(lake: Lake, store: TrackingStore) -> Path:
    """Where is kept what MLflow cannot be told: in a local lake, else in the cache of this machine."""
    local = lake.local_folder()
    if local is not None:
        return Path(local) / OUTBOX
    return cache_dir() / "mlflow-outbox" / hashlib.sha256(store.uri.encode()).hexdigest()[:16]


@contextmanager
def pipeline_run(
    lake: Lake, config: Config, *, name: str, tags: Mapping[str, str] | None = None, warn: Callable[[str], None],
    experiment: str | None = None,
) -> Iterator[Tracked]:  # fmt: skip
    """The parent run of a pipeline, with its resolved configuration as parameters and as an artifact.

    experiment: of MLflow; None: that of MLFLOW_EXPERIMENT_NAME, or the one for all runs.

    Whatever MLflow does, the block runs: where it cannot be reached, `warn` is called once, and what it should have
    been told is kept and sent by the next pipeline of the lake. Raises ConfigError for a remote lake without
    MLFLOW_TRACKING_URI.
    """
    store = tracking_store(lake)
    kept = outbox_folder(lake, store)
    send_kept(store, kept, warn)
    all_tags = {"lake": lake.uri, "code_version": code_version(), "config_digest": config.digest(), **(tags or {})}
    shown_in = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    with closing(Outbox(store=store, folder=kept, warn=warn)) as outbox, _ended(Tracked(outbox, shown_in)) as tracked:
        _begin(tracked, name=name, tags=all_tags, parent=None)
        resolved = config.model_dump(mode="json")
        _log_parameters(tracked, flat_parameters(resolved))
        log_text(tracked, "config.yaml", without_credentials(yaml.safe_dump(resolved, sort_keys=False)))
        yield tracked
    send_kept(store, kept, warn)


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
    """A run within another."""
    with _ended(Tracked(parent.outbox, parent.experiment)) as tracked:
        _begin(tracked, name=name, tags=tags, parent=parent.key)
        _log_parameters(tracked, parameters)
        yield tracked


@contextmanager
def continued(tracked: Tracked) -> Iterator[Tracked]:
    """A run that has ended, running again for a block."""
    tracked.tell("status", status="RUNNING")
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
    """Log finite metrics, by the names of `jobs.metrics.flat`."""
    found = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    if found:
        tracked.tell("values", metrics=found, at_ms=_now_ms())


def log_files(tracked: Tracked, paths: Sequence[str | Path]) -> None:
    """Keep local files and folders as artifacts, each under its own name."""
    for path in map(Path, paths):
        tracked.tell("file", path=str(path), name=path.name)


def log_text(tracked: Tracked, name: str, text: str) -> None:
    """Keep a text as an artifact."""
    tracked.tell("text", name=name, text=text)


def log_table(tracked: Tracked, name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Keep rows of equal keys as a table that MLflow shows as one; `name` ends in .json. None, where there are none."""
    if rows:
        tracked.tell("table", name=name, columns={key: [row[key] for row in rows] for key in rows[0]})


def log_figure(tracked: Tracked, name: str, draw: Callable[[], Any]) -> None:
    """Draw a figure of matplotlib, and keep it as an artifact."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        draw().savefig(path)
        tracked.tell("file", path=str(path), name=name)


def log_tags(tracked: Tracked, tags: Mapping[str, str]) -> None:
    """Set tags, by which runs are searched."""
    tracked.tell("values", tags={_allowed(name): value[:MAX_TAG] for name, value in tags.items()}, at_ms=_now_ms())


def describe_experiment(tracked: Tracked, text: str) -> None:
    """The text that stands on the page of MLflow's experiment."""
    tracked.tell("description", experiment=tracked.experiment, text=text)


def log_inputs(tracked: Tracked, lake: Lake, inputs: Mapping[str, int]) -> None:
    """Table versions as the datasets that a run reads."""
    if inputs:
        tracked.tell("inputs", tables={name: [f"{lake.uri}/{name}", version] for name, version in inputs.items()})


def _begin(tracked: Tracked, *, name: str, tags: Mapping[str, str], parent: str | None) -> None:
    named = {_allowed(key): value[:MAX_TAG] for key, value in {**started_by(), **tags}.items()}
    tracked.tell("run", name=name, tags=named, parent=parent, experiment=tracked.experiment, at_ms=_now_ms())


@contextmanager
def _ended(tracked: Tracked) -> Iterator[Tracked]:
    status = "FAILED"
    try:
        yield tracked
        status = "FINISHED"
    finally:
        tracked.tell("status", status=status, at_ms=_now_ms())


def _log_parameters(tracked: Tracked, parameters: Mapping[str, str]) -> None:
    if parameters:
        tracked.tell("values", params={_allowed(name): value for name, value in parameters.items()}, at_ms=_now_ms())


def _now_ms() -> int:
    return int(time.time() * 1000)


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


def register_version(tracked: Tracked, model: str, stands: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """A version of a registered model for stands["fingerprint"], made where there is none, with `tags` laid over it.

    stands: `featurizer`, `fingerprint` and `lake` of what the version stands for.
    """
    allowed = {name: value[:MAX_TAG] for name, value in tags.items()}
    tracked.tell("version", model=model, stands=dict(stands), tags=allowed)


def set_alias(tracked: Tracked, model: str, alias: str, stands: Mapping[str, str] | None) -> None:
    """Let `alias` name the version for stands["fingerprint"], or nothing."""
    tracked.tell("alias", model=model, alias=alias, stands=None if stands is None else dict(stands))
