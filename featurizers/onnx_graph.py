"""ONNX: build a network node by node, write it, make it half precision. Knows no model, weights file or label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.spec import FeaturizerSpec
from featurizers.weights import converted

OPSET = 17
IR_VERSION = 8
FLOAT16_CONVERTER = "onnx_float16@1"  # raise the number with any change of what `convert_to_float16` writes

Array = NDArray[Any]


@dataclass(frozen=True)
class Graph:
    """A network under construction; tensors are named by the node that makes them."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)


def constant(graph: Graph, value: Array) -> str:
    """Name of a new constant tensor."""
    name = f"constant_{len(graph.constants)}"
    graph.constants[name] = np.ascontiguousarray(value)
    return name


def node(graph: Graph, op: str, inputs: Sequence[str], **attributes: Any) -> str:
    """Name of the output of a new node of ONNX operator `op`."""
    import onnx

    name = f"{op.lower()}_{len(graph.nodes)}"
    graph.nodes.append(onnx.helper.make_node(op, list(inputs), [name], **attributes))
    return name


def convolution(
    graph: Graph, source: str, weight: Array, bias: Array, *, stride: int = 1, pads: Sequence[int], group: int = 1
) -> str:
    """A 2-d convolution; `weight` (out, in / group, k, k), `bias` (out,), `pads` top, left, bottom, right."""
    inputs = [source, constant(graph, weight.astype(np.float32)), constant(graph, bias.astype(np.float32))]
    return node(graph, "Conv", inputs, strides=[stride, stride], pads=list(pads), group=group)


def fold_batch_norm(weight: Array, *, scale: Array, shift: Array, mean: Array, deviation: Array) -> tuple[Array, Array]:
    """Weight and bias of a convolution with the batch normalisation behind it folded in (Jacob et al. 2018, eq. 14)."""
    factor = scale.astype(np.float64) / deviation
    return weight * factor[:, None, None, None], shift - mean * factor


def pixels(graph: Graph, source: str, *, subtract: float, divide: float) -> str:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) with (x - subtract) / divide."""
    import onnx

    cast = node(graph, "Cast", [source], to=onnx.TensorProto.FLOAT)
    channels_first = node(graph, "Transpose", [cast], perm=[0, 3, 1, 2])
    centred = node(graph, "Sub", [channels_first, constant(graph, np.array(subtract, np.float32))])
    return node(graph, "Div", [centred, constant(graph, np.array(divide, np.float32))])


def save(
    graph: Graph, path: Path, *, side: int, outputs: Mapping[str, tuple[str, Sequence[int | str]]], name: str
) -> None:
    """Check and write the network: input "image" uint8 (N, side, side, 3), `outputs` name -> (tensor, shape)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    for output, (tensor, _) in outputs.items():
        graph.nodes.append(helper.make_node("Identity", [tensor], [output]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", side, side, 3])],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, list(shape)) for o, (_, shape) in outputs.items()],
            [numpy_helper.from_array(value, key) for key, value in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def as_onnx(
    spec: FeaturizerSpec,
    weights: Mapping[str, Path],
    network: str,
    *,
    converter: str,
    convert: Callable[[Path, Path], None],
) -> dict[str, Path]:
    """`weights` with the file of `network` as ONNX in the precision of `spec`, converted once per machine.

    What was converted before stays as it is. Raises ValueError for a precision that there is no conversion to.
    """
    if spec.precision not in ("float32", "float16", "int8"):
        raise ValueError(f"{spec.id}: precision is {spec.precision!r}, allowed: float32, float16, int8")
    source = weights[network]
    if source.suffix != ".onnx":
        source = converted(source, name=f"{network}.onnx", converter=converter, convert=convert)
    half = f"{network}.float16.onnx"
    if spec.precision == "float16" and source.name != half:
        source = converted(source, name=half, converter=FLOAT16_CONVERTER, convert=convert_to_float16)
    return {**weights, network: source}


def convert_to_float16(source: Path, target: Path) -> None:
    """Write the network at `source` with float16 weights and arithmetic; its outputs stay float32.

    A GPU computes so on its tensor cores. A CPU computes in float32 with the weights rounded, for ONNX Runtime has no
    float16 kernels for x86.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString())
