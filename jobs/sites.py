"""What a page or sitemap of a site leads to, as sightings: links within its hosts, media. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jobs.outcomes import TEXT_TYPES
from jobs.pages import read_page
from jobs.robots import page_opts_out
from jobs.sitemaps import read_sitemap
from jobs.sources import Part, Sighting, row_sighting
from jobs.urls import is_trap

PAGE, SITEMAP = "page", "sitemap"  # what a document is expected to be, other than a picture or video
MAX_BYTES = {PAGE: 10 << 20, SITEMAP: 50 << 20}  # sitemaps.org: of one sitemap, uncompressed


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a source of kind site may go."""

    source: str
    hosts: frozenset[str]  # as URLs have them
    depth: int  # links from a start
    sitemaps: bool
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


def is_text(mime: str | None, declared: str) -> bool:
    """Whether an answer may be a page or sitemap, by its bytes or, where these do not tell, as declared."""
    if mime is None:
        return "text" in declared.lower() or "xml" in declared.lower()
    return mime.startswith(TEXT_TYPES) or mime == "application/gzip"


def leads_to(
    site: Site, expects: str | None, answer: Answer, *, depth: int, opt_outs: frozenset[str]
) -> Iterator[Sighting]:
    """What an answer leads to that was asked for as a page or sitemap, `depth` links from where the site is entered."""
    if expects == SITEMAP:
        yield from found_in_sitemap(site, answer.body, answer.url, depth=depth)
        return
    yield from found_in_page(
        site, answer.body, answer.url, depth=depth, content_type=answer.content_type, opt_outs=opt_outs
    )
    if depth == 0:
        yield from listed_sitemaps(site, answer.sitemaps)


def site_sightings(part: Part) -> Iterator[Sighting]:
    """The page that a site is entered by; its sitemaps are those that robots.txt names, known with the page."""
    yield row_sighting({"url": part.uri}, part, held={"expects": PAGE, "depth": 0})


def listed_sitemaps(site: Site, urls: Iterable[str]) -> Iterator[Sighting]:
    """The sitemaps that the robots.txt of a site's host names."""
    for url in urls:
        found = row_sighting({"url": url}, site.part, held={"expects": SITEMAP, "depth": 0})
        if site.sitemaps and found.problem is None and found.host in site.hosts:
            yield found


def found_in_page(
    site: Site, body: bytes, url: str, *, depth: int, content_type: str | None, opt_outs: frozenset[str]
) -> list[Sighting]:
    """What a page at `url`, `depth` links from a start, shows and leads to.

    Pictures may stand on any host, pages on those of the site alone. What the page says of its pictures for robots is
    said of each of them; links it does not want followed are not.
    """
    page, part = read_page(body, url, content_type=content_type, drop=site.drop), site.part
    opted_out = page_opts_out(page.directives, opt_outs) is not None
    found = [
        row_sighting(
            {"url": media.url, "caption": media.caption, "page_url": url, "page_title": page.title},
            part,
            held={"opted_out": opted_out},
        )
        for media in page.media
    ]
    if depth < site.depth and not page.directives & {"nofollow", "none"}:
        shown = {media.url for media in page.media}
        links = (link.url for link in page.links if not link.nofollow and link.url not in shown)
        found += _pages(site, links, depth=depth + 1)
    return found


def found_in_sitemap(site: Site, body: bytes, url: str, *, depth: int) -> list[Sighting]:
    """The pages of a sitemap, which are as near as a start, its pictures and videos, and further sitemaps."""
    sitemap, part = read_sitemap(body, url, drop=site.drop), site.part
    found = [
        row_sighting(
            {
                "url": media.url,
                "caption": media.caption,
                "page_url": media.page_url,
                "page_title": media.title,
                "license": media.license,
            },
            part,
        )
        for media in sitemap.media
    ]
    found += _pages(site, (page.url for page in sitemap.pages), depth=0)
    if depth < 1:  # an index names sitemaps, and no index
        further = (row_sighting({"url": one}, part, held={"expects": SITEMAP, "depth": 1}) for one in sitemap.sitemaps)
        found += [one for one in further if one.problem is None and one.host in site.hosts]
    return found


def _pages(site: Site, urls: Iterable[str], *, depth: int) -> Iterator[Sighting]:
    for url in urls:
        found = row_sighting({"url": url}, site.part, held={"expects": PAGE, "depth": depth})
        if found.problem is None and found.host in site.hosts and is_trap(found.url) is None:
            yield found
