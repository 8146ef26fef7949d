"""Whose turn it is: hosts with queues, pauses and breakers, by a clock that is given. Knows no HTTP and no loop."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

HOST_FAILURES = 10  # attempts in a row that no answer came to, after which a host is left alone
LEAVE_ALONE_S = 3600.0  # by its breaker the first time; doubled each time that it is found no better
MAX_LEAVE_ALONE_S = 86400.0
MAX_BACKOFF_S = 3600.0  # of the waits that double while a host answers 429 or 503

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How any host is treated."""

    max_connections: int
    delay_s: float  # from the begin of one answer to the next request
    rate_per_minute: float | None = None  # a token bucket of `burst` tokens is filled at this rate; None: no bucket
    burst: int = 10


@dataclass(slots=True, eq=False)
class Host(Generic[T]):
    """What is known of a host, times on the schedule's clock; all requests of a host share one."""

    name: str
    delay_s: float
    priority: int = 0
    next_at: float = -math.inf  # not to be asked before
    bucket_at: float = -math.inf  # when the token bucket would be full
    n_open: int = 0  # exchanges that go on
    n_asking: int = 0  # of these, whose answer has not begun
    n_gates: int = 0  # while there is one, nothing but what is under way goes on: its robots.txt is asked for
    is_offered: bool = False  # it stands in one of the heaps
    closed_until: float | None = None  # left alone until then
    reason: str = ""
    n_failures: int = 0
    leave_s: float = LEAVE_ALONE_S
    backoff_s: float = 0.0
    requests: int = 0
    wait_s: float = 0.0  # between the end of one exchange and the next turn
    idle_at: float | None = None  # since when the next turn is waited for
    asked_at: float | None = None
    queue: deque[T] = field(default_factory=deque)
    front: deque[T] = field(default_factory=deque)  # what is under way and needs another turn


@dataclass(slots=True, eq=False)
class Turn(Generic[T]):
    """Leave to make one exchange with a host. Who has it says when the answer begins and when the exchange is over."""

    host: Host[T]
    item: T
    waited_s: float = 0.0  # since the host's exchange before it
    is_asking: bool = True
    is_over: bool = False


