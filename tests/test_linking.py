"""Names in captions, titles and picture text are linked to the right entities, or to none."""

import json
from pathlib import Path

import numpy as np
import pytest

from featurizers.evidence import text_case
from featurizers.gazetteer import edit_distance, fold, tokenize
from featurizers.linking import LINKER_SPEC, Linker, load_linker, mention_features
from featurizers.spec import all_specs
from featurizers.weights import fetch

DEV = Path(__file__).parent / "data" / "entity_linking_dev.jsonl"
PLACES = ("country:", "subdivision:", "city:")


@pytest.fixture(scope="module")
def linker() -> Linker:
    return load_linker({w.name: fetch(w.uri, w.sha256) for w in LINKER_SPEC.weights})


def linked(linker: Linker, text: str, *, cased: bool = True) -> list[str]:
    return [link.id for link in linker.link([text], cased=cased)[0]]


def test_folding_drops_case_and_accents_but_not_letters_of_other_scripts() -> None:
    assert [fold(t) for t in ("ZÜRICH", "Łódź", "İzmir")] == ["zurich", "lodz", "izmir"]
    assert [fold(t) for t in ("Москва", "東京")] == ["москва", "東京"]


def test_words_of_scripts_without_spaces_are_single_characters() -> None:
    assert [t.text for t in tokenize("Oslo's 東京 นคร")] == ["Oslo", "s", "東", "京", "นคร"]


@pytest.mark.parametrize(
    ("text", "case"), [("EXIT ONLY", "upper"), ("a red bus", "lower"), ("A red Bus", "mixed"), ("12", "mixed")]
)
def test_the_use_of_capitals_is_recognized(text: str, case: str) -> None:
    assert text_case(text, tokenize(text)) == case


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("berlin", "berlin", 0), ("berln", "berlin", 1), ("belrin", "berlin", 1)]
)
def test_a_swap_of_neighbours_is_one_edit(a: str, b: str, edits: int) -> None:
    assert edit_distance(a, b) == edits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dresden, Saxony", ["city:2935022", "subdivision:DE-SN"]),
        ("Naples, FL", ["city:4165565", "subdivision:US-FL"]),
        ("Naples, Italy", ["city:3172394", "country:IT"]),
        ("Melbourne, Florida", ["city:4163971", "subdivision:US-FL"]),
        ("Translated into German", ["language:deu"]),
        ("A German shepherd in Hamburg", ["city:2911298"]),
        ("It fell to 300 Indian rupees", ["currency:INR"]),
        ("Sydney Opera House", []),
        ("A picnic by Lake Como", []),
        ("Cologne Cathedral at noon", []),
        ("", []),
    ],
)
def test_context_decides_what_a_name_means(linker: Linker, text: str, expected: list[str]) -> None:
    assert linked(linker, text) == expected


def test_letters_that_were_misread_in_a_picture_are_repaired(linker: Linker) -> None:
    assert linked(linker, "WELCOME TO 0SLO", cased=False) == ["city:3143244"]


def test_the_surface_is_as_written_and_the_vector_is_the_entitys(linker: Linker) -> None:
    (rows,) = mention_features(linker, ["Harbour of OSLO"])
    (other,) = mention_features(linker, ["Rain in Oslo"])
    assert rows[0]["text"] == "OSLO" and rows[0]["label"] == "city:3143244" and rows[0]["box"] is None
    assert np.allclose(rows[0]["vector"], other[0]["vector"]) and abs(np.linalg.norm(rows[0]["vector"]) - 1) < 1e-5
    assert 0 < rows[0]["score"] <= 1


def test_coordinates_belong_to_the_city_around_them(linker: Linker) -> None:
    louvre = linker.nearest_place(48.8606, 2.3376)
    assert louvre is not None and louvre.id == "city:2988507" and louvre.score > 0.9
    assert linker.nearest_place(0.0, -140.0) is None and linker.nearest_place(95.0, 0.0) is None


def test_the_linker_is_no_featurizer_of_frames() -> None:
    assert LINKER_SPEC.id not in {spec.id for spec in all_specs()}


def test_the_dev_half_of_the_golden_set_is_linked_as_well_as_promised(linker: Linker) -> None:
    items = [json.loads(line) for line in DEV.read_text(encoding="utf-8").splitlines()]
    found = {kind: [0, 0, 0] for kind in ("places", "all")}  # right, given, expected
    for item in items:
        got = set(linked(linker, item["text"], cased=item["source"] != "ocr"))
        want = set(item["expected"])
        for kind, prefix in (("places", PLACES), ("all", ("",))):
            g, w = ({i for i in s if i.startswith(prefix)} for s in (got, want))
            found[kind] = [n + m for n, m in zip(found[kind], (len(g & w), len(g), len(w)), strict=True)]
    (right, given, expected), (right_all, given_all, expected_all) = found["places"], found["all"]
    assert right / given >= 0.95 and right / expected >= 0.85
    assert right_all / given_all >= 0.9 and right_all / expected_all >= 0.75
