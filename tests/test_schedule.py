"""The turns of hosts on a clock of the test's own: pauses, buckets, gates, waits, the breaker and the round's end."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from benchmarks.crawl_simulation import fairness, simulated
from benchmarks.crawl_world import Settings, Witness, allowed
from jobs.schedule import HOST_FAILURES, LEAVE_ALONE_S, MAX_BACKOFF_S, MAX_LEAVE_ALONE_S, Manners, Schedule, Turn

INFINITE = math.inf


def schedule(
    *,
    delay_s: float = 1.0,
    max_connections: int = 2,
    max_open: int = 64,
    deadline: float = INFINITE,
    rate_per_minute: float | None = None,
    burst: int = 10,
) -> Schedule[object]:
    manners = Manners(max_connections=max_connections, delay_s=delay_s, rate_per_minute=rate_per_minute, burst=burst)
    return Schedule(manners, max_open=max_open, deadline=deadline)


def taken(s: Schedule[object], now: float) -> Turn[object]:
    turn = s.take(now)
    assert turn is not None
    return turn


def left_over(s: Schedule[object]) -> list[tuple[str, object, str]]:
    return [(host.name, item, reason) for host, item, reason in s.left_over]


# -- pauses and connections ---------------------------------------------------------------------------------------


def test_a_host_is_asked_in_order_and_a_pause_after_the_begin_of_each_answer() -> None:
    s = schedule(delay_s=1.0)
    s.add(s.host("a"), ["first", "second"])
    turn = taken(s, 0.0)
    assert turn.item == "first" and s.take(50.0) is None, "no second request before the first one's answer begins"
    s.answered(turn, 60.0)
    assert s.take(60.9) is None and s.next_at() == 61.0
    assert taken(s, 61.0).item == "second", "the body that still comes keeps one connection, and there are two"


def test_a_host_without_a_pause_takes_as_many_at_once_as_it_may_have_connections() -> None:
    s = schedule(delay_s=0.0, max_connections=3)
    s.add(s.host("a"), range(5))
    turns = [taken(s, 0.0) for _ in range(3)]
    assert s.take(0.0) is None and s.next_at() is None
    s.answered(turns[1], 0.1)
    assert s.take(0.1) is None, "an answer that has only begun keeps its connection"
    s.over(turns[1], 0.2)
    assert taken(s, 0.2).item == 3
    assert s.take(0.2) is None


def test_bodies_that_last_longer_than_the_pause_hold_no_more_than_the_connections_allowed() -> None:
    s = schedule(delay_s=1.0, max_connections=2)
    s.add(s.host("a"), range(3))
    first = taken(s, 0.0)
    s.answered(first, 0.1)
    second = taken(s, 1.1)
    s.answered(second, 1.2)
    assert s.take(100.0) is None and s.next_at() is None
    s.over(first, 100.0)
    assert taken(s, 100.0).item == 2


def test_one_schedule_has_no_more_exchanges_open_than_it_may() -> None:
    s = schedule(max_open=2)
    for name in "abc":
        s.add(s.host(name), [name])
    first, _ = taken(s, 0.0), taken(s, 0.0)
    assert s.take(0.0) is None and s.next_at() is None
    s.over(first, 5.0)
    assert s.next_at() is not None
    assert taken(s, 5.0).item == "c"


def test_the_host_that_was_ready_first_comes_first_but_after_all_of_a_higher_priority() -> None:
    s = schedule(max_open=1)
    for name in ("a", "b", "c"):
        s.host(name).next_at = {"a": 3.0, "b": 1.0, "c": 2.0}[name]
        s.add(s.host(name), [name], priority=int(name == "a"))
    order = []
    for _ in range(3):
        turn = taken(s, 10.0)
        order.append(turn.item)
        s.over(turn, 10.0)
    assert order == ["a", "b", "c"]


def test_what_is_under_way_comes_before_what_is_queued() -> None:
    s = schedule(delay_s=0.0, max_connections=1)
    s.add(s.host("a"), ["queued"])
    s.again(s.host("a"), "under way")
    turn = taken(s, 0.0)
    assert turn.item == "under way"
    s.over(turn, 0.0)
    assert taken(s, 0.0).item == "queued"


def test_a_turn_that_was_not_used_costs_neither_pause_nor_token_nor_request() -> None:
    s = schedule(delay_s=1.0, rate_per_minute=1.0, burst=1)
    s.add(s.host("a"), ["refused", "asked"])
    s.unused(taken(s, 0.0))
    turn = taken(s, 0.0)
    assert turn.item == "asked" and turn.host.requests == 1
    assert (s.n_open, turn.host.n_open, turn.host.n_asking) == (1, 1, 1)


def test_an_exchange_that_ends_twice_frees_one_connection() -> None:
    s = schedule(delay_s=0.0, max_connections=1)
    s.add(s.host("a"), range(3))
    turn = taken(s, 0.0)
    s.over(turn, 1.0)
    s.over(turn, 1.0)
    s.unused(turn)
    assert (s.n_open, turn.host.n_open, turn.host.n_asking, turn.host.requests) == (0, 0, 0, 1)


def test_a_bucket_lets_its_burst_go_at_once_and_then_its_rate() -> None:
    s = schedule(delay_s=0.0, rate_per_minute=30.0, burst=3, max_connections=10)
    s.add(s.host("a"), range(100))
    at: list[float] = []
    now = 0.0
    while len(at) < 8:
        if (turn := s.take(now)) is not None:
            at.append(now)
            s.over(turn, now)
        else:
            soonest = s.next_at()
            assert soonest is not None and soonest > now
            now = soonest
    assert at == [0.0, 0.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_a_host_is_not_offered_again_where_somebody_else_may_have_asked_it() -> None:
    s = schedule(delay_s=2.0)
    s.rest(s.host("a"), 10.0)
    s.add(s.host("a"), ["x"])
    assert s.take(11.9) is None
    assert taken(s, 12.0).item == "x"


# -- robots.txt ---------------------------------------------------------------------------------------------------


def test_a_host_whose_two_origins_ask_for_their_rules_is_gated_until_both_have_them() -> None:
    s = Schedule[str](Manners(max_connections=2, delay_s=0.0), max_open=9)
    host = s.host("a")
    s.gate(host)
    s.gate(host)
    s.add(host, ["x"])
    s.open_gate(host, now=0.0)
    assert s.take(0.0) is None
    s.open_gate(host, now=0.0)
    turn = s.take(0.0)
    assert turn is not None and turn.item == "x"


def test_a_gated_host_gives_turns_to_what_is_under_way_alone() -> None:
    s = schedule(delay_s=0.0, max_connections=5)
    s.add(s.host("a"), ["first", "second"])
    first = taken(s, 0.0)
    s.gate(first.host)
    assert s.take(0.0) is None
    s.again(first.host, "redirected robots.txt")
    assert taken(s, 0.0).item == "redirected robots.txt"
    assert s.take(0.0) is None
    s.open_gate(first.host, now=3.0)
    assert taken(s, 3.0).item == "second"


def test_a_longer_crawl_delay_counts_from_when_it_is_known_and_a_shorter_one_changes_nothing() -> None:
    s = schedule(delay_s=1.0)
    for name in ("slow", "fast"):
        s.add(s.host(name), ["robots.txt", "document"])
    for _ in range(2):
        turn = taken(s, 0.0)
        s.over(turn, 0.5)
        s.open_gate(turn.host, crawl_delay_s={"slow": 10.0, "fast": 0.1}[turn.host.name], now=0.5)
    assert (s.host("slow").delay_s, s.host("fast").delay_s) == (10.0, 1.0)
    assert taken(s, 1.5).host.name == "fast"
    assert s.take(10.4) is None
    assert taken(s, 10.5).host.name == "slow"


# -- waits and the breaker ----------------------------------------------------------------------------------------


def test_a_host_is_not_asked_before_its_retry_after_even_where_it_stands_ready() -> None:
    s = schedule(delay_s=1.0)
    s.add(s.host("a"), ["limited", "next"])
    turn = taken(s, 0.0)
    s.answered(turn, 0.1)  # offered for 1.1
    s.asked_to_wait(turn.host, 30.0, jitter=1.0, now=0.2)
    s.over(turn, 0.2)
    assert s.take(1.1) is None and s.take(30.1) is None
    assert taken(s, 30.2).item == "next"


def test_waits_that_a_host_does_not_name_double_until_it_answers() -> None:
    s = schedule(delay_s=1.0)
    host = s.host("a")
    waits = []
    for _ in range(14):
        before = host.next_at = 0.0
        s.asked_to_wait(host, None, jitter=1.0, now=0.0)
        waits.append(host.next_at - before)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0] and waits[-1] == MAX_BACKOFF_S
    s.worked(host)
    host.next_at = 0.0
    s.asked_to_wait(host, None, jitter=1.5, now=0.0)
    assert host.next_at == 1.5


def test_an_answer_of_another_connection_does_not_shorten_a_retry_after() -> None:
    s = schedule(delay_s=0.0, max_connections=2)
    s.add(s.host("a"), range(3))
    limited, other = taken(s, 0.0), taken(s, 0.0)
    s.asked_to_wait(limited.host, 60.0, jitter=1.0, now=1.0)
    s.over(limited, 1.0)
    s.worked(other.host)
    s.over(other, 2.0)
    assert s.take(60.9) is None
    assert taken(s, 61.0).item == 2


def test_a_wait_beyond_the_round_leaves_all_of_the_host_over() -> None:
    s = schedule(deadline=100.0)
    s.add(s.host("a"), range(3))
    s.add(s.host("b"), ["other"])
    turn = taken(s, 0.0)
    s.asked_to_wait(turn.host, 500.0, jitter=1.0, now=1.0)
    s.over(turn, 1.0)
    assert [(name, item) for name, item, _ in left_over(s)] == [("a", 1), ("a", 2)]
    assert "asked to wait 500 s" in left_over(s)[0][2]
    assert turn.host.closed_until == 501.0
    assert taken(s, 1.0).item == "other"


def test_the_breaker_leaves_a_host_alone_after_enough_attempts_in_a_row_without_an_answer() -> None:
    s = schedule(delay_s=0.0, max_connections=1)
    host = s.host("a")
    s.add(host, range(5 + HOST_FAILURES + 2))
    for i in range(5 + HOST_FAILURES):
        turn = taken(s, float(i))
        if i == 4:
            s.worked(host)
        else:
            s.failed(host, float(i))
        s.over(turn, float(i))
    assert host.closed_until == 4 + HOST_FAILURES + LEAVE_ALONE_S
    s.add(host, ["late"])
    assert s.take(1e5) is None
    assert [item for _, item, _ in left_over(s)] == [5 + HOST_FAILURES, 6 + HOST_FAILURES, "late"]
    assert all("10 attempts in a row got no answer" in reason for _, _, reason in left_over(s))


def test_a_host_that_is_found_no_better_is_left_alone_for_twice_as_long() -> None:
    s = schedule()
    host = s.host("a")
    waits: list[float | None] = []
    for _ in range(7):
        host.closed_until, host.n_failures = None, HOST_FAILURES - 1
        s.failed(host, 0.0)
        waits.append(host.closed_until)
    assert waits[:3] == [LEAVE_ALONE_S, 2 * LEAVE_ALONE_S, 4 * LEAVE_ALONE_S] and waits[-1] == MAX_LEAVE_ALONE_S


def test_a_host_that_was_ready_when_it_was_closed_gets_no_turn_any_more() -> None:
    s = schedule(delay_s=1.0)
    s.add(s.host("a"), ["first", "second"])
    turn = taken(s, 0.0)
    s.answered(turn, 0.1)  # from here on it stands ready for its second turn
    s.close(turn.host, 1e6, "its body never ended")
    s.again(turn.host, "redirected")
    s.over(turn, 0.2)
    assert s.take(5.0) is None
    assert [item for _, item, _ in left_over(s)] == ["second", "redirected"] and s.n_queued == 0


def test_a_host_that_is_left_alone_is_not_so_for_shorter_because_it_asks_to_wait() -> None:
    s = schedule(deadline=10.0, delay_s=0.0)
    s.add(s.host("a"), range(2))
    _, late = taken(s, 0.0), taken(s, 0.0)
    s.close(late.host, 7200.0, "10 attempts in a row got no answer")
    s.asked_to_wait(late.host, 60.0, jitter=1.0, now=5.0)
    assert late.host.closed_until == 7200.0


# -- the end of a round -------------------------------------------------------------------------------------------


def test_no_turn_is_given_after_the_round_and_each_item_is_left_over_once() -> None:
    s = schedule(delay_s=1.0, deadline=2.0)
    s.add(s.host("a"), range(5))
    s.add(s.host("gated"), ["g1", "g2"])
    s.gate(s.host("gated"))
    now, asked = 0.0, []
    while (turn := s.take(now)) is not None:
        asked.append(turn.item)
        s.over(turn, now)
        now += 1.0
    assert asked == [0, 1, 2], "at its last moment a round still gives a turn"
    assert s.take(2.1) is None
    assert sorted((name, str(item)) for name, item, _ in left_over(s)) == [
        *(("a", str(i)) for i in (3, 4)),
        *(("gated", item) for item in ("g1", "g2")),
    ]
    assert s.n_queued == 0 and s.next_at() is None


def test_a_host_whose_next_turn_comes_after_the_round_is_left_over_at_once() -> None:
    s = schedule(delay_s=60.0, deadline=50.0)
    s.add(s.host("a"), range(3))
    s.over(taken(s, 0.0), 0.5)
    assert [item for _, item, _ in left_over(s)] == [1, 2]
    assert s.next_at() is None


def test_what_waits_for_a_host_that_holds_all_its_connections_is_left_over_with_the_round() -> None:
    s = schedule(delay_s=0.0, max_connections=1, deadline=10.0)
    s.add(s.host("a"), range(2))
    turn = taken(s, 0.0)
    assert s.take(10.1) is None
    s.over(turn, 11.0)
    assert s.take(11.0) is None
    assert [item for _, item, _ in left_over(s)] == [1]


# -- any order of events ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_whatever_hosts_do_each_item_has_one_outcome_and_no_host_is_wronged(seed: int) -> None:
    """A thousand items of hosts that answer, hang, limit, fail, ask for turns under way and longer pauses, at random.

    What is checked is kept by the test alone. A turn is also not withheld: when there is none to be had by time, every
    host with something queued has a reason.
    """
    rng = random.Random(seed)
    delay_s, connections, deadline = rng.choice([0.0, 0.5, 1.0]), rng.randint(1, 3), rng.choice([60.0, 400.0, INFINITE])
    rate = rng.choice([None, None, 60.0])
    s = schedule(
        delay_s=delay_s,
        max_connections=connections,
        max_open=rng.choice([3, 64]),
        deadline=deadline,
        rate_per_minute=rate,
        burst=4,
    )
    names = [f"h{i}" for i in range(20)]
    queued: Counter[object] = Counter()
    outcomes: Counter[object] = Counter()
    for name in names:
        items = [(name, i) for i in range(rng.randint(1, 100))]
        s.add(s.host(name), items, priority=rng.randint(0, 2))
        queued.update(items)
    fails = {name: rng.choice([0.0, 0.05, 0.95]) for name in names}
    n_open: Counter[str] = Counter()
    n_asking: Counter[str] = Counter()
    in_a_row: Counter[str] = Counter()
    not_before: defaultdict[str, float] = defaultdict(lambda: -INFINITE)
    begun: defaultdict[str, list[float]] = defaultdict(list)
    pause = dict.fromkeys(names, delay_s)
    closed: set[str] = set()
    events: list[tuple[float, int, str, Turn[object]]] = []
    now, n = 0.0, 0
    while True:
        while (turn := s.take(now)) is not None:
            name, n = turn.host.name, n + 1
            if rng.random() < 0.05:
                s.unused(turn)
                outcomes[turn.item] += 1
                continue
            n_open[name] += 1
            n_asking[name] += 1
            assert n_open[name] <= connections and n_open.total() <= s.max_open
            assert n_asking[name] == 1 or not pause[name]
            assert now >= not_before[name] and now <= deadline and name not in closed
            begun[name].append(now)
            if rate is not None:
                assert len(begun[name]) <= 4 or now - begun[name][-5] >= 60 / rate - 1e-9, "four tokens, one a second"
            heapq.heappush(events, (now + rng.expovariate(2.0), n, "answer", turn))
        for _, item, _ in s.left_over:
            outcomes[item] += 1
        s.left_over.clear()
        if n_open.total() < s.max_open and rate is None:
            for name in names:
                has_a_reason = n_open[name] == connections or (pause[name] and n_asking[name]) or now < not_before[name]
                assert has_a_reason or not (s.host(name).queue or s.host(name).front), "a turn is withheld"
        at = s.next_at()
        if at is not None and (not events or at <= events[0][0]):
            assert at > now
            now = at
            continue
        if not events:
            break
        now, _, kind, turn = heapq.heappop(events)
        name, n = turn.host.name, n + 1
        if kind == "answer" and rng.random() < fails[name]:
            n_asking[name] -= 1
            n_open[name] -= 1
            in_a_row[name] += 1
            not_before[name] = max(not_before[name], now + pause[name])
            if in_a_row[name] >= HOST_FAILURES:
                closed.add(name)
            s.failed(turn.host, now)
            s.over(turn, now)
            outcomes[turn.item] += 1
        elif kind == "answer":
            n_asking[name] -= 1
            s.answered(turn, now)
            not_before[name] = max(not_before[name], now + pause[name])
            if rng.random() < 0.1:
                wait_s = rng.uniform(0, 20)
                s.asked_to_wait(turn.host, wait_s, jitter=1.0, now=now)
                not_before[name] = max(not_before[name], now + wait_s)
                if not_before[name] > deadline:
                    closed.add(name)
            if rng.random() < 0.02 and pause[name] < 3.0:
                s.open_gate(turn.host, crawl_delay_s=3.0, now=now)
                not_before[name], pause[name] = max(not_before[name], now + 3.0), 3.0
            heapq.heappush(events, (now + rng.expovariate(1.0), n, "end", turn))
        else:
            n_open[name] -= 1
            if rng.random() < fails[name]:  # its body broke off
                in_a_row[name] += 1
                if in_a_row[name] >= HOST_FAILURES:
                    closed.add(name)
                s.failed(turn.host, now)
                s.over(turn, now)
                s.again(turn.host, turn.item)
            elif rng.random() < 0.1:
                s.over(turn, now)
                s.again(turn.host, turn.item)
            else:
                if name not in closed:
                    s.worked(turn.host)
                    in_a_row[name] = 0
                s.over(turn, now)
                outcomes[turn.item] += 1
    assert outcomes == queued, "each item once"
    assert (s.n_open, s.n_queued) == (0, 0)


# -- a crawl of the benchmark -------------------------------------------------------------------------------------


def test_the_witness_of_a_simulated_crawl_complains_of_each_wrong_and_of_nothing_else() -> None:
    def hosts() -> Witness:
        return Witness.of(2, max_connections=2, delay_s=1.0)

    witness = hosts()
    for now in (0.0, 1.1):
        witness.asked(0, now)
        witness.answered(0, now + 0.1)
    witness.asked(1, 1.1)
    assert witness.complaints == {"connections": 0, "pause": 0, "too early": 0}
    witness.asked(0, 2.2)
    assert witness.complaints == {"connections": 1, "pause": 0, "too early": 0}
    witness = hosts()
    witness.asked(0, 0.0)
    witness.asked(0, 50.0)
    witness.answered(0, 50.1)
    assert witness.complaints["pause"] == 1, "a second request while the first one's answer has not begun"
    witness = hosts()
    witness.asked(0, 0.0)
    witness.answered(0, 0.1)
    witness.asked(0, 1.0)
    assert witness.complaints["pause"] == 1, "after less than the pause"
    witness = hosts()
    witness.asked(0, 0.0)
    witness.answered(0, 0.1, wait_s=30.0)
    witness.asked(0, 29.0)
    assert witness.complaints == {"connections": 0, "pause": 0, "too early": 1}
    witness = hosts()
    for now in range(0, 5 * HOST_FAILURES, 5):
        witness.asked(0, float(now))
        witness.failed(0, now + 1.0)
        witness.ended(0)
    assert sum(witness.complaints.values()) == 0
    witness.asked(0, LEAVE_ALONE_S)
    assert witness.complaints["too early"] == 1, "the breaker should have opened"


def test_a_simulated_crawl_loses_nothing_wrongs_nobody_and_is_the_same_each_time() -> None:
    settings = Settings(n_urls=20_000, seed=3, run_s=6 * 3600.0, round_s=900.0, task_documents=1500)
    first, second = simulated(settings), simulated(settings)
    progress, world = first.run.progress, first.run.world
    assert sum(first.run.witness.complaints.values()) == 0 and progress.n_lost_or_doubled == 0
    assert first.n_waves > 3 and progress.n_deferred > 0
    assert (progress.fetched + progress.left == world.n_documents).all()
    assert (progress.fetched == second.run.progress.fetched).all()
    bound = allowed(settings, world, with_answers=True)
    assert 0.9 * bound.sum() < progress.fetched.sum() <= bound.sum()
    assert (bound <= allowed(settings, world, with_answers=False)).all()


def test_fairness_is_one_for_equal_shares_and_the_share_of_hosts_that_have_all_of_it_else() -> None:
    assert fairness(np.full(7, 0.3)) == pytest.approx(1.0)
    assert fairness(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
