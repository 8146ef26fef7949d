"""Fetches documents politely: one outcome for each request. Knows HTTP and files, no Spark and no table."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import aiohttp
import yarl

from jobs.addresses import Dialled, Exemptions, checked_socket, dialled
from jobs.outcomes import (
    REDIRECTS,
    RETRY_LATER,
    Attempt,
    Failure,
    Outcome,
    Request,
    Trace,
    exception_failure,
    finished,
    judge_body,
    lost,
    plain,
    read_file,
    status_code,
    status_failure,
)
from jobs.packs import Body, Packs, StorageFailed
from jobs.politeness import Host, TooLong, asked_to_wait, no_answer, turn
from jobs.robots import ABSENT, AGENT, MAX_ROBOTS_BYTES, MAX_ROBOTS_REDIRECTS, Robots, opts_out, parse_robots
from jobs.urls import InvalidUrl, Url, canonical_url
from schemas.errors import RETRYABLE, ErrorCode, error

LARGE_BYTES = 4 << 20  # a body above waits for one of N_LARGE places, which bounds memory and spool of a task
LEAST_BYTES_PER_S = 1 << 20  # of such a body: it may take so much longer than the time of a request
N_LARGE = 2
HELD_BYTES = 128 << 20  # of bodies that were read and not yet taken: above, nothing more is dialled
DRAINED_BYTES = 16 << 10  # an unwanted body up to this is read, so that its connection can be used again
N_FILE_READERS = 4  # hides the latency of an object store
Refuse = Callable[[aiohttp.ClientResponse], Failure | None]  # why not to read a body, from status and headers
NO_ANSWER = frozenset({ErrorCode.DNS_FAILURE, ErrorCode.CONNECTION_FAILED, ErrorCode.TIMEOUT})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to fetch; the fields of the configuration's section `crawl`, checked."""

    contact: str | None  # None: nothing but the exemptions may be dialled
    exemptions: Exemptions
    max_connections_per_host: int
    delay_s: float
    connect_timeout_s: float
    timeout_s: float
    max_bytes: int
    max_redirects: int
    max_attempts: int
    backoff_s: float = 1.0  # before the second attempt; doubled for each further one, times 0.5 to 1.5 at random
    packs: Packs | None = None  # where large bodies go; None: all are kept in memory
    max_wait_s: float = 60.0  # a host that asks for more (Retry-After, Crawl-delay) has its documents deferred
    n_connections: int = 64  # of one call of `fetch`, over all hosts


def _when(deadline: asyncio.Timeout) -> float:
    when = deadline.when()
    assert when is not None
    return when


