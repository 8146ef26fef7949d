"""The fetcher among hosts that mean it ill: every answer has one expected row, and harms neither us nor other hosts."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import math
import multiprocessing
import socket
import ssl
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import brotli
import psutil
import pytest

from jobs.addresses import parse_exemptions
from jobs.fetch import fetch, fetch_all
from jobs.fetch_settings import Settings
from jobs.handover import Handover
from jobs.hosts import HostState
from jobs.outcomes import Outcome, Request
from jobs.sites import Site as Bounds
from jobs.urls import canonical_url, doc_id
from tests.crawl_site import Answer, Asked, Site, answer, jpeg, reset, serving, serving_all, silent

CAP = 100_000  # bytes of a body
SETTINGS = Settings(
    contact=None,
    exemptions=frozenset(),
    max_connections_per_host=1,
    delay_s=0,
    connect_timeout_s=1,
    timeout_s=2,
    max_bytes=CAP,
    max_redirects=2,
    max_attempts=2,
    backoff_s=0.01,
    round_s=30,
    n_connections=32,  # few enough that a busy machine answers all of them in time
)
PICTURE = jpeg()
LATER = frozenset(  # what is asked for again by itself where nothing was had before
    {None, "not_found", "dns_failure", "connection_failed", "timeout", "rate_limited", "http_server_error", "deferred"}
    | {"robots_disallowed"}
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A host, what it is asked for and what is to become of that."""

    page: Answer  # at /a
    code: str | None = None
    attempts: int = 1
    status: int | None = 200
    robots: Answer = b""
    decision: str | None = "absent"
    more: Mapping[str, Answer] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)  # of the request
    then: str | None = None  # the error of a good picture of that host, asked for next
    n_robots: int = 1
    n_found: int | None = None
    later: bool | None = None  # asked for again by itself; None: as the error has it
    unchanged: bool = False

    @property
    def pages(self) -> dict[str, Answer]:
        pages: dict[str, Answer] = {"/a": self.page, "/good.jpg": answer(body=PICTURE), **self.more}
        return pages | ({"/robots.txt": self.robots} if self.robots else {})


def case(
    name: str, page: Answer, code: str | None = None, attempts: int = 1, status: int | None = 200, **more: Any
) -> Any:
    return pytest.param(Case(page=page, code=code, attempts=attempts, status=status, **more), id=name)


def robots(name: str, rules: Answer, code: str | None, decision: str, **more: Any) -> Any:
    """A case of a good picture behind a robots.txt."""
    then = more.pop("then", code)
    status = 200 if code is None else None
    given = Case(
        page=answer(body=PICTURE), code=code, status=status, robots=rules, decision=decision, then=then, **more
    )
    return pytest.param(given, id=name)


# -- answers that take more than bytes --------------------------------------------------------------------------------


def raw(*parts: bytes, ending: str = "close", pause_s: float = 0.0) -> Answer:
    """An answer in parts, with a pause before each further one; then the connection is closed, reset or kept."""

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> None:
        for n, part in enumerate(parts):
            if n and pause_s:
                await asyncio.sleep(pause_s)
            writer.write(part)
            await writer.drain()
        if ending == "reset":
            await asyncio.sleep(0.05)  # what was written is to arrive
            await reset(reader, writer, asked)
        elif ending == "close":
            raise ConnectionAbortedError
        elif ending == "silence":
            await silent(reader, writer, asked)

    return page


def endless(head: bytes, part: bytes, pause_s: float = 0.0) -> Answer:
    async def page(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return page


def soon(seconds: int, *then: bytes) -> list[Any]:
    async def page(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
        at = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        writer.write(answer("429 Slow down", Retry_After=at))
        await writer.drain()

    return [page, *then]


def head(status: str = "200 OK", *lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status.encode(), *lines, b"", b""])


def length(n: int) -> bytes:
    return f"Content-Length: {n}".encode()


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in chunks) + last


def squeezed(n_bytes: int) -> bytes:
    return gzip.compress(b"\0" * n_bytes)


OK = answer(body=PICTURE)
KNOWN = {
    "was_had": True,
    "media_id": "0" * 64,
    "etag": '"1"',
    "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT",
    "recrawl_s": 86400.0,
}
PAGE = {"expects": "page", "depth": 0, "source": "site"}
LINK = b'<p>\xe4</p><a href="/b">b</a>'
CHUNKED = b"Transfer-Encoding: chunked"
HTML = "text/html"

