"""Fetches documents politely: one outcome for each request. Knows HTTP and files, no Spark and no table."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict, deque
from collections.abc import Coroutine, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import aiohttp

from jobs.exchange import Exchanges, Refuse, location, opened_session, refused_literal
from jobs.fetch_settings import Settings
from jobs.files import read_all
from jobs.handover import Handover, handed_over
from jobs.hosts import Counted, HostState, restore, state_of
from jobs.outcomes import (
    REDIRECTS,
    Attempt,
    Failure,
    Outcome,
    Request,
    Trace,
    finished,
    judge_body,
    lost,
    status_code,
    status_failure,
)
from jobs.packs import Body, StorageFailed
from jobs.robots import opts_out
from jobs.rules import Rules, backoff_s
from jobs.schedule import Host, Manners, Schedule
from jobs.sites import MAX_BYTES, Answer, held_bytes, is_text, leads_to
from jobs.sources import Sighting
from jobs.turns import Item, Leave, Turns
from jobs.urls import InvalidUrl, Url, canonical_url, doc_id, registrable
from schemas.errors import RETRYABLE, ErrorCode, error

HELD_BYTES = 128 << 20  # of bodies that were read and not yet taken: above, no turn is given
PAGE_TYPES = "text/html, application/xhtml+xml, application/xml, */*;q=0.1"
BAD_GATEWAY = frozenset({502, 504, *range(520, 530)})  # there is nobody behind what answers (520 to 529: Cloudflare's)
NO_ANSWER = frozenset({ErrorCode.DNS_FAILURE, ErrorCode.CONNECTION_FAILED, ErrorCode.TIMEOUT})


class _Moved(Exception):
    """An answer leads to a host that another task asks."""

    def __init__(self, url: Url) -> None:
        self.url = url


class _Unchanged(Exception):
    """The server says that what is known is what it has."""


def held_by(outcome: Outcome) -> int:
    """The memory that an outcome takes, about, in bytes."""
    return len(outcome.content or b"") + sum(map(held_bytes, outcome.found or ()))


def too_large(what: str, max_bytes: int) -> Failure:
    return Failure(ErrorCode.TOO_LARGE, f"{what} exceeds {max_bytes} bytes")


class _Crawler:
    """The state of one call of `fetch`."""

    def __init__(
        self, settings: Settings, session: aiohttp.ClientSession, handover: Handover[Outcome | HostState]
    ) -> None:
        self.settings, self.exchanges = settings, Exchanges(settings, session)
        manners = Manners(
            max_connections=settings.max_connections_per_host,
            delay_s=settings.delay_s,
            rate_per_minute=settings.rate_per_minute,
            burst=settings.burst,
        )
        now = asyncio.get_running_loop().time()
        self.schedule: Schedule[Item] = Schedule(
            manners,
            max_open=settings.n_connections,
            deadline=now + settings.round_s,
            first_at=now + settings.delay_s if settings.is_resumed else -math.inf,
        )
        self.handover, self.n_put = handover, 0
        self.turns = Turns(self.schedule, handover)
        self.rules = Rules(self.turns, self.get, settings.max_attempts, settings.backoff_s)
        self.counted: defaultdict[str, Counted] = defaultdict(Counted)
        self.reading = asyncio.Lock()  # a page or sitemap may take hundreds of megabytes while it is read
        self.domains: set[str] = set()  # that this call owns; a robots.txt may lead to others

    def put(self, outcome: Outcome) -> None:
        """Give an outcome to the caller; what it holds is counted until it is done with."""
        self.n_put += 1
        self.handover.put(outcome, held_by(outcome))

    # -- over HTTP ------------------------------------------------------------------------------------------------

    def refuse(self, request: Request, reason: str) -> None:
        """A request that gets no turn any more."""
        told = self.turns.told(self.schedule.host(request.host))
        self.put(finished(request, [], error(ErrorCode.DEFERRED, reason), told=told))

    def begin(self, request: Request, leave: Leave) -> Coroutine[Any, Any, object]:
        """The work that the turn of a request is used for: the first of a host is for its robots.txt."""
        try:
            url = canonical_url(request.url)
        except InvalidUrl:
            return self._one(request, leave)
        if self.rules.are_known(url):
            return self._one(request, leave)
        self.rules.ask(url, leave)  # now: nobody else may begin to in between
        self.schedule.put_back(self.schedule.host(request.host), request)
        return self.rules.asked_for(url)

    async def _one(self, request: Request, leave: Leave) -> None:
        try:
            self.put(await self.document(request, leave))
        except StorageFailed:  # ours, not the data's: the task fails and is tried again
            raise
        except Exception as e:
            self.put(lost(request, e))

    async def get(
        self,
        url: Url,
        trace: Trace,
        leave: Leave,
        max_bytes: int,
        refuse: Refuse,
        headers: dict[str, str] | None = None,
    ) -> Body:
        """The body of one answer at the host's next turn; see `Exchanges.get`."""
        turn, counted, before_ms = await self.turns.turn(url.host, leave), self.counted[url.host], trace.ms
        trace.wait_ms += turn.waited_s * 1e3
        try:
            body = await self.exchanges.get(
                url,
                trace,
                max_bytes=max_bytes,
                refuse=refuse,
                answered=lambda: self.turns.answered(turn),
                headers=headers,
            )
        except Failure as e:
            counted.errors += 1
            self._note(turn.host, trace.http_status, e)
            raise
        else:
            self.schedule.worked(turn.host)
            return body
        finally:
            counted.busy_s += (trace.ms - before_ms) / 1e3
            counted.bytes += trace.bytes
            self.turns.over(turn)  # after what the host asked for is noted

    def _note(self, host: Host[Item], status: int | None, failure: Failure) -> None:
        """What the failure of an exchange means for the host."""
        now = asyncio.get_running_loop().time()
        if status in (429, 503):
            self.schedule.asked_to_wait(host, failure.wait_s, jitter=random.uniform(0.5, 1.5), now=now)
        elif failure.code in NO_ANSWER or status in BAD_GATEWAY:
            self.schedule.failed(host, now)
        elif status is not None:
            self.schedule.worked(host)

    async def body(self, request: Request, trace: Trace, leave: Leave) -> Body:
        """The bytes a URL leads to, each hop allowed by its own robots.txt.

        Raises Failure, StorageFailed, _Moved, _Unchanged.
        """
        told = (("If-None-Match", request.etag), ("If-Modified-Since", request.last_modified))
        known = {name: value for name, value in told if value and value.isprintable() and request.was_had}
        conditions: dict[str, str] = {}
        max_bytes = min(self.settings.max_bytes, MAX_BYTES.get(request.expects or "", self.settings.max_bytes))
        accept = {"Accept": PAGE_TYPES} if request.expects is not None else {}

        def refuse(response: aiohttp.ClientResponse) -> Failure | None:
            header = opts_out(
                response.headers.getall("x-robots-tag", []),
                response.headers.get("tdm-reservation"),
                self.settings.opt_outs,
            )
            if header is not None and response.status < 400:
                trace.opted_out = True
                return Failure(ErrorCode.OPTED_OUT, header)
            if response.status == 304 and conditions:
                return None
            if status_code(response.status) is not None:
                return status_failure(response)
            if (response.content_length or 0) > max_bytes and response.status not in REDIRECTS:
                return too_large(f"Content-Length {response.content_length}", max_bytes)
            return None

        try:
            url = canonical_url(request.url)
        except InvalidUrl as e:  # of documents that other code wrote
            raise Failure(ErrorCode.HTTP_CLIENT_ERROR, str(e)) from e
        for n_redirects in range(request.n_redirects, self.settings.max_redirects + 1):
            rules = await self.rules.of(url, leave)
            if isinstance(rules, Failure):
                trace.robots = "unreachable"
                raise rules
            if not rules.allows(url.href):
                trace.robots = "disallowed"
                raise Failure(ErrorCode.ROBOTS_DISALLOWED, f"robots.txt of {url.origin}")
            trace.robots = rules.decision
            # An ETag says nothing of what is at another URL.
            conditions = known if url.href == (request.final_url or request.url) else {}
            body = await self.get(url, trace, leave, max_bytes, refuse, conditions | accept)
            if trace.http_status == 304:
                body.close()
                raise _Unchanged
            if trace.http_status not in REDIRECTS:
                if body.size_bytes > max_bytes:
                    body.close()
                    raise too_large("the body", max_bytes)
                return body
            try:
                url = location(trace, url)
            except InvalidUrl as e:
                raise Failure(ErrorCode.REDIRECT_REFUSED, str(e)) from e
            if (reason := self.settings.taken_down.of_url(doc_id(url.href), url.host)) is not None:
                raise Failure(ErrorCode.TAKEN_DOWN, f"redirect to {url.href}: {reason}")
            if (reason := refused_literal(url, self.settings)) is not None:
                raise Failure(ErrorCode.BLOCKED_ADDRESS, reason)
            if registrable(url.host) != registrable(request.host) and n_redirects < self.settings.max_redirects:
                raise _Moved(url)
        raise Failure(ErrorCode.REDIRECT_REFUSED, f"more than {self.settings.max_redirects} redirects")

    async def document(self, request: Request, leave: Leave) -> Outcome:
        """The outcome of one request over HTTP, with as many attempts as its errors are worth."""
        attempts: list[Attempt] = []
        host, recrawl = self.schedule.host(request.host), self.settings.recrawl
        told: datetime | None = None
        while len(attempts) < self.settings.max_attempts and host.closed_until is None:
            if attempts:
                await asyncio.sleep(backoff_s(self.settings.backoff_s, len(attempts)))
            trace, started_at = Trace(), datetime.now(UTC)
            try:
                body = await self.body(request, trace, leave)
            except _Unchanged:
                attempts.append(trace.attempt(started_at, None))
                return finished(request, attempts, None, recrawl=recrawl, is_unchanged=True)
            except _Moved as e:
                moved = error(ErrorCode.DEFERRED, f"redirected to {e.url.href}")
                attempts.append(trace.attempt(started_at, None))
                return finished(request, attempts, moved, recrawl=recrawl, moved_to=e.url.href)
            except Failure as e:
                told = datetime.now(UTC) + timedelta(seconds=e.wait_s) if e.wait_s is not None else told
                failed = error(e.code, e.detail)
                if e.code == ErrorCode.DEFERRED:  # a host, this one or one that it led to, has no turn left
                    last = attempts[-1].error if attempts else failed
                    if trace.n_requests:
                        attempts.append(trace.attempt(started_at, failed))
                    return finished(request, attempts, last, recrawl=recrawl, told=told)
                attempts.append(trace.attempt(started_at, failed))
                if e.code not in RETRYABLE or trace.robots == "unreachable":
                    return finished(request, attempts, failed, recrawl=recrawl, told=told, opted_out=trace.opted_out)
            else:
                return await self._judged(request, attempts, trace, started_at, body)
        left_alone = error(ErrorCode.DEFERRED, f"the host is left alone: {host.reason}")
        last = attempts[-1].error if attempts else left_alone
        return finished(request, attempts, last, recrawl=recrawl, told=self.turns.told(host) or told)

    async def _judged(
        self, request: Request, attempts: list[Attempt], trace: Trace, started_at: datetime, body: Body
    ) -> Outcome:
        with body:
            facts, unusable = judge_body(body)
            held, found = None, None
            declared = trace.headers.get("content-type", "")
            if request.expects is not None and facts.media_type is None and is_text(facts.mime, declared):
                unusable = None
                async with self.reading:
                    found = await asyncio.to_thread(self._leads_to, request, trace, body)
            elif unusable is None and (reason := self.settings.taken_down.of_hash(body.media_id)) is not None:
                unusable = error(ErrorCode.TAKEN_DOWN, reason)
            attempts.append(trace.attempt(started_at, unusable))
            if unusable is None and found is None:  # a large body is copied, which other documents do not wait for
                held = await asyncio.to_thread(body.held) if body.is_large else body.held()
        recrawl = self.settings.recrawl
        return finished(request, attempts, unusable, recrawl=recrawl, held=held, facts=facts, found=found)

    def _leads_to(self, request: Request, trace: Trace, body: Body) -> tuple[Sighting, ...]:
        site, url = self.settings.sites.get(request.source), trace.final_url or request.url
        if site is None:  # its source is no longer configured
            return ()
        answer = Answer(
            body=body.read(),
            url=url,
            content_type=trace.headers.get("content-type"),
            sitemaps=self.rules.sitemaps(canonical_url(url)),
            doc_id=request.doc_id,
            asked=request.url,
            page_url=request.page_url,
        )
        return tuple(leads_to(site, request.expects, answer, depth=request.depth or 0, opt_outs=self.settings.opt_outs))

    # -- what is kept of hosts ------------------------------------------------------------------------------------

    def restore(self, states: Iterable[HostState]) -> None:
        """Go on with what earlier runs knew of hosts."""
        states, wall, now = list(states), datetime.now(UTC), asyncio.get_running_loop().time()
        for state in states:
            restore(self.schedule, state, wall=wall, now=now)
            if self.settings.is_resumed:
                self.schedule.rest(self.schedule.host(state.host), now)
        if not self.settings.asks_rules_again:
            self.rules.restore(states)

    def states(self) -> Iterator[HostState]:
        """What is to be kept of every host that was asked."""
        wall, now = datetime.now(UTC), asyncio.get_running_loop().time()
        for name, host in self.schedule.hosts.items():
            if host.requests and registrable(name) in self.domains:
                known = self.rules.kept.get(name, HostState(host=name))
                yield state_of(host, self.counted[name], known, wall=wall, now=now)


