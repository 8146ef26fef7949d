"""What robots.txt and opt-outs allow us, by tables from RFC 9309 and Google's documentation, not from a parser."""

from __future__ import annotations

import pickle
import random
import re
import time

import pytest

from jobs.robots import (
    ABSENT,
    DEFAULT_OPT_OUTS,
    OPT_OUTS,
    opts_out,
    page_opts_out,
    parse_robots,
    robots_of,
)
from jobs.urls import canonical_url

MAX_ROBOTS_BYTES = 512_000  # the least that RFC 9309, 2.5, asks for
DAY_S = 86400.0
ALL = "User-agent: *\n"
OURS = "User-agent: lakelens\n"
NONE_FOR_US = OURS + "Disallow: /\n"
# robots.txt, then paths that it allows (+) and refuses (-).
RULES: list[tuple[str | bytes, str]] = [
    # -- no rules
    ("", "+/ +/a +/robots.txt"),
    (ALL, "+/ +/a"),
    (ALL + "Disallow:", "+/ +/a"),
    (ALL + "Disallow:\nDisallow: /a", "+/ +/b -/a"),
    (ALL + "Allow:\nDisallow: /", "-/ -/a"),
    (ALL + "Allow: /a", "+/ +/a +/b"),
    # -- all is refused, but robots.txt never (RFC 9309, 2.2.2)
    (ALL + "Disallow: /", "-/ -/a -/?q -/a/robots.txt -/robots.txt.bak -/robots.txt/ -/ROBOTS.TXT +/robots.txt"),
    (ALL + "Disallow: /robots.txt\nDisallow: /*.txt$", "+/robots.txt +/a -/b.txt"),
    (ALL + "Disallow: *", "-/ -/a"),
    # -- a rule is a prefix of path and query
    (ALL + "Disallow: /fish", "-/fish -/fish.html -/fish/salmon -/fishheads -/fish?id=1 +/Fish +/catfish +/?id=fish"),
    (ALL + "Disallow: /fish/", "-/fish/ -/fish/?id -/fish/salmon +/fish +/fish.html +/Fish/Salmon"),
    (ALL + "Disallow: /a?b", "-/a?b -/a?bc -/a?b=1&c=2 +/a +/a?c&b +/a/?b"),
    (ALL + "Disallow: /?", "-/? -/?a +/ +/a?b"),
    (ALL + "Disallow: //", "-//a +/a//b +/"),
    (ALL + "Disallow: /a;b", "-/a;b -/a;b=1 +/a"),
    # -- the longest rule wins, wherever it stands, and Allow wins a tie
    (ALL + "Allow: /p\nDisallow: /", "+/p +/page -/ -/q"),
    (ALL + "Disallow: /\nAllow: /p", "+/p +/page -/ -/q"),
    (ALL + "Allow: /folder\nDisallow: /folder", "+/folder +/folder/page"),
    (ALL + "Disallow: /folder\nAllow: /folder", "+/folder +/folder/page"),
    (ALL + "Allow: /page\nDisallow: /*.htm", "+/page -/page.htm"),
    (ALL + "Allow: /page\nDisallow: /*.ph", "+/page +/page.php5 -/a.php5"),
    (ALL + "Allow: /page.\nDisallow: /*.htm", "+/page.htm -/other.htm"),
    (ALL + "Allow: /$\nDisallow: /", "+/ -/page.htm -/?a"),
    (ALL + "Allow: /a/b\nDisallow: /a/b/c\nAllow: /a/b/c/d\nDisallow: /a", "+/a/b -/a/b/c +/a/b/c/d/e -/a/x -/a"),
    (ALL + "Allow: /*/x\nDisallow: /a/x", "+/a/x +/b/x"),
    (ALL + "Allow: /ab*\nDisallow: /abc", "+/abc +/abcd"),
    (ALL + "Allow: /abc\nDisallow: /abc$", "-/abc +/abcd"),
    (ALL + "Allow: /abc$\nDisallow: /abc", "+/abc -/abcd"),
    # -- `*` is any characters, none too; `$` is the end, at the end only
    (ALL + "Disallow: /fish*", "-/fish -/fish.html -/fishheads/x +/Fish +/catfish"),
    (ALL + "Disallow: /*.php", "-/a.php -/f/a.php?x -/a.php/ -//f/a.php.html -/i?f=a.php +/ +/a.PHP +/php/ +/i?php"),
    (ALL + "Disallow: /*.php$", "-/a.php -/f/a.php -/.php +/a.php?x +/a.php/ +/a.php5 +/a.PHP +/ap"),
    (ALL + "Disallow: /fish*.php", "-/fish.php -/fishheads/catfish.php?x +/Fish.PHP +/fish.ph +/a/fish.php"),
    (ALL + "Disallow: /a*b*c", "-/abc -/aXbXcX -/a/b/c?d +/ab +/acb +/xabc"),
    (ALL + "Disallow: /a*bc$", "-/abc -/abcbc -/abbc +/abcb +/ac +/abc/"),
    (ALL + "Disallow: /a*a$", "-/aa -/aba -/aaa +/a +/ab"),
    (ALL + "Disallow: /*a*a*a$", "-/aaa -/xaxaxa +/aa +/aaab"),
    (ALL + "Disallow: /a**b", "-/ab -/aXb +/a"),
    (ALL + "Disallow: /*/*/c", "-/a/b/c -///c +/a/c +/c"),
    (ALL + "Disallow: *.jpg", "-/a.jpg -/.jpg/ +/a.png"),
    (ALL + "Disallow: *.jpg$", "-/a.jpg +/a.jpg?x"),
    (ALL + "Disallow: /*", "-/ -/a"),
    (ALL + "Disallow: /*$", "-/ -/a"),
    (ALL + "Disallow: /*?", "-/? -/a?b +/a"),
    (ALL + "Disallow: /*?$", "-/a? +/a?b +/a"),
    (ALL + "Disallow: /$", "-/ +/a +/?a"),
    (ALL + "Disallow: $", "+/ +/a"),
    (ALL + "Disallow: /a$b", "-/a$b -/a$bc -/a%24b +/a +/ab"),
    (ALL + "Disallow: /a$b$", "-/a$b +/a$bc"),
    (ALL + "Disallow: /a$$", "-/a$ +/a +/a$$"),
    (ALL + "Disallow: /a$*", "-/a$ -/a$b +/a +/ab"),
    (ALL + "Disallow: /a%2Ab", "-/a*b -/a%2Ab -/a%2ab +/aXb +/ab"),
    (ALL + "Disallow: /a%24", "-/a$ -/a$b +/a"),
    (ALL + "Disallow: /a*b", "-/a*b -/a%2Ab -/aXb"),
    (ALL + "Disallow: /a.b+c(d)[e]^|\\f", "-/a.b+c(d)[e]^|%5Cf +/aXb+c(d)[e]^|%5Cf +/a.bbc(d)e"),
    # -- what is percent-encoded and what is not (RFC 9309, 2.2.2)
    (ALL + "Disallow: /foo/bar?baz=quz", "-/foo/bar?baz=quz +/foo/bar?baz=qux"),
    (ALL + "Disallow: /foo/bar?baz=https://foo.bar", "-/foo/bar?baz=https://foo.bar"),
    (
        ALL + "Disallow: /foo/bar?baz=https://foo.bar",
        "-/foo/bar?baz=https%3A%2F%2Ffoo.bar -/foo/bar?baz=https:%2f%2ffoo.bar",
    ),
    (ALL + "Disallow: /foo/bar?baz=https%3A%2F%2Ffoo.bar", "-/foo/bar?baz=https://foo.bar"),
    (ALL + "Disallow: /foo/bar?baz=https%3A%2F%2Ffoo.bar", "-/foo/bar?baz=https%3A%2F%2Ffoo.bar"),
    (ALL + "Disallow: /*u=http%3A%2F%2F", "-/a?u=http%3A%2F%2Fx -/a?u=http://x +/a?u=x"),
    (ALL + "Disallow: /foo/bar/\u30c4", "-/foo/bar/\u30c4 -/foo/bar/%E3%83%84 -/foo/bar/%e3%83%84 +/foo/bar/%E3%83%85"),
    (ALL + "Disallow: /foo/bar/%E3%83%84", "-/foo/bar/\u30c4 -/foo/bar/%E3%83%84 -/foo/bar/%e3%83%84"),
    (ALL + "Disallow: /foo/bar/%e3%83%84", "-/foo/bar/\u30c4 -/foo/bar/%E3%83%84"),
    (ALL + "Disallow: /foo/bar/%62%61%7A", "-/foo/bar/baz -/foo/bar/%62%61%7A -/foo/bar/%62az"),
    (ALL + "Disallow: /~joe", "-/~joe -/%7Ejoe -/%7ejoe/x +/joe"),
    (ALL + "Disallow: /%7Ejoe", "-/~joe -/%7Ejoe -/%7ejoe"),
    (ALL + "Disallow: /%7ejoe", "-/~joe -/%7Ejoe -/%7ejoe"),
    (ALL + "Disallow: /a%2Fb", "-/a%2Fb -/a%2fb +/a/b"),
    (ALL + "Disallow: /a%2fb", "-/a%2Fb -/a%2fb/c +/a/b"),
    (ALL + "Disallow: /a/b", "-/a/b +/a%2Fb +/a%2fb"),
    (ALL + "Disallow: /wiki/Special:", "-/wiki/Special:Random -/wiki/Special%3ARandom -/wiki/Special%3aRandom"),
    (ALL + "Disallow: /wiki/Special%3A", "-/wiki/Special:Random -/wiki/Special%3ARandom"),
    (ALL + "Disallow: /a%3Fb", "-/a%3Fb -/a%3fb +/a?b"),
    (ALL + "Disallow: /a?b", "-/a?b +/a%3Fb"),
    (ALL + "Disallow: /a%23b", "-/a%23b +/a +/a#b"),
    (ALL + "Disallow: /a%20b", "-/a%20b +/ab +/a+b"),
    (ALL + "Disallow: /a b", "-/a%20b +/a +/ab"),
    (ALL + 'Disallow: /"<{`}>', '-/%22%3C%7B%60%7D%3E -/"<{`}> +/'),
    (ALL + "Disallow: /100%", "-/100% -/100%25 -/100%zz +/100"),
    (ALL + "Disallow: /100%25", "-/100% -/100%25 -/100%2541 +/100A"),
    (ALL + "Disallow: /%2541", "-/%2541 +/%41 +/A"),
    (ALL + "Disallow: /sanjos\u00e9sellers", "-/sanjos%C3%A9sellers -/sanjos%c3%a9sellers +/sanjosesellers"),
    (ALL + "Disallow: /\U0001f600", "-/\U0001f600 -/%F0%9F%98%80"),
    (ALL + "Disallow: /a\u2028b", "-/a%E2%80%A8b +/a +/b"),
    (ALL + "Disallow: /\nAllow: /%7Ea", "+/~a +/%7ea -/a"),
    (ALL + "Disallow: /%7Eab\nAllow: /~ab", "+/~ab +/%7Eab"),
    (ALL + "Allow: /\u00e9\nDisallow: /*abcd", "+/\u00e9abcd +/\u00e9 -/abcd"),  # 7 octets and 6
    (ALL + "Allow: /\u00e9\nDisallow: /*abcdef", "-/\u00e9abcdef +/\u00e9"),  # 7 octets and 8
    (ALL + "Disallow: /a\tb", "-/a%09b +/ab"),
    # -- a path that is none
    (ALL + "Disallow: fish", "+/fish +/ +/a/fish"),
    (ALL + "Disallow: http://example.com/a", "+/a +/"),
    (ALL + "Disallow: ?a", "+/?a +/a?a"),
    # -- the case of paths counts, that of keys and agents does not
    (ALL + "Disallow: /A", "-/A -/AB +/a"),
    ("USER-AGENT: LAKELENS\nDISALLOW: /\nALLOW: /x", "-/ +/x"),
    ("uSeR-aGeNt: LakeLens\ndIsAlLoW: /\naLLoW: /x", "-/ +/x"),
    # -- whose group it is (RFC 9309, 2.2.1)
    (NONE_FOR_US, "-/a"),
    (ALL + "Disallow: /\n" + OURS + "Disallow: /x", "+/a -/x"),
    (OURS + "Disallow: /x\n" + ALL + "Disallow: /", "+/a -/x"),
    (OURS + "Disallow:\n" + ALL + "Disallow: /", "+/a"),
    (OURS + "Allow: /\n\n" + ALL + "Disallow: /", "+/a"),
    (ALL + "Disallow: /\n" + OURS, "+/a"),
    (ALL + "Disallow: /\n\n" + OURS + "Crawl-delay: 5", "+/a"),
    (ALL + "Disallow: /x\nUser-agent: other\nDisallow: /", "+/a -/x"),
    ("User-agent: other\nDisallow: /", "+/a"),
    ("User-agent: *\nDisallow: /", "-/a"),
    ("User-agent: lakelens/1.0\nDisallow: /", "-/a"),
    ("User-agent: LakeLens/2.1 (+https://example.com)\nDisallow: /", "-/a"),
    ("User-agent: lakelens images\nDisallow: /", "-/a"),
    ("User-agent: lakelens*\nDisallow: /", "-/a"),
    ("User-agent: lakelens;\nDisallow: /", "-/a"),
    ("User-agent: lakelens-images\nDisallow: /", "+/a"),
    ("User-agent: lakelens_images\nDisallow: /", "+/a"),
    ("User-agent: lakelensimages\nDisallow: /", "+/a"),
    ("User-agent: lake\nDisallow: /", "+/a"),
    ("User-agent: l\nDisallow: /", "+/a"),
    ("User-agent: my-lakelens\nDisallow: /", "+/a"),
    ("User-agent: Mozilla/5.0 (compatible; lakelens/1.0)\nDisallow: /", "+/a"),
    ("User-agent: \u212aakelens\nUser-agent: la\u212aelens\nDisallow: /", "+/a"),
    ("User-agent: *bot\nDisallow: /", "+/a"),
    ("User-agent: * bot\nDisallow: /", "-/a"),
    ("User-agent: *\t\nDisallow: /", "-/a"),
    ("User-agent:\nDisallow: /", "+/a"),
    (
        "User-agent: lakelens-images\nDisallow: /x\n" + OURS + "Disallow: /y\nUser-agent: lake\nDisallow: /z",
        "+/x -/y +/z",
    ),
    # -- groups of one agent are merged, `*` among them, and one group may be of several
    (OURS + "Disallow: /a\n\nUser-agent: b\nDisallow: /b\n\n" + OURS + "Disallow: /c", "-/a +/b -/c"),
    (ALL + "Disallow: /a\nUser-agent: b\nDisallow: /b\n" + ALL + "Disallow: /c", "-/a +/b -/c"),
    (OURS + "Disallow: /a\nUser-agent: LAKELENS/2\nAllow: /a/b", "-/a +/a/b"),
    ("User-agent: b\n" + OURS + "User-agent: c\nDisallow: /x", "-/x +/a"),
    (OURS + "\n\n# and\nUser-agent: b\n\nDisallow: /x", "-/x +/a"),
    (OURS + "User-agent: *\nDisallow: /x\nUser-agent: c\nDisallow: /y", "-/x +/y"),
    (OURS + ALL + "Disallow: /x\n" + OURS + "Disallow: /y", "-/x -/y"),
    ("User-agent: b\nDisallow: /x\n" + OURS + "Disallow: /y", "+/x -/y"),
    ("User-agent: b\nDisallow:\n" + OURS + "Disallow: /y", "-/y"),
    ("User-agent: b\nAllow\n" + OURS + "Disallow: /y", "-/y"),
    (OURS + "Disallow: /x\n\nAllow: /x/y\n\n\nDisallow: /z", "-/x +/x/y -/z"),
    # -- rules before any agent, and lines that are none, which end no group (2.2.4)
    ("Disallow: /\n" + OURS + "Disallow: /x", "+/a -/x"),
    ("Allow: /x\n" + NONE_FOR_US, "-/x"),
    ("Disallow: /", "+/a"),
    ("Sitemap: https://example.com/s.xml\nDisallow: /", "+/a"),
    (OURS + "Sitemap: https://example.com/s.xml\n" + ALL + "Disallow: /", "-/a"),
    (OURS + "Unknown: x\n" + ALL + "Disallow: /", "-/a"),
    (OURS + "Crawl-delay: 5\n" + ALL + "Disallow: /", "-/a"),
    (OURS + "Noindex: /x\nHost: example.com\nClean-param: a\nDisallow: /y", "+/x -/y"),
    (OURS + "Content-Signal: ai-train=no\nDisallow: /y", "+/x -/y"),
    (OURS + "Request-rate: 1/5\nVisit-time: 0600-0845\nDisallow: /y", "-/y"),
    (OURS + "Disallow: /x\nNonsense\n: /\n:\n::::\n/y\nDisallow: /z", "-/x +/y -/z"),
    ("foo: lakelens\nbar: /", "+/a"),
    # -- forms of a line
    ("User-agent:lakelens\nDisallow:/", "-/a"),
    ("  User-agent  :  lakelens  \n\t Disallow\t:\t/x \t\n", "-/x +/a"),
    ("User-agent: lakelens # us\nDisallow: /x # that\n# Disallow: /y\n#\nDisallow: /z#z", "-/x +/y -/z"),
    ("User-agent: lakelens#us\nDisallow: #/\n", "+/a"),
    ("#User-agent: lakelens\nDisallow: /", "+/a"),
    ("User-agent lakelens\nDisallow /x", "-/x +/a"),
    ("User-agent lakelens\nDisallow /x # and\nDisallow /y and /z", "-/x +/y +/z"),
    ("User-agent: lakelens\nDisallow all of it", "+/a"),
    ("User-agent: lakelens\nDisallow", "+/a"),
    ("User-agent: lakelens\nDisallow: /x: y", "-/x:%20y +/x"),
    ("Useragent: lakelens\nDisallow: /", "-/a"),
    ("User agent: lakelens\nDisallow: /", "-/a"),
    ("User-agents: lakelens\nDisallow: /", "+/a"),
    (OURS + "Dissallow: /a\nDissalow: /b\nDisalow: /c\nDiasllow: /d\nDisallaw: /e", "-/a -/b -/c -/d -/e +/f"),
    (OURS + "Disallows: /a\nXDisallow: /b\nDis-allow: /c\nDi\u017fallow: /d", "+/a +/b +/c +/d"),
    (OURS + "Disallow: /\u00a0", "-/a"),
    # -- forms of a file
    ("User-agent: lakelens\rDisallow: /x\rDisallow: /y", "-/x -/y +/a"),
    ("User-agent: lakelens\r\nDisallow: /x\r\n\r\nDisallow: /y$\r\n", "-/x -/y +/y/a"),
    ("User-agent: lakelens\n\rDisallow: /x\r\rDisallow: /y\n", "-/x -/y"),
    ("User-agent: lakelens\x0bDisallow: /x\nDisallow: /y", "+/x -/y"),
    (b"\xef\xbb\xbf" + NONE_FOR_US.encode(), "-/a"),
    (b"\xef\xbb" + NONE_FOR_US.encode(), "-/a"),
    (b"\xef" + NONE_FOR_US.encode(), "-/a"),
    (b"\xef\xbb\xbf\xef\xbb\xbf" + NONE_FOR_US.encode(), "-/a"),
    (b"\xef\xbb\xbf# notes\r\n" + NONE_FOR_US.encode(), "-/a"),
    (OURS.encode() + b"Disallow: /x\n\xef\xbb\xbfDisallow: /y", "-/x +/y"),
    (NONE_FOR_US.encode("utf-16"), "-/a"),
    (NONE_FOR_US.encode("utf-16-be"), "-/a"),
    (b"User-agent: lakelens\nDisallow: /x" + b"\0" * 100, "-/x +/a"),
    (b"User-agent: lakelens\0\nDisallow: /x\0\n\0Disallow: /y", "-/x -/y +/a"),
    (OURS.encode() + b"Disallow: /caf\xe9", "-/caf%E9 -/caf%e9s +/caf%C3%A9 +/caf"),
    (OURS.encode() + b"\xff\xfe: /\nDisallow: /\xff\xfe\nDisallow: /b", "-/%FF%FE -/b +/a"),
    ("<!DOCTYPE html>\n<html><head><title>404</title></head>\n<body>User-agent: * Disallow: /</body></html>", "+/a"),
    ("<html>\n<a href='http://example.com/'>\nDisallow: /\n</html>", "+/a"),
    (bytes(random.Random(1).randbytes(20_000)), "+/a +/"),
    (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "+/a"),
    (b"\0" * 5000, "+/a"),
    (b":" * 5000, "+/a"),
    (b"\n\r" * 5000 + NONE_FOR_US.encode(), "-/a"),
]
CASES = [(text, word[1:], word[0] == "+") for text, words in RULES for word in words.split()]


