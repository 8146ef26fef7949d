"""Static int8 of a convolutional ONNX network, from stored ranges of its activations. Knows no model and no picture.

Activations become uint8 and weights int8 with a scale for each output channel (Jacob et al. 2018, arXiv:1712.05877),
written as pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime runs as integer operators on a CPU. The
ranges are numbers of the featurizer's module and not measured where it is set up: everyone gets the same bytes, and a
picture's features do not depend on its batch, as those of dynamic quantisation do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers import onnx_graph
from featurizers.device import DeviceUnavailable
from featurizers.onnx_graph import Array, Graph
from featurizers.spec import FeaturizerSpec, Image, Setting
from featurizers.weights import converted

CONVERTER = "onnx_int8@1"  # raise the number with any change of what `quantize` writes

Range = tuple[float, float]  # lowest and highest value of a tensor
Grid = tuple[np.float32, np.uint8]  # scale and zero point: a uint8 q stands for scale * (q - zero point)

_INT32_HEADROOM = 2**30
_VALUES_OF_A_PICTURE = 5000  # that `least_loss` looks at
_SHARES = [0.9**i for i in range(16)]  # of the extremes, that it tries


def settings(ranges: Sequence[Range], n_float: int) -> tuple[tuple[str, Setting], ...]:
    """What of the quantisation goes into a spec, and so into its fingerprint."""
    digest = hashlib.sha256(repr(tuple(ranges)).encode()).hexdigest()[:16]
    return (("int8_converter", CONVERTER), ("activation_ranges", digest), ("float32_convolutions", n_float))


def as_int8(
    spec: FeaturizerSpec, weights: Mapping[str, Path], network: str, ranges: Sequence[Range], n_float: int
) -> dict[str, Path]:
    """`weights` with the ONNX file of `network` as int8 if that is the precision of `spec`, converted once per machine.

    What was converted before stays as it is.
    """
    source, name = weights[network], f"{network}.int8.onnx"
    if spec.precision == "int8" and source.name != name:
        made_by = repr(settings(ranges, n_float))
        source = converted(source, name=name, converter=made_by, convert=lambda s, t: quantize(s, t, ranges, n_float))
    return {**weights, network: source}


def refuse_gpu(spec: FeaturizerSpec, device: str) -> None:
    """Raise DeviceUnavailable for int8 on a GPU, where ONNX Runtime would turn it back into floats."""
    if spec.precision == "int8" and device != "cpu":
        raise DeviceUnavailable(f"{spec.id}: device is {device!r}, allowed: cpu; int8 is for CPUs, float16 for GPUs")


def tensors_with_ranges(model: Any, n_float: int) -> list[str]:
    """Names of the tensors of an ONNX `model` whose ranges `quantize` needs, in graph order.

    They are what goes into the first int8 convolution, and the results of convolutions and additions behind it, but for
    those that are clipped or given out as they are: the range of any other tensor follows.
    """
    outputs = {output.name for output in model.graph.output}
    told = {n.input[0] for n in model.graph.node if n.op_type == "Clip" or n.output[0] in outputs}
    names: list[str] = []
    n_convolutions = 0
    for step in model.graph.node:
        n_convolutions += step.op_type == "Conv"
        if 0 < n_float == n_convolutions - 1 and step.op_type == "Conv":
            names.append(step.input[0])
        if n_convolutions > n_float and step.op_type in ("Conv", "Add") and step.output[0] not in told:
            names.append(step.output[0])
    return names


def measured_ranges(source: Path, images: Sequence[Image], n_float: int) -> list[Range]:
    """The ranges of the network at `source` for `quantize`: lowest and highest value of a picture, means over `images`.

    Means, as Jacob et al. take (section 3.1): with the extremes of all pictures most of a grid is left to outliers.
    Before a leaky unit it is the range that loses least behind it, for an end far below 0 would waste the grid on
    values that are then divided by ten.
    """
    import onnx
    import onnxruntime

    model = onnx.load(str(source))
    names = tensors_with_ranges(model, n_float)
    leak = {n.input[0]: n.attribute[0].f for n in model.graph.node if n.op_type == "LeakyRelu"}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ends: list[list[Range]] = [[] for _ in names]
    sample: list[list[Array]] = [[] for _ in names]
    for image in images:
        for i, tensor in enumerate(session.run(names, {"image": image[None]})):
            ends[i].append((float(tensor.min()), float(tensor.max())))
            sample[i].append(tensor.ravel()[:: max(1, tensor.size // _VALUES_OF_A_PICTURE)])
    return [
        least_loss(np.concatenate(sample[i]), leak[name])
        if name in leak
        else (float(np.mean([low for low, _ in ends[i]])), float(np.mean([high for _, high in ends[i]])))
        for i, name in enumerate(names)
    ]


def least_loss(values: Array, leak: float) -> Range:
    """The range, of those between the extremes of `values`, whose grid has the least squared error behind a leaky unit.

    leak: what the unit multiplies negative values by.
    """

    def loss(ends: Range) -> float:
        scale, zero = grid_of(*ends)
        held = scale * (np.clip(np.rint(values / scale) + zero, 0, 255) - zero)
        return float(np.square((values - held) * np.where(values < 0, leak, 1)).mean())

    low, high = float(values.min()), float(values.max())
    return min(((low * f, high * g) for f in _SHARES for g in _SHARES), key=loss)


def grid_of(low: float, high: float) -> Grid:
    """The grid that reaches from `low` to `high` and holds 0, which pads convolutions, exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    return scale, np.uint8(round(-low / float(scale)))


