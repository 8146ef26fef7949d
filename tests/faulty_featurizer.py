"""A featurizer that fails as it is told. Fault tests put it into a copy of this checkout, as its one more file.

The file that LAKELENS_FAULT names says what to do; while there is none, nothing is wrong. The file `devices` beside it
has a line for each process that loaded the featurizer: the device that it was given. Knows no test.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from featurizers.spec import Extract, Features, FeaturizerSpec, Image, Weights

PALETTE = Weights(
    name="palette", uri=Path(os.environ["LAKELENS_FAULT"]).with_name("palette").as_uri(),
    sha256=hashlib.sha256(b"palette").hexdigest(), licence="CC0-1.0", source="made up",
)  # fmt: skip
SPECS = [
    FeaturizerSpec(
        family="concept_faulty", variant=variant, version=1, kind="concept", dim=3, image_size=32, fit="crop",
        batch_size=4, weights=weights,
    )
    for variant, weights in (("mean", ()), ("middle", (PALETTE,)))
]  # fmt: skip


def hang() -> None:
    """For ever in C, with the interpreter lock held, as the worst of hanging models."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def is_red(image: Image) -> bool:
    red, green, _ = image.reshape(-1, 3).mean(axis=0)
    return bool(red > 2 * green)


def misbehave(fault: Path, images: Sequence[Image]) -> None:
    told = fault.read_text() if fault.exists() else ""
    if told == "hang":
        hang()
    elif told == "hang once":
        fault.unlink()
        hang()
    elif told == "throw":
        raise RuntimeError("no kernel image is available for execution on the device")
    elif told == "spoil red" and any(map(is_red, images)):
        if max(image[0, 0, 1] for image in images) < 16:
            raise ValueError("cannot digest red")
        np.zeros(1 << 50, np.uint8)  # more than there are addresses
    elif told == "slow":
        time.sleep(0.3)


def load(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Extract:
    """One feature for each picture: its mean colour, or the colour of its middle."""
    with Path(os.environ["LAKELENS_FAULT"]).with_name("devices").open("a") as devices:
        devices.write(f"{device}\n")

    def extract(images: Sequence[Image]) -> Features:
        misbehave(Path(os.environ["LAKELENS_FAULT"]), images)
        found = [image.mean(axis=(0, 1)) if spec.variant == "mean" else image[16, 16] + 1.0 for image in images]
        vector = np.array([colour / np.linalg.norm(colour) for colour in found], np.float32).reshape(-1, spec.dim)
        return Features(
            image=np.arange(len(images), dtype=np.int32), vector=vector, label=["colour"] * len(images),
            score=np.full(len(images), 0.5, np.float32),
        )  # fmt: skip

    return extract
