"""Opens an ONNX network on the device asked for and runs batches through it. Knows no model and builds no network."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.device import Array, DeviceUnavailable, FixedBatches, Network, gpu_index, threads
from featurizers.spec import Image

CUDA = "CUDAExecutionProvider"


def open_session(path: Path, device: str) -> Any:
    """An ONNX Runtime session of the network at `path` on "cpu" or "cuda:N"; float32 is full float32 on both.

    On a GPU all of the network runs there: raises DeviceUnavailable where ONNX Runtime would take the CPU for all or
    for a part of it, and ValueError for another device.
    """
    import onnxruntime

    index = gpu_index(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if index is None:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    _load_cuda_libraries()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[(CUDA, provider_options(index))], enable_fallback=0
        )
    except Exception as e:  # ONNX Runtime's errors have no type of their own
        raise DeviceUnavailable(f"{device}: ONNX Runtime cannot run {path.name} there{_missing_library()}: {e}") from e
    if session.get_providers()[:1] != [CUDA]:
        raise DeviceUnavailable(f"{device}: ONNX Runtime runs {path.name} on {session.get_providers()}")
    return session


def provider_options(index: int) -> dict[str, str]:
    """How ONNX Runtime's CUDA provider is to run on GPU `index`."""
    return {
        "device_id": str(index),
        # Every size up to the next power of two would be reserved otherwise, and PyTorch needs room beside it.
        "arena_extend_strategy": "kSameAsRequested",
        # The fastest algorithm of each convolution by trial; it is looked for once for a shape, and there is one shape.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # TF32 has 10 bits of mantissa: it would pass for float32 and not be it.
        "use_tf32": "0",
    }


def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN as PyTorch brings them, so that both run on one version, and then what it does not bring."""
    import onnxruntime
    import torch  # noqa: F401  # its import loads them

    onnxruntime.preload_dlls()


def _missing_library() -> str:
    """What keeps ONNX Runtime's CUDA provider from being loaded, such as the driver's library; "" if nothing does."""
    import onnxruntime

    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    except OSError as e:
        return f" ({e})"
    return ""


def open_network(path: Path, device: str, *, outputs: Sequence[str], batch_size: int) -> Network:
    """The network at `path` as a function from uint8 pictures to its `outputs`.

    On a GPU in batches of `batch_size`, FixedBatches; several threads may call it at once. Raises as `open_session`.
    """
    session = open_session(path, device)
    if gpu_index(device) is not None:
        return FixedBatches(lambda size: BoundLane(session, device, outputs=outputs, size=size), batch_size)

    def run(images: Sequence[Image]) -> list[Array]:
        found: list[Array] = session.run(list(outputs), {"image": np.stack(images)})
        return found

    return run


class BoundLane:
    """A Lane of an ONNX Runtime session: input and outputs are bound once, and the network reads and writes in place.

    Its copies go over a stream of their own, so they do not wait for another lane's network, nor it for them.
    """

    pixels: NDArray[np.uint8]

    def __init__(self, session: Any, device: str, *, outputs: Sequence[str], size: int) -> None:
        import torch

        self.size = size
        where = torch.device(device)
        is_gpu = where.type == "cuda"
        self._session, self._binding = session, session.io_binding()
        self._stream = torch.cuda.Stream(where) if is_gpu else None
        self._host = torch.zeros((size, *session.get_inputs()[0].shape[1:]), dtype=torch.uint8, pin_memory=is_gpu)
        self.pixels = self._host.numpy()
        self._input = torch.zeros_like(self._host, device=where)
        shapes = {output.name: (size, *output.shape[1:]) for output in session.get_outputs()}
        self._outputs = [torch.zeros(shapes[name], dtype=torch.float32, device=where) for name in outputs]
        self._received = [torch.zeros(shapes[name], dtype=torch.float32, pin_memory=is_gpu) for name in outputs]
        if is_gpu:
            torch.cuda.synchronize(where)  # the buffers are filled over the default stream
        place = (where.type, where.index or 0)
        shape = tuple(self._input.shape)
        self._binding.bind_input("image", *place, np.uint8, shape, self._input.data_ptr())
        for name, output in zip(outputs, self._outputs, strict=True):
            self._binding.bind_output(name, *place, np.float32, tuple(output.shape), output.data_ptr())

    def _copy(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        import torch

        with torch.cuda.stream(self._stream):  # does nothing for None
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()

    def send(self) -> None:
        """Copy `pixels` to the device; back when they are there, since the network runs over another stream."""
        self._copy([(self._input, self._host)])

    def compute(self) -> None:
        """Run the network over what was sent; back when it is done."""
        self._session.run_with_iobinding(self._binding)

    def receive(self) -> list[Array]:
        """The outputs on the host, (size, ...) each, overwritten by the next call."""
        self._copy(list(zip(self._received, self._outputs, strict=True)))
        return [tensor.numpy() for tensor in self._received]
