"""Run metrics merge field by field, survive JSON, and count what is committed."""

from __future__ import annotations

import random
import re
from dataclasses import fields, replace
from typing import Any

import pytest

from jobs.config import load_config
from jobs.metrics import (
    Cell,
    Histogram,
    RunMetrics,
    bucket_of,
    flat,
    from_cells,
    measure,
    merge,
    metric_key,
    quality,
)
from tests import rows
from tests.rows import CONCEPT, ENTITY, OBJECT


def random_metrics(generator: random.Random) -> RunMetrics:
    """Metrics with some keys in every field; floats are whole so that sums do not depend on their order."""

    def value(how: str, type_name: str) -> Any:
        if how == "histogram":
            return Histogram(
                {generator.randint(-64, 224): generator.randint(1, 9) for _ in range(generator.randint(0, 4))}
            )
        return generator.randint(0, 10**12) if "int" in type_name else float(generator.randint(0, 10**6))

    return RunMetrics(
        **{
            f.name: {
                key: value(f.metadata["merge"], str(f.type))
                for key in generator.sample(["", "a@1", "b.c@2", "truncated"], generator.randint(0, 4))
            }
            for f in fields(RunMetrics)
        }
    )


def test_json_gives_back_an_equal_value() -> None:
    generator = random.Random(1)
    for metrics in (random_metrics(generator) for _ in range(100)):
        assert RunMetrics.from_json(metrics.to_json()) == metrics


def test_json_of_another_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="n_pixels"):
        RunMetrics.from_json('{"n_pixels": {}}')


def test_merging_is_associative_and_commutative_and_nothing_changes_nothing() -> None:
    generator = random.Random(2)
    for _ in range(50):
        a, b, c = (random_metrics(generator) for _ in range(3))
        assert merge(merge(a, b), c) == merge(a, merge(b, c))
        assert merge(a, b) == merge(b, a)
        assert merge(a, RunMetrics()) == a


def test_each_field_merges_as_it_declares() -> None:
    a = RunMetrics(n_documents={"": 2}, decode_ms={"": Histogram({3: 1, 4: 2})})
    b = RunMetrics(n_documents={"": 3}, decode_ms={"": Histogram({4: 5})})
    both = merge(a, b)
    assert (both.n_documents, both.decode_ms) == ({"": 5}, {"": Histogram({3: 1, 4: 7})})


def test_percentiles_are_within_the_width_of_a_bucket_and_the_same_after_a_merge() -> None:
    generator = random.Random(3)
    durations = sorted(generator.lognormvariate(3, 1.5) for _ in range(4001))
    halves = [Histogram(), Histogram()]
    for i, ms in enumerate(durations):
        halves[i % 2] = halves[i % 2] + Histogram({bucket_of(ms): 1})
    merged = halves[0] + halves[1]
    assert merged.n == 4001
    for share in (0.5, 0.95, 0.99):
        exact = durations[round(share * 4000)]
        assert merged.percentile_ms(share) == pytest.approx(exact, rel=0.04)
    assert Histogram().percentile_ms(0.5) is None


def test_durations_outside_the_buckets_are_counted_at_their_ends() -> None:
    assert bucket_of(0.0) == bucket_of(-1.0) == bucket_of(0.01)
    assert bucket_of(1e30) == bucket_of(1e7)


def test_a_cell_of_no_field_is_refused() -> None:
    with pytest.raises(ValueError, match="n_pixels"):
        from_cells([Cell("n_pixels", "", None, 1.0)])


PRICES = load_config().prices


def test_names_are_those_mlflow_takes() -> None:
    # A kind of GPU is one of those that have a price.
    metrics = replace(random_metrics(random.Random(4)), n_documents={"": 3}, held_gpu_s={"h200": 1.0}, gpu_s={})
    metrics = replace(metrics, infer_total_ms={CONCEPT: 5.0}, core_s={"infer": 3.0, "idle/driver": 2.0})
    assert "cost_usd/infer/concept_efficientnet.lite0.v1" in flat(metrics, PRICES)
    for name in flat(metrics, PRICES):
        assert re.fullmatch(r"[A-Za-z0-9_\-./ ]+", name), name
    assert metric_key(ENTITY) == "entity_ocr.rapidocr_gated.v1"


