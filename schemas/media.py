"""`media`: the bytes, once for each distinct content. Append only; never merged, optimised or compacted."""

import pyarrow as pa

from schemas.table import Table, column

MEDIA = Table(
    name="media",
    doc="Media bytes, stored once for each distinct content",
    key=("media_id",),
    columns=pa.schema(
        [
            column("media_id", pa.string(), "SHA-256 of the bytes, 64 hex digits"),
            column("content", pa.binary(), "the bytes", null="held by reference"),
            column("pack_uri", pa.string(), "full URI of the file that holds the bytes", null="held inline"),
            column("offset", pa.int64(), "first byte in that file", null="held inline"),
            column("length", pa.int64(), "bytes in that file", null="held inline"),
            column("mime", pa.string(), "MIME type by content"),
            column("size_bytes", pa.int64(), "size in bytes"),
            column("width", pa.int32(), "upright width in pixels, from the header", null="header not readable"),
            column("height", pa.int32(), "upright height in pixels, from the header", null="header not readable"),
            column("duration_s", pa.float64(), "duration in seconds", null="an image, or not stated"),
            column("ingested_at", pa.timestamp("us", tz="UTC"), "when it was stored, UTC"),
            column(
                "taken_at",
                pa.timestamp("us", tz="UTC"),
                "EXIF time of exposure; taken as UTC where the camera wrote no offset",
                null="not stated",
            ),
            column("latitude", pa.float64(), "EXIF latitude, degrees north", null="not stated"),
            column("longitude", pa.float64(), "EXIF longitude, degrees east", null="not stated"),
            column("camera", pa.string(), "EXIF make and model", null="not stated"),
        ]
    ),
    properties={"delta.dataSkippingStatsColumns": "media_id,size_bytes,ingested_at,mime"},
)
