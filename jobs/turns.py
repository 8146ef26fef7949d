"""Gives the turns of a schedule to the requests that wait for them, in an event loop. Knows no HTTP and no rules."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.handover import Handover
from jobs.outcomes import Failure, Request
from jobs.schedule import Host, Schedule, Turn
from schemas.errors import ErrorCode

Item = Request | asyncio.Future[Any]  # what waits for a turn: a request, or one under way that needs another


@dataclass
class Leave:
    """The turn that a request came with, until it is used."""

    turn: Turn[Item] | None


@dataclass
class Turns:
    """The turns of one call of the fetcher, which are given while there is room for what comes of them."""

    schedule: Schedule[Item]
    handover: Handover[Any]
    _ended: deque[asyncio.Task[object]] = field(default_factory=deque)  # requests whose work is over
    _news: asyncio.Event = field(default_factory=asyncio.Event)  # an exchange is over, or something was queued

    async def give_all(
        self, begin: Callable[[Request, Leave], Coroutine[Any, Any, object]], refuse: Callable[[Request, str], None]
    ) -> None:
        """Begin each request when its turn comes, or refuse it with a reason, until nothing is queued or under way."""
        under_way: set[asyncio.Task[object]] = set()
        clock = asyncio.get_running_loop().time
        try:
            while True:
                await self.handover.room()
                self._news.clear()
                while self.handover.has_room and (turn := self.schedule.take(clock())) is not None:
                    if isinstance(turn.item, Request):
                        under_way.add(self._begun(begin(turn.item, leave := Leave(turn)), leave))
                    else:
                        turn.item.set_result(turn)
                while self.schedule.left_over:
                    host, item, reason = self.schedule.left_over.popleft()
                    if isinstance(item, Request):
                        refuse(item, reason)
                    else:
                        item.set_exception(Failure(ErrorCode.DEFERRED, reason, self.wait_s(host)))
                while self._ended:
                    under_way.remove(task := self._ended.popleft())
                    task.result()  # what is raised here is not the data's fault
                if not under_way and not self.schedule.n_queued:
                    return
                with suppress(TimeoutError):  # not wait_for: Python 3.11's loses a cancellation that comes with news
                    async with asyncio.timeout(self._pause_s(clock())):
                        await self._news.wait()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _pause_s(self, now: float) -> float | None:
        """How long nothing can happen by itself; what is queued is given up at the deadline, whatever it waits for."""
        times = [at for at in (self.schedule.next_at(),) if at is not None]
        if self.schedule.n_queued:
            times.append(self.schedule.deadline + 0.01)
        return max(0.0, min(times) - now) if times and math.isfinite(min(times)) else None

    def give_back(self, leave: Leave) -> None:
        """Let somebody else have a turn that was not used."""
        if leave.turn is not None:
            self.schedule.unused(leave.turn)
            leave.turn = None
            self._news.set()

    def _begun(self, work: Coroutine[Any, Any, object], leave: Leave) -> asyncio.Task[object]:
        def ended(task: asyncio.Task[object]) -> None:
            self.give_back(leave)
            self._ended.append(task)
            self._news.set()

        task = asyncio.create_task(work)
        task.add_done_callback(ended)
        return task

    async def turn(self, name: str, leave: Leave) -> Turn[Item]:
        """Leave to make one exchange with a host: the one that the request came with, or its next. Raises Failure."""
        host, granted = self.schedule.host(name), leave.turn
        if granted is not None and granted.host is host:
            leave.turn = None
            return granted
        self.give_back(leave)
        waiting: asyncio.Future[Turn[Item]] = asyncio.get_running_loop().create_future()
        self.schedule.again(host, waiting)
        self._news.set()
        return await waiting

    def answered(self, turn: Turn[Item]) -> None:
        """The answer has begun; see `Schedule.answered`."""
        self.schedule.answered(turn, asyncio.get_running_loop().time())
        self._news.set()

    def over(self, turn: Turn[Item]) -> None:
        """The exchange is over."""
        self.schedule.over(turn, asyncio.get_running_loop().time())
        self._news.set()

    def open_gate(self, name: str, *, crawl_delay_s: float) -> None:
        """The robots.txt of a host is known; see `Schedule.open_gate`."""
        now = asyncio.get_running_loop().time()
        self.schedule.open_gate(self.schedule.host(name), crawl_delay_s=crawl_delay_s, now=now)
        self._news.set()

    def wait_s(self, host: Host[Item]) -> float | None:
        """How long a host is not to be asked: it is left alone, or owes a pause; None where it may be."""
        until = host.closed_until if host.closed_until is not None else host.next_at
        wait_s = until - asyncio.get_running_loop().time()
        return wait_s if 0 < wait_s < math.inf else None

    def told(self, host: Host[Item]) -> datetime | None:
        """Until when a host is not to be asked, None where it may be."""
        wait_s = self.wait_s(host)
        return datetime.now(UTC) + timedelta(seconds=wait_s) if wait_s is not None else None