def test_the_table_is_no_smaller_than_it_was() -> None:
    assert len(CASES) >= 400 and {allowed for _, _, allowed in CASES} == {True, False}


@pytest.mark.parametrize(("text", "path", "allowed"), CASES, ids=lambda value: ascii(value)[:60])
def test_a_path_is_allowed_as_rfc_9309_has_it(text: str | bytes, path: str, allowed: bool) -> None:
    found = parse_robots(text.encode() if isinstance(text, str) else text)
    url = canonical_url(f"https://example.com{path}").href
    assert found.allows(url) == allowed
    assert found.text is not None and found.text.encode().decode() == found.text  # it can be stored
    again = robots_of(found.text)
    assert again == found and again.allows(url) == allowed


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.com", False),
        ("https://example.com?q", False),
        ("https://example.com#/x", False),
        ("https://example.com/x#/y", True),
        ("HTTPS://EXAMPLE.COM:8443/x", True),
        ("https://example.com/\u00e9", True),
        ("https://[2606:4700::1111]:8080/x?u=https://example.com/y", True),
        ("https://example.com/robots.txt#a", True),
        ("/x", True),
        ("/y", False),
    ],
)
def test_a_url_is_asked_about_by_its_path_and_query(url: str, allowed: bool) -> None:
    assert robots_of(ALL + "Disallow: /\nAllow: /x\nAllow: /\u00e9").allows(url) == allowed


