"""`takedowns`: what is never fetched or stored again, with who asked for it and why. An entry is written once."""

import pyarrow as pa

from schemas.table import Table, column

TAKEDOWN_KINDS = ("url", "host", "hash")

TAKEDOWNS = Table(
    name="takedowns",
    doc="What is never fetched or stored again",
    key=("kind", "value"),
    columns=pa.schema(
        [
            column("kind", pa.string(), ", ".join(TAKEDOWN_KINDS)),
            column(
                "value",
                pa.string(),
                "canonical URL, or host in punycode without port, for all hosts below it too, or media_id",
            ),
            column("reason", pa.string(), "why, as whoever added it says", null="not said"),
            column("requested_by", pa.string(), "who asked for it, as whoever added it says", null="not said"),
            column("added_at", pa.timestamp("us", tz="UTC"), "when it was first added, UTC"),
            column("run_id", pa.string(), "the run that added it"),
        ]
    ),
    properties={"delta.dataSkippingStatsColumns": "kind,value,added_at"},
)
