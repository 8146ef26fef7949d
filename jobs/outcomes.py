"""What becomes of a request: attempts, outcomes and the errors they stand for. Judges answers, opens no socket."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import aiohttp

from featurizers.probe import MediaFacts, probe
from jobs.addresses import BlockedAddress, Dialled
from jobs.packs import Body, Held
from jobs.sources import Sighting
from schemas.errors import RETRYABLE, Error, ErrorCode, error

RETRY_LATER = timedelta(hours=1)  # after a retryable error that the attempts of a run did not get over
MAX_RETRY_AFTER_S = 30 * 86400.0  # of what a host may ask for; more is taken as this
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TEXT_TYPES = ("text/", "application/xml", "application/json")
_KEPT_HEADERS = ("content_type", "etag", "last_modified", "x_robots_tag", "retry_after")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One document to fetch; `root` is the URI of the folder or archive that holds it, None over HTTP."""

    doc_id: str
    url: str  # what is asked for: the document's, or where another host's answer led
    host: str  # of that URL
    root: str | None = None
    held_as: str | None = None  # file, warc, tar or parquet; None over HTTP
    offset: int | None = None  # in the archive
    length: int | None = None
    priority: int = 0
    source: str = ""
    expects: str | None = None  # page or sitemap; None for a picture or video
    depth: int | None = None
    page_url: str | None = None
    # What is known of the document: what was had, and how it is told apart from what is newer.
    was_had: bool = False
    media_id: str | None = None
    final_url: str | None = None  # that it was had from, where that is not its own
    etag: str | None = None
    last_modified: str | None = None
    recrawl_s: float | None = None
    n_gone: int = 0
    n_attempts: int = 0  # of this run, on hosts that led here
    n_redirects: int = 0


@dataclass(frozen=True, kw_only=True)
class Recrawl:
    """When documents are fetched again: after a time that doubles while they stay and halves when they change."""

    first_s: float = 30 * 86400.0
    least_s: float = 86400.0
    most_s: float = 365 * 86400.0
    n_gone: int = 3  # final errors in a row, after which what was had is given up, and what is not there too

    def next_s(self, before_s: float | None, *, is_changed: bool) -> float:
        """The time to the next fetch, from the time before this one (None: this was the first)."""
        if before_s is None:
            return min(max(self.first_s, self.least_s), self.most_s)
        return min(max(before_s / 2 if is_changed else before_s * 2, self.least_s), self.most_s)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt, as a row of `fetches` has it."""

    started_at: datetime
    final_url: str | None = None
    http_status: int | None = None
    n_requests: int = 0
    bytes: int = 0
    ms: float = 0.0
    wait_ms: float = 0.0
    robots: str | None = None
    content_type: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    x_robots_tag: str | None = None
    retry_after: str | None = None
    error: Error | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one request: one of `held`, `found`, `error` and `is_unchanged` says it."""

    request: Request
    attempts: tuple[Attempt, ...]  # empty where the host was left alone
    held: Held | None
    facts: MediaFacts
    opted_out: bool
    error: Error | None
    next_fetch_at: datetime | None
    is_unchanged: bool = False  # the server says that what is known is what it has
    recrawl_s: float | None = None  # between this fetch and the next one planned
    n_gone: int = 0
    is_final: bool = False  # an error by which what was had before is given up
    found: tuple[Sighting, ...] | None = None  # what a page or sitemap leads to
    moved_to: str | None = None  # URL on a host that another task asks, where the last answer led

    @property
    def content(self) -> bytes | None:
        """The bytes, where they are in memory."""
        return self.held.content if self.held is not None else None