ANSWERS = [
    # -- bodies
    case("good", OK),
    case("zero-bytes", answer(), "empty"),
    case("no-content", answer("204 No Content"), "empty", status=204),
    case("reset-content", answer("205 Reset Content"), "empty", status=205),
    case("transformed", answer("203 Transformed", body=PICTURE), status=203),
    case(
        "part-not-asked-for",
        answer("206 Partial Content", body=PICTURE, Content_Range="bytes 0-9/99"),
        "http_server_error",
        2,
        206,
    ),
    case("picture-as-html", answer(body=PICTURE, Content_Type=HTML)),
    case("picture-as-unknown-charset", answer(body=PICTURE, Content_Type="image/jpeg; charset=\x01x")),
    case("html-as-picture", answer(body=b"<html>no</html>", Content_Type="image/jpeg"), "not_media"),
    case("json", answer(body=b'{"error": "no"}'), "not_media"),
    case("svg", answer(body=b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "unsupported_format"),
    case("pdf", answer(body=b"%PDF-1.7 ..."), "unsupported_format"),
    case("noise", answer(body=bytes(range(256)) * 3), "unsupported_format"),
    case("picture-that-is-a-script", answer(body=b"GIF89a/*\x01\x00\x01\x00\x00*/=1;alert(1)//")),
    case(
        "picture-of-3600-megapixels",
        answer(
            body=b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\2\0\0\0"
            + zlib.crc32(b"IHDR\0\0\xea\x60\0\0\xea\x60\x08\2\0\0\0").to_bytes(4, "big")
        ),
    ),
    case("too-large-as-it-says", answer(body=b"x" * (CAP + 1)), "too_large"),
    case("too-large-but-does-not-say", raw(head() + b"x" * (CAP + 1)), "too_large"),
    case("as-large-as-may-be", answer(body=PICTURE + b"x" * (CAP - len(PICTURE)))),
    case("endless", endless(head(), b"x" * 4096), "too_large"),
    case("endless-in-chunks", endless(head("200 OK", CHUNKED), b"1000\r\n" + b"x" * 4096 + b"\r\n"), "too_large"),
    case("slow-drip", endless(head("200 OK", length(100)), b"x", 0.1), "timeout", 2),
    case("drip-of-chunks", endless(head("200 OK", CHUNKED), b"1\r\nx\r\n", 0.1), "timeout", 2),
    case("drip-of-headers", endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.1), "timeout", 2, None),
    case("silent", silent, "timeout", 2, None),
    case("silent-after-the-head", raw(head("200 OK", length(99)), ending="silence"), "timeout", 2),
    # -- lengths that lie
    case("length-too-long", raw(head("200 OK", length(5000)) + PICTURE), "connection_failed", 2),
    case("length-too-short", raw(head("200 OK", length(300)) + PICTURE), "connection_failed", 2, None),
    case("length-none-and-body", raw(head("200 OK", length(0)) + PICTURE), "connection_failed", 2, None),
    case("answer-to-another-question", raw(OK + answer(body=b"<html>no</html>"), ending="keep")),
    case("length-huge", raw(head("200 OK", length(10**15)) + PICTURE), "too_large"),
    case("length-beyond-64-bits", raw(head("200 OK", length(10**30)) + PICTURE), "connection_failed", 2, None),
    case("length-negative", raw(head("200 OK", length(-1)) + PICTURE), "connection_failed", 2, None),
    case("length-no-number", raw(head("200 OK", b"Content-Length: 1_0") + PICTURE), "connection_failed", 2, None),
    case("lengths-that-differ", raw(head("200 OK", length(10), length(20)) + PICTURE), "connection_failed", 2, None),
    case("length-and-chunks", raw(head("200 OK", CHUNKED, length(3)) + chunked(PICTURE)), "connection_failed", 2, None),
    case("reset-in-mid-body", raw(head("200 OK", length(5000)) + PICTURE, ending="reset"), "connection_failed", 2),
    case("reset-in-mid-head", raw(b"HTTP/1.1 200 OK\r\nX:", ending="reset"), "connection_failed", 2, None),
    case("reset-at-once", reset, "connection_failed", 2, None),
    case("reset-once", [reset, OK], None, 2),
    case("closed-at-once", raw(b""), "connection_failed", 2, None),
    case("closed-after-each", raw(head("200 OK", length(len(PICTURE)), b"Connection: keep-alive") + PICTURE)),
    # -- chunks
    case("chunks", raw(head("200 OK", CHUNKED) + chunked(PICTURE[:99], PICTURE[99:]), ending="keep")),
    case("chunk-size-no-number", raw(head("200 OK", CHUNKED) + b"zz\r\n" + PICTURE), "connection_failed", 2, None),
    case("chunk-size-negative", raw(head("200 OK", CHUNKED) + b"-5\r\n" + PICTURE), "connection_failed", 2, None),
    case(
        "chunk-size-beyond-64-bits",
        raw(head("200 OK", CHUNKED) + b"f" * 17 + b"\r\n" + PICTURE),
        "connection_failed",
        2,
        None,
    ),
    case("chunk-size-too-short", raw(head("200 OK", CHUNKED) + b"5\r\n" + PICTURE), "connection_failed", 2, None),
    case("chunks-without-an-end", raw(head("200 OK", CHUNKED) + chunked(PICTURE, last=b"")), "connection_failed", 2),
    case("chunk-extension-endless", endless(head("200 OK", CHUNKED) + b"5;", b"x" * 4096), "timeout", 2),
    case(
        "trailers-endless",
        endless(head("200 OK", CHUNKED) + b"0\r\n" + b"X: y\r\n" * 1000, b"X: y\r\n"),
        "connection_failed",
        2,
        None,
    ),
    case(
        "chunks-of-gzip",
        raw(head("200 OK", b"Transfer-Encoding: gzip, chunked") + chunked(gzip.compress(PICTURE))),
        "unsupported_format",
    ),
    # -- bombs, and encodings that nobody asked for
    case("gzip", answer(body=gzip.compress(PICTURE), Content_Encoding="gzip")),
    case("gzip-bomb", answer(body=squeezed(20_000_000), Content_Encoding="gzip"), "too_large"),
    case("deflate-bomb", answer(body=zlib.compress(b"\0" * 20_000_000), Content_Encoding="deflate"), "too_large"),
    case(
        "brotli-bomb", answer(body=brotli.compress(b"\0" * 20_000_000, quality=1), Content_Encoding="br"), "too_large"
    ),
    case(
        "gzip-of-gzip-bomb",
        answer(body=gzip.compress(squeezed(20_000_000)), Content_Encoding="gzip, gzip"),
        "unsupported_format",
    ),
    case(
        "gzip-of-many-members", answer(body=gzip.compress(b"") * 3000, Content_Encoding="gzip"), "connection_failed", 2
    ),
    case("no-gzip-but-says-so", answer(body=PICTURE, Content_Encoding="gzip"), "connection_failed", 2),
    case("encoding-unknown", answer(body=PICTURE, Content_Encoding="rot13")),
    case(
        "not-found-with-a-bomb",
        answer("404 No", body=squeezed(10_000_000), Content_Encoding="gzip"),
        "not_found",
        1,
        404,
    ),
    case("not-found-with-no-gzip", answer("404 No", body=PICTURE, Content_Encoding="gzip"), "not_found", 1, 404),
    case("not-found-cut", raw(head("404 No", length(5000)) + b"x"), "not_found", 1, 404),
    case("not-found-silent", raw(head("404 No", length(5000)) + b"x", ending="silence"), "not_found", 1, 404),
    case("not-found-endless", endless(head("404 No"), b"x" * 4096), "not_found", 1, 404),
    # -- statuses
    case("forbidden", answer("403 Forbidden"), "http_client_error", 1, 403),
    case("gone", answer("410 Gone"), "not_found", 1, 410),
    case("who-are-you", answer("401 No", WWW_Authenticate='Basic realm="a"'), "http_client_error", 1, 401),
    case("legal-reasons", answer("451 No"), "http_client_error", 1, 451),
    case("status-999", answer("999 No"), "http_server_error", 2, 999),
    case("early-hints", raw(head("103 Early Hints", b"Link: </x>"), OK, ending="keep")),
    case("continue-not-asked-for", raw(head("100 Continue") * 3 + OK, ending="keep")),
    case("early-hints-endless", endless(b"", head("103 Early Hints")), "timeout", 2, None),
    case(
        "switching-protocols",
        raw(head("101 Switching", b"Upgrade: x", b"Connection: upgrade") + PICTURE),
        "redirect_refused",
        1,
        101,
    ),
    case("old-protocol", raw(b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE)),
    case("http-0.9", raw(PICTURE), "connection_failed", 2, None),
    case("http-0.9-text", raw(b"<html>hello</html>\r\n\r\n"), "connection_failed", 2, None),
    case("no-such-protocol", raw(b"HTTP/9.9 200 OK\r\n\r\n" + PICTURE), "connection_failed", 2, None),
    case("status-of-four-digits", raw(b"HTTP/1.1 2000 OK\r\n\r\n" + PICTURE), "connection_failed", 2, None),
    case("status-without-a-reason", raw(b"HTTP/1.1 200\r\n\r\n" + PICTURE)),
    case("line-feeds-alone", raw(head("200 OK", length(len(PICTURE))).replace(b"\r", b"") + PICTURE)),
    case(
        "carriage-returns-alone",
        raw(head("200 OK", length(len(PICTURE))).replace(b"\n", b"") + PICTURE),
        "connection_failed",
        2,
        None,
    ),
    case("500-then-good", [answer("500 No"), OK], None, 2),
    case("502-and-504", [answer("502 No"), answer("504 No"), OK], "http_server_error", 2, 504),
    case("503-then-reset", [answer("503 No", Retry_After="0"), reset, OK], "connection_failed", 2, None),
    # -- waits
    case("wait-a-second", [answer("429 Slow", Retry_After="1"), OK], None, 2),
    case("wait-until-a-date", soon(2, OK), None, 2),
    case("wait-until-a-date-past", soon(-9999, OK), None, 2),
    case("wait-two-hours", answer("429 Slow", Retry_After="7200"), "rate_limited", 1, 429, then="deferred"),
    case("wait-until-a-late-date", soon(7200), "rate_limited", 1, 429, then="deferred"),
    case("wait-for-ever", answer("503 Slow", Retry_After="9" * 999), "http_server_error", 1, 503, then="deferred"),
    case("wait-for-no-time", answer("429 Slow", Retry_After="0"), "rate_limited", 2, 429),
    case("wait-for-less-than-none", answer("429 Slow", Retry_After="-7200"), "rate_limited", 2, 429),
    case("wait-as-long-as-that", answer("429 Slow", Retry_After="\x01soon\t"), "rate_limited", 2, 429),
    case(
        "wait-in-two-lines",
        raw(head("429 Slow", b"Retry-After: 1\r\n 7200", length(0)), ending="keep"),
        "rate_limited",
        2,
        429,
    ),
    # -- redirects
    case("redirect", answer("302 Found", Location="/good.jpg")),
    case("redirect-to-nowhere", answer("302 Found"), "redirect_refused", 1, 302),
    case("redirect-to-itself", answer("302 Found", Location="/a"), "redirect_refused", 1, 302),
    case(
        "redirect-in-a-ring",
        answer("302 Found", Location="/b"),
        "redirect_refused",
        1,
        302,
        more={"/b": answer("307 There", Location="/a")},
    ),
    case("redirects-two", answer("302 Found", Location="/b"), more={"/b": answer("308 There", Location="/good.jpg")}),
    case(
        "redirects-three",
        answer("302 Found", Location="/b"),
        "redirect_refused",
        1,
        302,
        more={"/b": answer("302 Found", Location="/c"), "/c": answer("302 Found", Location="/good.jpg")},
    ),
    case("redirect-to-files", answer("302 Found", Location="file:///etc/passwd"), "redirect_refused", 1, 302),
    case("redirect-to-gopher", answer("302 Found", Location="gopher://127.0.0.1:70/_x"), "redirect_refused", 1, 302),
    case(
        "redirect-with-a-password", answer("302 Found", Location="http://u:p@127.0.0.1/x"), "redirect_refused", 1, 302
    ),
    case("redirect-to-ssh", answer("302 Found", Location="http://127.0.0.1:22/"), "redirect_refused", 1, 302),
    case(
        "redirect-to-metadata", answer("302 Found", Location="http://169.254.169.254/latest"), "blocked_address", 1, 302
    ),
    case("redirect-to-a-private-address", answer("302 Found", Location="http://10.0.0.1/x"), "blocked_address", 1, 302),
    case(
        "redirect-to-another-port", answer("302 Found", Location="http://127.0.0.1:65001/"), "blocked_address", 1, 302
    ),
    case(
        "redirect-to-a-mapped-address",
        answer("302 Found", Location="http://[::ffff:127.0.0.1]:65001/"),
        "blocked_address",
        1,
        302,
    ),
    case("redirect-to-a-number", answer("302 Found", Location="http://2130706433:65001/"), "blocked_address", 1, 302),
    case(
        "redirect-to-a-redirect-to-a-private-address",
        answer("302 Found", Location="/b"),
        "blocked_address",
        1,
        302,
        more={"/b": answer("302 Found", Location="//192.168.1.1/x")},
    ),
    case("redirect-with-a-body-cut", raw(head("302 Found", b"Location: /good.jpg", length(900)) + b"x")),
    case(
        "redirect-with-a-bomb",
        answer("302 Found", body=squeezed(10_000_000), Content_Encoding="gzip", Location="/good.jpg"),
    ),
    case("redirect-said-twice", raw(head("302 Found", *[b"Location: /good.jpg"] * 2, length(0)), ending="keep")),
    case("redirect-with-line-ends", answer("302 Found", Location="/good.jpg%0d%0aX-Evil:%201"), "not_found", 1, 404),
    case("redirect-with-a-tab-and-nul", answer("302 Found", Location="/go\tod.jpg")),
    case("redirect-in-a-refresh", answer(Refresh="0; url=http://10.0.0.1/"), "empty"),
    case("redirect-more-than-one-choice", answer("300 Choices", Location="/good.jpg"), "redirect_refused", 1, 300),
    case("use-proxy", answer("305 Use Proxy", Location="http://10.0.0.1:8080"), "redirect_refused", 1, 305),
    # -- headers
    case("header-of-100-KB", raw(head("200 OK", b"X: " + b"y" * 100_000) + PICTURE), "connection_failed", 2, None),
    case("headers-many", raw(head("200 OK", *[b"X: y"] * 5000) + PICTURE), "connection_failed", 2, None),
    case("headers-endless", endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000), "connection_failed", 2, None),
    case("header-endless", endless(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 4096), "connection_failed", 2, None),
    case("reason-endless", endless(b"HTTP/1.1 200 ", b"y" * 4096), "connection_failed", 2, None),
    case(
        "nul-in-a-header", raw(head("200 OK", b"X: a\0b", length(len(PICTURE))) + PICTURE), "connection_failed", 2, None
    ),
    case(
        "bytes-that-are-no-text",
        raw(head("200 OK", b'ETag: "\xff\xfe"', length(len(PICTURE))) + PICTURE, ending="keep"),
    ),
    case(
        "header-without-a-colon",
        raw(head("200 OK", b"nonsense", length(len(PICTURE))) + PICTURE),
        "connection_failed",
        2,
        None,
    ),
    case("cookie", answer(body=PICTURE, Set_Cookie="session=1; Path=/; Max-Age=9999999")),
    case("cookies-that-are-none", answer(body=PICTURE, Set_Cookie="\x02=;;\x7f; Expires=never; Domain=..")),
    case("links-and-names-that-are-none", answer(body=PICTURE, Link="<<;;rel", Content_Disposition="filename*=x''%ff")),
    case("date-that-is-none", answer(body=PICTURE, Date="yesterday", Last_Modified="9" * 99, Age="-1", Expires="\x01")),
    case("opted-out", answer(body=PICTURE, X_Robots_Tag="noai"), "opted_out"),
    case("opted-out-otherwise", answer(body=PICTURE, TDM_Reservation="1"), "opted_out"),
    case("opted-out-endless", endless(head("200 OK", b"X-Robots-Tag: noai"), b"x" * 4096), "opted_out"),
    case("opted-out-for-others", answer(body=PICTURE, X_Robots_Tag="otherbot: noai")),
    # -- what is the same
    case("same-not-asked-for", answer("304 Not Modified"), "redirect_refused", 1, 304),
    case("same-without-a-tag", answer("304 Not Modified"), status=304, known=KNOWN, unchanged=True),
    case("same-with-another-tag", answer("304 Not Modified", ETag='"2"'), status=304, known=KNOWN, unchanged=True),
    case("tag-that-changes", answer(body=PICTURE, ETag='"2"'), known=KNOWN),
    case("tag-with-line-ends", OK, known={**KNOWN, "etag": '"1"\r\nX-Evil: 1'}),
    case("tag-with-a-control", OK, known={**KNOWN, "etag": '"\x01"'}),
    case("tag-with-nul", OK, known={**KNOWN, "etag": '"\0"'}),
    case("date-with-line-ends", OK, known={**KNOWN, "last_modified": "Mon\r\nX-Evil: 1"}),
    case(
        "part-of-what-is-known", answer("206 Partial Content", body=PICTURE), "http_server_error", 2, 206, known=KNOWN
    ),
    case("precondition-failed", answer("412 No"), "http_client_error", 1, 412, known=KNOWN, later=True),
    # -- pages
    case("page", answer(body=LINK, Content_Type=HTML), known=PAGE, n_found=1),
    case("page-of-no-charset", answer(body=LINK, Content_Type="text/html; charset=klingon"), known=PAGE, n_found=1),
    case("page-of-a-wrong-charset", answer(body=LINK, Content_Type="text/html; charset=utf-16"), known=PAGE, n_found=0),
    case("page-of-nul-bytes", answer(body=b"<html>\0\0" + LINK, Content_Type=HTML), known=PAGE, n_found=1),
    case("page-that-is-a-picture", answer(body=PICTURE, Content_Type=HTML), known=PAGE),
    case(
        "page-that-is-a-bomb",
        answer(body=squeezed(20_000_000), Content_Type=HTML, Content_Encoding="gzip"),
        "too_large",
        known=PAGE,
    ),
    case("page-that-nests", answer(body=b"<div>" * 15_000 + LINK, Content_Type=HTML), known=PAGE, n_found=1),
    case("sitemap-that-is-a-bomb", answer(body=squeezed(80_000_000)), known={**PAGE, "expects": "sitemap"}, n_found=0),
]
NO = b"User-agent: *\nDisallow: /\n"
NO_A = b"User-agent: *\nDisallow: /a\n"


