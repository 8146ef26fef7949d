"""What a page or sitemap of a site leads to, as sightings: links within its hosts, media. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from sys import getsizeof

from jobs.outcomes import TEXT_TYPES
from jobs.pages import read_page
from jobs.robots import page_opts_out
from jobs.sitemaps import read_sitemap
from jobs.sources import Part, Sighting, row_sighting
from jobs.urls import canonical_url, doc_id, is_trap, registrable

PAGE, SITEMAP = "page", "sitemap"  # what a document is expected to be, other than a picture or video
MAX_BYTES = {PAGE: 10 << 20, SITEMAP: 50 << 20}  # sitemaps.org: of one sitemap, uncompressed
# Of what one answer leads to. 50,000 pages with a picture each, the most of a usual sitemap, were 63 MB as counted here
# and 58 MB in fact; a sitemap of 3 MB with one long title for all its pictures would be a gigabyte.
MAX_FOUND_BYTES = 96 << 20
SIGHTING_BYTES = 450  # of a sighting without its texts: measured 440


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a source of kind site may go."""

    source: str
    hosts: frozenset[str]  # as URLs have them
    depth: int  # links from a start
    sitemaps: bool
    starts: frozenset[str] = frozenset()  # doc_ids of the pages that it is entered by
    follows: bool = False  # the hosts are those of the starts: where these lead to within their domains counts too
    priority: int = 0
    drop: tuple[str, ...] = ()  # parameters taken out of URLs

    @property
    def part(self) -> Part:
        """The part of the source that its sightings belong to."""
        return Part(source=self.source, kind="site", uri="", priority=self.priority, drop=self.drop)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request for a page or sitemap."""

    body: bytes
    url: str  # after redirects
    content_type: str | None
    sitemaps: tuple[str, ...]  # that the robots.txt of its origin names
    doc_id: str | None = None  # of the document asked for; None: that of `url`
    asked: str | None = None  # URL that was asked for; None: `url`
    page_url: str | None = None  # of a sitemap: the start whose robots.txt led to it

    def is_start(self, site: Site) -> bool:
        """Whether it is what a page answers that a site is entered by."""
        return (self.doc_id or doc_id(self.url)) in site.starts


def hosts_of(site: Site, expects: str | None, answer: Answer) -> frozenset[str]:
    """The hosts whose pages an answer may lead to.

    Of a site that follows its starts also the host within one of its domains that a start leads to, and so the host on
    which a page was asked for, as such pages were found; and a host that only `www.` tells from that one.
    """
    if not site.follows:
        return site.hosts
    led, asked = _host(answer.url), _host(answer.asked or answer.url)
    if expects == SITEMAP:
        reached = {_host(answer.page_url) if answer.page_url is not None else asked}
    else:
        is_same = led.removeprefix("www.") == asked.removeprefix("www.")
        reached = {asked, led} if is_same or answer.is_start(site) else {asked}
    domains = {registrable(host) for host in site.hosts}
    return site.hosts | {host for host in reached if registrable(host) in domains}


def _host(url: str) -> str:
    return canonical_url(url).host


def is_text(mime: str | None, declared: str) -> bool:
    """Whether an answer may be a page or sitemap, by its bytes or, where these do not tell, as declared."""
    if mime is None:
        return "text" in declared.lower() or "xml" in declared.lower()
    return mime.startswith(TEXT_TYPES) or mime == "application/gzip"


def leads_to(
    site: Site, expects: str | None, answer: Answer, *, depth: int, opt_outs: frozenset[str]
) -> Iterator[Sighting]:
    """What an answer leads to that was asked for as a page or sitemap, `depth` links from where the site is entered.

    At most MAX_FOUND_BYTES of it, as `held_bytes` counts.
    """
    n_bytes = 0
    for found in _all_found(site, expects, answer, depth=depth, opt_outs=opt_outs):
        n_bytes += held_bytes(found)
        if n_bytes > MAX_FOUND_BYTES:
            return
        yield found


def held_bytes(found: Sighting) -> int:
    """The memory that a sighting takes, about, where it shares no text with another."""
    texts = (found.url, found.page_url, found.page_title, found.caption, found.license)
    return SIGHTING_BYTES + sum(getsizeof(text) for text in texts if text is not None)


def _all_found(
    site: Site, expects: str | None, answer: Answer, *, depth: int, opt_outs: frozenset[str]
) -> Iterator[Sighting]:
    hosts = hosts_of(site, expects, answer)
    if expects == SITEMAP:
        yield from found_in_sitemap(site, answer, hosts, depth=depth)
        return
    yield from found_in_page(site, answer, hosts, depth=depth, opt_outs=opt_outs)
    if site.sitemaps and answer.is_start(site) and _host(answer.url) in hosts:
        yield from listed_sitemaps(site, answer)


def site_sightings(part: Part) -> Iterator[Sighting]:
    """The page that a site is entered by; its sitemaps are those that robots.txt names, known with the page."""
    yield row_sighting({"url": part.uri}, part, held={"expects": PAGE, "depth": 0})


def listed_sitemaps(site: Site, answer: Answer) -> Iterator[Sighting]:
    """The sitemaps that the robots.txt of a start's host names, on any host: so says the host that it speaks for."""
    held = {"expects": SITEMAP, "depth": 0}
    for url in answer.sitemaps:
        found = row_sighting({"url": url, "page_url": answer.url}, site.part, base=answer.url, held=held)
        if found.problem is None:
            yield found


