"""One HTTP exchange: a request, an answer, its body under caps. Knows no politeness, no robots.txt and no retry."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import yarl
from aiohttp.connector import Connection

from jobs.addresses import Dialled, checked_socket, dialled, is_public
from jobs.fetch_settings import Settings
from jobs.outcomes import Failure, Trace, exception_failure, plain
from jobs.packs import Body, StorageFailed
from jobs.robots import AGENT
from jobs.urls import InvalidUrl, Url, canonical_url

LARGE_BYTES = 4 << 20  # a body above waits for one of N_LARGE places, which bounds memory and spool of a task
LEAST_BYTES_PER_S = 1 << 20  # of such a body: it may take so much longer than the time of a request
N_LARGE = 2
DRAINED_BYTES = 16 << 10  # an unwanted body up to this is read, so that its connection can be used again
DRAIN_S = 1.0  # for no longer than this: a new connection costs less
MEDIA_TYPES = "image/*, video/*"
Refuse = Callable[[aiohttp.ClientResponse], Failure | None]  # why not to read a body, from status and headers


class _Connector(aiohttp.TCPConnector):
    """Uses no connection again on which something came that nobody asked for: it would be the next answer."""

    async def _get(self, key: Any, traces: Any) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()
        return None


@asynccontextmanager
async def opened_session(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that dials what it may, keeps no cookie, follows no proxy and tries nothing again by itself."""
    connector = _Connector(
        limit=0,
        ttl_dns_cache=300,
        socket_factory=checked_socket(settings.exemptions, public=settings.contact is not None),
    )
    agent = AGENT if settings.contact is None else f"{AGENT} (+{settings.contact})"
    async with aiohttp.ClientSession(
        connector=connector,
        trust_env=False,  # a proxy of the environment would dial for us, unchecked
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
        headers={"User-Agent": agent, "Accept": MEDIA_TYPES, "Accept-Encoding": "identity"},
    ) as session:
        # aiohttp would ask again by itself after a lost connection: unseen in the attempts, and without the delay.
        session._retry_connection = False
        yield session


def refused_literal(url: Url, settings: Settings) -> str | None:
    """Why the host of a URL must not be dialled, where that is an address that can be told without asking anybody."""
    parsed = yarl.URL(url.href, encoded=True)
    try:
        address = ipaddress.ip_address(parsed.host or "")
    except ValueError:
        return None
    if (address, parsed.port) in settings.exemptions or (settings.contact is not None and is_public(address)):
        return None
    return f"{address} port {parsed.port} is not public"


def location(trace: Trace, url: Url) -> Url:
    """Where the redirect that a URL was answered with leads. Raises InvalidUrl."""
    there = trace.headers.get("location")
    if not there:  # an empty one would lead to the URL itself
        raise InvalidUrl(f"HTTP {trace.http_status} without Location")
    return canonical_url(there, url.href)


class Exchanges:
    """The exchanges of one session, which share the places for large bodies."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self.settings, self.session = settings, session
        self._large = asyncio.Semaphore(N_LARGE)

    async def get(
        self,
        url: Url,
        trace: Trace,
        *,
        max_bytes: int,
        refuse: Refuse,
        answered: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> Body:
        """The body of one answer, redirects not followed; its facts go to `trace`. Raises Failure, StorageFailed.

        `refuse` looks at status and headers before the body is read, and `answered` is told that they are there. More
        than `max_bytes` may come back, and nothing of an answer other than 2xx. The caller closes the body.
        """
        trace.final_url, trace.http_status, trace.headers = url.href, None, {}  # of this hop, not of the one before
        trace.n_requests += 1
        seen = Dialled()
        dialled.set(seen)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.timeout_s) as deadline:
                there = yarl.URL(url.href, encoded=True)
                response = await self.session.get(there, allow_redirects=False, headers=headers)
                answered()
                async with response:
                    return await self._answer(response, trace, deadline, max_bytes, refuse)
        except (Failure, StorageFailed):
            raise
        except Exception as e:
            raise exception_failure(e, seen, self.settings.timeout_s) from e
        finally:
            trace.ms += (time.perf_counter() - started) * 1e3

    async def _answer(
        self, response: aiohttp.ClientResponse, trace: Trace, deadline: asyncio.Timeout, max_bytes: int, refuse: Refuse
    ) -> Body:
        trace.http_status = response.status
        said = {name.lower(): dict.fromkeys(response.headers.getall(name)) for name in response.headers}
        trace.headers = {name: plain(", ".join(values)) for name, values in said.items()}
        refused = refuse(response)
        if refused is None and 200 <= response.status < 300:
            return await self._read(response, trace, deadline, max_bytes)
        deadline.reschedule(None)  # status and headers say all, however the rest arrives
        await _drain(response)
        if refused is not None:
            raise refused
        return Body()

    async def _read(
        self, response: aiohttp.ClientResponse, trace: Trace, deadline: asyncio.Timeout, max_bytes: int
    ) -> Body:
        body = Body(self.settings.packs)
        try:
            async for chunk in response.content.iter_any():
                was_large = body.size_bytes > LARGE_BYTES
                body.write(chunk)
                trace.bytes = min(body.size_bytes, max_bytes)
                if body.size_bytes > max_bytes:
                    response.close()
                    break
                if was_large:
                    deadline.reschedule(_when(deadline) + len(chunk) / LEAST_BYTES_PER_S)
                elif body.size_bytes > LARGE_BYTES:
                    await self._large_place(body, deadline)
            return body
        except BaseException:
            body.close()
            raise

    async def _large_place(self, body: Body, deadline: asyncio.Timeout) -> None:
        now = asyncio.get_running_loop().time
        left_s = _when(deadline) - now()
        deadline.reschedule(None)  # the wait is ours, not the server's
        await self._large.acquire()
        body.closing.callback(self._large.release)
        deadline.reschedule(now() + left_s)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read a body that nobody wants; a large, slow or broken one costs its connection, and no more."""
    n_bytes = 0
    with suppress(Exception):
        async with asyncio.timeout(DRAIN_S):
            # In chunks: all at once would be decompressed without a limit.
            while max(n_bytes, response.content_length or 0) <= DRAINED_BYTES:
                if not (chunk := await response.content.readany()):
                    break
                n_bytes += len(chunk)
    if not response.content.at_eof():
        response.close()


def _when(deadline: asyncio.Timeout) -> float:
    when = deadline.when()
    assert when is not None
    return when
