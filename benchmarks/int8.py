"""Row I1: the int8 variants against the float32 ones, one picture at a time on one thread.

`python -m benchmarks.int8` prints the ranges that they are made with, over the photographs and stills of the sample
media. Nothing of LAKELENS_DEV_DATA goes into them, for quality is measured there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import quality
from benchmarks.row import Row, machine
from featurizers import concept_efficientnet, object_yolov3
from featurizers.delivery import fit
from featurizers.quantization import Range, measured_ranges
from featurizers.spec import find_spec, prepared
from featurizers.weights import resolve

ROUNDS = 41
CONCEPTS = ("concept_efficientnet.lite0_int8@1", quality.CONCEPTS)
OBJECTS = ("object_yolov3.tiny_int8@1", "object_yolov3.tiny@1")
GOLDEN_OBJECTS = ("object_yolov3.tiny_all_int8@1", quality.ALL_BOXES)


def rows() -> list[Row]:
    """I1.concepts and I1.objects: process CPU milliseconds a picture, both sides in turn; medians."""
    return [_row("I1.concepts", CONCEPTS), _row("I1.objects", OBJECTS)]


def _row(row_id: str, featurizer_ids: Sequence[str]) -> Row:
    spent: list[list[float]] = [[], []]
    pictures = [[fit(image, find_spec(featurizer_ids[0]))] for image in quality.sample_images()]
    for i in range(ROUNDS):
        for side, featurizer_id in enumerate(featurizer_ids):
            _, extract = quality.loaded(featurizer_id)
            started = time.process_time()
            extract(pictures[i % len(pictures)])
            spent[side].append((time.process_time() - started) * 1000)
    ours, peer = (float(np.median(times)) for times in spent)
    return Row(
        id=row_id,
        what=f"`{featurizer_ids[0]}` against `{featurizer_ids[1]}`",
        unit="cpu_ms/image",
        ours=round(ours, 2),
        peer=round(peer, 2),
        ratio=round(peer / ours, 2),
        reach=1.0,  # else float32 is the better one
        settings={
            "vnni": "vnni" in Path("/proc/cpuinfo").read_text(),
            "int8_and_float32": _quality(featurizer_ids) or "LAKELENS_DEV_DATA is not set",
            **machine(),
        },
    )


def _quality(featurizer_ids: Sequence[str]) -> dict[str, list[float]]:
    """Metric -> its value with each of the featurizers; none without LAKELENS_DEV_DATA."""
    folder = os.environ.get("LAKELENS_DEV_DATA")
    if not folder:
        return {}
    labelled = quality.labelled_photographs(Path(folder))
    if featurizer_ids == CONCEPTS:
        each = [{"mAP": quality.concept_mean_average_precision(labelled, i)} for i in featurizer_ids]
    else:
        each = [quality.object_average_precision(labelled, i) for i in GOLDEN_OBJECTS]
    return {metric: [round(found[metric], 3) for found in each] for metric in each[0]}


def ranges() -> dict[str, tuple[Range, ...]]:
    """Network -> its activation ranges over the sample media, to a tenth, as ACTIVATION_RANGES of its module holds."""
    found = {}
    for (_, featurizer_id), module in ((CONCEPTS, concept_efficientnet), (OBJECTS, object_yolov3)):
        spec, weights = resolve(find_spec(featurizer_id))
        pictures = [fit(image, spec) for image in quality.sample_images()]
        measured = measured_ranges(prepared(spec, weights)[module.NETWORK], pictures, module.N_FLOAT)
        found[module.NETWORK] = tuple((round(low, 1), round(high, 1)) for low, high in measured)
    return found


if __name__ == "__main__":
    for name, values in ranges().items():
        print(f"{name}: {values}")