def redirects(n: int, last: Answer) -> dict[str, Answer]:
    """A robots.txt so many redirects before `last`."""
    return {f"/r{i}": answer("301 Moved", Location=f"/r{i + 1}") for i in range(1, n)} | {f"/r{n}": last}


TO_R = answer("301 Moved", Location="/r1")
ROBOTS = [
    robots("allows", answer(body=b"User-agent: *\nAllow: /\n"), None, "allowed"),
    robots("refuses", answer(body=NO), "robots_disallowed", "disallowed"),
    robots("refuses-this", answer(body=NO_A), "robots_disallowed", "disallowed", then=None),
    robots("empty", answer(), None, "allowed"),
    robots("no-content", answer("204 No Content"), None, "allowed"),
    robots("not-found", answer("404 Not Found", body=NO), None, "absent"),
    robots("unauthorized", answer("401 No", WWW_Authenticate="Basic"), None, "absent"),
    robots("forbidden", answer("403 No"), None, "absent"),
    robots("too-many-requests", answer("429 No", Retry_After="0"), "rate_limited", "unreachable", n_robots=2),
    robots("server-error", answer("500 No"), "http_server_error", "unreachable", n_robots=2),
    robots("unavailable", answer("503 No", Retry_After="0"), "http_server_error", "unreachable", n_robots=2),
    robots(
        "unavailable-once",
        [answer("503 No", Retry_After="0"), answer(body=NO)],
        "robots_disallowed",
        "disallowed",
        n_robots=2,
    ),
    robots(
        "unavailable-then-not-found", [answer("503 No", Retry_After="0"), answer("404 No")], None, "absent", n_robots=2
    ),
    robots("status-999", answer("999 No"), "http_server_error", "unreachable", n_robots=2),
    robots("unavailable-for-hours", answer("503 No", Retry_After="7200"), "deferred", "unreachable", attempts=0),
    robots(
        "crawl-delay-of-a-day", answer(body=b"User-agent: *\nCrawl-delay: 86400\n"), "deferred", "allowed", attempts=0
    ),
    robots(
        "a-part", answer("206 Partial Content", body=b"User-agent: *\n"), "http_server_error", "unreachable", n_robots=2
    ),
    robots("same-not-asked-for", answer("304 Not Modified"), "http_server_error", "unreachable", n_robots=2),
    robots("silent", silent, "timeout", "unreachable", n_robots=2),
    robots(
        "silent-in-mid-body",
        raw(head("200 OK", length(900)) + NO, ending="silence"),
        "timeout",
        "unreachable",
        n_robots=2,
    ),
    robots("drip", endless(head("200 OK", length(900)), b"#", 0.1), "timeout", "unreachable", n_robots=2),
    robots("reset", reset, "connection_failed", "unreachable", n_robots=2),
    robots(
        "reset-in-mid-body",
        raw(head("200 OK", length(900)) + b"User", ending="reset"),
        "connection_failed",
        "unreachable",
        n_robots=2,
    ),
    robots(
        "length-too-long", raw(head("200 OK", length(900)) + b"User"), "connection_failed", "unreachable", n_robots=2
    ),
    robots("http-0.9", raw(NO), "connection_failed", "unreachable", n_robots=2),
    robots("not-found-cut", raw(head("404 No", length(900)) + NO), None, "absent"),
    robots("not-found-silent", raw(head("404 No", length(900)) + NO, ending="silence"), None, "absent"),
    robots("not-found-endless", endless(head("404 No"), b"#" * 4096), None, "absent"),
    robots("not-found-with-no-gzip", answer("404 No", body=NO, Content_Encoding="gzip"), None, "absent"),
    robots("499-KiB", answer(body=b"#" * 499 * 1024 + b"\n" + NO), "robots_disallowed", "disallowed"),
    robots("501-KiB", answer(body=NO + b"#" * 501 * 1024), "robots_disallowed", "disallowed"),
    robots("rules-beyond-500-KiB", answer(body=b"#" * 500 * 1024 + b"\n" + NO), None, "allowed"),
    robots("endless", endless(head(), NO + b"#" * 4096), "robots_disallowed", "disallowed"),
    robots("endless-line", endless(head(), b"#" * 4096), None, "allowed"),
    robots("gzip", answer(body=gzip.compress(NO), Content_Encoding="gzip"), "robots_disallowed", "disallowed"),
    robots("gzip-without-a-word", answer(body=gzip.compress(NO)), None, "allowed"),
    robots(
        "gzip-bomb",
        answer(body=gzip.compress(NO + b"#" * 20_000_000), Content_Encoding="gzip"),
        "robots_disallowed",
        "disallowed",
    ),
    robots(
        "no-gzip-but-says-so", answer(body=NO, Content_Encoding="gzip"), "connection_failed", "unreachable", n_robots=2
    ),
    robots("byte-order-mark", answer(body=b"\xef\xbb\xbf" + NO), "robots_disallowed", "disallowed"),
    robots("utf-16", answer(body=NO.decode().encode("utf-16")), "robots_disallowed", "disallowed"),
    robots("carriage-returns", answer(body=NO.replace(b"\n", b"\r")), "robots_disallowed", "disallowed"),
    robots(
        "html",
        answer(body=b"<!doctype html><html>\nUser-agent: *<br>Disallow: /</html>", Content_Type=HTML),
        None,
        "allowed",
    ),
    robots("picture", answer(body=PICTURE, Content_Type="image/jpeg"), None, "allowed"),
    robots("as-a-picture", answer(body=NO, Content_Type="image/jpeg"), "robots_disallowed", "disallowed"),
    robots(
        "of-an-unknown-charset",
        answer(body=NO, Content_Type="text/plain; charset=klingon"),
        "robots_disallowed",
        "disallowed",
    ),
    robots("opted-out", answer(body=NO_A.replace(b"/a", b"/x"), X_Robots_Tag="noai"), None, "allowed"),
    robots("redirect", TO_R, "robots_disallowed", "disallowed", more=redirects(1, answer(body=NO))),
    robots("redirects-5", TO_R, "robots_disallowed", "disallowed", more=redirects(5, answer(body=NO))),
    robots("redirects-6", TO_R, None, "absent", more=redirects(6, answer(body=NO))),
    robots("redirect-to-itself", answer("302 Found", Location="/robots.txt"), None, "absent", n_robots=6),
    robots("redirect-to-nowhere", answer("302 Found"), None, "absent"),
    robots("redirect-to-files", answer("302 Found", Location="file:///etc/passwd"), None, "absent"),
    robots(
        "redirect-to-an-error",
        TO_R,
        "http_server_error",
        "unreachable",
        more=redirects(1, answer("500 No")),
        n_robots=2,
    ),
    robots(
        "redirect-to-a-private-address",
        answer("302 Found", Location="http://10.0.0.1/robots.txt"),
        "blocked_address",
        "unreachable",
    ),
    robots(
        "redirect-with-a-body-cut",
        raw(head("302 Found", b"Location: /r1", length(900)) + b"x"),
        "robots_disallowed",
        "disallowed",
        more=redirects(1, answer(body=NO)),
    ),
]


