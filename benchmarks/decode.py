"""Rows B1 and B2: decoding a JPEG and delivering a 224-pixel crop, against Pillow doing the same. Runs no model."""

from __future__ import annotations

import functools
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import simplejpeg

from benchmarks.row import Row, machine, not_measured
from featurizers.decode import decode_image, decode_reduced, plain_jpeg_size
from featurizers.delivery import dct_divisor, fit
from featurizers.spec import FeaturizerSpec, Image

WHAT = "baseline 4:2:0 JPEG to a 224-pixel crop, against Pillow decode + bicubic"
REACH = 2.5
FAST = {"B2.3MP": ((2048, 1536), 3.5), "B2.12MP": ((4032, 3024), 5.5)}  # row: (width, height), reach
MIN_FAST_DB = 50
N_GENERATED = 12
N_LARGE = 3
N_ROUNDS = 21
N_LARGE_ROUNDS = 5
MAX_PIXELS = 50_000_000
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
CLIP_CROP = replace(CROP, short_side=224)


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
    return fit(decode_image(data, max_pixels=MAX_PIXELS), CROP)


def ours_fast(data: bytes) -> Image:
    """What the engine does for one image in the fast profile, for a crop of 224 pixels of a short side of as many."""
    size = plain_jpeg_size(data)
    divisor = dct_divisor(CLIP_CROP, *size) if size else 1
    return fit(decode_reduced(data, max_pixels=MAX_PIXELS, divisor=divisor)[0], CLIP_CROP)


def pillow(data: bytes, short: int = 256) -> Image:
    """torchvision's Resize(short, BICUBIC) and CenterCrop(224) on a Pillow image."""
    opened = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    width, height = opened.size
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    resized = opened.resize((new_width, new_height), PIL.Image.Resampling.BICUBIC)
    left, top = round((new_width - 224) / 2), round((new_height - 224) / 2)
    return np.asarray(resized.crop((left, top, left + 224, top + 224)))


def interleaved_cpu_ms(
    functions: Sequence[Callable[[bytes], Image]], pictures: Sequence[bytes], *, n_rounds: int
) -> list[float]:
    """For each function the median over rounds of its process CPU milliseconds per picture.

    Each round runs one function after the other on each picture, so that what else the machine does meets all alike.
    """
    for function in functions:
        function(pictures[0])
    rounds: list[list[float]] = [[] for _ in functions]
    for _ in range(n_rounds):
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
    our_ms, peer_ms = interleaved_cpu_ms([ours, pillow], pictures, n_rounds=N_ROUNDS)
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


def decibels(one: Image, other: Image) -> float:
    """Peak signal-to-noise ratio of two pictures of 8 bits, dB."""
    return float(10 * np.log10(255**2 / max(1e-9, ((one.astype(float) - other) ** 2).mean())))


def fast_rows() -> list[Row]:
    """B2: the fast profile on pictures of 3 and 12 megapixels."""
    found = []
    for row_id, ((width, height), reach) in FAST.items():
        pictures = generated_jpegs(N_LARGE, width=width, height=height)
        peer = functools.partial(pillow, short=224)
        our_ms, peer_ms = interleaved_cpu_ms([ours_fast, peer], pictures, n_rounds=N_LARGE_ROUNDS)
        found.append(
            Row(
                id=row_id,
                what=f"{WHAT}; fast profile, {width} x {height}",
                unit="cpu_ms/image",
                ours=round(our_ms, 3),
                peer=round(peer_ms, 3),
                ratio=round(peer_ms / our_ms, 2),
                reach=reach,
                peer_version=f"Pillow {PIL.__version__}",
                settings={
                    "n_images": len(pictures),
                    "mean_bytes": round(statistics.mean(map(len, pictures))),
                    "rounds": N_LARGE_ROUNDS,
                    "divisor": dct_divisor(CLIP_CROP, width, height),
                    "min_decibels": round(min(decibels(ours_fast(data), peer(data)) for data in pictures), 1),
                    "reach_decibels": MIN_FAST_DB,
                    **machine(),
                },
            )
        )
    return found


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
