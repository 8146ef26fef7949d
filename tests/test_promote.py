"""The champion follows from the promotions in `runs`; readers get it, and what may become it is compared first."""

from __future__ import annotations

import string
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.config import load_config
from jobs.evaluate import champion_frames
from jobs.lake import Lake, append, open_lake, version
from jobs.promote import PromotionRefused, comparison, published_fingerprint, register
from jobs.published import Champion, NoChampion, SeveralFingerprints, promotions, published
from jobs.tracking import model_of, pipeline_run
from jobs.work import prepare
from schemas import FEATURES, RUNS
from tests import rows
from tests.test_evaluate import Command, lakelens
from tests.test_tracking import no_tracking_server

__all__ = ["lakelens", "no_tracking_server"]  # fixtures

OLD, NEW = "1" * 32, "2" * 32


def moved(at: int, job: str, featurizer: str, fingerprint: str, **changed: Any) -> rows.Row:
    row = rows.run_row(f"{at}.{job}", job, status="accepted", outputs={featurizer: fingerprint}, **changed)
    return row | {"started": rows.NOW + timedelta(hours=at)}


def test_the_last_promotion_of_a_kind_holds_and_a_rollback_takes_it_away() -> None:
    first, second = moved(1, "promote", rows.CONCEPT, OLD), moved(2, "promote", rows.CONCEPT, NEW)
    other, back = moved(3, "promote", rows.OBJECT, OLD), moved(4, "rollback", rows.CONCEPT, OLD)
    again = moved(5, "rollback", rows.CONCEPT, OLD)
    failed = moved(6, "promote", rows.CONCEPT, "3" * 32) | {"status": "failed"}

    def holds(*found: rows.Row) -> dict[str, str]:
        return {kind: line[-1].fingerprint for kind, line in promotions(found).items()}

    assert holds() == {}
    assert holds(second, first, other, failed) == {"concept": NEW, "object": OLD}
    assert holds(first, second, back) == {"concept": OLD}
    assert holds(first, second, back, again) == {"concept": OLD}  # the first one stays


def test_only_an_accepted_comparison_with_the_champion_counts() -> None:
    def compared(run_id: str, baseline: str, at: int, status: str = "accepted") -> rows.Row:
        outputs = {"baseline": baseline, "candidate": "a#2"}
        return rows.run_row(run_id, "compare", status=status, outputs=outputs) | {
            "ended": rows.NOW + timedelta(hours=at)
        }

    found = [compared("y", "b#1", 2), compared("x", "a#1", 1), compared("z", "a#1", 0, "rejected")]
    assert comparison(found, "a#2", "a#1") == "x"  # what was rejected before does not count
    assert comparison(found, "a#2", None) == "y"
    assert comparison(found, "a#3", None) is None
    assert comparison([*found, compared("w", "a#1", 3, "rejected")], "a#2", "a#1") is None
    assert comparison([*found, compared("w", "a#1", 3, "finished")], "a#2", "a#1") == "x"  # undecided


def test_lakes_that_share_a_server_have_champions_of_their_own_whatever_their_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of such a store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path}/server.db")
    odd = f'file:///data/{"deep/" * 60}it\'s "ours": 数据'
    lakes = [Lake(address) for address in ("s3a://bucket/a/b", "s3a://bucket/a-b", "gs://bucket/a/b", odd, odd + "'")]
    for number, lake in enumerate(lakes):
        standing = [Champion(rows.CONCEPT, OLD, "one"), Champion(rows.CONCEPT, "abcde"[number] * 32, "two")]
        for _ in range(2):  # what is there already is used
            with pipeline_run(lake, load_config(), name="two", warn=pytest.fail) as parent:
                register(parent, lake, standing)
    client = MlflowClient(tracking_uri=uri)
    for number, lake in enumerate(lakes):
        name = model_of(lake, "concept")
        [model] = client.search_registered_models(f"name = '{name}'")
        assert set(name) <= {*string.ascii_letters, *string.digits, "-"} and len(name) <= 256  # what MySQL keeps of it
        assert model.tags["lake"] == lake.uri
        champion, previous = (client.get_model_version_by_alias(name, alias) for alias in ("champion", "previous"))
        assert (champion.tags["fingerprint"], previous.tags["fingerprint"]) == ("abcde"[number] * 32, OLD)
        assert len(client.search_model_versions(f"name = '{name}'")) == 2
    assert len(client.search_registered_models()) == len(lakes)
    assert model_of(lakes[0], "concept").startswith("lakelens-concept-bucket-a-b-")


