"""The robots.txt rules of origins, each fetched once and kept with what is known of its host. Knows no document."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp

from jobs.exchange import Refuse, location
from jobs.hosts import HostState, is_fresh
from jobs.outcomes import REDIRECTS, Failure, Trace, status_failure
from jobs.packs import Body
from jobs.robots import ABSENT, MAX_ROBOTS_BYTES, MAX_ROBOTS_REDIRECTS, Robots, parse_robots, robots_of
from jobs.turns import Leave, Turns
from jobs.urls import InvalidUrl, Url, canonical_url
from schemas.errors import RETRYABLE, ErrorCode

ACCEPT = {"Accept": "text/plain, */*;q=0.1"}  # a server that negotiates would answer that it has no picture of it
Get = Callable[[Url, Trace, Leave, int, Refuse, dict[str, str]], Coroutine[Any, Any, Body]]


def backoff_s(first_s: float, n_tried: int) -> float:
    """The pause before another attempt: doubled for each, times 0.5 to 1.5 at random."""
    return float(first_s * 2 ** (n_tried - 1) * random.uniform(0.5, 1.5))


@dataclass
class Rules:
    """The rules of all origins that one call of the fetcher asks."""

    turns: Turns
    get: Get
    max_attempts: int
    backoff_s: float
    kept: dict[str, HostState] = field(default_factory=dict)  # what is known of robots.txt, by host
    _of: dict[str, asyncio.Future[Robots | Failure]] = field(default_factory=dict)  # by origin
    _unread: dict[str, str | None] = field(default_factory=dict)  # robots.txt of an earlier run, by origin

    def restore(self, states: Iterable[HostState]) -> None:
        """Go on with rules that an earlier run had, where they may still be gone by; they are read when asked for."""
        wall = datetime.now(UTC)
        for state in states:
            if is_fresh(state, wall) and state.robots_origin is not None:
                self.kept[state.host] = state
                self._unread[state.robots_origin] = state.robots

    def are_known(self, url: Url) -> bool:
        """Whether the rules of a URL's origin are there, or asked for."""
        if url.origin in self._unread:
            self._of[url.origin] = asyncio.get_running_loop().create_future()
            self._of[url.origin].set_result(robots_of(self._unread.pop(url.origin)))
        return url.origin in self._of

    def sitemaps(self, url: Url) -> tuple[str, ...]:
        """The sitemaps that the robots.txt of a URL's origin names, or where most sites have theirs."""
        known = self._of.get(url.origin)
        rules = known.result() if known is not None and known.done() and not known.cancelled() else None
        named = rules.sitemaps if isinstance(rules, Robots) else ()
        return named or (canonical_url("/sitemap.xml", url.href).href,)

    def ask(self, url: Url, leave: Leave) -> None:
        """Begin to ask for the rules of a URL's origin with this leave; until then its host has no other turn."""
        self.turns.schedule.gate(self.turns.schedule.host(url.host))
        self._of[url.origin] = asyncio.create_task(self._fetched(url, leave))

    async def asked_for(self, url: Url) -> Robots | Failure:
        """The rules of an origin that are asked for; a failure where they cannot be had, which forbids all."""
        known = self._of[url.origin]
        return known.result() if known.done() else await asyncio.shield(known)

    async def of(self, url: Url, leave: Leave) -> Robots | Failure:
        """The rules of an origin, asked for if they are not yet."""
        if not self.are_known(url):
            self.ask(url, leave)
        elif not self._of[url.origin].done():
            self.turns.give_back(leave)  # who asks for them may need this very turn
        return await self.asked_for(url)

    async def cancel(self) -> None:
        """End what is under way."""
        for fetching in self._of.values():
            fetching.cancel()
        await asyncio.gather(*self._of.values(), return_exceptions=True)

    async def _fetched(self, of: Url, leave: Leave) -> Robots | Failure:
        """RFC 9309 section 2.3.1: 4xx means no rules, 5xx and no answer forbid all; 429 is taken as no answer."""
        failure, found = Failure(ErrorCode.CONNECTION_FAILED, "not tried"), None
        try:
            for n_tried in range(self.max_attempts):
                if n_tried:
                    await asyncio.sleep(backoff_s(self.backoff_s, n_tried))
                try:
                    found = await self._asked(canonical_url("/robots.txt", of.href), leave)
                except Failure as e:
                    failure = Failure(e.code, f"robots.txt: {e.detail}", e.wait_s)
                    if e.code not in RETRYABLE or e.code == ErrorCode.DEFERRED:
                        break
                else:
                    self.kept[of.host] = HostState(
                        host=of.host,
                        robots=found.text,
                        robots_status="absent" if found.text is None else "found",
                        robots_origin=of.origin,
                        robots_at=datetime.now(UTC),
                        crawl_delay_s=found.crawl_delay_s or None,
                    )
                    return found
            return failure
        finally:
            self.turns.open_gate(of.host, crawl_delay_s=found.crawl_delay_s if found is not None else 0.0)

    async def _asked(self, url: Url, leave: Leave) -> Robots:
        def refuse(response: aiohttp.ClientResponse) -> Failure | None:
            if response.status < 200 or response.status in (206, 304):
                return Failure(ErrorCode.HTTP_SERVER_ERROR, f"HTTP {response.status}, which nobody asked for")
            return status_failure(response) if response.status >= 500 or response.status == 429 else None

        # Across hosts too, as the RFC asks: the one exchange with a host that another task may be asking.
        for _ in range(MAX_ROBOTS_REDIRECTS + 1):
            trace = Trace()
            with await self.get(url, trace, leave, MAX_ROBOTS_BYTES, refuse, ACCEPT) as body:
                text = body.read()[: MAX_ROBOTS_BYTES + 1]
            if trace.http_status in REDIRECTS:
                try:
                    url = location(trace, url)
                except InvalidUrl:
                    return ABSENT
            else:
                return parse_robots(text) if 200 <= (trace.http_status or 0) < 300 else ABSENT
        return ABSENT
