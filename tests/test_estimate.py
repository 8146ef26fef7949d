"""What a sample says of a whole: the totals come out right, and the intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.estimate import CONFIDENCE, MIN_SAMPLED, allocate, interval, share, total, total_draws
from jobs.estimate import Stratum as Key

Population = dict[Key, np.ndarray]


def heavy_tailed(seed: int, n: int = 4000) -> Population:
    """Seconds of `n` media that grow with their bytes and vary by a lognormal factor; one in twenty is a video."""
    random = np.random.default_rng(seed)
    size_bytes = np.exp(random.normal(11.5, 1.3, n)).astype(int) + 1
    is_video = random.random(n) < 0.05
    seconds = (0.02 + size_bytes / 40e6 + 0.3 * is_video) * random.lognormal(0, 0.8, n)
    keys = [(bool(v), int(b).bit_length() // 2) for v, b in zip(is_video, size_bytes, strict=True)]
    return {key: seconds[[k == key for k in keys]] for key in sorted(set(keys))}


def drawn(population: Population, n: int, seed: int) -> dict[Key, list[float]]:
    random = np.random.default_rng(seed)
    sizes = {key: len(values) for key, values in population.items()}
    costs = {key: 1.0 + 8 * key[0] + 4.0 ** key[1] / 4e5 for key in population}
    chosen = allocate(sizes, costs, n)
    return {key: list(random.choice(values, chosen[key], replace=False)) for key, values in population.items()}


@pytest.mark.parametrize("n", [64, 256])
def test_the_interval_of_a_total_holds_the_truth_about_as_often_as_it_says(n: int) -> None:
    held, ratios = [], []
    for seed in range(150):
        population = heavy_tailed(seed)
        sizes = {key: len(values) for key, values in population.items()}
        truth = sum(float(values.sum()) for values in population.values())
        sample = drawn(population, n, seed)
        found = interval(total(sizes, sample), total_draws(sizes, sample))
        held.append(found.low <= truth <= found.high)
        ratios.append(found.point / truth)
    assert CONFIDENCE - 0.08 <= np.mean(held) <= CONFIDENCE + 0.08
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)


def test_a_population_that_was_sampled_whole_is_known() -> None:
    population = {key: list(values) for key, values in heavy_tailed(1, n=200).items()}
    sizes = {key: len(values) for key, values in population.items()}
    found = interval(total(sizes, population), total_draws(sizes, population))
    assert found.low == pytest.approx(found.high) == pytest.approx(sum(sum(values) for values in population.values()))


def test_a_sample_has_some_of_every_stratum_most_of_the_dear_ones_and_no_more_than_there_are() -> None:
    sizes = {(False, 2): 50, (False, 7): 10_000, (False, 10): 100, (True, 10): 2}
    chosen = allocate(sizes, {(False, 2): 1.0, (False, 7): 1.0, (False, 10): 50.0, (True, 10): 400.0}, 100)
    assert chosen[True, 10] == 2 and chosen[False, 7] > 50 > chosen[False, 10] > 20
    assert chosen[False, 2] == MIN_SAMPLED


def test_a_stratum_of_which_nothing_was_sampled_is_taken_for_its_neighbour_of_the_same_kind() -> None:
    sampled = {(False, 7): [1.0, 3.0], (False, 9): [], (True, 9): [40.0, 40.0]}
    sizes = {(False, 7): 10, (False, 9): 5, (True, 9): 2}
    assert total(sizes, sampled) == 15 * 2.0 + 2 * 40.0
    assert total_draws(sizes, sampled).mean() == pytest.approx(110, rel=0.05)
    with pytest.raises(ValueError, match="nothing was sampled of 1 strata"):
        total({(False, 7): 1}, {(False, 7): []})


def test_the_spread_of_the_clock_widens_the_interval_of_a_sum_that_is_known() -> None:
    found = interval(100.0, np.full(2000, 100.0), spread=0.1)
    assert 80 < found.low < 90 and 112 < found.high < 125


def test_the_interval_of_a_share_holds_the_truth_and_is_open_where_none_was_seen() -> None:
    random = np.random.default_rng(5)
    held = []
    for _ in range(400):
        failed = random.random(3000) < 0.04
        found = share(float(random.choice(failed, 100, replace=False).mean()), 100, 3000)
        held.append(found.low <= failed.mean() <= found.high)
    assert CONFIDENCE - 0.08 <= np.mean(held) <= CONFIDENCE + 0.08
    assert share(0.0, 60, 5000).high == pytest.approx(0.043, abs=0.005)
    assert share(0.25, 8, 8).low == share(0.25, 8, 8).point == share(0.25, 8, 8).high == 0.25
