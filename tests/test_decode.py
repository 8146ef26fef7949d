"""Decoding against Pillow, and what is said about bytes that are no pictures."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from datetime import UTC, datetime

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from featurizers.decode import DecodeError, decode_image
from featurizers.probe import MediaFacts, probe, sniff
from featurizers.spec import Image
from tests.pictures import encode, levels_apart, noise, smooth

LIMIT = 10_000_000


def by_pillow(data: bytes) -> Image:
    opened = PIL.Image.open(io.BytesIO(data))
    return np.asarray(PIL.ImageOps.exif_transpose(opened).convert("RGB"))


@pytest.mark.parametrize(
    "settings",
    [{}, {"quality": 20}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"restart_marker_rows": 1}],
)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (17, 16), (129, 67)])
def test_jpeg_is_decoded_to_the_very_pixels_of_pillow(size: tuple[int, int], settings: dict[str, object]) -> None:
    data = encode(smooth(*size), "JPEG", **settings)
    assert levels_apart(decode_image(data, max_pixels=LIMIT), by_pillow(data)) == 0


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_grey_and_cmyk_jpeg_are_decoded_to_the_very_pixels_of_pillow(mode: str, progressive: bool) -> None:
    data = encode(PIL.Image.fromarray(smooth(60, 40)).convert(mode), "JPEG", progressive=progressive)
    assert levels_apart(decode_image(data, max_pixels=LIMIT), by_pillow(data)) == 0


@pytest.mark.parametrize(
    "kind, mode",
    [
        *[("PNG", mode) for mode in ("1", "L", "P", "RGB")],
        *[("TIFF", mode) for mode in ("1", "RGB", "CMYK", "YCbCr")],
        *[("GIF", "P"), ("WEBP", "RGB"), ("BMP", "1"), ("BMP", "RGB"), ("AVIF", "RGB")],
    ],
)
def test_every_format_is_decoded_to_the_very_pixels_of_pillow(kind: str, mode: str) -> None:
    data = encode(PIL.Image.fromarray(smooth(60, 40)).convert(mode), kind)
    image = decode_image(memoryview(data), max_pixels=LIMIT)
    assert (image.dtype, image.flags.c_contiguous) == (np.uint8, True)
    assert levels_apart(image, by_pillow(data)) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_become_eight_by_the_high_byte(kind: str) -> None:
    grey = np.linspace(0, 65535, 600, dtype=np.uint16).reshape(20, 30)
    image = decode_image(encode(PIL.Image.fromarray(grey), kind), max_pixels=LIMIT)
    assert np.array_equal(image, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bits_of_colour_become_eight_by_the_high_byte() -> None:
    colour = np.random.default_rng(0).integers(0, 65536, (5, 4, 3)).astype(">u2")

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    lines = b"".join(b"\0" + line.tobytes() for line in colour)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    assert np.array_equal(decode_image(png, max_pixels=LIMIT), (colour >> 8).astype(np.uint8))


def test_alpha_is_laid_on_white() -> None:
    half_clear_red = PIL.Image.new("RGBA", (3, 2), (255, 0, 0, 128))
    for kind in ("PNG", "WEBP", "TIFF"):
        settings = {"lossless": True} if kind == "WEBP" else {}
        image = decode_image(encode(half_clear_red, kind, **settings), max_pixels=LIMIT)
        assert image[0, 0].tolist() == [255, 127, 127], kind
    grey = decode_image(encode(PIL.Image.new("LA", (3, 2), (0, 0)), "PNG"), max_pixels=LIMIT)
    assert grey[0, 0].tolist() == [255, 255, 255]


def test_a_palette_or_a_colour_that_is_declared_clear_is_laid_on_white() -> None:
    palette = PIL.Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        image = decode_image(encode(palette, kind, transparency=0), max_pixels=LIMIT)
        assert image[0].tolist() == [[255, 255, 255], [0, 200, 0]], kind
    keyed = encode(PIL.Image.new("RGB", (2, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decode_image(keyed, max_pixels=LIMIT)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode, settings", [("RGB", {}), ("RGBA", {}), ("P", {"transparency": 7}), ("I;16", {})])
def test_a_picture_that_is_converted_in_strips_has_the_pixels_of_its_parts(mode: str, settings: dict[str, int]) -> None:
    width, height, middle = 2100, 2000, 1001  # more than one strip, each part less
    levels = np.tile(np.random.default_rng(0).integers(0, 256, (50, 50, 4), np.uint8), (height // 50, width // 50, 1))
    if mode == "I;16":
        whole = PIL.Image.fromarray(levels.view(np.uint16)[..., 0])
    else:
        whole = PIL.Image.fromarray(levels).convert("RGB").convert("P") if mode == "P" else PIL.Image.fromarray(levels)
        whole = whole.convert(mode)
    boxes = [(0, 0, width, height), (0, 0, width, middle), (0, middle, width, height)]
    parts = [encode(whole.crop(box), "PNG", compress_level=1, **settings) for box in boxes]
    image, *halves = (decode_image(part, max_pixels=LIMIT) for part in parts)
    assert np.array_equal(image, np.vstack(halves))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in [(255, 0, 0), (0, 255, 0)]]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert levels_apart(decode_image(data, max_pixels=LIMIT), np.full((4, 4, 3), [255, 0, 0], np.uint8)) <= 3, kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_turned_upright_and_probed_upright(kind: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(30, 20), kind, exif=exif)
    image = decode_image(data, max_pixels=LIMIT)
    assert levels_apart(image, by_pillow(data)) == 0
    facts = probe(data)
    assert (facts.height, facts.width) == image.shape[:2]
    assert image.shape[:2] == ((30, 20) if orientation > 4 else (20, 30))


def test_a_damaged_exif_block_does_not_cost_the_picture() -> None:
    data = encode(smooth(30, 20), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert decode_image(data, max_pixels=LIMIT).shape == (20, 30, 3)
    assert probe(data).width == 30


# -- what is no picture -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_a_picture_cut_off_is_truncated(kind: str, share: float) -> None:
    data = encode(noise(60, 40), kind)
    with pytest.raises(DecodeError) as caught:
        decode_image(data[: int(len(data) * share)], max_pixels=LIMIT)
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff\xd8\xff", bytes(range(256)), b"BM" + b"\0" * 60])
def test_garbage_is_undecodable_or_truncated_and_never_something_else(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, max_pixels=LIMIT)
    assert caught.value.code in ("undecodable", "truncated")


@pytest.mark.parametrize("data", [b"<html></html>", b"%PDF-1.7", b"<svg xmlns='x'/>", b"\0\0\0\x18ftypheic\0\0\0\0"])
def test_a_format_that_is_no_decodable_picture_is_named(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r"unsupported_format: .*/.*, allowed: image/jpeg"):
        decode_image(data, max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_more_pixels_than_allowed_are_refused_by_the_header_alone(kind: str) -> None:
    header = encode(smooth(100, 90), kind)
    header = header if kind in ("WEBP", "TIFF") else header[:-20]  # these two name their end in the header
    with pytest.raises(DecodeError, match=r"pixel_limit: 100x90 = 9000 pixels, allowed: 8999"):
        decode_image(header, max_pixels=8999)


def test_a_bomb_is_refused_without_a_warning_and_without_touching_the_limit_of_pillow() -> None:
    limit = PIL.Image.MAX_IMAGE_PIXELS

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DecodeError, match="pixel_limit"):
            decode_image(bomb, max_pixels=50_000_000)
        assert probe(bomb).width == 60_000
    assert limit == PIL.Image.MAX_IMAGE_PIXELS


def test_hostile_bytes_make_the_probe_say_nothing_and_the_decoder_raise_only_its_own_error() -> None:
    draw = random.Random(0)
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F], exif.get_ifd(0x8825)[2] = 6, "maker", (1.0, 2.0, 3.0)
    seeds = [encode(smooth(20, 10), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    seeds += [encode(smooth(20, 10), "GIF"), encode(smooth(20, 10), "BMP"), b"\0\0\0\x18ftypisom" + b"\0" * 40]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in seeds * 60:
            broken = bytearray(data[: draw.randint(0, len(data))])
            for _ in range(draw.randint(0, 8)):
                if broken:
                    broken[draw.randrange(len(broken))] = draw.randrange(256)
            assert isinstance(probe(bytes(broken)), MediaFacts)
            try:
                assert decode_image(bytes(broken), max_pixels=LIMIT).dtype == np.uint8
            except DecodeError as e:
                assert e.code in ("truncated", "undecodable", "pixel_limit", "unsupported_format")


# -- facts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head, mime",
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "video/mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "video/quicktime"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "image/avif"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm", "video/webm"),
        (b"  <!DOCTYPE html><p>", "text/html"),
        (b"\xef\xbb\xbf<html>", "text/html"),
        (b"<?xml version='1.0'?><svg/>", "image/svg+xml"),
        (b"%PDF-1.4", "application/pdf"),
        (b"plain words", "text/plain"),
        ("na\u00efve".encode()[:3], "text/plain"),
        (b"BMW is not a bitmap", "text/plain"),
        (b"\x80\x81\x82\x83\x84\x85", None),
        (b"", None),
    ],
)
def test_content_is_recognised_by_its_first_bytes(head: bytes, mime: str | None) -> None:
    assert sniff(head) == mime


@pytest.mark.parametrize("data", [b"<html>", b"%PDF-1.4", b"<svg/>", b"words", b"\0\0\0\x18ftypM4A "])
def test_what_is_neither_picture_nor_video_has_a_type_but_no_media_type(data: bytes) -> None:
    facts = probe(data)
    assert facts.mime is not None
    assert facts.media_type is None


def test_exif_gives_time_place_and_camera() -> None:
    exif = PIL.Image.Exif()
    exif[0x010F], exif[0x0110] = "Acme", "Acme One"
    detail, gps = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    detail[0x9003], detail[0x9011] = "2020:01:31 23:30:00", "-02:00"
    gps[1], gps[2], gps[3], gps[4] = "S", (33.0, 51.0, 36.0), "E", (151.0, 12.0, 0.0)
    for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        facts = probe(encode(smooth(30, 20), kind, exif=exif))
        assert (facts.media_type, facts.width, facts.height) == ("image", 30, 20), kind
        assert facts.taken_at == datetime(2020, 2, 1, 1, 30, tzinfo=UTC), kind
        assert facts.latitude == pytest.approx(-33.86), kind
        assert facts.longitude == pytest.approx(151.2), kind
        assert facts.camera == "Acme One", kind


@pytest.mark.parametrize("latitude", [(91.0, 0.0, 0.0), (89.0, 61.0, 0.0)])
def test_a_place_that_is_not_on_earth_and_a_time_that_is_none_are_not_stated(latitude: object) -> None:
    exif = PIL.Image.Exif()
    exif[0x0132] = "0000:00:00 00:00:00"
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2], gps[3], gps[4] = "N", latitude, "E", (10.0, 0.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        facts = probe(encode(smooth(30, 20), "JPEG", exif=exif))
    assert (facts.width, facts.latitude, facts.longitude, facts.taken_at, facts.camera) == (30, None, None, None, None)
