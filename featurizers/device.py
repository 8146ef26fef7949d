"""Devices: their names, memory that is short, and batches of one fixed shape. Knows no network and no runtime."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurizers.spec import Image

Array = NDArray[Any]
Network = Callable[[Sequence[Image]], list[Array]]  # N >= 1 pictures -> each output, (N, ...) float32

# Batches on their way at once to one GPU: while one is computed, another is stacked and copied to the device, or what
# came of it is turned into features.
LANES = 2

# What CUDA, cuBLAS, cuDNN, PyTorch, ONNX Runtime and C++ say when an allocation fails and the exception's type does
# not; read from the libraries of torch 2.15 and onnxruntime 1.31.
_ALLOCATION_FAILED = re.compile(
    r"out[ _]of[ _]memory|failed to allocate memory|memory allocation failed|bad[_ ]alloc|alloc(ation)?_failed"
    r"|can(no|')t allocate memory|not enough memory|OOM trying to allocate|available memory of \d+ is smaller",
    re.I,
)

_opening = threading.Lock()  # PyTorch captures one CUDA graph at a time in a process


class DeviceUnavailable(RuntimeError):
    """The device asked for cannot run the network; nothing falls back to another device in silence."""


def gpu_index(device: str) -> int | None:
    """N of "cuda:N" (0 of "cuda"), None of "cpu"; raises ValueError for another name."""
    if device == "cpu":
        return None
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise ValueError(f"device is {device!r}, allowed: cpu, cuda, cuda:N")
    return int(found[1] or 0)


def threads() -> int:
    """Threads of one network: OMP_NUM_THREADS, which Spark sets to spark.task.cpus for its workers; else 1."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else 1


def is_out_of_memory(failure: BaseException) -> bool:
    """True where `failure` says that an allocation failed, on whatever device and in whichever library."""
    if isinstance(failure, MemoryError) or type(failure).__name__ == "OutOfMemoryError":
        return True
    return _ALLOCATION_FAILED.search(str(failure)) is not None


def release_device_memory() -> None:
    """Give PyTorch's cached blocks back, if PyTorch is in use, so that the half batch meets an unfragmented device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class Lane(Protocol):
    """A network with buffers of its own for `size` pictures, which stay where they are in memory."""

    size: int
    pixels: NDArray[np.uint8]  # (size, H, W, 3) on the host, page-locked for a GPU: to be written before `send`

    def send(self) -> None:
        """Copy `pixels` to the device, where the network will read them."""
        ...

    def compute(self) -> None:
        """Run the network over what was sent, or start to."""
        ...

    def receive(self) -> list[Array]:
        """The outputs on the host once all is done, (size, ...) each, overwritten by the next call."""
        ...


class FixedBatches:
    """Pictures through a network in batches of one shape, by as many threads at once as call; each takes a lane.

    A new shape would make cuDNN look for its fastest algorithms again and a CUDA graph be captured again, so a batch
    with fewer pictures is filled up with what the buffer held before, and what comes of that is dropped. Where the
    shape does not fit the device's memory it is halved, for good, until it does; that one picture does not fit raises.
    """

    def __init__(self, open_lane: Callable[[int], Lane], size: int) -> None:
        self.size = size
        self._open = open_lane
        self._idle: deque[Lane] = deque()

    def lane(self) -> Lane:
        """A lane that is not in use, or a new one; `give_back` it."""
        while True:
            try:
                lane = self._idle.pop()
            except IndexError:
                with _opening:
                    return self._open(self.size)
            if lane.size == self.size:
                return lane

    def give_back(self, lane: Lane) -> None:
        """The next caller may have `lane`."""
        self._idle.append(lane)

    def __call__(self, images: Sequence[Image]) -> list[Array]:
        """The outputs of the network for N >= 1 pictures of its size, (N, ...) each."""
        parts: list[list[Array]] = []
        n_done = 0
        while n_done < len(images):
            size, lane = self.size, None
            try:
                lane = self.lane()
                batch = images[n_done : n_done + lane.size]
                np.stack(batch, out=lane.pixels[: len(batch)])
                lane.send()
                lane.compute()
                parts.append([output[: len(batch)].copy() for output in lane.receive()])
            except Exception as e:
                if size == 1 or not is_out_of_memory(e):
                    raise
                lane = None  # its buffers are let go before smaller ones are made
                self.size = min(self.size, size // 2)
                self._idle.clear()
                release_device_memory()
                continue
            self.give_back(lane)
            n_done += len(batch)
        return [np.concatenate(output) for output in zip(*parts, strict=True)]
