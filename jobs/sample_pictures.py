"""Makes the variants of a photograph that a crawler meets: sizes, crops, encodings, broken files. Knows no collection.

Encoders differ between versions of Pillow, so bytes are the same from build to build on one installation only.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from datetime import datetime

import numpy as np
from PIL import ExifTags, Image, ImageEnhance, ImageFilter, ImageOps

NOISE_SEED = 20240501
Variant = Callable[[Image.Image], tuple[bytes, str]]  # upright picture -> encoded bytes, file name extension


QUANTIZER = Image.Quantize.FASTOCTREE  # the default takes seconds a picture


def flat(picture: Image.Image) -> Image.Image:
    """The picture as RGB, transparent parts white."""
    if picture.mode in ("RGBA", "LA", "P"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def sized(picture: Image.Image, longest_side: int) -> Image.Image:
    """Scaled so that the longest side is `longest_side` pixels."""
    scale = longest_side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def jpeg(picture: Image.Image, quality: int = 88, **options: object) -> tuple[bytes, str]:
    """A baseline 4:2:0 JPEG unless the options say otherwise."""
    return _encoded(picture, "JPEG", **{"quality": quality, "subsampling": 2, **options}), ".jpg"


def _png(picture: Image.Image) -> tuple[bytes, str]:
    return _encoded(picture, "PNG"), ".png"


def _webp(picture: Image.Image, **options: object) -> tuple[bytes, str]:
    return _encoded(picture, "WEBP", **options), ".webp"


def _crop(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    w, h = picture.size
    return flat(picture).crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))


def _square(picture: Image.Image) -> Image.Image:
    return ImageOps.fit(flat(picture), (min(picture.size),) * 2)


def _sepia(picture: Image.Image) -> Image.Image:
    grey = ImageOps.autocontrast(flat(picture).convert("L"), cutoff=1)
    return ImageOps.colorize(grey, black="#23150b", white="#fff3d9", mid="#9b7653")


def _framed(picture: Image.Image) -> Image.Image:
    mat = max(12, min(picture.size) // 12)
    return ImageOps.expand(ImageOps.expand(flat(picture), mat, "#faf8f4"), max(6, mat // 3), "#2b2320")


def _fade(picture: Image.Image) -> Image.Image:
    alpha = ImageOps.invert(Image.radial_gradient("L")).resize(picture.size)
    faded = flat(picture)
    faded.putalpha(alpha)
    return faded


def _turned(orientation: int) -> Variant:
    """Stored turned or mirrored, with the EXIF orientation (1 to 8, TIFF 6.0) that sets it upright again."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]

    def turned(picture: Image.Image) -> tuple[bytes, str]:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored = flat(picture) if undo is None else flat(picture).transpose(undo)
        return jpeg(stored, exif=exif.tobytes())

    return turned


def _deep_png(picture: Image.Image) -> tuple[bytes, str]:
    """RGB with sixteen bits a channel, which Pillow reads but does not write."""
    pixels = np.asarray(flat(picture)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 16, 2, 0, 0, 0)
    return png_file(header, zlib.compress(rows, 6)), ".png"


def _deep_grey(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(flat(picture).convert("L")).astype(np.uint16) * 257)


def png_file(header: bytes, data: bytes) -> bytes:
    """A PNG of an IHDR and one IDAT chunk with right checksums, whatever they hold."""
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


