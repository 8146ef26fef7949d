"""Labels to a golden set, features to evaluations: by the commands, over real pictures and a real model."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import evaluate as evaluation
from jobs import golden
from jobs.cli import app
from jobs.config import ConfigError, Golden, load_config
from jobs.evaluate import Frame, answer, first_vector, label_scores, labels_of, media_vectors, similarities
from jobs.evaluate import run as run_evaluation
from jobs.golden import read_golden
from jobs.golden_labels import GoldenError, LabelledBox
from jobs.lake import append, open_lake
from jobs.metrics import metric_key
from jobs.quality import GoldenItem, Measurement
from jobs.runs import Run, update_run
from jobs.work import Due, prepare
from schemas import RUNS
from tests.attempts import kill_all, logged, start_command, until_struck
from tests.rows import NOW, frame_of, run_row
from tests.test_tracking import no_tracking_server

__all__ = ["no_tracking_server"]  # a fixture

CONCEPTS, INT8 = "concept_efficientnet.lite0@1", "concept_efficientnet.lite0_int8@1"
SHOWN = {"chelsea": "tabby cat", "coffee": "espresso", "rocket": "missile", "motorcycle": "moped"}
Command = Callable[..., dict[str, Any]]
LEASE_S = 15
EXPERIMENT: dict[str, Any] = {
    "name": "labels",
    "golden": "few",
    "baseline": "one",
    "variants": {
        "five": {"featurizer": CONCEPTS},
        "one": {"featurizer": CONCEPTS, "set": {"evaluate.bridge_labels": 1}},
    },
    "metrics": {"top_1": {"margin": 0.02}},
    "guardrails": {"p95_ms": {"at_most": 50}, "error_rate": {"at_most": 0}},
    "slices": ["size"],
    "repeats": 3,
    "timed_media": 2,
}


def feature(vector: list[float] | None, label: str | None = None, score: float | None = None) -> dict[str, Any]:
    return {"vector": vector, "label": label, "score": score, "box": None, "text": None}


def test_frames_of_a_media_are_one_answer_and_a_media_without_any_has_failed() -> None:
    frames = [Frame(0, [feature([1, 0], "cat", 0.5), feature(None, "dog")]), Frame(2000, None), Frame(4000, [])]
    found = answer(frames, 2)
    assert found.label == ("cat", "dog") and not found.is_failed
    assert np.array_equal(np.isnan(found.vector), [[False, False], [True, True]])
    assert found.score[0] == 0.5 and math.isnan(found.score[1]) and np.isnan(found.box).all()
    assert answer([Frame(0, None)], 2).is_failed
    assert answer([Frame(0, None)], 2).vector.shape == (0, 2)


def test_a_media_is_the_mean_of_its_frames_and_one_that_failed_is_like_nothing() -> None:
    frames = {
        "video": [Frame(0, [feature([1, 0])]), Frame(1, [feature([0, 1])])],
        "failed": [Frame(0, None)],
        "empty": [Frame(0, [])],
    }
    vectors = media_vectors(frames, first_vector)
    assert np.allclose(vectors[0], np.sqrt([0.5, 0.5])) and np.isnan(vectors[1:]).all()
    scores = similarities(np.array([[0, 1]], np.float32), vectors)
    assert np.allclose(scores, [[np.sqrt(0.5), math.nan, math.nan]], equal_nan=True)
    nothing = media_vectors({"failed": [Frame(0, None)]}, first_vector)
    assert np.isnan(similarities(np.array([[0, 1]], np.float32), nothing)).all()


def test_the_classes_of_a_picture_are_its_labels_or_those_of_its_boxes() -> None:
    boxes = tuple(LabelledBox(label=label, box=(0, 0, 1, 1)) for label in ("dog", "cat", "dog"))
    assert labels_of(GoldenItem(item_id="a", kind="boxes", boxes=boxes)) == ("dog", "cat")
    assert labels_of(GoldenItem(item_id="a", kind="labels", labels=("dog",))) == ("dog",)


def test_the_scores_of_labels_are_what_a_concept_claims_of_a_class() -> None:
    frames = [
        [Frame(0, [feature([1, 0], "cat", 0.75), feature(None, "dog", 0.25)])],
        [Frame(0, None), Frame(1, [feature([1, 0], "cup", 0.5)])],
        [Frame(0, None)],
    ]
    found = label_scores(frames, ["dog", "cat"])
    assert np.array_equal(found, [[0.25, 0.75], [0, 0], [math.nan] * 2], equal_nan=True)  # type: ignore[arg-type]
    assert label_scores(frames, ["bird"]) is None


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs, one of them cut off, and one without labels."""
    from benchmarks.quality import sample_image
    from tests.pictures import encode

    folder = tmp_path_factory.mktemp("pictures")
    for name in SHOWN:
        data = encode(sample_image(name), "JPEG", quality=90)
        (folder / f"{name}.jpg").write_bytes(data[: len(data) // 2] if name == "motorcycle" else data)
    (folder / "unlabelled.jpg").write_bytes(encode(sample_image("moon"), "JPEG"))
    return folder


def write_labels(path: Path, shown: dict[str, str]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label", "size"), *((f"{n}.jpg", c, "web") for n, c in shown.items())])
    return path


@pytest.fixture
def lakelens(spark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command with --json on one lake; returns its outcome."""

    def command(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
        chosen = ["--lake", str(tmp_path / "lake"), "--set", "featurize.link_captions=false", "--json"]
        code = app([*arguments, *chosen], standalone_mode=False)
        shown = capsys.readouterr()
        assert code == exit_code, shown.err + shown.out
        outcome: dict[str, Any] = json.loads(shown.out)
        return outcome

    return command


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What has been measured until now: featurizer and labels bridged, each time that metrics are computed."""
    found, measurements = list[tuple[str, int]](), evaluation.measurements

    def noted(due: Due, *told: Any, bridge_labels: int) -> list[Measurement]:
        found.append((due.spec.id, bridge_labels))
        return measurements(due, *told, bridge_labels=bridge_labels)

    monkeypatch.setattr(evaluation, "measurements", noted)
    return found


@pytest.mark.spark
def test_labels_become_a_golden_set_and_variants_are_measured_on_it_item_by_item_and_compared(
    spark: Any, lakelens: Command, pictures: Path, tmp_path: Path, measured: list[tuple[str, int]]
) -> None:
    labels = write_labels(tmp_path / "labels.csv", SHOWN)
    add = ("golden", "add", "few", "--kind", "labels", "--labels", str(labels), "--pictures", str(pictures))
    assert "few version 1 with 4 items" in lakelens(*add, "--licence", "CC0")["message"]
    evaluate = ("evaluate", "--golden", "few", "--featurizer", CONCEPTS)
    refused = lakelens(*evaluate, exit_code=2)["message"]
    assert "4 of 4 media have no features of concept_efficientnet.lite0@1#" in refused
    (tmp_path / "labels.yaml").write_text(json.dumps(EXPERIMENT))
    outcome = lakelens("experiment", str(tmp_path / "labels.yaml"), "--run-id", "try")
    assert outcome["verdicts"] == {"five": "not judged"} and outcome["golden"] == "few@1"
    assert "4 items, at least 50 are needed for an interval" in outcome["message"]
    page = Path(outcome["report"]).read_text()
    assert "not judged" in page and "share one fingerprint and were computed once" in page

    def table(name: str) -> list[dict[str, Any]]:
        return rows_of(tmp_path / "lake", name)

    features = table("features")  # the picture without labels is not in the set
    assert len(features) == 4 and {row["run_id"] for row in features} == {"try.one.experiment"}
    [verdict] = [row for row in table("runs") if row["job"] == "compare"]
    assert (verdict["run_id"], verdict["status"]) == ("try.five.compare", "finished")  # neither accepted nor rejected
    assert dict(verdict["outputs"]).keys() == {"baseline", "candidate", "experiment"}
    both = table("evaluations")
    assert {(row["golden_set"], row["golden_version"], row["featurizer"]) for row in both} == {("few", 1, CONCEPTS)}
    assert {row["run_id"] for row in both} == {"try.one.evaluate", "try.five.evaluate"}
    rows = [row for row in both if row["run_id"] == "try.five.evaluate"]
    top_1 = {row["item_id"]: row["value"] for row in rows if row["metric"] == "top_1"}
    assert sorted(top_1.values()) == [0, 1, 1, 1]  # the picture that is cut off has failed
    [evaluated_five] = [dict(row["metrics"]) for row in table("runs") if row["run_id"] == "try.five.evaluate"]
    assert 0 <= evaluated_five[f"quality/few/{metric_key(CONCEPTS)}/calibration_error"] <= 1
    by_class = {row["item_id"]: row["value"] for row in rows if row["metric"] == "recall_at_1"}
    assert by_class == {"tabby cat": 1, "espresso": 1, "missile": 1, "moped": 0}
    [evaluated] = [row for row in table("runs") if row["run_id"] == "try.five.evaluate"]
    unlabelled = {name: value for name, value in evaluated["metrics"] if name.startswith("quality/health/few/")}
    assert {name.rpartition("/")[2] for name in unlabelled} == {"share_of_empty", "effective_dimensions"}
    assert unlabelled[f"quality/health/few/{metric_key(CONCEPTS)}/share_of_empty"] == 0.25

    # Each variant was measured once, by its evaluation; where that was accepted before, it is measured for the page.
    assert measured == [(CONCEPTS, 1), (CONCEPTS, 5)]
    lake = open_lake(spark, str(tmp_path / "lake"))
    spark.sql(f"UPDATE delta.`{lake.table(RUNS)}` SET status = 'accepted' WHERE job = 'evaluate'")
    Path(outcome["report"]).unlink()
    assert lakelens("experiment", str(tmp_path / "labels.yaml"), "--run-id", "try")["verdicts"] == {
        "five": "not judged"
    }
    assert Path(outcome["report"]).exists() and measured[2:] == [(CONCEPTS, 1), (CONCEPTS, 5)]
    assert len(table("evaluations")) == len(both)

    # Evaluations of one snapshot are compared as they were; what differs from what they measured is refused.
    both_ids = ("--baseline", CONCEPTS, "--candidate", CONCEPTS, "--golden", "few", "--metric", "top_1")
    again = ("compare", *both_ids, "--baseline-run", "try.five", "--candidate-run")
    outcome = lakelens(*again, "try.five", "--run-id", "same")
    assert outcome["verdicts"] == {"candidate": "not judged"} and outcome["golden"] == "few@1"
    assert "there is no run try in" in lakelens(*again, "try", exit_code=2)["message"]
    fast = ("--set", "featurize.decode_profile=fast")
    assert "is to have fingerprint" in lakelens(*again, "try.five", *fast, exit_code=2)["message"]

    described = {"name": "few", "kind": "labels", "labels": str(labels), "pictures": str(pictures)}
    same, other = (Golden(**described, card={"licence": licence}) for licence in ("CC0", "MIT"))
    assert "few version 1" in golden.run(spark, lake, a_run("again"), [same]).message  # nothing new: no version
    assert "few version 2" in golden.run(spark, lake, a_run("new card"), [other]).message
    write_labels(labels, SHOWN | {"coffee": "cup"})
    assert "few version 3" in golden.run(spark, lake, a_run("new label"), [other]).message
    listed = lakelens("golden", "list")["golden"]
    assert [(one["golden"], one["version"], one["licence"], one["slices"]) for one in listed] == [
        ("few", version, licence, ["size"]) for version, licence in ((3, "MIT"), (2, "MIT"), (1, "CC0"))
    ]
    assert [read_golden(spark, lake, name)[0] for name in ("few", "few@1")] == [3, 1]
    with pytest.raises(GoldenError, match=r"few@7' is not in the lake; there are: few@3, few@2, few@1"):
        read_golden(spark, lake, "few@7")
    write_labels(labels, {"chelsea": "tabby cat", "absent": "dog"})
    with pytest.raises(GoldenError, match=r"1 of 2 pictures .* such as file://.*/absent.jpg \(not crawled\)"):
        golden.run(spark, lake, a_run("absent"), [same])
    objects = prepare(load_config(assignments=["featurize.featurizers=[object_yolov3.tiny@1]"]).featurize)
    with pytest.raises(ConfigError, match=r"none of object_yolov3.tiny@1, .* is measured on few; allowed: concept on"):
        run_evaluation(spark, lake, load_config(assignments=["evaluate.golden=[few]"]), a_run("objects"), objects)


def write_search(lakelens: Command, pictures: Path, folder: Path, *, trials: int) -> tuple[Path, dict[str, Any]]:
    """A golden set in the lake, and the file of an experiment that searches over labels, with what it says."""
    labels = write_labels(folder / "labels.csv", SHOWN)
    lakelens("golden", "add", "few", "--kind", "labels", "--labels", str(labels), "--pictures", str(pictures))
    sweep = {"method": "search", "trials": trials, "confirm": 1, "featurizer": CONCEPTS}
    sweep["over"] = {"evaluate.bridge_labels": {"low": 1, "high": 5}}
    searching = EXPERIMENT | {"sweep": sweep, "variants": {"one": {"featurizer": CONCEPTS}}}
    (folder / "search.yaml").write_text(json.dumps(searching))
    return folder / "search.yaml", searching


@pytest.mark.faults  # an experiment tried twice, minutes
@pytest.mark.spark
def test_a_search_that_breaks_off_fails_the_trial_at_work_alone_and_goes_on_in_a_tree_with_every_trial(
    spark: Any, lakelens: Command, pictures: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    folder, (file, _) = tmp_path / "lake", write_search(lakelens, pictures, tmp_path, trials=2)
    lake, now = open_lake(spark, str(folder)), {"started": datetime.now(UTC), "heartbeat": datetime.now(UTC)}
    other = run_row("seek.trial-1.trial", "trial", status="running", **now)  # is at the second trial
    append(frame_of(spark, RUNS, [other]), lake, RUNS)
    endless = ("--set", "featurize.lease_expiry_s=3600")
    said = lakelens("experiment", str(file), "--run-id", "seek", *endless, exit_code=1)["message"]
    assert "seek.trial-1.trial lives" in said
    update_run(spark, lake, other["run_id"], owner=other["owner"], status="failed")
    [chosen] = lakelens("experiment", str(file), "--run-id", "seek")["verdicts"]

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    [shown] = [one.experiment_id for one in client.search_experiments() if one.name == "labels"]
    first, second = client.search_runs([shown], "attributes.run_name = 'seek'", order_by=["start_time"])

    def under(run: Any) -> dict[str, Any]:
        found = client.search_runs([shown], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", order_by=["start_time"])
        return {one.info.run_name: one for one in found}

    broken, whole = under(first), under(second)
    one, tried, refused = broken  # in this order
    assert (one, list(whole)) == ("one", [one, tried, refused]) and chosen in (tried, refused)
    assert [run.info.status for run in (first, *broken.values())] == ["FAILED", "FINISHED", "FINISHED", "FAILED"]
    assert {run.info.status for run in (second, *whole.values())} == {"FINISHED"}
    earlier = {name: run.data.tags.get("trial_of_earlier_attempt") for name, run in whole.items()}
    [job] = under(broken[tried]).values()
    assert job.info.run_name == "seek.trial-0.trial" and earlier == {one: None, tried: job.info.run_id, refused: None}
    measured = {f"trial/{key}": value for key, value in job.data.metrics.items()}
    assert measured.keys() == {"trial/quality", "trial/p95_ratio", "trial/usd_ratio"}
    for run in (broken[tried], whole[tried]):
        assert measured.items() <= run.data.metrics.items()
    assert measured.keys() <= whole[refused].data.metrics.keys() and not broken[refused].data.metrics
    assert whole[chosen].data.tags["verdict"] == "not judged"


def a_run(name: str) -> Run:
    inputs = {"features": None, "golden": None}
    return Run(run_id=name, job="golden", owner=name, inputs=inputs, started=NOW, resumed=False)  # type: ignore[arg-type]


def rows_of(lake: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table, by another Delta reader."""
    from deltalake import DeltaTable

    found: list[dict[str, Any]] = DeltaTable(str(lake / table)).to_pyarrow_table().to_pylist()
    return found


@pytest.mark.faults
def test_experiments_that_were_tried_before_checked_meanwhile_or_killed_compute_only_what_is_missing(
    lakelens: Command, pictures: Path, tmp_path: Path
) -> None:
    lake, (file, searching) = tmp_path / "lake", write_search(lakelens, pictures, tmp_path, trials=3)

    def trials() -> dict[str, dict[str, str]]:
        return {row["run_id"]: dict(row["outputs"]) for row in rows_of(lake, "runs") if row["job"] == "trial"}

    dry = lakelens("experiment", str(file), "--run-id", "seek", "--dry-run")
    assert (
        "3 items are likely to show a difference of 0 in top_1 (baseline 1.000)" in dry["message"]
    )  # all three are right
    [chosen] = lakelens("experiment", str(file), "--run-id", "seek")["verdicts"]
    tried, features = trials(), rows_of(lake, "features")
    assert chosen.startswith("bridge_labels-") and len(features) == len(SHOWN)
    assert tried.keys() <= {f"seek.trial-{i}.trial" for i in range(3)} and len(tried) >= 2
    lakelens("featurize", "--featurizer", CONCEPTS, "--golden", "few")
    assert lakelens("check", "--set", "check.max_error_rate.features=1")["status"] == "accepted"
    assert "seek.one.experiment" in {row["run_id"] for row in rows_of(lake, "runs") if row["status"] == "accepted"}
    again = lakelens("experiment", str(file), "--run-id", "seek")
    assert list(again["verdicts"]) == [chosen] and "What was tried" in Path(again["report"]).read_text()
    assert trials() == tried and rows_of(lake, "features") == features
    file.write_text(json.dumps(searching | {"seed": 7}))
    assert "give a new --run-id" in lakelens("experiment", str(file), "--run-id", "seek", exit_code=2)["message"]
    # One that is killed when the first of its two variants is committed pays for the second alone.
    variants = {"int8": {"featurizer": INT8}, "fast": {"featurizer": INT8, "set": {"featurize.decode_profile": "fast"}}}
    killed = EXPERIMENT | {"variants": variants, "baseline": "int8"}
    (tmp_path / "killed.yaml").write_text(json.dumps(killed))
    # Not more often: each beat is a commit, which takes the JVM a second or two.
    beats = ("--set", f"featurize.heartbeat_s={LEASE_S / 3}", "--set", f"featurize.lease_expiry_s={LEASE_S}")
    command = ("experiment", str(tmp_path / "killed.yaml"), "--run-id", "killed", *beats)
    before = logged(lake, "features")
    attempt = start_command(lake, tmp_path / "log", *command)
    assert until_struck(attempt, lambda now: logged(now.lake, "features") > before), attempt.log.read_text()
    kill_all(attempt.process)
    assert logged(lake, "features") == before + 1
    time.sleep(LEASE_S)
    assert lakelens(*command)["verdicts"] == {"fast": "not judged"}
    assert logged(lake, "features") == before + 2
    keys = [(row["media_id"], row["fingerprint"]) for row in rows_of(lake, "features")]
    assert len(keys) == len(set(keys)) == 3 * len(SHOWN)
