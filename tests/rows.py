"""Valid rows of every table with the values a test is about laid over them. Knows the tables, not what judges them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from schemas import Table
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CONCEPT, OBJECT, ENTITY = "concept_efficientnet.lite0@1", "object_yolov3.tiny@1", "entity_ocr.rapidocr_gated@1"
FINGERPRINTS = {name: hashlib.sha256(name.encode()).hexdigest()[:32] for name in (CONCEPT, OBJECT, ENTITY)}
LINKER, LINKER_FINGERPRINT = "linking.minilm@1", "0123456789abcdef0123456789abcdef"
Row = dict[str, Any]


def media_id(name: str) -> str:
    """The id of a media whose bytes are the name."""
    return hashlib.sha256(name.encode()).hexdigest()


def unit(dim: int, at: int = 0) -> list[float]:
    """A unit vector along an axis."""
    return [1.0 if i == at else 0.0 for i in range(dim)]


def jpeg(colour: tuple[int, int, int] = (180, 190, 200), size: tuple[int, int] = (64, 48)) -> bytes:
    """A small JPEG of one colour."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


def document(name: str, **changed: Any) -> Row:
    """A fetched picture at http://example.org/<name>.jpg."""
    url = f"http://example.org/{name}.jpg"
    row: Row = {
        "doc_id": hashlib.sha256(url.encode()).hexdigest()[:32], "url": url, "host": "example.org", "host_bucket": 7,
        "source": "web", "media_type": "image", "media_id": media_id(name), "fetched_at": NOW, "opted_out": False,
        "n_gone": 0,
    }  # fmt: skip
    return row | changed


def fetch(name: str, run_id: str = "r.crawl", **changed: Any) -> Row:
    """The one attempt that fetched `document(name)`."""
    row = document(name)
    return {
        "doc_id": row["doc_id"], "run_id": run_id, "attempt": 1, "url": row["url"], "final_url": row["url"],
        "started_at": NOW, "http_status": 200, "n_requests": 1, "bytes": 1000, "ms": 12.5, "wait_ms": 0.0,
        "robots": "allowed",
    } | changed  # fmt: skip


def media(name: str, **changed: Any) -> Row:
    """The media of `document(name)`, bytes inline."""
    row: Row = {
        "media_id": media_id(name), "content": name.encode(), "mime": "image/jpeg", "size_bytes": 1000, "width": 640,
        "height": 480, "ingested_at": NOW,
    }  # fmt: skip
    return row | changed


def frame(name: str, ms: int = 0, **changed: Any) -> Row:
    """A frame of `media(name)` at `ms` milliseconds."""
    row: Row = {
        "media_id": media_id(name), "frame": ms, "time_s": ms / 1000, "width": 640, "height": 480, "thumbnail": jpeg(),
    }  # fmt: skip
    return row | changed


def found(dim: int | None = None, **changed: Any) -> Row:
    """One feature, with a unit vector of `dim` values."""
    row: Row = {"vector": unit(dim) if dim else None, "label": None, "score": None, "box": None, "text": None}
    return row | changed


def feature(name: str, featurizer: str, features: Sequence[Row] | None, ms: int = 0, **changed: Any) -> Row:
    """A row of `features`: what `featurizer` found in a frame."""
    row: Row = {
        "media_id": media_id(name), "frame": ms, "featurizer": featurizer, "fingerprint": FINGERPRINTS[featurizer],
        "features": features, "error": None, "decode_ms": 8.0, "infer_ms": 20.0, "run_id": "r.featurize", "wave": 0,
    }  # fmt: skip
    return row | changed


def understood(name: str, ms: int = 0, **changed: Any) -> list[Row]:
    """The rows of three featurizers for one frame."""
    classes = [found(1280, label="tabby cat", score=0.7), found(label="lynx", score=0.1)]
    box = [0.25, 0.25, 0.75, 0.75]
    texts = [found(384, label="geonames:2950159", text="Berlin", score=0.9, box=[0.1, 0.1, 0.4, 0.2])]
    return [
        feature(name, CONCEPT, classes, ms, **changed),
        feature(name, OBJECT, [found(256, label="cat", score=0.9, box=box)], ms, **changed),
        feature(name, ENTITY, texts, ms, **changed),
    ]


def failed(name: str, code: str, *, stage: str = "decode", detail: str = "", **changed: Any) -> list[Row]:
    """The rows of three featurizers for a media that could not be decoded."""
    error = {"stage": stage, "code": code, "detail": detail}
    rows = [feature(name, featurizer, None, error=error) for featurizer in FINGERPRINTS]
    return [row | {"decode_ms": None, "infer_ms": None} | changed for row in rows]


def mention(name: str, source: str = "caption", **changed: Any) -> Row:
    """What the caption of `document(name)` names."""
    return {
        "doc_id": document(name)["doc_id"], "source": source, "featurizer": LINKER, "fingerprint": LINKER_FINGERPRINT,
        "features": [found(384, label="geonames:2950159", text="Berlin", score=0.9)], "error": None,
        "run_id": "r.featurize", "wave": 0,
    } | changed  # fmt: skip


def takedown(kind: str, value: str, **changed: Any) -> Row:
    """An entry of `takedowns`, added by `r.takedown`."""
    row: Row = {"kind": kind, "value": value, "reason": "their lawyer wrote", "requested_by": "Ada"}
    return row | {"added_at": NOW, "run_id": "r.takedown"} | changed


def host(name: str = "example.org", **changed: Any) -> Row:
    """A host that has no robots.txt and was asked twice, once with an answer."""
    row: Row = {
        "host": name, "domain": name, "host_bucket": 7, "robots_status": "absent", "robots_at": NOW, "n_failures": 1,
        "requests": 2, "errors": 1, "bytes": 1000, "wait_s": 1.5, "busy_s": 0.25, "first_seen_at": NOW,
        "last_asked_at": NOW, "run_id": "r.crawl",
    }  # fmt: skip
    return row | changed


def run_row(run_id: str, job: str, **changed: Any) -> Row:
    """A finished run."""
    outputs = dict(FINGERPRINTS) if job == "featurize" else {}
    row: Row = {
        "run_id": run_id, "job": job, "owner": "0" * 16, "status": "finished", "started": NOW, "heartbeat": NOW,
        "ended": NOW, "covers": [], "inputs": {}, "outputs": outputs, "metrics": {}, "whole_plan": True,
        "config_digest": "", "code_version": "0",
    }  # fmt: skip
    return row | changed


def frame_of(spark: SparkSession, table: Table, rows: Sequence[Row]) -> DataFrame:
    """Rows as a Spark frame with the table's schema; columns a row lacks are null."""
    names = table.columns.names
    unknown = {name for row in rows for name in row} - set(names)
    assert not unknown, f"{table.name} has no column {unknown}"

    def value(row: Row, name: str) -> Any:
        if table.name in ("features", "mentions") and name == "features" and row.get(name) is not None:
            return [tuple(f[key] for key in ("vector", "label", "score", "box", "text")) for f in row[name]]
        return row.get(name)

    return spark.createDataFrame([tuple(value(row, name) for name in names) for row in rows], schema_ddl(table.columns))