VARIANTS: dict[str, Variant] = {
    "full": lambda p: jpeg(flat(p)),
    "small": lambda p: jpeg(sized(flat(p), 320)),
    "large": lambda p: jpeg(sized(flat(p), 960)),
    "square": lambda p: jpeg(_square(p)),
    "wide": lambda p: jpeg(_crop(p, 0, 0.25, 1, 0.75)),
    "crop_left": lambda p: jpeg(_crop(p, 0, 0.1, 0.6, 0.9)),
    "crop_right": lambda p: jpeg(_crop(p, 0.4, 0.1, 1, 0.9)),
    "crop_top": lambda p: jpeg(_crop(p, 0.1, 0, 0.9, 0.6)),
    "detail": lambda p: jpeg(sized(_crop(p, 0.3, 0.3, 0.7, 0.7), 480)),
    "strip": lambda p: jpeg(flat(p).crop((0, p.height // 2, p.width, p.height // 2 + 1))),
    "low_quality": lambda p: jpeg(flat(p), quality=18),
    "full_chroma": lambda p: jpeg(flat(p), quality=95, subsampling=0),
    "progressive": lambda p: jpeg(flat(p), progressive=True),
    "cmyk": lambda p: jpeg(flat(p).convert("CMYK"), subsampling=0),
    "grey": lambda p: jpeg(flat(p).convert("L")),
    "sepia": lambda p: jpeg(_sepia(p)),
    "framed": lambda p: jpeg(_framed(p)),
    "mirrored": lambda p: jpeg(ImageOps.mirror(flat(p))),
    "bright": lambda p: jpeg(ImageEnhance.Brightness(flat(p)).enhance(1.45)),
    "dark": lambda p: jpeg(ImageEnhance.Brightness(flat(p)).enhance(0.45)),
    "blurred": lambda p: jpeg(flat(p).filter(ImageFilter.GaussianBlur(3))),
    "trailing_bytes": lambda p: (jpeg(flat(p))[0] + b"\0" * 512 + b"appended by a careless tool", ".jpg"),
    "png": lambda p: _png(flat(p)),
    "png_grey": lambda p: _png(flat(p).convert("L")),
    "png_alpha": lambda p: _png(p.convert("RGBA")),
    "png_alpha_fade": lambda p: _png(_fade(p)),
    "palette_png": lambda p: _png(flat(p).quantize(64, QUANTIZER)),
    "deep_png": _deep_png,
    "deep_grey": lambda p: _png(_deep_grey(p)),
    "one_pixel": lambda p: _png(flat(p).resize((1, 1), Image.Resampling.BOX)),
    "webp": lambda p: _webp(flat(p), quality=82),
    "webp_small": lambda p: _webp(sized(flat(p), 320), quality=82),
    "webp_lossless": lambda p: _webp(flat(p), lossless=True),
    "webp_alpha_fade": lambda p: _webp(_fade(p), quality=85),
    "gif": lambda p: (_encoded(flat(p).quantize(256, QUANTIZER), "GIF", interlace=1), ".gif"),
    "bmp": lambda p: (_encoded(sized(flat(p), 400), "BMP"), ".bmp"),
    "tiff": lambda p: (_encoded(flat(p), "TIFF", compression="tiff_lzw"), ".tiff"),
    "deep_grey_tiff": lambda p: (_encoded(_deep_grey(p), "TIFF"), ".tiff"),
    **{f"turned{orientation}": _turned(orientation) for orientation in range(1, 9)},
}


def _degrees(value: float) -> tuple[float, float, float]:
    minutes, seconds = divmod(abs(value) * 3600, 60)
    degrees, minutes = divmod(minutes, 60)
    return degrees, minutes, round(seconds, 3)


def located_jpeg(picture: Image.Image, *, latitude: float, longitude: float, taken: datetime, camera: str) -> bytes:
    """A JPEG whose EXIF says where (degrees, WGS 84), when and with which camera."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = camera.split(" ", 1)
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.DateTimeOriginal: taken.strftime("%Y:%m:%d %H:%M:%S")})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {
            ExifTags.GPS.GPSLatitudeRef: "S" if latitude < 0 else "N",
            ExifTags.GPS.GPSLatitude: _degrees(latitude),
            ExifTags.GPS.GPSLongitudeRef: "W" if longitude < 0 else "E",
            ExifTags.GPS.GPSLongitude: _degrees(longitude),
        }
    )
    return jpeg(flat(picture), exif=exif.tobytes())[0]


def animation(pictures: list[Image.Image]) -> bytes:
    """A GIF that shows each picture for half a second."""
    frames = [ImageOps.fit(flat(p), (320, 240)).quantize(128, QUANTIZER) for p in pictures]
    return _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=500, loop=0)


def encoded_as(picture: Image.Image, extension: str) -> bytes:
    """JPEG, PNG or WebP by file name extension."""
    plain = flat(picture)
    return {".jpg": jpeg, ".png": _png, ".webp": _webp}[extension](plain)[0]


def png_bomb() -> bytes:
    """A PNG of a hundred bytes whose header claims 60,000 x 60,000 pixels."""
    return png_file(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), zlib.compress(b"\0" * 64))


def png_noise() -> bytes:
    """A PNG with a sound header and checksums, and noise where the compressed pixels should be."""
    noise = np.random.default_rng(NOISE_SEED).bytes(4096)
    return png_file(struct.pack(">IIBBBBB", 200, 200, 8, 2, 0, 0, 0), noise)


def jpeg_bomb(sound: bytes) -> bytes:
    """`sound`, a baseline JPEG, with a frame header that claims 65,000 x 65,000 pixels."""
    start = sound.index(b"\xff\xc0")
    return sound[: start + 5] + struct.pack(">HH", 65_000, 65_000) + sound[start + 9 :]