def test_no_robots_txt_allows_all_and_an_empty_one_is_not_none() -> None:
    assert robots_of(None) == ABSENT and ABSENT.allows("https://example.com/a")
    assert (ABSENT.text, ABSENT.decision, ABSENT.crawl_delay_s, ABSENT.sitemaps) == (None, "absent", 0.0, ())
    empty = parse_robots(b"")
    assert robots_of("\ufeff" + NONE_FOR_US).allows("https://example.com/a") is False
    assert (empty.text, empty.decision) == ("", "allowed") and empty != ABSENT


def test_rules_survive_a_process_boundary() -> None:
    rules = parse_robots(b"User-agent: *\nDisallow: /a*b$\nCrawl-delay: 2\nSitemap: https://example.com/s.xml")
    copy = pickle.loads(pickle.dumps(rules))
    assert copy == rules and not copy.allows("https://example.com/a-b") and copy.allows("https://example.com/a-bc")


# -- limits -------------------------------------------------------------------------------------------------------


def padded(first: bytes, last: bytes, n_bytes_before_last: int) -> bytes:
    """A robots.txt in which `last` begins after so many bytes, at the start of a line."""
    n = n_bytes_before_last - len(first)
    return first + b"#" * (n - 1) + b"\n" + last


@pytest.mark.parametrize(
    ("last", "n_bytes_left", "paths"),
    [
        (b"Disallow: /abc\nDisallow: /d", 14, "-/abc +/d -/x"),  # the limit is where the line ends
        (b"Disallow: /abc\r\nDisallow: /d", 14, "-/abc +/d -/x"),
        (b"Disallow: /abc\rDisallow: /d", 15, "-/abc +/d -/x"),
        (b"Disallow: /abc\nDisallow: /d", 13, "+/abc +/ab +/ab0 -/x"),  # no rule is made of half a rule
        (b"Disallow: /abc\nDisallow: /d", 11, "+/abc +/z -/x"),
        (b"Disallow: /abc", 14, "-/abc -/x"),  # a file of just that size is whole
        (b"Disallow: /abc", 13, "+/abc +/z -/x"),
        (b"Disallow: /\xc3\xa9\nDisallow: /d", 12, "+/\u00e9 +/z +/d -/x"),  # within a character
        (b"Disallow: /abc\nDisallow: /d", 0, "+/abc +/d -/x"),
    ],
)
def test_what_lies_beyond_500_kib_is_not_read_and_a_line_cut_there_is_no_line(
    last: bytes, n_bytes_left: int, paths: str
) -> None:
    body = padded(b"User-agent: *\nDisallow: /x\n", last, MAX_ROBOTS_BYTES - n_bytes_left)
    for given in (body, body[: MAX_ROBOTS_BYTES + 1]):  # as whole as it was, or as the fetcher cuts it
        found = parse_robots(given)
        allowed = {path[1:]: path[0] == "+" for path in paths.split()}
        assert {path: found.allows(canonical_url(f"https://example.com{path}").href) for path in allowed} == allowed
        assert found.text is not None and len(found.text.encode()) <= MAX_ROBOTS_BYTES
        assert robots_of(found.text) == found


