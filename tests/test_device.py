"""Devices: what is asked for is what runs, one shape gives what single pictures give, short memory is understood."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurizers import onnx_graph
from featurizers.device import DeviceUnavailable, FixedBatches, gpu_index, is_out_of_memory
from featurizers.onnx_session import BoundLane, _load_cuda_libraries, _missing_library, open_network, open_session
from featurizers.spec import Image

SIDE = 8


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with two outputs: a strided convolution, and the mean of each of its channels."""
    graph = onnx_graph.Graph()
    random = np.random.default_rng(0)
    tensor = onnx_graph.pixels(graph, "image", subtract=127.0, divide=128.0)
    weight, bias = random.normal(size=(4, 3, 3, 3)), random.normal(size=4)
    tensor = onnx_graph.convolution(graph, tensor, weight, bias, stride=2, pads=(0, 0, 1, 1))
    mean = onnx_graph.node(graph, "Flatten", [onnx_graph.node(graph, "GlobalAveragePool", [tensor])])
    path = tmp_path_factory.mktemp("network") / "small.onnx"
    outputs = {"map": (tensor, ["n", 4, SIDE // 2, SIDE // 2]), "mean": (mean, ["n", 4])}
    onnx_graph.save(graph, path, side=SIDE, outputs=outputs, name="small")
    return path


def pictures(n: int, seed: int = 0) -> list[Image]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(n)]


def alone(network: Path, images: Sequence[Image]) -> list[Any]:
    """Both outputs, each picture by itself through a plain session."""
    session = open_session(network, "cpu")
    each = [session.run(["mean", "map"], {"image": image[None]}) for image in images]
    return [np.concatenate(output) for output in zip(*each, strict=True)]


@pytest.mark.parametrize(("device", "index"), [("cpu", None), ("cuda", 0), ("cuda:0", 0), ("cuda:11", 11)])
def test_a_device_is_named_cpu_or_cuda_with_a_number(device: str, index: int | None) -> None:
    assert gpu_index(device) == index


@pytest.mark.parametrize("device", ["tpu", "", "cuda:", "cuda:x", "cuda:1,2", "CPU"])
def test_another_device_is_refused_by_name(device: str, network: Path) -> None:
    with pytest.raises(ValueError, match=f"device is '{device}', allowed: cpu, cuda, cuda:N"):
        open_session(network, device)


def test_a_session_for_a_gpu_that_is_not_there_is_refused_with_what_is_missing(network: Path) -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(
        DeviceUnavailable, match=r"^cuda:0: ONNX Runtime cannot run small.onnx there \(lib\S+: cannot open"
    ):
        open_session(network, "cuda:0")
    with pytest.raises(DeviceUnavailable, match=r"^cuda:0: "):
        open_network(network, "cuda:0", outputs=("mean",), batch_size=4)


def test_all_that_the_cuda_provider_needs_but_the_driver_is_installed() -> None:
    _load_cuda_libraries()
    missing = _missing_library()
    assert missing == "" if has_gpu() else "libcuda.so.1" in missing


@pytest.mark.parametrize("n", [1, 3, 4, 5, 11])
def test_batches_of_one_shape_give_what_each_picture_gives_alone(network: Path, n: int) -> None:
    session = open_session(network, "cpu")
    run = FixedBatches(lambda size: BoundLane(session, "cpu", outputs=("mean", "map"), size=size), 4)
    for seed in (0, 1):  # the second time the buffers hold other pictures
        found = run(pictures(n, seed))
        for output, expected in zip(found, alone(network, pictures(n, seed)), strict=True):
            assert output.shape == expected.shape
            assert np.allclose(output, expected, atol=1e-5)


def test_the_result_is_not_overwritten_by_the_next_batch(network: Path) -> None:
    session = open_session(network, "cpu")
    run = FixedBatches(lambda size: BoundLane(session, "cpu", outputs=("mean",), size=size), 4)
    first = run(pictures(4, 0))[0]
    kept = first.copy()
    run(pictures(4, 1))
    assert np.array_equal(first, kept)


class SmallLane:
    """A device with memory for four pictures."""

    def __init__(self, size: int, opened: list[int]) -> None:
        opened.append(size)
        self.size = size
        self.pixels = np.zeros((size, SIDE, SIDE, 3), np.uint8)

    def send(self) -> None:
        return

    def compute(self) -> None:
        time.sleep(0.002)  # another thread may write into what is not its own
        if self.size > 4:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    def receive(self) -> list[Any]:
        return [self.pixels.astype(np.float32).mean(axis=(1, 2))]


@pytest.mark.parametrize("n", [1, 3, 8, 16, 40])
def test_a_shape_that_does_not_fit_is_halved_for_good_however_many_pictures_there_are(n: int) -> None:
    opened: list[int] = []
    run = FixedBatches(lambda size: SmallLane(size, opened), 16)
    for _ in range(2):
        expected = [image.mean(axis=(0, 1)) for image in pictures(n)]
        assert np.allclose(run(pictures(n))[0], expected, atol=1e-3)
    assert opened == [16, 8, 4] and run.size == 4


def test_threads_that_call_at_once_do_not_write_into_each_others_batch() -> None:
    opened: list[int] = []
    run = FixedBatches(lambda size: SmallLane(size, opened), 4)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda seed: run(pictures(6, seed)), range(60)))
    for seed in range(60):
        assert np.allclose(found[seed][0], [image.mean(axis=(0, 1)) for image in pictures(6, seed)], atol=1e-3)
    assert opened == [4] * len(opened) and len(opened) <= 3  # a lane is used again


