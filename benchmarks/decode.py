"""Row B1: decoding a JPEG and delivering a 224-pixel crop, against Pillow doing the same. Runs no model."""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import simplejpeg

from benchmarks.row import Row, machine, not_measured
from featurizers.decode import decode_image
from featurizers.delivery import fit
from featurizers.spec import FeaturizerSpec, Image

WHAT = "baseline 4:2:0 JPEG to a 224-pixel crop, against Pillow decode + bicubic"
REACH = 2.5
N_GENERATED = 12
N_ROUNDS = 21
FALLOFF = 1.5  # of amplitude with frequency; gives about 110 KB, as photographs of this size have
CROP = FeaturizerSpec(
    family="concept_benchmark",
    variant="crop",
    version=1,
    kind="concept",
    dim=1,
    image_size=224,
    fit="crop",
    short_side=256,
    batch_size=1,
    weights=(),
)


def generated_jpegs(n: int, *, width: int = 1024, height: int = 683, seed: int = 0) -> list[bytes]:
    """`n` 4:2:0 JPEGs like natural pictures: amplitudes that fall with frequency (Field 1987), and hard edges."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    pictures = []
    for _ in range(n):
        planes = []
        for _ in range(3):
            phase = np.exp(2j * np.pi * random.random(frequency.shape))
            planes.append(np.fft.irfft2(phase / frequency**FALLOFF, s=(height, width)))
        pixels = np.stack(planes, axis=-1)
        pixels = 128 + 45 * pixels / pixels.std() * [1.0, 0.9, 0.8]
        for _ in range(12):
            x, y = random.integers(0, width), random.integers(0, height)
            pixels[y : y + random.integers(20, 200), x : x + random.integers(20, 300)] += random.normal(0, 40, 3)
        image = pixels.clip(0, 255).astype(np.uint8)
        pictures.append(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=85, colorsubsampling="420"))
    return pictures


def photographs(folder: Path) -> list[bytes]:
    """The baseline YCbCr JPEGs under `folder`, of any chroma subsampling."""
    found = []
    for path in sorted(folder.rglob("*.jpg")):
        data = path.read_bytes()
        is_progressive = b"\xff\xc2" in data[: data.find(b"\xff\xda")]
        if simplejpeg.decode_jpeg_header(data)[2] == "YCbCr" and not is_progressive:
            found.append(data)
    return found


def ours(data: bytes) -> Image:
    """What the engine does for one image."""
    return fit(decode_image(data, max_pixels=50_000_000), CROP)


def pillow(data: bytes) -> Image:
    """torchvision's Resize(256, BICUBIC) and CenterCrop(224) on a Pillow image."""
    opened = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    width, height = opened.size
    if width <= height:
        new_width, new_height = 256, int(256 * height / width)
    else:
        new_width, new_height = int(256 * width / height), 256
    resized = opened.resize((new_width, new_height), PIL.Image.Resampling.BICUBIC)
    left, top = round((new_width - 224) / 2), round((new_height - 224) / 2)
    return np.asarray(resized.crop((left, top, left + 224, top + 224)))


def interleaved_cpu_ms(functions: Sequence[Callable[[bytes], Image]], pictures: Sequence[bytes]) -> list[float]:
    """For each function the median over rounds of its process CPU milliseconds per picture.

    Each round runs one function after the other on each picture, so that what else the machine does meets all alike.
    """
    for function in functions:
        function(pictures[0])
    rounds: list[list[float]] = [[] for _ in functions]
    for _ in range(N_ROUNDS):
        spent = [0.0] * len(functions)
        for picture in pictures:
            for i, function in enumerate(functions):
                started = time.process_time()
                function(picture)
                spent[i] += time.process_time() - started
        for i, seconds in enumerate(spent):
            rounds[i].append(seconds * 1000 / len(pictures))
    return [statistics.median(each) for each in rounds]


def _measured(row_id: str, what: str, pictures: Sequence[bytes], *, reach: float | None) -> Row:
    our_ms, peer_ms = interleaved_cpu_ms([ours, pillow], pictures)
    apart = [np.abs(ours(data).astype(int) - pillow(data)) for data in pictures]
    return Row(
        id=row_id,
        what=what,
        unit="cpu_ms/image",
        ours=round(our_ms, 3),
        peer=round(peer_ms, 3),
        ratio=round(peer_ms / our_ms, 2),
        reach=reach,
        peer_version=f"Pillow {PIL.__version__}",
        settings={
            "n_images": len(pictures),
            "mean_bytes": round(statistics.mean(map(len, pictures))),
            "subsampling": sorted({simplejpeg.decode_jpeg_header(data)[3] for data in pictures}),
            "rounds": N_ROUNDS,
            "max_grey_levels_apart": max(int(each.max()) for each in apart),
            "values_above_one_level": sum(int((each > 1).sum()) for each in apart),
            "values": sum(each.size for each in apart),
            "malloc_mmap_threshold": os.environ.get("MALLOC_MMAP_THRESHOLD_"),
            **machine(),
        },
    )


def rows() -> list[Row]:
    """B1 on generated pictures of 1024 x 683, and B1.photos on the labelled photographs where they are."""
    measured = _measured("B1", WHAT, generated_jpegs(N_GENERATED), reach=REACH)
    what = "the same on labelled photographs, whatever their chroma subsampling"
    folder = os.environ.get("LAKELENS_DEV_DATA")
    found = photographs(Path(folder)) if folder else []
    if found:
        return [measured, _measured("B1.photos", what, found, reach=None)]
    reason = f"no baseline JPEG under LAKELENS_DEV_DATA={folder}" if folder else "LAKELENS_DEV_DATA is not set"
    return [measured, not_measured("B1.photos", what, unit="cpu_ms/image", reach=None, reason=reason)]
