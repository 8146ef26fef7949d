"""What is delivered, against Pillow; boxes on their way back; JPEGs decoded at a fraction of their sides."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from featurizers.decode import decode_image, decode_reduced
from featurizers.delivery import (
    dct_divisor,
    delivery,
    fit,
    fit_each,
    placement,
    resize,
    resize_window,
    thumbnail,
    upright_boxes,
)
from featurizers.spec import FeaturizerSpec, Image
from tests.pictures import encode, levels_apart, noise, smooth

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


def resized_by_pillow(image: Image, width: int, height: int) -> Image:
    """Across first, then down: since version 13 Pillow takes tall pictures the other way round."""
    bicubic = PIL.Image.Resampling.BICUBIC
    across = PIL.Image.fromarray(image).resize((width, image.shape[0]), bicubic)
    return np.asarray(across.resize((width, height), bicubic))


def assert_close(one: Image, other: Image) -> None:
    """At most one grey level apart, but for one value in 10,000 of pure noise, which may be two."""
    assert levels_apart(one, other) <= 2
    assert (np.abs(one.astype(int) - other.astype(int)) > 1).mean() <= 1e-4


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
    opened = PIL.Image.open(io.BytesIO(thumbnail(smooth(*size), *size)))
    assert (opened.format, opened.size) == ("JPEG", expected)


@pytest.mark.parametrize("width, height", [*SIZES, (300, 200), (1600, 1200)])
@pytest.mark.parametrize("specs", [[CROP], [LETTERBOX], [NATIVE], [CROP, LETTERBOX], [NATIVE, CROP, CROP, LETTERBOX]])
def test_what_several_specs_are_delivered_together_is_what_each_is_delivered_alone(
    specs: list[FeaturizerSpec], width: int, height: int
) -> None:
    image = smooth(width, height)
    together, source = fit_each([image] * len(specs), specs)
    assert together.keys() == {delivery(spec) for spec in specs}
    for spec in specs:
        assert (together[delivery(spec)] == fit(image, spec)).all()
    one, other = (
        np.asarray(PIL.Image.open(io.BytesIO(thumbnail(i, width, height)))).astype(int) for i in (source, image)
    )
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 3


def test_a_thumbnail_is_made_of_what_was_resized_anyway() -> None:
    _, source = fit_each([smooth(1600, 1200)] * 2, [CROP, LETTERBOX])
    assert source.shape == (312, 416, 3)


# -- the fast profile ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "divisor"),
    [
        (1536, 1024, 1),  # 1024 / 2 is below 3 x 256
        (2304, 1536, 2),
        (4608, 3072, 4),
        (4610, 3072, 2),  # 4 does not divide 4610
        (4609, 3072, 1),
        (8192, 6144, 8),
        (3072, 4608, 4),
    ],
)
def test_a_jpeg_is_reduced_only_where_three_times_the_crop_is_left_and_the_sides_divide(
    width: int, height: int, divisor: int
) -> None:
    assert dct_divisor(CROP, width, height) == divisor
    assert dct_divisor(replace(NATIVE, image_size=0), width, height) == 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_jpeg_is_delivered_as_the_whole_one_within_50_db(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(2304, 1536), "JPEG", quality=90, exif=exif)
    reduced, divisor = decode_reduced(data, max_pixels=LIMIT, divisor=2)
    whole = decode_image(data, max_pixels=LIMIT)
    assert divisor == 2 and tuple(2 * n for n in reduced.shape[:2]) == whole.shape[:2]
    apart = fit(reduced, CROP).astype(float) - fit(whole, CROP)
    assert 10 * np.log10(255**2 / (apart**2).mean()) >= 50


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_no_jpeg_is_decoded_in_full_whatever_is_asked(kind: str) -> None:
    image, divisor = decode_reduced(encode(smooth(64, 32), kind), max_pixels=LIMIT, divisor=2)
    assert divisor == 1 and image.shape == (32, 64, 3)
