"""The fetcher against real sockets: every way a server can answer has one expected outcome."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from jobs.addresses import is_public, parse_exemptions
from jobs.config import ConfigError
from jobs.fetch import Settings, fetch
from jobs.outcomes import Outcome, Request, next_fetch, retry_after_s
from jobs.robots import opts_out, parse_robots
from jobs.urls import InvalidUrl, canonical_url, doc_id, host_bucket
from schemas.errors import ErrorCode, error
from tests.crawl_site import Answer, Asked, Site, answer, jpeg, serving

SETTINGS = Settings(
    contact=None,
    exemptions=frozenset(),
    max_connections_per_host=2,
    delay_s=0,
    connect_timeout_s=1,
    timeout_s=1,
    max_bytes=10_000,
    max_redirects=2,
    max_attempts=2,
    backoff_s=0.01,
    max_wait_s=2,
)


def crawled(site: Site, urls: Iterable[str], **changed: Any) -> dict[str, Outcome]:
    """Outcomes by URL as given, a path being one of the site."""
    full = {url: site.url(url) if url.startswith("/") else url for url in urls}
    settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]), **changed)
    requests = [Request(doc_id=doc_id(url), url=url, host=canonical_url(url).host) for url in full.values()]
    by_url = {outcome.request.url: outcome for outcome in list(fetch(requests, settings))}
    assert len(by_url) == len(requests)
    return {given: by_url[url] for given, url in full.items()}


def code(outcome: Outcome) -> str | None:
    assert (outcome.content is None) == (outcome.error is not None)
    return outcome.error["code"] if outcome.error else None


def one(pages: dict[str, Answer], path: str = "/a", **changed: Any) -> Outcome:
    with serving(pages) as site:
        return crawled(site, [path], **changed)[path]


async def _sleep(*_: Any) -> None:
    await asyncio.sleep(5)


async def _drip(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    for _ in range(100):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


async def _endless(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 4096)
        await writer.drain()


async def _reset(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    raise ConnectionResetError


async def _cut(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + jpeg())
    await writer.drain()
    raise ConnectionResetError


@pytest.mark.parametrize(
    ("page", "expected", "n_attempts"),
    [
        (answer(body=jpeg()), None, 1),
        (answer(body=jpeg(), Content_Type="text/html"), None, 1),
        (answer("203 Transformed", body=jpeg()), None, 1),
        (answer(), "empty", 1),
        (answer("204 No Content"), "empty", 1),
        (answer(body=b"<html>no</html>", Content_Type="image/jpeg"), "not_media", 1),
        (answer(body=b'{"error": "no"}'), "not_media", 1),
        (answer(body=b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "unsupported_format", 1),
        (answer(body=b"%PDF-1.7 ..."), "unsupported_format", 1),
        (answer(body=bytes(range(256)) * 3), "unsupported_format", 1),
        (answer("403 Forbidden"), "http_client_error", 1),
        (answer("404 Not Found"), "not_found", 1),
        (answer("410 Gone"), "not_found", 1),
        (answer("300 Multiple Choices"), "redirect_refused", 1),
        (answer("304 Not Modified"), "redirect_refused", 1),
        (answer("302 Found"), "redirect_refused", 1),
        (answer("302 Found", Location="ftp://127.0.0.1/x"), "redirect_refused", 1),
        (answer("302 Found", Location="http://user:password@127.0.0.1/x"), "redirect_refused", 1),
        (answer("302 Found", Location="/a"), "redirect_refused", 1),
        (answer("302 Found", Location="http://10.0.0.1/x"), "blocked_address", 1),
        (answer("302 Found", Location="http://127.0.0.1:1/x"), "blocked_address", 1),
        (answer("302 Found", Location="http://[::ffff:127.0.0.1]:1/x"), "blocked_address", 1),
        (answer("302 Found", Location="http://2130706433:1/x"), "blocked_address", 1),
        (answer("429 Too Many Requests"), "rate_limited", 2),
        (answer("500 Internal Server Error"), "http_server_error", 2),
        ([answer("503 Service Unavailable"), answer(body=jpeg())], None, 2),
        (answer(body=b"x" * 10_001), "too_large", 1),
        (answer(body=jpeg(), X_Robots_Tag="noai"), "opted_out", 1),
        (answer(body=jpeg(), X_Robots_Tag="otherbot: noai"), None, 1),
        (answer(body=jpeg(), TDM_Reservation="1"), "opted_out", 1),
        (b"nonsense\r\n\r\n", "connection_failed", 2),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "connection_failed", 2),
        (_reset, "connection_failed", 2),
        (_cut, "connection_failed", 2),
        (_endless, "too_large", 1),
    ],
)
def test_each_answer_has_its_outcome_and_its_attempts(page: Answer, expected: str | None, n_attempts: int) -> None:
    outcome = one({"/a": page})
    assert (code(outcome), len(outcome.attempts)) == (expected, n_attempts)
    assert outcome.attempts[-1].error == outcome.error
    assert outcome.opted_out == (expected == "opted_out")
    assert all(attempt.bytes <= SETTINGS.max_bytes for attempt in outcome.attempts)


@pytest.mark.parametrize("page", [_sleep, _drip])
def test_a_server_that_is_slow_as_a_whole_is_a_timeout_however_steadily_it_drips(page: Answer) -> None:
    outcome = one({"/a": page}, timeout_s=0.4, max_attempts=1)
    assert code(outcome) == "timeout" and 300 < outcome.attempts[0].ms < 3000


def test_an_attempt_keeps_what_the_answer_said() -> None:
    page = answer(body=jpeg(), ETag='"1"', Last_Modified="yesterday", X_Robots_Tag="noarchive")
    pages: dict[str, Answer] = {"/a": answer("301 Moved", Location="/b#there"), "/b": page}
    with serving(pages) as site:
        outcome = crawled(site, ["/a"])["/a"]
        (attempt,) = outcome.attempts
        assert (attempt.http_status, attempt.final_url, attempt.robots) == (200, site.url("/b"), "absent")
    assert (attempt.etag, attempt.last_modified, attempt.x_robots_tag) == ('"1"', "yesterday", "noarchive")
    assert (attempt.bytes, outcome.content) == (len(jpeg()), jpeg())
    assert (outcome.facts.mime, outcome.facts.width, outcome.facts.height) == ("image/jpeg", 20, 10)
    assert outcome.next_fetch_at is not None and outcome.next_fetch_at > datetime.now(UTC) + timedelta(days=29)


def test_bytes_that_are_no_text_in_headers_can_be_stored() -> None:
    body = jpeg()
    head = b'HTTP/1.1 200 \xff\r\nETag: "\xff"\r\nContent-Length: ' + str(len(body)).encode() + b"\r\n\r\n"
    attempts = [
        *one({"/a": head + body}).attempts,
        *one({"/a": b"HTTP/1.1 404 \xff\r\nContent-Length: 0\r\n\r\n"}).attempts,
    ]
    assert [attempt.http_status for attempt in attempts] == [200, 404]
    assert "\ufffd" in (attempts[0].etag or "")
    str(attempts).encode()
    for attempt in attempts:
        (attempt.error["detail"] if attempt.error else "").encode()


def test_what_robots_txt_forbids_is_never_asked_for_and_it_is_asked_for_once() -> None:
    rules = b"User-agent: lakelens\nDisallow: /no*.jpg$\nAllow: /\n\nUser-agent: *\nDisallow: /\n"
    pages: dict[str, Answer] = {"/robots.txt": answer(body=rules), "/r": answer("302 Found", Location="/no.jpg")}
    pages |= {path: answer(body=jpeg()) for path in ("/a", "/no.jpg", "/no2.jpg", "/no.jpg?x")}
    with serving(pages) as site:
        found = crawled(site, ["/a", "/no.jpg", "/no2.jpg", "/no.jpg?x", "/r"])
        assert {path: code(outcome) for path, outcome in found.items()} == {
            "/a": None,
            "/no.jpg": "robots_disallowed",
            "/no2.jpg": "robots_disallowed",
            "/no.jpg?x": None,
            "/r": "robots_disallowed",
        }
        assert [found[path].attempts[-1].robots for path in ("/a", "/no.jpg")] == ["allowed", "disallowed"]
        assert site.paths().count("/robots.txt") == 1 and "/no.jpg" not in site.paths()


@pytest.mark.parametrize(
    ("robots", "expected", "decision"),
    [
        (answer("404 Not Found"), None, "absent"),
        (answer("403 Forbidden"), None, "absent"),
        (answer(body=b"<html>not rules</html>"), None, "allowed"),
        (answer("302 Found", Location="/rules"), "robots_disallowed", "disallowed"),
        (answer("302 Found", Location="/robots.txt"), None, "absent"),
        (answer("500 Internal Server Error"), "http_server_error", "unreachable"),
        (answer("429 Too Many Requests"), "rate_limited", "unreachable"),
        (_reset, "connection_failed", "unreachable"),
        ([answer("503 Service Unavailable"), answer("404 Not Found")], None, "absent"),
    ],
)
def test_an_absent_robots_txt_allows_all_and_an_unreachable_one_nothing(
    robots: Answer, expected: str | None, decision: str
) -> None:
    rules = answer(body=b"User-agent: *\nDisallow: /")
    outcome = one({"/robots.txt": robots, "/rules": rules, "/a": answer(body=jpeg())})
    assert (code(outcome), len(outcome.attempts), outcome.attempts[0].robots) == (expected, 1, decision)


def test_a_host_sees_no_more_connections_and_no_shorter_pause_than_configured() -> None:
    async def slow(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
        body = jpeg()
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        await asyncio.sleep(0.35)
        writer.write(body)
        await writer.drain()

    paths = [f"/{n}" for n in range(6)]
    with serving(dict.fromkeys(paths, slow)) as site:
        found = crawled(site, paths, delay_s=0.1)
        assert all(code(outcome) is None for outcome in found.values())
        times = [asked.at_s for asked in site.log]
        assert len(times) == 7 and min(b - a for a, b in itertools.pairwise(times)) >= 0.1
        assert max(asked.n_open for asked in site.log) == 2


def test_a_crawl_delay_longer_than_our_own_is_kept() -> None:
    rules = answer(body=b"User-agent: *\nCrawl-delay: 0.3\n")
    with serving({"/robots.txt": rules, "/a": answer(body=jpeg()), "/b": answer(body=jpeg())}) as site:
        crawled(site, ["/a", "/b"])
        assert site.log[2].at_s - site.log[1].at_s >= 0.3


def test_a_host_that_asks_for_a_short_wait_gets_it_and_one_that_asks_for_a_long_one_is_left_alone() -> None:
    pages: dict[str, Answer] = {"/a": [answer("429 Slow down", Retry_After="1"), answer(body=jpeg())]}
    with serving(pages) as site:
        assert code(crawled(site, ["/a"])["/a"]) is None
        assert site.log[2].at_s - site.log[1].at_s >= 1
    pages = {"/0": answer("503 Later", Retry_After="7200")} | {f"/{n}": answer(body=jpeg()) for n in range(1, 5)}
    with serving(pages) as site:
        found = crawled(site, [f"/{n}" for n in range(5)], max_connections_per_host=1)
        assert [code(outcome) for outcome in found.values()] == ["http_server_error"] + ["deferred"] * 4
        assert found["/4"].attempts == () and site.paths() == ["/robots.txt", "/0"]
        later = found["/4"].next_fetch_at
        assert later is not None and later > datetime.now(UTC) + timedelta(seconds=7000)


def test_a_host_that_never_answers_is_left_alone_after_some_attempts() -> None:
    paths = [f"/{n}" for n in range(20)]
    with serving(dict.fromkeys(paths, _reset)) as site:
        found = crawled(site, paths, max_attempts=1, max_connections_per_host=1)
        codes = [code(outcome) for outcome in found.values()]
        assert codes == ["connection_failed"] * 10 + ["deferred"] * 10 and len(site.log) == 11


def test_hosts_that_cannot_be_reached_have_the_code_of_what_failed() -> None:
    plain = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: plain.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), daemon=True).start()
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    urls = [
        "http://no-such-name.invalid/a",
        f"https://127.0.0.1:{plain.getsockname()[1]}/a",
        f"http://127.0.0.1:{port}/a",
    ]
    exempt = parse_exemptions(f"127.0.0.1:{p}" for p in (port, plain.getsockname()[1]))
    requests = [Request(doc_id=doc_id(url), url=url, host=canonical_url(url).host) for url in urls]
    settings = replace(SETTINGS, exemptions=exempt, max_attempts=1)
    found = {outcome.request.url: code(outcome) for outcome in list(fetch(requests, settings))}
    assert [found[url] for url in urls] == ["dns_failure", "tls_invalid", "connection_failed"]


def test_a_name_of_a_private_address_is_refused_at_the_socket_and_the_exemption_is_one_port() -> None:
    with serving({"/a": answer(body=jpeg())}) as site, serving({"/a": answer(body=jpeg())}) as other:
        urls = ["/a", f"http://localhost:{site.port}/a", other.url("/a"), f"http://localhost:{other.port}/a"]
        found = crawled(site, urls)
        assert [code(found[url]) for url in urls] == [None, None, "blocked_address", "blocked_address"]
        with_contact = crawled(site, urls, contact="me@example.com")
        assert [code(with_contact[url]) for url in urls] == [None, None, "blocked_address", "blocked_address"]
        assert other.log == []
        assert [asked.headers["user-agent"] for asked in site.log][:: len(site.log) - 1] == [
            "lakelens",
            "lakelens (+me@example.com)",
        ]


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url(""))
        assert code(one({"/a": answer(body=jpeg())})) is None
        assert proxy.log == []


def test_files_are_read_by_their_uri_and_judged_like_answers(tmp_path: Path) -> None:
    contents = {"a ü#?.jpg": jpeg(), "empty.png": b"", "page.jpg": b"<html></html>", "big.jpg": b"x" * 10_001}
    requests = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "gone.jpg"]:
        url = (tmp_path / name).as_uri()
        requests.append(Request(doc_id=doc_id(url), url=url, host="", root=tmp_path.as_uri()))
    found = {Path(outcome.request.url).name: outcome for outcome in list(fetch(requests, SETTINGS))}
    assert {name: code(outcome) for name, outcome in found.items()} == {
        "a%20%C3%BC%23%3F.jpg": None,
        "empty.png": "empty",
        "page.jpg": "not_media",
        "big.jpg": "too_large",
        "gone.jpg": "not_found",
    }
    assert found["a%20%C3%BC%23%3F.jpg"].next_fetch_at is None


def test_a_caller_that_stops_early_leaves_nothing_running() -> None:
    with serving({f"/{n}": answer(body=jpeg()) for n in range(50)}) as site:
        requests = [
            Request(doc_id=doc_id(site.url(f"/{n}")), url=site.url(f"/{n}"), host=site.address) for n in range(50)
        ]
        outcomes = fetch(requests, replace(SETTINGS, exemptions=parse_exemptions([site.address]), delay_s=0.2))
        next(outcomes)
        outcomes.close()
        n_asked = len(site.log)
        time.sleep(1)  # five pauses of the crawl
        assert len(site.log) == n_asked < 10


PRIVATE = """
    0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.8.8.8 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1
    192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    168.63.129.16 :: ::1 ::ffff:8.8.8.8 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1
    2001:db8::1 2002:7f00:1::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "localhost:80", "127.0.0.1:0", "127.0.0.1:x", "::1:80x", "10.0.0.0/8:80"]
)
def test_an_exemption_is_one_address_and_one_port(text: str) -> None:
    with pytest.raises(ConfigError, match="not one IP address with a port"):
        parse_exemptions([text])
    assert parse_exemptions(["[::1]:80"]) == {(ip_address("::1"), 80)}


