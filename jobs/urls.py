"""Names of documents: canonical URL, doc_id, host and host bucket. Knows no network and no table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import can_ada

from schemas.documents import N_HOST_BUCKETS

SCHEMES = ("http:", "https:")


class InvalidUrl(ValueError):
    """Text that names nothing that may be fetched over HTTP; the message gives the reason."""


@dataclass(frozen=True)
class Url:
    """A canonical URL and the host that serves it."""

    href: str  # WHATWG serialisation without fragment
    host: str  # host as serialised, with its port unless that is the scheme's own
    origin: str  # scheme, host and port: what one robots.txt speaks for


def canonical_url(text: str, base: str | None = None) -> Url:
    """The canonical form of `text`, resolved against `base` if given (WHATWG URL Standard; the query is kept).

    Raises InvalidUrl for text that is no URL, a scheme other than http and https, and credentials in the URL.
    """
    try:
        parsed = can_ada.parse(base) + text if base is not None else can_ada.parse(text)
    except (ValueError, TypeError) as e:  # TypeError: lone surrogates
        raise InvalidUrl(f"not a URL: {text[:100]!r}") from e
    if parsed.protocol not in SCHEMES:
        raise InvalidUrl(f"scheme {parsed.protocol!r} is not one of {', '.join(SCHEMES)}")
    if parsed.has_credentials():
        raise InvalidUrl(f"the URL carries credentials for {parsed.host}")
    parsed.hash = ""
    return Url(href=parsed.href, host=parsed.host, origin=parsed.origin)


def doc_id(url: str) -> str:
    """First 32 hex digits of the SHA-256 of a canonical URL."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def host_bucket(host: str) -> int:
    """A hash of the host, stable across machines and versions, modulo `N_HOST_BUCKETS`."""
    return int.from_bytes(hashlib.sha256(host.encode()).digest()[:8], "big") % N_HOST_BUCKETS
