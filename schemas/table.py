"""What a table is: a name, a key, documented columns and Delta properties. Knows pyarrow, not Spark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

MAX_RETENTION_DAYS = 30  # of old versions: as long as Delta keeps its log

BASE_PROPERTIES: Mapping[str, str] = {
    "delta.enableDeletionVectors": "false",  # most engines other than Spark, and `deltalake`, refuse tables with them
    # So long a version's removed files are known, and VACUUM can be told to keep them.
    "delta.deletedFileRetentionDuration": f"interval {MAX_RETENTION_DAYS} days",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """One Delta table of a lake; `columns` is its only definition, DDL is rendered from it."""

    name: str
    doc: str
    key: tuple[str, ...]
    columns: pa.Schema
    partition_by: tuple[str, ...] = ()
    cluster_by: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)

    def all_properties(self) -> dict[str, str]:
        """Delta table properties, with those every table has."""
        return {**BASE_PROPERTIES, **self.properties}


def column(name: str, type_: pa.DataType, doc: str, *, null: str | None = None) -> pa.Field:
    """A documented column; `null` says what a null means, and its absence that there is none."""
    text = doc if null is None else f"{doc}; null: {null}"
    return pa.field(name, type_, nullable=null is not None, metadata={"doc": text})


def column_doc(column: pa.Field) -> str:
    """The doc string of a column made by `column`."""
    metadata: Mapping[bytes, bytes] = column.metadata or {}
    return metadata.get(b"doc", b"").decode()


_SPARK_NAMES: Mapping[pa.DataType, str] = {
    pa.string(): "STRING",
    pa.binary(): "BINARY",
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INT",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP",
}


def spark_type(type_: pa.DataType) -> str:
    """The Spark SQL name of an Arrow type; raises ValueError for a type no table uses."""
    if pa.types.is_list(type_):
        return f"ARRAY<{spark_type(type_.value_type)}>"
    if pa.types.is_struct(type_):
        return "STRUCT<" + ", ".join(f"{f.name}: {spark_type(f.type)}" for f in type_) + ">"
    if pa.types.is_map(type_):
        return f"MAP<{spark_type(type_.key_type)}, {spark_type(type_.item_type)}>"
    if type_ not in _SPARK_NAMES:
        raise ValueError(f"Arrow type {type_} has no Spark name here; use one of {sorted(map(str, _SPARK_NAMES))}")
    return _SPARK_NAMES[type_]


def schema_ddl(columns: pa.Schema) -> str:
    """`name TYPE, ...` without comments, as `mapInArrow` and `createDataFrame` take it."""
    return ", ".join(f"`{f.name}` {spark_type(f.type)}" for f in columns)


def create_ddl(table: Table, uri: str) -> str:
    """CREATE TABLE IF NOT EXISTS for the table's folder `uri`, with comments and properties."""

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ",\n  ".join(
        f"`{f.name}` {spark_type(f.type)}{'' if f.nullable else ' NOT NULL'} COMMENT {quoted(column_doc(f))}"
        for f in table.columns
    )
    parts = [f"CREATE TABLE IF NOT EXISTS delta.`{uri}` (\n  {lines}\n) USING DELTA", f"COMMENT {quoted(table.doc)}"]
    if table.partition_by:
        parts.append(f"PARTITIONED BY ({', '.join(table.partition_by)})")
    if table.cluster_by:
        parts.append(f"CLUSTER BY ({', '.join(table.cluster_by)})")
    pairs = ", ".join(f"{quoted(k)} = {quoted(v)}" for k, v in sorted(table.all_properties().items()))
    parts.append(f"TBLPROPERTIES ({pairs})")
    return "\n".join(parts)


def schema_difference(table: Table, found: Mapping[str, str]) -> list[str]:
    """What differs between a table and `found`, a mapping of column name to Spark type name.

    Empty when they agree; each line names the column, what was expected and what is there.
    """

    def plain(type_name: str) -> str:
        return type_name.lower().replace(" ", "").replace("`", "")

    expected = {f.name: spark_type(f.type) for f in table.columns}
    lines = [f"{name}: {type_} expected, column missing" for name, type_ in expected.items() if name not in found]
    lines += [f"{name}: {found[name]} found, column unknown" for name in found if name not in expected]
    lines += [
        f"{name}: {type_} expected, {found[name]} found"
        for name, type_ in expected.items()
        if name in found and plain(type_) != plain(found[name])
    ]
    return lines