@pytest.mark.parametrize(
    ("text", "href", "host"),
    [
        (" HTTP://Example.COM:80/a/../b%20c?q=1#f\n", "http://example.com/b%20c?q=1", "example.com"),
        ("https://example.com:8443", "https://example.com:8443/", "example.com:8443"),
        ("http://0x7f.1:81/a b", "http://127.0.0.1:81/a%20b", "127.0.0.1:81"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC", "xn--bcher-kva.example"),
        ("http:\\\\example.com\\a", "http://example.com/a", "example.com"),
    ],
)
def test_a_url_has_one_canonical_form(text: str, href: str, host: str) -> None:
    url = canonical_url(text)
    assert (url.href, url.host) == (href, host)
    assert canonical_url(href) == url


@pytest.mark.parametrize(
    "text", ["", "no url", "//a/b", "ftp://a/b", "javascript:1", "http://u:p@a/", "http://a b/", "\ud800"]
)
def test_what_cannot_be_fetched_is_no_url(text: str) -> None:
    with pytest.raises(InvalidUrl):
        canonical_url(text)


def test_ids_and_buckets_never_change() -> None:
    assert doc_id("http://example.com/") == "2a1b402420ef46577471cdc7409b0fa2"
    assert host_bucket("example.com") == 421


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    given = {"120": 120.0, "Thu, 01 Jan 2026 00:01:00 GMT": 60.0, "soon": None, None: None, "9" * 400: 30 * 86400.0}
    assert {value: retry_after_s(value, now) for value in given} == given


def test_opt_outs_are_read_as_directives_for_all_or_for_us() -> None:
    cases = {"noai": True, "noindex, NoImageAI": True, "lakelens: noai": True, "*: noai": True, "other: noai": False}
    cases |= {"unavailable_after: 25 Jun 2040 15:00:00 PST": False, "all": False, "noindex": False, "": False}
    assert {tag: opts_out([tag], None) is not None for tag in cases} == cases
    assert opts_out([], "1") is not None and opts_out([], "0") is None


def test_robots_rules_are_read_for_our_agent_before_all_agents() -> None:
    rules = parse_robots(
        b"\xef\xbb\xbfUser-agent: *\nDisallow: /\nUser-agent: LakeLens\nCrawl-delay: 5\nDisallow: /x\n"
    )
    assert rules.allows("http://a/y") and not rules.allows("http://a/x") and rules.crawl_delay_s == 5
    assert not parse_robots(b"User-agent: *\nDisallow: /\xff\xfe\nDisallow: /b").allows("http://a/b")


def test_when_to_fetch_next_follows_from_the_error() -> None:
    now, later = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    busy, gone = error(ErrorCode.RATE_LIMITED, ""), error(ErrorCode.NOT_FOUND, "")
    assert next_fetch(None, is_file=False, now=now, told=None) == now + timedelta(days=30)
    assert next_fetch(None, is_file=True, now=now, told=None) is None
    assert next_fetch(gone, is_file=False, now=now, told=later) is None
    assert next_fetch(busy, is_file=False, now=now, told=None) == now + timedelta(hours=1)
    assert next_fetch(busy, is_file=False, now=now, told=later) == later
