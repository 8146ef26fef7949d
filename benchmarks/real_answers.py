"""Real answers of two real variants to the same items, as populations for `benchmarks.statistics`. Starts no Spark.

The items at hand are taken as all there are: comparisons draw from them with replacement, and what the two variants
differ by on all of them is the true difference.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.request import url2pathname

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.config import load_config
from jobs.corpus_metrics import Classes
from jobs.engine import EngineSettings, featurize_media
from jobs.evaluate import Frame, Frames, measurements
from jobs.golden import golden_item
from jobs.golden_labels import Kind, golden_rows, read_items
from jobs.inference import loaded_featurizers
from jobs.paired import Metric, Weights
from jobs.quality import GoldenItem, Measurement
from jobs.work import Due, prepare

SAMPLE = Path(__file__).parent.parent / "build" / "sample"
Variant = tuple[str, int]  # featurizer and evaluate.bridge_labels


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Two variants' answers to a golden set, and the metrics that are taken of them."""

    name: str
    kind: Kind
    labels: Path
    pictures: Path
    variants: tuple[Variant, Variant]
    metrics: tuple[str, ...]
    n_items: int = 200  # of a sample


ONE_LABEL, FIVE_LABELS = ("concept_efficientnet.lite0@1", 1), ("concept_efficientnet.lite0@1", 5)
POOLS = (
    Pool(
        name="captions",
        kind="queries",
        labels=SAMPLE / "golden" / "captions.csv",
        pictures=SAMPLE / "site",
        variants=(ONE_LABEL, FIVE_LABELS),
        metrics=("ndcg_at_10", "mean_reciprocal_rank", "recall_at_10"),
    ),
    Pool(
        name="concepts",
        kind="labels",
        labels=SAMPLE / "golden" / "concepts.csv",
        pictures=SAMPLE / "site",
        variants=(ONE_LABEL, FIVE_LABELS),
        metrics=("top_1", "mean_per_class_accuracy"),
        n_items=400,  # 7 of 118 are answered differently
    ),
    Pool(
        name="signs",
        kind="text",
        labels=SAMPLE / "golden" / "signs.jsonl",
        pictures=SAMPLE / "site",
        variants=(("entity_ocr.rapidocr@1", 1), ("entity_ocr.rapidocr_gated@1", 1)),
        metrics=("character_error_rate", "entity_f1"),
    ),
    Pool(
        name="objects",
        kind="boxes",
        labels=Path(os.environ.get("LAKELENS_DEV_DATA", "")) / "instances.json",
        pictures=Path(os.environ.get("LAKELENS_DEV_DATA", "")) / "images",
        variants=(("object_yolov3.tiny_all@1", 1), ("object_yolov3.tiny_all_int8@1", 1)),
        metrics=("average_precision_50", "box_recall_50", "calibration_error"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Population:
    """One metric of a pool."""

    name: str
    higher_is_better: bool
    metric: Metric  # of weights (R, 2N)
    differs: NDArray[np.bool_]  # (N,): the items that the variants answer differently
    classes: NDArray[np.float64] | None  # (N,): of a mean over classes

    def drawn(self, at: NDArray[np.int64], is_swapped: NDArray[np.bool_]) -> Metric:
        """The metric of the n items `at`, of which those that are swapped have the two variants' answers exchanged."""
        n_pool = len(self.differs)
        columns = np.concatenate([at + n_pool * is_swapped, at + n_pool * ~is_swapped])
        order = np.argsort(columns, kind="stable")
        there, first = np.unique(columns[order], return_index=True)

        def of_drawn(weights: Weights) -> NDArray[np.float64]:
            of_pool = np.zeros((len(weights), 2 * n_pool))
            of_pool[:, there] = np.add.reduceat(weights[:, order], first, axis=1)
            return self.metric(of_pool)

        return of_drawn


def missing(pool: Pool) -> str | None:
    """Why a pool cannot be measured here, or None."""
    if pool.labels.is_file():
        return None
    if pool.name == "objects":
        return "not measured: LAKELENS_DEV_DATA names no folder with instances.json"
    return "not measured: the sample media are not built, run make setup"


@cache
def populations(pool: Pool) -> list[Population]:
    """Each metric of the pool."""
    both = [_measured(pool, variant) for variant in pool.variants]
    found = []
    for metric in pool.metrics:
        one, other = (next(m for m in measured if m.metric == metric) for measured in both)
        found.append(
            Population(
                name=f"{metric} of {pool.name}",
                higher_is_better=one.higher_is_better,
                metric=one.pair(one.data, other.data),
                differs=one.differs(other),
                classes=one.data.columns[1] if isinstance(one.data, Classes) else None,
            )
        )
    return found


def _measured(pool: Pool, variant: Variant) -> list[Measurement]:
    featurizer_id, bridge_labels = variant
    due, frames = _answers(pool, featurizer_id)
    return measurements(due, _items(pool)[0], frames, bridge_labels=bridge_labels)


@cache
def _answers(pool: Pool, featurizer_id: str) -> tuple[Due, Frames]:
    """A featurizer and what the engine finds with it in the pictures of a pool, as jobs take both."""
    chosen = [f"featurize.featurizers=[{featurizer_id}]", "featurize.link_captions=false"]
    config = load_config(assignments=chosen).featurize
    [due] = prepare(config).due
    settings = EngineSettings(max_pixels=config.max_pixels, max_frames_per_video=config.max_frames_per_video)
    found: dict[str, list[Frame]] = {item.media_id: [] for item in _items(pool)[0] if item.media_id is not None}
    loaded = loaded_featurizers([(due.spec, due.paths, due.fingerprint)], "cpu")
    for rows in featurize_media([_media(pool, due)], loaded, settings):
        for row in rows.to_pylist():
            found[row["media_id"]].append(Frame(row["frame"], row["results"][0]["features"]))
    return due, found


def _media(pool: Pool, due: Due) -> pa.RecordBatch:
    """The pictures of a pool as the engine takes them."""
    files = _items(pool)[1]
    nothing = pa.nulls(len(files))
    columns = {
        "media_id": pa.array(list(files)),
        "content": pa.array([file.read_bytes() for file in files.values()]),
        **dict.fromkeys(("pack_uri", "offset", "length", "mime"), nothing),
        "due": pa.array([[due.spec.id]] * len(files)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _items(pool: Pool) -> tuple[list[GoldenItem], dict[str, Path]]:
    """The items as `lakelens golden` makes them, and the file of each media."""
    items = read_items(pool.kind, pool.labels, str(pool.pictures))
    urls = dict.fromkeys(item.url for item in items if item.url is not None)
    files = {url: Path(url2pathname(url.removeprefix("file://"))) for url in urls}
    media_ids = {url: hashlib.sha256(file.read_bytes()).hexdigest() for url, file in files.items()}
    rows = golden_rows(pool.name, pool.kind, items, media_ids, {})
    return [golden_item(row) for row in rows], {media_ids[url]: file for url, file in files.items()}
