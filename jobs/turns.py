"""Gives the turns of a schedule to the requests that wait for them, in an event loop. Knows no HTTP and no rules."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.outcomes import Failure, Request
from jobs.schedule import Host, Schedule, Turn
from schemas.errors import ErrorCode

HELD_BYTES = 128 << 20  # of bodies that were read and not yet taken: above, no turn is given
Item = Request | asyncio.Future[Any]  # what waits for a turn: a request, or one under way that needs another


@dataclass
class Leave:
    """The turn that a request came with, until it is used."""

    turn: Turn[Item] | None


@dataclass
class Turns:
    """The turns of one call of the fetcher, and the memory that holds it up."""

    schedule: Schedule[Item]
    held_bytes: int = 0
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _news: asyncio.Event = field(default_factory=asyncio.Event)  # an exchange is over, or something was queued

    def hold(self, n_bytes: int) -> None:
        """Count bytes that are held until they are taken (then negative)."""
        self.held_bytes += n_bytes
        if self.held_bytes > HELD_BYTES:
            self._room.clear()
        else:
            self._room.set()

    async def room(self) -> None:
        """Wait until there is room for another body."""
        await self._room.wait()

    async def give_all(
        self, begin: Callable[[Request, Leave], Coroutine[Any, Any, object]], refuse: Callable[[Request, str], None]
    ) -> None:
        """Begin each request when its turn comes, or refuse it with a reason, until nothing is queued or under way."""
        under_way: set[asyncio.Task[None]] = set()
        clock = asyncio.get_running_loop().time
        try:
            while True:
                await self.room()
                self._news.clear()
                while self._room.is_set() and (turn := self.schedule.take(clock())) is not None:
                    if isinstance(turn.item, Request):
                        under_way.add(self._begun(turn, begin(turn.item, leave := Leave(turn)), leave))
                    else:
                        turn.item.set_result(turn)
                while self.schedule.left_over:
                    host, item, reason = self.schedule.left_over.popleft()
                    if isinstance(item, Request):
                        refuse(item, reason)
                    else:
                        wait_s = host.closed_until - clock() if host.closed_until is not None else None
                        item.set_exception(Failure(ErrorCode.DEFERRED, reason, wait_s))
                for task in [task for task in under_way if task.done()]:
                    under_way.remove(task)
                    task.result()  # what is raised here is not the data's fault
                if not under_way and not self.schedule.n_queued:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), self._pause_s(clock()))
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

    def _begun(self, turn: Turn[Item], work: Coroutine[Any, Any, object], leave: Leave) -> asyncio.Task[None]:
        async def doing() -> None:
            try:
                await work
            finally:
                self.give_back(leave)
                self._news.set()

        return asyncio.create_task(doing())

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

    def told(self, host: Host[Item]) -> datetime | None:
        """Until when a host is left alone, None for one that is not."""
        if host.closed_until is None:
            return None
        return datetime.now(UTC) + timedelta(seconds=host.closed_until - asyncio.get_running_loop().time())
