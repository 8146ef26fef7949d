"""Runs are logged with their parent, inputs and artifacts, and a store that is down costs the log, not the job."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from jobs.config import ConfigError, load_config
from jobs.lake import Lake, lake_at
from jobs.tracking import (
    flat_parameters,
    job_run,
    log_files,
    log_metrics,
    pipeline_run,
    tracking_store,
    without_credentials,
)


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


def test_a_server_that_is_down_costs_one_warning_and_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    lake, config = lake_at(str(tmp_path / "lake")), load_config()
    warnings: list[str] = []
    done = []
    with pipeline_run(lake, config, name="demo", warn=warnings.append) as parent:
        with job_run(
            parent, run_id="demo.crawl", job="crawl", lake=lake, config=config, inputs={}, outputs={}
        ) as child:
            log_metrics(child, {"documents": 3.0})
            done.append("crawled")
        log_files(parent, [tmp_path])
    assert done == ["crawled"] and parent.mlflow_run_id is None
    assert len(warnings) == 1 and f"127.0.0.1:{port}" in warnings[0]
