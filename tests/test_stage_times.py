"""Where the engine's seconds go is measured, added up, and said in words with what would help."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pytest

from featurizers.spec import Extract, Features, FeaturizerSpec, Image
from jobs.engine import featurize_media
from jobs.stage_times import Added, StageTimes, busy_s, shares, stage_metrics, times_of, verdict
from tests.pictures import encode, noise
from tests.test_engine import SETTINGS, a_spec, loaded, mean_colour, media, picture

SLOW_S = 0.03  # ten times what the engine does with a small picture
SPEC = a_spec("a", batch_size=1)
SMALL, LARGE = picture((9, 99, 9)), encode(noise(1500, 1000), "PNG")


def slow(spec: FeaturizerSpec) -> Extract:
    inner = mean_colour(spec)

    def extract(images: Sequence[Image]) -> Features:
        time.sleep(SLOW_S * len(images))
        return inner(images)

    return extract


def batches(content: bytes, n: int = 8, *, pause_s: float = 0.0) -> Iterator[pa.RecordBatch]:
    given = media([content] * n, [[SPEC.id]] * n, rows_per_batch=1)

    def paused() -> Iterator[pa.RecordBatch]:
        for batch in given:
            time.sleep(pause_s)
            yield batch

    return paused()


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """The first picture of a process imports what resizes it."""
    list(featurize_media(batches(SMALL, 1), [loaded(SPEC)], SETTINGS))


@pytest.mark.parametrize("stage", ["read", "decode", "infer", "write"])
def test_the_stage_that_is_slow_is_the_one_that_limits_and_the_stages_explain_the_time(stage: str) -> None:
    times = StageTimes()
    settings = replace(SETTINGS, max_pixels=2_000_000, output_bytes=1)
    featurizer = loaded(SPEC, slow(SPEC) if stage == "infer" else None)
    source = batches(LARGE if stage == "decode" else SMALL, pause_s=SLOW_S if stage == "read" else 0.0)
    began = time.perf_counter()
    for _ in featurize_media(source, [featurizer], settings, times=times):
        time.sleep(SLOW_S if stage == "write" else 0.0)
    wall_s = time.perf_counter() - began
    parts = shares(times)
    assert max(parts, key=lambda name: parts[name]) == stage, parts
    assert sum(parts.values()) == pytest.approx(1)
    assert 0.8 * wall_s < busy_s(times) <= wall_s
    assert 0 < times.decode_s + times.blocked_s <= SETTINGS.decode_threads * wall_s


def test_decoded_pictures_that_find_the_queue_full_are_blocked_and_not_decoding() -> None:
    times = StageTimes()
    settings = replace(SETTINGS, queue_bytes=100_000)  # less than a picture of 224 pixels, and many are read ahead
    spec = replace(SPEC, image_size=224)
    list(featurize_media(batches(SMALL, 12), [loaded(spec, slow(spec))], settings, times=times))
    assert times.blocked_s > 2 * SLOW_S and times.decode_s < times.blocked_s


def test_media_and_the_rows_that_failed_are_counted() -> None:
    times = StageTimes()
    given = media([SMALL, b"no picture", SMALL], [[SPEC.id]] * 3)
    list(featurize_media(given, [loaded(SPEC)], SETTINGS, times=times))
    assert (times.n_media, times.n_failed) == (3, 1)


def test_times_add_up_as_spark_adds_them_and_the_largest_worker_stays() -> None:
    added = Added()
    there = added.zero(StageTimes(read_s=5))
    for one in (StageTimes(read_s=1, n_media=2, peak_bytes=7), StageTimes(read_s=2, infer_s=4, peak_bytes=5)):
        there = added.addInPlace(there, one)
    assert there == StageTimes(read_s=3, infer_s=4, n_media=2, peak_bytes=7)
    assert stage_metrics(there)["stage_s/infer"] == 4 and stage_metrics(there)["worker_peak_bytes"] == 7
    assert stage_metrics(StageTimes(load_s=1)) == {}
    assert times_of(stage_metrics(there)) == StageTimes(read_s=3, infer_s=4) and times_of({"media": 3}) == StageTimes()


def test_the_verdict_names_the_stage_and_what_would_help_only_where_it_limits_by_much() -> None:
    starved = verdict(StageTimes(wait_s=7, infer_s=3, decode_s=9))
    assert "decode limits: inference waited for pictures 70% of the time" in starved
    assert "featurize.decode_profile=fast" in starved and "spark.task.cpus" in starved
    assert "infer limits: decoded pictures waited for inference 90% of the time" in verdict(
        StageTimes(wait_s=1, infer_s=9)
    )
    even = verdict(StageTimes(read_s=1, wait_s=5, infer_s=4, decode_s=6))
    assert even.startswith("stages: read 10%, decode 50%, infer 40%, write 0% (decoding went on for 60%); ")
    assert even.endswith("decode limits, and no stage by much")
    assert verdict(StageTimes()) == ""