def test_a_lake_with_a_store_of_its_own_has_models_of_plain_names_unless_the_registry_lies_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lake = Lake("file:///data/lake")
    assert model_of(lake, "concept") == "lakelens-concept"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:5000")
    assert model_of(lake, "concept").startswith("lakelens-concept-data-lake-")


@pytest.mark.spark
def test_readers_get_the_champion_and_a_promotion_needs_a_comparison_or_a_reason(
    spark: Any, tmp_path: Path, lakelens: Command
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    of_both = [
        row | {"fingerprint": fingerprint, "run_id": f"{fingerprint[0]}.featurize"}
        for fingerprint in (OLD, NEW)
        for row in rows.understood("a")
        if row["featurizer"] == rows.CONCEPT
    ]
    append(rows.frame_of(spark, FEATURES, of_both), lake, FEATURES)
    checked = rows.run_row("c.check", "check", status="accepted", covers=["1.featurize", "2.featurize"])
    append(rows.frame_of(spark, RUNS, [checked]), lake, RUNS)
    with pytest.raises(SeveralFingerprints):
        published(spark, lake, FEATURES, rows.CONCEPT)
    with pytest.raises(NoChampion, match="no concept featurizer was promoted"):
        published(spark, lake, FEATURES, "concept")
    with pytest.raises(PromotionRefused, match="is published with 2 fingerprints; name one"):
        published_fingerprint(spark, lake, rows.CONCEPT)
    with pytest.raises(PromotionRefused, match="is not published"):
        published_fingerprint(spark, lake, rows.OBJECT)

    def read_by(name: str) -> set[str]:
        return {row.fingerprint for row in published(spark, lake, FEATURES, name).select("fingerprint").collect()}

    said = lakelens("promote", f"{rows.CONCEPT}#1", exit_code=2)["message"]
    assert f"no accepted comparison of {rows.CONCEPT}#11111111;" in said
    lakelens("promote", f"{rows.CONCEPT}#1", "--force", "the first one", "--run-id", "one")
    assert read_by("concept") == read_by(rows.CONCEPT) == {OLD}
    both = {"baseline": f"{rows.CONCEPT}#{OLD}", "candidate": f"{rows.CONCEPT}#{NEW}"}
    append(
        rows.frame_of(spark, RUNS, [rows.run_row("e.compare", "compare", status="accepted", outputs=both)]), lake, RUNS
    )
    assert "by e.compare; before: " in lakelens("promote", f"{rows.CONCEPT}#2", "--run-id", "two")["message"]
    assert read_by("concept") == read_by(rows.CONCEPT) == {NEW} and read_by(f"{rows.CONCEPT}#1") == {OLD}

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/lake/mlflow.db")

    def alias(name: str) -> str:
        return str(client.get_model_version_by_alias("lakelens-concept", name).tags["fingerprint"])

    assert (alias("champion"), alias("previous")) == (NEW, OLD)
    assert "is the champion already" in lakelens("promote", f"{rows.CONCEPT}#2", exit_code=2)["message"]
    lakelens("rollback", "concept", "--run-id", "back")
    assert read_by("concept") == {OLD}
    assert "no champion of kind concept before" in lakelens("rollback", "concept", exit_code=2)["message"]
    assert alias("champion") == OLD and client.get_registered_model("lakelens-concept").aliases.keys() == {"champion"}
    assert len(client.search_model_versions("name = 'lakelens-concept'")) == 2

    settings = load_config(assignments=[f"featurize.featurizers=[{rows.CONCEPT}]"]).featurize
    [due], at = prepare(settings).due, version(spark, lake, FEATURES)
    champion, frames = champion_frames(spark, lake, due, [rows.media_id("a")], at=at) or pytest.fail("no champion")
    assert champion.fingerprint == OLD and [len(frame.features or ()) for frame in frames[rows.media_id("a")]] == [2]
    assert champion_frames(spark, lake, due, [rows.media_id("a"), rows.media_id("b")], at=at) is None  # lacks one
    assert champion_frames(spark, lake, replace(due, fingerprint=OLD), [rows.media_id("a")], at=at) is None  # it is it
