"""How due media are found and cut into waves, and how a featurizer of the configuration is found."""

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from featurizers.spec import UnknownFeaturizer, find_spec, prepared
from featurizers.weights import resolve
from jobs.config import ConfigError, load_config
from jobs.lake import append, open_lake, version
from jobs.runs import Run
from jobs.work import BUCKET_MEDIA, MediaFile, Selection, assign_waves, buckets, configured_spec, prepare, write_plan
from schemas import FEATURES, MEDIA
from schemas.table import schema_ddl


def test_a_wave_keeps_within_rows_and_bytes_and_loses_no_file() -> None:
    files = [MediaFile(f"{i}", n_media=3, size_bytes=10) for i in range(10)]
    by_rows = assign_waves(files, max_media=7, max_bytes=1000)
    by_bytes = assign_waves(files, max_media=100, max_bytes=30)
    assert [len(wave) for wave in by_rows] == [2, 2, 2, 2, 2]
    assert [len(wave) for wave in by_bytes] == [3, 3, 3, 1]
    assert [file for wave in by_rows for file in wave] == files


def test_a_file_above_a_bound_is_a_wave_of_its_own() -> None:
    files = [MediaFile("small", 1, 1), MediaFile("big", 50, 1), MediaFile("small2", 1, 1)]
    assert [[f.path for f in w] for w in assign_waves(files, max_media=10, max_bytes=10)] == [
        ["small"],
        ["big"],
        ["small2"],
    ]


def test_nothing_due_is_no_wave() -> None:
    assert assign_waves([], max_media=1, max_bytes=1) == []


@pytest.mark.parametrize(("n_media", "n_buckets"), [(0, 1), (10_000_000, 1), (10_000_001, 16), (10**9, 256)])
def test_every_media_is_in_exactly_one_bucket(n_media: int, n_buckets: int) -> None:
    found = buckets(n_media, of=BUCKET_MEDIA)
    assert len(found) == n_buckets
    for media_id in (secrets.token_hex(32) for _ in range(50)):
        assert sum(media_id.startswith(bucket) for bucket in found) == 1


@pytest.mark.spark
def test_a_plan_made_bucket_by_bucket_is_the_plan_made_at_once(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    due = prepare(load_config(assignments=["featurize.link_captions=false"]).featurize).due[:2]
    ids = [secrets.token_hex(32) for _ in range(40)]
    now = datetime.now(UTC)
    there_is = {"mime": "image/jpeg", "ingested_at": now}
    media = [dict.fromkeys(MEDIA.columns.names) | there_is | {"media_id": i, "size_bytes": 7} for i in ids]
    append(spark.createDataFrame([tuple(m.values()) for m in media], schema_ddl(MEDIA.columns)), lake, MEDIA)
    blank = dict.fromkeys(FEATURES.columns.names) | {"frame": 0, "featurizer": due[0].spec.id, "run_id": "old"}
    blank |= {"fingerprint": due[0].fingerprint, "wave": 0}
    away = {"stage": "decode", "code": "storage", "detail": "was away"}
    there = [blank | {"media_id": i, "features": []} for i in ids[:15]]
    there += [blank | {"media_id": i, "error": away} for i in ids[15:20]]
    append(spark.createDataFrame([tuple(r.values()) for r in there], schema_ddl(FEATURES.columns)), lake, FEATURES)
    inputs = {"media": version(spark, lake, MEDIA)}
    run = Run(run_id="a.featurize", job="featurize", owner="me", inputs=inputs, started=now, resumed=False)

    def planned() -> dict[str, tuple[int, list[str], bool]]:
        rows = write_plan(spark, lake, due, run, Selection()).collect()
        assert len({row.media_id for row in rows}) == len(rows)
        return {row.media_id: (row.size_bytes, sorted(row.due), row.retried) for row in rows}

    at_once = planned()
    both, other = sorted(one.spec.id for one in due), [due[1].spec.id]
    assert at_once == {i: (7, other, False) for i in ids[:15]} | {i: (7, both, True) for i in ids[15:20]} | {
        i: (7, both, False) for i in ids[20:]
    }
    monkeypatch.setattr("jobs.work.BUCKET_MEDIA", len(ids) - 1)
    assert planned() == at_once
    n_parts = len(list((tmp_path / "lake" / "_staging" / "a.featurize" / "plan").glob("part-*")))
    assert n_parts >= 12, "it was not made bucket by bucket"


def test_an_unknown_featurizer_is_refused_with_the_ids_there_are() -> None:
    config = load_config(assignments=["featurize.featurizers=[concept_nothing.x@1]"])
    with pytest.raises(UnknownFeaturizer, match=r"concept_nothing.x@1.*concept_efficientnet.lite0@1"):
        prepare(config.featurize)


def test_no_featurizer_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="featurizers is empty"):
        prepare(load_config(assignments=["featurize.featurizers=[]"]).featurize)


def test_a_family_without_configurable_models_says_so() -> None:
    config = load_config(assignments=["featurize.models={object_yolov3.mine: 'file:///x'}"])
    with pytest.raises(ConfigError, match="object_yolov3 takes no configured model"):
        configured_spec("object_yolov3.mine@1", config.featurize)


@pytest.mark.parametrize("featurizer_id", ["concept_efficientnet.lite0_fp16@1", "object_yolov3.tiny_fp16@1"])
def test_a_half_precision_network_is_converted_once_and_half_as_large(featurizer_id: str) -> None:
    spec, weights = resolve(find_spec(featurizer_id))
    (network,) = set(prepared(spec, weights).items()) - set(weights.items())
    (whole,) = set(prepared(replace(spec, precision="float32"), weights).items()) - set(weights.items())
    assert prepared(spec, dict([network]))[network[0]] == network[1]
    assert 0.49 < network[1].stat().st_size / whole[1].stat().st_size < 0.52
    with pytest.raises(ValueError, match="precision is 'int4', allowed: float32, float16"):
        prepared(replace(spec, precision="int4"), weights)


def test_executors_are_given_networks_that_are_converted_already() -> None:
    work = prepare(load_config(assignments=["featurize.link_captions=false"]).featurize)
    networks = [path for one in work.due for name, path in one.paths.items() if name in ("lite0", "yolov3_tiny")]
    assert [path.suffix for path in networks] == [".onnx", ".onnx"]
