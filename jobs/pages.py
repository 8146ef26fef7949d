"""What an HTML page links to, shows and forbids. Knows bytes and URLs, no network, no table and no layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from jobs.markup import MAX_TEXT, SPACE, Tag, decoded, plain_text, tokens
from jobs.robots import meta_directives
from jobs.urls import MEDIA_SUFFIXES, InvalidUrl, canonical_url

MAX_LINKS = 5_000
MAX_MEDIA = 2_000
MAX_TAGS = 200_000  # of those that are read, which takes seconds; what follows on the page is not
MAX_CANDIDATES = 1_000  # of one srcset
MAX_SIGHTS = 10  # of one media URL on one page, for its caption
_PLAYLISTS = frozenset({"m3u8", "mpd"})
_META_SAME = frozenset({"og:image:url", "og:image:secure_url", "og:video:url", "og:video:secure_url"})
_META_MEDIA = _META_SAME | {"og:image", "og:video", "twitter:image", "twitter:image:src"}
_META_ALT = frozenset({"og:image:alt", "twitter:image:alt"})
_TAGS = frozenset(
    {
        *("a", "area", "audio", "base", "figcaption", "figure", "img", "link", "meta", "picture", "source", "svg"),
        *("template", "title", "video"),
    }
)
_BASE = re.compile(rf"<base[{SPACE}/]", re.IGNORECASE)
_PIXEL = re.compile(rf"[{SPACE}]*+0*+[0-2]?(?:\.[0-9]*)?[{SPACE}]*+(?:px)?[{SPACE}]*+", re.IGNORECASE)
_INLINE_URL = re.compile(rf"[{SPACE}]*+(?:\Z|data:|blob:|about:)", re.IGNORECASE)

_SRCSET_URL = re.compile(rf"[{SPACE},]*+([^{SPACE}]++)")
_DESCRIPTORS = re.compile(r"((?:[^,(]++|\([^)]*+\)?)*+),?")
_WIDTH = re.compile(r"0*+[1-9][0-9]*w")
_DENSITY = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)x")


@dataclass(frozen=True)
class Link:
    """A page that a page links to; nofollow where each link to it says so by itself (see also `Page.directives`)."""

    url: str
    nofollow: bool


@dataclass(frozen=True)
class PageMedia:
    """An image or video that a page shows or links to."""

    url: str
    caption: str | None
    kind: str  # where it was found: img, picture, video, meta, link, a


@dataclass(frozen=True)
class Page:
    """What one HTML page says; URLs are canonical, each once, in order of the page, of whatever host."""

    title: str | None
    links: tuple[Link, ...]
    media: tuple[PageMedia, ...]
    directives: frozenset[str]  # as `meta_directives`: noai, noindex, nofollow, none, tdm-reservation, ...


def read_page(body: bytes, url: str, *, content_type: str | None, drop: tuple[str, ...] = ()) -> Page:
    """What a page at `url` says, of any bytes; at most MAX_LINKS links, MAX_MEDIA media, MAX_TAGS tags. Raises nothing.

    `content_type` is the header, `drop` as for `canonical_url`. Markup is read as HTML without scripts: what is in
    noscript counts, what is in template does not. A caption is an image's alt, else the figcaption of its figure, its
    title, the text of the link it stands in.
    """
    text = decoded(body, content_type)
    reading = _Reading(base=url, drop=drop)
    if _BASE.search(text):  # one <base> holds for the whole page, also for what stands before it
        reading.base = _base(text, url)
    n_tags = 0
    for token in tokens(text, _TAGS):
        if isinstance(token, Tag):
            n_tags += 1
            if n_tags > MAX_TAGS:
                break
            reading.tag(token)
        else:
            reading.text(token)
    return reading.page()


def _base(text: str, url: str) -> str:
    for token in tokens(text, {"base"}):
        if isinstance(token, Tag) and not token.closes and (href := token.attributes().get("href")) is not None:
            try:
                return canonical_url(href, url).href
            except InvalidUrl:
                return url
    return url


def suffix_of(url: str) -> str:
    """The suffix of a canonical URL's path in lower case without its dot, "" if it has none."""
    _, dot, suffix = url.partition("?")[0].rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot else ""


# -- srcset -------------------------------------------------------------------------------------------------------

Candidate = tuple[tuple[bool, float], str]  # rank, widths above densities; URL as written


def srcset_candidates(srcset: str) -> Iterator[Candidate]:
    """The candidates of a srcset attribute (HTML Standard, 4.8.4.3.10), those with wrong descriptors apart."""
    position = 0
    while (found := _SRCSET_URL.match(srcset, position)) is not None:
        url, position = found[1], found.end()
        descriptors: list[str] = []
        if url.endswith(","):
            url = url.rstrip(",")
        elif (rest := _DESCRIPTORS.match(srcset, position)) is not None:
            descriptors, position = rest[1].split(), rest.end()
        rank = _rank(descriptors)
        if url and rank is not None:
            yield rank, url


