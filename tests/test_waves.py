"""The waves of hosts: every document in one, no wave too large or too long for a host, none emptier than it need be."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.waves import Counts, packed, per_round


def counts(*values: int) -> Counts:
    return np.array(values, np.int64)


def taken(n_documents: Counts, first: Counts, per_wave: Counts) -> list[list[int]]:
    """Wave -> what each host has in it, by the rule of the frontier: document i is in wave first + i // per_wave."""
    ends = first + -(-n_documents // np.maximum(per_wave, 1))
    waves = np.arange(ends.max(initial=0))[:, np.newaxis]
    found: list[list[int]] = np.where(
        waves >= first, np.clip(n_documents - (waves - first) * per_wave, 0, per_wave), 0
    ).tolist()
    return found


def sums(waves: list[list[int]]) -> list[int]:
    return [sum(wave) for wave in waves]


def pareto(n_hosts: int, seed: int, most: int = 100_000) -> Counts:
    drawn: NDArray[np.float64] = np.random.default_rng(seed).uniform(size=n_hosts) ** (-1 / 0.9)
    return np.minimum(drawn, most).astype(np.int64)


# -- what a host may have in a wave -------------------------------------------------------------------------------


def test_a_wave_holds_what_a_host_can_answer_in_a_round_and_at_least_one_document() -> None:
    delays_s = np.array([1.0, 10.0, 599.0, 7200.0, 0.0, 1e-6])
    limits = per_round(delays_s, round_s=600.0, wave_documents=5000)
    assert limits[0] < 600 and limits[0] >= 450, "answers take time too"
    assert limits.tolist()[1:] == [59, 1, 1, 5000, 3999]
    assert per_round(delays_s, round_s=600.0, wave_documents=7).tolist() == [7, 7, 1, 1, 7, 7]
    assert limits.dtype == np.int64


def test_no_hosts_need_no_waves() -> None:
    first, per_wave = packed(counts(), counts(), wave_documents=10)
    assert len(first) == len(per_wave) == 0
    assert len(per_round(np.empty(0), round_s=600.0, wave_documents=10)) == 0


# -- which wave ---------------------------------------------------------------------------------------------------


def test_a_host_is_in_as_many_waves_as_it_needs_and_in_equal_parts() -> None:
    n, limit = counts(1001, 1000, 1, 0), counts(500, 500, 500, 500)
    first, per_wave = packed(n, limit, wave_documents=5000)
    waves = taken(n, first, per_wave)
    assert [wave[0] for wave in waves] == [334, 334, 333]
    assert [wave[1] for wave in waves] == [500, 500, 0]
    assert first[3] == 0 and per_wave[3] == 0


def test_the_hosts_that_need_most_waves_begin_first_and_at_once() -> None:
    """A run that is cut off in its first waves has lost none of the time of the hosts that need it all."""
    n = counts(*[1] * 1000, 40_000, 60_000, 80_000)
    first, _ = packed(n, np.full(len(n), 500), wave_documents=2000)
    assert first[-3:].tolist() == [0, 0, 0]


def test_a_wave_is_full_before_the_next_one_begins_to_fill() -> None:
    n = counts(10_000, *[1] * 30_000, 10_000)
    waves = taken(n, *packed(n, np.full(len(n), 500), wave_documents=5000))
    assert sums(waves) == [5000] * 7 + [3000] + [1000] * 12
    assert [wave[0] for wave in waves] == [wave[-1] for wave in waves] == [500] * 20


def test_hosts_that_do_not_fit_beside_others_begin_when_those_are_done() -> None:
    n = counts(900, 800, 700, 600)
    first, _ = packed(n, np.full(4, 100), wave_documents=200)
    assert first.tolist() == [0, 0, 8, 9]


def test_what_is_done_in_one_wave_goes_longest_first_so_that_the_last_waves_are_short() -> None:
    """A host of 10 documents with a Crawl-delay of a minute lasts longer than one of 400 without."""
    n, limit = counts(*[1] * 600, *[400] * 3, *[10] * 50), counts(*[500] * 603, *[10] * 50)
    first, _ = packed(n, limit, wave_documents=1000)
    assert first[-50:].tolist() == [0] * 50
    assert first[600:603].tolist() == [0, 0, 1]
    assert first[:600].min() >= 1


def test_a_wave_of_documents_without_a_pause_is_full() -> None:
    """Files owe no pause: they are one host whose limit is the wave itself."""
    n = counts(9_000, 300, 10)
    waves = taken(n, *packed(n, counts(1000, 100, 100), wave_documents=1000))
    assert sums(waves) == [1000] * 9 + [110, 100, 100]


def test_hosts_of_one_wave_are_near_each_other_where_that_is_asked_for() -> None:
    n_documents, near = counts(1, 1, 1, 1, 30), counts(9, 1, 8, 2, 5)
    first, per_wave = packed(n_documents, counts(10, 10, 10, 10, 10), wave_documents=12, near=near)
    assert taken(n_documents, first, per_wave) == [[0, 1, 0, 1, 10], [1, 0, 1, 0, 10], [0, 0, 0, 0, 10]]


@pytest.mark.parametrize("seed", range(20))
def test_each_document_is_in_one_wave_and_no_wave_is_larger_than_it_may_be_by_more_than_a_host(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_hosts, wave_documents = int(rng.integers(1, 3000)), int(rng.integers(100, 6000))
    n = pareto(n_hosts, seed) - rng.integers(0, 2, size=n_hosts)
    delays_s = rng.choice([0.0, 1.0, 2.0, 10.0, 60.0], size=n_hosts, p=[0.01, 0.84, 0.05, 0.05, 0.05])
    limit = per_round(delays_s, round_s=600.0, wave_documents=wave_documents)
    first, per_wave = packed(n, limit, wave_documents=wave_documents)
    totals, n_left, begins = [], n.copy(), int(first.min())
    for wave in range(int((first + -(-n // np.maximum(per_wave, 1))).max())):
        size = np.where(wave >= first, np.clip(n_left, 0, per_wave), 0)
        assert (size <= limit).all()
        n_left -= size
        totals.append(int(size.sum()))
    assert not n_left.any() and begins == 0 and not first[n == 0].any()
    one_wave = n[n <= limit].max(initial=0)
    assert max(totals) <= wave_documents + one_wave
    assert all(totals), "no wave is empty"
    # A lower bound of any plan: all documents, and the host that needs most waves. Longest first stays below twice it.
    least = max(-(-int(n.sum()) // wave_documents), int((-(-n // limit)).max()))
    assert len(totals) <= 2 * least


def test_a_million_hosts_are_packed_in_seconds() -> None:
    n = pareto(1_000_000, 3, most=1_000_000)
    limit = per_round(np.ones(len(n)), round_s=600.0, wave_documents=50_000)
    started_s = time.process_time()
    first, per_wave = packed(n, limit, wave_documents=50_000)
    assert time.process_time() - started_s < 10.0
    assert first.min() == 0 and (per_wave <= limit).all()
