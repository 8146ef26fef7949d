"""Evaluations are compared only where both are of one thing, and where what they say is found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.claims import Claim, ComparisonRefused, agreed, check_fingerprint, check_measured, claim_of
from jobs.quality import GoldenItem, zero_shot

ONE, OTHER = "concept_efficientnet.lite0@1", "concept_efficientnet.lite0_int8@1"


def row(**changed: Any) -> dict[str, Any]:
    return {
        "run_id": "monday.evaluate",
        "inputs": {"features": 7, "golden": 3},
        "outputs": {ONE: "a" * 32, OTHER: "b" * 32},
        "metrics": {
            "golden_version/few": 2.0,
            "golden_version/signs": 1.0,
            "quality/few/concept_efficientnet.lite0.v1/top_1": 0.75,
            "quality/signs/entity_ocr.rapidocr.v1/line_recall": 0.5,
        },
    } | changed


def test_a_claim_is_what_the_run_measured_of_this_featurizer() -> None:
    claim = claim_of(row(), ONE)
    assert (claim.fingerprint, claim.golden, claim.features_version) == ("a" * 32, {"few": 2}, 7)
    assert claim.value("few", "top_1") == 0.75 and claim.value("few", "top_5") is None
    assert claim_of(row(), f"{ONE}#aaa") == claim
    for featurizer in (OTHER, f"{ONE}#bbb", "object_yolov3.tiny@1"):
        with pytest.raises(ComparisonRefused, match=r"did not measure .*; it was given .*lite0@1#aaaaaaaa"):
            claim_of(row(), featurizer)


def claim(**changed: Any) -> Claim:
    stated: dict[str, Any] = {
        "run_id": "monday", "featurizer": ONE, "fingerprint": "a" * 32, "golden": {"few": 2}, "features_version": 7,
        "metrics": {},
    }  # fmt: skip
    return Claim(**stated | changed)


def test_runs_on_other_items_or_other_tables_are_refused_with_all_that_differs() -> None:
    assert agreed(claim(), claim(run_id="tuesday"), "few") == ("few@2", 7)
    assert agreed(claim(), claim(), "few@2") == ("few@2", 7)
    with pytest.raises(ComparisonRefused) as caught:
        agreed(claim(), claim(run_id="tuesday", golden={"few": 3}, features_version=9), "few")
    assert "monday and tuesday cannot be compared: few at versions 2 and 3; table features at versions 7 and 9" in str(
        caught.value
    )
    with pytest.raises(ComparisonRefused, match="few@1, and measured were versions 2 and 2"):
        agreed(claim(), claim(), "few@1")
    with pytest.raises(ComparisonRefused, match="run monday was not measured on signs; it was on few@2"):
        agreed(claim(), claim(), "signs")


def test_what_is_measured_now_must_be_what_the_run_said() -> None:
    items = [GoldenItem(item_id=str(i), kind="labels", labels=("cat",)) for i in range(4)]
    found = zero_shot(items, ["cat", "dog"], np.array([[1, 0], [1, 0], [1, 0], [0, 1]], float))
    check_measured(claim(metrics={"quality/few/concept_efficientnet.lite0.v1/top_1": 0.75}), "few", found)
    with pytest.raises(ComparisonRefused, match=r"measured top_1 of .* as 0\.5, here it is 0\.75: the configuration"):
        check_measured(claim(metrics={"quality/few/concept_efficientnet.lite0.v1/top_1": 0.5}), "few", found)


def test_a_claimed_fingerprint_must_be_the_one_that_this_code_and_configuration_give() -> None:
    check_fingerprint("fast", "abc", "abcdef")
    check_fingerprint("fast", "", "abcdef")
    with pytest.raises(ComparisonRefused, match=r"variant fast is to have fingerprint 12345678, .* give abcdef"):
        check_fingerprint("fast", "1234567890", "abcdef")
