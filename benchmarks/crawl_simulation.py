"""Row C2: what the crawler's scheduler makes of the time that hosts allow, on a virtual clock. Opens no connection.

`python -m benchmarks.crawl_simulation --urls 1e8` prints the same for another number of URLs.

`jobs.waves` plans the waves of the hosts of `crawl_world`, each task of a wave is a `jobs.schedule.Schedule` with the
round as its deadline, and what is kept of a host between waves goes through `jobs.hosts`. What fetching itself costs in
CPU time, bandwidth and memory is not simulated.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from benchmarks.crawl_world import (
    CLOCK_ERROR_S,
    Chance,
    Counts,
    Floats,
    Settings,
    Witness,
    World,
    allowed,
    chance_of,
    world_of,
)
from benchmarks.row import Row, machine, table
from jobs.hosts import Counted, HostState, restore, state_of
from jobs.schedule import Manners, Schedule, Turn
from jobs.waves import packed, per_round

REACH = 0.95
WHAT = "documents fetched in a day of virtual time / what the hosts' pauses, waits and answer times allow"
N_BILLION = 1e9
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(kw_only=True)
class Progress:
    """What is known of the H hosts while the run goes on."""

    left: Counts  # documents without an outcome
    fetched: Counts
    delay_s: Floats  # as far as it is known
    has_rules: NDArray[np.bool_]  # its robots.txt is known
    closed_until: Floats
    states: dict[int, HostState] = field(default_factory=dict)  # of hosts that are asked again
    n_requests: int = 0
    n_deferred: int = 0
    n_lost_or_doubled: int = 0  # documents of a wave that had no outcome or several


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that goes on."""

    settings: Settings
    world: World
    chance: Chance
    witness: Witness
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a run."""

    run: Run
    n_waves: int
    most_documents: int  # of one wave
    task_documents: int  # of the largest task
    task_peak_bytes: int  # that it allocated: its schedule, and the simulation of its exchanges
    ended_s: float
    cpu_s: float


# -- one task -----------------------------------------------------------------------------------------------------

ANSWER, END = 0, 1
Event = tuple[float, int, int, int, Turn[int]]  # when, a number, ANSWER or END, place of the host in its task, turn


def run_task(run: Run, hosts: Sequence[int], counts: Sequence[int], *, begin_s: float) -> float:
    """Fetch `counts` documents of `hosts` until the round ends; returns when the last exchange was over.

    The first request to a host is for its robots.txt, as in `jobs.rules`. Raises RuntimeError if the schedule forgets
    something.
    """
    settings, world, progress, witness, chance = run.settings, run.world, run.progress, run.witness, run.chance
    schedule: Schedule[int] = Schedule(
        Manners(max_connections=settings.max_connections, delay_s=settings.delay_s),
        max_open=settings.connections_per_task,
        deadline=min(begin_s + settings.round_s, settings.run_s),
    )
    places, n_items = {}, 0
    for i, (number, count) in enumerate(zip(hosts, counts, strict=True)):
        if (state := progress.states.pop(number, None)) is not None:
            restore(schedule, state, wall=EPOCH + timedelta(seconds=begin_s), now=begin_s)
        places[schedule.host(str(number))] = i
        schedule.add(schedule.host(str(number)), range(n_items, n_items + count))
        n_items += count
    answer_s, has_rules = world.answer_s[hosts].tolist(), progress.has_rules[hosts].tolist()
    is_dead, is_limiting = world.is_dead[hosts].tolist(), world.is_limiting[hosts].tolist()
    n_outcomes, n_fetched, n_left = bytearray(n_items), [0] * len(hosts), list(counts)
    events: list[Event] = []
    n_events, now = 0, begin_s
    while True:
        while (turn := schedule.take(now)) is not None:
            i, n_events = places[turn.host], n_events + 1
            witness.asked(hosts[i], now)
            if not has_rules[i]:
                schedule.gate(turn.host)
            is_lost = is_dead[i] and has_rules[i]
            at = now + (settings.timeout_s if is_lost else answer_s[i] * next(chance.answer))
            heapq.heappush(events, (at, n_events, ANSWER, i, turn))
        while schedule.left_over:
            n_outcomes[schedule.left_over.popleft()[1]] += 1
            progress.n_deferred += 1
        next_at = schedule.next_at()
        if next_at is not None and (not events or next_at < events[0][0]):
            now = next_at
            continue
        if not events:
            break
        now, _, kind, i, turn = heapq.heappop(events)
        number, host = hosts[i], turn.host
        if kind == END:
            schedule.over(turn, now)
            witness.ended(number)
            continue
        wait_s = next(chance.limited) if has_rules[i] and is_limiting[i] else None
        if has_rules[i] and is_dead[i]:
            witness.failed(number, now)
            schedule.failed(host, now)
        else:
            witness.answered(number, now, wait_s=wait_s or 0.0)
            schedule.answered(turn, now)
            if wait_s is None:
                schedule.worked(host)
            else:
                schedule.asked_to_wait(host, wait_s, jitter=1.0, now=now)
        if has_rules[i] and wait_s is None:
            n_outcomes[turn.item] += 1
            n_fetched[i] += now <= settings.run_s
            n_left[i] -= 1
            n_events += 1
            body_s = 0.0 if is_dead[i] else next(chance.body_s)
            heapq.heappush(events, (now + body_s, n_events, END, i, turn))
            continue
        schedule.over(turn, now)
        witness.ended(number)
        if not has_rules[i]:
            has_rules[i], witness.delay_s[number] = True, float(world.delay_s[number])
            schedule.open_gate(host, crawl_delay_s=witness.delay_s[number], now=now)
        schedule.again(host, turn.item)
    if schedule.n_queued or schedule.n_open:
        raise RuntimeError(f"{schedule.n_queued} documents wait for nothing, {schedule.n_open} exchanges do not end")
    progress.n_requests += sum(host.requests for host in places)
    progress.n_lost_or_doubled += n_items - n_outcomes.count(1)
    progress.left[hosts] += np.array(n_left) - np.array(counts)
    progress.fetched[hosts] += np.array(n_fetched)
    progress.has_rules[hosts] = has_rules
    for host, i in places.items():
        progress.delay_s[hosts[i]] = host.delay_s
        progress.closed_until[hosts[i]] = -math.inf if host.closed_until is None else host.closed_until
        if progress.left[hosts[i]]:
            known = HostState(host=host.name, crawl_delay_s=host.delay_s)
            wall = EPOCH + timedelta(seconds=now)
            progress.states[hosts[i]] = state_of(host, Counted(), known, wall=wall, now=now)
    return now


# -- waves --------------------------------------------------------------------------------------------------------


def begun(settings: Settings) -> Run:
    """A run of which nothing is done."""
    world = world_of(settings)
    n_hosts = len(world.n_documents)
    return Run(
        settings=settings,
        world=world,
        chance=chance_of(settings),
        witness=Witness.of(n_hosts, max_connections=settings.max_connections, delay_s=settings.delay_s),
        progress=Progress(
            left=world.n_documents.copy(),
            fetched=np.zeros(n_hosts, np.int64),
            delay_s=np.full(n_hosts, settings.delay_s),
            has_rules=np.zeros(n_hosts, np.bool_),
            closed_until=np.full(n_hosts, -math.inf),
        ),
    )


def simulated(settings: Settings) -> Result:
    """A crawl from its plan to `run_s`; what a wave leaves over is in the host's next, within what it may have there.

    No Crawl-delay is known when the waves are planned, as in a first crawl.
    """
    started_s, run = time.process_time(), begun(settings)
    n_documents, progress = run.world.n_documents, run.progress
    round_s, wave_documents = settings.round_s, settings.wave_documents
    limits = per_round(progress.delay_s, round_s=round_s, wave_documents=wave_documents)
    first, per_wave = packed(n_documents, limits, wave_documents=wave_documents)
    task_of = (np.arange(len(n_documents)) * 2654435761 >> 16) % settings.n_tasks  # Knuth's multiplicative hash
    now, wave, n_waves, most_documents, task_documents, task_peak_bytes = 0.0, 0, 0, 0, 0, 0
    while now < settings.run_s and progress.left.any():
        wave += 1
        planned = np.clip((wave - first) * per_wave, 0, n_documents) - (n_documents - progress.left)
        limits = per_round(progress.delay_s, round_s=round_s, wave_documents=wave_documents)
        is_closed = progress.closed_until > now + round_s
        due = np.where(is_closed, 0, np.clip(planned, 0, limits))
        chosen = np.flatnonzero(due)
        if not len(chosen):  # what is left is of later waves, or else of hosts that are left alone
            if not ((progress.left > 0) & ~is_closed).any():
                now = float(progress.closed_until[progress.left > 0].min()) - round_s + CLOCK_ERROR_S
            continue
        ends = []
        for task in range(settings.n_tasks):
            hosts = chosen[task_of[chosen] == task]
            size = int(due[hosts].sum())
            if is_largest := size > task_documents:
                tracemalloc.start()
            ends.append(run_task(run, hosts.tolist(), due[hosts].tolist(), begin_s=now) if size else now)
            if is_largest:
                task_documents, task_peak_bytes = size, max(task_peak_bytes, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        n_waves, most_documents = n_waves + 1, max(most_documents, int(due.sum()))
        now = max(ends) + settings.commit_s
    return Result(
        run=run,
        n_waves=n_waves,
        most_documents=most_documents,
        task_documents=task_documents,
        task_peak_bytes=task_peak_bytes,
        ended_s=min(now, settings.run_s),
        cpu_s=time.process_time() - started_s,
    )


# -- what comes of it ---------------------------------------------------------------------------------------------


def turn_us(*, n_hosts: int = 300, n_documents: int = 15_000) -> float:
    """CPU microseconds of one document in a schedule with next to nothing around it; the least of three runs."""
    spent_s = []
    for _ in range(3):
        schedule: Schedule[int] = Schedule(Manners(max_connections=2, delay_s=1.0), max_open=64)
        for number in range(n_hosts):
            schedule.add(schedule.host(str(number)), range(n_documents // n_hosts))
        ends: deque[tuple[float, Turn[int]]] = deque()
        now, started_s = 0.0, time.process_time()
        while schedule.n_queued or ends:
            while (turn := schedule.take(now)) is not None:
                ends.append((now + 0.15, turn))
            next_at = schedule.next_at()
            if ends and (next_at is None or ends[0][0] <= next_at):
                now, turn = ends.popleft()
                schedule.answered(turn, now)
                schedule.worked(turn.host)
                schedule.over(turn, now)
            elif next_at is not None:
                now = next_at
        spent_s.append(time.process_time() - started_s)
    return min(spent_s) / n_documents * 1e6


def fairness(shares: Floats) -> float:
    """Jain's index (Jain, Chiu and Hawe, 1984): 1 where all have the same share of what they allow."""
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def billion(result: Result) -> dict[str, float]:
    """A billion documents at the measured rate: hours and dollars on as many cores as there are tasks.

    hours = 1e9 / (documents / hours of the run); dollars = hours x tasks x the price of a core, and each document's
    bytes fetched and moved and its requests; a month of their storage apart. With N times the cores, and N times the
    hosts, hours are an Nth and dollars the same.
    """
    from jobs.config import load_config

    prices, settings, progress = load_config().prices, result.run.settings, result.run.progress
    n_fetched = int(progress.fetched.sum())
    hours = N_BILLION / (n_fetched / (result.ended_s / 3600))
    gb = N_BILLION * settings.document_bytes / 1e9
    usd = (
        hours * settings.n_tasks * prices.usd_per_core_hour
        + gb * (prices.usd_per_gb_fetched + prices.usd_per_gb_moved)
        + N_BILLION * progress.n_requests / n_fetched / 1e6 * prices.usd_per_million_requests
    )
    return {
        "cores": settings.n_tasks,
        "hours": round(hours, 1),
        "usd": round(usd, 2),
        "usd_per_month_stored": round(gb * prices.usd_per_gb_month, 2),
    }