def reach(grid: Grid) -> Range:
    """The lowest and the highest value of a grid."""
    scale, zero = float(grid[0]), int(grid[1])
    return -scale * zero, scale * (255 - zero)


def weight_scales(weight: Array) -> NDArray[np.float32]:
    """(out,) scales of a weight (out, in / group, k, k) such that no processor saturates.

    x86 without VNNI adds two products of a uint8 and an int8 in 16 bits (VPMADDUBSW), those of neighbouring channels:
    that holds 255 x 128. So neighbours of one sign share 127, and the numbers are the same on every processor. In a
    larger kernel who is a neighbour depends on the layout, so the largest two share it. A depthwise convolution is
    added in 32 bits.
    """
    flat = np.abs(weight).reshape(len(weight), -1)
    top = flat.max(axis=1)
    if weight.shape[1] > 1:
        flat = weight.reshape(len(weight), -1)
        flat = np.pad(flat, ((0, 0), (0, flat.shape[1] % 2)))
        if weight.shape[2:] != (1, 1):
            flat = np.sort(flat, axis=1)
        pairs = flat.reshape(len(flat), -1, 2)
        top = np.max([top, *(np.maximum(side, 0).sum(axis=2).max(axis=1) for side in (pairs, -pairs))], axis=0)
    scales: NDArray[np.float32] = (np.where(top > 0, top, 1) / 127).astype(np.float32)
    return scales