class _Crawler:
    """The state of one call of `fetch`: hosts, robots.txt rules and the memory that bodies hold."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self.settings, self.session = settings, session
        self.hosts: dict[str, Host] = {}
        self.robots: dict[str, asyncio.Task[Robots | Failure]] = {}
        self.large = asyncio.Semaphore(N_LARGE)
        self.connections = asyncio.Semaphore(settings.n_connections)
        self.room = asyncio.Event()
        self.room.set()
        self.held_bytes = 0

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            slots = asyncio.Semaphore(self.settings.max_connections_per_host)
            self.hosts[name] = Host(slots=slots, lock=asyncio.Lock(), delay_s=self.settings.delay_s)
        return self.hosts[name]

    def hold(self, n_bytes: int) -> None:
        self.held_bytes += n_bytes
        if self.held_bytes > HELD_BYTES:
            self.room.clear()
        else:
            self.room.set()

    async def get(self, url: Url, trace: Trace, *, max_bytes: int, refuse: Refuse) -> Body:
        """The body of one answer, redirects not followed; its facts go to `trace`. Raises Failure.

        `refuse` looks at status and headers before the body is read. More than `max_bytes` may come back. The caller
        closes the body.
        """
        host = self.host(url.host)
        await self.room.wait()
        try:
            async with host.slots, turn(host, max_wait_s=self.settings.max_wait_s) as done, self.connections:
                return await self._exchange(url, trace, done, max_bytes, refuse)
        except TooLong as e:
            raise Failure(ErrorCode.DEFERRED, str(e), e.wait_s) from e

    async def _exchange(self, url: Url, trace: Trace, done: Callable[[], None], max_bytes: int, refuse: Refuse) -> Body:
        trace.final_url, trace.http_status, trace.headers = url.href, None, {}  # of this hop, not of the one before
        seen = Dialled()
        dialled.set(seen)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.timeout_s) as deadline:
                response = await self.session.get(yarl.URL(url.href, encoded=True), allow_redirects=False)
                done()
                async with response:
                    return await self._answer(response, url, trace, deadline, max_bytes, refuse)
        except (Failure, StorageFailed):
            raise
        except Exception as e:
            raise exception_failure(e, seen, self.settings.timeout_s) from e
        finally:
            trace.ms += (time.perf_counter() - started) * 1e3

    async def _answer(
        self,
        response: aiohttp.ClientResponse,
        url: Url,
        trace: Trace,
        deadline: asyncio.Timeout,
        max_bytes: int,
        refuse: Refuse,
    ) -> Body:
        trace.http_status = response.status
        trace.headers = {name.lower(): plain(", ".join(response.headers.getall(name))) for name in response.headers}
        refused = refuse(response)
        if refused is None and response.status not in REDIRECTS:
            return await self._read(response, trace, deadline, max_bytes)
        if response.content_length is not None and response.content_length <= DRAINED_BYTES:
            await response.read()
        else:
            response.close()
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
        await self.large.acquire()
        body.closing.callback(self.large.release)
        deadline.reschedule(now() + left_s)

    # -- robots.txt -----------------------------------------------------------------------------------------------

    async def rules(self, url: Url) -> Robots | Failure:
        """The robots.txt rules of a URL's origin, fetched once; a failure where they cannot be had."""
        if url.origin not in self.robots:
            self.robots[url.origin] = asyncio.create_task(self._fetch_robots(url))
        return await asyncio.shield(self.robots[url.origin])

    async def _fetch_robots(self, of: Url) -> Robots | Failure:
        """RFC 9309 section 2.3.1: 4xx means no rules, 5xx and no answer forbid all; 429 is taken as no answer."""
        failure = Failure(ErrorCode.CONNECTION_FAILED, "not tried")
        for n_tried in range(self.settings.max_attempts):
            if n_tried:
                await asyncio.sleep(self.backoff_s(n_tried))
            try:
                found = await self._robots_at(canonical_url("/robots.txt", of.href))
            except Failure as e:
                failure = Failure(e.code, f"robots.txt: {e.detail}", e.wait_s)
                if e.code not in RETRYABLE:
                    break
            else:
                self.host(of.host).delay_s = max(self.host(of.host).delay_s, found.crawl_delay_s)
                return found
        return failure

    async def _robots_at(self, url: Url) -> Robots:
        def refuse(response: aiohttp.ClientResponse) -> Failure | None:
            return status_failure(response) if response.status >= 500 or response.status == 429 else None

        for _ in range(MAX_ROBOTS_REDIRECTS + 1):
            trace = Trace()
            with await self.get(url, trace, max_bytes=MAX_ROBOTS_BYTES, refuse=refuse) as body:
                text = body.read()[: MAX_ROBOTS_BYTES + 1]
            if trace.http_status in REDIRECTS:
                try:
                    url = canonical_url(trace.headers.get("location", ""), url.href)
                except InvalidUrl:
                    return ABSENT
            else:
                return parse_robots(text) if 200 <= (trace.http_status or 0) < 300 else ABSENT
        return ABSENT

    # -- one document ---------------------------------------------------------------------------------------------

    def backoff_s(self, n_tried: int) -> float:
        return float(self.settings.backoff_s * 2 ** (n_tried - 1) * random.uniform(0.5, 1.5))

    async def body(self, url: Url, trace: Trace) -> Body:
        """The bytes a URL leads to, each hop allowed by its own robots.txt. Raises Failure, StorageFailed."""

        def refuse(response: aiohttp.ClientResponse) -> Failure | None:
            if status_code(response.status) is not None:
                return status_failure(response)
            header = opts_out(response.headers.getall("x-robots-tag", []), response.headers.get("tdm-reservation"))
            if header is not None:
                trace.opted_out = True
                return Failure(ErrorCode.OPTED_OUT, header)
            if (response.content_length or 0) > self.settings.max_bytes and response.status not in REDIRECTS:
                return self._too_large(f"Content-Length {response.content_length}")
            return None

        for _ in range(self.settings.max_redirects + 1):
            rules = await self.rules(url)
            if isinstance(rules, Failure):
                trace.robots = "unreachable"
                raise rules
            if not rules.allows(url.href):
                trace.robots = "disallowed"
                raise Failure(ErrorCode.ROBOTS_DISALLOWED, f"robots.txt of {url.origin}")
            trace.robots = rules.decision
            body = await self.get(url, trace, max_bytes=self.settings.max_bytes, refuse=refuse)
            if trace.http_status not in REDIRECTS:
                if body.size_bytes > self.settings.max_bytes:
                    body.close()
                    raise self._too_large("the body")
                return body
            try:
                url = canonical_url(trace.headers.get("location", ""), url.href)
            except InvalidUrl as e:
                raise Failure(ErrorCode.REDIRECT_REFUSED, str(e)) from e
        raise Failure(ErrorCode.REDIRECT_REFUSED, f"more than {self.settings.max_redirects} redirects")

    def _too_large(self, what: str) -> Failure:
        return Failure(ErrorCode.TOO_LARGE, f"{what} exceeds {self.settings.max_bytes} bytes")

    async def document(self, request: Request) -> Outcome:
        """The outcome of one request over HTTP, with as many attempts as its errors are worth."""
        attempts: list[Attempt] = []
        host, told = self.host(request.host), None
        while len(attempts) < self.settings.max_attempts and host.closed_until is None:
            if attempts:
                await asyncio.sleep(self.backoff_s(len(attempts)))
            trace, started_at = Trace(), datetime.now(UTC)
            try:
                body = await self.body(canonical_url(request.url), trace)
            except Failure as e:
                told = datetime.now(UTC) + timedelta(seconds=e.wait_s) if e.wait_s is not None else told
                failed = error(e.code, e.detail)
                if e.code == ErrorCode.DEFERRED and trace.http_status is None:  # nothing was asked of the host
                    return finished(request, attempts, attempts[-1].error if attempts else failed, told=told)
                attempts.append(trace.attempt(started_at, failed))
                self._note(e, request, trace, len(attempts))
                if e.code not in RETRYABLE or trace.robots == "unreachable":
                    return finished(request, attempts, failed, told=told, opted_out=trace.opted_out)
            else:
                host.n_failures = 0
                with body:
                    facts, unusable = judge_body(body)
                    attempts.append(trace.attempt(started_at, unusable))
                    held = None
                    if unusable is None:  # a large body is copied, which other documents do not wait for
                        held = await asyncio.to_thread(body.held) if body.is_large else body.held()
                return finished(request, attempts, unusable, held=held, facts=facts)
        left_alone = error(ErrorCode.DEFERRED, f"the host is left alone until {host.closed_until}: {host.reason}")
        last = attempts[-1].error if attempts else left_alone
        return finished(request, attempts, last, told=host.closed_until or told)

    def _note(self, failure: Failure, request: Request, trace: Trace, n_tried: int) -> None:
        """Tell the host that failed, which a redirect may have changed, what happened."""
        host = self.host(canonical_url(trace.final_url or request.url).host)
        if trace.http_status is not None:
            host.n_failures = 0
        elif failure.code in NO_ANSWER and trace.robots != "unreachable":
            no_answer(host, RETRY_LATER)
        if trace.http_status in (429, 503):
            wait_s = failure.wait_s if failure.wait_s is not None else self.backoff_s(n_tried)
            asked_to_wait(host, wait_s, max_wait_s=self.settings.max_wait_s)


