"""The tables are whole: documented, keyed, rendered to DDL and compared with what is found."""

import dataclasses

import pyarrow as pa
import pytest

from schemas import MEDIA, TABLES, Table
from schemas.errors import DETAIL_LENGTH, RETRYABLE, ErrorCode, error
from schemas.table import column_doc, create_ddl, schema_difference, spark_type


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.name)
def test_every_table_has_documented_columns_and_a_key_of_columns_that_are_never_null(table: Table) -> None:
    assert all(column_doc(field) for field in table.columns)
    assert all("null:" in column_doc(field) for field in table.columns if field.nullable)
    assert [name for name in table.key if table.columns.field(name).nullable] == []
    assert set(table.partition_by) | set(table.cluster_by) <= set(table.columns.names)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.name)
def test_ddl_names_every_column_and_keeps_deletion_vectors_off(table: Table) -> None:
    ddl = create_ddl(table, "/lake/" + table.name)
    assert all(f"`{name}`" in ddl for name in table.columns.names)
    assert "'delta.enableDeletionVectors' = 'false'" in ddl


def test_a_quote_in_a_comment_is_escaped() -> None:
    assert "it\\'s" in create_ddl(dataclasses.replace(MEDIA, doc="it's"), "/x")


def test_the_difference_names_missing_unknown_and_changed_columns() -> None:
    found = {f.name: spark_type(f.type).lower() for f in MEDIA.columns}
    assert schema_difference(MEDIA, found) == []
    found["size_bytes"] = "int"
    found["colour"] = found.pop("camera")
    assert schema_difference(MEDIA, found) == [
        "camera: STRING expected, column missing",
        "colour: string found, column unknown",
        "size_bytes: BIGINT expected, int found",
    ]


def test_a_type_that_no_table_uses_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="int16"):
        spark_type(pa.int16())


def test_an_error_carries_its_stage_and_a_short_detail_on_one_line() -> None:
    row = error(ErrorCode.TRUNCATED, "x\ny " * 200)
    assert (row["stage"], row["code"], len(row["detail"])) == ("decode", "truncated", DETAIL_LENGTH)
    assert "\n" not in row["detail"]


def test_the_retryable_codes_are_those_of_the_contract() -> None:
    assert {str(code) for code in RETRYABLE} == {
        "dns_failure", "connection_failed", "timeout", "rate_limited", "http_server_error", "deferred", "storage",
        "out_of_memory",
    }  # fmt: skip
