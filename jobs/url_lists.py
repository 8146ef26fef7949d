"""Lists of URLs as sightings: text, CSV, JSON lines and Parquet. Knows files, not what becomes of a URL."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet

from jobs.sources import (
    DESCRIPTION,
    ROWS_PER_BATCH,
    Part,
    Row,
    Sighting,
    SourceError,
    named,
    open_filesystem,
    row_sighting,
    suffix_of,
)


def _refuse_without_url(names: Iterable[str], where: str) -> None:
    found = [str(name) for name in names]
    if "url" not in {name.strip().lower() for name in found}:
        raise SourceError(f"{where} has no column url; it has {', '.join(found) or 'none'}")


def _text_rows(file: pa.NativeFile, where: str) -> Iterator[Row]:
    for line in io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace"):
        if line.strip() and not line.startswith("#"):
            yield {"url": line}


def _csv_rows(file: pa.NativeFile, where: str, delimiter: str = ",") -> Iterator[Row]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    reader = csv.DictReader(text, delimiter=delimiter)
    _refuse_without_url(reader.fieldnames or (), where)
    yield from map(named, reader)


def _jsonl_rows(file: pa.NativeFile, where: str) -> Iterator[Row]:
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield named(row)
            else:
                yield {"url": line, "problem": f"line {number} is not a JSON object"}


def _parquet_rows(file: pa.NativeFile, where: str) -> Iterator[Row]:
    parquet = pyarrow.parquet.ParquetFile(file)
    _refuse_without_url(parquet.schema_arrow.names, where)
    wanted = [name for name in parquet.schema_arrow.names if name.strip().lower() in ("url", *DESCRIPTION)]
    for batch in parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=wanted):
        yield from map(named, batch.to_pylist())


READERS: Mapping[str, Callable[[pa.NativeFile, str], Iterator[Row]]] = {
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".tsv": lambda file, where: _csv_rows(file, where, "\t"),
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".parquet": _parquet_rows,
}


def list_sightings(part: Part) -> Iterator[Sighting]:
    """The rows of a .txt, .csv, .tsv, .jsonl or .parquet list, compressed (.gz, .bz2, .zst) or not. Raises SourceError.

    A list has a column url and may have caption, page_url, page_title and license; a .txt has one URL a line.
    """
    filesystem, path = open_filesystem(part.uri)
    suffix = suffix_of(part.kind, path)
    assert suffix is not None  # or it were no part
    seekable = suffix == ".parquet"
    try:
        with filesystem.open_input_file(path) if seekable else filesystem.open_input_stream(path) as file:
            for row in READERS[suffix](file, part.where):
                yield row_sighting(row, part)
    except (OSError, pa.ArrowInvalid, csv.Error) as e:
        raise SourceError(f"{part.where} cannot be read: {e}") from e