# -- all of them in one call ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What became of a case."""

    outcome: Outcome
    then: Outcome
    site: Site


def n_sockets(sites: Iterable[Site]) -> int:
    """Connections of this process to servers; those that wait for the other end to close count too."""
    there = {(site.ip, site.port) for site in sites}
    return sum(bool(one.raddr) and tuple(one.raddr) in there for one in psutil.Process().net_connections("tcp"))


async def all_of(requests: Iterable[Request], settings: Settings) -> list[Outcome]:
    """The outcomes of one call of the fetcher, which leaves no task and no unseen exception behind."""
    unseen: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    handover: Handover[Outcome | HostState] = Handover(loop, 1 << 40)  # all is taken at the end
    await fetch_all(handover, requests, settings)
    handover.end()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await asyncio.sleep(0.05)  # for what is closed soon
    assert unseen == []
    return [one for one in handover.taken() if isinstance(one, Outcome)]


def asked_at(site: Site, path: str, **known: Any) -> Request:
    url = site.url(path)
    return Request(doc_id=doc_id(url), url=url, host=canonical_url(url).host, **known)


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest) -> Iterator[dict[int, Seen]]:
    """What became of the cases that this run of the tests has, each on a host of its own, by the case's id()."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    cases = {id(one["case"]): one["case"] for one in params if isinstance(one.get("case"), Case)}
    places = [(f"127.0.0.{2 + n % 200}", one.pages) for n, one in enumerate(cases.values())]
    with serving_all(places) as sites:
        asked = {key: asked_at(site, "/a", **cases[key].known) for key, site in zip(cases, sites, strict=True)}
        good = {key: asked_at(site, "/good.jpg") for key, site in zip(cases, sites, strict=True)}
        requests = [*asked.values(), *good.values()]
        hosts = frozenset(site.address for site in sites)
        bounds = {"site": Bounds(source="site", hosts=hosts, depth=3, sitemaps=False)}
        settings = replace(SETTINGS, exemptions=parse_exemptions(hosts), sites=bounds)
        found = asyncio.run(all_of(requests, settings))
        assert Counter(one.request.url for one in found) == Counter(one.url for one in requests)
        assert n_sockets(sites) == 0
        by_url = {one.request.url: one for one in found}
        yield {
            key: Seen(by_url[asked[key].url], by_url[good[key].url], site)
            for key, site in zip(cases, sites, strict=True)
        }


def code(outcome: Outcome) -> str | None:
    """The error; without one there is content, or the news that nothing is new."""
    is_good = outcome.error is None and outcome.found is None and not outcome.is_unchanged
    assert (outcome.content is not None) == is_good
    return outcome.error["code"] if outcome.error else None


def hold(case: Case, seen: Mapping[int, Seen]) -> None:
    """That what became of a case is what is expected."""
    outcome, then, site = seen[id(case)].outcome, seen[id(case)].then, seen[id(case)].site
    assert (code(outcome), len(outcome.attempts), outcome.is_unchanged) == (case.code, case.attempts, case.unchanged)
    for last in outcome.attempts[-1:]:
        assert (last.http_status, last.error, last.robots) == (case.status, outcome.error, case.decision)
    assert outcome.opted_out == (case.code == "opted_out")
    assert (outcome.next_fetch_at is not None) == (case.code in LATER if case.later is None else case.later)
    assert all(attempt.bytes <= CAP for attempt in outcome.attempts)
    assert (None if outcome.found is None else len(outcome.found)) == case.n_found
    assert code(then) == case.then
    if case.code == "timeout" and case.decision == "absent":
        assert all(1900 < attempt.ms < 6000 for attempt in outcome.attempts)
    str(outcome).encode()  # it can be stored
    for asked in site.log:
        assert asked.headers["accept-encoding"] == "identity"
        assert not asked.headers.keys() & {"cookie", "authorization", "referer", "range", "x-evil"}
    paths = [asked.path for asked in site.log]
    assert paths[0] == "/robots.txt" and paths.count("/robots.txt") == case.n_robots


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_has_its_row_and_the_next_of_its_host_is_good(case: Case, seen: dict[int, Seen]) -> None:
    hold(case, seen)


@pytest.mark.parametrize("case", ROBOTS)
def test_a_robots_txt_has_its_meaning_for_all_of_its_host(case: Case, seen: dict[int, Seen]) -> None:
    hold(case, seen)


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next() -> None:
    pictures = {path: jpeg(n * 60) for n, path in enumerate(("/a", "/b", "/c"))}
    pages: dict[str, Answer] = {path: answer(body=picture) for path, picture in pictures.items()}
    split = raw(answer(body=pictures["/a"]), answer(body=b"<html>split</html>"), pause_s=0.1, ending="keep")
    with serving({**pages, "/a": split}) as site:
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]), delay_s=0.3)
        found = asyncio.run(all_of([asked_at(site, path) for path in pictures], settings))
        assert {urlsplit(one.request.url).path: one.content for one in found} == pictures
        assert [len(one.attempts) for one in found] == [1, 1, 1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'ETag: "1"', '"1"'),
        (b'ETag: W/"1 \xc3\xa9"', 'W/"1 \u00e9"'),
        (b'ETag: "1"\r\n X-Evil: 1', '"1" X-Evil: 1'),  # one header in two lines
        (b'ETag: "1"\rX-Evil: 1', None),
        (b'ETag: "\x01"', None),
        (b'ETag: "\x7f\x85"', None),
        (b'ETag: "1\t2"', None),
        (b"ETag:", None),
    ],
    ids=repr,
)
def test_a_tag_goes_back_as_it_came_or_not_at_all(line: bytes, told: str | None) -> None:
    with serving({"/a": raw(head("200 OK", line, length(len(PICTURE))) + PICTURE, ending="keep")}) as site:
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]))
        (first,) = asyncio.run(all_of([asked_at(site, "/a")], settings))
        tag = first.attempts[-1].etag
        (again,) = asyncio.run(all_of([asked_at(site, "/a", was_had=True, media_id="0" * 64, etag=tag)], settings))
        assert code(again) == code(first)
        assert site.log[-1].headers.get("if-none-match") == told and "x-evil" not in site.log[-1].headers


def test_the_tables_are_no_smaller_than_they_were() -> None:
    assert len(ANSWERS) >= 150 and len(ROBOTS) >= 55


# -- memory -----------------------------------------------------------------------------------------------------------

MIB = 1 << 20


def memory_bytes(name: str) -> int:
    """A figure of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def growth_bytes(requests: list[Request], settings: Settings) -> tuple[dict[str, str | None], int]:
    """The error by path, and by how much the memory of this process grew at its most; begun with a good picture."""
    list(fetch(requests[:1], settings))
    Path("/proc/self/clear_refs").write_text("5")  # what was the most is forgotten
    before = memory_bytes("VmRSS")
    found = [one for one in fetch(requests[1:], settings) if isinstance(one, Outcome)]
    return {urlsplit(one.request.url).path: code(one) for one in found}, memory_bytes("VmHWM") - before


