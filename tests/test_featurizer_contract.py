"""What every featurizer keeps, whichever it is: the suite finds them by listing the folder."""

from __future__ import annotations

import ast
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

import featurizers
from featurizers.decode import decode_image
from featurizers.delivery import fit
from featurizers.spec import FeaturizerSpec, Image, all_specs, check_features, families, featurizer_module, prepared
from featurizers.weights import resolve
from tests.contract_pictures import (
    GOLDEN,
    GOLDEN_PICTURE,
    MAX_PIXELS,
    as_jpeg,
    extracted,
    golden_rows,
    loaded,
    of_image,
    photograph,
)

ALONE_DISTANCE = 1e-4  # cosine distance between a picture's vectors alone and in a batch
STORED_PIXELS_DISTANCE = 1e-4
HALF_PRECISION_DISTANCE = 1e-3  # of a GPU's float16 from the CPU's
ENCODED_FILE_DISTANCE = 1e-2
SCORE_TOLERANCE = 1e-4

# Never at the top of a featurizer's module; decoding and video stand on theirs and are not featurizers.
HEAVY = {"torch", "torchvision", "onnxruntime", "onnx", "transformers", "tokenizers", "rapidocr", "spacy", "cv2", "av"}

every_spec = pytest.mark.parametrize("spec", all_specs(), ids=lambda spec: spec.id)


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """The same features in the same order."""
    assert len(a["vector"]) == len(b["vector"])
    if not len(a["vector"]):
        return  # fields may be left out where nothing was found
    assert a.keys() == b.keys()
    for name in ("label", "text"):
        if name in a:
            assert list(a[name]) == list(b[name])
    for name in ("score", "box"):
        if name in a:
            assert np.allclose(a[name], b[name], atol=SCORE_TOLERANCE, equal_nan=True)
    nameless = np.isnan(a["vector"]).all(axis=1)
    assert np.array_equal(nameless, np.isnan(b["vector"]).all(axis=1))
    cosine = (a["vector"][~nameless].astype(np.float64) * b["vector"][~nameless]).sum(axis=1)
    assert np.all(1 - cosine <= ALONE_DISTANCE)


def small(picture: Image, side: int) -> Image:
    pillow = PillowImage.fromarray(picture)
    pillow.thumbnail((side, side), PillowImage.Resampling.BICUBIC)
    return np.array(pillow)


@every_spec
def test_a_batch_of_none_gives_no_features(spec: FeaturizerSpec) -> None:
    check_features(loaded(spec)([]), spec, 0)


@every_spec
def test_features_are_the_same_alone_and_in_a_batch_and_keep_its_order(spec: FeaturizerSpec) -> None:
    pictures = [small(photograph("coffee"), 400), photograph("page")[:, :240], small(photograph("motorcycle"), 300)]
    pictures = pictures[:2] if spec.kind == "entity" else pictures  # reading a picture takes a second
    together = extracted(spec, pictures)
    check_features(together, spec, len(pictures))
    assert len(together.image)
    for i, picture in enumerate(pictures):
        assert_same(of_image(extracted(spec, [picture]), 0), of_image(together, i))


@every_spec
def test_the_pictures_given_are_not_changed(spec: FeaturizerSpec) -> None:
    picture = fit(small(photograph("chelsea"), 300), spec)
    before = picture.copy()
    loaded(spec)([picture])
    assert np.array_equal(picture, before)


def encoded(mode: str, size: tuple[int, int], kind: str) -> bytes:
    picture = PillowImage.fromarray(small(photograph("chelsea"), 200)).convert(mode).resize(size)
    if mode == "RGBA":
        picture.putalpha(PillowImage.linear_gradient("L").resize(size))
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@every_spec
def test_grey_alpha_cmyk_one_pixel_thin_and_even_pictures_give_valid_features(spec: FeaturizerSpec) -> None:
    files = [
        encoded("L", (200, 133), "JPEG"),
        encoded("RGBA", (133, 200), "PNG"),
        encoded("CMYK", (200, 133), "JPEG"),
        encoded("RGB", (1, 1), "PNG"),
        encoded("RGB", (1, 300), "PNG"),
        encoded("RGB", (300, 2), "PNG"),
    ]
    pictures = [decode_image(file, max_pixels=MAX_PIXELS) for file in files]
    pictures += [np.full((64, 48, 3), grey, np.uint8) for grey in (0, 255)]
    check_features(extracted(spec, pictures), spec, len(pictures))


