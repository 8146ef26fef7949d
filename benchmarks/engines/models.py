"""What the engines run, so that all run the same: their published preprocessing, our decoder, the model behind them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines.serve import Task

SIDE = 224
_ONCE: dict[str, Any] = {}
Predict = Callable[[NDArray[Any]], list[str]]  # (B, 3, 224, 224) float32 of `transform` -> one label each


def once(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, made once in this process: kinder to Spark and Ray than the published patterns, which cache it
    in globals of a notebook and so load it for every task."""
    if name not in _ONCE:
        _ONCE[name] = make()
    return _ONCE[name]


def transform(task: Task) -> Callable[[Any], Any]:
    """torchvision's transform of a Pillow picture or array (H, W, 3) uint8 to (3, 224, 224) float32.

    For the cheap featurizer what the published notebooks use, ResNet-18's own; for Lite0 its own geometry, 0..1.
    """
    from torchvision import transforms
    from torchvision.models import ResNet18_Weights

    if task["featurizer"] == "mean_colour":
        return transforms.Compose([transforms.ToTensor(), ResNet18_Weights.DEFAULT.transforms()])
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose([transforms.ToTensor(), transforms.Resize(256, bicubic), transforms.CenterCrop(SIDE)])


def pillow_picture(content: bytes) -> Any:
    """The decoded picture, as every published pattern does it."""
    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB")


def pillow_crop(content: bytes) -> NDArray[np.uint8]:
    """Pillow decode, bicubic resize of the short side to 256 and the centre of 224: (224, 224, 3)."""
    from benchmarks.decode import pillow

    return pillow(content)


def predictor(task: Task) -> Predict:
    """The model behind tensors of `transform`."""
    extract = labels_of(task)

    def predict(batch: NDArray[Any]) -> list[str]:
        if task["featurizer"] == "mean_colour":
            return [f"{mean:.1f}" for mean in batch[:, :, ::16, ::16].mean(axis=(1, 2, 3))]
        pixels = np.clip(np.rint(batch * 255), 0, 255).astype(np.uint8)
        return extract(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))

    return predict


def labels_of(task: Task) -> Callable[[Sequence[Any]], list[str]]:
    """The model on uint8 pictures (224, 224, 3): the likeliest class of each, or for the cheap one its mean."""
    if task["featurizer"] == "mean_colour":
        return lambda images: [f"{image[::16, ::16].mean():.1f}" for image in images]
    from featurizers.concept_efficientnet import NAMES, NETWORK, SPECS, load

    extract = load(SPECS[0], {NETWORK: Path(task["network"]), NAMES: Path(task["names"])}, "cpu")

    def labels(images: Sequence[Any]) -> list[str]:
        found = extract(images)
        first = np.searchsorted(found.image, np.arange(len(images)))
        assert found.label is not None
        return [str(found.label[i]) for i in first]

    return labels


def fused(task: Task) -> Callable[[Sequence[bytes | memoryview]], list[str]]:
    """Encoded pictures to labels with our decoder: the best one can put into another engine's map.

    Whoever calls it with 4 at a time has what EfficientNet-Lite0 is fastest with.
    """
    from benchmarks.decode import CROP, MAX_PIXELS
    from featurizers.decode import decode_image
    from featurizers.delivery import fit

    labels = labels_of(task)
    return lambda contents: labels([fit(decode_image(data, max_pixels=MAX_PIXELS), CROP) for data in contents])


def with_thumbnails(task: Task) -> Callable[[Sequence[bytes | memoryview]], list[str]]:
    """As `fused`, and makes the thumbnail of each picture, which our engine does besides."""
    from benchmarks.decode import CROP, MAX_PIXELS
    from featurizers.decode import decode_image
    from featurizers.delivery import delivery, fit_each, thumbnail

    labels = labels_of(task)

    def featurize(contents: Sequence[bytes | memoryview]) -> list[str]:
        crops = []
        for data in contents:
            image = decode_image(data, max_pixels=MAX_PIXELS)
            delivered, for_thumbnail = fit_each([image], [CROP])
            thumbnail(for_thumbnail, image.shape[1], image.shape[0])
            crops.append(delivered[delivery(CROP)])
        return labels(crops)

    return featurize


def by_fours(featurize: Callable[[Sequence[bytes]], list[str]], contents: Sequence[bytes]) -> list[str]:
    """`featurize` over batches of 4."""
    return [label for first in range(0, len(contents), 4) for label in featurize(contents[first : first + 4])]