def test_no_answer_takes_memory_beyond_the_largest_body_that_may_be() -> None:
    bomb = b"\0" * 100_000_000
    crushed = brotli.compress(bomb, quality=5)
    assert len(crushed) < 16_000  # small enough to be read though nobody wants it
    mebibyte = b"x" * MIB
    bombs: dict[str, tuple[Answer, str]] = {
        "/gzip": (answer(body=gzip.compress(bomb), Content_Encoding="gzip"), "too_large"),
        "/deflate": (answer(body=zlib.compress(bomb), Content_Encoding="deflate"), "too_large"),
        "/brotli": (answer(body=crushed, Content_Encoding="br"), "too_large"),
        "/not-found": (answer("404 No", body=crushed, Content_Encoding="br"), "not_found"),
        "/opted-out": (answer(body=crushed, Content_Encoding="br", X_Robots_Tag="noai"), "opted_out"),
        "/redirect": (answer("302 Found", body=crushed, Content_Encoding="br", Location="/not-found"), "not_found"),
        "/endless": (endless(head(), mebibyte), "too_large"),
        "/endless-chunk": (endless(head("200 OK", CHUNKED) + b"ffffffff\r\n", mebibyte), "too_large"),
        "/endless-not-found": (endless(head("404 No"), mebibyte), "not_found"),
        "/endless-header": (endless(b"HTTP/1.1 200 OK\r\nX: ", mebibyte), "connection_failed"),
        "/endless-extension": (endless(head("200 OK", CHUNKED) + b"5;", mebibyte), "timeout"),
        "/endless-hints": (endless(b"", head("103 Early Hints", b"Link: </x>") * 100), "timeout"),
    }
    pages = {path: page for path, (page, _) in bombs.items()}
    robots_txt = {"/robots.txt": answer(body=crushed, Content_Encoding="br"), "/behind-robots": answer()}
    with serving_all([("127.0.0.2", {**pages, "/good": OK}), ("127.0.0.3", robots_txt)]) as (site, other):
        hosts = [site.address, other.address]
        settings = replace(SETTINGS, exemptions=parse_exemptions(hosts), max_attempts=1, max_connections_per_host=4)
        requests = [
            asked_at(site, "/good"),
            *[asked_at(site, path) for path in bombs],
            asked_at(other, "/behind-robots"),
        ]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found, grown = pool.apply(growth_bytes, (requests, settings))
    assert found == {path: expected for path, (_, expected) in bombs.items()} | {"/behind-robots": "empty"}
    assert grown < 40 * MIB


