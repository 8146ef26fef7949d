"""What bytes are, from their first bytes and headers alone: type, size, time, place. Decodes no pixels, knows no table.

Hostile bytes make facts None; nothing here raises on them.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import PIL.Image

SNIFF_BYTES = 1024  # of the head that `sniff` looks at: markup may be preceded by a comment, MPEG-TS needs 377
MediaType = Literal["image", "video"]
# Pillow takes these into memory whole to open them: a larger file of one is not opened for its header.
READ_WHOLE = ("image/webp", "image/avif")
READ_WHOLE_BYTES = 64 << 20

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),
    (b"MM\0+", "image/tiff"),
    (b"8BPS", "image/vnd.adobe.photoshop"),
    (b"\0\0\1\0", "image/x-icon"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "image/jp2"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"\xff\x0a", "image/jxl"),
    (b"FLV\1", "video/x-flv"),
    (b"\0\0\1\xba", "video/mpeg"),
    (b"\0\0\1\xb3", "video/mpeg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"%PDF-", "application/pdf"),
    (b"%!PS", "application/postscript"),
    (b"PK\3\4", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
)
_BRANDS = {  # ISO base media: major brand -> type; any other brand is MP4
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"hevc": "image/heic",
    b"mif1": "image/heif",
    b"msf1": "image/heif",
    b"crx ": "image/x-canon-cr3",
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of the header that follows the file header
ORIENTATION_TAG = 0x0112
# The only Pillow plugins that crawled bytes reach; of the others some are old and some run programs (EPS).
PILLOW_FORMAT = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/gif": "GIF",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
}
VIDEO_FORMAT = {  # what may be opened as video, and by which FFmpeg demuxer alone: a playlist must not reach one
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/3gpp": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
    "video/x-msvideo": "avi",
    "video/ogg": "ogg",
    "video/x-flv": "flv",
    "video/mpeg": "mpeg",
    "video/mp2t": "mpegts",
    "video/x-ms-asf": "asf",
}


class BinaryFile(Protocol):
    """What is asked of a file of encoded media; it can be sought, and a read gives fewer bytes only at its end."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


Encoded = bytes | memoryview | BinaryFile  # media as it was fetched


@dataclass(frozen=True, kw_only=True)
class MediaFacts:
    """What the header of a media says; None is not stated or not readable."""

    mime: str | None = None
    media_type: MediaType | None = None  # None: not a picture or video that can be decoded here
    width: int | None = None  # upright, pixels
    height: int | None = None
    duration_s: float | None = None
    taken_at: datetime | None = None  # UTC; a time without an offset is taken as UTC
    latitude: float | None = None  # degrees north
    longitude: float | None = None  # degrees east
    camera: str | None = None


def sniff(head: bytes) -> str | None:
    """The MIME type of content that begins with `head` (SNIFF_BYTES are enough), None where nothing is recognised."""
    for magic, mime in _MAGIC:
        if head.startswith(magic):
            return mime
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"AVI ": "video/x-msvideo", b"WAVE": "audio/wav"}.get(head[8:12])
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "image/bmp"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "video/3gpp" if brand.startswith(b"3g") else _brand_of(brand, head)
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip") and head[:1] == b"\0":
        return "video/quicktime"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if head[:4] == b"OggS":
        return "video/ogg" if b"\x80theora" in head[:512] or b"OVP80" in head[:512] else "audio/ogg"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "video/mp2t"
    return _sniff_text(head)


def _brand_of(brand: bytes, head: bytes) -> str:
    compatible = head[16 : int.from_bytes(head[:4], "big")]
    if brand in (b"mif1", b"msf1") and b"avif" in compatible:
        return "image/avif"
    return _BRANDS.get(brand, "video/mp4")