class Failure(Exception):
    """An error of one attempt, with the wait a host asked for."""

    def __init__(self, code: ErrorCode, detail: str, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.wait_s = code, plain(detail), wait_s


@dataclass
class Trace:
    """The facts of a running attempt, kept when it fails."""

    final_url: str | None = None
    http_status: int | None = None
    n_requests: int = 0
    bytes: int = 0
    ms: float = 0.0
    wait_ms: float = 0.0
    robots: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    opted_out: bool = False

    def attempt(self, started_at: datetime, failed: Error | None) -> Attempt:
        """The attempt with these facts."""
        return Attempt(
            started_at=started_at,
            final_url=self.final_url,
            http_status=self.http_status,
            n_requests=self.n_requests,
            bytes=self.bytes,
            ms=self.ms,
            wait_ms=self.wait_ms,
            robots=self.robots,
            error=failed,
            **{name: self.headers.get(name.replace("_", "-")) for name in _KEPT_HEADERS},
        )


def plain(text: str) -> str:
    """Text that can be stored: what a server sends need not be UTF-8, and aiohttp keeps such bytes as surrogates."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def judge_body(body: Body) -> tuple[MediaFacts, Error | None]:
    """What a body is by its own first bytes, and why it is no media if it is not."""
    if not body.size_bytes:
        return MediaFacts(), error(ErrorCode.EMPTY, "zero bytes")
    facts = probe(body.file)
    if facts.media_type is not None:
        return facts, None
    if facts.mime is not None and facts.mime.startswith(TEXT_TYPES):
        return facts, error(ErrorCode.NOT_MEDIA, f"{facts.mime}, {body.size_bytes} bytes")
    return facts, error(ErrorCode.UNSUPPORTED_FORMAT, f"{facts.mime or 'unknown format'}, {body.size_bytes} bytes")


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After header, a number or an HTTP date (RFC 9110, 10.2.3); None where it is neither."""
    if value is None:
        return None
    try:
        wait_s = float(value) if value.strip().isdigit() else (_http_date(value) - now).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, wait_s), MAX_RETRY_AFTER_S)


def _http_date(value: str) -> datetime:
    parsed = parsedate_to_datetime(value)
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def status_code(status: int) -> ErrorCode | None:
    """The error an HTTP status stands for, None for success and redirects that can be followed."""
    if (200 <= status < 300 and status != 206) or status in REDIRECTS:
        return None
    if status == 206:  # a part, though the whole was asked for
        return ErrorCode.HTTP_SERVER_ERROR
    named = {404: ErrorCode.NOT_FOUND, 410: ErrorCode.NOT_FOUND, 408: ErrorCode.TIMEOUT, 429: ErrorCode.RATE_LIMITED}
    if status in named:
        return named[status]
    if status < 400:
        return ErrorCode.REDIRECT_REFUSED
    return ErrorCode.HTTP_CLIENT_ERROR if status < 500 else ErrorCode.HTTP_SERVER_ERROR


def exception_failure(problem: BaseException, seen: Dialled, timeout_s: float) -> Failure:
    """The failure an exception of the HTTP client stands for; what is not known is a failed connection."""
    detail = str(problem) or type(problem).__name__
    inner = getattr(problem, "os_error", problem)
    if isinstance(inner, BlockedAddress) or (seen.refused and not seen.n_allowed):
        return Failure(ErrorCode.BLOCKED_ADDRESS, seen.refused[0] if seen.refused else detail)
    if isinstance(problem, aiohttp.ClientConnectorDNSError):
        return Failure(ErrorCode.DNS_FAILURE, detail)
    if isinstance(problem, aiohttp.ClientSSLError | ssl.SSLError):
        return Failure(ErrorCode.TLS_INVALID, detail)
    if isinstance(problem, TimeoutError):
        connecting = isinstance(problem, aiohttp.ConnectionTimeoutError)
        return Failure(ErrorCode.TIMEOUT, detail if connecting else f"no whole answer within {timeout_s:g} s")
    return Failure(ErrorCode.CONNECTION_FAILED, f"{type(problem).__name__}: {detail}")


