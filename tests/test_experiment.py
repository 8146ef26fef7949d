"""Experiment files are checked whole before Spark starts, and what was said of an item stands on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.config import ConfigError, load_config
from jobs.evaluate import Frame
from jobs.experiment import arms
from jobs.experiment_file import checked, read_experiment, two_featurizers
from jobs.experiment_page import said_of
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
        ({"metrics": {}}, "metrics: Dictionary should have at least 1 item"),
        ({"variants": {"one": {"featurizer": CONCEPTS}}}, "variants: Dictionary should have at least 2 items"),
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
