"""What a site leads to: pages within its hosts and depth, media of any host, and what its pages do not want."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.config import Source
from jobs.crawl import site_of
from jobs.robots import DEFAULT_OPT_OUTS
from jobs.sites import Answer, Site, is_text, leads_to
from jobs.sources import Sighting, SourceError, check_source, sightings

SITE = Site(source="s", hosts=frozenset({"a.example"}), depth=2, sitemaps=True, priority=3, drop=("utm_*",))
PAGE = b"""<!doctype html><title>All  cats</title>
<a href="/one?utm_source=x&p=1">one</a> <a href=//www.a.example/two>two</a> <a href="https://b.example/three">three</a>
<a rel=nofollow href=/four>four</a> <a href="/b/c/b/c/b/c/b/c">trap</a> <a href=/big.jpg>big</a>
<img src=cat.jpg alt="a cat"> <img src="http://cdn.example/dog.jpg?utm_id=4">
<video src=/clip.mp4></video>"""


def led(
    body: bytes, url: str = "http://a.example/x/", *, site: Site = SITE, depth: int = 0, **more: Any
) -> list[Sighting]:
    expects, opt_outs = more.pop("expects", "page"), more.pop("opt_outs", DEFAULT_OPT_OUTS)
    answer = Answer(body=body, url=url, content_type="text/html", sitemaps=more.pop("sitemaps", ()))
    return list(leads_to(site, expects, answer, depth=depth, opt_outs=opt_outs))


def test_a_page_leads_to_its_media_on_any_host_and_to_pages_on_the_hosts_of_its_site() -> None:
    found = led(PAGE)
    media = {one.url: (one.caption, one.page_title, one.page_url) for one in found if one.expects is None}
    shown = ("All cats", "http://a.example/x/")
    assert media == {
        "http://a.example/x/cat.jpg": ("a cat", *shown),
        "http://cdn.example/dog.jpg": (None, *shown),
        "http://a.example/clip.mp4": (None, *shown),
        "http://a.example/big.jpg": ("big", *shown),
    }
    pages = {one.url: one.depth for one in found if one.expects == "page"}
    assert pages == {"http://a.example/one?p=1": 1}
    assert {(one.source, one.priority, one.opted_out) for one in found} == {("s", 3, False)}


def test_links_are_followed_to_the_depth_of_the_site_and_no_further() -> None:
    assert [one.depth for one in led(PAGE, depth=1) if one.expects == "page"] == [2]
    assert [one for one in led(PAGE, depth=2) if one.expects == "page"] == []
    assert len(led(PAGE, depth=2)) == 4


@pytest.mark.parametrize("hosts", [frozenset({"www.a.example"}), frozenset({"b.example"})])
def test_the_hosts_to_keep_to_are_exact(hosts: frozenset[str]) -> None:
    assert {one.host for one in led(PAGE, site=replace(SITE, hosts=hosts)) if one.expects == "page"} == hosts


@pytest.mark.parametrize(
    ("directives", "n_pages", "is_opted_out"),
    [
        ("nofollow", 0, False),
        ("none", 0, False),
        ("noai", 1, True),
        ("NoImageAI, nofollow", 0, True),
        ("index", 1, False),
    ],
)
def test_what_a_page_says_of_itself_is_said_of_its_media_and_links(
    directives: str, n_pages: int, is_opted_out: bool
) -> None:
    found = led(PAGE.replace(b"<title>", f'<meta name=robots content="{directives}"><title>'.encode()))
    assert sum(one.expects == "page" for one in found) == n_pages
    assert {one.opted_out for one in found if one.expects is None} == {is_opted_out}


def test_where_a_site_is_entered_its_robots_txt_names_sitemaps() -> None:
    named = ("http://a.example/map.xml", "http://b.example/map.xml", "no url")
    found = [one for one in led(PAGE, sitemaps=named) if one.expects == "sitemap"]
    assert [(one.url, one.depth) for one in found] == [("http://a.example/map.xml", 0)]
    assert not any(one.expects == "sitemap" for one in led(PAGE, depth=1, sitemaps=named))
    assert not any(one.expects == "sitemap" for one in led(PAGE, site=replace(SITE, sitemaps=False), sitemaps=named))


def test_a_sitemap_leads_to_pages_as_near_as_a_start_and_an_index_to_sitemaps_but_to_no_index() -> None:
    entries = b"<url><loc>http://a.example/p</loc></url><url><loc>http://b.example/p</loc></url>"
    found = led(b"<urlset>" + entries + b"</urlset>", expects="sitemap")
    assert [(one.url, one.expects, one.depth) for one in found] == [("http://a.example/p", "page", 0)]
    index = b"<sitemapindex><sitemap><loc>http://a.example/m1.xml</loc></sitemap></sitemapindex>"
    assert [(one.url, one.expects, one.depth) for one in led(index, expects="sitemap")] == [
        ("http://a.example/m1.xml", "sitemap", 1)
    ]
    assert led(index, expects="sitemap", depth=1) == []


@pytest.mark.parametrize(
    ("mime", "declared", "is_one"),
    [
        ("text/html", "", True),
        (None, "text/html; charset=x", True),
        (None, "application/xhtml+xml", True),
        ("application/gzip", "", True),
        (None, "", False),
        (None, "application/octet-stream", False),
        ("image/jpeg", "text/html", False),
        ("application/pdf", "text/html", False),
    ],
)
def test_an_answer_may_be_a_page_by_its_bytes_or_as_declared(mime: str | None, declared: str, is_one: bool) -> None:
    assert is_text(mime, declared) is is_one


def test_a_site_keeps_to_the_hosts_of_its_starts_unless_it_is_told_others() -> None:
    start = ("http://a.example/x", "http://b.example:8080/")
    source = Source(name="s", kind="site", start=start, depth=1, priority=2)
    assert site_of(source).hosts == frozenset({"a.example", "b.example:8080"})
    assert site_of(source.model_copy(update={"hosts": ("c.example",)})).hosts == frozenset({"c.example"})
    assert [(one.url, one.expects, one.depth, one.priority) for one in sightings(source)] == [
        (url, "page", 0, 2) for url in start
    ]
    with pytest.raises(SourceError, match="source s: start: scheme 'ftp:' is not one of"):
        check_source(source.model_copy(update={"start": ("ftp://a.example/",)}))
