"""Which frames a report shows: those in which most was found, no two alike, within a budget. Draws nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MAX_FRAMES_PER_VIDEO = 8
MAX_THUMBNAIL_BYTES = 6_000_000  # of all together: base64 adds a third, and the file stays below 10 MB
CANDIDATES = 4  # times the pictures shown are looked at, for variety
LOOKS_ALIKE = 0.65  # cosine of concept vectors; crops and re-encodings of one photograph are above


def varied(ids: Sequence[str], vectors: Mapping[str, Sequence[float]], limit: int) -> list[str]:
    """At most `limit` of the media, in their order, without those that look like one before them.

    vectors: unit vectors by media_id; a media without one looks like none.
    """
    kept: list[str] = []
    for media_id in ids:
        mine = np.array(vectors.get(media_id, ()), np.float32)
        others = [np.array(vectors[k], np.float32) for k in kept if k in vectors]
        if not mine.size or all(len(other) != len(mine) or mine @ other < LOOKS_ALIKE for other in others):
            kept.append(media_id)
    return kept[:limit]


def chosen_frames(
    tables: Mapping[str, DataFrame], rows: DataFrame, *, videos: bool, limit: int
) -> list[dict[str, Any]]:
    """Frames of at most `limit` media, those in which most was found first, equal ones in the order of their ids."""
    from pyspark.sql import functions as F

    is_video = F.col("mime").startswith("video/")
    media = tables["media"].where(is_video if videos else ~is_video).select("media_id", "duration_s")
    # A picture with something of each kind is worth more than one with many of one kind.
    interest = rows.groupBy("media_id").agg(
        F.sum(F.least(F.expr("coalesce(size(found), 0)"), F.lit(3))).alias("interest"), F.max("fresh").alias("fresh")
    )
    chosen = media.join(interest, on="media_id", how="inner").join(
        tables["frames"].select("media_id").distinct(), on="media_id", how="left_semi"
    )
    order = (F.desc("fresh"), F.desc("interest"), "media_id")
    chosen = chosen.orderBy(*order).limit(limit if videos else CANDIDATES * limit).localCheckpoint()
    if not videos:
        concepts = (
            tables["features"]
            .where(F.col("featurizer").startswith("concept_") & F.expr("size(features) > 0"))
            .select("media_id", F.expr("features[0].vector").alias("vector"))
            .join(F.broadcast(chosen.select("media_id")), on="media_id", how="inner")
        )
        vectors = {row.media_id: row.vector for row in concepts.collect() if row.vector is not None}
        ids = [row.media_id for row in chosen.orderBy(*order).collect()]
        chosen = chosen.where(F.col("media_id").isin(varied(ids, vectors, limit)))
    frames = tables["frames"].join(F.broadcast(chosen), on="media_id", how="inner")
    found = [row.asDict() for row in frames.collect()]
    return sorted(found, key=lambda f: (not f["fresh"], -f["interest"], f["media_id"], f["frame"]))


def within_budget(frames: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Frames until their thumbnails together reach MAX_THUMBNAIL_BYTES, at most MAX_FRAMES_PER_VIDEO of a media."""
    kept: list[dict[str, Any]] = []
    n_bytes = 0
    n_of: dict[str, int] = {}
    for frame in frames:
        n_of[frame["media_id"]] = n_of.get(frame["media_id"], 0) + 1
        too_large = n_bytes + len(frame["thumbnail"]) > MAX_THUMBNAIL_BYTES
        if n_of[frame["media_id"]] <= MAX_FRAMES_PER_VIDEO and not too_large:
            n_bytes += len(frame["thumbnail"])
            kept.append(frame)
    return kept
