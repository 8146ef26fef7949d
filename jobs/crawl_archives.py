"""What WARC and WAT files hold as sightings: records of pictures and videos, links of pages. Knows files, not HTTP."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from featurizers.probe import SNIFF_BYTES, sniff
from jobs.archives import Window, is_encoded, is_media
from jobs.robots import headers_opt_out, meta_directives, page_opts_out
from jobs.sources import (
    Part,
    Sighting,
    SourceError,
    Stamp,
    damage,
    open_filesystem,
    row_sighting,
    stamp_of,
)
from jobs.urls import MEDIA_SUFFIXES, InvalidUrl, canonical_url

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

Found = TypeVar("Found")

LIST_BYTES = 4 << 20  # of one ranged read of an archive that is read from end to end
MAX_ENCODED_HEAD = 16 << 10  # of a payload, to decode its first SNIFF_BYTES from
MAX_PAGE_BYTES = 64 << 20  # of the facts of one page; Common Crawl cuts pages at 1 MiB (5 MiB since 2025)
LINKS = ("IMG@/src", "VIDEO@/src", "SOURCE@/src")
NO_LINKS = ("data:", "blob:", "about:", "javascript:")  # what is in the page itself, and names nothing elsewhere


class Damaged(Exception):
    """An archive of which nothing can be read from a place on."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at


# -- records ------------------------------------------------------------------------------------------------------


@contextmanager
def opened(part: Part) -> Iterator[tuple[Window, Stamp]]:
    """The file of a part, and its version. Raises SourceError, also for what its store fails at meanwhile."""
    filesystem, path = open_filesystem(part.uri)
    window: Window | None = None
    try:
        info = filesystem.get_file_info(path)
        with filesystem.open_input_file(path) as file:
            window = Window(file, 0, file.size())
            yield window, stamp_of(info)
    except OSError as e:
        raise SourceError(f"{part.where} cannot be read: {e}") from e


def whole_records(window: Window, look: Callable[[WarcRecord], Found | None]) -> Iterator[tuple[Found, int, int]]:
    """What `look` finds in the records of a WARC file, with offset and length of the record as it is stored.

    `look` may read of the record; what it found counts only once the record is known to be whole. Raises OSError where
    the store fails, Damaged where the file is cut, holds something else, or cannot be read by offset.
    """
    from fastwarc.warc import ArchiveIterator

    records = ArchiveIterator(io.BufferedReader(window, LIST_BYTES), parse_http=False)
    found: Found | None = None
    at, is_begun = 0, False  # of the record before
    try:
        for record in records:
            start = record.stream_pos
            if is_begun and (start <= at or start >= window.length):
                raise Damaged(at, "several records are compressed as one; allowed: one gzip member for each record")
            if is_begun and found is not None:
                yield found, at, start - at
            at, is_begun, found = start, True, None
            if not (record.headers.get("Content-Length") or "").strip().isdigit():
                raise Damaged(start, "a record has no Content-Length")
            seen = look(record)
            assert record.reader is not None
            record.reader.consume()
            if record.reader.tell() != record.content_length:
                raise Damaged(start, f"a record is cut at {record.reader.tell()} of {record.content_length} bytes")
            found = seen
    except OSError as e:
        if window.failure is not None:
            raise OSError(str(window.failure)) from e
        reason = str(e)[:100]
    else:
        reason = ""
    end = _end(window, at) if is_begun else 0
    if end is None:
        raise Damaged(at, reason or "a compressed record is cut")
    if found is not None:
        yield found, at, end - at
    if reason or end < window.length:
        raise Damaged(end, reason or "what follows is no record")


def _end(window: Window, at: int) -> int | None:
    """Where the last record, which begins at a place, ends; None where its gzip member is damaged."""
    window.seek(at)
    data = window.read(LIST_BYTES) or b""
    if not data.startswith(b"\x1f\x8b"):
        head = data.partition(b"\r\n\r\n")[0]
        length = re.search(rb"(?im)^content-length:\s*(\d+)", head)
        end = at + len(head) + 4 + int(length[1]) + 4 if length else window.length
        window.seek(min(end, window.length))
        is_blank = not (window.read(LIST_BYTES) or b"").strip()
        return window.length if is_blank else end
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        while not decoder.eof:
            if not decoder.decompress(data, LIST_BYTES) and not data:
                return None
            data = decoder.unconsumed_tail or (b"" if decoder.eof else window.read(LIST_BYTES) or b"")
    except zlib.error:
        return None
    return window.tell() - len(decoder.unused_data)


# -- WARC ---------------------------------------------------------------------------------------------------------


def warc_sightings(part: Part) -> Iterator[Sighting]:
    """The pictures and videos of a WARC file, by the place of their records; then what is damaged. Raises SourceError.

    They are the records of responses with HTTP status 200 and of resources that are media by declared type, or by
    their first bytes, or by the URL's suffix where the bytes tell nothing. What the headers of a response refuse to us
    is opted out.
    """
    with opened(part) as (window, stamp):
        try:
            for (url, headers), offset, length in whole_records(window, _media):
                refusal = headers_opt_out(headers, part.opt_outs)
                place = {"root": part.uri, "held_as": "warc", "offset": offset, "length": length, **stamp}
                said = {"opted_out": refusal is not None, "opted_out_by": refusal}
                yield row_sighting({"url": url}, part, held=place | said)
        except Damaged as e:
            yield damage(part, e.at, e, stamp)