def quantize(source: Path, target: Path, ranges: Sequence[Range], n_float: int) -> None:
    """Write the network that `onnx_graph.save` wrote to `source` with convolutions in int8.

    ranges: of `tensors_with_ranges`. n_float: how many convolutions are left in float32 at the beginning; if none are,
    pixels are taken as the uint8 they are. Left in float32 besides: convolutions that are outputs as they are, and what
    comes behind the last convolution.
    Raises ValueError for another number of ranges, or a network that does not begin as `onnx_graph.pixels`.
    """
    import onnx

    model = onnx.load(str(source))
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    names = tensors_with_ranges(model, n_float)
    if len(names) != len(ranges):
        raise ValueError(f"{source.name} needs {len(names)} ranges, there are {len(ranges)}")
    range_of = dict(zip(names, ranges, strict=True))
    shape_of = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    clipped = {n.input[0] for n in model.graph.node if n.op_type == "Clip"}
    graph = Graph()
    outputs: dict[str, tuple[str, Sequence[int | str]]] = {}
    here = {"image": "image"}  # tensor of the source -> the same in `graph`, behind its quantisation
    grids: dict[str, Grid] = {}  # tensor of the source -> how it is held in `graph`

    def constant(value: Any) -> str:
        name = onnx_graph.constant(graph, value)
        graph.constants[name] = np.asarray(value)  # a scale without axes stays so, as integer operators demand
        return name

    def dequantized(tensor: str, scale: Any, zero: Any) -> str:
        return onnx_graph.node(graph, "DequantizeLinear", [tensor, constant(scale), constant(zero)], axis=0)

    def integer(name: str, scale: Array, dtype: type[np.signedinteger[Any]]) -> str:
        value = constants[name].astype(np.float64)
        rounded = np.rint(value / scale.astype(np.float64).reshape(-1, *[1] * (value.ndim - 1))).astype(dtype)
        return dequantized(constant(rounded), scale, np.zeros(len(scale), dtype))

    steps = list(model.graph.node)
    if not n_float:
        pixels, steps = steps[:4], steps[4:]
        if [n.op_type for n in pixels] != ["Cast", "Transpose", "Sub", "Div"]:
            raise ValueError(f"{source.name} begins with {[n.op_type for n in pixels]}, allowed: onnx_graph.pixels")
        subtract, divide = (constants[n.input[1]].item() for n in pixels[2:])
        start = pixels[3].output[0]
        grids[start] = (np.float32(1 / divide), np.uint8(subtract))
        here[start] = dequantized(onnx_graph.node(graph, "Transpose", ["image"], perm=[0, 3, 1, 2]), *grids[start])

    n_convolutions = 0
    for step in steps:
        result = step.output[0]
        if result in shape_of:  # an Identity, which `save` writes anew
            outputs[result] = (here[step.input[0]], shape_of[result])
            continue
        n_convolutions += step.op_type == "Conv"
        is_int8 = n_convolutions > n_float
        grid = _grid(step, grids, constants, range_of.get(result)) if is_int8 or result in range_of else None
        if step.op_type == "Conv" and is_int8 and (grid or result in clipped):
            weight, bias = (constants[name] for name in step.input[1:])
            input_scale = grids[step.input[0]][0]
            # The bias is held in int32 on the grid of the products: a channel of tiny weights must leave it room.
            scale = np.maximum(weight_scales(weight), (np.abs(bias) / (_INT32_HEADROOM * input_scale)))
            scale = scale.astype(np.float32)
            here[step.input[1]] = integer(step.input[1], scale, np.int8)
            here[step.input[2]] = integer(step.input[2], scale * input_scale, np.int32)
        for name in step.input:
            if name in constants and name not in here:
                here[name] = constant(constants[name])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in step.attribute}
        made = onnx_graph.node(graph, step.op_type, [here[name] if name else "" for name in step.input], **attributes)
        if grid:
            grids[result] = grid
            made = onnx_graph.node(graph, "QuantizeLinear", [made, *(constant(value) for value in grid)])
            made = dequantized(made, *grid)
        here[result] = made
    side = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    onnx_graph.save(graph, target, side=side, outputs=outputs, name=CONVERTER)


def _grid(step: Any, grids: Mapping[str, Grid], constants: Mapping[str, Array], measured: Range | None) -> Grid | None:
    """The grid of the result of one node; None where it stays in float32."""
    held = [grids[name] for name in step.input if name in grids]
    if measured is not None:
        return grid_of(*measured)
    if step.op_type == "Clip":
        return grid_of(*(constants[name].item() for name in step.input[1:]))
    if not held:
        return None
    if step.op_type in ("MaxPool", "Resize"):
        return held[0]
    if step.op_type == "LeakyRelu":
        low, high = reach(held[0])
        return grid_of(low * step.attribute[0].f, high)
    if step.op_type == "Concat":
        lows, highs = zip(*(reach(grid) for grid in held), strict=True)
        return grid_of(min(lows), max(highs))
    return None
