"""Runs are logged with their parent, inputs and artifacts, and a store that is down costs the log, not the job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobs.config import ConfigError, load_config
from jobs.lake import Lake, lake_at
from jobs.outbox import EVENTS, TrackingStore, without_credentials
from jobs.tracking import (
    OUTBOX,
    flat_parameters,
    job_run,
    log_files,
    log_metrics,
    log_table,
    log_tags,
    outbox_folder,
    pipeline_run,
    set_alias,
    tracking_store,
)
from tests.ports import free_port


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a server of their own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def test_a_local_lake_keeps_its_runs_in_itself_and_a_remote_one_needs_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tracking_store(lake_at(str(tmp_path / "my lake")))
    assert store.uri == f"sqlite:///{tmp_path}/my lake/mlflow.db"
    assert store.artifacts == (tmp_path / "my lake" / "mlartifacts").as_uri()
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        tracking_store(Lake("s3a://bucket/lake"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_store(Lake("s3a://bucket/lake")).uri == "http://127.0.0.1:5000"


def test_parameters_are_flat_and_carry_no_credentials() -> None:
    nested = {"spark": {"master": "local[2]"}, "sources": [{"uri": "https://me:secret@example.org/a"}], "models": {}}
    assert flat_parameters(nested) == {
        "spark.master": "local[2]",
        "sources": '[{"uri": "https://example.org/a"}]',
        "models": "{}",
    }
    assert without_credentials("see https://example.org/@user") == "see https://example.org/@user"


def test_a_pipeline_is_a_parent_run_with_a_child_for_each_job(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    lake, config = lake_at(str(tmp_path / "lake")), load_config()
    gates = tmp_path / "gates"
    gates.mkdir()
    (gates / "gates.json").write_text("{}")
    warnings: list[str] = []
    with pipeline_run(lake, config, name="demo", warn=warnings.append) as parent:
        with job_run(
            parent, run_id="demo.featurize", job="featurize", lake=lake, config=config, inputs={"media": 3},
            outputs={"object_yolov3.tiny@1": "f" * 32},
        ) as child:  # fmt: skip
            log_metrics(child, {"quality/objects_per_frame": 2.5, "frames": 7.0, "broken": float("nan")})
        log_files(parent, [gates])
    assert warnings == []
    client = MlflowClient(tracking_uri=tracking_store(lake).uri)
    top, job = client.get_run(str(parent.mlflow_run_id)), client.get_run(str(child.mlflow_run_id))
    assert top.info.status == job.info.status == "FINISHED"
    assert top.data.tags["mlflow.user"] and job.data.tags["mlflow.source.type"] == "JOB"
    assert job.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert job.data.tags["fingerprint.object_yolov3.tiny.v1"] == "f" * 32
    assert top.data.params["check.max_error_rate.features"] == "0.1"
    assert job.data.metrics == {"quality/objects_per_frame": 2.5, "frames": 7.0}
    assert [(d.dataset.name, d.dataset.digest) for d in job.inputs.dataset_inputs] == [("media", "v3")]
    assert (tmp_path / "lake/mlartifacts" / top.info.run_id / "artifacts/gates/gates.json").is_file()
    assert (tmp_path / "lake/mlartifacts" / top.info.run_id / "artifacts/config.yaml").is_file()


def test_a_job_that_fails_is_logged_as_failed_and_its_error_goes_on(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    lake, config = lake_at(str(tmp_path / "lake")), load_config()
    seen: list[Any] = []
    with pytest.raises(RuntimeError, match="out of disk"), pipeline_run(lake, config, name="x", warn=print) as parent:
        seen.append(parent.mlflow_run_id)
        raise RuntimeError("out of disk")
    client = MlflowClient(tracking_uri=tracking_store(lake).uri)
    assert client.get_run(seen[0]).info.status == "FAILED"


def tracked_pipeline(
    lake: Lake, warnings: list[str], files: Path, *, between: Callable[[], None] = lambda: None
) -> None:
    """A pipeline of one job, `between` after the job has begun."""
    config = load_config()
    with pipeline_run(lake, config, name="demo", warn=warnings.append) as parent:
        with job_run(
            parent, run_id="demo.crawl", job="crawl", lake=lake, config=config, inputs={"media": 3}, outputs={}
        ) as child:
            between()
            log_metrics(child, {"documents": 3.0})
            log_tags(child, {"kept": "yes"})
        log_files(parent, [files, files / "page.html"])
        log_table(parent, "sizes.json", [{"name": "a", "bytes": 1}])
        stands = {"featurizer": "concept_mean.base@1", "fingerprint": "f" * 32, "lake": lake.uri}
        set_alias(parent, "lakelens-concept", "champion", stands)


def check_tracked(client: Any) -> None:
    """All that `tracked_pipeline` tells is there, once."""
    shown = client.get_experiment_by_name("lakelens").experiment_id
    parent, child = sorted(client.search_runs([shown]), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id and child.info.run_name == "demo.crawl"
    assert parent.info.status == child.info.status == "FINISHED"
    assert parent.info.start_time <= child.info.start_time <= child.info.end_time <= parent.info.end_time
    assert child.data.metrics == {"documents": 3.0} and child.data.tags["kept"] == "yes"
    assert parent.data.params["check.max_error_rate.features"] == child.data.params["check.max_error_rate.features"]
    assert [(d.dataset.name, d.dataset.digest) for d in child.inputs.dataset_inputs] == [("media", "v3")]
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert kept >= {"config.yaml", "files", "page.html", "sizes.json"}
    version = client.get_model_version_by_alias("lakelens-concept", "champion")
    assert version.tags["fingerprint"] == "f" * 32 and version.run_id == parent.info.run_id


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "page.html").write_text("<p>a page")
    return tmp_path / "files"


def test_what_mlflow_cannot_be_told_costs_one_warning_and_is_told_by_the_next_pipeline(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    blocked = tmp_path / "blocked"
    blocked.write_text("a file where MLflow's folder should be")
    uri = f"sqlite:///{blocked}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts that nobody told it to put elsewhere
    lake, warnings = lake_at(str(tmp_path / "lake")), list[str]()
    tracked_pipeline(lake, warnings, files)
    assert len(warnings) == 1 and "cannot be used, what it misses is kept and sent later" in warnings[0]
    shutil.rmtree(files)  # what is sent later is what was there
    blocked.unlink()
    config = load_config()
    with pipeline_run(lake, config, name="next", experiment="other", warn=warnings.append):
        check_tracked(MlflowClient(tracking_uri=uri))
    assert len(warnings) == 1 and not list((tmp_path / "lake" / OUTBOX).iterdir())


def test_what_mlflow_refuses_is_a_warning_and_holds_up_nothing(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    lake, warnings = lake_at(str(tmp_path / "lake")), list[str]()
    with pipeline_run(lake, load_config(), name="demo", warn=warnings.append) as parent:
        log_metrics(parent, {"no (name) of a metric?": 1.0})
        log_files(parent, [tmp_path / "absent"])
        log_metrics(parent, {"documents": 3.0})
    assert len(warnings) == 2 and "did not take values" in warnings[0] and "absent, which is not there" in warnings[1]
    client = MlflowClient(tracking_uri=tracking_store(lake).uri)
    assert client.get_run(str(parent.mlflow_run_id)).data.metrics == {"documents": 3.0}


def test_kept_events_that_cannot_be_read_hold_up_no_pipeline_and_a_torn_line_is_none(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    blocked, outbox = tmp_path / "blocked", tmp_path / "lake" / OUTBOX
    blocked.write_text("a file where MLflow's folder should be")
    uri = f"sqlite:///{blocked}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    lake, warnings = lake_at(str(tmp_path / "lake")), list[str]()
    tracked_pipeline(lake, warnings, files)
    [kept] = outbox.iterdir()
    with (kept / EVENTS).open("a") as events:
        events.write('{"kind": "val')  # where the disk was full
    broken = outbox / "broken"
    broken.mkdir()
    (broken / EVENTS).write_text("{}\n")
    (broken / "sent.json").write_text("")
    blocked.unlink()
    with pipeline_run(lake, load_config(), name="next", experiment="other", warn=warnings.append):
        check_tracked(MlflowClient(tracking_uri=uri))
    assert list(outbox.iterdir()) == [broken]
    assert [warning for warning in warnings if "cannot be sent from" in warning and "broken" in warning]


def test_a_disk_that_is_full_to_the_end_ends_no_pipeline(tmp_path: Path) -> None:
    lake, warnings = lake_at(str(tmp_path / "lake")), list[str]()
    with (
        Path("/dev/full").open("a") as full,
        pipeline_run(lake, load_config(), name="demo", warn=warnings.append) as parent,
    ):
        full.write("what does not fit")
        parent.outbox._events = full


def test_a_remote_lake_keeps_what_mlflow_cannot_be_told_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKELENS_CACHE", "/cache")
    store = TrackingStore("http://mlflow:5000", None)
    assert outbox_folder(Lake("s3a://bucket/lake"), store).parent == Path("/cache/mlflow-outbox")
    assert outbox_folder(Lake("file:///lake"), store) == Path("/lake") / OUTBOX


@pytest.mark.faults
def test_a_server_that_dies_in_the_middle_of_a_run_is_told_the_rest_once_it_is_back(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path)]

    def start() -> subprocess.Popen[bytes]:
        server = subprocess.Popen(command, start_new_session=True)
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return server
            time.sleep(0.2)
        raise AssertionError("the server did not start")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    lake, warnings, server = lake_at(str(tmp_path / "lake")), list[str](), start()
    try:
        tracked_pipeline(lake, warnings, files, between=lambda: os.killpg(server.pid, signal.SIGKILL))
        assert len(warnings) == 1 and "kept and sent later" in warnings[0]
        server.wait()
        server = start()
        with pipeline_run(lake, load_config(), name="next", experiment="other", warn=warnings.append):
            check_tracked(MlflowClient(tracking_uri=f"http://127.0.0.1:{port}"))
        assert len(warnings) == 1
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
