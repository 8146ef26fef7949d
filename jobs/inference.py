"""A batch of pictures through one featurizer, and whose fault it is when that fails. Knows no Spark and no Arrow."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from featurizers.delivery import fit
from featurizers.device import is_out_of_memory, release_device_memory
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, check_features, featurizer_module
from schemas.errors import Error, ErrorCode, error

Tag = TypeVar("Tag")
# Measured: EfficientNet-Lite0 between decodes takes 12.2 ms for a picture alone, 11.5 in batches of 4, 11.8 of 8, and
# the three default featurizers in batches of 16, 8 and 8 use 350 MB more for nothing.
CPU_BATCH_SIZE = 4
NATIVE_PROBE_PX = 224  # side of the grey probe where the featurizer takes any size


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A featurizer that is ready to run in this process."""

    spec: FeaturizerSpec
    fingerprint: str
    extract: Extract
    lanes: int = 1  # threads that may call `extract` at once: batches on their way, and so one's work hides another's


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one featurizer made of one picture: exactly one of `found` and `error` is None."""

    found: Features | None = None  # of this picture alone; its `image` is all zero
    error: Error | None = None
    infer_ms: float | None = None  # the batch's time over its images; None: never inferred


class DeviceFailed(RuntimeError):
    """Not even a picture that is known to be good comes through: ours or the device's fault, so the task is to fail."""


def infer_batch(loaded: Loaded, images: Sequence[Image], *, known_good: Image | None = None) -> list[Outcome]:
    """One outcome for each of `images`, in order.

    One `extract` for the batch; if it throws, once per image, so that one bad picture costs only itself. A batch that
    does not fit the memory is halved until it does, down to one image, which then has out_of_memory.
    If no image survives, whose fault is it? `known_good`, a picture that this featurizer took before, or else a grey
    one, is tried: if it comes through, the pictures were at fault, whether one at the end of a partition or a whole
    batch of them; if not, DeviceFailed is raised.
    """
    outcomes = _attempt(loaded, images)
    if any(outcome.found is not None for outcome in outcomes) or not outcomes:
        return outcomes
    _, failure = _extract(loaded, [known_good if known_good is not None else grey_probe(loaded.spec)])
    if failure is not None:
        raise DeviceFailed(
            f"{loaded.spec.id}: none of {len(images)} pictures came through, nor did one that should: "
            f"{type(failure).__name__}: {failure}"
        ) from failure
    return outcomes


class Lanes(Generic[Tag]):
    """Batches of one featurizer on their way. One lane infers in the caller's thread, several in threads of their own.

    A tag comes back with its batch. Batches are done in the order in which they were started. With several lanes the
    infer_ms of an outcome also counts the time in which another lane had the device.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._threads = ThreadPoolExecutor(loaded.lanes, thread_name_prefix="infer") if loaded.lanes > 1 else None
        self._started: deque[tuple[Tag, Callable[[], list[Outcome]]]] = deque()

    def start(self, tag: Tag, images: Sequence[Image], *, known_good: Image | None) -> None:
        """`infer_batch` these; raises what it raises, here or in `done`."""
        if self._threads is None:
            outcomes = infer_batch(self._loaded, images, known_good=known_good)
            self._started.append((tag, lambda: outcomes))
        else:
            started = self._threads.submit(infer_batch, self._loaded, images, known_good=known_good)
            self._started.append((tag, started.result))

    def done(self, *, wait: bool) -> Iterator[tuple[Tag, list[Outcome]]]:
        """Batches that are done, waiting for as many as leave each lane one, and for all of them if told to `wait`."""
        n_left = 0 if wait or self._threads is None else self._loaded.lanes
        while len(self._started) > n_left:
            tag, outcomes = self._started.popleft()
            yield tag, outcomes()

    def close(self) -> None:
        """Drop what was not begun, and end the threads once they are done with what was."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)


