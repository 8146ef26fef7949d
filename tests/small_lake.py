"""A small lake with a row for each thing a reader may meet, made without a model. Knows tables, not their readers."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.lake import Lake, append, lake_at, open_lake
from jobs.packs import Packs
from schemas import DOCUMENTS, EVALUATIONS, FEATURES, FETCHES, FRAMES, GOLDEN, MEDIA, MENTIONS, RUNS
from tests import rows
from tests.rows import CONCEPT, FINGERPRINTS, OBJECT
from tests.test_check import NAMES, sound_tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LARGE = b"the bytes of a clip, above what a row holds"
LARGE_ID = hashlib.sha256(LARGE).hexdigest()
TRIED = "9" * 32  # a fingerprint of the detector that a check has rejected
TRUNCATED = NAMES[0]  # of the pictures the one that cannot be decoded


def packs_of(lake: Lake) -> Packs:
    """Where the lake keeps what is too large for a row."""
    return Packs(uri=lake.packs(), partial_uri=lake.staging("small/packs"), inline_bytes=0)


def golden_item(item_id: str, **changed: Any) -> rows.Row:
    """An item of version 1 of a set of eleven pictures and two queries."""
    card = json.dumps({"items": 13, "kind": "queries", "licence": "CC0"}, sort_keys=True)
    return {"golden_set": "few", "golden_version": 1, "item_id": item_id, "card": card, "slices": {}} | changed


def make(spark: SparkSession, folder: Path) -> Lake:
    """Twelve pictures (one refused, one truncated) and a clip held by reference, featurized, judged and measured."""
    lake = open_lake(spark, str(folder))
    tables = sound_tables()
    uri = packs_of(lake).store(io.BytesIO(LARGE), media_id=LARGE_ID, size_bytes=len(LARGE))
    clip = rows.document("clip", media_id=LARGE_ID, media_type="video", host="other.example", caption="A day in Berlin")
    tables["documents"].append(clip)
    tables["fetches"].append(rows.fetch("clip"))
    tables["media"].append(
        rows.media("clip", media_id=LARGE_ID, content=None, pack_uri=uri, offset=0, length=len(LARGE))
        | {"size_bytes": len(LARGE), "mime": "video/mp4", "latitude": 52.5, "longitude": 13.4}
    )
    tables["frames"] += [rows.frame("clip", ms, media_id=LARGE_ID) for ms in (0, 400)]
    tables["features"] += [row for ms in (0, 400) for row in rows.understood("clip", ms, media_id=LARGE_ID)]
    tables["mentions"].append(rows.mention("clip"))
    tried = rows.feature(NAMES[1], OBJECT, [], fingerprint=TRIED, run_id="tried.featurize")
    tables["features"].append(tried)
    fine = NAMES[:-1]
    queries = {"q1": NAMES[1:4], "q2": NAMES[4:6]}
    golden = [golden_item(rows.media_id(name), kind="queries", media_id=rows.media_id(name)) for name in fine]
    golden += [
        golden_item(item, kind="queries", query=item, relevant=[(rows.media_id(name), 1.0) for name in found])
        for item, found in queries.items()
    ]
    measured = {"run_id": "r.evaluate", "featurizer": CONCEPT, "fingerprint": FINGERPRINTS[CONCEPT], "value": 0.5}
    evaluations = [
        measured | {"golden_set": "few", "golden_version": 1, "metric": "recall_at_1", "item_id": item}
        for item in queries
    ]
    later = {"started": rows.NOW + timedelta(hours=1), "inputs": {"features": 1, "media": 1}}
    runs = [
        rows.run_row("r.crawl", "crawl", status="accepted"),
        rows.run_row("r.featurize", "featurize", status="accepted", inputs={"media": 1, "documents": 1}),
        rows.run_row("r.check", "check", status="accepted", covers=["r.crawl", "r.featurize"]),
        rows.run_row("tried.featurize", "featurize", status="rejected", outputs={OBJECT: TRIED}, **later),
        rows.run_row("tried.check", "check", status="rejected", covers=["tried.featurize"], **later),
        rows.run_row("r.evaluate", "evaluate", **later),
        rows.run_row("r.promote", "promote", status="accepted", outputs={CONCEPT: FINGERPRINTS[CONCEPT]}, **later),
    ]
    for table in (FETCHES, DOCUMENTS, MEDIA, FRAMES, FEATURES, MENTIONS):
        append(rows.frame_of(spark, table, tables[table.name]).coalesce(1), lake, table)
    numbered: dict[str, Any] = {"app_id": "golden/few", "transaction": 0}
    append(rows.frame_of(spark, GOLDEN, golden).coalesce(1), lake, GOLDEN, **numbered)
    append(rows.frame_of(spark, EVALUATIONS, evaluations).coalesce(1), lake, EVALUATIONS)
    append(rows.frame_of(spark, RUNS, runs).coalesce(1), lake, RUNS)
    return lake


def copied(lake: Lake, folder: Path) -> Lake:
    """A lake of one's own; the clip's row still names the object of the first."""
    shutil.copytree(lake.uri.removeprefix("file://"), folder)
    return lake_at(str(folder))
