"""`fetches`: every attempt to fetch a document, as evidence. Append only."""

import pyarrow as pa

from schemas.errors import ERROR_TYPE
from schemas.table import Table, column

FETCHES = Table(
    name="fetches",
    doc="Every attempt to fetch a document",
    key=("doc_id", "run_id", "attempt"),
    columns=pa.schema(
        [
            column("doc_id", pa.string(), "first 32 hex digits of the SHA-256 of the canonical URL"),
            column("run_id", pa.string(), "the crawl run that made the attempt"),
            column("attempt", pa.int32(), "1 for the first attempt of this document in this run"),
            column("url", pa.string(), "canonical URL"),
            column("final_url", pa.string(), "URL that answered, after redirects", null="nothing answered"),
            column("started_at", pa.timestamp("us", tz="UTC"), "when the attempt began, UTC"),
            column("http_status", pa.int32(), "HTTP status code", null="no HTTP answer, or a file"),
            column("n_requests", pa.int32(), "HTTP requests made, redirects among them, those for robots.txt apart"),
            column("bytes", pa.int64(), "body bytes read, up to the cap"),
            column("ms", pa.float32(), "wall milliseconds from dialling to the last byte, waits for politeness apart"),
            column("wait_ms", pa.float32(), "milliseconds between its host's exchange before it and its own, all hops"),
            column(
                "robots",
                pa.string(),
                "robots.txt decision: allowed, disallowed, absent or unreachable",
                null="a file, which has no robots.txt",
            ),
            column(
                "content_type",
                pa.string(),
                "Content-Type header, which media.mime need not agree with",
                null="not sent",
            ),
            column("etag", pa.string(), "ETag header", null="not sent"),
            column("last_modified", pa.string(), "Last-Modified header as sent", null="not sent"),
            column("x_robots_tag", pa.string(), "X-Robots-Tag header", null="not sent"),
            column("retry_after", pa.string(), "Retry-After header as sent", null="not sent"),
            column("error", ERROR_TYPE, "why it failed", null="it succeeded"),
        ]
    ),
    properties={"delta.dataSkippingStatsColumns": "doc_id,run_id,started_at,http_status"},
)
