"""What a site leads to: pages within its hosts and depth, media of any host, and what its pages do not want."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs import sites
from jobs.config import Source, load_config
from jobs.crawl import settings_of, site_of
from jobs.fetch import fetch
from jobs.outcomes import Outcome, Request
from jobs.robots import DEFAULT_OPT_OUTS
from jobs.sites import Answer, Site, held_bytes, is_text, leads_to
from jobs.sources import Sighting, SourceError, check_source, sightings
from jobs.urls import canonical_url, doc_id
from tests.crawl_site import answer, serving

START = "http://a.example/x/"
SITE = Site(
    source="s",
    hosts=frozenset({"a.example"}),
    depth=2,
    sitemaps=True,
    starts=frozenset({doc_id(START)}),
    priority=3,
    drop=("utm_*",),
)
PAGE = b"""<!doctype html><title>All  cats</title>
<a href="/one?utm_source=x&p=1">one</a> <a href=//www.a.example/two>two</a> <a href="https://b.example/three">three</a>
<a rel=nofollow href=/four>four</a> <a href="/b/c/b/c/b/c/b/c">trap</a> <a href=/big.jpg>big</a>
<img src=cat.jpg alt="a cat"> <img src="http://cdn.example/dog.jpg?utm_id=4">
<video src=/clip.mp4></video>"""


def led(body: bytes, url: str = START, *, site: Site = SITE, depth: int = 0, **more: Any) -> list[Sighting]:
    expects, opt_outs = more.pop("expects", "page"), more.pop("opt_outs", DEFAULT_OPT_OUTS)
    answer = Answer(body=body, url=url, content_type="text/html", **{"sitemaps": (), **more})
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
    reasons = {one.opted_out_by for one in found}
    assert reasons - {None} == ({f"meta: {directives.lower().partition(',')[0]}"} if is_opted_out else set())


def hosts_led_to(url: str, *, start: str = "http://a.example/", hosts: tuple[str, ...] = (), **more: Any) -> set[str]:
    """Of pages on hosts of all sorts those that the answer of `url` leads to."""
    site = site_of(Source(name="s", kind="site", start=(start,), hosts=hosts))
    names = ("a.example", "www.a.example", "en.a.example", "a.example:8080", "b.example", "www.b.example")
    body = "".join(f"<a href=//{name}/next>x</a>" for name in names)
    if more.get("expects") == "sitemap":
        body = "\n".join(f"http://{name}/next" for name in names)
    more = {"asked": start, "doc_id": doc_id(more.get("asked", start)), **more}
    return {one.host for one in led(body.encode(), url, site=site, **more) if one.expects == "page"}


def test_a_site_goes_on_where_its_start_leads_within_its_domain() -> None:
    assert hosts_led_to("http://a.example/") == {"a.example"}
    assert hosts_led_to("https://www.a.example/") == {"a.example", "www.a.example"}
    assert hosts_led_to("http://en.a.example/home") == {"a.example", "en.a.example"}
    assert hosts_led_to("http://a.example:8080/") == {"a.example", "a.example:8080"}
    assert hosts_led_to("http://b.example/") == {"a.example"}  # a domain of somebody else
    assert hosts_led_to("http://en.a.example/", hosts=("a.example", "b.example")) == {"a.example", "b.example"}


def test_what_a_start_led_to_goes_on_in_pages_and_sitemaps_that_were_found_there() -> None:
    page = "http://en.a.example/page"
    assert hosts_led_to(page, asked=page) == {"a.example", "en.a.example"}
    assert hosts_led_to(page, asked="http://a.example/page") == {"a.example"}  # no start
    old = "http://a.example/old"  # as sitemaps have it that nobody changed since the host was renamed
    assert hosts_led_to("https://www.a.example/old", asked=old) == {"a.example", "www.a.example"}
    assert hosts_led_to(old, asked="https://www.a.example/old") == {"a.example", "www.a.example"}
    sitemap: dict[str, Any] = {"expects": "sitemap", "asked": "http://maps.example/m.xml"}
    assert hosts_led_to("http://maps.example/m.xml", **sitemap) == {"a.example"}
    assert hosts_led_to("http://maps.example/m.xml", page_url=page, **sitemap) == {"a.example", "en.a.example"}
    assert hosts_led_to("http://b.example/m.xml", page_url="http://b.example/", **sitemap) == {"a.example"}


def test_a_start_has_sitemaps_where_its_robots_txt_says_on_any_host() -> None:
    named = ("http://a.example/map.xml", "https://maps.example/a.xml", "/more.xml", "http://")
    found = [one for one in led(PAGE, sitemaps=named) if one.expects == "sitemap"]
    assert [(one.url, one.depth, one.page_url) for one in found] == [
        ("http://a.example/map.xml", 0, START),
        ("https://maps.example/a.xml", 0, START),
        ("http://a.example/more.xml", 0, START),
    ]
    assert not any(one.expects == "sitemap" for one in led(PAGE, site=replace(SITE, sitemaps=False), sitemaps=named))


def test_no_page_but_a_start_has_sitemaps_however_near_it_is_and_none_that_leads_away() -> None:
    maps = ("http://a.example/map.xml",)
    assert not any(one.expects == "sitemap" for one in led(PAGE, "http://a.example/of_sitemap", sitemaps=maps))
    moved: dict[str, Any] = {"doc_id": doc_id(START), "asked": START, "sitemaps": maps}
    assert sum(one.expects == "sitemap" for one in led(PAGE, "http://a.example/home", **moved)) == 1
    assert not any(one.expects == "sitemap" for one in led(PAGE, "http://b.example/", **moved))


def test_an_index_leads_to_sitemaps_beside_it_and_on_the_hosts_of_its_site() -> None:
    names = ("http://maps.example/1.xml", "http://a.example/2.xml", "http://b.example/3.xml")
    body = "".join(f"<sitemap><loc>{name}</loc></sitemap>" for name in names)
    index = f"<sitemapindex>{body}</sitemapindex>".encode()
    found = led(index, "http://maps.example/index.xml", expects="sitemap", page_url=START)
    assert [(one.url, one.page_url) for one in found] == [(names[0], START), (names[1], START)]


def test_a_start_that_leads_to_another_host_is_followed_over_http() -> None:
    pages: dict[str, Any] = {
        "/": answer(body=b"<title>Home</title><a href=/next>n</a>", Content_Type="text/html"),
        "/robots.txt": answer(body=b"Sitemap: /map.xml"),
    }
    with serving(pages) as there, serving({"/": answer("301 Moved", Location=there.url("/"))}) as here:
        source = {"name": "s", "kind": "site", "start": [here.url("/")]}
        said = {"sources": [source], "allow_addresses": [here.address, there.address], "delay_s": 0}
        settings = settings_of(load_config((), (), {"crawl": said}).crawl)
        url = canonical_url(here.url("/"))
        asked = Request(doc_id=doc_id(url.href), url=url.href, host=url.host, source="s", expects="page", depth=0)
        (outcome,) = (one for one in fetch([asked], settings) if isinstance(one, Outcome))
        found = {one.url: one.expects for one in outcome.found or ()}
        assert found == {there.url("/next"): "page", there.url("/map.xml"): "sitemap"}


def test_a_sitemap_leads_to_pages_as_near_as_a_start_and_an_index_to_sitemaps_but_to_no_index() -> None:
    entries = b"<url><loc>http://a.example/p</loc></url><url><loc>http://b.example/p</loc></url>"
    entries += b"<url><loc>http://a.example/b/c/b/c/b/c/b/c</loc></url>"  # a trap
    found = led(b"<urlset>" + entries + b"</urlset>", expects="sitemap")
    assert [(one.url, one.expects, one.depth) for one in found] == [("http://a.example/p", "page", 0)]
    index = b"<sitemapindex><sitemap><loc>http://a.example/m1.xml</loc></sitemap></sitemapindex>"
    assert [(one.url, one.expects, one.depth) for one in led(index, expects="sitemap")] == [
        ("http://a.example/m1.xml", "sitemap", 1)
    ]
    assert led(index, expects="sitemap", depth=1) == []


def test_what_one_answer_leads_to_is_bounded_in_memory_and_pages_come_before_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sites, "MAX_FOUND_BYTES", 1 << 20)
    image = "<image:image><image:loc>/{n}.jpg</image:loc></image:image>"
    images = "".join(image.replace("{n}", str(n)) for n in range(2000))
    words = f"<title>{'t' * 5000}</title><license>{'l' * 5000}</license>"
    body = f"<urlset><url><loc>/p</loc>{words}{images}</url><url><loc>http://a.example/q</loc></url></urlset>"
    found = led(body.encode(), expects="sitemap")
    assert [one.expects for one in found][:3] == ["page", "page", None]
    assert (1 << 20) / 11_000 - 3 < len(found) < (1 << 20) / 10_000
    texts = sum(len(getattr(one, name) or "") for one in found for name in ("url", "page_title", "license"))
    assert texts < sum(map(held_bytes, found)) < 1 << 20


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
    assert site_of(source).hosts == frozenset({"a.example", "b.example:8080"}) and site_of(source).follows
    told = site_of(Source(name="s", kind="site", start=start, hosts=("WWW.C.example.:80", "bücher.example")))
    assert told.hosts == frozenset({"www.c.example", "xn--bcher-kva.example"}) and not told.follows
    assert [(one.url, one.expects, one.depth, one.priority) for one in sightings(source)] == [
        (url, "page", 0, 2) for url in start
    ]
    with pytest.raises(SourceError, match="source s: start: scheme 'ftp:' is not one of"):
        check_source(source.model_copy(update={"start": ("ftp://a.example/",)}))
    with pytest.raises(SourceError, match="source s: start: scheme 'ftp:' is not one of"):
        site_of(source.model_copy(update={"start": ("ftp://a.example/",)}))
