"""The hosts that row C2 meets: drawn from a seed, what they allow, and what they complain about. Knows no schedule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jobs.schedule import HOST_FAILURES, LEAVE_ALONE_S, MAX_LEAVE_ALONE_S

CLOCK_ERROR_S = 1e-5  # what is kept of a host is kept to the microsecond

Floats = NDArray[np.float64]  # (H,) one for each host
Counts = NDArray[np.int64]  # (H,)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The crawl and the world it meets. The cluster grows with the URLs, a task does not."""

    n_urls: int = 10**7
    seed: int = 7
    run_s: float = 86400.0
    round_s: float = 600.0
    commit_s: float = 30.0  # from the end of one wave to the begin of the next
    task_documents: int = 15_000  # wave_documents / tasks
    urls_per_task: int = 625_000
    delay_s: float = 1.0
    max_connections: int = 2
    connections_per_task: int = 64
    timeout_s: float = 10.0
    pareto: float = 0.9  # P(a host has more than x documents) = x ** -pareto
    most_documents: int = 10**6  # of one host
    crawl_delays_s: tuple[float, ...] = (0.0, 2.0, 5.0, 10.0, 60.0)
    crawl_delay_shares: tuple[float, ...] = (0.85, 0.06, 0.04, 0.04, 0.01)
    answer_s: float = 0.15  # median time to the first byte, over hosts
    host_sigma: float = 0.5  # of its logarithm between hosts
    answer_sigma: float = 0.4  # and within one
    document_bytes: float = 1e5
    bytes_per_s: float = 4e6
    limiting_share: float = 0.03  # hosts that answer 429 to some requests
    limited_answers: float = 0.01  # of their answers
    retry_after_s: tuple[float, ...] = (5.0, 30.0, 120.0)
    dead_share: float = 0.02  # hosts that answer nothing after their robots.txt

    @property
    def n_tasks(self) -> int:
        """Tasks of a wave, each on a core."""
        return max(2, round(self.n_urls / self.urls_per_task))

    @property
    def wave_documents(self) -> int:
        """Documents of a wave."""
        return self.n_tasks * self.task_documents