def _media(record: WarcRecord) -> tuple[str, list[tuple[str, str]]] | None:
    """The URL and HTTP headers of a record of a picture or video, None for any other."""
    from fastwarc.warc import WarcRecordType

    said: list[tuple[str, str]] = []
    if record.record_type == WarcRecordType.response:
        record.parse_http(quirks_mode=True)
        headers = record.http_headers
        if headers is None or headers.status_code != 200:
            return None
        declared, said = headers.get("Content-Type"), list(headers.items())
    elif record.record_type == WarcRecordType.resource:
        declared = record.headers.get("Content-Type")
    else:
        return None
    url = (record.headers.get("WARC-Target-URI") or "").strip().removeprefix("<").removesuffix(">")
    if declares_media(declared):
        return url, said
    head = _decoded_head(record)
    return (url, said) if is_media(head) or (has_media_suffix(url) and sniff(head) is None) else None


def declares_media(content_type: str | None) -> bool:
    """Whether a Content-Type is one of pictures or videos."""
    return (content_type or "").strip().lower().startswith(("image/", "video/"))


def has_media_suffix(url: str) -> bool:
    """Whether the path of a URL ends as files of pictures and videos do."""
    path = re.split(r"[?#]", url, maxsplit=1)[0]
    return PurePosixPath(path.rpartition("/")[2].lower()).suffix in MEDIA_SUFFIXES


def _decoded_head(record: WarcRecord) -> bytes:
    """The first bytes of a payload, read from its record."""
    assert record.reader is not None
    if not is_encoded(record):
        return record.reader.read(SNIFF_BYTES)
    from fastwarc.warc import ArchiveIterator

    # Decoded in a record of its own, so that what is left of this one can be counted.
    raw, headers = record.reader.read(MAX_ENCODED_HEAD), record.http_headers
    names = ("Content-Encoding", "Transfer-Encoding")
    said = "".join(f"{name}: {headers.get(name)}\r\n" for name in names if headers is not None and headers.get(name))
    http = f"HTTP/1.1 200 OK\r\n{said}\r\n".encode() + raw
    start = f"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: {len(http)}"
    try:
        for copy in ArchiveIterator(io.BytesIO(start.encode() + b"\r\n\r\n" + http), auto_decode="all"):
            assert copy.reader is not None
            return copy.reader.read(SNIFF_BYTES)
    except OSError:  # it is not encoded as its headers say
        pass
    return raw[:SNIFF_BYTES]


# -- WAT ----------------------------------------------------------------------------------------------------------


def wat_sightings(part: Part) -> Iterator[Sighting]:
    """The pictures and videos that pages of a WAT file show, to be fetched; then what is damaged. Raises SourceError.

    Those of a page that opts out are sightings that are not to be fetched.
    """
    with opened(part) as (window, stamp):
        try:
            for text, offset, _ in whole_records(window, _page_text):
                try:
                    page = json.loads(text)
                except (ValueError, RecursionError):
                    yield damage(part, offset, "a record is not JSON", stamp)
                else:
                    yield from page_sightings(page, part)
        except Damaged as e:
            yield damage(part, e.at, e, stamp)


def _page_text(record: WarcRecord) -> bytes | None:
    from fastwarc.warc import WarcRecordType

    if record.record_type != WarcRecordType.metadata:
        return None
    assert record.reader is not None
    return record.reader.read(MAX_PAGE_BYTES)


def page_sightings(page: object, part: Part) -> Iterator[Sighting]:
    """The pictures and videos that a page shows, each once, from the facts that WAT has of it."""
    envelope = _inner(page, "Envelope")
    answer = _inner(envelope, "Payload-Metadata", "HTTP-Response-Metadata")
    html = _inner(answer, "HTML-Metadata")
    head = _inner(html, "Head")
    metas = [meta for meta in _list(head, "Metas") if isinstance(meta, dict)]
    page_url = _inner(envelope, "WARC-Header-Metadata").get("WARC-Target-URI")
    base = _base(page_url, head.get("Base"))
    refusal = _refusal(metas, _inner(answer, "Headers"), part.opt_outs)
    held = {"opted_out": refusal is not None, "opted_out_by": refusal}
    links = [link for link in _list(html, "Links") if isinstance(link, dict) and link.get("path") in LINKS]
    shown = [(link.get("url"), link.get("alt")) for link in links]
    shown += [(meta.get("content"), None) for meta in metas if _name(meta) == "og:image"]
    found: dict[str, Sighting] = {}
    for url, alt in shown:
        if isinstance(url, str) and (text := url.strip()) and not text.lower().startswith(NO_LINKS):
            row = {"url": text, "caption": alt, "page_url": page_url, "page_title": head.get("Title")}
            sighting = row_sighting(row, part, base=base, held=held)
            before = found.get(sighting.doc_id)
            if before is None or (before.caption is None and sighting.caption is not None):
                found[sighting.doc_id] = sighting
    yield from found.values()


def _inner(value: object, *names: str) -> Mapping[str, Any]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _list(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    return found if isinstance(found, list) else []


def _base(page_url: object, given: object) -> str | None:
    base: str | None = None
    for url in (page_url, given):
        if isinstance(url, str):
            with suppress(InvalidUrl):
                base = canonical_url(url.strip(), base).href
    return base


def _name(meta: Mapping[str, Any]) -> str:
    name = meta.get("name") or meta.get("property")
    return name.strip().lower() if isinstance(name, str) else ""


def _refusal(metas: list[dict[str, Any]], headers: Mapping[str, Any], opt_outs: frozenset[str]) -> str | None:
    """What refuses us the pictures of a page: its headers, a list where one came several times, or its metas."""
    said = [
        (name, str(one)) for name, value in headers.items() for one in (value if isinstance(value, list) else [value])
    ]
    directives = {word for meta in metas for word in meta_directives(_name(meta), str(meta.get("content") or ""))}
    return headers_opt_out(said, opt_outs) or page_opts_out(frozenset(directives), opt_outs)
