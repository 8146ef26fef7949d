"""Experiment files are checked whole before Spark starts, and what was said of an item stands on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import evaluate
from jobs.claims import ComparisonRefused
from jobs.config import ConfigError, load_config
from jobs.evaluate import Evaluated, Frame
from jobs.experiment import check_asked, foreseen, n_lines
from jobs.experiment_file import checked, read_experiment, two_featurizers
from jobs.experiment_page import said_of
from jobs.lake import lake_at
from jobs.quality import GoldenItem, zero_shot
from jobs.variants import Seen, arms, measurements, part_of
from tests.test_evaluate import CONCEPTS, EXPERIMENT, feature


@pytest.mark.parametrize("path", sorted(Path("conf/experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_worked_experiment_can_be_read(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.name == path.stem and experiment.question.endswith("?")
    assert len(arms(experiment, load_config())) == len(experiment.variants)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"baseline": "two"}, "baseline is 'two', allowed: five, one"),
        (
            {"variants": {"a/b": {"featurizer": CONCEPTS}, "one": {"featurizer": CONCEPTS}}},
            "variant 'a/b' is not allowed",
        ),
        ({"metrics": {}}, "metrics: Dictionary should have at least 1 item"),
        ({"variants": {"one": {"featurizer": CONCEPTS}}}, "variants holds 'one' alone; name another one, or a sweep"),
        ({"metrics": {"top_1": {"margin": 0}}}, "metrics.top_1.margin: Input should be greater than 0"),
        ({"nonsense": 1}, "nonsense: Extra inputs are not permitted"),
        ({"repeats": 1}, "repeats: Input should be greater than or equal to 3"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"^file\.yaml: ") as caught:
        checked(EXPERIMENT | changed, "file.yaml")
    assert said in str(caught.value)


def test_the_baseline_comes_first_and_each_variant_has_its_own_settings() -> None:
    found = arms(checked(EXPERIMENT, "file"), load_config())
    assert [(arm.name, arm.config.evaluate.bridge_labels) for arm in found] == [("one", 1), ("five", 5)]
    assert {arm.due.fingerprint for arm in found} == {found[0].due.fingerprint}
    fast = EXPERIMENT | {
        "variants": EXPERIMENT["variants"]
        | {"fast": {"featurizer": CONCEPTS, "set": {"featurize.decode_profile": "fast"}}}
    }
    assert len({arm.due.fingerprint for arm in arms(checked(fast, "file"), load_config())}) == 2
    wrong = EXPERIMENT | {
        "variants": EXPERIMENT["variants"] | {"odd": {"featurizer": CONCEPTS, "set": {"featurize.speed": 1}}}
    }
    with pytest.raises(ConfigError, match=r"featurize\.speed is not a configuration key"):
        arms(checked(wrong, "file"), load_config())


def test_a_fingerprint_that_is_claimed_must_be_the_one_that_is_computed() -> None:
    [first, _] = arms(checked(EXPERIMENT, "file"), load_config())
    claimed = {name: {"featurizer": f"{CONCEPTS}#{first.due.fingerprint[:8]}"} for name in ("one", "five")}
    assert len(arms(checked(EXPERIMENT | {"variants": claimed}, "file"), load_config())) == 2
    claimed["five"]["featurizer"] = f"{CONCEPTS}#0000"
    with pytest.raises(ComparisonRefused, match="variant five is to have fingerprint 0000"):
        arms(checked(EXPERIMENT | {"variants": claimed}, "file"), load_config())


def test_what_items_can_show_is_said_before_the_candidates_run() -> None:
    items = [GoldenItem(item_id=str(i), kind="labels", labels=("cat",)) for i in range(400)]
    right = np.arange(400) % 2 == 0
    found = zero_shot(items, ["cat", "dog"], np.stack([right, ~right], axis=1).astype(float))
    least, said = foreseen(checked(EXPERIMENT, "file"), found[0], n_lines=1)
    assert least == pytest.approx(2.8016 * 0.5 / 20, rel=0.05)  # of a coin, answers correlating by one half
    assert "400 items are likely to show a difference of 0.07" in said
    assert "(baseline 0.500); to show the margin" in said
    wide = checked(EXPERIMENT | {"metrics": {"top_1": {"margin": 0.2}}}, "file")
    assert foreseen(wide, found[0], n_lines=8)[0] == pytest.approx(least * 3.576 / 2.8016, rel=0.01)  # alpha / 8
    assert "margin" not in foreseen(wide, found[0], n_lines=1)[1]


def test_metrics_and_slices_that_are_not_there_are_refused_before_the_candidates_run() -> None:
    items = [GoldenItem(item_id=str(i), kind="labels", labels=("cat",), slices={"size": "web"}) for i in range(4)]
    found = zero_shot(items, ["cat"], np.ones((4, 1)))
    check_asked(checked(EXPERIMENT, "file"), found, items)
    misspelt = checked(EXPERIMENT | {"metrics": EXPERIMENT["metrics"] | {"top_one": {"margin": 0.1}}}, "file")
    with pytest.raises(ConfigError, match="metric 'top_one' is not measured on few; measured: top_1, mean_per_class"):
        check_asked(misspelt, found, items)
    with pytest.raises(ConfigError, match="slice 'sise' is of no item of few; there are: size"):
        check_asked(checked(EXPERIMENT | {"slices": ["sise"]}, "file"), found, items)
    assert n_lines(checked(EXPERIMENT, "file"), 3, items) == 6  # one metric, all items and one slice, three candidates


def test_what_was_measured_is_handed_on_at_its_version_of_the_features_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment, read = checked(EXPERIMENT, "file"), list[int]()
    items = [GoldenItem(item_id=str(i), kind="labels", labels=("cat",)) for i in range(4)]
    [one, five] = arms(experiment, load_config())

    def read_and_measured(*told: Any, bridge_labels: int, at: int) -> Evaluated:
        """What Spark would read."""
        read.append(at)
        found = zero_shot(items, ["cat"], np.ones((4, 1)))
        return Evaluated(due=one.due, golden="few@1", items=items, frames={}, measurements=found)

    monkeypatch.setattr(evaluate, "evaluate_on", read_and_measured)
    seen, part, lake = Seen(), part_of(experiment, items, searched=False), lake_at("memory")
    spark: Any = None
    found = [measurements(spark, lake, one, "few@1", items, part, at=at, seen=seen)[1][0] for at in (3, 3, 4)]
    assert read == [3, 4] and found[0] is found[1] is not found[2]
    measurements(spark, lake, five, "few@1", items, part, at=4, seen=seen)
    assert read == [3, 4, 4]


def test_settings_that_change_nothing_are_refused() -> None:
    idle = {"one": {"featurizer": CONCEPTS}, "idle": {"featurizer": CONCEPTS, "set": {"featurize.wave_media": 7}}}
    with pytest.raises(ConfigError, match=r"what is set for idle changes neither .*: featurize\.wave_media"):
        arms(checked(EXPERIMENT | {"variants": idle}, "file"), load_config())


def test_two_featurizers_are_an_experiment_without_a_file() -> None:
    found = two_featurizers("a.b@1", "c.d@1", golden="few", metrics=["top_1", "top_5"], margin=0.01)
    assert list(found.metrics) == ["top_1", "top_5"] and found.variants[found.baseline].featurizer == "a.b@1"


def test_what_was_said_of_a_media_is_that_of_its_first_frame_that_did_not_fail() -> None:
    frames = [
        Frame(0, None),
        Frame(1, [feature([1, 0], "cat", 0.5), feature(None, "dog") | {"box": [0, 0.25, 0.5, 1]}]),
    ]
    assert said_of(frames) == (["cat 50%", "dog"], [("dog", 0, 0.25, 0.5, 0.75)])
    assert said_of([Frame(0, None)]) == ([], [])
