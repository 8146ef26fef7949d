"""Row P1: what `lakelens plan` predicts of a full run, against that run, on three collections. Judges no quality."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from benchmarks.decode import generated_jpegs
from benchmarks.row import Row, machine

REACH = 0.8  # the lesser of predicted and actual seconds over the greater: within 25 %
CONCEPTS, OBJECTS = "concept_efficientnet.lite0@1", "object_yolov3.tiny@1"
WHAT = {
    "P1.photos": "seconds predicted for many small photographs, concepts",
    "P1.demo": "seconds predicted for the sample media: pictures, videos, broken files; concepts, objects, text",
    "P1.large": "seconds predicted for photographs of 1 to 12 megapixels, concepts and objects, fast profile",
}
N_SMALL, N_LARGE = 4000, 500


def variants(bases: Sequence[PIL.Image.Image], n: int, *, sides: tuple[int, int], seed: int) -> Iterator[bytes]:
    """`n` JPEGs: crops of `bases` with a long side of `sides` pixels, log-uniform, and a quality of 60 to 95."""
    random = np.random.default_rng(seed)
    for i in range(n):
        base = bases[i % len(bases)]
        long_side = float(np.exp(random.uniform(*np.log(sides))))
        share = random.uniform(0.7, 1.0)
        width, height = (int(side * share) for side in base.size)
        left, top = int(random.integers(0, base.width - width + 1)), int(random.integers(0, base.height - height + 1))
        scale = long_side / max(width, height)
        # dimensions in multiples of 16, as cameras have them, or the fast profile would be left out
        size = (max(16, round(width * scale / 16) * 16), max(16, round(height * scale / 16) * 16))
        picture = base.resize(size, PIL.Image.Resampling.BILINEAR, (left, top, left + width, top + height))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=int(random.integers(60, 96)))
        yield out.getvalue()


def _folder(root: Path, pictures: Iterator[bytes]) -> Path:
    for i, data in enumerate(pictures):
        folder = root / f"{i % 16:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:05d}.jpg").write_bytes(data)
    return root


def small_photographs(root: Path) -> Path:
    """The photographs of LAKELENS_DEV_DATA and N_SMALL variants of them and of generated ones."""
    given = os.environ.get("LAKELENS_DEV_DATA")
    files = sorted(p for p in Path(given).rglob("*") if p.suffix == ".jpg") if given else []
    opened = [PIL.Image.open(p).convert("RGB") for p in files]
    opened += [PIL.Image.open(io.BytesIO(data)) for data in generated_jpegs(16, seed=1)]
    originals = (p.read_bytes() for p in files)
    generated = variants(opened, N_SMALL, sides=(240, 1600), seed=2)
    return _folder(root, (data for some in (originals, generated) for data in some))


def large_photographs(root: Path) -> Path:
    """N_LARGE variants of three generated photographs, 1 to 12 megapixels."""
    opened = [PIL.Image.open(io.BytesIO(d)) for d in generated_jpegs(3, width=4032, height=3024, seed=3)]
    return _folder(root, variants(opened, N_LARGE, sides=(1280, 4032), seed=4))


def lakelens(*arguments: str) -> tuple[dict[str, Any], float]:
    """What the command ends with, and its seconds from start to end as whoever waits for it sees them."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "jobs", *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    wall_s = time.monotonic() - began
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"lakelens {arguments[0]} ended with {done.returncode}: {outcome['message']}")
    return outcome, wall_s


@contextmanager
def crawled(kind: str, root: Path) -> Iterator[str]:
    """A lake with the media of a collection."""
    lake = str(root / "lake")
    if kind == "P1.demo":
        from jobs.demo import demo_overrides, prepared_sample, serve

        sample = prepared_sample()
        with serve(sample, port=0) as base_url:
            conf = root / "conf.yaml"
            conf.write_text(json.dumps(demo_overrides(sample, base_url)))
            lakelens("crawl", "--lake", lake, "--conf", str(conf))
    else:
        build = small_photographs if kind == "P1.photos" else large_photographs
        folder = build(root / "media")
        source = json.dumps([{"name": "photos", "kind": "folder", "uri": str(folder)}])
        lakelens("crawl", "--lake", lake, "--set", f"crawl.sources={source}")
        shutil.rmtree(folder)
    yield lake


SETTINGS: dict[str, list[str]] = {
    "P1.photos": ["--featurizer", CONCEPTS],
    "P1.demo": [],
    "P1.large": ["--featurizer", CONCEPTS, "--featurizer", OBJECTS, "--set", "featurize.decode_profile=fast"],
}


def compare(row_id: str, lake: str) -> Row:
    """Plan, then run, and set one against the other."""
    plan, plan_s = lakelens("plan", "--lake", lake, *SETTINGS[row_id])
    run, actual_s = lakelens("featurize", "--lake", lake, *SETTINGS[row_id])
    low, point, high = (plan["hours"][end] * 3600 for end in ("low", "point", "high"))
    measures = job_metrics(lake, f"{run['run_id']}.featurize")
    return Row(
        id=row_id,
        what=WHAT[row_id],
        unit="s",
        ours=round(point, 1),
        peer=round(actual_s, 1),
        ratio=round(min(point, actual_s) / max(point, actual_s), 3),
        reach=REACH,
        peer_version="the run itself",
        settings={
            "interval_s": [round(low, 1), round(high, 1)],
            "interval_covers": low <= actual_s <= high,
            "n_media": plan["n_media"],
            "n_sampled": plan["n_sampled"],
            "n_waves": plan["n_waves"],
            "plan_s": round(plan_s, 1),
            "parts_s": {name: round(seconds, 1) for name, seconds in plan["parts_s"].items()},
            "usd": plan["usd"] | {"actual": plan["usd"]["point"] * actual_s / point},
            "error_rate": plan["error_rate"] | {"actual": measures["error_rate"]},
            "peak_bytes": plan["peak_bytes"] | {"actual": measures["worker_peak_bytes"]},
            **machine(),
        },
    )


def job_metrics(lake: str, run_id: str) -> dict[str, float]:
    """What `runs` and `features` of a lake say of a run, read without Spark."""
    from deltalake import DeltaTable

    features = DeltaTable(f"{lake}/features").to_pyarrow_table(columns=["run_id", "media_id", "error"])
    failed: dict[str, list[bool]] = {}
    for row in features.to_pylist():
        if row["run_id"] == run_id:
            failed.setdefault(row["media_id"], []).append(row["error"] is not None)
    [run] = [row for row in DeltaTable(f"{lake}/runs").to_pyarrow_table().to_pylist() if row["run_id"] == run_id]
    return dict(run["metrics"]) | {"error_rate": float(np.mean([np.mean(each) for each in failed.values()]))}


def rows() -> list[Row]:
    """P1: three collections, each crawled into a lake of its own, planned and run."""
    found = []
    for row_id in WHAT:
        with tempfile.TemporaryDirectory(prefix="lakelens-plan-") as folder, crawled(row_id, Path(folder)) as lake:
            found.append(compare(row_id, lake))
    return found