# -- names and addresses ----------------------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """A name server of ours: each question for a name has the next of its answers, the last for ever."""
    table: dict[str, list[list[str]]] = {}

    def answered(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host not in table:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")
        turns = table[host]
        addresses = turns.pop(0) if len(turns) > 1 else turns[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answered)
    return table


@contextmanager
def knocked(ip: str, port: int) -> Iterator[list[socket.socket]]:
    """A private service on the port of a site: whoever connects is in the list at the end."""
    with closing(socket.socket()) as service:
        service.bind((ip, port))
        service.listen()
        service.setblocking(False)
        connected: list[socket.socket] = []
        yield connected
        with suppress(BlockingIOError):
            connected.append(service.accept()[0])


def named(url: str, **known: Any) -> Request:
    return Request(doc_id=doc_id(url), url=url, host=canonical_url(url).host, **known)


def test_a_name_that_turns_to_a_private_address_reaches_nothing_there(names: dict[str, list[list[str]]]) -> None:
    allowed, private = "127.0.0.1", "127.0.0.2"
    pages = {"/a": answer(body=PICTURE, Connection="close"), "/robots.txt": answer("404 No", Connection="close")}
    with serving(pages) as site, knocked(private, site.port) as connected:
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]), contact="me@example.com")
        request = named(f"http://rebound.example:{site.port}/a")
        for turns, expected in (
            ([[allowed], [private]], [None, "blocked_address"]),
            ([[private], [allowed]], ["blocked_address", None]),
            ([[private, allowed], [allowed, private]], [None, None]),
            ([[allowed], [private, "169.254.169.254", "10.0.0.1"]], [None, "blocked_address"]),
        ):
            names["rebound.example"] = turns
            found = [asyncio.run(all_of([request], settings))[0] for _ in expected]
            assert [code(one) for one in found] == expected
            assert [one.next_fetch_at is None for one in found] == [one is not None for one in expected]
            assert [len(one.attempts) for one in found] == [1, 1]
        assert {asked.headers["host"] for asked in site.log} == {request.host}
    assert connected == []


