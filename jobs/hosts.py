"""What is kept of a host from one run to the next, and how a schedule gets it back. Knows no HTTP and no table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jobs.schedule import HOST_FAILURES, LEAVE_ALONE_S, Host, Schedule

ROBOTS_KEPT = timedelta(hours=24)  # RFC 9309 section 2.4


@dataclass(frozen=True, kw_only=True)
class HostState:
    """A row of `hosts`; what was counted is of one call of the fetcher, and added to the row."""

    host: str
    robots: str | None = None
    robots_status: str | None = None  # found or absent; None: not known
    robots_origin: str | None = None
    robots_at: datetime | None = None
    crawl_delay_s: float | None = None
    next_ok_at: datetime | None = None
    closed_until: datetime | None = None
    closed_reason: str | None = None
    leave_s: float | None = None
    n_failures: int = 0
    backoff_s: float | None = None
    last_asked_at: datetime | None = None
    requests: int = 0
    errors: int = 0
    bytes: int = 0
    wait_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class Counted:
    """What one call of the fetcher counts of a host."""

    errors: int = 0
    bytes: int = 0
    busy_s: float = 0.0


def restore(schedule: Schedule[Any], state: HostState, *, wall: datetime, now: float) -> None:
    """Give a schedule what was known of a host; `wall` and `now` are the same moment on both clocks.

    A host that was left alone and may be asked again in this round gets one attempt: without an answer it is left alone
    for longer.
    """
    host: Host[Any] = schedule.host(state.host)

    def clock(at: datetime | None) -> float | None:
        return None if at is None else now + (at - wall).total_seconds()

    host.delay_s = max(host.delay_s, state.crawl_delay_s or 0.0)
    host.backoff_s = state.backoff_s or 0.0
    host.leave_s = state.leave_s or LEAVE_ALONE_S
    host.n_failures = state.n_failures
    next_at, closed_until = clock(state.next_ok_at), clock(state.closed_until)
    if next_at is not None:
        host.next_at = max(host.next_at, next_at)
    if closed_until is not None and closed_until > schedule.deadline:
        host.closed_until, host.reason = closed_until, state.closed_reason or ""
    elif closed_until is not None:
        host.n_failures = min(state.n_failures, HOST_FAILURES - 1)
        host.next_at = max(host.next_at, closed_until)


def state_of(host: Host[Any], counted: Counted, known: HostState, *, wall: datetime, now: float) -> HostState:
    """What is to be kept of a host; `known` holds what is known of its robots.txt."""

    def at(clock: float | None) -> datetime | None:
        if clock is None or not math.isfinite(clock):
            return None
        return wall + timedelta(seconds=clock - now)

    return HostState(
        host=host.name,
        robots=known.robots,
        robots_status=known.robots_status,
        robots_origin=known.robots_origin,
        robots_at=known.robots_at,
        crawl_delay_s=known.crawl_delay_s,
        next_ok_at=at(host.next_at),
        closed_until=at(host.closed_until),
        closed_reason=host.reason or None,
        leave_s=host.leave_s,
        n_failures=host.n_failures,
        backoff_s=host.backoff_s or None,
        last_asked_at=at(host.asked_at),
        requests=host.requests,
        errors=counted.errors,
        bytes=counted.bytes,
        wait_s=host.wait_s,
        busy_s=counted.busy_s,
    )


def is_fresh(state: HostState, wall: datetime) -> bool:
    """Whether the robots.txt that is kept may still be gone by."""
    return state.robots_at is not None and wall - state.robots_at < ROBOTS_KEPT
