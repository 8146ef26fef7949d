"""Rows of the engine's output and how they become Arrow. Knows no model and no Spark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurizers.spec import Features
from jobs.inference import Loaded, Outcome
from schemas.errors import ERROR_TYPE
from schemas.features import FEATURES_TYPE

RESULT_TYPE = pa.struct(
    [
        ("featurizer", pa.string()),
        ("fingerprint", pa.string()),
        ("features", FEATURES_TYPE),
        ("error", ERROR_TYPE),
        ("infer_ms", pa.float32()),
    ]
)
# One row for each frame; of media that cannot be decoded one row with frame 0, no size, and an error in every result.
STAGED = pa.schema(
    [
        pa.field("media_id", pa.string()),
        pa.field("frame", pa.int64()),
        pa.field("time_s", pa.float64()),
        pa.field("shot", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("thumbnail", pa.binary()),
        pa.field("decode_ms", pa.float32()),  # from the encoded bytes to what every featurizer is delivered
        pa.field("results", pa.list_(RESULT_TYPE)),
    ]
)


@dataclass(kw_only=True)
class FrameRow:
    """One row while its results come in; complete when there is one for each of `due`."""

    media_id: str
    due: tuple[str, ...]
    frame: int = 0  # presentation time, milliseconds
    width: int | None = None
    height: int | None = None
    thumbnail: bytes | None = None
    decode_ms: float | None = None
    results: dict[str, tuple[Loaded, Outcome]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """True when every featurizer that is due has had its say."""
        return len(self.results) == len(self.due)

    @property
    def is_failed(self) -> bool:
        """True when a featurizer has an error to say."""
        return any(outcome.error is not None for _, outcome in self.results.values())

    @property
    def size_bytes(self) -> int:
        """About what the row takes in Arrow."""
        found = (outcome.found for _, outcome in self.results.values() if outcome.found is not None)
        return 256 + len(self.thumbnail or b"") + sum(features.vector.nbytes for features in found)


def record_batch(rows: Sequence[FrameRow]) -> pa.RecordBatch:
    """Complete rows as one batch of schema STAGED."""
    results = [row.results[featurizer] for row in rows for featurizer in row.due]
    columns = {
        "media_id": [row.media_id for row in rows],
        "frame": [row.frame for row in rows],
        "time_s": [row.frame / 1000 for row in rows],
        "shot": [None] * len(rows),
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "thumbnail": [row.thumbnail for row in rows],
        "decode_ms": [row.decode_ms for row in rows],
    }
    arrays = [pa.array(values, STAGED.field(name).type) for name, values in columns.items()]
    arrays.append(_lists([len(row.due) for row in rows], _results(results)))
    return pa.RecordBatch.from_arrays(arrays, schema=STAGED)


def _results(results: Sequence[tuple[Loaded, Outcome]]) -> pa.StructArray:
    found = [outcome.found for _, outcome in results]
    counts = [len(features.image) if features is not None else 0 for features in found]
    there = [features for features in found if features is not None]
    return _struct(
        RESULT_TYPE,
        pa.array([loaded.spec.id for loaded, _ in results], pa.string()),
        pa.array([loaded.fingerprint for loaded, _ in results], pa.string()),
        _lists(counts, _features(there), is_null=np.array([features is None for features in found], bool)),
        pa.array([outcome.error for _, outcome in results], ERROR_TYPE),
        pa.array([outcome.infer_ms for _, outcome in results], pa.float32()),
    )


def _features(found: Sequence[Features]) -> pa.StructArray:
    """All features of `found` one after the other, as structs; NaN rows of vector and box become null."""
    labels = [each for features in found for each in features.label or [None] * len(features.image)]
    texts = [each for features in found for each in features.text or [None] * len(features.image)]
    scores = [_optional_rows(features.score, len(features.image)) for features in found]
    boxes = [_optional_rows(features.box, len(features.image), 4) for features in found]
    return _struct(
        FEATURES_TYPE.value_type,
        _vectors([features.vector for features in found]),
        pa.array(labels, pa.string()),
        pa.array(np.concatenate([np.zeros(0, np.float32), *scores]), pa.float32(), from_pandas=True),
        _vectors(boxes),
        pa.array(texts, pa.string()),
    )


def _optional_rows(values: NDArray[np.float32] | None, n: int, *shape: int) -> NDArray[np.float32]:
    return np.full((n, *shape), np.nan, np.float32) if values is None else values


def _vectors(blocks: Sequence[NDArray[np.float32]]) -> pa.ListArray:
    """Rows of blocks, (n, dim) each and dim not the same for all, as lists; a row of NaN is null."""
    named = [~np.isnan(block).all(axis=1) if len(block) else np.zeros(0, bool) for block in blocks]
    counts = [np.where(kept, block.shape[1], 0) for block, kept in zip(blocks, named, strict=True)]
    values = [block[kept].ravel() for block, kept in zip(blocks, named, strict=True)]
    return _lists(
        np.concatenate([np.zeros(0, np.int64), *counts]),
        pa.array(np.concatenate([np.zeros(0, np.float32), *values]), pa.float32()),
        is_null=~np.concatenate([np.zeros(0, bool), *named]),
    )


def _lists(
    counts: Sequence[int] | NDArray[np.int64], values: pa.Array, *, is_null: NDArray[np.bool_] | None = None
) -> pa.ListArray:
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    mask = pa.array(is_null) if is_null is not None else None
    return pa.ListArray.from_arrays(offsets, values, mask=mask)


def _struct(kind: pa.StructType, *arrays: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays(list(arrays), fields=[kind.field(i) for i in range(kind.num_fields)])
