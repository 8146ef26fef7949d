"""Pictures that the tests of pixels share: the hardest, the easiest, and how far two are apart."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from featurizers.spec import Image


def noise(width: int, height: int, *, seed: int = 0) -> Image:
    """The hardest content for a resampler: every pixel on its own."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(width: int, height: int) -> Image:
    return np.asarray(PIL.Image.fromarray(noise(7, 5)).resize((width, height), PIL.Image.Resampling.BICUBIC))


def encode(picture: Image | PIL.Image.Image, kind: str, **settings: object) -> bytes:
    out = io.BytesIO()
    (PIL.Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(out, kind, **settings)
    return out.getvalue()


def levels_apart(one: Image, other: Image) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())
