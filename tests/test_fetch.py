"""The fetcher against real sockets: what it keeps, whom it leaves alone and when it asks again."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.addresses import parse_exemptions
from jobs.fetch import fetch
from jobs.fetch_settings import Settings
from jobs.hosts import HostState
from jobs.outcomes import Outcome, Recrawl, Request, finished, retry_after_s
from jobs.taken_down import Takedowns
from jobs.urls import canonical_url, doc_id
from schemas.errors import ErrorCode, error
from tests.crawl_site import SETTINGS, Answer, Asked, Site, answer, jpeg, reset, serving


def crawled(site: Site, urls: Iterable[str], **changed: Any) -> dict[str, Outcome]:
    """Outcomes by URL as given, a path being one of the site."""
    full = {url: site.url(url) if url.startswith("/") else url for url in urls}
    settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]), **changed)
    requests = [Request(doc_id=doc_id(url), url=url, host=canonical_url(url).host) for url in full.values()]
    by_url = {outcome.request.url: outcome for outcome in outcomes(requests, settings)}
    assert len(by_url) == len(requests)
    return {given: by_url[url] for given, url in full.items()}


def outcomes(requests: Iterable[Request], settings: Settings, known: Iterable[HostState] = ()) -> list[Outcome]:
    return [found for found in list(fetch(requests, settings, known)) if isinstance(found, Outcome)]


def request(site: Site, path: str, **known: Any) -> Request:
    url = site.url(path)
    return Request(doc_id=doc_id(url), url=url, host=site.address, **known)


def code(outcome: Outcome) -> str | None:
    assert (outcome.content is None) == (outcome.error is not None or outcome.is_unchanged)
    return outcome.error["code"] if outcome.error else None


def one(pages: dict[str, Answer], path: str = "/a", **changed: Any) -> Outcome:
    with serving(pages) as site:
        return crawled(site, [path], **changed)[path]


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
        accepted = {asked.path: asked.headers["accept"] for asked in site.log}
        assert "text/plain" in accepted["/robots.txt"] and "image" not in accepted["/robots.txt"]
        assert accepted["/a"].startswith("image/*")


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
    with serving(dict.fromkeys(paths, reset)) as site:
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
    found = {outcome.request.url: code(outcome) for outcome in outcomes(requests, settings)}
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
    found = {Path(outcome.request.url).name: outcome for outcome in outcomes(requests, SETTINGS)}
    assert {name: code(outcome) for name, outcome in found.items()} == {
        "a%20%C3%BC%23%3F.jpg": None,
        "empty.png": "empty",
        "page.jpg": "not_media",
        "big.jpg": "too_large",
        "gone.jpg": "not_found",
    }
    assert found["a%20%C3%BC%23%3F.jpg"].next_fetch_at is None


def test_hosts_are_asked_while_the_caller_is_busy() -> None:
    with serving({f"/{n}": answer(body=jpeg()) for n in range(10)}) as site:
        found = fetch(
            [request(site, f"/{n}") for n in range(10)], replace(SETTINGS, exemptions=parse_exemptions([site.address]))
        )
        next(found)
        time.sleep(1)
        assert sorted(site.paths()) == sorted(["/robots.txt", *(f"/{n}" for n in range(10))])
        assert all(one.error is None for one in found if isinstance(one, Outcome))


def test_a_caller_that_stops_early_leaves_nothing_running() -> None:
    with serving({f"/{n}": answer(body=jpeg()) for n in range(50)}) as site:
        requests = [
            Request(doc_id=doc_id(site.url(f"/{n}")), url=site.url(f"/{n}"), host=site.address) for n in range(50)
        ]
        found = fetch(requests, replace(SETTINGS, exemptions=parse_exemptions([site.address]), delay_s=0.2))
        next(found)
        found.close()
        time.sleep(0.1)  # what was sent before arrives
        n_asked = len(site.log)
        time.sleep(1)  # five pauses of the crawl
        assert len(site.log) == n_asked < 10


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    given = {"120": 120.0, "Thu, 01 Jan 2026 00:01:00 GMT": 60.0, "soon": None, None: None, "9" * 400: 30 * 86400.0}
    assert {value: retry_after_s(value, now) for value in given} == given


PAGE = Request(doc_id="0", url="http://a.example/", host="a.example")


HAD = replace(PAGE, was_had=True)
IN_A_FOLDER = replace(PAGE, root="file:///a")


@pytest.mark.parametrize(
    ("failed", "request_", "days", "is_final"),
    [
        (None, PAGE, 30, False),
        (None, IN_A_FOLDER, None, False),
        ("http_server_error", PAGE, 1 / 24, False),
        ("http_server_error", IN_A_FOLDER, None, False),
        ("deferred", PAGE, 0, False),
        ("not_media", PAGE, None, True),
        ("not_found", PAGE, 1, False),
        ("not_found", replace(PAGE, n_gone=1), 2, False),
        ("not_found", replace(PAGE, n_gone=2), None, True),
        ("not_found", IN_A_FOLDER, None, True),
        ("http_client_error", HAD, 1, False),
        ("tls_invalid", replace(HAD, n_gone=1), 2, False),
        ("not_media", replace(HAD, n_gone=2), None, True),
        ("robots_disallowed", PAGE, 365, True),
        ("robots_disallowed", HAD, 1, False),
        ("robots_disallowed", replace(HAD, n_gone=2), 365, True),
        ("opted_out", HAD, None, True),
        ("taken_down", HAD, None, True),
    ],
)
def test_when_to_fetch_next_follows_from_the_error_and_from_whether_there_was_anything(
    failed: str | None, request_: Request, days: float | None, is_final: bool
) -> None:
    outcome = finished(request_, [], error(ErrorCode(failed), "x") if failed else None)
    assert outcome.is_final is is_final
    assert (outcome.next_fetch_at is None) is (days is None)
    if outcome.next_fetch_at is not None and days is not None:
        assert abs((outcome.next_fetch_at - datetime.now(UTC)) / timedelta(days=1) - days) < 0.01


def test_the_time_to_the_next_fetch_doubles_while_nothing_changes_and_halves_when_it_does_within_bounds() -> None:
    recrawl = Recrawl(first_s=8, least_s=3, most_s=20)
    assert recrawl.next_s(None, is_changed=True) == recrawl.next_s(None, is_changed=False) == 8
    assert [recrawl.next_s(s, is_changed=False) for s in (8, 12, 20)] == [16, 20, 20]
    assert [recrawl.next_s(s, is_changed=True) for s in (8, 5, 3)] == [4, 3, 3]


# -- again: what is known of documents and hosts --------------------------------------------------------------------


def conditional(tag: str) -> Answer:
    async def page(_: Any, writer: asyncio.StreamWriter, asked: Asked) -> None:
        same = asked.headers.get("if-none-match") == tag
        writer.write(answer("304 Not Modified", ETag=tag) if same else answer(body=jpeg(), ETag=tag))
        await writer.drain()

    return page


def test_what_is_known_is_asked_for_with_its_conditions_and_costs_no_byte_while_it_is_the_same() -> None:
    known = {
        "was_had": True,
        "media_id": "0" * 64,
        "etag": '"1"',
        "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        "recrawl_s": 86400.0,
    }
    pages: dict[str, Answer] = {"/same": conditional('"1"'), "/new": conditional('"2"'), "/bare": answer("304 Same")}
    with serving(pages) as site:
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]))
        asked = [request(site, path, **known) for path in pages]
        asked.append(request(site, "/never", etag='"1"'))  # nothing was obtained: there is nothing to be the same
        found = {outcome.request.url: outcome for outcome in outcomes(asked, settings)}
        same, new, bare, never = (found[one.url] for one in asked)
        assert same.is_unchanged and bare.is_unchanged and not new.is_unchanged
        assert (same.content, same.error, same.attempts[0].bytes, same.attempts[0].http_status) == (None, None, 0, 304)
        assert (same.recrawl_s, bare.recrawl_s, new.recrawl_s) == (2 * 86400, 2 * 86400, 86400)
        assert new.content == jpeg() and new.error is None
        assert code(never) == "not_found"
        headers = {one.path: one.headers for one in site.log}
        assert headers["/same"]["if-modified-since"] == known["last_modified"]
        assert "if-none-match" not in headers["/never"] and "if-none-match" not in headers["/robots.txt"]


def test_a_page_that_is_gone_is_tried_again_a_few_times_and_then_no_more() -> None:
    with serving({"/gone": answer("410 Gone")}) as site:
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]), recrawl=Recrawl(n_gone=2))
        for n_before, is_last in ((0, False), (1, True)):
            (outcome,) = outcomes([request(site, "/gone", n_gone=n_before)], settings)
            assert (code(outcome), outcome.n_gone) == ("not_found", n_before + 1)
            assert (outcome.next_fetch_at is None) is is_last


def test_an_answer_that_leads_to_another_domain_is_left_to_whoever_asks_that_one() -> None:
    with serving({"/b": answer(body=jpeg())}) as other:
        away = f"http://localhost:{other.port}/b"
        with serving(
            {"/a": answer("302 Found", Location=away), "/same": answer("302 Found", Location=other.url("/b"))}
        ) as site:
            settings = replace(SETTINGS, exemptions=parse_exemptions([site.address, other.address]))
            (moved,) = outcomes([request(site, "/a")], settings)
            assert (moved.moved_to, code(moved), len(moved.attempts)) == (away, "deferred", 1)
            assert other.log == []
            (same,) = outcomes([request(site, "/same")], settings)
            assert same.content == jpeg()
            (too_far,) = outcomes([request(site, "/a", n_redirects=2)], settings)
            assert code(too_far) == "redirect_refused"


def test_the_rules_and_pauses_of_a_host_are_kept_over_a_restart() -> None:
    rules = answer(body=b"User-agent: *\nDisallow: /no\nCrawl-delay: 0.4\n")
    with serving({"/robots.txt": rules, "/a": answer(body=jpeg()), "/b": answer(body=jpeg())}) as site:
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]))
        states = [one for one in list(fetch([request(site, "/a")], settings)) if isinstance(one, HostState)]
        (state,) = states
        assert (state.host, state.requests, state.robots_status, state.crawl_delay_s) == (site.address, 2, "found", 0.4)
        assert state.bytes == len(jpeg()) + len(b"User-agent: *\nDisallow: /no\nCrawl-delay: 0.4\n")
        found = outcomes([request(site, path) for path in ("/b", "/no")], settings, states)
        assert [code(outcome) for outcome in sorted(found, key=lambda one: one.request.url)] == [
            None,
            "robots_disallowed",
        ]
        assert site.paths() == ["/robots.txt", "/a", "/b"]
        assert min(b.at_s - a.at_s for a, b in itertools.pairwise(site.log)) >= 0.4
        outcomes([request(site, "/a")], replace(settings, asks_rules_again=True), [state])
        assert site.paths()[3:] == ["/robots.txt", "/a"]
        site.log.clear()
        old = replace(state, robots_at=datetime.now(UTC) - timedelta(hours=25))
        outcomes([request(site, "/a")], settings, [old])
        assert site.paths() == ["/robots.txt", "/a"]


def test_a_host_that_was_left_alone_gets_one_attempt_when_its_time_is_over_and_is_then_left_alone_for_longer() -> None:
    paths = [f"/{n}" for n in range(4)]
    with serving(dict.fromkeys(["/robots.txt", *paths], reset)) as site:
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address]), max_attempts=1)
        until = datetime.now(UTC) + timedelta(hours=1)
        left = HostState(host=site.address, closed_until=until, closed_reason="no answer", n_failures=10, leave_s=7200)
        found = outcomes([request(site, path) for path in paths], settings, [left])
        assert {code(outcome) for outcome in found} == {"deferred"} and site.log == []
        assert all(one.next_fetch_at and abs((one.next_fetch_at - until).total_seconds()) < 1 for one in found)
        over = replace(left, closed_until=datetime.now(UTC) - timedelta(seconds=1))
        again = list(
            fetch([request(site, path) for path in paths], replace(settings, max_connections_per_host=1), [over])
        )
        (state,) = [one for one in again if isinstance(one, HostState)]
        assert site.paths() == ["/robots.txt"] and state.leave_s == 14400
        assert state.closed_until is not None and state.closed_until > datetime.now(UTC) + timedelta(seconds=7000)


def test_a_host_whose_rules_lead_to_one_that_is_left_alone_waits_for_as_long_as_that_one() -> None:
    with serving({"/rules": answer("429 Too Many Requests", Retry_After="3600")}) as busy:
        led = answer("302 Found", Location=busy.url("/rules"))
        with serving({"/robots.txt": led, "/a": answer(body=jpeg())}) as site:
            settings = replace(SETTINGS, exemptions=parse_exemptions([site.address, busy.address]), max_attempts=1)
            until = datetime.now(UTC) + timedelta(hours=1)
            left = HostState(host=busy.address, closed_until=until, closed_reason="it asked to wait")
            (outcome,) = outcomes([request(site, "/a")], settings, [left])
            assert code(outcome) == "deferred" and outcome.attempts == () and "/a" not in site.paths()
            assert outcome.next_fetch_at and abs((outcome.next_fetch_at - until).total_seconds()) < 1


def test_a_redirect_to_a_host_that_has_no_turn_left_asks_the_first_one_once_and_waits_for_the_other() -> None:
    pages: dict[str, Answer] = {"/a": b""}
    with serving({"/b": answer(body=jpeg())}) as slow, serving(pages) as site:
        pages["/a"] = answer("302 Found", Location=slow.url("/b"))
        settings = replace(SETTINGS, exemptions=parse_exemptions([site.address, slow.address]))
        until = datetime.now(UTC) + timedelta(hours=1)
        (outcome,) = outcomes([request(site, "/a")], settings, [HostState(host=slow.address, next_ok_at=until)])
        assert (code(outcome), len(outcome.attempts), site.paths().count("/a")) == ("deferred", 1, 1)
        assert outcome.next_fetch_at and abs((outcome.next_fetch_at - until).total_seconds()) < 1


@pytest.mark.parametrize(("status", "n_asked"), [("500 Oops", 30), ("502 Bad Gateway", 10)])
def test_pages_that_are_broken_do_not_close_a_host_and_nobody_behind_its_gateway_does(
    status: str, n_asked: int
) -> None:
    paths = [f"/{n}" for n in range(30)]
    with serving({path: answer(status) for path in paths}) as site:
        crawled(site, paths, max_attempts=1, max_connections_per_host=1)
        assert len(site.log) == 1 + n_asked


def test_conditions_go_to_the_url_that_they_came_from_and_to_no_other() -> None:
    known: dict[str, Any] = {"was_had": True, "media_id": "0" * 64, "etag": '"1"'}
    with serving({"/b": conditional('"1"')}) as site:
        pages: dict[str, Answer] = {"/a": answer("302 Found", Location=site.url("/b"))}
        with serving(pages) as entry:
            settings = replace(SETTINGS, exemptions=parse_exemptions([site.address, entry.address]))
            (elsewhere,) = outcomes([request(entry, "/a", **known)], settings)
            (there,) = outcomes([request(entry, "/a", final_url=site.url("/b"), **known)], settings)
            assert elsewhere.content == jpeg() and there.is_unchanged
            sent = [one.headers.get("if-none-match") for one in (*entry.log, *site.log) if one.path in ("/a", "/b")]
            assert sent == ['"1"', None, None, '"1"']


def test_what_is_not_reached_in_a_round_is_deferred_and_may_be_fetched_at_once_in_the_next() -> None:
    paths = [f"/{n}" for n in range(20)]
    with serving({path: answer(body=jpeg()) for path in paths}) as site:
        found = crawled(site, paths, delay_s=0.2, round_s=1, max_connections_per_host=1)
        codes = [code(outcome) for outcome in found.values()]
        n_done = codes.count(None)
        assert 2 <= n_done <= 5 and codes == [None] * n_done + ["deferred"] * (20 - n_done)
        last = found[paths[-1]]
        assert last.attempts == () and last.next_fetch_at is not None
        assert last.next_fetch_at <= datetime.now(UTC) + timedelta(seconds=0.2)  # when its host's pause is over


def test_a_token_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    paths = [f"/{n}" for n in range(7)]
    with serving({path: answer(body=jpeg()) for path in paths}) as site:
        crawled(site, paths, rate_per_minute=240, burst=4, max_connections_per_host=1)
        times = [asked.at_s - site.log[0].at_s for asked in site.log]
        assert times[3] < 0.2 and times[4] >= 0.24 and times[7] >= 0.99


def test_an_attempt_before_may_have_asked_a_moment_ago() -> None:
    with serving({"/a": answer(body=jpeg())}) as site:
        began = time.monotonic()
        crawled(site, ["/a"], delay_s=0.5, is_resumed=True)
        assert site.log[0].at_s - began >= 0.5


def test_a_host_of_high_priority_comes_first_where_connections_are_few() -> None:
    with serving({f"/{n}": answer(body=jpeg()) for n in range(2)}) as low, serving({"/a": answer(body=jpeg())}) as high:
        settings = replace(SETTINGS, exemptions=parse_exemptions([low.address, high.address]), n_connections=1)
        found = outcomes([request(low, "/0"), request(low, "/1"), request(high, "/a", priority=1)], settings)
        assert found[0].request.host == high.address


def test_what_was_taken_down_is_neither_asked_for_by_a_redirect_nor_stored() -> None:
    digest = hashlib.sha256(jpeg(7)).hexdigest()
    pages: dict[str, Answer] = {
        "/r": answer("302 Found", Location="/b"),
        "/b": answer(body=jpeg()),
        "/c": answer(body=jpeg(7)),
    }
    with serving(pages) as site:
        forgotten = Takedowns(doc_ids=frozenset({doc_id(site.url("/b"))}), hashes=frozenset({digest}))
        found = crawled(site, ["/r", "/c"], taken_down=forgotten)
        assert [code(outcome) for outcome in found.values()] == ["taken_down", "taken_down"]
        assert "/b" not in site.paths()