def _sniff_text(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text:
        return None
    if re.match(rb"(<!--.*?-->\s*)*<(!doctype html|html|head|body|script|title|meta|div|p\b|a\b|table)", text, re.S):
        return "text/html"
    if b"<svg" in text and text.startswith((b"<?xml", b"<svg", b"<!--", b"<!doctype svg")):
        return "image/svg+xml"
    if text.startswith(b"<?xml"):
        return "application/xml"
    if any(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head):
        return None
    try:
        head.decode()
    except UnicodeDecodeError as e:
        if e.start < len(head) - 3:  # nearer to the end it is a character that the head cuts
            return None
    return "text/plain"


def as_file(data: Encoded) -> BinaryFile:
    """`data` as a file at its start."""
    if isinstance(data, bytes | memoryview):
        return io.BytesIO(data)
    data.seek(0)
    return data


def probe(data: Encoded) -> MediaFacts:
    """What the header of `data` says; of a file no more is read than that takes. Never raises on what the bytes are."""
    file = as_file(data)
    mime = sniff(file.read(SNIFF_BYTES))
    if mime in PILLOW_FORMAT:
        facts = MediaFacts(mime=mime, media_type="image")
        if mime in READ_WHOLE and file.seek(0, io.SEEK_END) > READ_WHOLE_BYTES:
            return facts
        try:
            return _image_facts(file, facts)
        except Exception:  # the decoder will say what is wrong with it
            return facts
    if mime in VIDEO_FORMAT:
        from featurizers.video import video_facts

        return video_facts(file, mime)
    return MediaFacts(mime=mime)


def open_by_pillow(data: Encoded, mime: str) -> PIL.Image.Image:
    """The lazily opened picture, read by the plugin of `mime` alone and whatever its size; raises what Pillow raises.

    `PIL.Image.open` would hold the size against a process-wide limit; ours is an argument, checked by the caller.
    """
    import PIL.Image

    PIL.Image.init()
    file: Any = as_file(data)
    opened = PIL.Image.OPEN[PILLOW_FORMAT[mime]][0](file, "")
    assert isinstance(opened, PIL.Image.Image)
    return opened


def _image_facts(file: BinaryFile, facts: MediaFacts) -> MediaFacts:
    assert facts.mime is not None
    with open_by_pillow(file, facts.mime) as opened:
        width, height = opened.size
        facts = replace(facts, width=width, height=height)
        try:
            exif = opened.getexif()
            # Pillow states the size of a TIFF upright already.
            if facts.mime != "image/tiff" and exif.get(ORIENTATION_TAG) in (5, 6, 7, 8):
                facts = replace(facts, width=height, height=width)
            return replace(facts, **_exif_facts(exif))
        except Exception:  # a damaged EXIF block says nothing
            return facts


def _exif_facts(exif: PIL.Image.Exif) -> dict[str, Any]:
    detail, gps = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    taken = detail.get(0x9003) or exif.get(0x0132)
    offset = detail.get(0x9011) if detail.get(0x9003) else detail.get(0x9010)
    make, model = _text(exif.get(0x010F)), _text(exif.get(0x0110))
    camera = model if model and make and model.lower().startswith(make.lower()) else f"{make} {model}".strip()
    latitude, longitude = _degrees(gps.get(2), gps.get(1), 90), _degrees(gps.get(4), gps.get(3), 180)
    has_place = latitude is not None and longitude is not None
    return {
        "taken_at": exif_time(_text(taken), _text(offset)),
        "latitude": latitude if has_place else None,
        "longitude": longitude if has_place else None,
        "camera": camera or None,
    }


def _text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return " ".join(text.split("\0")[0].split())[:200]


def exif_time(time: str, offset: str = "") -> datetime | None:
    """`2020:01:31 23:59:00` and an offset like `+02:00` (taken as UTC without one) as UTC, None if not a time."""
    try:
        taken = datetime.strptime(time[:19], "%Y:%m:%d %H:%M:%S")
        zone = datetime.strptime(offset, "%z").tzinfo if offset else UTC
    except ValueError:
        return None
    try:
        return taken.replace(tzinfo=zone).astimezone(UTC)
    except (OverflowError, ValueError):
        return None


def _degrees(parts: object, reference: object, limit: float) -> float | None:
    if not isinstance(parts, tuple | list) or not 1 <= len(parts) <= 3:
        return None
    try:
        degrees = sum(float(part) / 60**i for i, part in enumerate(parts))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if _text(reference).upper()[:1] in ("S", "W"):
        degrees = -degrees
    return degrees if math.isfinite(degrees) and abs(degrees) <= limit else None
