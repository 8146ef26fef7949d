"""`golden`: frozen labelled items that quality is measured on. A version is written once."""

import pyarrow as pa

from schemas.table import Table, column

BOXES_TYPE = pa.list_(pa.struct([("label", pa.string()), ("box", pa.list_(pa.float32())), ("is_crowd", pa.bool_())]))
RELEVANT_TYPE = pa.list_(pa.struct([("media_id", pa.string()), ("gain", pa.float32())]))

GOLDEN = Table(
    name="golden",
    doc="Labelled items that quality is measured on",
    key=("golden_set", "golden_version", "item_id"),
    columns=pa.schema(
        [
            column("golden_set", pa.string(), "name of the set"),
            column("golden_version", pa.int64(), "version of the set, from 1"),
            column("item_id", pa.string(), "the item: a media_id, or a digest of the query"),
            column("kind", pa.string(), "what is known of it: boxes, labels, query, copies or text"),
            column("media_id", pa.string(), "SHA-256 of the media's bytes", null="a query"),
            column("url", pa.string(), "where the media came from", null="not known"),
            column("labels", pa.list_(pa.string()), "classes of which any is right", null="no labels are known"),
            column(
                "boxes",
                BOXES_TYPE,
                "every object: label, box (x0, y0, x1, y1 as fractions of the upright frame), is_crowd (many in one)",
                null="not labelled with boxes",
            ),
            column("query", pa.string(), "text that is searched for", null="not a query"),
            column("relevant", RELEVANT_TYPE, "media that answer the query, with their gain", null="not a query"),
            column("copy_group", pa.string(), "items of one group are copies of one picture", null="not of this kind"),
            column("text", pa.list_(pa.string()), "lines that stand in the picture", null="not known"),
            column("entities", pa.list_(pa.string()), "catalogue ids that the picture names", null="not known"),
            column("slices", pa.map_(pa.string(), pa.string()), "slice -> value: source, size, label group, ..."),
            column("card", pa.string(), "JSON about the set: what it is, licence, number of items, known bias"),
        ]
    ),
    properties={"delta.dataSkippingStatsColumns": "golden_set,golden_version,item_id,media_id"},
)
