"""ONNX: build a network node by node and open it on the device asked for. Knows no model, weights file or label."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.weights import converted

OPSET = 17
IR_VERSION = 8

Array = NDArray[Any]


class DeviceUnavailable(RuntimeError):
    """The device asked for cannot run the network; nothing falls back to another device in silence."""


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
    weights: Mapping[str, Path], network: str, *, converter: str, convert: Callable[[Path, Path], None]
) -> dict[str, Path]:
    """`weights` with the file of `network` as ONNX, converted once per machine; what is ONNX already stays as it is."""
    source = weights[network]
    if source.suffix != ".onnx":
        source = converted(source, name=f"{network}.onnx", converter=converter, convert=convert)
    return {**weights, network: source}


def threads() -> int:
    """Threads of one network: OMP_NUM_THREADS, which Spark sets to spark.task.cpus for its workers; else 1."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else 1


def open_session(path: Path, device: str) -> Any:
    """An ONNX Runtime session of the network at `path` on "cpu" or "cuda:N", full float32 (no TF32) on both.

    Raises DeviceUnavailable where ONNX Runtime would quietly take the CPU instead, ValueError for another device.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if device == "cpu":
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdigit() or device == "cuda"):
        raise ValueError(f"device is {device!r}, allowed: cpu, cuda, cuda:N")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    wanted = "CUDAExecutionProvider"
    provider = (wanted, {"device_id": index or "0", "use_tf32": "0"})
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider, "CPUExecutionProvider"])
    if session.get_providers()[0] != wanted:
        raise DeviceUnavailable(f"{device}: ONNX Runtime fell back to {session.get_providers()[0]} for {path.name}")
    return session