def test_a_byte_order_mark_does_not_hide_that_a_file_was_cut() -> None:
    body = padded(b"\xef\xbb\xbfUser-agent: *\n", b"Disallow: /abc\n", MAX_ROBOTS_BYTES - 12)
    assert parse_robots(body).allows("https://example.com/abc")


@pytest.mark.parametrize("body", [b"a" * 2_000_000, b"\xff" * 2_000_000, b"\0" * 2_000_000, b"User-agent: *" * 100_000])
def test_a_file_of_one_endless_line_says_nothing_and_is_kept_within_500_kib(body: bytes) -> None:
    found = parse_robots(body)
    assert found.allows("https://example.com/a")
    assert found.text is not None and len(found.text.encode()) <= MAX_ROBOTS_BYTES


def test_bytes_that_are_no_utf_8_do_not_grow_a_stored_file_beyond_500_kib() -> None:
    line = b"Disallow: /" + b"\xe9" * 50 + b"\n"
    found = parse_robots(b"User-agent: *\nDisallow: /x\n" + line * 8000)
    assert found.text is not None and MAX_ROBOTS_BYTES - 1000 < len(found.text.encode()) <= MAX_ROBOTS_BYTES
    assert not found.allows("https://example.com/x") and robots_of(found.text) == found


def took_s(body: bytes, urls: list[str]) -> tuple[float, int]:
    started = time.process_time()
    found = parse_robots(body)
    n_refused = sum(not found.allows(url) for url in urls)
    return time.process_time() - started, n_refused


