"""Names of documents: canonical URL, doc_id, site and host bucket, and what is a trap. Knows no network or table."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import urllib.parse
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import can_ada

from schemas.documents import N_HOST_BUCKETS

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

SCHEMES = ("http:", "https:")
WEB_PORTS = frozenset({80, 443})
FIRST_USER_PORT = 1024  # RFC 6335, section 6: below are the system ports, of services that are not ours to ask
# The WHATWG Fetch Standard's bad ports (section 2.11, port blocking) that are not system ports.
BAD_PORTS = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080}
)
MAX_URL = 8000  # characters: what RFC 9110 (4.1) wants all to take; of a picture, whose URL may carry a signature
MAX_PAGE_URL = 2000  # what sitemaps allow is 2,048, what older browsers open 2,083
MAX_HOST, MAX_LABEL = 253, 63  # characters of a name that resolves (RFC 1035, section 2.3.4) and of a part of it
MAX_SEGMENTS = 20
MAX_SEGMENT_REPEATS = 3  # of one path segment, and of one sequence of them in a row


MEDIA_SUFFIXES = frozenset(  # of files that are pictures or videos
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic"),
        *(".heif", ".jxl", ".jp2", ".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ogv", ".mpg", ".mpeg", ".mts"),
        *(".m2ts", ".flv", ".wmv", ".asf", ".3gp"),
    }
)
_HOST = re.compile(r"[^\s/?#@\\*%,]+")
_PATH_PARAMETER = re.compile(r";([^;/=]*)(?:=[^;/]*)?")


class InvalidUrl(ValueError):
    """Text that names nothing that may be fetched over HTTP; the message gives the reason."""


@dataclass(frozen=True)
class Url:
    """A canonical URL and the host that serves it."""

    href: str  # WHATWG serialisation without fragment
    host: str  # host as serialised, with its port unless that is the scheme's own
    origin: str  # scheme, host and port: what one robots.txt speaks for


def canonical_url(text: str, base: str | None = None, drop: tuple[str, ...] = ()) -> Url:
    """The canonical form of `text`, resolved against `base` if given (WHATWG URL Standard; the query is kept).

    `drop` names parameters to take out of query and path (`;jsessionid=`), in any case; a last `*` stands for any rest
    (`utm_*`). Raises InvalidUrl for text that is no URL, a scheme other than http and https, a port that serves
    something else, a host that no DNS can have, and credentials in the URL.
    """
    try:
        parsed = can_ada.parse(base) + text if base is not None else can_ada.parse(text)
    except (ValueError, TypeError) as e:  # TypeError: lone surrogates
        raise InvalidUrl(f"not a URL: {text[:100]!r}") from e
    if parsed.protocol not in SCHEMES:
        raise InvalidUrl(f"scheme {parsed.protocol[:100]!r} is not one of {', '.join(SCHEMES)}")
    name = parsed.hostname.removesuffix(".")
    if len(name) > MAX_LABEL and (len(name) > MAX_HOST or max(map(len, name.split("."))) > MAX_LABEL):
        raise InvalidUrl(
            f"the host {name[:100]}... is longer than {MAX_HOST}, or a part of it than {MAX_LABEL} characters"
        )
    if parsed.has_credentials():
        raise InvalidUrl(f"the URL carries credentials for {parsed.host}")
    if parsed.port and not _serves_the_web(int(parsed.port)):
        raise InvalidUrl(f"port {parsed.port} is not one that serves the web")
    parsed.hash = ""
    return Url(href=_without(parsed.href, drop) if drop else parsed.href, host=parsed.host, origin=parsed.origin)


def _serves_the_web(port: int) -> bool:
    return port in WEB_PORTS or (port >= FIRST_USER_PORT and port not in BAD_PORTS)


def _without(href: str, drop: tuple[str, ...]) -> str:
    path, mark, query = href.partition("?")
    parameters = query.split("&")
    kept = [parameter for parameter in parameters if not _is_dropped(parameter.partition("=")[0], drop)]
    if ";" in path:
        path = _PATH_PARAMETER.sub(lambda found: "" if _is_dropped(found[1], drop) else found[0], path)
    if len(kept) == len(parameters):
        return f"{path}{mark}{query}"
    return f"{path}?{'&'.join(kept)}" if kept else path


def _is_dropped(name: str, drop: tuple[str, ...]) -> bool:
    name = urllib.parse.unquote_plus(name).lower()
    return any(
        name.startswith(pattern[:-1].lower()) if pattern.endswith("*") else name == pattern.lower() for pattern in drop
    )


def canonical_host(text: str) -> str:
    """The host that `text` is, as `Url.host` has it: with a port that is not the web's own, in punycode, no last dot.

    Raises InvalidUrl for all that is more than a host, or less.
    """
    given = text.strip()
    if not _HOST.fullmatch(given):
        raise InvalidUrl(f"{text[:100]!r} is not a host and nothing else")
    host = canonical_url(f"{'https' if given.endswith(':443') else 'http'}://{given}/").host
    return re.sub(r"\.(?=:|\Z)", "", host)


# -- sites --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()  # of the package; it asks no network


@lru_cache(maxsize=65536)
def registrable(host: str) -> str:
    """The registrable domain of a host as URLs have it, without its port: what one owner may have registered.

    By the Public Suffix List with its private part (`a.github.io` is a site of its own). An IP address, a single
    label and a bare public suffix are themselves.
    """
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    name = host.partition(":")[0].lower().removesuffix(".")
    try:
        return str(ipaddress.IPv4Address(name))
    except ValueError:
        return _suffixes().privatesuffix(name) or name


# -- traps --------------------------------------------------------------------------------------------------------


def is_trap(url: str, *, max_segments: int = MAX_SEGMENTS) -> str | None:
    """Why a canonical URL looks like one of an endless family of pages, None where it does not.

    Such families grow by relative links that lead deeper each time. Session ids in URLs are not guessed.
    """
    if len(url) > MAX_PAGE_URL:
        return f"the URL has {len(url)} characters, more than {MAX_PAGE_URL}"
    path = url.partition("?")[0].split("/", 3)[3:]
    segments = path[0].removesuffix("/").split("/") if path and path[0] else []
    if len(segments) > max_segments:
        return f"the path has {len(segments)} segments, more than {max_segments}"
    for segment, n in Counter(segments).items():
        if n > MAX_SEGMENT_REPEATS:
            return f"the path has {n} segments {segment[:100]!r}, more than {MAX_SEGMENT_REPEATS}"
    for length in range(2, len(segments) // MAX_SEGMENT_REPEATS + 1):
        for start in range(len(segments) - MAX_SEGMENT_REPEATS * length + 1):
            part = segments[start : start + length]
            if segments[start : start + MAX_SEGMENT_REPEATS * length] == part * MAX_SEGMENT_REPEATS:
                return f"the path repeats {'/'.join(part)[:100]!r} {MAX_SEGMENT_REPEATS} times in a row"
    return None


# -- ids ----------------------------------------------------------------------------------------------------------


def doc_id(url: str) -> str:
    """First 32 hex digits of the SHA-256 of a canonical URL."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def host_bucket(host: str) -> int:
    """A hash of the host, stable across machines and versions, modulo `N_HOST_BUCKETS`."""
    return int.from_bytes(hashlib.sha256(host.encode()).digest()[:8], "big") % N_HOST_BUCKETS
