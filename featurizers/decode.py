"""Encoded pictures to upright RGB pixels, pixel for pixel as Pillow decodes them. Knows no model and no table."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import PIL.Image
import simplejpeg  # type: ignore[import-untyped,unused-ignore]

from featurizers.probe import ORIENTATION_TAG, PILLOW_FORMAT, SNIFF_BYTES, open_by_pillow, sniff
from featurizers.spec import Image

DecodeProfile = Literal["exact", "fast"]  # every pixel, or JPEGs at a fraction of their size where that is enough
DecodeCode = Literal["truncated", "undecodable", "pixel_limit", "no_frames", "unsupported_format"]

STRIP_PIXELS = 1 << 22  # converted at a time: 16 MB of Pillow's four bytes a pixel

# EXIF orientation -> what makes it upright (EXIF 2.32, section 4.6.4); 1 is upright.
_TRANSPOSE = PIL.Image.Transpose
UPRIGHT = {
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}


class DecodeError(ValueError):
    """Bytes that do not become a picture: the data's fault, named by one of the codes of `DecodeCode`."""

    def __init__(self, code: DecodeCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: DecodeCode = code
        self.detail = detail


def decode_image(data: bytes | memoryview, *, max_pixels: int) -> Image:
    """The picture in `data`, upright, (H, W, 3) RGB uint8; of an animation the first frame.

    JPEG in YCbCr, RGB or grey is decoded by libjpeg-turbo in full, everything else by Pillow. 16 bits a channel become
    8 by dropping the low byte; alpha is laid on white; the EXIF orientation is applied.
    Raises DecodeError; more than `max_pixels` pixels by the header is pixel_limit, before anything is decoded.
    """
    return decode_reduced(data, max_pixels=max_pixels, divisor=1)[0]


def decode_reduced(data: bytes | memoryview, *, max_pixels: int, divisor: int) -> tuple[Image, int]:
    """The picture as `decode_image` gives it, its sides divided by the second result: `divisor`, or 1.

    divisor: 1, 2, 4 or 8. libjpeg-turbo leaves out the high frequencies of a JPEG and so computes fewer pixels; it must
    divide both sides, and what Pillow decodes is decoded in full.
    """
    mime = sniff(bytes(data[:SNIFF_BYTES]))
    if mime is None or not len(data):
        raise DecodeError("undecodable", f"{len(data)} bytes of no known picture format")
    if mime not in PILLOW_FORMAT:
        raise DecodeError("unsupported_format", f"{mime}, allowed: {', '.join(PILLOW_FORMAT)}")
    if mime == "image/jpeg":
        image = _decode_plain_jpeg(data, max_pixels=max_pixels, divisor=divisor)
        if image is not None:
            return image, divisor
    return _decode_by_pillow(bytes(data), mime, max_pixels=max_pixels), 1


def plain_jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height, as stored, of a JPEG that libjpeg-turbo is to decode; None for anything else."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colorspace in ("YCbCr", "Gray", "RGB") else None


def _refuse_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError("pixel_limit", f"{width}x{height} = {width * height} pixels, allowed: {max_pixels}")


def _decode_plain_jpeg(data: bytes | memoryview, *, max_pixels: int, divisor: int) -> Image | None:
    """The picture, or None where Pillow is to decode it, or to say what is wrong with it."""
    size = plain_jpeg_size(data)
    if size is None:
        return None
    width, height = size
    _refuse_pixels(width, height, max_pixels)
    reduced = {} if divisor == 1 else {"min_width": width // divisor, "min_height": height // divisor}
    try:
        image: Image = simplejpeg.decode_jpeg(data, "RGB", **reduced)
    except ValueError as e:  # strict: warnings raise too, and Pillow forgives some of them
        if "Premature end of JPEG file" in str(e):
            raise DecodeError("truncated", str(e)) from e
        return None
    return _upright(image, jpeg_orientation(data))


def jpeg_orientation(data: bytes | memoryview) -> int:
    """EXIF orientation 1..8 of a JPEG, 1 where it states none that can be read.

    Walks the segments before the first scan (ITU T.81, B.1.1) instead of opening the file, which takes Pillow longer.
    """
    view = memoryview(data)
    at = 2
    while at + 4 <= len(view) and view[at] == 0xFF:
        marker = view[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            break
        length = int.from_bytes(view[at + 2 : at + 4], "big")
        if marker == 0xE1 and bytes(view[at + 4 : at + 10]) == b"Exif\0\0":
            exif = PIL.Image.Exif()
            try:
                exif.load(bytes(view[at + 4 : at + 2 + length]))
                return _orientation(exif)
            except Exception:  # a damaged EXIF block says nothing about the pixels
                return 1
        at += 2 + length
    return 1


def _orientation(exif: PIL.Image.Exif) -> int:
    value = exif.get(ORIENTATION_TAG)
    return value if value in UPRIGHT else 1


def _upright(image: Image, orientation: int) -> Image:
    if orientation == 1:
        return image
    flipped = PIL.Image.fromarray(image).transpose(UPRIGHT[orientation])
    return np.array(flipped)


def _decode_by_pillow(data: bytes, mime: str, *, max_pixels: int) -> Image:
    try:
        with open_by_pillow(data, mime) as opened:
            _refuse_pixels(*opened.size, max_pixels)
            opened.load()
            # Pillow turns TIFF upright itself while it loads.
            orientation = 1 if mime == "image/tiff" else _orientation_of(opened)
            return _upright(_to_rgb(opened), orientation)
    except DecodeError:
        raise
    except PIL.Image.DecompressionBombError as e:
        raise DecodeError("pixel_limit", str(e)) from e
    except MemoryError:
        raise
    except Exception as e:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, KeyError, ...
        code: DecodeCode = "truncated" if _is_cut(data, mime, e) else "undecodable"
        raise DecodeError(code, f"{mime}: {type(e).__name__}: {e}") from e


def _orientation_of(opened: PIL.Image.Image) -> int:
    try:
        return _orientation(opened.getexif())
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _is_cut(data: bytes, mime: str, error: Exception) -> bool:
    said = str(error).lower()
    if "truncated" in said or "unexpected end" in said or isinstance(error, EOFError):
        return True
    if mime == "image/webp":  # RIFF states the size of what follows its first 8 bytes
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if mime == "image/png":
        return b"IEND" not in data[-16:]
    if mime == "image/tiff":
        return not _tiff_is_whole(data)
    return False


def _tiff_is_whole(data: bytes) -> bool:
    try:
        with open_by_pillow(data, "image/tiff") as opened:
            tags: Any = opened.tag_v2  # type: ignore[attr-defined]
            offsets, lengths = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    except Exception:
        return int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") < len(data)
    return all(offset + length <= len(data) for offset, length in zip(offsets, lengths, strict=False))


def _to_rgb(picture: PIL.Image.Image) -> Image:
    """(H, W, 3) of any mode, strip by strip: Pillow makes up to three more copies of what it converts and exports."""
    width, height = picture.size
    n_rows = max(1, STRIP_PIXELS // width)
    if height <= n_rows:
        return _strip_to_rgb(picture)
    image = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, n_rows):
        image[top : top + n_rows] = _strip_to_rgb(picture.crop((0, top, width, min(height, top + n_rows))))
    return image


def _strip_to_rgb(picture: PIL.Image.Image) -> Image:
    """(H, W, 3) of any mode: 16 bits to 8 by the high byte, alpha over white."""
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.int64)
        return np.ascontiguousarray(
            np.broadcast_to((wide.clip(0, 65535) >> 8).astype(np.uint8)[..., None], (*wide.shape, 3))
        )
    if picture.mode == "F":
        raise DecodeError("undecodable", "floating point pixels have no defined white")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        alpha = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", alpha.size, (255, 255, 255, 255))
        picture = PIL.Image.alpha_composite(white, alpha)
    return np.array(picture.convert("RGB"))
