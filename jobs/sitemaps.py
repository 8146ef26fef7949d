"""What a sitemap or a feed lists: pages, media and further sitemaps. Knows bytes and URLs, no network and no table."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from dataclasses import dataclass, field
from xml.parsers import expat

from jobs.markup import MAX_TEXT, decoded
from jobs.urls import InvalidUrl, canonical_url

MAX_BYTES = 50 << 20  # of a sitemap, uncompressed (sitemaps.org, protocol 0.9), as MAX_URLS
MAX_URLS = 50_000
MAX_MEDIA = 50_000
MAX_ELEMENTS = 40 * MAX_URLS  # reading them takes seconds
MAX_DEPTH = 1_000  # expat holds each element that is open: 50 MB of them take gigabytes
_CHUNK_BYTES = 1 << 16
_XML_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_LINE = re.compile(r"^[ \t]*+(https?:.*+)(\n?)", re.IGNORECASE | re.MULTILINE)

_NOT_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
# CDATA sections stay as they are. Elsewhere only the five entities of XML are left, so that an `&` of a URL that was
# not escaped does not end the reading, and so that there is nothing which a DTD could define.
_BARE_AMPERSAND = re.compile(
    r"(<!\[CDATA\[.*?(?:\]\]>|\Z))|&(?!(?:#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6}|amp|lt|gt|quot|apos);)", re.DOTALL
)
_WORDS = frozenset({"loc", "caption", "title", "license", "content_loc", "link", "guid", "description"})
_ITEMS = frozenset({"url", "sitemap", "item", "entry"})
_OF_MEDIA = frozenset({"image", "video", "content", "group"})


@dataclass(frozen=True)
class SitemapMedia:
    """An image or video of a page, by the image and video extensions, an enclosure or Media RSS."""

    url: str
    caption: str | None
    title: str | None
    page_url: str | None
    license: str | None


@dataclass(frozen=True)
class Sitemap:
    """What one file lists; URLs are canonical, each once, in its order, of whatever host."""

    pages: tuple[str, ...] = ()
    sitemaps: tuple[str, ...] = ()  # of an index
    media: tuple[SitemapMedia, ...] = ()
    problem: str | None = None  # why the file was refused or not read to its end


def read_sitemap(body: bytes, url: str, drop: tuple[str, ...] = ()) -> Sitemap:
    """What the sitemap, sitemap index, RSS or Atom feed or list of URLs at `url` lists, compressed or not.

    At most MAX_URLS entries and MAX_MEDIA media. What stands before a break is read; more than MAX_BYTES are refused.
    Raises nothing.
    """
    body, problem = _uncompressed(body)
    if len(body) > MAX_BYTES:
        return Sitemap(problem=f"more than {MAX_BYTES} bytes uncompressed")
    text = decoded(body, None).lstrip("\ufeff\0 \t\r\n")
    reading = _Reading(url, drop)
    stopped = _read_xml(text, reading) if text.startswith("<") else _read_lines(text, reading, is_whole=problem is None)
    return Sitemap(
        pages=tuple(reading.pages),
        sitemaps=tuple(reading.sitemaps),
        media=tuple(reading.media.values()),
        problem=problem or stopped,
    )


def _uncompressed(body: bytes) -> tuple[bytes, str | None]:
    """The bytes in a gzip body, at most one chunk above MAX_BYTES of them, and what is wrong with it."""
    if not body.startswith(_GZIP):
        return body, None
    out, problem = bytearray(), None
    with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
        try:
            while len(out) <= MAX_BYTES and (chunk := file.read1(_CHUNK_BYTES)):
                out += chunk
        except (OSError, EOFError, zlib.error) as e:
            problem = f"gzip: {e}"
    return bytes(out), problem


def _read_lines(text: str, reading: _Reading, *, is_whole: bool) -> str | None:
    """Read a URL a line into `reading`, the last line of a cut file apart; what ended it early, None if nothing did."""
    for n, line in enumerate(_LINE.finditer(text)):
        if n == MAX_URLS:
            return f"more than {MAX_URLS} URLs"
        if line[2] or is_whole:
            reading.page(line[1], None)
    return None


def _read_xml(text: str, reading: _Reading) -> str | None:
    """Read XML into `reading`; what ended it early, None if nothing did.

    Python's expat, not ElementTree, for what stands before a break is kept, and no tree is. It opens no external DTD
    where no handler does; an internal one, where entities and default attributes are declared, ends the reading. So
    nothing is fetched or expanded. Prefixes are not resolved: many sitemaps use `image:` undeclared.
    """
    clean = _BARE_AMPERSAND.sub(lambda found: found[1] or "&amp;", _NOT_XML.sub("", text))
    parser = expat.ParserCreate(encoding="utf-8")  # whatever the declaration says: it was decoded before
    parser.buffer_text = True
    parser.StartElementHandler = reading.open
    parser.EndElementHandler = reading.close
    parser.CharacterDataHandler = reading.characters
    parser.StartDoctypeDeclHandler = _refuse_subset
    content = clean.encode("utf-8", "replace")
    try:
        for start in range(0, len(content), _XML_BYTES):  # an exception ends a call of Parse late, at its last byte
            parser.Parse(content[start : start + _XML_BYTES], False)
        parser.Parse(b"", True)
    except (expat.ExpatError, _Stopped) as e:
        return f"XML: {e}"
    finally:
        reading.end_item()
    return None


class _Stopped(Exception):
    pass


def _refuse_subset(name: str, system: str | None, public: str | None, has_subset: int) -> None:
    if has_subset:
        raise _Stopped(f"the file brings a DTD of {name[:100]!r}")


@dataclass
class _Medium:
    url: str = ""
    words: dict[str, str] = field(default_factory=dict)


@dataclass
class _Reading:
    """The state of one reading: what was found, and the item that is open."""

    url: str
    drop: tuple[str, ...]
    pages: dict[str, None] = field(default_factory=dict)
    sitemaps: dict[str, None] = field(default_factory=dict)
    media: dict[str, SitemapMedia] = field(default_factory=dict)

    item: str | None = None  # name of the item that is open, its words and media
    words: dict[str, str] = field(default_factory=dict)
    found: list[_Medium] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)  # elements that are open in the item
    parts: list[str] = field(default_factory=list)  # of the text of the innermost
    n_characters: int = 0
    n_open: int = 0  # elements of the file
    n_elements: int = 0
    n_items: int = 0

    def canonical(self, text: str, base: str | None) -> str | None:
        try:
            return canonical_url(text, base, self.drop).href if len(text) < MAX_TEXT else None  # it may have been cut
        except InvalidUrl:
            return None

    def page(self, text: str, base: str | None) -> str | None:
        url = self.canonical(text, base)
        if url is not None:
            self.pages.setdefault(url)
        return url

    # -- tokens ---------------------------------------------------------------------------------------------------

    def open(self, name: str, given: dict[str, str]) -> None:
        name = _local(name)
        self.n_open += 1
        self.n_elements += 1
        if self.n_elements > MAX_ELEMENTS:
            raise _Stopped(f"more than {MAX_ELEMENTS} elements")
        if self.n_open > MAX_DEPTH:
            raise _Stopped(f"more than {MAX_DEPTH} elements within each other")
        if self.item is None:
            self.item = name if name in _ITEMS else None
            self.n_items += self.item is not None
            if self.n_items > MAX_URLS:
                self.item = None
                raise _Stopped(f"more than {MAX_URLS} URLs")
            return
        self.inside.append(name)
        self.parts, self.n_characters = [], 0
        if name in ("image", "video"):
            self.medium("")
        elif name == "enclosure" or (name == "content" and "url" in given):
            if _is_media(given):
                self.medium(given.get("url", ""))
        elif name == "link" and "href" in given:
            if given.get("rel", "alternate") == "alternate":
                self.words.setdefault("link", given["href"])
            elif given["rel"] == "enclosure" and _is_media(given):
                self.medium(given["href"])

    def medium(self, url: str) -> None:
        if len(self.found) >= MAX_MEDIA:
            raise _Stopped(f"more than {MAX_MEDIA} media of one page")
        self.found.append(_Medium(url))

    def characters(self, text: str) -> None:
        if self.inside and self.inside[-1] in _WORDS and self.n_characters < MAX_TEXT:
            self.parts.append(text[:MAX_TEXT])
            self.n_characters += len(text)

    def close(self, name: str) -> None:
        self.n_open -= 1
        if self.item is None:
            return
        if not self.inside:
            self.end_item()
            return
        name = self.inside.pop()
        text = " ".join("".join(self.parts).split())[:MAX_TEXT].rstrip()
        self.parts = []
        if text and name in _WORDS:
            of_medium = bool(self.inside) and self.inside[-1] in _OF_MEDIA and bool(self.found)
            words = self.found[-1].words if of_medium else self.words
            if of_medium or not self.inside:
                words.setdefault(name, text)

    def end_item(self) -> None:
        """Take over the item that is open, as far as it was read."""
        item, words, found = self.item, self.words, self.found
        self.item, self.words, self.found, self.inside = None, {}, [], []
        if item is None:
            return
        feed = item in ("item", "entry")
        named = (words.get("link") or words.get("guid", "")) if feed else words.get("loc", "")
        # What has no scheme is relative in a feed, but a mistake in a sitemap, and no link if it is a guid.
        base = self.url if (feed and "link" in words) or named.startswith("/") else None
        if item == "sitemap":
            url = self.canonical(named, base)
            if url is not None:
                self.sitemaps.setdefault(url)
            return
        page_url = self.page(named, base)
        for medium in found:
            own = medium.words
            place = medium.url or own.get("loc") or own.get("content_loc")
            url = self.canonical(place, self.url) if place else None
            if url is None or len(self.media) >= MAX_MEDIA:
                continue
            self.media.setdefault(
                url,
                SitemapMedia(
                    url=url,
                    caption=own.get("caption") or own.get("description"),
                    title=own.get("title") or words.get("title"),
                    page_url=page_url,
                    license=own.get("license") or words.get("license"),
                ),
            )


def _is_media(given: dict[str, str]) -> bool:
    kind = given.get("type") or given.get("medium") or "image"
    return kind.strip().lower().startswith(("image", "video"))


def _local(name: str) -> str:
    return name.rpartition(":")[2].lower()