def test_a_redirect_to_a_name_of_a_private_address_is_blocked_at_whatever_hop(
    names: dict[str, list[list[str]]],
) -> None:
    pages: dict[str, Answer] = {"/good": OK}
    with serving(pages) as site, knocked("127.0.0.2", site.port) as connected:
        for name in ("a", "b"):
            names[f"{name}.site.example"] = [["127.0.0.1"]]
        names["private.site.example"] = names["elsewhere.example"] = [["127.0.0.2"]]
        pages |= {
            "/1": answer("302 Found", Location=f"http://private.site.example:{site.port}/x"),
            "/2": answer("302 Found", Location=f"http://b.site.example:{site.port}/1"),
            "/3": answer("302 Found", Location=f"http://elsewhere.example:{site.port}/x"),
            "/4": answer("302 Found", Location=f"http://b.site.example:{site.port}/good"),
            "/5": answer("302 Found", Location="http://unknown.site.example/"),
        }
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]))
        requests = [named(f"http://a.site.example:{site.port}/{n}") for n in range(1, 6)]
        found = {one.request.url[-1]: one for one in asyncio.run(all_of(requests, settings))}
        codes = ["blocked_address", "blocked_address", "deferred", None, "dns_failure"]
        assert [code(found[str(n)]) for n in range(1, 6)] == codes
        moved = found["3"].moved_to
        assert moved == f"http://elsewhere.example:{site.port}/x"  # which another call may be asking
        assert [code(one) for one in asyncio.run(all_of([named(moved)], settings))] == ["blocked_address"]
    assert connected == []


def test_what_a_host_tells_us_to_say_is_said_to_nobody(
    names: dict[str, list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    pages: dict[str, Answer] = {"/b": OK, "/x": answer("401 No", WWW_Authenticate='Basic realm="b"')}
    with serving(pages) as site:
        names["a.site.example"] = names["b.site.example"] = [["127.0.0.1"]]
        there = f"site.example:{site.port}"
        cookie = "session=1; Domain=site.example; Path=/"
        pages["/a"] = answer("302 Found", Location=f"http://b.{there}/b", Set_Cookie=cookie)
        pages["/c"] = answer("302 Found", Location=f"http://me:secret@b.{there}/b", Set_Cookie=cookie)
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]))
        asked = [named(f"http://a.{there}/{path}") for path in "abcx"]
        url = f"http://me:secret@a.{there}/b"
        asked.append(Request(doc_id=doc_id(url), url=url, host=f"a.{there}"))
        found = {one.request.url: code(one) for one in asyncio.run(all_of(asked, settings))}
        codes = [None, None, "redirect_refused", "http_client_error", "http_client_error"]
        assert [found[one.url] for one in asked] == codes
        assert len(site.log) == 7  # the robots.txt of both, and five others
        told = {"cookie", "authorization", "proxy-authorization", "referer"}
        assert not any(told & one.headers.keys() or "secret" in str(one) for one in site.log)


def test_rules_that_lead_to_each_other_or_nowhere_hold_up_nobody(names: dict[str, list[list[str]]]) -> None:
    a: dict[str, Answer] = {"/a": OK}
    b: dict[str, Answer] = {"/a": OK}
    c: dict[str, Answer] = {"/a": OK}
    with serving_all([("127.0.0.2", a), ("127.0.0.3", b), ("127.0.0.4", c)]) as sites:
        hosts = ["a.site.example", "b.site.example", "c.example"]
        names |= {host: [[site.ip]] for host, site in zip(hosts, sites, strict=True)}
        at = [f"http://{host}:{site.port}" for host, site in zip(hosts, sites, strict=True)]
        for pages, there in ((a, at[1]), (b, at[0]), (c, "http://unknown.example")):
            pages["/robots.txt"] = answer("302 Found", Location=f"{there}/robots.txt")
        settings = replace(SETTINGS, exemptions=parse_exemptions(site.address for site in sites))
        found = {one.request.url: one for one in asyncio.run(all_of([named(f"{base}/a") for base in at], settings))}
        assert [code(found[f"{base}/a"]) for base in at] == [None, None, "dns_failure"]
        assert [found[f"{base}/a"].attempts[0].robots for base in at] == ["absent", "absent", "unreachable"]
        assert [site.paths().count("/robots.txt") for site in sites] == [6, 6, 2]


def test_a_host_that_takes_no_connection_or_says_nothing_on_it_is_a_timeout() -> None:
    with closing(socket.socket()) as full, closing(socket.socket()) as mute, ExitStack() as stack:
        for service, backlog in ((full, 0), (mute, 9)):
            service.bind(("127.0.0.1", 0))
            service.listen(backlog)
        for _ in range(2):  # more than it holds
            waiting = stack.enter_context(closing(socket.socket()))
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        urls = [f"http://127.0.0.1:{full.getsockname()[1]}/a", f"https://127.0.0.1:{mute.getsockname()[1]}/a"]
        exempt = parse_exemptions(urlsplit(url).netloc for url in urls)
        settings = replace(SETTINGS, exemptions=exempt, max_attempts=1, connect_timeout_s=0.5, timeout_s=1)
        found = asyncio.run(all_of([named(url) for url in urls], settings))
        assert [(code(one), len(one.attempts)) for one in found] == [("timeout", 1)] * 2


# -- TLS --------------------------------------------------------------------------------------------------------------


