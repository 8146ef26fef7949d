"""`hosts`: what crawls know of each host: its robots.txt, when it may be asked, how it has answered."""

import pyarrow as pa

from schemas.documents import N_HOST_BUCKETS
from schemas.table import Table, column

ROBOTS_STATUSES = ("found", "absent")

HOSTS = Table(
    name="hosts",
    doc="What crawls know of each host",
    key=("host",),
    columns=pa.schema(
        [
            column("host", pa.string(), "host of documents, with its port unless that is the scheme's own"),
            column("domain", pa.string(), "registrable domain of the host, all of which one task asks"),
            column("host_bucket", pa.int32(), f"hash of the host modulo {N_HOST_BUCKETS}"),
            column("robots", pa.string(), "robots.txt, decoded, at most 500 KiB", null="none, or never had"),
            column("robots_status", pa.string(), ", ".join(ROBOTS_STATUSES), null="never had"),
            column("robots_origin", pa.string(), "scheme, host and port that it speaks for", null="never had"),
            column("robots_at", pa.timestamp("us", tz="UTC"), "when it was had, UTC; kept 24 hours", null="never had"),
            column("crawl_delay_s", pa.float64(), "Crawl-delay of robots.txt, seconds", null="it names none"),
            column("next_ok_at", pa.timestamp("us", tz="UTC"), "not to be asked before, UTC", null="at any time"),
            column("closed_until", pa.timestamp("us", tz="UTC"), "left alone until then, UTC", null="it is not"),
            column("closed_reason", pa.string(), "why it is left alone", null="it is not"),
            column("leave_s", pa.float64(), "seconds it is left alone for the next time", null="as the first time"),
            column("n_failures", pa.int32(), "attempts in a row that no answer came to"),
            column("backoff_s", pa.float64(), "present wait after HTTP 429 or 503, seconds", null="there is none"),
            column("requests", pa.int64(), "requests ever made, those for robots.txt and redirects among them"),
            column("errors", pa.int64(), "attempts that ended in an error, ever"),
            column("bytes", pa.int64(), "body bytes ever read from it"),
            column("wait_s", pa.float64(), "seconds its requests have waited for politeness, in all"),
            column("busy_s", pa.float64(), "seconds its requests have taken from dialling to the last byte, in all"),
            column("first_seen_at", pa.timestamp("us", tz="UTC"), "when it was first met, UTC"),
            column("last_asked_at", pa.timestamp("us", tz="UTC"), "begin of its last request, UTC", null="never asked"),
            column("run_id", pa.string(), "the last run that asked it", null="never asked"),
        ]
    ),
    cluster_by=("host_bucket",),
    properties={"delta.dataSkippingStatsColumns": "host_bucket,host,next_ok_at,closed_until,last_asked_at"},
)