class Schedule(Generic[T]):
    """The queues of many hosts and the order in which they are asked.

    A turn costs O(log hosts). `now` is any clock in seconds that does not go back.
    """

    def __init__(
        self, manners: Manners, *, max_open: int, deadline: float = math.inf, first_at: float = -math.inf
    ) -> None:
        self.manners, self.max_open, self.deadline = manners, max_open, deadline
        self.first_at = first_at  # no host is asked before
        self.hosts: dict[str, Host[T]] = {}
        self.n_open = 0
        self.n_queued = 0
        self.left_over: deque[tuple[Host[T], T, str]] = deque()  # what gets no turn, and why
        self._later: list[tuple[float, int, Host[T]]] = []
        self._ready: list[tuple[int, float, int, Host[T]]] = []
        self._n_offers = 0
        interval = manners.rate_per_minute
        self._interval_s = 60.0 / interval if interval else 0.0

    def host(self, name: str) -> Host[T]:
        """The host of that name, known from now on."""
        if name not in self.hosts:
            self.hosts[name] = Host(name, self.manners.delay_s, next_at=self.first_at)
        return self.hosts[name]

    def add(self, host: Host[T], items: Iterable[T], *, priority: int = 0) -> None:
        """Queue what is to be asked of a host, in order; of hosts that are ready, the highest priority comes first."""
        before = len(host.queue)
        host.queue.extend(items)
        self.n_queued += len(host.queue) - before
        host.priority = max(host.priority, priority)
        self._offer(host)

    def again(self, host: Host[T], item: T) -> None:
        """Queue what is under way and needs another turn: before all that is not."""
        host.front.append(item)
        self.n_queued += 1
        self._offer(host)

    def put_back(self, host: Host[T], item: T) -> None:
        """Queue again, as the first, what had a turn and left it to something else."""
        host.queue.appendleft(item)
        self.n_queued += 1
        self._offer(host)

    def take(self, now: float) -> Turn[T] | None:
        """The next turn, None while there is none: see `next_at`. What can have none any more goes to `left_over`."""
        if now > self.deadline and self.n_queued:
            for host in self.hosts.values():
                self._give_up(host, "the time of this round is over")
        while self._later and self._later[0][0] <= now:
            at, n, host = heapq.heappop(self._later)
            heapq.heappush(self._ready, (-host.priority, at, n, host))
        while self._ready and self.n_open < self.max_open:
            host = heapq.heappop(self._ready)[3]
            host.is_offered = False
            if not self._is_willing(host):
                continue
            if host.closed_until is None and self._ready_at(host) <= now:
                return self._turn(host, now)
            self._offer(host)  # it was closed or asked for more time since it was offered
        return None

    def next_at(self) -> float | None:
        """When the next turn may come by itself; None where it waits for an exchange to end, or nothing is queued."""
        if self.n_open >= self.max_open:
            return None
        if self._ready:
            return self._ready[0][1]
        return self._later[0][0] if self._later else None

    def answered(self, turn: Turn[T], now: float) -> None:
        """The answer has begun: the host's pause counts from here, so that a slow one is asked less often."""
        if turn.is_asking:
            turn.is_asking = False
            turn.host.n_asking -= 1
            turn.host.next_at = max(turn.host.next_at, now + turn.host.delay_s)
            turn.host.idle_at = now
            self._offer(turn.host)

    def over(self, turn: Turn[T], now: float) -> None:
        """The exchange is over; again is no error."""
        self.answered(turn, now)
        if not turn.is_over:
            turn.is_over = True
            turn.host.n_open -= 1
            turn.host.idle_at = now
            self.n_open -= 1
            self._offer(turn.host)

    def unused(self, turn: Turn[T]) -> None:
        """No exchange was made: the host owes no pause for it."""
        if turn.is_asking and not turn.is_over:
            turn.is_asking, turn.is_over = False, True
            turn.host.n_asking -= 1
            turn.host.n_open -= 1
            turn.host.requests -= 1
            turn.host.bucket_at -= self._interval_s
            self.n_open -= 1
            self._offer(turn.host)

    def rest(self, host: Host[T], now: float) -> None:
        """Somebody may have asked the host a moment ago: its pause counts from now."""
        host.next_at = max(host.next_at, now + host.delay_s)

    # -- what hosts ask for -----------------------------------------------------------------------------------------

    def gate(self, host: Host[T]) -> None:
        """Let nothing but what is under way go on."""
        host.n_gates += 1

    def open_gate(self, host: Host[T], *, crawl_delay_s: float = 0.0, now: float) -> None:
        """The host's robots.txt is known, or that it cannot be had; the pause that it asks for counts from now."""
        host.n_gates = max(0, host.n_gates - 1)
        if crawl_delay_s > host.delay_s:
            host.delay_s = crawl_delay_s
            host.next_at = max(host.next_at, now + crawl_delay_s)
        self._offer(host)

    def asked_to_wait(self, host: Host[T], wait_s: float | None, *, jitter: float, now: float) -> None:
        """It answered 429 or 503: wait as long as it said, else twice as long as the last time, times `jitter`.

        A wait beyond the deadline leaves it alone.
        """
        host.backoff_s = min(max(2 * host.backoff_s, self.manners.delay_s, 1.0), MAX_BACKOFF_S)
        wait = wait_s if wait_s is not None else host.backoff_s * jitter
        host.next_at = max(host.next_at, now + wait)
        if host.next_at > self.deadline:
            self.close(host, host.next_at, f"it asked to wait {wait:.0f} s")

    def worked(self, host: Host[T]) -> None:
        """It gave a whole answer: what it did before is forgiven."""
        host.n_failures, host.backoff_s, host.leave_s = 0, 0.0, LEAVE_ALONE_S

    def failed(self, host: Host[T], now: float) -> None:
        """An attempt got no answer: after `HOST_FAILURES` in a row the breaker leaves the host alone."""
        host.n_failures += 1
        if host.n_failures >= HOST_FAILURES and host.closed_until is None:
            reason = f"{host.n_failures} attempts in a row got no answer"
            self.close(host, now + host.leave_s, reason)
            host.leave_s = min(2 * host.leave_s, MAX_LEAVE_ALONE_S)

    def close(self, host: Host[T], until: float, reason: str) -> None:
        """Leave a host alone, if it is not for longer already; what is queued of it is left over."""
        if host.closed_until is None or host.closed_until < until:
            host.closed_until, host.reason = until, reason
        self._give_up(host, f"the host is left alone: {host.reason}")

    # -- how it is done ---------------------------------------------------------------------------------------------

    def _ready_at(self, host: Host[T]) -> float:
        if not self._interval_s:
            return host.next_at
        return max(host.next_at, host.bucket_at - (self.manners.burst - 1) * self._interval_s)

    def _is_willing(self, host: Host[T]) -> bool:
        """Whether the host may be asked but for the time."""
        if not (host.front or (host.queue and not host.n_gates)) or host.n_open >= self.manners.max_connections:
            return False
        return not (host.delay_s and host.n_asking)

    def _offer(self, host: Host[T]) -> None:
        if host.is_offered or not self._is_willing(host):
            return
        at = self._ready_at(host)
        if host.closed_until is not None:
            self._give_up(host, f"the host is left alone: {host.reason}")
        elif at > self.deadline:
            self._give_up(host, "its turn comes after the time of this round")
        else:
            host.is_offered = True
            self._n_offers += 1
            heapq.heappush(self._later, (at, self._n_offers, host))

    def _turn(self, host: Host[T], now: float) -> Turn[T]:
        item = (host.front or host.queue).popleft()
        self.n_queued -= 1
        host.n_open += 1
        host.n_asking += 1
        host.requests += 1
        self.n_open += 1
        waited_s = now - host.idle_at if host.idle_at is not None else 0.0
        host.wait_s += waited_s
        host.idle_at, host.asked_at = now, now
        if self._interval_s:
            host.bucket_at = max(host.bucket_at, now) + self._interval_s
        self._offer(host)  # a host without a pause takes several at once
        return Turn(host, item, waited_s)

    def _give_up(self, host: Host[T], reason: str) -> None:
        for items in (host.front, host.queue):
            self.n_queued -= len(items)
            self.left_over.extend((host, item, reason) for item in items)
            items.clear()
