"""An experiment in MLflow is a tree of variants that can be searched, with its tables, plots and model versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import tracking
from jobs.config import Config, load_config
from jobs.evaluate import Frame
from jobs.experiment import all_judged
from jobs.experiment_file import Experiment, checked
from jobs.experiment_page import variant_of
from jobs.experiment_plots import forest_figure, trade_off_figure
from jobs.experiment_report import MAX_NAMED, ExperimentReport
from jobs.experiment_tracking import comparison_rows, log_experiment, log_overview, trial_rows, variant_runs
from jobs.lake import Lake, lake_at
from jobs.quality import GoldenItem, Measurement, zero_shot
from jobs.sweep import Trial
from jobs.timing import Passes
from jobs.variants import Arm, Measured, arms
from tests import test_experiment_report as pages
from tests.test_evaluate import CONCEPTS, EXPERIMENT, feature
from tests.test_tracking import no_tracking_server

__all__ = ["no_tracking_server"]  # a fixture

N = 80  # items, half of which the last variant answers otherwise
VARIANTS: dict[str, Any] = {
    "one": {"featurizer": CONCEPTS, "set": {"evaluate.bridge_labels": 1}},
    "five": {"featurizer": CONCEPTS},
    "fast": {"featurizer": CONCEPTS, "set": {"featurize.decode_profile": "fast"}},
}
WRITTEN: dict[str, Any] = EXPERIMENT | {"variants": VARIANTS, "golden": "few@1", "slices": []}
ITEMS = [
    GoldenItem(item_id=f"{i}", kind="labels", media_id=f"{i:064x}", labels=("cat" if i % 2 else "dog",))
    for i in range(N)
]


def measurements(share_right: float) -> list[Measurement]:
    """Top 1 and others where so many of the items are right."""
    right = np.arange(N) < share_right * N
    is_cat = np.array([item.labels == ("cat",) for item in ITEMS])
    return zero_shot(ITEMS, ["cat", "dog"], np.where((is_cat == right)[:, None], [[1.0, 0.0]], [[0.0, 1.0]]), None)


def measured(arm: Arm, share_right: float, ms: float) -> Measured:
    random = np.random.default_rng(int(ms))
    vectors = random.normal(size=(N, 6))
    frames = {
        str(item.media_id): [Frame(0, [feature((v / np.linalg.norm(v)).tolist(), "cat", 0.5)] if i % 10 else [])]
        for i, (item, v) in enumerate(zip(ITEMS, vectors, strict=True))
    }
    passes = Passes(media_ms=np.full((3, N), float(ms)), cpu_s=np.full(3, N * ms / 1000))
    return Measured(arm=arm, frames=frames, measurements=measurements(share_right), passes=passes, error_rate=0.0)


def of_experiment(variants: Sequence[Arm], experiment: Experiment) -> tuple[list[Measured], ExperimentReport]:
    """What was measured of a baseline, one that is as good, and one that is better; and the report."""
    found = [measured(arm, share, ms) for arm, share, ms in zip(variants, (0.4, 0.4, 0.9), (30, 20, 10), strict=True)]
    report = replace(
        pages.example(2),
        name=experiment.name,
        primary_metric="top_1",
        variants=[variant_of(one, experiment, is_on_front=one.arm.name == "fast") for one in found],
        candidates=all_judged(experiment, found[0], found[1:], ITEMS),
        inputs={"features": 7, "golden": 2},
    )
    return found, report


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return checked(WRITTEN, "file")


@pytest.fixture(scope="module")
def variants(experiment: Experiment) -> list[Arm]:
    return arms(experiment, load_config())


def run_once(
    lake: Lake, config: Config, experiment: Experiment, variants: Sequence[Arm], warnings: list[str]
) -> ExperimentReport:
    found, report = of_experiment(variants, experiment)
    with tracking.pipeline_run(lake, config, name="try", experiment=experiment.name, warn=warnings.append) as parent:
        run_of = variant_runs(parent, lake, experiment)
        for arm in variants:
            name = f"try.{arm.name}.evaluate"
            with (
                run_of(arm) as run,
                tracking.job_run(run, run_id=name, job="evaluate", lake=lake, config=config, inputs={}, outputs={}),
            ):
                pass
        log_experiment(parent, run_of, lake, experiment, found, report)
    return report


def test_an_experiment_is_a_tree_of_variants_and_their_jobs_that_can_be_searched(
    tmp_path: Path, experiment: Experiment, variants: list[Arm]
) -> None:
    from mlflow import MlflowClient

    lake, warnings = lake_at(str(tmp_path / "lake")), list[str]()
    run_once(lake, load_config(), experiment, variants, warnings)
    assert warnings == []
    client = MlflowClient(tracking_uri=tracking.tracking_store(lake).uri)
    [shown] = [one.experiment_id for one in client.search_experiments() if one.name == experiment.name]

    def found(condition: str = "") -> dict[str, Any]:
        return {run.info.run_name: run for run in client.search_runs([shown], condition)}

    runs = found()
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    ids = {name: run.info.run_id for name, run in runs.items()}
    assert parents == {
        "try": None,
        **dict.fromkeys(("one", "five", "fast"), ids["try"]),
        **{f"try.{name}.evaluate": ids[name] for name in ("one", "five", "fast")},
    }
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert found("tags.verdict = 'better'").keys() == {"fast"}
    assert found("tags.is_baseline = 'true' and tags.golden = 'few@1'").keys() == {"one"}
    assert found(f"tags.fingerprint = '{variants[0].due.fingerprint}'").keys() == {"one", "five"}
    assert found("metrics.`quality/top_1` > 0.8").keys() == {"fast"}
    fast, one, top = runs["fast"], runs["one"], runs["try"]
    assert fast.data.params == {"featurizer": CONCEPTS, "featurize.decode_profile": "fast"}
    assert fast.data.metrics["latency_ms/p95"] == pytest.approx(10) and fast.data.metrics["errors/rate"] == 0
    assert fast.data.metrics["difference/top_1"] == pytest.approx(0.5)
    low, high = (fast.data.metrics[f"difference/top_1/{end}"] for end in ("low", "high"))
    assert 0.3 < low < 0.5 < high < 0.7 and fast.data.metrics["difference/top_1/adjusted_p"] < 0.01
    assert fast.data.metrics["quality/health/share_of_empty"] == pytest.approx(0.1)
    assert not any(name.startswith("difference/") for name in one.data.metrics)
    for run in (top, fast, one):
        assert {(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs} == {
            ("features", "v7"),
            ("golden", "v2"),
        }
    assert (top.data.tags["verdict.fast"], one.data.tags["verdict"]) == ("better", "baseline")
    assert "**fast is better**" in top.data.tags["mlflow.note.content"]
    kept = {file.path for file in client.list_artifacts(top.info.run_id)}
    assert kept >= {"comparison.json", "variants.json", "guardrails.json", "forest.png", "trade_offs.png"}


def test_the_comparison_is_a_table_that_mlflow_reads_back(
    tmp_path: Path, experiment: Experiment, variants: list[Arm], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    lake = lake_at(str(tmp_path / "lake"))
    report = run_once(lake, load_config(), experiment, variants, [])
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", tracking.tracking_store(lake).uri)
    [shown] = [one.experiment_id for one in mlflow.search_experiments() if one.name == experiment.name]
    table = mlflow.MlflowClient().load_table(shown, "comparison.json")
    assert list(table["variant"]) == ["five", "fast"] and list(table["verdict"]) == [
        one.lines[0].verdict for one in report.candidates
    ]
    assert table["difference"].tolist() == pytest.approx([0.0, 0.5])


def test_every_fingerprint_is_one_version_of_its_kinds_model_however_often_it_is_tried(
    tmp_path: Path, experiment: Experiment, variants: list[Arm]
) -> None:
    from mlflow import MlflowClient

    lake, warnings = lake_at(str(tmp_path / "lake")), list[str]()
    for _ in range(2):
        run_once(lake, load_config(), experiment, variants, warnings)
    assert warnings == []
    client = MlflowClient(tracking_uri=tracking.tracking_store(lake).uri)
    versions = {one.tags["fingerprint"]: one for one in client.search_model_versions("name = 'lakelens-concept'")}
    assert len(client.search_model_versions("name = 'lakelens-concept'")) == 2
    assert versions.keys() == {arm.due.fingerprint for arm in variants}
    baseline, fast = (versions[arm.due.fingerprint].tags for arm in (variants[0], variants[2]))
    assert (fast["verdict"], fast["experiment"], fast["featurizer"]) == ("better", experiment.name, CONCEPTS)
    assert "verdict" not in baseline  # `five` has the same vectors: it is judged by how it is evaluated
    stands = client.get_run(versions[variants[2].due.fingerprint].run_id)
    assert stands.info.run_name == "fast"
    assert [file.path for file in client.list_artifacts(stands.info.run_id)] == ["vector_space.yaml"]


def test_what_a_search_tried_is_a_table_that_says_what_was_judged(
    tmp_path: Path, experiment: Experiment, variants: list[Arm]
) -> None:
    from mlflow import MlflowClient

    lake, tried = lake_at(str(tmp_path / "lake")), {"evaluate.bridge_labels": 3}
    trials = [Trial(name=name, settings=tried, objectives=(0.5, 1.25, 1.0)) for name in ("fast", "other")]
    report = replace(of_experiment(variants, experiment)[1], trials=trials)
    rows = trial_rows(report)
    assert [(row["variant"], row["settings"], row["is_judged"]) for row in rows] == [
        ("fast", "evaluate.bridge_labels=3", True),
        ("other", "evaluate.bridge_labels=3", False),
    ]
    with tracking.pipeline_run(lake, load_config(), name="try", warn=pytest.fail) as parent:
        log_overview(parent, report)
    client = MlflowClient(tracking_uri=tracking.tracking_store(lake).uri)
    kept = {file.path for file in client.list_artifacts(str(parent.mlflow_run_id))}
    assert "trials.json" in kept
    shown = client.get_experiment_by_name(parent.experiment)
    assert shown.tags["mlflow.note.content"] == report.question


def test_a_server_that_is_down_loses_no_experiment(
    tmp_path: Path, experiment: Experiment, variants: list[Arm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    warnings: list[str] = []
    run_once(lake_at(str(tmp_path / "lake")), load_config(), experiment, variants, warnings)
    assert len(warnings) == 1 and "what it misses is kept and sent later" in warnings[0]


def test_a_variant_ends_with_its_own_jobs_and_fails_with_them_alone(
    tmp_path: Path, experiment: Experiment, variants: list[Arm]
) -> None:
    from mlflow import MlflowClient

    lake, [one, five, fast] = lake_at(str(tmp_path / "lake")), variants
    client = MlflowClient(tracking_uri=tracking.tracking_store(lake).uri)

    def statuses() -> dict[str, str]:
        found = client.search_runs([client.get_experiment_by_name(parent.experiment).experiment_id])
        assert len({run.info.run_name for run in found}) == len(found)  # a variant that goes on is no second run
        return {run.info.run_name: run.info.status for run in found}

    with (
        pytest.raises(RuntimeError, match="out of disk"),
        tracking.pipeline_run(lake, load_config(), name="try", warn=pytest.fail) as parent,
    ):
        run_of = variant_runs(parent, lake, experiment)
        for _ in ("a trial", "its confirmation"):
            with run_of(one):
                assert statuses() == {"try": "RUNNING", "one": "RUNNING"}
            assert statuses() == {"try": "RUNNING", "one": "FINISHED"}
        with run_of(fast):
            pass
        with run_of(five):
            raise RuntimeError("out of disk")
    assert statuses() == {"try": "FAILED", "one": "FINISHED", "fast": "FINISHED", "five": "FAILED"}


def test_variants_that_were_measured_before_have_no_job_and_are_finished(
    tmp_path: Path, experiment: Experiment, variants: list[Arm]
) -> None:
    from mlflow import MlflowClient

    lake, (found, report) = lake_at(str(tmp_path / "lake")), of_experiment(variants, experiment)
    with tracking.pipeline_run(lake, load_config(), name="try", warn=pytest.fail) as parent:
        log_experiment(parent, variant_runs(parent, lake, experiment), lake, experiment, found, report)
    client = MlflowClient(tracking_uri=tracking.tracking_store(lake).uri)
    statuses = {
        run.info.run_name: run.info.status
        for run in client.search_runs([client.get_experiment_by_name(parent.experiment).experiment_id])
    }
    assert statuses == dict.fromkeys(("try", "one", "five", "fast"), "FINISHED")


@pytest.mark.parametrize("n_candidates", [1, 8])
def test_a_plot_shows_every_candidate_by_its_name_or_number(n_candidates: int) -> None:
    report = pages.example(n_candidates)
    forest, trade_offs = forest_figure(report), trade_off_figure(report)
    names = [candidate.name for candidate in report.candidates]
    marks = [variant.name for variant in report.variants] if n_candidates < MAX_NAMED else list("123456789")
    for axes in forest.axes:
        assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert [axes.get_title(loc="left").split()[0].rstrip(",") for axes in forest.axes] == [
        pages.PRIMARY,
        "average_recall_100",
        "false_boxes_per_picture",
    ]
    lower = forest.axes[2].get_xlim()
    assert lower[0] > lower[1]  # right is better of every metric
    for axes in trade_offs.axes:
        assert [text.get_text() for text in axes.texts] == marks


def test_a_hostile_name_is_drawn_and_an_undefined_value_is_left_out(tmp_path: Path) -> None:
    report = pages.report_of("$\\nonsense{$ _x_")
    broken = replace(report.variants[1], quality=float("nan"))
    undefined = pages.line(difference=float("nan"), low=None, high=None, adjusted_p=None, verdict="not judged")
    candidate = replace(report.candidates[0], lines=[undefined])
    report = replace(report, variants=[report.variants[0], broken], candidates=[candidate])
    forest_figure(report).savefig(tmp_path / "forest.png")
    trade_off_figure(report).savefig(tmp_path / "trade_offs.png")
    assert comparison_rows(report)[0]["difference"] is None
