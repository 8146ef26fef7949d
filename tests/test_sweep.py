"""A grid holds every combination once, a search is repeated by its results, and both are checked before they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from jobs.config import ConfigError, load_config
from jobs.experiment_file import Range, Sweep, checked
from jobs.quality import GoldenItem, zero_shot
from jobs.sweep import (
    Search,
    Trial,
    best,
    dominates,
    grid,
    is_searched,
    pareto_front,
    variant_name,
    with_grid,
)
from jobs.variants import arms, part_of, query_groups
from tests.test_evaluate import CONCEPTS, EXPERIMENT

INT8 = "concept_efficientnet.lite0_int8@1"
BASELINE = {"default": {"featurizer": CONCEPTS}}


def described(**sweep: Any) -> dict[str, Any]:
    return EXPERIMENT | {"variants": BASELINE, "baseline": "default", "sweep": {"featurizer": CONCEPTS} | sweep}


def test_a_grid_is_every_combination_with_a_name_that_a_run_id_allows() -> None:
    over = {"featurizer": [CONCEPTS, INT8], "evaluate.bridge_labels": [1, 5]}
    found = grid(Sweep(over=over))
    assert [(one.featurizer, one.set) for one in found.values()] == [
        (spec, {"evaluate.bridge_labels": n}) for spec in (CONCEPTS, INT8) for n in (1, 5)
    ]
    assert next(iter(found)) == "featurizer-concept_efficientnet.lite0-1.bridge_labels-1"
    with_them = with_grid(checked(described(over={"evaluate.bridge_labels": [1, 2]}), "file"))
    assert list(with_them.variants) == ["default", "bridge_labels-1", "bridge_labels-2"] and with_them.sweep is None
    assert [arm.config.evaluate.bridge_labels for arm in arms(with_them, load_config())] == [5, 1, 2]
    with pytest.raises(ConfigError, match="the grid has 81 variants, allowed: 64; take method: search"):
        grid(Sweep(featurizer=CONCEPTS, over={key: [1, 2, 3] for key in "abcd"}))
    twice = described(over={"evaluate.bridge_labels": [1]}) | {
        "variants": BASELINE | {"bridge_labels-1": {"featurizer": INT8}}
    }
    with pytest.raises(ConfigError, match="variant bridge_labels-1 is named and in the grid"):
        with_grid(checked(twice, "file"))


def test_variants_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two of the grid's 2 variants have one name, such as key-1"):
        grid(Sweep(featurizer=CONCEPTS, over={"a.key": [1, "1"]}))


def test_long_names_stay_apart() -> None:
    names = {variant_name({f"featurize.{'key' * 30}": value, "other": value}) for value in range(3)}
    assert len(names) == 3 and all(len(name) == 80 for name in names)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"over": {}}, "sweep.over: Dictionary should have at least 1 item"),
        ({"over": {"a": [1, 1]}}, "a is [1, 1], allowed: one value or several, each once"),
        ({"over": {"a": []}}, "a is [], allowed: one value or several, each once"),
        ({"over": {"a": {"low": 1, "high": 3}}}, "a is a range, which a grid has no values of"),
        ({"over": {"a": {"low": 3, "high": 1}}, "method": "search"}, "low is 3 and high 1, allowed: low below high"),
        ({"over": {"a": {"low": 0, "high": 1, "log": True}}, "method": "search"}, "above 0 where log is set"),
        ({"over": {"featurizer": [CONCEPTS]}}, "the featurizer is needed once"),
        ({"over": {"a": [1]}, "featurizer": None}, "the featurizer is needed once"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(sweep: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(described(**sweep), "file")
    assert said in str(caught.value)


def test_a_key_or_value_that_the_configuration_does_not_allow_is_refused_before_anything_is_tried() -> None:
    for over, said in (
        ({"evaluate.speed": [1]}, r"evaluate\.speed is not a configuration key"),
        ({"evaluate.bridge_labels": {"low": 0, "high": 5}}, r"evaluate\.bridge_labels = 0"),
        ({"featurize.decode_profile": ["exact", "quick"]}, r"featurize\.decode_profile = 'quick'"),
        ({"evaluate.bridge_labels": {"low": 1.0, "high": 5.0}}, r"evaluate\.bridge_labels = 2\.48"),
    ):
        experiment = checked(described(over=over, method="search"), "file")
        with pytest.raises(ConfigError, match=said):
            arms(experiment, load_config())


OVER = {"x": Range(low=0.0, high=1.0), "n": Range(low=1, high=9), "kind": ("a", "b", True, 1)}


def worth(settings: Mapping[str, Any]) -> tuple[float, float, float]:
    """Best at x = .7 and kind b; more n is better and dearer."""
    quality = -((settings["x"] - 0.7) ** 2) + 0.2 * (settings["kind"] == "b") + 0.01 * settings["n"]
    return quality, float(settings["n"]), float(settings["n"])


def search(n_trials: int, known: list[tuple[float, float, float]] | None = None, *, seed: int = 1) -> list[Trial]:
    found = Search(OVER, seed=seed)
    trials = []
    for number in range(n_trials):
        settings = found.ask()
        objectives = known[number] if known is not None and number < len(known) else worth(settings)
        found.tell(objectives)
        trials.append(Trial(name=str(number), settings=settings, objectives=objectives))
    return trials


def test_a_search_that_died_is_repeated_from_its_results_and_goes_on_alike() -> None:
    undisturbed = search(30)
    assert [one.settings for one in search(30, [one.objectives for one in undisturbed[:17]])] == [
        one.settings for one in undisturbed
    ]
    assert [one.settings for one in search(30, seed=2)] != [one.settings for one in undisturbed]


def test_a_search_proposes_what_is_allowed_and_finds_what_is_good() -> None:
    trials = search(60)
    for one in trials:
        assert 0 <= one.settings["x"] <= 1 and one.settings["n"] in range(1, 10)
        assert any(one.settings["kind"] is value for value in OVER["kind"])  # type: ignore[union-attr]
    by_chance = sorted(one.objectives[0] for one in trials[:6])
    assert best(trials, 1)[0].objectives[0] > by_chance[-1]
    assert best(trials, 1)[0].settings["kind"] == "b"


def test_the_best_are_those_that_no_other_dominates_equal_ones_once() -> None:
    def trial(name: str, *objectives: float) -> Trial:
        return Trial(name=name, settings={}, objectives=objectives)  # type: ignore[arg-type]

    trials = [
        trial("dear", 0.9, 2, 2), trial("dominated", 0.8, 2, 2), trial("cheap", 0.5, 1, 1), trial("same", 0.5, 1, 1),
    ]  # fmt: skip
    assert [one.name for one in best(trials, 5)] == ["dear", "cheap"]
    assert [one.name for one in best(trials, 1)] == ["dear"]


def test_what_a_search_sees_is_another_part_of_the_items_than_the_verdict_is_on() -> None:
    items = [GoldenItem(item_id=f"{i}", kind="labels", labels=("cat",), copy_group=f"{i // 2}") for i in range(400)]
    [measured] = [one for one in zero_shot(items, ["cat"], np.ones((400, 1))) if one.metric == "top_1"]
    experiment = checked(described(over={"evaluate.bridge_labels": [1]}, method="search", search_share=0.25), "file")
    seen, judged = (part_of(experiment, items, searched=side).of(measured).items for side in (True, False))
    assert not set(seen) & set(judged) and len(seen) + len(judged) == 400
    assert 60 < len(seen) < 140
    assert all((str(int(item) ^ 1) in seen) for item in seen)  # copies stay together
    queries = {"a": ["1", "2"], "b": ["3"], "c": ["2", "4"], "d": ["5", "4"]}
    grouped = query_groups(queries)
    assert grouped["a"] == grouped["c"] == grouped["d"] != grouped["b"]
    plain = checked(EXPERIMENT, "file")
    assert part_of(plain, items, searched=False).of(measured).items == measured.items
    assert is_searched("a", share=1, seed=0) and not is_searched("a", share=0, seed=0)


# -- the front -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "on_front"),
    [
        ([], []),
        ([(0.5, 10, 1)], [True]),
        ([(0.5, 10, 1), (0.5, 10, 1)], [True, True]),
        ([(0.5, 10, 1), (0.6, 10, 1)], [False, True]),
        ([(0.5, 10, 1), (0.6, 20, 1), (0.7, 30, 2)], [True, True, True]),
        ([(0.5, 10, 1), (0.5, 20, 1), (0.4, 5, 3)], [True, False, True]),
        ([(0.5, 10, 2), (0.5, 20, 1)], [True, True]),
    ],
)
def test_the_front_of_known_points(points: list[tuple[float, float, float]], on_front: list[bool]) -> None:
    assert pareto_front(points) == on_front


@pytest.mark.parametrize("seed", range(50))
def test_the_front_holds_no_dominated_point_and_dominates_all_others(seed: int) -> None:
    random = np.random.default_rng(seed)
    few_values = random.integers(0, 4, (int(random.integers(1, 30)), 3))  # ties on purpose
    points = [(float(q), float(ms), float(usd)) for q, ms, usd in few_values]
    front = pareto_front(points)
    on, off = ([p for p, is_on in zip(points, front, strict=True) if is_on is wanted] for wanted in (True, False))
    assert on and not any(dominates(one, other) for one in on for other in on)
    assert all(any(dominates(one, other) for one in on) for other in off)
