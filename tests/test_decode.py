"""Decoding and delivery against Pillow, and what is said about bytes that are no pictures."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from featurizers.decode import (
    DecodeError,
    MediaFacts,
    decode_image,
    delivery,
    fit,
    placement,
    probe,
    resize,
    resize_window,
    thumbnail,
    upright_boxes,
)
from featurizers.probe import sniff
from featurizers.spec import FeaturizerSpec, Image

LIMIT = 10_000_000
CROP = FeaturizerSpec(
    family="concept_x",
    variant="v",
    version=1,
    kind="concept",
    dim=1,
    image_size=224,
    fit="crop",
    short_side=256,
    batch_size=1,
    weights=(),
)
LETTERBOX = replace(CROP, fit="letterbox", image_size=416)
NATIVE = replace(CROP, fit="native", image_size=64)


def noise(width: int, height: int, *, seed: int = 0) -> Image:
    """The hardest content for a resampler: every pixel on its own."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(width: int, height: int) -> Image:
    return np.asarray(PIL.Image.fromarray(noise(7, 5)).resize((width, height), PIL.Image.Resampling.BICUBIC))


def encode(picture: Image | PIL.Image.Image, kind: str, **settings: object) -> bytes:
    out = io.BytesIO()
    (PIL.Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(out, kind, **settings)
    return out.getvalue()


def by_pillow(data: bytes) -> Image:
    opened = PIL.Image.open(io.BytesIO(data))
    return np.asarray(PIL.ImageOps.exif_transpose(opened).convert("RGB"))


def resized_by_pillow(image: Image, width: int, height: int) -> Image:
    """Across first, then down: since version 13 Pillow takes tall pictures the other way round."""
    bicubic = PIL.Image.Resampling.BICUBIC
    across = PIL.Image.fromarray(image).resize((width, image.shape[0]), bicubic)
    return np.asarray(across.resize((width, height), bicubic))


def assert_close(one: Image, other: Image) -> None:
    """At most one grey level apart, but for one value in 10,000 of pure noise, which may be two."""
    assert levels_apart(one, other) <= 2
    assert (np.abs(one.astype(int) - other.astype(int)) > 1).mean() <= 1e-4


def levels_apart(one: Image, other: Image) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


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


# -- delivery -----------------------------------------------------------------------------------------------------

SIZES = [(1, 1), (2, 3), (1024, 683), (683, 1024), (257, 256), (256, 256), (100, 101), (40, 900), (900, 3), (3, 700)]


@pytest.mark.parametrize("width, height", SIZES)
def test_a_crop_is_the_one_of_resizing_the_short_side_and_cutting_the_centre_by_pillow(width: int, height: int) -> None:
    image = noise(width, height)
    short = min(width, height)
    new_width, new_height = (256, int(256 * height / width)) if short == width else (int(256 * width / height), 256)
    left, top = round((new_width - 224) / 2), round((new_height - 224) / 2)
    expected = resized_by_pillow(image, new_width, new_height)[top : top + 224, left : left + 224]
    assert_close(fit(image, CROP), expected)


@pytest.mark.parametrize("width, height", [(1, 1), (5, 3), (31, 17), (640, 480), (333, 500), (2000, 10)])
@pytest.mark.parametrize("to", [(1, 1), (7, 11), (224, 224), (640, 3)])
def test_a_resize_is_within_one_grey_level_of_pillow(width: int, height: int, to: tuple[int, int]) -> None:
    image = noise(width, height)
    assert_close(resize(image, *to), resized_by_pillow(image, *to))


@pytest.mark.parametrize("width, height", [(1024, 683), (683, 1024), (257, 256), (256, 257), (90, 41), (224, 700)])
def test_a_window_is_bit_for_bit_what_is_cut_out_of_the_whole_resized_picture(width: int, height: int) -> None:
    image = noise(width, height)
    place = placement(CROP, width, height)
    whole = resize(image, place.width, place.height)
    expected = whole[place.top : place.top + 224, place.left : place.left + 224]
    assert np.array_equal(resize_window(image, place, 224), expected)


def test_a_strip_too_long_to_be_resized_whole_is_still_cropped() -> None:
    assert fit(noise(1, 3_000_000), CROP).shape == (224, 224, 3)
    assert fit(noise(3_000_000, 1), CROP).shape == (224, 224, 3)


def test_a_crop_larger_than_what_it_is_cut_from_is_refused_and_named() -> None:
    with pytest.raises(ValueError, match=r"concept_x\.v@1: short_side is 100, allowed: at least image_size = 224"):
        fit(noise(30, 20), replace(CROP, short_side=100))


@pytest.mark.parametrize("width, height", [(640, 480), (333, 500), (1, 1), (5000, 3), (416, 416), (417, 416)])
def test_a_letterbox_holds_the_whole_picture_in_the_middle_of_grey(width: int, height: int) -> None:
    image = noise(width, height)
    place = placement(LETTERBOX, width, height)
    delivered = fit(image, LETTERBOX)
    assert delivered.shape == (416, 416, 3)
    inside = delivered[-place.top : -place.top + place.height, -place.left : -place.left + place.width]
    assert_close(inside, resized_by_pillow(image, place.width, place.height))
    assert max(place.width, place.height) == 416
    outside = delivered.astype(int).copy()
    outside[-place.top : -place.top + place.height, -place.left : -place.left + place.width] = 114
    assert (outside == 114).all()
    right, below = 416 - place.width + place.left, 416 - place.height + place.top
    assert 0 <= right + place.left <= 1
    assert 0 <= below + place.top <= 1


def test_native_is_the_picture_itself_or_scaled_down_to_its_longest_side() -> None:
    small = noise(60, 30)
    assert fit(small, NATIVE) is small
    assert fit(noise(640, 300), NATIVE).shape == (30, 64, 3)
    assert fit(noise(640, 300), replace(NATIVE, image_size=0)).shape == (300, 640, 3)


@pytest.mark.parametrize("width, height", [(640, 480), (333, 500), (224, 224), (1000, 100)])
@pytest.mark.parametrize("spec", [CROP, LETTERBOX, NATIVE])
def test_a_box_found_in_what_is_delivered_lies_around_the_same_thing_in_the_frame(
    spec: FeaturizerSpec, width: int, height: int
) -> None:
    """A white rectangle is drawn in the middle, found in the delivered pixels, and mapped back."""
    x0, y0, x1, y1 = int(width * 0.46), int(height * 0.45), int(width * 0.54), int(height * 0.62)
    image = np.zeros((height, width, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    delivered = fit(image, replace(spec, letterbox_fill=0))[..., 0]
    rows, columns = np.nonzero((delivered > 127).any(axis=1))[0], np.nonzero((delivered > 127).any(axis=0))[0]
    tall, wide = delivered.shape
    box = np.array([[columns[0] / wide, rows[0] / tall, (columns[-1] + 1) / wide, (rows[-1] + 1) / tall]], np.float32)
    mapped = upright_boxes(box, spec, width, height)
    pixel = max(width, height) / 64 if spec is NATIVE else max(width, height) / 224
    assert mapped.dtype == np.float32
    assert np.abs(mapped[0] * [width, height, width, height] - [x0, y0, x1, y1]).max() <= pixel


def test_boxes_are_clipped_to_the_frame_and_rows_of_nan_stay() -> None:
    box = np.array([[0, 0, 1, 1], [np.nan] * 4], np.float32)
    mapped = upright_boxes(box, LETTERBOX, 640, 320)
    assert mapped[0].tolist() == [0, 0, 1, 1]
    assert np.isnan(mapped[1]).all()
    assert upright_boxes(np.zeros((0, 4), np.float32), CROP, 64, 32).shape == (0, 4)


def test_deliveries_are_equal_exactly_when_the_pixels_are() -> None:
    assert delivery(CROP) == delivery(replace(CROP, family="concept_y", dim=9, letterbox_fill=0))
    assert delivery(replace(CROP, short_side=0)) == delivery(replace(CROP, short_side=224))
    assert delivery(CROP) != delivery(replace(CROP, short_side=224))
    assert delivery(LETTERBOX) != delivery(replace(LETTERBOX, letterbox_fill=0))


@pytest.mark.parametrize("size, expected", [((1, 1), (1, 1)), ((640, 480), (320, 240)), ((9000, 2), (320, 1))])
def test_a_thumbnail_is_a_jpeg_of_at_most_320_pixels_and_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    opened = PIL.Image.open(io.BytesIO(thumbnail(smooth(*size))))
    assert (opened.format, opened.size) == ("JPEG", expected)