@pytest.mark.parametrize(
    "line",
    [
        "Disallow: /f{n}/",
        "Disallow: /*/f{n}/*",
        "Disallow: /*-{n}.html$",
        "Disallow: /*?f{n}=",
        "Disallow: /f{n}$",
    ],
)
def test_a_full_file_of_20000_rules_answers_10000_urls_soon(line: str) -> None:
    body = (ALL + "".join(line.format(n=n) + "\n" for n in range(20_000))).encode()
    assert len(body) <= MAX_ROBOTS_BYTES
    paths = ("/a/b/f{n}/page-{n}.html", "/a/?f{n}=1&c=2", "/f{n}", "/f{n}/")
    urls = [f"https://example.com{path.format(n=n)}" for path in paths for n in range(0, 40_000, 16)]
    spent_s, n_refused = took_s(body, urls)
    assert (len(urls), n_refused) == (10_000, 1250) and spent_s < 2


@pytest.mark.parametrize(
    ("pattern", "path", "allowed"),
    [
        ("/*a*a*a*a*a*a*b", "/" + "a" * 20_000, True),
        ("/*a*a*a*a*a*a*b", "/" + "a" * 20_000 + "b", False),
        ("/" + "*a" * 5000 + "*b", "/" + "a" * 20_000, True),
        ("/" + "*a" * 5000 + "$", "/" + "a" * 20_000, False),
        ("/" + "*" * 50_000 + "b$", "/" + "a" * 20_000, True),
        ("/*" + "a" * 5000 + "b*c", "/" + "a" * 20_000, True),
        ("/*a?" * 1000 + "$", "/" + "a?" * 5000, True),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_pattern_of_many_wildcards_takes_no_time_that_grows_with_their_number(
    pattern: str, path: str, allowed: bool
) -> None:
    url = "https://example.com" + path
    spent_s, n_refused = took_s((ALL + f"Disallow: {pattern}\n").encode(), [url])
    assert spent_s < 0.5 and (n_refused == 0) == allowed


@pytest.mark.parametrize(
    "line",
    ["Disallow " + " " * 500_000 + "/", "User-agent" + " " * 500_000, " " * 500_000, "Disallow /" + "x " * 200_000],
)
def test_a_line_of_many_spaces_is_read_soon(line: str) -> None:
    spent_s, _ = took_s((ALL + line).encode(), ["https://example.com/a"])
    assert spent_s < 0.5


def reference(rules: list[tuple[bool, str]], path: str) -> bool:
    """The decision by regular expressions and nothing clever, for patterns and paths of a, b, /, * and $."""
    best = (0, True)
    for allows, pattern in rules:
        body, end = (pattern[:-1], r"\Z") if pattern.endswith("$") else (pattern, "")
        expression = ".*".join(re.escape(part) for part in body.split("*")) + end
        if pattern and re.match(expression, path):
            best = max(best, (len(pattern), allows))
    return best[1]


def test_any_small_set_of_rules_decides_as_regular_expressions_would() -> None:
    choice = random.Random(2)
    n_refused = 0
    for _ in range(2000):
        rules = [
            (
                choice.random() < 0.4,
                "/" + "".join(choice.choices("ab/*", k=choice.randrange(6))) + choice.choice(["", "", "$"]),
            )
            for _ in range(choice.randrange(1, 5))
        ]
        found = robots_of(ALL + "".join(f"{'Allow' if allows else 'Disallow'}: {rule}\n" for allows, rule in rules))
        for _ in range(5):
            path = "/" + "".join(choice.choices("ab/", k=choice.randrange(7)))
            assert found.allows(f"https://example.com{path}") == reference(rules, path), (rules, path)
            n_refused += not reference(rules, path)
    assert 2000 < n_refused < 8000


# -- delays and sitemaps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        ("", 0.0),
        (ALL, 0.0),
        (ALL + "Crawl-delay: 5", 5.0),
        (ALL + "crawl-DELAY:5", 5.0),
        (ALL + "Crawl-delay: 0", 0.0),
        (ALL + "Crawl-delay: 0.25", 0.25),
        (ALL + "Crawl-delay: .5", 0.5),
        (ALL + "Crawl-delay: 1.", 1.0),
        (ALL + "Crawl-delay: 10 # seconds", 10.0),
        (ALL + "Crawl-delay 3", 3.0),
        (ALL + "Crawl-delay:", 0.0),
        (ALL + "Crawl-delay: soon", 0.0),
        (ALL + "Crawl-delay: -5", 0.0),
        (ALL + "Crawl-delay: nan", 0.0),
        (ALL + "Crawl-delay: inf", 0.0),
        (ALL + "Crawl-delay: 1e3", 0.0),
        (ALL + "Crawl-delay: 1_000", 0.0),
        (ALL + "Crawl-delay: \u0665", 0.0),
        (ALL + "Crawl-delay: 1,5", 0.0),
        (ALL + "Crawl-delay: 999999999", DAY_S),
        (ALL + "Crawl-delay: " + "9" * 5000, DAY_S),
        (ALL + "Crawl-delay: 2\nCrawl-delay: 7\nCrawl-delay: 3", 7.0),
        (ALL + "Crawl-delay: 2\nCrawl-delay: x", 2.0),
        ("Crawl-delay: 5\n" + ALL + "Disallow: /x", 0.0),
        ("User-agent: other\nCrawl-delay: 5", 0.0),
        (ALL + "Crawl-delay: 9\nDisallow: /x\n" + OURS + "Crawl-delay: 2", 2.0),
        (OURS + "Crawl-delay: 2\nDisallow: /x\n" + ALL + "Crawl-delay: 9", 2.0),
        (ALL + "Crawl-delay: 9\nDisallow: /x\n" + OURS + "Disallow: /y", 0.0),
        (OURS + "Crawl-delay: 2\n" + ALL + "Crawl-delay: 9\nDisallow: /", 9.0),
        ("User-agent: a\n" + OURS + "Disallow: /x\nCrawl-delay: 4", 4.0),
        (OURS + "Disallow: /x\nUser-agent: a\nCrawl-delay: 4", 0.0),
        (
            OURS + "Crawl-delay: 2\nDisallow: /x\nUser-agent: a\nCrawl-delay: 9\nDisallow:\n" + OURS + "Crawl-delay: 3",
            3.0,
        ),
    ],
    ids=lambda value: ascii(sorted(value) if isinstance(value, frozenset) else value)[:60],
)
def test_the_delay_is_that_of_the_group_whose_rules_we_keep(text: str, delay_s: float) -> None:
    assert robots_of(text).crawl_delay_s == delay_s