@pytest.mark.spark
def test_metrics_count_the_committed_rows_of_the_runs_asked_for(spark: Any) -> None:
    from schemas import TABLES

    refused = {"stage": "fetch", "code": "robots_disallowed", "detail": ""}
    data = {
        "fetches": [
            *(rows.fetch(n) for n in ("cat", "clip", "broken", "page", "no page")),
            rows.fetch("refused", bytes=0, error=refused),
        ],
        "documents": [
            *(rows.document(n) for n in ("cat", "clip", "broken")),
            rows.document("refused", media_id=None, media_type=None, error=refused),
            rows.document("cat again", media_id=rows.media_id("cat")),
            rows.document("another run's", media_id=rows.media_id("other")),
            rows.document("page", media_id=None, media_type="page"),
            rows.document("no page", media_id=None, media_type="sitemap", error=refused | {"code": "not_found"}),
            rows.document("page of another run", media_id=None, media_type="page"),
        ],
        "media": [rows.media(n) for n in ("cat", "clip", "broken", "other")],
        "frames": [rows.frame("cat"), rows.frame("clip", 0), rows.frame("clip", 900), rows.frame("other")],
        "features": [
            *rows.understood("cat"),
            *rows.understood("clip"),
            *rows.understood("clip", 900, infer_ms=40.0),
            *rows.failed("broken", "truncated"),
            *rows.understood("other", run_id="another.featurize"),
        ],
        "mentions": [rows.mention("cat"), rows.mention("clip", features=[])],
    }
    tables = {table.name: rows.frame_of(spark, table, data[table.name]) for table in TABLES if table.name in data}
    metrics = measure(tables, ["r.crawl", "r.featurize"])
    assert (metrics.n_documents, metrics.n_pages) == ({"": 5}, {"": 2})
    assert (metrics.n_media, metrics.n_frames, metrics.n_fetches) == ({"": 3}, {"": 3}, {"": 6})
    assert metrics.n_rows == {CONCEPT: 4, OBJECT: 4, ENTITY: 4}
    assert metrics.n_failed == {CONCEPT: 1, OBJECT: 1, ENTITY: 1}
    assert metrics.n_features == {CONCEPT: 6, OBJECT: 3, ENTITY: 3}
    assert metrics.n_errors == {"robots_disallowed": 1, "not_found": 1, "truncated": 3}
    assert metrics.n_mentions == {"caption": 1}
    assert metrics.n_vector_values == {CONCEPT: 3 * 1280, OBJECT: 3 * 256, ENTITY: 3 * 384}
    assert metrics.decode_total_ms == {"": 24.0}  # three decoded frames of 8 ms, whatever looked at them
    assert metrics.infer_total_ms == {CONCEPT: 80.0, OBJECT: 80.0, ENTITY: 80.0}
    assert metrics.document_ms[""].n == 3 and metrics.decode_ms[""].n == 3 and metrics.infer_ms[CONCEPT].n == 3
    assert metrics.fetched_bytes == {"": 5000} and metrics.stored_bytes["media"] == 3000
    assert quality(metrics) == {
        "confident_concept_share": 1.0,
        "objects_per_frame": 1.0,
        "text_found_share": 1.0,
        "entities_per_frame": 1.0,
        "entities_per_document": pytest.approx(4 / 5),
    }
    named = flat(merge(metrics, RunMetrics(wall_s={"featurize": 2.0})), PRICES)
    assert named["errors/truncated"] == 3 and named["throughput/frames_per_s"] == 1.5
    assert named["latency_ms/infer/object_yolov3.tiny.v1/p50"] == pytest.approx(20, rel=0.04)