@dataclass(frozen=True, kw_only=True)
class World:
    """H hosts."""

    n_documents: Counts
    delay_s: Floats  # the crawler's own or the Crawl-delay
    answer_s: Floats  # median time to the first byte
    is_limiting: NDArray[np.bool_]
    is_dead: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Draws that never end."""

    answer: Iterator[float]  # time to the first byte over the host's median
    body_s: Iterator[float]
    limited: Iterator[float | None]  # Retry-After of a limiting host's answer, seconds; None: it is no 429


@dataclass(kw_only=True)
class Witness:
    """What H hosts see of the crawler, and what each would complain about. Knows nothing of the schedule."""

    max_connections: int
    delay_s: list[float]  # that each has a right to, from its robots.txt on
    n_open: list[int]
    n_unanswered: list[int]
    answered_at: list[float]  # begin of the last answer, or when one was not waited for any longer
    not_before: list[float]  # by its Retry-After, or because it answered nothing so often
    n_failures: list[int]  # in a row
    complaints: dict[str, int] = field(default_factory=lambda: {"connections": 0, "pause": 0, "too early": 0})

    @staticmethod
    def of(n_hosts: int, *, max_connections: int, delay_s: float) -> Witness:
        """Of hosts that were never asked."""
        return Witness(
            max_connections=max_connections,
            delay_s=[delay_s] * n_hosts,
            n_open=[0] * n_hosts,
            n_unanswered=[0] * n_hosts,
            answered_at=[-math.inf] * n_hosts,
            not_before=[-math.inf] * n_hosts,
            n_failures=[0] * n_hosts,
        )

    def asked(self, host: int, now: float) -> None:
        """A request begins."""
        self.n_open[host] += 1
        self.n_unanswered[host] += 1
        if self.n_open[host] > self.max_connections:
            self.complaints["connections"] += 1
        if self.n_unanswered[host] > 1 or now < self.answered_at[host] + self.delay_s[host] - CLOCK_ERROR_S:
            self.complaints["pause"] += 1
        if now < self.not_before[host] - CLOCK_ERROR_S:
            self.complaints["too early"] += 1

    def answered(self, host: int, now: float, *, wait_s: float = 0.0) -> None:
        """An answer begins; `wait_s` is its Retry-After."""
        self.n_unanswered[host] -= 1
        self.answered_at[host] = now
        self.n_failures[host] = 0
        if wait_s:
            self.not_before[host] = now + wait_s

    def failed(self, host: int, now: float) -> None:
        """No answer was had."""
        n_failures = self.n_failures[host] + 1
        self.answered(host, now)
        self.n_failures[host] = n_failures
        if n_failures >= HOST_FAILURES:
            self.not_before[host] = now + LEAVE_ALONE_S

    def ended(self, host: int) -> None:
        """An exchange is over."""
        self.n_open[host] -= 1


def world_of(settings: Settings) -> World:
    """Hosts that have `n_urls` documents together."""
    rng = np.random.default_rng(settings.seed)
    sizes = np.empty(0)
    most = min(settings.most_documents, settings.n_urls // 10)
    while sizes.sum() < settings.n_urls:
        drawn = np.floor(rng.uniform(size=settings.n_urls // 50 + 1000) ** (-1 / settings.pareto))
        sizes = np.concatenate([sizes, np.minimum(drawn, most)])
    n_hosts = int(np.searchsorted(np.cumsum(sizes), settings.n_urls)) + 1
    asked = rng.choice(settings.crawl_delays_s, size=n_hosts, p=settings.crawl_delay_shares)
    kind = rng.uniform(size=n_hosts)
    return World(
        n_documents=sizes[:n_hosts].astype(np.int64),
        delay_s=np.maximum(settings.delay_s, asked),
        answer_s=settings.answer_s * np.exp(settings.host_sigma * rng.standard_normal(n_hosts)),
        is_dead=kind < settings.dead_share,
        is_limiting=kind > 1 - settings.limiting_share,
    )


def chance_of(settings: Settings) -> Chance:
    """Pools of draws whose lengths have no common divisor, again and again."""
    rng = np.random.default_rng([settings.seed, 1])
    waits = rng.choice(settings.retry_after_s, size=65_521)
    is_limited = rng.uniform(size=len(waits)) < settings.limited_answers
    body_s = rng.lognormal(math.log(settings.document_bytes / settings.bytes_per_s) - 0.5, 1.0, size=65_537)
    return Chance(
        answer=itertools.cycle(np.exp(settings.answer_sigma * rng.standard_normal(65_536)).tolist()),
        body_s=itertools.cycle(body_s.tolist()),
        limited=itertools.cycle(
            [wait if limited else None for wait, limited in zip(waits.tolist(), is_limited, strict=True)]
        ),
    )


def allowed(settings: Settings, world: World, *, with_answers: bool) -> Floats:
    """How many documents each host lets go in the run, one crawler with any number of cores and connections.

    A robots.txt and n documents are n + 1 requests, each as long as its pause, or Retry-After, and, `with_answers`, its
    mean time to the first byte. A dead host lets as many go as the breaker.
    """
    answer_s = world.answer_s * math.exp(settings.answer_sigma**2 / 2) if with_answers else 0.0 * world.answer_s
    limited = np.where(world.is_limiting, settings.limited_answers, 0.0)
    waits_s = np.mean([np.maximum(world.delay_s, wait) for wait in settings.retry_after_s], axis=0)
    request_s = answer_s + (1 - limited) * world.delay_s + limited * waits_s
    by_pauses = np.floor((settings.run_s - answer_s) / request_s * (1 - limited))
    opened_s, leave_s, n_tries = LEAVE_ALONE_S, LEAVE_ALONE_S, HOST_FAILURES
    while opened_s < settings.run_s:
        n_tries, leave_s = n_tries + 1, min(2 * leave_s, MAX_LEAVE_ALONE_S)
        opened_s += leave_s
    return np.minimum(world.n_documents, np.where(world.is_dead, n_tries, by_pauses))