def furthest(golden: Any, found: Any) -> float:
    """The largest cosine distance from a golden vector to the nearest one found."""
    return float((1 - (golden.astype(np.float64) @ found.T.astype(np.float64)).max(axis=1)).max())


@every_spec
def test_stored_pixels_give_the_golden_vectors(spec: FeaturizerSpec) -> None:
    golden = np.load(GOLDEN / f"{spec.id}.npz")["vectors"]
    assert len(golden) >= 1
    found = golden_rows(spec, extracted(spec, [photograph(GOLDEN_PICTURE[spec.kind])]))
    assert len(found) == len(golden)
    assert furthest(golden, found) <= STORED_PIXELS_DISTANCE


@every_spec
def test_threads_that_are_let_in_at_once_get_the_features_of_their_own_pictures(spec: FeaturizerSpec) -> None:
    lanes = getattr(featurizer_module(spec.family), "GPU_LANES", 1)
    if lanes == 1:
        pytest.skip("lets no second thread in")
    pictures = [small(photograph(name), 300) for name in ("coffee", "motorcycle", "chelsea")]
    alone = [of_image(extracted(spec, [picture]), 0) for picture in pictures]
    with ThreadPoolExecutor(lanes) as pool:
        together = list(pool.map(lambda i: extracted(spec, [pictures[i % 3]] * 2), range(6)))
    for i, features in enumerate(together):
        for image in (0, 1):
            assert_same(of_image(features, image), alone[i % 3])


@every_spec
def test_a_gpu_gives_the_golden_vectors_in_full_and_in_short_batches(spec: FeaturizerSpec) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    if spec.precision == "int8":
        pytest.skip("int8 is for CPUs and refused on a GPU")
    golden = np.load(GOLDEN / f"{spec.id}.npz")["vectors"]
    resolved, paths = resolve(spec)
    extract = featurizer_module(spec.family).load(resolved, prepared(resolved, paths), "cuda:0")
    picture = fit(photograph(GOLDEN_PICTURE[spec.kind]), spec)
    allowed = STORED_PIXELS_DISTANCE if spec.precision == "float32" else HALF_PRECISION_DISTANCE
    for n in (1, 2, spec.batch_size + 1):
        found = extract([picture] * n)
        check_features(found, spec, n)
        vectors = found.vector[found.image == n - 1]
        assert furthest(golden, vectors[~np.isnan(vectors).all(axis=1)]) <= allowed


@every_spec
def test_an_encoded_file_gives_vectors_near_the_golden_ones(spec: FeaturizerSpec) -> None:
    golden = np.load(GOLDEN / f"{spec.id}.npz")["vectors"]
    picture = decode_image(as_jpeg(photograph(GOLDEN_PICTURE[spec.kind])), max_pixels=MAX_PIXELS)
    vectors = extracted(spec, [picture]).vector
    assert furthest(golden, vectors[~np.isnan(vectors).all(axis=1)]) <= ENCODED_FILE_DISTANCE


@every_spec
def test_weights_are_pinned_and_say_their_licence_and_source(spec: FeaturizerSpec) -> None:
    for weights in spec.weights:
        assert weights.sha256 is not None and len(weights.sha256) == 64, weights.uri
        assert weights.licence and weights.source


def test_every_module_is_listed_and_ids_are_unique() -> None:
    assert {"concept_clip", "concept_efficientnet", "object_yolov3"} <= set(families())
    ids = [spec.id for spec in all_specs()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("family", families())
def test_no_module_imports_a_heavy_package_at_its_top(family: str) -> None:
    from pathlib import Path

    tree = ast.parse((Path(featurizers.__path__[0]) / f"{family}.py").read_text(encoding="utf-8"))
    imported: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            imported.add(statement.module.partition(".")[0])
    assert not imported & (HEAVY | {"PIL"})
