"""Text in pictures is read, boxed and linked; pictures without text cost the first pass only."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from featurizers import entity_ocr
from featurizers.entity_ocr import disjoint_regions
from featurizers.spec import Image, check_features
from featurizers.weights import fetch
from jobs.inference import loaded_featurizers
from tests.contract_pictures import loaded

PLAIN, GATED = entity_ocr.SPECS


@pytest.fixture(scope="module")
def weights() -> dict[str, Path]:
    return {w.name: fetch(w.uri, w.sha256) for w in PLAIN.weights}


def sign(*lines: str) -> Image:
    picture = Pillow.new("RGB", (640, 480), (20, 90, 40))  # the detector enlarges the short side to 736: no thin ones
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((40, 120 * row + 40), line, font=ImageFont.load_default(56), fill="white")
    return np.asarray(picture)


def test_a_sign_becomes_boxed_lines_and_the_entities_they_name() -> None:
    extract = loaded(PLAIN)
    blank = np.full((64, 64, 3), 200, np.uint8)
    found = extract([blank, sign("WELCOME TO", "LISBON, PORTUGAL")])
    check_features(found, PLAIN, 2)
    assert found.image.tolist() == [1, 1, 1, 1]
    assert found.label == (None, None, "city:2267057", "country:PT")
    assert found.text is not None and found.text[2:] == ("LISBON", "PORTUGAL")
    assert found.box is not None and found.box[0, 3] < found.box[1, 1] and (found.box[2] == found.box[1]).all()
    assert len(extract([]).image) == 0


def test_a_line_has_the_text_and_score_that_rapidocr_gives(weights: dict[str, Path]) -> None:
    from rapidocr import RapidOCR

    picture = sign("PLATFORM 12")
    plain = RapidOCR(params={"Global.log_level": "error"})(picture[:, :, ::-1])
    lines = entity_ocr.load_reader(PLAIN, weights)(picture)
    assert [line.text for line in lines] == list(plain.txts)
    assert np.allclose([line.score for line in lines], plain.scores, atol=1e-3)


def test_the_first_pass_lets_a_sign_through_and_stops_a_plain_surface(weights: dict[str, Path]) -> None:
    read = entity_ocr.load_reader(GATED, weights)
    assert [line.text for line in read(sign("HOTEL"))] == ["HOTEL"]
    assert read(np.full((300, 400, 3), 120, np.uint8)) == []


def test_the_gated_reader_boxes_a_line_where_the_plain_one_does_in_a_corner_of_a_large_picture(
    weights: dict[str, Path],
) -> None:
    picture = np.full((700, 1000, 3), 120, np.uint8)
    picture[-160:, -640:] = sign("EXIT 25")[:160]
    (plain,), (gated,) = (entity_ocr.load_reader(spec, weights)(picture) for spec in (PLAIN, GATED))
    assert gated.text == plain.text == "EXIT 25"
    assert np.allclose(gated.box, plain.box, atol=0.01)


def test_regions_that_overlap_become_one_and_others_stay() -> None:
    across, down, far, beside = (0, 0, 20, 5), (5, 3, 8, 20), (50, 50, 60, 60), (15, 10, 25, 12)
    assert disjoint_regions([across, far, beside]) == [across, far, beside]
    assert disjoint_regions([across, far, down]) == [far, (0, 0, 20, 20)]
    assert disjoint_regions([across, far, beside, down]) == [far, (0, 0, 25, 20)]  # only the union meets `beside`
    assert disjoint_regions([(0, 0, 5, 5), (5, 0, 9, 5)]) == [(0, 0, 5, 5), (5, 0, 9, 5)]
    assert disjoint_regions([]) == []


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3), (11, 11, 3), (13, 400, 3)])
def test_pictures_too_thin_for_a_line_have_none(weights: dict[str, Path], shape: tuple[int, int, int]) -> None:
    read = entity_ocr.load_reader(PLAIN, weights)
    assert read(np.zeros(shape, np.uint8)) == []


def test_it_has_one_lane_on_a_gpu_too_since_its_reader_is_not_for_two_threads(weights: dict[str, Path]) -> None:
    (ready,) = loaded_featurizers([(PLAIN, weights, "one lane")], "cuda:0")
    assert ready.lanes == 1