def _rank(descriptors: list[str]) -> tuple[bool, float] | None:
    if not descriptors:
        return (False, 1.0)
    widths = [text for text in descriptors if _WIDTH.fullmatch(text)]
    densities = [text for text in descriptors if _DENSITY.fullmatch(text)]
    heights = [text for text in descriptors if text.endswith("h") and _WIDTH.fullmatch(text[:-1] + "w")]
    if len(widths) + len(densities) != 1 or len(descriptors) > 1 + len(heights) or len(heights) > len(widths):
        return None
    return (bool(widths), float((widths or densities)[0][:-1]))


# -- captions -----------------------------------------------------------------------------------------------------


@dataclass
class _Words:
    """Text that is still being read."""

    parts: list[str] = field(default_factory=list)
    n: int = 0

    def add(self, text: str) -> None:
        if self.n < 2 * MAX_TEXT:
            self.parts.append(text[: 2 * MAX_TEXT])
            self.n += len(text)

    def add_readable(self, text: str) -> None:
        self.add(text.replace("&", "&amp;"))

    def __str__(self) -> str:
        return plain_text("".join(self.parts))


@dataclass
class _Anchor:
    """The link that is open: its text, and the alt texts of the images in it."""

    title: str
    words: _Words = field(default_factory=_Words)
    alts: _Words = field(default_factory=_Words)


def _collapsed(text: str) -> str:
    return " ".join(text.replace("\0", "").split())[:MAX_TEXT].rstrip()


def _caption(sights: Iterable[_Sight]) -> str | None:
    texts = (str(text) if isinstance(text, _Words) else _collapsed(text) for sight in sights for text in sight)
    return next(filter(None, texts), None)


_Sight = tuple[str | _Words, ...]  # what may caption a medium where it was seen, the best first