@pytest.mark.parametrize(
    ("text", "sitemaps"),
    [
        ("", ()),
        ("Sitemap: https://example.com/s.xml", ("https://example.com/s.xml",)),
        ("SITEMAP:https://example.com/s.xml\r\nSite-map: /t.xml", ("https://example.com/s.xml", "/t.xml")),
        ("User-agent: other\nDisallow: /\nSitemap: https://a.example/s.xml", ("https://a.example/s.xml",)),
        ("Sitemap: /b\nSitemap: /a\nSitemap: /b", ("/b", "/a")),
        ("Sitemap: https://example.com/s.xml?a=1&b=2#c", ("https://example.com/s.xml?a=1&b=2",)),
        ("Sitemap:\nSitemap: # none\nSitemaps: /x", ()),
        ("Sitemap https://example.com/s.xml", ("https://example.com/s.xml",)),
        ("Sitemap: https://example.com/\u00fc.xml", ("https://example.com/\u00fc.xml",)),
        ("<p>Sitemap: https://example.com/s.xml</p>", ()),
    ],
)
def test_sitemaps_are_those_of_the_whole_file_as_written_each_once(text: str, sitemaps: tuple[str, ...]) -> None:
    assert robots_of(text).sitemaps == sitemaps


# -- opt-outs -----------------------------------------------------------------------------------------------------