def test_another_failure_leaves_the_shape_as_it_is() -> None:
    run = FixedBatches(lambda size: SmallLane(size, []), 4)
    with pytest.raises(ValueError, match="same shape"):
        run([np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)])
    assert run.size == 4
    assert len(run(pictures(1))[0]) == 1


def test_a_network_that_runs_leaves_the_interpreter_to_other_threads(tmp_path: Path) -> None:
    graph = onnx_graph.Graph()
    tensor = onnx_graph.pixels(graph, "image", subtract=0.0, divide=255.0)
    for channels in (3, 64, 64):
        tensor = onnx_graph.convolution(graph, tensor, np.ones((64, channels, 3, 3)), np.zeros(64), pads=(1, 1, 1, 1))
    onnx_graph.save(
        graph, tmp_path / "slow.onnx", side=128, outputs={"map": (tensor, ["n", 64, 128, 128])}, name="slow"
    )
    lane = BoundLane(open_session(tmp_path / "slow.onnx", "cpu"), "cpu", outputs=("map",), size=8)
    lane.compute()
    ticks: list[float] = []
    is_done = threading.Event()

    def tick() -> None:
        while not is_done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.perf_counter()
    lane.compute()
    ended = time.perf_counter()
    is_done.set()
    thread.join()
    assert ended - started > 0.05, "the network is too small for this test"
    assert sum(started < at < ended for at in ticks) >= 5


@pytest.mark.parametrize(
    "said",
    [
        # PyTorch: c10/cuda/CUDACachingAllocator, c10/core/CPUAllocator, ATen's cuBLASLt workspace, its cuDNN handle
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 8.00 MiB is",
        "CUDA out of memory. Allocation was preemptively rejected because it would exceed per_process_memory_fraction",
        "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic shapes, cuDNN may need",
        "C10 Out of Memory. Trying to allocate 20.00 MiB",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes. Error code 12",
        "OOM trying to allocate workspace for cublaslt",
        "Not enough memory for workspace!",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "CUFFT_ALLOC_FAILED",
        "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
        # ONNX Runtime: the arena, CudaCall, the plain allocator
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'conv_3' Status "
        "Message: bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 94371840",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc Available memory of 1048576 is smaller than "
        "requested bytes of 94371840",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=node-1 ; file=cuda_allocator.cc ; line=47 ; "
        "expr=cudaMalloc((void**)&p, size);",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=node-1 ; file=cuda_execution_provider.cc",
        "CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
        "Memory allocation failed. Size=94371840",
        "std::bad_alloc",
        "[Errno 12] Cannot allocate memory",
    ],
)
def test_what_the_libraries_say_of_a_failed_allocation_is_understood(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))


@pytest.mark.parametrize(
    "said",
    [
        "Invalid argument: shape mismatch",
        "CUDA error: an illegal memory access was encountered",
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=node-1",
        "CUDA error: device-side assert triggered",
        "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0",
        "CUBLAS_STATUS_NOT_INITIALIZED",
        "CUDA error: no kernel image is available for execution on the device",
    ],
)
def test_an_error_that_is_not_about_memory_is_not_taken_for_one(said: str) -> None:
    assert not is_out_of_memory(RuntimeError(said))


def test_pytorchs_exception_is_known_by_its_type() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("whatever it says"))
    assert is_out_of_memory(MemoryError())
