"""`mentions`: entities of a document that are not in its pixels: its caption, title and position."""

import pyarrow as pa

from schemas.errors import ERROR_TYPE
from schemas.features import FEATURES_DOC, FEATURES_TYPE
from schemas.table import Table, column

MENTIONS = Table(
    name="mentions",
    doc="Entities that a document's caption, title or position names",
    key=("doc_id", "source", "fingerprint"),
    columns=pa.schema(
        [
            column("doc_id", pa.string(), "the document"),
            column("source", pa.string(), "caption, title or gps"),
            column("featurizer", pa.string(), "spec id of the linker"),
            column("fingerprint", pa.string(), "digest of all that the links depend on, 32 hex digits"),
            column("features", FEATURES_TYPE, FEATURES_DOC, null="it failed, see error; empty means nothing found"),
            column("error", ERROR_TYPE, "why it failed", null="it did not fail"),
            column("run_id", pa.string(), "run that wrote the row"),
            column("wave", pa.int64(), "transaction version of the wave that wrote the row"),
        ]
    ),
    properties={"delta.dataSkippingStatsColumns": "doc_id,source,fingerprint,run_id,wave"},
)
