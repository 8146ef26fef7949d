"""EfficientNet-Lite0 and the label bridge: the conversion is exact, the classes are right, queries find pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import concept_mean_average_precision, labelled_photographs
from featurizers import concept_efficientnet, label_bridge, onnx_graph
from featurizers.minilm import MINILM_WEIGHTS, TextEncoder, load_text_encoder
from featurizers.onnx_session import open_session
from featurizers.spec import find_spec
from featurizers.weights import fetch, resolve
from tests.contract_pictures import extracted, loaded, photograph

SPEC = find_spec("concept_efficientnet.lite0@1")


@pytest.fixture(scope="module")
def weights() -> dict[str, Path]:
    return resolve(SPEC)[1]


@pytest.fixture(scope="module")
def encode() -> TextEncoder:
    return load_text_encoder({w.name: fetch(w.uri, w.sha256) for w in MINILM_WEIGHTS})


@pytest.fixture(scope="module")
def bridge(weights: dict[str, Path], encode: TextEncoder) -> label_bridge.LabelBridge:
    return label_bridge.label_bridge(concept_efficientnet.class_names(weights["imagenet_names"]), encode)


def test_a_photograph_has_five_classes_best_first_and_one_vector() -> None:
    features = extracted(SPEC, [photograph("chelsea"), photograph("coffee")])
    assert features.image.tolist() == [0] * 5 + [1] * 5
    assert features.label is not None and features.score is not None
    assert {"tabby cat", "egyptian mau"} & set(features.label[:5]) and "espresso" in features.label[5:]
    assert np.all(np.diff(features.score[:5]) <= 0) and np.all(np.diff(features.score[5:]) <= 0)
    assert np.isnan(features.vector).all(axis=1).tolist() == [False, True, True, True, True] * 2


def test_a_picture_of_another_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"concept_efficientnet.lite0@1: picture of shape \(10, 224, 3\), allowed"):
        loaded(SPEC)([np.zeros((10, 224, 3), np.uint8)])


def test_the_folded_network_equals_convolution_then_normalisation(weights: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from torch.nn import functional

    state = torch.load(weights["lite0"], weights_only=True)
    graph = onnx_graph.Graph()
    weight, bias = onnx_graph.fold_batch_norm(
        state["_conv_stem.weight"].numpy(),
        scale=state["_bn0.weight"].numpy(),
        shift=state["_bn0.bias"].numpy(),
        mean=state["_bn0.running_mean"].numpy(),
        deviation=np.sqrt(state["_bn0.running_var"].numpy() + 1e-3),
    )
    tensor = onnx_graph.pixels(graph, "image", subtract=127.0, divide=128.0)
    tensor = onnx_graph.convolution(graph, tensor, weight, bias, stride=2, pads=(0, 0, 1, 1))
    outputs = {"stem": (tensor, ["n", 32, 8, 8])}
    onnx_graph.save(graph, tmp_path / "stem.onnx", side=16, outputs=outputs, name="stem")
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    found = open_session(tmp_path / "stem.onnx", "cpu").run(None, {"image": image})[0]
    pixels = functional.pad((torch.from_numpy(image).permute(0, 3, 1, 2).float() - 127) / 128, (0, 1, 0, 1))
    expected = functional.batch_norm(
        functional.conv2d(pixels, state["_conv_stem.weight"], stride=2),
        *(state[f"_bn0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")),
        eps=1e-3,
    )
    assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_class_names_are_read_without_running_the_file(tmp_path: Path) -> None:
    path = tmp_path / "names.py"
    names = [f"Name {i}" for i in range(1000)]
    path.write_text(f"raise SystemExit('was run')\nIMAGENET_CLASSNAMES = {names!r}\n")
    assert concept_efficientnet.class_names(path)[999] == "name 999"
    path.write_text("IMAGENET_CLASSNAMES = ('a', 'b')\n")
    with pytest.raises(ValueError, match="lists 2 class names, 1000 are needed"):
        concept_efficientnet.class_names(path)


def test_a_query_in_other_words_finds_its_picture(bridge: label_bridge.LabelBridge, encode: TextEncoder) -> None:
    names = ["chelsea", "coffee", "rocket", "hopper"]
    features = extracted(SPEC, [photograph(name) for name in names])
    assert features.label is not None and features.score is not None
    frames = np.stack(
        [
            label_bridge.image_text_vector(
                bridge, [str(label) for label in features.label[5 * i : 5 * i + 5]], features.score[5 * i : 5 * i + 5]
            )
            for i in range(len(names))
        ]
    )
    assert np.allclose(np.linalg.norm(frames, axis=1), 1, atol=1e-5)
    for query, name in (("a kitten", "chelsea"), ("a hot drink", "coffee"), ("a spacecraft", "rocket")):
        assert names[int((frames @ label_bridge.query_vectors(bridge, [query], encode)[0]).argmax())] == name


def test_both_sides_are_freed_of_what_all_names_have_in_common() -> None:
    vectors = {"a photo of a cat": [0.8, 0.6, 0.0], "a photo of a car": [0.8, -0.6, 0.0], "a kitten": [0.6, 0.8, 0.0]}

    def toy(texts: Any) -> Any:
        return np.array([vectors[text] for text in texts], np.float32)

    bridge = label_bridge.label_bridge(["cat", "car"], toy)
    assert np.allclose(bridge.mean, [0.8, 0, 0])
    assert np.allclose(label_bridge.image_text_vector(bridge, ["cat", "car"], [0.64, 0.16]), [0, 1, 0], atol=1e-6)
    expected = np.array([-0.2, 0.8, 0]) / np.hypot(0.2, 0.8)
    assert np.allclose(label_bridge.query_vectors(bridge, ["a kitten"], toy)[0], expected, atol=1e-6)


def test_a_label_that_the_bridge_does_not_have_is_refused(bridge: label_bridge.LabelBridge) -> None:
    with pytest.raises(ValueError, match="unknown: \\['no such class'\\]"):
        label_bridge.image_text_vector(bridge, ["no such class"], [0.5])


def test_text_queries_reach_the_reference_on_the_labelled_photographs(dev_data: Path, encode: Any) -> None:
    assert concept_mean_average_precision(labelled_photographs(dev_data)) >= 0.51
