"""When a host may be asked again: slots, turns, waits and leaving it alone. Knows clocks, not HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

HOST_FAILURES = 10  # attempts in a row that no answer came to, after which a host is left alone


class TooLong(Exception):
    """A host wants to be asked later than this call is willing to wait."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"the host asks to wait {wait_s:.0f} s")
        self.wait_s = wait_s


@dataclass
class Host:
    """What one call of the fetcher knows of a host; all requests of a host share one."""

    slots: asyncio.Semaphore  # connections
    lock: asyncio.Lock  # held by whose turn it is
    delay_s: float
    next_at: float = 0.0  # of the loop's clock
    closed_until: datetime | None = None  # left alone until then
    reason: str = ""
    n_failures: int = 0


@asynccontextmanager
async def turn(host: Host, *, max_wait_s: float) -> AsyncIterator[Callable[[], None]]:
    """Wait until the host may be asked again, alone where it has a delay; the function given ends the turn early.

    The delay counts from the end of the turn, when the answer has begun: a host that is slow to answer is asked less
    often. Raises TooLong instead of waiting more than `max_wait_s` seconds.
    """
    await host.lock.acquire()
    has_turn = True

    def done() -> None:
        nonlocal has_turn
        if has_turn:
            has_turn = False
            host.next_at = max(host.next_at, asyncio.get_running_loop().time() + host.delay_s)
            host.lock.release()

    try:
        wait_s = host.next_at - asyncio.get_running_loop().time()
        if wait_s > max_wait_s:
            has_turn = False
            host.lock.release()
            raise TooLong(wait_s)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if host.delay_s == 0:
            done()
        yield done
    finally:
        done()


def no_answer(host: Host, leave_for: timedelta) -> None:
    """An attempt got no answer: after `HOST_FAILURES` in a row the host is left alone."""
    host.n_failures += 1
    if host.n_failures >= HOST_FAILURES:
        host.closed_until = datetime.now(UTC) + leave_for
        host.reason = f"{host.n_failures} attempts in a row got no answer"


def asked_to_wait(host: Host, wait_s: float, *, max_wait_s: float) -> None:
    """The host asked to be left in peace for a while: wait, or leave it alone where that is too long."""
    host.next_at = max(host.next_at, asyncio.get_running_loop().time() + wait_s)
    if wait_s > max_wait_s:
        host.closed_until = datetime.now(UTC) + timedelta(seconds=wait_s)
        host.reason = f"it asked to wait {wait_s:.0f} s"