# -- one page -----------------------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """The state of one reading: what was found, and which elements are open."""

    base: str
    drop: tuple[str, ...]
    title: str | None = None
    links: dict[str, bool] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    sights: dict[str, list[_Sight]] = field(default_factory=dict)
    directives: set[str] = field(default_factory=set)
    resolved: dict[str, str | None] = field(default_factory=dict)

    n_templates: int = 0
    n_drawings: int = 0  # svg elements, whose titles are not the page's
    in_title: bool = False
    anchor: _Anchor | None = None
    figures: list[_Words] = field(default_factory=list)  # with the text of their captions
    figcaption: _Words | None = None
    candidates: list[Candidate] | None = None  # of the picture that is open
    player: str | None = None  # video or audio, until it has its source
    player_sight: _Sight = ()
    meta_alt: _Words = field(default_factory=_Words)

    def page(self) -> Page:
        return Page(
            title=self.title,
            links=tuple(Link(url, nofollow) for url, nofollow in self.links.items()),
            media=tuple(PageMedia(url, _caption(self.sights[url]), kind) for url, kind in self.kinds.items()),
            directives=frozenset(self.directives),
        )

    def url(self, text: str | None) -> str | None:
        """The canonical URL of an attribute, None for what is absent, inline or no URL over HTTP."""
        if text is None or _INLINE_URL.match(text):
            return None
        if text not in self.resolved:
            try:
                self.resolved[text] = canonical_url(text, self.base, self.drop).href
            except InvalidUrl:
                self.resolved[text] = None
        return self.resolved[text]

    def medium(self, url: str | None, kind: str, *sight: str | _Words) -> None:
        if url is None or (url not in self.kinds and len(self.kinds) >= MAX_MEDIA):
            return
        self.kinds.setdefault(url, kind)
        seen = self.sights.setdefault(url, [])
        if len(seen) < MAX_SIGHTS:
            seen.append(sight)

    def link(self, url: str | None, rel: list[str]) -> None:
        if url is not None and (url in self.links or len(self.links) < MAX_LINKS):
            self.links[url] = self.links.get(url, True) and "nofollow" in rel

    # -- tokens ---------------------------------------------------------------------------------------------------

    def text(self, text: str) -> None:
        if self.n_templates:
            return
        if self.in_title:
            self.title, self.in_title = plain_text(text) or None, False
            return
        if self.anchor is not None:
            self.anchor.words.add(text)
        if self.figcaption is not None:
            self.figcaption.add(text)

    def tag(self, tag: Tag) -> None:
        self.in_title = False
        if tag.name == "template":
            self.n_templates = max(0, self.n_templates + (-1 if tag.closes else 1))
        elif self.n_templates:
            return
        elif tag.closes:
            self.close(tag.name)
        else:
            self.open(tag.name, tag.attributes())

    def close(self, name: str) -> None:
        if name == "a":
            self.anchor = None
        elif name == "figcaption":
            self.figcaption = None
        elif name == "figure":
            self.figcaption = None
            del self.figures[-1:]
        elif name == "picture":
            self.candidates = None
        elif name in ("audio", "video"):
            self.player = None
        elif name == "svg":
            self.n_drawings = max(0, self.n_drawings - 1)

    def open(self, name: str, given: dict[str, str]) -> None:
        if name == "a":
            self.open_anchor(given)
        elif name == "area":
            self.link(self.url(given.get("href")), given.get("rel", "").lower().split())
        elif name == "img":
            self.image(given)
        elif name == "source":
            self.source(given)
        elif name == "picture":
            self.candidates = []
        elif name in ("audio", "video"):
            self.open_player(name, given)
        elif name == "figure":
            self.figures.append(_Words())
        elif name == "figcaption" and self.figures:
            self.figcaption = self.figures[-1]
        elif name == "meta":
            self.meta(given)
        elif name == "link":
            self.head_link(self.url(given.get("href")), given.get("rel", "").lower().split())
        elif name == "svg":
            self.n_drawings += 1
        elif name == "title":
            self.in_title = self.title is None and not self.n_drawings

    def open_anchor(self, given: dict[str, str]) -> None:
        url = self.url(given.get("href"))
        self.anchor = _Anchor(given.get("title", ""))
        self.link(url, given.get("rel", "").lower().split())
        if url is not None and f".{suffix_of(url)}" in MEDIA_SUFFIXES:
            self.medium(url, "a", self.anchor.words, self.anchor.alts, self.anchor.title)

    def image(self, given: dict[str, str]) -> None:
        kind = "img" if self.candidates is None else "picture"
        candidates = [*(self.candidates or ()), *self.image_candidates(given)]
        self.candidates = None  # a picture shows one image
        alt = given.get("alt", "")
        if self.anchor is not None:
            self.anchor.alts.add_readable(f"{alt} ")
        if any(value and _PIXEL.fullmatch(value) for value in (given.get("width"), given.get("height"))):
            return
        # Of two equal ones the later: a picture's img is what any client can decode.
        largest = sorted(reversed(candidates), key=lambda candidate: candidate[0], reverse=True)
        url = next(filter(None, (self.url(text) for _, text in largest)), None)
        words = () if self.anchor is None else (self.anchor.words,)
        self.medium(url, kind, alt, *self.figures[-1:], given.get("title", ""), *words)

    def image_candidates(self, given: dict[str, str]) -> list[Candidate]:
        names = ["", "data-"] if _INLINE_URL.match(given.get("src", "")) else [""]
        found: list[Candidate] = []
        for prefix in names:
            found += islice(srcset_candidates(given.get(f"{prefix}srcset", "")), MAX_CANDIDATES)
            found.append(((False, 1.0), given.get(f"{prefix}src", "")))
        return found

    def source(self, given: dict[str, str]) -> None:
        kind = given.get("type", "").strip().lower()
        if self.candidates is not None and (not kind or kind.startswith("image/")):
            for name in ("srcset", "data-srcset"):
                self.candidates += islice(srcset_candidates(given.get(name, "")), MAX_CANDIDATES)
        elif self.player == "video" and (not kind or kind.startswith("video/")):
            url = self.url(given.get("src")) or self.url(given.get("data-src"))
            if url is not None and suffix_of(url) not in _PLAYLISTS:
                self.medium(url, "video", *self.player_sight)
                self.player = None

    def open_player(self, name: str, given: dict[str, str]) -> None:
        self.player = name
        if name == "video":
            url = self.url(given.get("src")) or self.url(given.get("data-src"))
            self.player_sight = (given.get("aria-label", ""), *self.figures[-1:], given.get("title", ""))
            if url is not None and suffix_of(url) not in _PLAYLISTS:
                self.medium(url, "video", *self.player_sight)
                self.player = None

    def meta(self, given: dict[str, str]) -> None:
        content = given.get("content", "")
        for name in {given.get("name", "").strip().lower(), given.get("property", "").strip().lower()}:
            self.directives |= meta_directives(name, content)
            if name in _META_ALT:
                self.meta_alt.add_readable(content)
            elif name in _META_MEDIA:
                if name not in _META_SAME:
                    self.meta_alt = _Words()
                self.medium(self.url(content), "meta", self.meta_alt)

    def head_link(self, url: str | None, rel: list[str]) -> None:
        if "next" in rel or "prev" in rel:
            self.link(url, rel)
        if "image_src" in rel:
            self.medium(url, "link")
