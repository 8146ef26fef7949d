"""Verdicts follow from the measurements: by metric, by slice, together, and what a broken limit does to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.compare import Asked, errors_kept, level, limit_kept, lines, overall, slices_kept
from jobs.quality import GoldenItem, Measurement, copy_detection, zero_shot

N = 240


def measured(right: Any) -> list[Measurement]:
    """Top-1 of N items, `right` of them."""
    items = [GoldenItem(item_id=f"{i:03d}", kind="labels", labels=("cat" if i % 2 else "dog",)) for i in range(N)]
    is_cat = np.array([bool(i % 2) == bool(ok) for i, ok in enumerate(right)])
    return zero_shot(items, ["cat", "dog"], np.stack([is_cat, ~is_cat], axis=1).astype(float))


RANDOM = np.random.default_rng(0)
BASELINE = RANDOM.random(N) < 0.6
BETTER = BASELINE | (RANDOM.random(N) < 0.4)
SLICES = {f"{i:03d}": {"source": "web" if i < 180 else "folder", "size": "tiny"} for i in range(N)}


def test_a_better_candidate_is_better_and_the_same_one_is_equivalent() -> None:
    asked = Asked(margins={"top_1": 0.05})
    [[line]] = lines(measured(BASELINE), [measured(BETTER)], {}, asked)
    assert line.verdict == "better" and line.low is not None and line.low > 0
    assert line.difference == pytest.approx(BETTER.mean() - BASELINE.mean())
    [[line]] = lines(measured(BETTER), [measured(BASELINE)], {}, asked)
    assert line.verdict == "worse"
    [[line]] = lines(measured(BASELINE), [measured(BASELINE)], {}, asked)
    assert (line.verdict, line.n_different, line.low, line.high) == ("equivalent", 0, 0, 0)


def test_each_value_of_a_slice_is_judged_apart_and_corrected_together() -> None:
    asked = Asked(margins={"top_1": 0.05, "mean_per_class_accuracy": 0.05}, slices=["source", "size", "none"])
    [found] = lines(measured(BASELINE), [measured(BETTER)], SLICES, asked)
    assert [(line.metric, line.slice, line.n_items) for line in found] == [
        (metric, name, n)
        for metric in asked.margins
        for name, n in ((None, N), ("source=folder", 60), ("source=web", 180), ("size=tiny", N))
    ]
    for line in found:
        assert line.p_value is not None and line.adjusted_p is not None
        assert line.p_value <= line.adjusted_p <= 1
    assert any(line.adjusted_p > line.p_value for line in found)  # type: ignore[operator]


def test_p_values_are_corrected_for_all_candidates_together() -> None:
    slightly = BASELINE.copy()
    slightly[np.flatnonzero(~BASELINE)[:14]] = True
    slightly[np.flatnonzero(BASELINE)[:4]] = False
    asked = Asked(margins={"top_1": 0.05})
    [[alone]] = lines(measured(BASELINE), [measured(slightly)], {}, asked)
    many = lines(measured(BASELINE), [measured(slightly)] * 5, {}, asked)
    assert alone.verdict == "better" and len(many) == 5
    assert [line.verdict for [line] in many] == ["undecided"] * 5
    assert many[0][0].p_value == alone.p_value and many[0][0].adjusted_p == pytest.approx(5 * alone.p_value)  # type: ignore[operator]


def test_equivalence_is_corrected_for_the_candidates_and_not_for_slices() -> None:
    nearly = BASELINE.copy()
    nearly[np.flatnonzero(~BASELINE)[:10]] = True
    nearly[np.flatnonzero(BASELINE)[:10]] = False
    margin = {"top_1": 0.04}
    [[alone]] = lines(measured(BASELINE), [measured(nearly)], {}, Asked(margins=margin))
    assert alone.verdict == "equivalent"
    [sliced] = lines(measured(BASELINE), [measured(nearly)], SLICES, Asked(margins=margin, slices=["source", "size"]))
    assert (sliced[0].verdict, sliced[0].reason, len(sliced)) == ("equivalent", alone.reason, 4)
    many = lines(measured(BASELINE), [measured(nearly)] * 10, {}, Asked(margins=margin))
    assert [line.verdict for [line] in many] == ["undecided"] * 10
    assert (many[0][0].low, many[0][0].high) == (alone.low, alone.high)  # the 95 % interval is that of one
    assert all(line.n_more for [line] in many)


def test_few_items_or_few_different_ones_are_not_judged_and_say_why() -> None:
    few = {item: {"source": "folder" if i < 40 else "web"} for i, item in enumerate(SLICES)}
    [found] = lines(measured(BASELINE), [measured(BETTER)], few, Asked(margins={"top_1": 0.05}, slices=["source"]))
    assert [line.verdict for line in found] == ["better", "not judged", "better"]
    assert found[1].reason == "40 items, at least 50 are needed for an interval"
    assert found[1].low is None and found[1].adjusted_p is None
    one_more = BASELINE.copy()
    one_more[np.flatnonzero(~BASELINE)[0]] = True
    [[line]] = lines(measured(BASELINE), [measured(one_more)], {}, Asked(margins={"top_1": 0.05}))
    assert line.verdict == "not judged" and "only 1 items are answered differently" in line.reason


def test_copies_of_few_pictures_and_classes_of_few_items_are_not_judged() -> None:
    forms = [
        GoldenItem(item_id=f"{i:03d}", kind="copies", media_id=f"{i:03d}", copy_group=str(i % 20)) for i in range(N)
    ]
    baseline, candidate = (copy_detection(forms, np.float32(RANDOM.normal(size=(N, 8)))) for _ in range(2))
    [[line]] = lines(baseline, [candidate], {}, Asked(margins={"copies_found_at_1e-3": 0.05}))
    assert line.reason == "20 groups of copies, at least 100 are needed for an interval"
    mostly_cats = {item: {"form": "cut"} for i, item in enumerate(SLICES) if i % 2 or i < 18}
    asked = Asked(margins={"mean_per_class_accuracy": 0.05, "top_1": 0.05}, slices=["form"])
    [found] = lines(measured(BASELINE), [measured(BETTER)], mostly_cats, asked)
    assert [line.verdict for line in found] == ["better", "not judged", "better", "better"]
    assert found[1].reason == "a class has 9 items, at least 10 of each are needed for an interval"


def test_a_metric_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(ValueError, match=r"recall was not measured of the baseline and the candidate; measured: top_1"):
        lines(measured(BASELINE), [measured(BETTER)], {}, Asked(margins={"recall": 0.05}))


def test_a_level_is_the_geometric_mean_with_students_interval_of_the_logs() -> None:
    found = level(np.array([1.0, 2.0, 4.0]))
    assert found.value == pytest.approx(2)
    half = 4.302653 * np.log(2) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 * np.exp(-half), 2 * np.exp(half)))
    assert level(np.array([3.0])).low == pytest.approx(3)


def test_a_limit_is_broken_only_where_the_whole_interval_is_above_it() -> None:
    drift = np.array([1.0, 1.3, 0.8, 1.1, 1.2])  # what else the machine did, which met both
    kept = limit_kept("p95_ms", 10 * drift, 11 * drift, at_most=1.2)
    assert kept.is_kept and kept.value == pytest.approx(1.1) and "certainly" in kept.reason
    assert not limit_kept("p95_ms", 10 * drift, 13 * drift, at_most=1.2).is_kept
    noisy = limit_kept("p95_ms", 10 * drift, 12.1 * drift[::-1], at_most=1.2)
    assert noisy.is_kept and "or not" in noisy.reason


def test_errors_are_compared_as_shares_of_the_same_items() -> None:
    assert errors_kept(0.01, 0.01, at_most=0).is_kept
    assert not errors_kept(0.01, 0.03, at_most=0.01).is_kept


def test_a_broken_limit_makes_a_better_candidate_worse_and_the_first_metric_decides_else() -> None:
    [found] = lines(measured(BASELINE), [measured(BETTER)], SLICES, Asked(margins={"top_1": 0.05}, slices=["source"]))
    verdict, why = overall(found, [slices_kept(found)])
    assert verdict == "better" and why.startswith("top_1 0.")
    verdict, why = overall(found, [errors_kept(0.0, 0.5, at_most=0.1)])
    assert verdict == "worse" and "breaks error_rate (50.00% of the items failed" in why
    [worse] = lines(measured(BETTER), [measured(BASELINE)], SLICES, Asked(margins={"top_1": 0.05}, slices=["source"]))
    assert not slices_kept(worse).is_kept
    asked = Asked(margins={"top_1": 0.9}, slices=["source"])
    [little] = lines(measured(BETTER), [measured(BASELINE)], SLICES, asked)
    assert any(line.verdict == "worse" for line in little) and slices_kept(little).is_kept  # certainly, but not by much
