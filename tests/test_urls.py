"""URLs as names: one canonical form, what is no name, whose site it is and what is a trap."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.urls import BAD_PORTS, InvalidUrl, canonical_host, canonical_url, doc_id, host_bucket, is_trap, registrable

TRACKING = ("utm_*", "fbclid", "MC_eid")


@pytest.mark.parametrize(
    ("text", "href", "host"),
    [
        (" HTTP://Example.COM:80/a/../b%20c?q=1#f\n", "http://example.com/b%20c?q=1", "example.com"),
        ("https://example.com:8443", "https://example.com:8443/", "example.com:8443"),
        ("http://0x7f.1:8081/a b", "http://127.0.0.1:8081/a%20b", "127.0.0.1:8081"),
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


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        (".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61]), True),
        (".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61]) + ".:8080", True),
        (".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 62]), False),
        ("a" * 64 + ".example", False),
        ("ü" * 60 + ".example", False),  # 63 characters were it ASCII
    ],
)
def test_a_host_that_no_name_server_can_know_is_none(host: str, is_one: bool) -> None:
    if is_one:
        assert canonical_url(f"http://{host}/").host == host
        return
    with pytest.raises(InvalidUrl, match=r"is longer than 253, or a part of it than 63 characters"):
        canonical_url(f"http://{host}/")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (" WWW.Example.COM. ", "www.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("a.example:80", "a.example"),
        ("a.example:443", "a.example"),
        ("a.example.:8443", "a.example:8443"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("[2001:DB8::1]:8080", "[2001:db8::1]:8080"),
    ],
)
def test_a_host_has_one_canonical_form(text: str, host: str) -> None:
    assert canonical_host(text) == host == canonical_host(host)


@pytest.mark.parametrize(
    "text",
    ["", "https://a.example", "a.example/", "a.example/p", "*.a.example", "me@a.example", "a b", "a.example:22", "::1"],
)
def test_what_is_more_or_less_than_a_host_is_none(text: str) -> None:
    with pytest.raises(InvalidUrl):
        canonical_host(text)


def test_ids_and_buckets_never_change() -> None:
    assert doc_id("http://example.com/") == "2a1b402420ef46577471cdc7409b0fa2"
    assert host_bucket("example.com") == 421


@pytest.mark.parametrize("port", [0, 1, 22, 25, 81, 444, 1023, *sorted(BAD_PORTS)])
def test_a_port_that_serves_something_else_is_refused(port: int) -> None:
    with pytest.raises(InvalidUrl, match=f"port {port} is not one that serves the web"):
        canonical_url(f"http://a.example:{port}/")
    with pytest.raises(InvalidUrl, match=f"port {port} is not one that serves the web"):
        canonical_url(f"//a.example:{port}/", "https://b.example/")


@pytest.mark.parametrize("port", [80, 443, 1024, 3000, 8080, 8443, 10081, 65535])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_port_that_may_serve_the_web_is_kept(scheme: str, port: int) -> None:
    own = (scheme, port) in {("http", 80), ("https", 443)}
    assert canonical_url(f"{scheme}://a.example:{port}/").host == ("a.example" if own else f"a.example:{port}")


def test_bad_ports_are_those_of_mail_files_and_chat_not_of_web_servers() -> None:
    assert len(BAD_PORTS) == 19 and min(BAD_PORTS) >= 1024
    assert {2049, 6000, 6667, 10080} <= BAD_PORTS and not {8000, 8080, 8443} & BAD_PORTS


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("?utm_source=x", ""),
        ("?UTM_Medium=x&a=1", "?a=1"),
        ("?a=1&fbclid=2&b=3", "?a=1&b=3"),
        ("?a=1&mc_EID", "?a=1"),
        ("?utm%5Fsource=x&a=1", "?a=1"),
        ("?fbclid2=1&xutm_=2", "?fbclid2=1&xutm_=2"),
        ("?q=a+b%20c'~%7e&&=&z&utm_=1", "?q=a+b%20c%27~%7e&&=&z"),
        ("?b=2&a=1&b=%zz", "?b=2&a=1&b=%zz"),
        ("?a=utm_source&a=?utm_x=1", "?a=utm_source&a=?utm_x=1"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_tracking_parameters_go_and_the_rest_of_the_query_stays_byte_for_byte(query: str, left: str) -> None:
    url = canonical_url(f"http://a.example/p{query}#utm_source", drop=TRACKING)
    assert url.href == f"http://a.example/p{left}"
    assert canonical_url(url.href, drop=TRACKING) == url


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/a;jsessionid=0A1B.node2?x=1", "/a?x=1"),
        ("/a;JSESSIONID=1;v=2/b;jsessionid", "/a;v=2/b"),
        ("/a;jsessionid=1?jsessionid=2", "/a"),
        ("/a;xjsessionid=1;b?", "/a;xjsessionid=1;b?"),
    ],
)
def test_session_ids_go_from_paths_too(path: str, left: str) -> None:
    assert canonical_url(f"http://a.example{path}", drop=("jsessionid",)).href == f"http://a.example{left}"


def test_nothing_is_dropped_unless_it_is_named() -> None:
    assert canonical_url("http://a.example/?utm_source=x").href == "http://a.example/?utm_source=x"
    assert canonical_url("?utm_source=x&b", "http://a.example/p?c", ("b",)).href == "http://a.example/p?utm_source=x"


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("www.shop.example.co.uk:8443", "example.co.uk"),
        ("example.com.", "example.com"),
        ("A.Example.COM", "example.com"),
        ("me.github.io", "me.github.io"),
        ("img.me.github.io", "me.github.io"),
        ("github.io", "github.io"),
        ("co.uk", "co.uk"),
        ("co.uk.:8080", "co.uk"),
        ("com", "com"),
        ("www.ck", "www.ck"),
        ("a.b.c.kawasaki.jp", "b.c.kawasaki.jp"),
        ("x.city.kawasaki.jp", "city.kawasaki.jp"),
        ("a.b.xn--bcher-kva.xn--p1ai", "xn--bcher-kva.xn--p1ai"),
        ("a.b.unheard-of", "b.unheard-of"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("93.184.216.34", "93.184.216.34"),
        ("[2001:db8::1]:8080", "[2001:db8::1]"),
        ("[::1]", "[::1]"),
        ("localhost:8080", "localhost"),
        ("a..b", "a..b"),
        ("", ""),
    ],
)
def test_the_registrable_domain_is_what_one_owner_has(host: str, domain: str) -> None:
    assert registrable(host) == domain


def test_the_list_of_suffixes_is_read_only_when_it_is_asked() -> None:
    code = "import sys, jobs.urls; assert 'publicsuffixlist' not in sys.modules; print(jobs.urls.registrable('a.b.de'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "b.de\n"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a" * 1990, "2003 characters"),
        ("?q=" + "a" * 1990, "2006 characters"),
        ("/".join(map(str, range(21))), "21 segments"),
        ("a/b/a/c/a/d/a", "4 segments 'a'"),
        ("a//b//c//d//e", "4 segments ''"),
        ("x/a/b/a/b/a/b/y", "repeats 'a/b' 3 times"),
        ("a/b/c/a/b/c/a/b/c/", "repeats 'a/b/c' 3 times"),
    ],
)
def test_a_path_that_grows_by_itself_is_a_trap(path: str, reason: str) -> None:
    assert reason in (is_trap(f"http://a.com/{path}") or "")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "?",
        "a" * 1980,
        "/".join(map(str, range(20))) + "/",
        "2024/11/11/11/photo.jpg",
        "a/b/a/b/c/a/b",
        "a/a/a",
        "?next=/a/a/a/a/a/a/a",
        "?PHPSESSID=0123456789abcdef",
        ";jsessionid=1/a",
    ],
)
def test_a_path_that_only_looks_odd_is_no_trap(path: str) -> None:
    assert is_trap(f"http://a.com/{path}") is None


def test_how_deep_is_too_deep_may_be_said() -> None:
    assert is_trap("http://a.com/1/2/3", max_segments=3) is None
    assert is_trap("http://a.com/1/2/3", max_segments=2) == "the path has 3 segments, more than 2"