def found_in_page(
    site: Site, answer: Answer, hosts: frozenset[str], *, depth: int, opt_outs: frozenset[str]
) -> Iterator[Sighting]:
    """What a page, `depth` links from a start, shows and leads to.

    Pictures may stand on any host, pages on `hosts` alone. What the page says of its pictures for robots is said of
    each of them; links it does not want followed are not.
    """
    url, part = answer.url, site.part
    page = read_page(answer.body, url, content_type=answer.content_type, drop=site.drop)
    refusal = page_opts_out(page.directives, opt_outs)
    held = {"opted_out": refusal is not None, "opted_out_by": refusal}
    for media in page.media:
        row = {"url": media.url, "caption": media.caption, "page_url": url, "page_title": page.title}
        yield row_sighting(row, part, held=held)
    if depth < site.depth and not page.directives & {"nofollow", "none"}:
        shown = {media.url for media in page.media}
        links = (link.url for link in page.links if not link.nofollow and link.url not in shown)
        yield from _pages(site, links, hosts, page_url=url, depth=depth + 1)


def found_in_sitemap(site: Site, answer: Answer, hosts: frozenset[str], *, depth: int) -> Iterator[Sighting]:
    """The pages of a sitemap, which are as near as a start, further sitemaps, and its pictures and videos.

    Pages stand on `hosts`, sitemaps on these or beside the index that names them.
    """
    sitemap, part = read_sitemap(answer.body, answer.url, drop=site.drop), site.part
    yield from _pages(site, sitemap.pages, hosts, page_url=answer.url, depth=0)
    if depth < 1:  # an index names sitemaps, and no index
        near = hosts | {_host(answer.url)}
        for url in sitemap.sitemaps:
            row = {"url": url, "page_url": answer.page_url}
            found = row_sighting(row, part, held={"expects": SITEMAP, "depth": 1})
            if found.problem is None and found.host in near:
                yield found
    for media in sitemap.media:
        row = {"url": media.url, "caption": media.caption, "page_url": media.page_url, "page_title": media.title}
        yield row_sighting(row | {"license": media.license}, part)


def _pages(site: Site, urls: Iterable[str], hosts: frozenset[str], *, page_url: str, depth: int) -> Iterator[Sighting]:
    for url in urls:
        found = row_sighting({"url": url, "page_url": page_url}, site.part, held={"expects": PAGE, "depth": depth})
        if found.problem is None and found.host in hosts and is_trap(found.url) is None:
            yield found
