"""Row M1: how much a worker's resident size grows from 2,000 to 10,000 images. Runs the engine without Spark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.row import Row, machine
from featurizers.spec import Features, FeaturizerSpec, Image

N_EARLY, N_LATE = 2_000, 10_000
REACH = round(1 / 1.05, 4)
WINDOW = 400  # images before each mark over which the resident size is averaged
N_DISTINCT = 32  # pictures of different sizes that the images are drawn from


def rows() -> list[Row]:
    """M1, measured in a process of its own; FEATURIZER names a real featurizer to run beside the cheap one."""
    featurizer = os.environ.get("FEATURIZER", "")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", featurizer], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the memory benchmark failed: {done.stderr[-2000:]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return [
        Row(
            id="M1",
            what=f"resident size of a worker at {N_EARLY} images / at {N_LATE}",
            unit="MiB",
            ours=measured["late_mib"],
            peer=measured["early_mib"],
            ratio=round(measured["early_mib"] / measured["late_mib"], 4),
            reach=REACH,
            peer_version="itself, earlier",
            settings={
                "featurizers": ["mean colour of a 224 crop", "mean colour of a 416 letterbox"]
                + ([featurizer] if featurizer else []),
                "decode_threads": 2,
                "peak_mib": measured["peak_mib"],
                **machine(),
            },
        )
    ]


def resident_mib() -> float:
    """Resident set of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def mean_colour(images: Sequence[Image]) -> Features:
    """One feature for each picture: the direction of its mean colour."""
    means = np.array([image.reshape(-1, 3).mean(axis=0) for image in images], np.float32) + 1
    return Features(
        image=np.arange(len(images), dtype=np.int32), vector=means / np.linalg.norm(means, axis=1, keepdims=True)
    )


def cheap_spec(variant: str, **changes: object) -> FeaturizerSpec:
    """A featurizer that costs next to nothing, so that what is measured is the engine."""
    settings: dict[str, object] = {
        "family": "concept_benchmark",
        "variant": variant,
        "version": 1,
        "kind": "concept",
        "dim": 3,
        "image_size": 224,
        "fit": "crop",
        "batch_size": 32,
        "weights": (),
    }
    return FeaturizerSpec(**{**settings, **changes})  # type: ignore[arg-type]


def input_batches(n: int, due: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """`n` images of 200 to 900 pixels a side in batches of 32."""
    from benchmarks.decode import generated_jpegs

    random = np.random.default_rng(0)
    distinct = []
    for seed in range(N_DISTINCT):
        width, height = (int(side) for side in random.integers(200, 900, 2))
        distinct += generated_jpegs(1, width=width, height=height, seed=seed)
    for first in range(0, n, 32):
        ids = range(first, min(n, first + 32))
        yield pa.RecordBatch.from_pydict(
            {
                "media_id": [f"{i:064x}" for i in ids],
                "content": [distinct[i % N_DISTINCT] for i in ids],
                "pack_uri": pa.nulls(len(ids), pa.string()),
                "offset": pa.nulls(len(ids), pa.int64()),
                "length": pa.nulls(len(ids), pa.int64()),
                "mime": ["image/jpeg"] * len(ids),
                "due": [list(due)] * len(ids),
            }
        )


def measure(featurizer: str) -> dict[str, float]:
    """Mean resident size, MiB, over the images before each mark, and the highest seen."""
    from jobs.engine import EngineSettings, featurize_media
    from jobs.inference import Loaded, loaded_featurizers

    specs = [cheap_spec("crop"), cheap_spec("letterbox", fit="letterbox", image_size=416)]
    loaded = [Loaded(spec=spec, fingerprint=spec.variant, extract=mean_colour) for spec in specs]
    if featurizer:
        from featurizers.spec import find_spec
        from featurizers.weights import resolve

        spec, paths = resolve(find_spec(featurizer))
        loaded += loaded_featurizers([(spec, paths, "benchmark")], "cpu")
    settings = EngineSettings(max_pixels=50_000_000, max_frames_per_video=1, decode_threads=2)
    seen: list[tuple[int, float]] = []
    n_images = 0
    for batch in featurize_media(input_batches(N_LATE, [one.spec.id for one in loaded]), loaded, settings):
        n_images += batch.num_rows
        seen.append((n_images, resident_mib()))

    def before(mark: int) -> float:
        window = [size for n, size in seen if mark - WINDOW < n <= mark]
        return round(sum(window) / len(window), 1)

    return {"early_mib": before(N_EARLY), "late_mib": before(N_LATE), "peak_mib": round(max(s for _, s in seen), 1)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1] if len(sys.argv) > 1 else "")))