def certificate(name: str, *, first_day: int = -1, last_day: int = 1, issuer: Any = None) -> tuple[Any, Any]:
    """A certificate of a name and its key, by an issuer or itself; days from now."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    def called(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=issuer[0].subject if issuer else called(name),
        subject_name=called(name),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now + timedelta(days=first_day),
        not_valid_after=now + timedelta(days=last_day),
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def served_with(made: tuple[Any, Any], folder: Path) -> ssl.SSLContext:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = made[0].public_bytes(Encoding.PEM)
    pem += made[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem")
    return context


def test_a_certificate_is_of_the_host_of_today_and_of_somebody_trusted_or_nothing_is_asked(
    names: dict[str, list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    name = "shop.example"
    names[name] = [["127.0.0.1"]]
    authority, stranger = certificate("authority"), certificate("authority")
    # Whom aiohttp trusts is read when it is imported.
    trust = ssl.create_default_context(cadata=authority[0].public_bytes(Encoding.PEM).decode())
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trust)
    made = {
        "good": certificate(name, issuer=authority),
        "of another host": certificate("other.example", issuer=authority),
        "over": certificate(name, first_day=-9, last_day=-1, issuer=authority),
        "not yet": certificate(name, first_day=1, last_day=9, issuer=authority),
        "of a stranger": certificate(name, issuer=stranger),
        "of itself": certificate(name),
    }
    with ExitStack() as stack:
        sites = {
            kind: stack.enter_context(serving({"/a": OK}, tls=served_with(one, tmp_path))) for kind, one in made.items()
        }
        exempt = parse_exemptions(site.address for site in sites.values())
        requests = {kind: named(f"https://{name}:{site.port}/a") for kind, site in sites.items()}
        found = asyncio.run(all_of(requests.values(), replace(SETTINGS, exemptions=exempt)))
        by_url = {one.request.url: one for one in found}
        assert {kind: code(by_url[one.url]) for kind, one in requests.items()} == {
            kind: None if kind == "good" else "tls_invalid" for kind in made
        }
        assert all(len(one.attempts) == 1 for one in found)
        assert {kind for kind, site in sites.items() if site.log} == {"good"}
        assert n_sockets(sites.values()) == 0


# -- traps ------------------------------------------------------------------------------------------------------------


class Trap(dict[str, Answer]):
    """Pages without an end: any path is a page with these links, in which {path} is the path, {length} its length."""

    def __init__(self, *links: str) -> None:
        self.links = links

    def get(self, path: str, _: Any = None) -> Answer:  # type: ignore[override]
        if path == "/robots.txt":
            return answer("404 Not Found")
        body = "".join(f'<a href="{link.format(path=path, length=len(path))}">x</a>' for link in self.links)
        return answer(body=b"<html>" + body.encode(), Content_Type=HTML)


def walked(trap: Trap, *, depth: int, at_most: int) -> tuple[list[str], set[str]]:
    """The pages that are asked for from / on, at most so many of each depth, and all that were led to."""
    with serving(trap) as site:
        bounds = {"trap": Bounds(source="trap", hosts=frozenset({site.address}), depth=depth, sitemaps=False)}
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]), sites=bounds)
        asked, known = [asked_at(site, "/", source="trap", expects="page", depth=0)], {site.url("/")}
        while asked:
            found = [sighting for one in asyncio.run(all_of(asked, settings)) for sighting in one.found or ()]
            new = {one.url: one for one in found if one.url not in known}
            known |= new.keys()
            asked = [
                named(one.url, source="trap", expects=one.expects, depth=one.depth) for one in [*new.values()][:at_most]
            ]
        return [one.path for one in site.log if one.path != "/robots.txt"], known


def test_a_site_of_10000_pages_within_its_depth_is_not_followed_beyond_it() -> None:
    asked, known = walked(Trap(*(f"{{path}}-{n}" for n in range(100))), depth=2, at_most=100)
    assert len(known) == 1 + 100 + 100 * 100
    assert len(asked) == 1 + 100 + 100 and max(path.count("-") for path in asked) == 2


@pytest.mark.parametrize(
    ("link", "n_pages"),
    [
        ("a/", 4),  # one segment, three times
        ("a/b/c/", 3),  # three segments in a row
        ("{path}{length}/", 21),  # segments that are never the same
        ("?from={path}x{path}", 8),  # 2,000 characters
    ],
)
def test_pages_that_lead_ever_deeper_end_long_before_the_depth_does(link: str, n_pages: int) -> None:
    asked, _ = walked(Trap(link), depth=1000, at_most=1)
    assert len(asked) == n_pages


# -- manners ----------------------------------------------------------------------------------------------------------


def late(before_s: float, within_s: float = 0.0, whole: bytes = OK) -> Answer:
    """An answer that begins late and takes its time."""

    async def page(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
        await asyncio.sleep(before_s)
        writer.write(whole[:50])
        await writer.drain()
        await asyncio.sleep(within_s)
        writer.write(whole[50:])
        await writer.drain()

    return page


def test_no_host_is_asked_more_or_sooner_than_it_may_be_whatever_the_others_do(
    names: dict[str, list[list[str]]],
) -> None:
    delay_s, n_connections = 0.1, 2
    rules = b"User-agent: *\nDisallow: /no\n"
    a: dict[str, Answer] = {"/robots.txt": answer(body=rules), "/429": [answer("429 Slow", Retry_After="1"), OK]}
    b: dict[str, Answer] = {"/robots.txt": late(0.2, 0.1, answer(body=rules + b"Crawl-delay: 0.25\n"))}
    c: dict[str, Answer] = {"/robots.txt": [answer("503 No", Retry_After="0"), answer(body=rules)]}
    d: dict[str, Answer] = {"/robots.txt": answer(body=rules)}
    with serving_all([("127.0.0.2", a), ("127.0.0.3", b), ("127.0.0.4", c), ("127.0.0.5", d)]) as sites:
        hosts = ["a.site.example", "b.site.example", "c.example", "127.0.0.5"]
        names |= {host: [[site.ip]] for host, site in zip(hosts, sites, strict=True)}
        at = [f"http://{host}:{site.port}" for host, site in zip(hosts, sites, strict=True)]
        a |= {
            "/late": late(0.3),
            "/to-b": answer("302 Found", Location=f"{at[1]}/1"),
            "/to-no": answer("302 Found", Location="/no/1"),
            "/to-no-of-b": answer("302 Found", Location=f"{at[1]}/no/1"),
            "/1": OK,
        }
        b |= {"/to-a": answer("302 Found", Location=f"{at[0]}/1"), "/late": late(0.1, 0.4), "/500": answer("500 No")}
        b |= {"/1": OK, "/2": OK}
        c |= {"/reset": reset, "/slow": late(0, 0.5), "/1": OK, "/2": OK, "/404": raw(head("404 No", length(9)))}
        d |= {f"/{n}": late(0.05, 0.4) for n in range(6)}
        paths = [[*pages.keys() - {"/robots.txt"}, "/no/2"] for pages in (a, b, c, d)]
        urls = [base + path for base, some in zip(at, paths, strict=True) for path in sorted(some)]
        settings = replace(
            SETTINGS,
            exemptions=parse_exemptions(site.address for site in sites),
            max_connections_per_host=n_connections,
            delay_s=delay_s,
        )
        found = asyncio.run(all_of([named(url) for url in urls], settings))
        assert Counter(one.request.url for one in found) == Counter(urls)
        n_codes = Counter(code(one) for one in found)
        assert n_codes == {
            None: 17,
            "robots_disallowed": 6,
            "http_server_error": 1,
            "connection_failed": 1,
            "not_found": 1,
        }
        for site in sites:
            assert not any(asked.path.startswith("/no") for asked in site.log)
            assert max(asked.n_open for asked in site.log) <= n_connections
            for before, after in itertools.pairwise(site.log):
                begun_s = before.begun_s if math.isfinite(before.begun_s) else before.at_s
                assert after.at_s - begun_s >= delay_s, (before, after)
        wait_s = [
            after.at_s - before.at_s for before, after in itertools.pairwise(sites[0].log) if before.path == "/429"
        ]
        assert wait_s[0] >= 1
        of_b = [asked for asked in sites[1].log if asked.path != "/robots.txt"]
        assert min(after.at_s - before.begun_s for before, after in itertools.pairwise(of_b)) >= 0.25
        assert max(asked.n_open for asked in sites[3].log) == n_connections  # more would have been possible