def row(settings: Settings) -> Row:
    """C2 with other settings."""
    result = simulated(settings)
    world, progress, n_urls = result.run.world, result.run.progress, int(result.run.world.n_documents.sum())
    bound = allowed(settings, world, with_answers=True)
    by_pauses = float(allowed(settings, world, with_answers=False).sum())
    n_fetched = int(progress.fetched.sum())
    shares = progress.fetched / np.maximum(bound, 1)
    is_large = world.n_documents > per_round(world.delay_s, round_s=settings.round_s, wave_documents=n_urls)
    return Row(
        id="C2",
        what=WHAT,
        unit="documents",
        ours=float(n_fetched),
        peer=float(bound.sum()),
        ratio=round(n_fetched / float(bound.sum()), 4),
        reach=REACH,
        peer_version="the bound",
        settings={
            "share_of_the_bound_by_pauses_alone": round(n_fetched / by_pauses, 4),
            "hosts": len(bound),
            "waves": result.n_waves,
            "documents_of_the_largest_wave": result.most_documents,
            "deferred": progress.n_deferred,
            "documents_lost_or_doubled": progress.n_lost_or_doubled,
            "complaints_of_hosts": result.run.witness.complaints,
            "fairness": round(fairness(shares), 4),
            "fairness_of_hosts_of_several_waves": round(fairness(shares[is_large]), 4),
            "documents_of_the_largest_task": result.task_documents,
            "peak_of_the_largest_task_mib": round(result.task_peak_bytes / 2**20, 1),
            "scheduler_cpu_s_per_million": round(turn_us(), 2),
            "simulation_cpu_s_per_million": round(result.cpu_s / n_fetched * 1e6, 2),
            "a_billion_documents": billion(result),
            "tasks": settings.n_tasks,
            "wave_documents": settings.wave_documents,
            **asdict(settings),
            **machine(),
        },
    )


def rows() -> list[Row]:
    """C2: ten million URLs."""
    return [row(Settings())]


def main(arguments: list[str]) -> int:
    """Print the row and its settings."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crawl_simulation", description="Row C2 as asked for.")
    parser.add_argument("--urls", type=float, default=Settings.n_urls)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    given = parser.parse_args(arguments)
    if not 1000 <= given.urls <= 1e9:
        parser.error(f"--urls {given.urls:g}: allowed are 1e3 to 1e9")
    found = row(Settings(n_urls=int(given.urls), seed=given.seed))
    print(table([found]))
    print(json.dumps(found.settings, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
