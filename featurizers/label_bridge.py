"""From class labels to text search: vectors in MiniLM's text space for labelled pictures. Knows no pixels, no model.

A picture's vector is the average of the text vectors of its likeliest classes, weighted by their scores (ConSE:
Norouzi et al. 2014, arXiv:1312.5650), so that a query in words finds pictures without an image-text model.

It can find what ImageNet has a class for, or a near relative of, by another name for it: on 64 labelled photographs
the query "a photo of a <COCO class>" reaches a mean average precision of .52 (chance: .10). It cannot find what is
small beside the main subject, what ImageNet has no class for (persons, trees, planets), attributes, counts, actions or
relations: "a red car" is any car, "no dog" is a dog. Cosines compare pictures for one query; they are no
probability and have no threshold that holds across queries. A CLIP or SigLIP model (`concept_clip`) has none of these
limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.minilm import TextEncoder

Vector = NDArray[np.float32]  # (384,) unit L2 norm
PROMPT = "a photo of a {}"
# Scores are flattened before they weigh, for the five stored ones lack what the other 995 classes add: mAP on 64
# labelled photographs is .517 with the root of the five, .498 with the five as they are, .517 with all 1000.
SCORE_POWER = 0.5


@dataclass(frozen=True)
class LabelBridge:
    """The text vectors of all class names, freed of their mean, which a query is freed of too."""

    row: Mapping[str, int]  # label -> row of `vectors`
    vectors: NDArray[np.float32]  # (C, 384), their mean is 0
    mean: NDArray[np.float32]  # (384,) what every "a photo of a ..." has in common


def label_bridge(names: Sequence[str], encode: TextEncoder) -> LabelBridge:
    """The bridge of C class names; a name that stands for several classes has one vector."""
    vectors = encode([PROMPT.format(name) for name in names])
    mean = vectors.mean(axis=0)
    return LabelBridge(row={name: i for i, name in enumerate(names)}, vectors=vectors - mean, mean=mean)


def _unit(vector: NDArray[Any]) -> Vector:
    unit: Vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def image_text_vector(
    bridge: LabelBridge, labels: Sequence[str], scores: Sequence[float] | NDArray[np.float32]
) -> Vector:
    """The (384,) text-space vector of a frame from its stored labels and their scores (0..1, best first).

    Raises ValueError for a label that is none of the bridge's, or for no labels.
    """
    unknown = [label for label in labels if label not in bridge.row]
    if unknown or not labels or len(labels) != len(scores):
        raise ValueError(
            f"{len(labels)} labels with {len(scores)} scores, unknown: {unknown}; one score each is needed"
        )
    weight = np.asarray(scores, np.float32) ** SCORE_POWER
    return _unit(weight @ bridge.vectors[[bridge.row[label] for label in labels]])


def query_vectors(bridge: LabelBridge, texts: Sequence[str], encode: TextEncoder) -> NDArray[np.float32]:
    """(N, 384) of N queries; "a photo of a dog" is nearer to how pictures are described than "dog"."""
    found = encode(texts) - bridge.mean
    vectors: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return vectors