def is_given_up(problem: Error, request: Request, recrawl: Recrawl, n_gone: int) -> bool:
    """Whether an error is the end of what was had of a document before, and of asking for it.

    A publisher's word is, at once. Any other final error may be one of the server's, if there was or may be something:
    it is believed when it has come a few times.
    """
    code = problem["code"]
    if code in RETRYABLE:
        return False
    may_be_back = request.root is None and (request.was_had or code == ErrorCode.NOT_FOUND)
    return code in (ErrorCode.OPTED_OUT, ErrorCode.TAKEN_DOWN) or not may_be_back or n_gone >= recrawl.n_gone


def next_fetch(
    problem: Error | None,
    request: Request,
    recrawl: Recrawl,
    *,
    recrawl_s: float | None,
    n_gone: int,
    is_final: bool,
    now: datetime,
) -> datetime | None:
    """Not before when a document is to be fetched again; None for not until asked, or until its file changes."""
    if problem is None:
        return None if request.root is not None else now + timedelta(seconds=recrawl_s or recrawl.first_s)
    code = problem["code"]
    if code == ErrorCode.DEFERRED:  # for no fault of its own: as soon as its host may be asked
        return now
    if code in RETRYABLE:  # of a file: by the next run that its source is listed in
        return now + RETRY_LATER if request.root is None else None
    if not is_final:
        return now + timedelta(seconds=recrawl.least_s * 2 ** (n_gone - 1))
    # A robots.txt may come to allow it.
    return now + timedelta(seconds=recrawl.most_s) if code == ErrorCode.ROBOTS_DISALLOWED else None


def status_failure(response: aiohttp.ClientResponse) -> Failure:
    code = status_code(response.status) or ErrorCode.CONNECTION_FAILED
    wait_s = retry_after_s(response.headers.get("retry-after"), datetime.now(UTC))
    return Failure(code, f"HTTP {response.status} {response.reason or ''}", wait_s)


def finished(
    request: Request,
    attempts: list[Attempt],
    problem: Error | None,
    *,
    recrawl: Recrawl = Recrawl(),
    held: Held | None = None,
    facts: MediaFacts | None = None,
    told: datetime | None = None,
    opted_out: bool = False,
    is_unchanged: bool = False,
    found: tuple[Sighting, ...] | None = None,
    moved_to: str | None = None,
) -> Outcome:
    """The outcome of a request after its last attempt; `told` is when its host said that it may be asked again."""
    now = datetime.now(UTC)
    n_gone = 0 if problem is None else request.n_gone + (problem["code"] not in RETRYABLE)
    is_final = problem is not None and is_given_up(problem, request, recrawl, n_gone)
    recrawl_s = request.recrawl_s
    if problem is None:
        is_changed = not is_unchanged and (held is None or held.media_id != request.media_id)
        last = attempts[-1] if attempts else None
        can_tell = found is None or last is None or last.etag is not None or last.last_modified is not None
        if can_tell or recrawl_s is None:  # a page that carries neither is another one each time it is made
            recrawl_s = recrawl.next_s(recrawl_s, is_changed=is_changed)
    at = next_fetch(problem, request, recrawl, recrawl_s=recrawl_s, n_gone=n_gone, is_final=is_final, now=now)
    return Outcome(
        request=request,
        attempts=tuple(attempts),
        held=held,
        facts=facts or MediaFacts(),
        opted_out=opted_out,
        error=problem,
        next_fetch_at=max(at, told) if at is not None and told is not None else at,
        is_unchanged=is_unchanged,
        recrawl_s=recrawl_s,
        n_gone=n_gone,
        is_final=is_final,
        found=found,
        moved_to=moved_to,
    )


def lost(request: Request, problem: Exception) -> Outcome:
    failed = error(ErrorCode.CONNECTION_FAILED, plain(f"internal: {type(problem).__name__}: {problem}"))
    return finished(request, [Attempt(started_at=datetime.now(UTC), error=failed)], failed)