INDEX = frozenset({"noindex"})
EVERYTHING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "tdm-reservation"})


@pytest.mark.parametrize(
    ("tags", "policy", "reason"),
    [
        ([], EVERYTHING, None),
        ([""], EVERYTHING, None),
        (["noai"], DEFAULT_OPT_OUTS, "noai"),
        (["NoAI"], DEFAULT_OPT_OUTS, "noai"),
        (["noimageai"], DEFAULT_OPT_OUTS, "noimageai"),
        (["noimageai, noai"], DEFAULT_OPT_OUTS, "noai"),
        ([" noindex ,\tNOIMAGEAI "], DEFAULT_OPT_OUTS, "noimageai"),
        (["noindex", "noai"], DEFAULT_OPT_OUTS, "noai"),
        (["noai,"], DEFAULT_OPT_OUTS, "noai"),
        (["noai-x, xnoai, no ai, noaiyes"], EVERYTHING, None),
        (["all, index, follow, nofollow, noarchive, nosnippet, notranslate"], EVERYTHING, None),
        (["noindex"], DEFAULT_OPT_OUTS, None),
        (["noindex"], INDEX, "noindex"),
        (["none"], DEFAULT_OPT_OUTS, None),
        (["none"], INDEX, "none"),
        (["none"], frozenset({"noimageindex"}), None),
        (["noimageindex"], INDEX, None),
        (["noimageindex"], frozenset({"noimageindex"}), "noimageindex"),
        (["noai"], INDEX, None),
        (["noai"], frozenset(), None),
        (["tdm-reservation"], EVERYTHING, None),
        (["lakelens: noai"], DEFAULT_OPT_OUTS, "noai"),
        (["LakeLens : NoAI"], DEFAULT_OPT_OUTS, "noai"),
        (["lakelens/1.0: noai"], DEFAULT_OPT_OUTS, "noai"),
        (["lakelens:noindex, noai"], DEFAULT_OPT_OUTS, "noai"),
        (["*: noai"], DEFAULT_OPT_OUTS, "noai"),
        (["lakelens-images: noai"], DEFAULT_OPT_OUTS, None),
        (["lake: noai"], DEFAULT_OPT_OUTS, None),
        (["googlebot: noindex"], EVERYTHING, None),
        (["googlebot: noindex, noai"], EVERYTHING, None),
        (["googlebot: noindex", "noai"], DEFAULT_OPT_OUTS, "noai"),
        (["noai, googlebot: noindex"], DEFAULT_OPT_OUTS, "noai"),
        (["googlebot: nofollow, otherbot: noindex, nofollow"], EVERYTHING, None),
        (["googlebot: nofollow, lakelens: noindex, noai"], DEFAULT_OPT_OUTS, "noai"),
        (["googlebot: nofollow, lakelens: noindex, otherbot: noai"], DEFAULT_OPT_OUTS, None),
        (["lakelens: all, otherbot: noai"], DEFAULT_OPT_OUTS, None),
        (["otherbot: noai, *: noindex"], INDEX, "noindex"),
        (["unavailable_after: 25 Jun 2040 15:00:00 PST"], EVERYTHING, None),
        (["unavailable_after: 25 Jun 2040 15:00:00 PST, noai"], DEFAULT_OPT_OUTS, "noai"),
        (["unavailable_after: Mon, 25 Jun 2040 15:00:00 GMT, noai"], DEFAULT_OPT_OUTS, "noai"),
        (["unavailable_after: Monday, 25-Jun-40 15:00:00 UTC, noai"], DEFAULT_OPT_OUTS, "noai"),
        (["unavailable_after: 2040-06-25T15:00:00+00:00, noai"], DEFAULT_OPT_OUTS, "noai"),
        (["unavailable_after: 25 Jun 2040, 15:00:00 UTC, noai"], DEFAULT_OPT_OUTS, "noai"),
        (["googlebot: unavailable_after: 25 Jun 2040 15:00:00 PST, noai"], DEFAULT_OPT_OUTS, None),
        (["max-snippet: 50, max-image-preview: large, max-video-preview: -1, noai"], DEFAULT_OPT_OUTS, "noai"),
        (["max-snippet:50", "max-image-preview:noai"], DEFAULT_OPT_OUTS, None),
        (["noindex: noai"], frozenset(), None),
        (["\ufffd, noai"], DEFAULT_OPT_OUTS, "noai"),
        ([": noai"], DEFAULT_OPT_OUTS, None),
        (["," * 10_000 + "noai"], DEFAULT_OPT_OUTS, "noai"),
    ],
    ids=lambda value: ascii(sorted(value) if isinstance(value, frozenset) else value)[:60],
)
def test_a_header_refuses_by_directives_of_the_policy_for_all_or_for_us(
    tags: list[str], policy: frozenset[str], reason: str | None
) -> None:
    assert opts_out(tags, None, policy) == (reason and f"X-Robots-Tag: {reason}")
    if policy == DEFAULT_OPT_OUTS:
        assert opts_out(iter(tags), "0") == opts_out(tags, None, policy)