async def fetch_all(
    handover: Handover[Outcome | HostState],
    requests: Iterable[Request],
    settings: Settings,
    known: Iterable[HostState] = (),
) -> None:
    """`fetch` in an event loop: what comes goes to `handover`."""
    files: deque[Request] = deque()
    queues: defaultdict[str, list[Request]] = defaultdict(list)
    n_requests = 0
    for request in requests:
        n_requests += 1
        if request.root is None:
            queues[request.host].append(request)
        else:
            files.append(request)
    async with opened_session(settings) as session:
        crawler = _Crawler(settings, session, handover)
        crawler.restore(known)
        for name, queue in queues.items():
            crawler.domains.add(registrable(name))
            crawler.schedule.add(crawler.schedule.host(name), queue, priority=max(r.priority for r in queue))
        try:
            await asyncio.gather(
                crawler.turns.give_all(crawler.begin, crawler.refuse),
                read_all(files, settings, crawler.turns, crawler.put),
            )
        finally:
            await crawler.rules.cancel()
        if crawler.n_put != n_requests:
            raise RuntimeError(f"{crawler.n_put} of {n_requests} requests have an outcome")
        for state in crawler.states():
            handover.put(state)


def fetch(
    requests: Iterable[Request], settings: Settings, known: Iterable[HostState] = ()
) -> Iterator[Outcome | HostState]:
    """One outcome for each request, as they come, then what is to be kept of each host that was asked.

    Requests of one host go in their order. All requests of a registrable domain must be in one call, which keeps to
    the limits of its hosts by itself, from what is `known` of them. Raises nothing for the data. Hosts are asked in a
    thread of its own, also while the caller is busy, until HELD_BYTES wait for it.
    """
    return handed_over(partial(fetch_all, requests=requests, settings=settings, known=known), max_bytes=HELD_BYTES)
