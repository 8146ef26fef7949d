"""Colours of a picture's crop, from a few of its pixels: 3 or 384 numbers. Has no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.cheap import CheapSpec
from featurizers.spec import Extract, Features, FeaturizerSpec, Image

MEAN = CheapSpec(
    family="concept_mean_colour",
    variant="mean",
    version=1,
    kind="concept",
    dim=3,
    image_size=224,
    fit="crop",
    short_side=256,
    batch_size=16,
    weights=(),
)
GRID = replace(MEAN, variant="grid", dim=384)  # 16 x 8 pixels
SPECS = (MEAN, GRID)


def load(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Extract:
    """One feature for each picture: the direction of its mean colour or of its grid, and the mean as its label."""

    def extract(images: Sequence[Image]) -> Features:
        if spec.dim == 3:
            vectors = [image[::16, ::16].mean(axis=(0, 1)) for image in images]
        else:
            vectors = [image[::14, ::28].ravel() for image in images]
        vector = np.array(vectors, np.float32).reshape(-1, spec.dim) + 1
        return Features(
            image=np.arange(len(images), dtype=np.int32),
            vector=vector / np.linalg.norm(vector, axis=1, keepdims=True),
            label=[f"{image[::16, ::16].mean():.1f}" for image in images],
        )

    return extract