async def fetch_all(requests: Iterable[Request], settings: Settings) -> AsyncGenerator[Outcome]:
    """One outcome for each request, as they come; requests of one host in their order. Raises nothing for the data.

    All requests of a host must be in one call, which keeps to the host's limits by itself.
    """
    queues: dict[str, deque[Request]] = defaultdict(deque)
    for request in requests:
        queues["" if request.root is not None else request.host].append(request)
    n_left = sum(map(len, queues.values()))
    outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()  # bounded by HELD_BYTES
    connector = aiohttp.TCPConnector(
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
        headers={"User-Agent": agent, "Accept": "image/*, video/*", "Accept-Encoding": "identity"},
    ) as session:
        # aiohttp would ask again by itself after a lost connection: unseen in the attempts, and without the delay.
        session._retry_connection = False
        crawler = _Crawler(settings, session)

        async def work(queue: deque[Request]) -> None:
            while queue:
                request = queue.popleft()
                try:
                    if request.root is None:
                        outcome = await crawler.document(request)
                    else:
                        await crawler.room.wait()
                        outcome = await asyncio.to_thread(
                            read_file, request, max_bytes=settings.max_bytes, packs=settings.packs
                        )
                except StorageFailed:  # ours, not the data's: the task fails and is tried again
                    raise
                except Exception as e:
                    outcome = lost(request, e)
                crawler.hold(len(outcome.content or b""))
                outcomes.put_nowait(outcome)

        async def work_all() -> None:
            n_workers = {host: settings.max_connections_per_host if host else N_FILE_READERS for host in queues}
            workers = [work(queue) for host, queue in queues.items() for _ in range(min(n_workers[host], len(queue)))]
            try:
                await asyncio.gather(*workers)
            finally:
                outcomes.put_nowait(None)

        working = asyncio.create_task(work_all())
        try:
            while (outcome := await outcomes.get()) is not None:
                crawler.hold(-len(outcome.content or b""))
                n_left -= 1
                yield outcome
            await working
        finally:
            for task in (working, *crawler.robots.values()):
                task.cancel()
            await asyncio.gather(working, *crawler.robots.values(), return_exceptions=True)
    if n_left:
        raise RuntimeError(f"{n_left} requests have no outcome")


def fetch(requests: Iterable[Request], settings: Settings) -> Iterator[Outcome]:
    """`fetch_all` for callers without an event loop; it stands still while the caller keeps an outcome."""

    async def following(outcomes: AsyncGenerator[Outcome]) -> Outcome | None:
        return await anext(outcomes, None)

    outcomes = fetch_all(requests, settings)
    with asyncio.Runner() as runner:
        try:
            while (outcome := runner.run(following(outcomes))) is not None:
                yield outcome
        finally:
            runner.run(outcomes.aclose())
