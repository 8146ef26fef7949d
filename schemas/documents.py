"""`documents`: the current state of each document, and so the frontier. No bytes in it."""

import pyarrow as pa

from schemas.errors import ERROR_TYPE
from schemas.table import Table, column

N_HOST_BUCKETS = 1024  # a MERGE of one wave touches the files of its buckets only

DOCUMENTS = Table(
    name="documents",
    doc="The current state of each document",
    key=("doc_id",),
    columns=pa.schema(
        [
            column("doc_id", pa.string(), "first 32 hex digits of the SHA-256 of the canonical URL"),
            column("url", pa.string(), "canonical URL; file:// URI for a file of a folder"),
            column("host", pa.string(), "host and port of the URL; empty for a file"),
            column("host_bucket", pa.int32(), f"hash of the host modulo {N_HOST_BUCKETS}"),
            column("source", pa.string(), "name of the configured source it came from"),
            column("page_url", pa.string(), "page that shows it or leads to it", null="not known"),
            column("page_title", pa.string(), "title of that page", null="not known"),
            column("caption", pa.string(), "caption or alternative text", null="not known"),
            column(
                "media_type",
                pa.string(),
                "image or video; page or sitemap of a site that is crawled",
                null="nothing was had",
            ),
            column("media_id", pa.string(), "SHA-256 of its bytes", null="no media was obtained"),
            column(
                "depth", pa.int32(), "of a page, links from where its site is entered", null="not a page or sitemap"
            ),
            column("final_url", pa.string(), "URL that it was had from", null="its own, or never had"),
            column("moved_to", pa.string(), "URL on another host that its answer led to", null="nothing to follow"),
            column("etag", pa.string(), "ETag of the answer it was had by", null="not sent"),
            column("last_modified", pa.string(), "Last-Modified of that answer as sent", null="not sent"),
            column("fetched_at", pa.timestamp("us", tz="UTC"), "last attempt, UTC", null="never tried"),
            column("next_fetch_at", pa.timestamp("us", tz="UTC"), "not to be fetched before, UTC", null="not again"),
            column(
                "recrawl_s",
                pa.float64(),
                "seconds from its last success to the next fetch planned",
                null="never obtained",
            ),
            column("n_gone", pa.int32(), "final errors in a row, such as 404: after a few it is given up"),
            column("opted_out", pa.bool_(), "its publisher refuses this use"),
            column("license", pa.string(), "licence URL or name", null="not known"),
            column("error", ERROR_TYPE, "why there is no media", null="there is one, or it is a page or sitemap"),
        ]
    ),
    cluster_by=("host_bucket",),
    properties={"delta.dataSkippingStatsColumns": "host_bucket,doc_id,source,fetched_at,next_fetch_at"},
)
