"""What a run would take: the arithmetic from a rehearsal, and that a plan tells without changing anything."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.cli import app
from jobs.estimate import LINK_S, Estimate, Population, Prediction, Rehearsal, over_limit, predict
from jobs.lake import open_lake
from jobs.plan import SAMPLE_FILES, candidates
from tests.test_featurize import add_media, jpeg

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

IMAGE, VIDEO = (False, 8), (True, 10)
DUE = Population(
    n={IMAGE: 9000, VIDEO: 1000},
    size_bytes={IMAGE: 9000 * 100_000, VIDEO: 1000 * 2_000_000},
    inline_bytes=9000 * 100_000,
    max_pixels=12_000_000,
    n_waves=5,
    n_sources=1000,
)
SEEN = Rehearsal(
    start_s=10.0,
    around_s=20.0,
    warm_up_s=8.0,
    wave_s=6.0,
    n_tasks=2,
    n_cores=4,
    media_s={IMAGE: [0.1, 0.3] * 20, VIDEO: [1.0, 3.0] * 10},
    failed={IMAGE: [0.0, 0.0, 0.0, 1.0] * 10, VIDEO: [0.0] * 20},
    n_sources=200,
    max_pixels=8_000_000,
    peak_bytes=10**9,
)


def predicted(population: Population = DUE, seen: Rehearsal = SEEN) -> Prediction:
    return predict(population, seen, usd_per_s=4 * 0.36 / 3600, max_pixels=50_000_000)


def test_the_time_is_what_is_done_once_what_each_wave_takes_and_what_the_media_take_together() -> None:
    media_s = (9000 * 0.2 + 1000 * 2.0) / 2
    seconds = 10 + 20 + 8 + 5 * 6 + (1000 - 200) * LINK_S / 4 + media_s
    assert predicted().hours.point * 3600 == pytest.approx(seconds)
    assert sum(predicted().parts_s.values()) == pytest.approx(seconds)
    twice = predicted(replace(DUE, n={s: 2 * n for s, n in DUE.n.items()}, n_waves=10))
    assert twice.hours.point * 3600 == pytest.approx(seconds + media_s + 5 * 6)


def test_the_interval_is_around_the_point_and_narrows_with_the_sample_down_to_the_clock_s_own_spread() -> None:
    hours = predicted().hours
    assert hours.low < hours.point < hours.high
    wide = predicted(seen=replace(SEEN, media_s={IMAGE: [0.1, 0.3] * 2, VIDEO: [1.0, 3.0] * 2})).hours
    known = predicted(seen=replace(SEEN, media_s={IMAGE: [0.2] * 40, VIDEO: [2.0] * 20})).hours
    assert wide.point == pytest.approx(known.point) == pytest.approx(hours.point)
    assert wide.high - wide.low > hours.high - hours.low > known.high - known.low > 0.2 * known.point


def test_dollars_are_the_hours_of_all_cores_and_errors_weigh_by_what_is_due() -> None:
    found = predicted()
    assert found.usd.high == pytest.approx(found.hours.high * 4 * 0.36)
    assert found.error_rate.point == pytest.approx(0.25 * 0.9)
    assert found.error_rate.low < 0.225 < found.error_rate.high


def test_a_picture_larger_than_any_sampled_raises_the_upper_end_of_the_memory_up_to_what_is_decoded_at_all() -> None:
    same = predicted(replace(DUE, max_pixels=8_000_000)).peak_bytes
    larger = predicted().peak_bytes
    assert same.point == larger.point == 10**9 and same.low < 10**9 < same.high
    assert larger.high - same.high == 2 * 6 * 4_000_000  # two threads, decoded and resized, three bytes a pixel
    bomb = replace(DUE, max_pixels=10**9)
    assert predicted(bomb).peak_bytes.high - same.high == 2 * 6 * 42_000_000


def test_the_upper_end_of_the_interval_is_what_a_limit_is_held_against() -> None:
    found = replace(predicted(), hours=Estimate(1.0, 0.8, 1.3), usd=Estimate(0.5, 0.4, 0.6))
    assert over_limit(found, max_usd=None, max_hours=None) is None
    assert over_limit(found, max_usd=0.6, max_hours=1.3) is None
    assert over_limit(found, max_usd=0.55, max_hours=2) == (
        "over the limit: usd may reach 0.6 (predicted 0.5, 90 % interval from 0.4), allowed by --max-usd: 0.55"
    )
    assert "hours may reach 1.3" in (over_limit(found, max_usd=9, max_hours=1.2) or "")


# -- with Spark ---------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder` with the digest of its bytes."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.spark
def test_media_that_are_in_few_files_of_their_own_are_sampled_among_those_of_many_files(spark: SparkSession) -> None:
    def media(file: str, number: int, *stratum: Any) -> tuple[Any, ...]:
        return hashlib.sha256(f"{file}{number}".encode()).hexdigest(), file, 1000, *stratum

    files = [media(f"inline-{i}", n, *IMAGE) for i in range(5 * SAMPLE_FILES) for n in range(2)]
    files += [media("references", n, *VIDEO) for n in range(6)]
    described = spark.createDataFrame(
        files, "media_id STRING, file STRING, pixels BIGINT, is_video BOOLEAN, size_class INT"
    )
    found = candidates(described, {IMAGE: 100, VIDEO: 4})
    assert len(found[VIDEO]) == 4 and len(found[IMAGE]) == 2 * SAMPLE_FILES
    assert candidates(described, {IMAGE: 100, VIDEO: 4}) == found


@pytest.mark.spark
def test_a_plan_over_its_limit_ends_with_3_says_what_is_due_and_leaves_every_byte_of_the_lake_as_it_was(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    add_media(spark, lake, [*(jpeg(i) for i in range(11)), b"no picture"])
    before = contents(tmp_path / "lake")
    chosen = ["--featurizer", "concept_efficientnet.lite0@1", "--set", "featurize.link_captions=false"]
    capsys.readouterr()
    given = ["--lake", str(tmp_path / "lake"), "--max-hours", "0.0001", "--json"]
    assert app(["plan", *chosen, *given], standalone_mode=False) == 3
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert contents(tmp_path / "lake") == before
    assert (said["n_media"], said["n_sampled"], said["n_waves"], said["exit_code"]) == (12, 12, 1, 3)
    assert said["message"].startswith("over the limit: hours may reach ") and "--max-hours: 0.0001" in said["message"]
    assert 0 < said["hours"]["low"] < said["hours"]["point"] < said["hours"]["high"] < 0.2
    assert said["error_rate"] == {
        "point": pytest.approx(1 / 12),
        "low": pytest.approx(1 / 12),
        "high": pytest.approx(1 / 12),
    }
    assert said["peak_bytes"]["point"] > 50_000_000
