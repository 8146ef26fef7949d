"""Shards of WebDataset and tables as sightings: tar and Parquet files that hold media or where to find them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from jobs.archives import Window, bytes_of, content_column, rows_per_batch
from jobs.crawl_archives import LIST_BYTES, Damaged, declares_media, has_media_suffix, opened
from jobs.sources import (
    DESCRIPTION,
    Part,
    Row,
    Sighting,
    SourceError,
    Stamp,
    beside,
    damage,
    member_url,
    named,
    row_sighting,
)
from jobs.urls import MEDIA_SUFFIXES, doc_id

MAX_SIDECAR_BYTES = 1 << 20  # of what a sample says of itself
CAPTIONS = (".txt", ".caption")
PLACE = ("warc_filename", "warc_record_offset", "warc_record_length")
# Of Common Crawl's index, what tells records of pages apart.
MIMES, STATUS = ("content_mime_type", "content_mime_detected"), "fetch_status"
UNKNOWN = frozenset({"", "application/octet-stream", "binary/octet-stream", "unk"})  # types that say nothing
BATCH_ROWS = 10_000


# -- WebDataset ---------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """The members of a tar that follow each other and share the path up to the first dot of their name."""

    key: str
    media: tarfile.TarInfo | None = None
    said: dict[str, Any] = field(default_factory=dict)
    caption: str | None = None


def shard_sightings(part: Part) -> Iterator[Sighting]:
    """The first picture or video of each sample of a tar, and what is damaged. Raises SourceError.

    A sample's .json says url, caption, page_url, page_title and license; .txt and .caption are its caption where the
    .json has none. Samples without a picture or video are left out.
    """
    with opened(part) as (window, stamp):
        sample = Sample(key="")
        try:
            buffered = io.BufferedReader(window, LIST_BYTES)
            for member in whole_members(window, buffered):
                folder, _, name = member.name.rpartition("/")
                if name.startswith("."):
                    continue
                stem, dot, extension = name.partition(".")
                if (key := f"{folder}/{stem}") != sample.key:
                    yield from _sample_sightings(sample, part, stamp)
                    sample = Sample(key=key)
                _add(sample, member, f"{dot}{extension}".lower(), buffered)
        except Damaged as e:
            yield from _sample_sightings(sample, part, stamp)
            yield damage(part, e.at, e, stamp)
        else:
            yield from _sample_sightings(sample, part, stamp)


def whole_members(window: Window, file: io.BufferedReader[Window]) -> Iterator[tarfile.TarInfo]:
    """The files in a tar that are there as a whole. Raises OSError where the store fails, Damaged at what is broken."""
    at = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or all of a shard stay in memory
                if member.size < 0 or tar.offset <= at:
                    raise Damaged(at, f"the size of member {member.name[:100]!r} is {member.size}")
                if member.offset_data + member.size > window.length:
                    raise Damaged(member.offset, f"member {member.name[:100]!r} is cut")
                if member.isreg():
                    yield member
                at = tar.offset
            file.seek(at)
            if (end := file.read(tarfile.BLOCKSIZE)) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise Damaged(
                    at, "what follows is no member of a tar" if end.strip(tarfile.NUL) else "the tar has no end"
                )
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as e:
        raise Damaged(at, f"no member of a tar: {str(e)[:100]}") from e


def _add(sample: Sample, member: tarfile.TarInfo, extension: str, file: io.BufferedReader[Window]) -> None:
    suffix = PurePosixPath(f"x{extension}").suffix
    if suffix in MEDIA_SUFFIXES and sample.media is None:
        sample.media = member
    elif suffix == ".json" and member.size <= MAX_SIDECAR_BYTES:
        try:
            said = json.loads(_text(member, file))
        except (ValueError, RecursionError):
            said = None
        sample.said = dict(named(said)) if isinstance(said, dict) else sample.said
    elif suffix in CAPTIONS:
        sample.caption = _text(member, file)


def _text(member: tarfile.TarInfo, file: io.BufferedReader[Window]) -> str:
    file.seek(member.offset_data)
    return file.read(min(member.size, MAX_SIDECAR_BYTES)).decode("utf-8-sig", "replace")


def _sample_sightings(sample: Sample, part: Part, stamp: Stamp) -> Iterator[Sighting]:
    media = sample.media
    if media is None:
        return
    said = sample.said | {"caption": sample.said.get("caption") or sample.caption}
    if media.issparse():
        yield row_sighting({"url": member_url(part, media.name), "problem": "a sparse member of a tar"}, part)
        return
    place = {"root": part.uri, "held_as": "tar", "offset": media.offset_data, "length": media.size, **stamp}
    yield row_sighting(said, part, own_url=member_url(part, media.name), held=place)


# -- tables -------------------------------------------------------------------------------------------------------


def table_sightings(part: Part) -> Iterator[Sighting]:
    """The rows of a Parquet file. Raises SourceError.

    A row with bytes (`archives.content_column`) is held by the table, one with Common Crawl's columns of a WARC record
    by that record, any other is fetched from its url. Pages in Common Crawl's index are left out.
    """
    with opened(part) as (window, stamp):
        try:
            parquet = pyarrow.parquet.ParquetFile(window, buffer_size=LIST_BYTES, pre_buffer=False)
            yield from _table(parquet, part, stamp)
        except pa.ArrowException as e:
            raise SourceError(f"{part.where} cannot be read: {e}") from e


def _table(parquet: pyarrow.parquet.ParquetFile, part: Part, stamp: Stamp) -> Iterator[Sighting]:
    names = {name.strip().lower(): name for name in parquet.schema_arrow.names}
    content = content_column(parquet.schema_arrow)
    is_index = all(name in names for name in PLACE)
    if is_index and part.archive is None:
        raise SourceError(f"{part.where} names records of WARC files; say in `archive` under which URI those are")
    if "url" not in names and content is None:
        found = ", ".join(parquet.schema_arrow.names)
        raise SourceError(f"{part.where} has neither a column url nor one of bytes; it has {found or 'none'}")
    known = ("url", *DESCRIPTION, *((*PLACE, *MIMES, STATUS) if is_index else ()))
    wanted = [names[name] for name in known if name in names]
    number = 0
    for group in range(parquet.metadata.num_row_groups):
        for row, has_bytes in _rows(parquet, group, wanted, None if is_index else content):
            if has_bytes:
                place: dict[str, Any] = {"root": part.uri, "held_as": "parquet", "offset": number, **stamp}
                yield row_sighting(row, part, own_url=member_url(part, str(number)), held=place)
            elif is_index and row.get(PLACE[0]) is not None:
                yield from _index_sightings(row, part)
            elif row.get("url") is None:
                problem = "the row has neither a url nor bytes"
                yield row_sighting({"url": member_url(part, str(number)), "problem": problem}, part)
            else:
                yield row_sighting(row, part)
            number += 1


def _rows(
    parquet: pyarrow.parquet.ParquetFile, group: int, wanted: list[str], content: tuple[str, str] | None
) -> Iterator[tuple[Row, bool]]:
    """The rows of a row group, and whether each has bytes, which are read only where its statistics do not tell."""
    has_bytes = _have_bytes(parquet.metadata.row_group(group), content)
    columns, size = wanted, BATCH_ROWS
    if has_bytes is None and content is not None:
        columns, size = [*wanted, content[1]], rows_per_batch(parquet.metadata, group, content[1])
    if not columns:
        yield from (({}, bool(has_bytes)) for _ in range(parquet.metadata.row_group(group).num_rows))
        return
    for batch in parquet.iter_batches(size, row_groups=[group], columns=columns):
        if has_bytes is None and content is not None:
            there = bytes_of(batch.column(content[0])).is_valid().to_pylist()
        else:
            there = [bool(has_bytes)] * batch.num_rows
        yield from zip(map(named, batch.select(wanted).to_pylist()), there, strict=True)


def _have_bytes(rows: pa.parquet.RowGroupMetaData, content: tuple[str, str] | None) -> bool | None:
    """Whether all rows of a row group have bytes, or none has; None where some may have."""
    if content is None:
        return False
    columns = (rows.column(n) for n in range(rows.num_columns))
    statistics = next((column.statistics for column in columns if column.path_in_schema == content[1]), None)
    if statistics is None or not statistics.has_null_count:
        return None
    return {0: True, rows.num_rows: False}.get(statistics.null_count)


def _index_sightings(row: Row, part: Part) -> Iterator[Sighting]:
    name, offset, length = (row.get(column) for column in PLACE)
    if STATUS in row and str(row[STATUS]) != "200":
        return
    types = [str(row[column] or "") for column in MIMES if column in row]
    says_nothing = UNKNOWN.issuperset(types) and has_media_suffix(str(row.get("url")))
    if types and not says_nothing and not any(map(declares_media, types)):
        return
    assert part.archive is not None
    is_place = isinstance(offset, int) and isinstance(length, int) and offset >= 0 and length > 0
    if not isinstance(name, str) or not is_place or name.startswith("/") or ".." in name.split("/"):
        problem = f"not a place in a WARC file: {str(name)[:100]!r}, offset {offset}, length {length}"
        yield row_sighting({"url": row.get("url"), "problem": problem}, part)
        return
    root = beside(part.archive, name)
    # The archives of a whole crawl are not asked for their times: what is at a place of one does not change.
    version = f'"{doc_id(root)[:16]}-{offset:x}-{length:x}"'
    place = {"root": root, "held_as": "warc", "offset": offset, "length": length, "version": version}
    yield row_sighting(row, part, held=place)
