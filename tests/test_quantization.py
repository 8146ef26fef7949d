"""int8 networks: the same bytes and integers everywhere, run on integers, on a CPU only, at the quality of float32."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import quality
from featurizers import concept_efficientnet, object_yolov3, onnx_graph, quantization
from featurizers.device import DeviceUnavailable
from featurizers.onnx_session import open_session
from featurizers.spec import FeaturizerSpec, featurizer_module, find_spec, fingerprint, prepared
from featurizers.weights import resolve

NETWORKS: dict[str, Any] = {
    "concept_efficientnet.lite0_int8@1": concept_efficientnet,
    "object_yolov3.tiny_int8@1": object_yolov3,
}
# Left in float32: the first two of the detector and its two heads; the classifier is no convolution.
OPERATORS = {
    "lite0": {"QLinearConv": 49, "QLinearAdd": 9},
    "yolov3_tiny": {"QLinearConv": 9, "QLinearLeakyRelu": 9, "Conv": 4},
}
WIDEST_PAIR = 32767 // 255  # of two products of a uint8 and an int8 added in 16 bits

every_network = pytest.mark.parametrize("featurizer_id", NETWORKS)


def quantized(featurizer_id: str, folder: Path) -> Path:
    """The network, made anew."""
    module = NETWORKS[featurizer_id]
    source = prepared(*resolve(find_spec(featurizer_id.replace("_int8", ""))))[module.NETWORK]
    quantization.quantize(source, folder / "int8.onnx", module.ACTIVATION_RANGES, module.N_FLOAT)
    return folder / "int8.onnx"


def integer_weights(path: Path) -> list[np.ndarray[Any, Any]]:
    constants = [onnx.numpy_helper.to_array(c) for c in onnx.load(str(path)).graph.initializer]
    return [c for c in constants if c.dtype == np.int8 and c.ndim == 4]


@every_network
def test_no_two_neighbouring_weights_saturate_sixteen_bits(featurizer_id: str, tmp_path: Path) -> None:
    weights = integer_weights(quantized(featurizer_id, tmp_path))
    assert len(weights) == OPERATORS[NETWORKS[featurizer_id].NETWORK]["QLinearConv"]
    for weight in weights:
        if weight.shape[1] == 1:
            continue  # depthwise: added in 32 bits
        flat = weight.reshape(len(weight), -1).astype(int)
        if weight.shape[2:] == (1, 1):
            pairs = flat.reshape(len(flat), -1, 2)
        else:  # any two may be neighbours
            pairs = np.stack([np.sort(flat)[:, :2], np.sort(flat)[:, -2:]], axis=1)
        assert np.maximum(pairs, 0).sum(axis=2).max() <= WIDEST_PAIR
        assert np.maximum(-pairs, 0).sum(axis=2).max() <= WIDEST_PAIR


@every_network
def test_the_conversion_gives_the_same_bytes_as_the_one_kept_for_the_featurizer(
    featurizer_id: str, tmp_path: Path
) -> None:
    kept = prepared(*resolve(find_spec(featurizer_id)))[NETWORKS[featurizer_id].NETWORK]
    assert quantized(featurizer_id, tmp_path).read_bytes() == kept.read_bytes()


@every_network
def test_onnx_runtime_runs_it_on_integers(featurizer_id: str, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(quantized(featurizer_id, tmp_path)), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    expected = OPERATORS[NETWORKS[featurizer_id].NETWORK]
    assert {op: found[op] for op in expected} == expected
    # Integers are entered and left no more often than the network has ends.
    assert found["QuantizeLinear"] <= 1 and found["DequantizeLinear"] <= 3


def toy(path: Path, weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> None:
    graph = onnx_graph.Graph()
    tensor = onnx_graph.pixels(graph, "image", subtract=127.0, divide=128.0)
    tensor = onnx_graph.convolution(graph, tensor, weight, bias, pads=[1] * 4)
    tensor = onnx_graph.node(graph, "GlobalAveragePool", [onnx_graph.node(graph, "LeakyRelu", [tensor], alpha=0.1)])
    onnx_graph.save(graph, path, side=8, outputs={"mean": (tensor, ["n", len(weight), 1, 1])}, name="toy")


def test_the_integer_network_is_within_a_step_of_the_float_one(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    weight, bias = chance.normal(size=(5, 3, 3, 3)), chance.normal(size=5)
    weight[1] = 0  # a dead channel, whose bias is all there is
    weight[2] *= 1e-9
    toy(tmp_path / "float.onnx", weight, bias)
    images = chance.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    ranges = quantization.measured_ranges(tmp_path / "float.onnx", list(images), 0)
    quantization.quantize(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", [(low * 2, high * 2) for low, high in ranges], 0
    )
    expected, found = (
        open_session(tmp_path / name, "cpu").run(None, {"image": images})[0] for name in ("float.onnx", "int8.onnx")
    )
    step = 2 * (ranges[0][1] - ranges[0][0]) / 255
    assert np.abs(expected - found).max() < step


def test_ranges_of_another_network_are_refused(tmp_path: Path) -> None:
    toy(tmp_path / "float.onnx", np.ones((2, 3, 3, 3)), np.zeros(2))
    with pytest.raises(ValueError, match=r"float\.onnx needs 1 ranges, there are 2"):
        quantization.quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", [(-1.0, 1.0)] * 2, 0)


@every_network
def test_int8_on_a_gpu_is_refused(featurizer_id: str) -> None:
    spec, weights = resolve(find_spec(featurizer_id))
    with pytest.raises(DeviceUnavailable, match=r"_int8@1: device is 'cuda:0', allowed: cpu"):
        featurizer_module(spec.family).load(spec, weights, "cuda:0")


def digest_of(spec: FeaturizerSpec) -> str:
    return fingerprint(spec, decode_profile="exact", frame_sampling="none")


@every_network
def test_other_ranges_are_another_fingerprint(featurizer_id: str) -> None:
    spec = find_spec(featurizer_id)
    settings = spec.setting | dict(quantization.settings([(-1.0, 1.0)], NETWORKS[featurizer_id].N_FLOAT))
    assert digest_of(replace(spec, settings=tuple(settings.items()))) != digest_of(spec)
    assert digest_of(find_spec(featurizer_id.replace("_int8", ""))) != digest_of(spec)


def test_int8_costs_at_most_half_a_point_of_the_quality_table(dev_data: Path) -> None:
    labelled = quality.labelled_photographs(dev_data)
    float_ap, int8_ap = (
        quality.object_average_precision(labelled, f"object_yolov3.{variant}@1")
        for variant in ("tiny_all", "tiny_all_int8")
    )
    for metric in ("AP50", "AP@[.5:.95]"):
        assert int8_ap[metric] >= float_ap[metric] - 0.005
    float_map, int8_map = (
        quality.concept_mean_average_precision(labelled, f"concept_efficientnet.{variant}@1")
        for variant in ("lite0", "lite0_int8")
    )
    assert int8_map >= float_map - 0.005
