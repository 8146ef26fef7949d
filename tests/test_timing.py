"""Variants are timed in turn over the same media, each media by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.cheap.concept_mean_colour import MEAN, load
from featurizers.spec import Features, Image
from jobs.engine import EngineSettings
from jobs.inference import Loaded
from jobs.timing import Timed, interleaved, orders
from tests.pictures import encode, smooth

SETTINGS = EngineSettings(max_pixels=1 << 24, max_frames_per_video=4, decode_profile="exact", decode_threads=1)


def media(contents: Sequence[bytes]) -> pa.RecordBatch:
    n = len(contents)
    empty = {"pack_uri": pa.nulls(n, pa.string()), "offset": pa.nulls(n, pa.int64()), "length": pa.nulls(n, pa.int64())}
    columns = {"media_id": pa.array([f"{i}" for i in range(n)]), "content": pa.array(contents, pa.binary()), **empty}
    return pa.RecordBatch.from_pydict({**columns, "mime": pa.array(["image/jpeg"] * n)})


def variant(name: str, pause_s: float) -> Timed:
    extract = load(MEAN, {}, "cpu")

    def slow(images: Sequence[Image]) -> Features:
        time.sleep(pause_s * len(images))
        return extract(images)

    return Timed(name=name, loaded=Loaded(spec=MEAN, fingerprint=name, extract=slow), settings=SETTINGS)


def test_each_goes_first_as_often_as_the_others() -> None:
    assert orders(3, 4) == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_the_slower_variant_takes_longer_for_every_media_and_a_broken_one_is_there_too() -> None:
    batch = media([encode(smooth(64, 48), "JPEG"), encode(smooth(80, 60), "JPEG"), b"no picture"])
    found = interleaved([variant("fast", 0.0), variant("slow", 0.02)], batch, n_repeats=3)
    assert {name: passes.media_ms.shape for name, passes in found.items()} == {"fast": (3, 3), "slow": (3, 3)}
    assert (found["slow"].media_ms[:, :2] >= 20).all() and (found["slow"].media_ms[:, 2] == 0).all()
    assert (found["fast"].media_ms[:, :2] > 0).all() and np.median(found["fast"].media_ms[:, :2]) < 20
    assert found["slow"].p95_ms == pytest.approx(np.quantile(found["slow"].media_ms, 0.95, axis=1))
    assert (found["fast"].cpu_s_per_media > 0).all()