@pytest.mark.parametrize(
    ("value", "policy", "is_refused"),
    [
        ("1", DEFAULT_OPT_OUTS, True),
        (" 1 ", DEFAULT_OPT_OUTS, True),
        ("0", DEFAULT_OPT_OUTS, False),
        ("", DEFAULT_OPT_OUTS, False),
        ("11", DEFAULT_OPT_OUTS, False),
        ("true", DEFAULT_OPT_OUTS, False),
        (None, DEFAULT_OPT_OUTS, False),
        ("1", frozenset({"tdm-reservation"}), True),
        ("1", EVERYTHING - {"tdm-reservation"}, False),
        ("1", frozenset(), False),
    ],
)
def test_a_tdm_reservation_is_the_value_1_where_the_policy_holds_to_it(
    value: str | None, policy: frozenset[str], is_refused: bool
) -> None:
    assert opts_out([], value, policy) == ("TDM-Reservation: 1" if is_refused else None)


@pytest.mark.parametrize(
    ("directives", "policy", "reason"),
    [
        (set(), EVERYTHING, None),
        ({"noai"}, DEFAULT_OPT_OUTS, "meta: noai"),
        ({"noimageai", "nofollow"}, DEFAULT_OPT_OUTS, "meta: noimageai"),
        ({"tdm-reservation"}, DEFAULT_OPT_OUTS, "meta: tdm-reservation"),
        ({"tdm-reservation"}, INDEX, None),
        ({"noindex", "none", "nofollow", "noimageindex"}, DEFAULT_OPT_OUTS, None),
        ({"noindex"}, INDEX, "meta: noindex"),
        ({"none"}, INDEX, "meta: none"),
        ({"none"}, frozenset({"noimageindex"}), None),
        ({"noimageindex"}, frozenset({"noimageindex"}), "meta: noimageindex"),
        ({"noai", "noindex"}, EVERYTHING, "meta: noai"),
        ({"noai"}, frozenset(), None),
        ({"all", "index", "follow"}, EVERYTHING, None),
    ],
)
def test_a_page_refuses_by_directives_of_the_policy(
    directives: set[str], policy: frozenset[str], reason: str | None
) -> None:
    assert page_opts_out(frozenset(directives), policy) == reason


def test_the_policy_of_old_callers_is_the_default_and_all_names_are_known() -> None:
    assert frozenset({"noai", "noimageai", "tdm-reservation"}) == DEFAULT_OPT_OUTS and OPT_OUTS == EVERYTHING
    assert opts_out(["noindex"], None) is None and opts_out(["noai"], None) == "X-Robots-Tag: noai"
