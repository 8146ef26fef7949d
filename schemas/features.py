"""`features`: what a featurizer found in a frame, or why it found nothing. Partitioned by featurizer."""

import pyarrow as pa

from schemas.errors import ERROR_TYPE
from schemas.table import Table, column

FEATURES_TYPE = pa.list_(
    pa.struct(
        [
            ("vector", pa.list_(pa.float32())),
            ("label", pa.string()),
            ("score", pa.float32()),
            ("box", pa.list_(pa.float32())),
            ("text", pa.string()),
        ]
    )
)
FEATURES_DOC = (
    "what was found, best first: vector (float32, unit L2 norm; null where the feature only names something), "
    "label (class, concept or catalogue id), score in [0, 1], box (x0, y0, x1, y1 as fractions of the upright "
    "frame), text (what was read)"
)

FEATURES = Table(
    name="features",
    doc="What each featurizer found in each frame",
    key=("media_id", "frame", "featurizer", "fingerprint"),
    columns=pa.schema(
        [
            column("media_id", pa.string(), "SHA-256 of the media's bytes"),
            column("frame", pa.int64(), "presentation time in whole milliseconds; 0 for an image"),
            column("featurizer", pa.string(), "spec id, such as concept_efficientnet.lite0@1"),
            column("fingerprint", pa.string(), "digest of all that the vectors depend on, 32 hex digits"),
            column("features", FEATURES_TYPE, FEATURES_DOC, null="it failed, see error; empty means nothing found"),
            column("error", ERROR_TYPE, "why it failed", null="it did not fail"),
            column("decode_ms", pa.float32(), "milliseconds to decode the frame", null="never decoded"),
            column(
                "infer_ms", pa.float32(), "batch time over images in the batch, milliseconds", null="never inferred"
            ),
            column("run_id", pa.string(), "run that wrote the row"),
            column("wave", pa.int64(), "transaction version of the wave that wrote the row"),
        ]
    ),
    partition_by=("featurizer",),
    properties={"delta.dataSkippingStatsColumns": "media_id,frame,fingerprint,run_id,wave"},
)
