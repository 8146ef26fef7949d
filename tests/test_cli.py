"""How commands end: one message, the exit code of what happened, the run that can be resumed. Starts no Spark."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from featurizers.catalogue import CatalogueError
from featurizers.spec import UnknownFeaturizer
from featurizers.weights import WeightsError, WeightsUnreachable
from jobs.cli import app
from jobs.command import Ending, conclude, exit_code_of, run_of
from jobs.config import ConfigError
from jobs.lake import LakeError
from jobs.log import one_line
from jobs.runs import RunPublished, RunRefused, RunTakenOver


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (UnknownFeaturizer("x"), 2),
        (LakeError("x"), 2),
        (CatalogueError("x"), 2),
        (WeightsError("no such file"), 2),
        (PermissionError("x"), 2),
        (RunPublished("x"), 2),
        (WeightsUnreachable("no network"), 1),
        (RunRefused("lease held"), 1),
        (RunTakenOver("x"), 1),
        (OSError("disk full"), 1),
        (RuntimeError("anything else"), 1),
    ],
)
def test_what_a_repetition_mends_is_1_and_what_is_wrong_with_the_request_2(error: Exception, code: int) -> None:
    assert exit_code_of(error) == code


def test_an_error_is_one_line_even_of_a_worker_or_of_a_jvm_that_died() -> None:
    class PythonException(Exception):
        pass

    class Py4JJavaError(Exception):
        pass

    class Gone(Exception):
        def __str__(self) -> str:
            raise ConnectionRefusedError

    worker = "An exception was thrown from the Python worker.\nTraceback (most recent call last):\n  File 'x'\n"
    assert one_line(PythonException(f"{worker}jobs.inference.DeviceFailed: x@1: none came through\n")) == (
        "jobs.inference.DeviceFailed: x@1: none came through"
    )
    java = "An error occurred while calling o9.save.\n: org.apache.spark.SparkException: Job aborted\n\tat x\n"
    full = f"{java}Caused by: java.io.IOException: No space left on device\n\tat y\n"
    assert one_line(Py4JJavaError(full)) == "java.io.IOException: No space left on device"
    assert one_line(Py4JJavaError(f"{java}Caused by: java.io.EOFException\n")) == (
        "org.apache.spark.SparkException: Job aborted"
    )
    assert one_line(ValueError("first\nsecond")) == "first"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(Gone()).startswith("Gone: Spark's JVM is gone")


def test_a_failed_run_names_the_id_under_which_it_is_resumed() -> None:
    error = RuntimeError("x")
    assert run_of(error) == {}
    error.add_note("run_id=abc")
    assert run_of(error) == {"run_id": "abc"}


@pytest.mark.parametrize(
    ("note", "said"), [("run_id=abc", "; the same --run-id resumes it (--run-id abc)"), (None, "")]
)
def test_an_interruption_promises_a_resumption_only_of_a_run_that_began(
    note: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> Ending:
        error = KeyboardInterrupt()
        if note is not None:
            error.add_note(note)
        raise error

    with pytest.raises(typer.Exit) as ended:
        conclude("plan", debug=False, as_json=False, action=interrupted)
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == f"lakelens plan: interrupted{said}\n"


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert app(["--version"], standalone_mode=False) == 0
    assert capsys.readouterr().out == f"lakelens {version('lakelens')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["crawl", "--set", "crawl.dealy_s=1"], "crawl.dealy_s is not a configuration key; allowed here: "),
        (["crawl", "--run-id", "../x"], "--run-id '../x' is not allowed"),
        (["crawl"], "crawl.sources is empty"),
        (["featurize", "--featurizer", "object_yolov9.x@1"], "object_yolov9.x@1"),
        (["featurize", "--set", "featurize.lease_expiry_s=10"], "lease_expiry_s is 10, allowed: at least 3 heartbeats"),
        (
            ["featurize", "--featurizer", "object_yolov3.tiny_int8@1", "--conf", "{tmp}/gpu.yaml"],
            "object_yolov3.tiny_int8@1 runs on CPUs only; set spark.gpus=0",
        ),
        (["featurize", "--set", "spark.gpus=1"], "spark.gpus is 1 and spark.gpu_kind is None, allowed: "),
        (["run", "{tmp}/broken.yaml"], "broken.yaml is not YAML: "),
        (["run", "{tmp}/latin.yaml"], "latin.yaml is not UTF-8"),
        (["tables", "--lake", "{tmp}/a-file"], "is a file, a folder is needed"),
        (["sample", "--out", "{tmp}/out", "--fraction", "2"], "--fraction 2 is not allowed: above 0 and at most 1"),
        (["explain", "cat"], "'cat' names no document: a doc_id has 32 hex digits, a media_id 64, else it is a URL"),
        (["maintain", "--set", "maintain.retention_hours=0"], "maintain.retention_hours = 0: Input should be greater"),
        (["maintain", "--set", "maintain.retention_hours=721"], "retention_hours = 721: Input should be less than or"),
        (["check", "--run", "a.crawl", "--discard", "b.crawl"], "--run a.crawl and --discard b.crawl are not allowed"),
    ],
)
def test_a_wrong_request_is_one_message_with_code_2_before_spark_starts(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("crawl: {sources: [")
    (tmp_path / "latin.yaml").write_bytes(b"lake: \xe9\n")
    (tmp_path / "gpu.yaml").write_text("spark: {gpus: 1, gpu_kind: h200}")
    (tmp_path / "a-file").touch()
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    if given[0] != "tables":
        given += ["--lake", str(tmp_path / "lake")]
    assert app(given, standalone_mode=False) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert app([*given, "--json"], standalone_mode=False) == 2
    assert said in json.loads(capsys.readouterr().out)["message"]
    assert not (tmp_path / "lake").exists()