def grey_probe(spec: FeaturizerSpec) -> Image:
    """A plain grey picture as `spec` is delivered one."""
    side = NATIVE_PROBE_PX if spec.fit == "native" else spec.image_size
    return np.full((side, side, 3), 128, np.uint8)


def _attempt(loaded: Loaded, images: Sequence[Image]) -> list[Outcome]:
    started = time.perf_counter()
    found, failure = _extract(loaded, images)
    infer_ms = (time.perf_counter() - started) * 1000 / max(1, len(images))
    if failure is None:
        return [Outcome(found=each, infer_ms=infer_ms) for each in found]
    is_memory = is_out_of_memory(failure)
    if len(images) == 1:
        code = ErrorCode.OUT_OF_MEMORY if is_memory else ErrorCode.MODEL_FAILED
        said = error(code, f"{loaded.spec.id}: {type(failure).__name__}: {failure}")
        return [Outcome(error=said, infer_ms=infer_ms)]
    if is_memory:
        release_device_memory()
        half = len(images) // 2
        return [*_attempt(loaded, images[:half]), *_attempt(loaded, images[half:])]
    return [outcome for image in images for outcome in _attempt(loaded, [image])]


def _extract(loaded: Loaded, images: Sequence[Image]) -> tuple[list[Features], Exception | None]:
    """The features of each image, or what was thrown; its traceback is dropped, for it holds on to the batch."""
    try:
        features = loaded.extract(images)
        check_features(features, loaded.spec, len(images))
        return split(features, len(images)), None
    except Exception as e:
        return [], e.with_traceback(None)


def split(features: Features, n_images: int) -> list[Features]:
    """`features` of a batch as one `Features` for each image."""
    ends = np.searchsorted(features.image, np.arange(n_images + 1), side="left")
    parts = []
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        parts.append(
            Features(
                image=np.zeros(last - first, np.int32),
                vector=features.vector[first:last],
                label=None if features.label is None else features.label[first:last],
                score=None if features.score is None else features.score[first:last],
                box=None if features.box is None else features.box[first:last],
                text=None if features.text is None else features.text[first:last],
            )
        )
    return parts


# -- models of this process ---------------------------------------------------------------------------------------

_LOADED: dict[tuple[str, str], Loaded] = {}  # by fingerprint and device; a worker process outlives its tasks


def loaded_featurizers(
    described: Sequence[tuple[FeaturizerSpec, Mapping[str, Path], str]], device: str
) -> list[Loaded]:
    """The featurizers of (spec, weights by name, fingerprint), loaded once per process; those not named are let go."""
    wanted = {(fingerprint, device) for _, _, fingerprint in described}
    if wanted == set(_LOADED):
        return [_LOADED[fingerprint, device] for _, _, fingerprint in described]
    gc.unfreeze()
    for key in set(_LOADED) - wanted:
        del _LOADED[key]
    for spec, weights, fingerprint in described:
        if (fingerprint, device) not in _LOADED:
            module = featurizer_module(spec.family)
            extract, lanes = module.load(spec, weights, device), getattr(module, "GPU_LANES", 1)
            if device == "cpu":
                # Pictures of their own sizes gain nothing together, and a dense page takes the text reader a minute.
                size = 1 if spec.fit == "native" else min(spec.batch_size, CPU_BATCH_SIZE)
                spec, lanes = replace(spec, batch_size=size), 1
            _LOADED[fingerprint, device] = Loaded(spec=spec, fingerprint=fingerprint, extract=extract, lanes=lanes)
            fit(np.full((64, 64, 3), 128, np.uint8), spec)  # loads what every picture needs
    # Spark's daemon collects garbage after each task, which takes 0.3 s over the objects of PyTorch and the default
    # featurizers; frozen, as they stay until the next change, they are left out and it takes none.
    gc.collect()
    gc.freeze()
    return [_LOADED[fingerprint, device] for _, _, fingerprint in described]
