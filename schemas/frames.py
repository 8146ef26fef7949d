"""`frames`: the decoded pictures of a media. Append only."""

import pyarrow as pa

from schemas.table import Table, column

FRAMES = Table(
    name="frames",
    doc="Decoded pictures of a media",
    key=("media_id", "frame"),
    columns=pa.schema(
        [
            column("media_id", pa.string(), "SHA-256 of the media's bytes"),
            column("frame", pa.int64(), "presentation time in whole milliseconds; 0 for an image"),
            column("time_s", pa.float64(), "presentation time in seconds"),
            column("shot", pa.int32(), "number of the shot it belongs to, from 0", null="shots were not detected"),
            column("width", pa.int32(), "upright width in pixels"),
            column("height", pa.int32(), "upright height in pixels"),
            column("thumbnail", pa.binary(), "small JPEG of the upright frame"),
        ]
    ),
    properties={"delta.dataSkippingStatsColumns": "media_id,frame"},
)
