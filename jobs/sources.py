"""Where documents come from: folders and lists of URLs, as sightings. Knows files, not the network or Spark."""

from __future__ import annotations

import csv
import io
import json
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from jobs.config import ConfigError, Source
from jobs.urls import InvalidUrl, canonical_url, doc_id, host_bucket

ROWS_PER_BATCH = 50_000  # of a list on its way to Spark: about 10 MB
MAX_TEXT = 10_000  # characters kept of a caption, title or unusable URL
LIST_COLUMNS = ("url", "caption", "page_url", "page_title", "license")
FILE_SCHEME = "file://"


class SourceError(ConfigError):
    """A source that is missing or cannot be read; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """One document as one source shows it."""

    doc_id: str
    url: str
    host: str
    host_bucket: int
    source: str
    page_url: str | None = None
    page_title: str | None = None
    caption: str | None = None
    license: str | None = None
    problem: str | None = None  # why the URL cannot be fetched
    root: str | None = None  # URI of the folder a file was found in; None for what is fetched over HTTP
    version: str | None = None  # of a file: changes when its size or time of change does
    changed_at: str | None = None  # of a file: time of change, ISO 8601, UTC


SIGHTINGS = pa.schema(
    [
        ("ordinal", pa.int64()),  # place among all sightings of a run: the first of a document wins
        *((name, pa.int32() if name == "host_bucket" else pa.string()) for name in Sighting.__dataclass_fields__),
    ]
)


# -- file systems -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def open_filesystem(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """The file system of a path or URI, by pyarrow or else by fsspec, and the path in it. Raises SourceError."""
    if "://" not in uri:
        return pa.fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if uri.startswith(FILE_SCHEME):
        return pa.fs.LocalFileSystem(), urllib.parse.unquote(uri.removeprefix(FILE_SCHEME)).rstrip("/") or "/"
    try:
        return pa.fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as by_arrow:
        import fsspec

        try:
            opened, path = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as e:
            raise SourceError(f"no file system opens {uri!r}: {by_arrow}; {e}") from e
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(opened)), str(path)


def file_uri(root: str, path: str) -> str:
    """The absolute, percent-encoded URI of a file found at `path` in the file system of `root`."""
    scheme = root.partition("://")[0] if "://" in root else "file"
    return f"{scheme}://{urllib.parse.quote(path)}"


def open_file(root: str, url: str) -> pa.NativeFile:
    """A file by its URI, through the file system of the folder it was found in. Raises OSError."""
    return open_filesystem(root)[0].open_input_file(urllib.parse.unquote(url.partition("://")[2]))


def _info(source: Source) -> pa.fs.FileInfo:
    filesystem, path = open_filesystem(source.uri)
    try:
        return filesystem.get_file_info(path)
    except OSError as e:
        raise SourceError(f"source {source.name}: {source.uri} cannot be read: {e}") from e


# -- folders ------------------------------------------------------------------------------------------------------


def folder_sightings(source: Source) -> Iterator[Sighting]:
    """Every file below a folder in order of path, names that begin with a dot apart. Raises SourceError."""
    check_source(source)
    filesystem, top = open_filesystem(source.uri)
    try:
        found = filesystem.get_file_info(pa.fs.FileSelector(top, recursive=True))
    except OSError as e:
        raise SourceError(f"source {source.name}: {source.uri} cannot be listed: {e}") from e
    root = source.uri if "://" in source.uri else file_uri("", top)
    for info in sorted(found, key=lambda info: info.path):
        inside = PurePosixPath(info.path).relative_to(top).parts
        if info.type == pa.fs.FileType.File and not any(part.startswith(".") for part in inside):
            url = file_uri(root, info.path)
            yield Sighting(
                doc_id=doc_id(url),
                url=url,
                host="",
                host_bucket=host_bucket(""),
                source=source.name,
                root=root,
                version=f'"{info.mtime_ns or 0:x}-{info.size or 0:x}"',
                changed_at=info.mtime.isoformat() if info.mtime is not None else None,
            )


# -- lists of URLs ------------------------------------------------------------------------------------------------

Row = Mapping[str, Any]


def _named(row: Mapping[Any, Any]) -> Row:
    return {str(key).strip().lower(): value for key, value in row.items()}


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
    yield from map(_named, reader)


def _jsonl_rows(file: pa.NativeFile, where: str) -> Iterator[Row]:
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield _named(row)
            else:
                yield {"url": line, "problem": f"line {number} is not a JSON object"}


def _parquet_rows(file: pa.NativeFile, where: str) -> Iterator[Row]:
    parquet = pyarrow.parquet.ParquetFile(file)
    _refuse_without_url(parquet.schema_arrow.names, where)
    wanted = [name for name in parquet.schema_arrow.names if name.strip().lower() in LIST_COLUMNS]
    for batch in parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=wanted):
        yield from map(_named, batch.to_pylist())


_READERS: Mapping[str, Callable[[pa.NativeFile, str], Iterator[Row]]] = {
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".tsv": lambda file, where: _csv_rows(file, where, "\t"),
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".parquet": _parquet_rows,
}


def _text_of(value: object) -> str | None:
    text = value.strip()[:MAX_TEXT] if isinstance(value, str) else ""
    return _valid(text) or None


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair


def list_sighting(row: Row, source: str) -> Sighting:
    """One row of a list; a URL that cannot be fetched is a sighting with its `problem`."""
    given = row.get("url")
    text = given.strip() if isinstance(given, str) else "" if given is None else str(given)
    problem, href, host = row.get("problem"), text[:MAX_TEXT], ""
    if problem is None:
        try:
            url = canonical_url(text)
            href, host = url.href, url.host
        except InvalidUrl as e:
            problem = str(e)
    href = _valid(href)
    return Sighting(
        doc_id=doc_id(href),
        url=href,
        host=host,
        host_bucket=host_bucket(host),
        source=source,
        problem=problem,
        **{name: _text_of(row.get(name)) for name in LIST_COLUMNS if name != "url"},
    )


def list_sightings(source: Source) -> Iterator[Sighting]:
    """The rows of a .txt, .csv, .tsv, .jsonl or .parquet list, compressed (.gz, .bz2, .zst) or not. Raises SourceError.

    A list has a column url and may have caption, page_url, page_title and license; a .txt has one URL a line.
    """
    if _info(source).type != pa.fs.FileType.File:
        raise SourceError(f"source {source.name}: {source.uri} is not a file")
    filesystem, path = open_filesystem(source.uri)
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    compressed = bool(suffixes) and suffixes[-1] in (".gz", ".bz2", ".zst")
    suffix = next(iter(suffixes[-2:-1] if compressed else suffixes[-1:]), "")
    if suffix not in _READERS:
        raise SourceError(f"source {source.name}: {source.uri} is not one of {', '.join(_READERS)}")
    where = f"source {source.name}: {source.uri}"
    try:
        seekable = suffix == ".parquet"
        with filesystem.open_input_file(path) if seekable else filesystem.open_input_stream(path) as file:
            for row in _READERS[suffix](file, where):
                yield list_sighting(row, source.name)
    except (OSError, pa.ArrowInvalid, csv.Error) as e:
        raise SourceError(f"{where} cannot be read: {e}") from e


# -- all sources --------------------------------------------------------------------------------------------------

_KINDS: Mapping[str, Callable[[Source], Iterator[Sighting]]] = {"folder": folder_sightings, "urls": list_sightings}


def check_source(source: Source) -> None:
    """That a source is there and of the right form; raises SourceError naming it."""
    if source.kind == "folder":
        if _info(source).type != pa.fs.FileType.Directory:
            raise SourceError(f"source {source.name}: {source.uri} is not a folder")
    else:
        next(list_sightings(source), None)


def sightings(source: Source) -> Iterator[Sighting]:
    """All that a source shows, in its order. Raises SourceError."""
    return _KINDS[source.kind](source)


def sighting_batches(sources: Iterable[Source]) -> Iterator[pa.RecordBatch]:
    """All sightings of all sources as record batches of `SIGHTINGS`, numbered through. Raises SourceError."""
    numbered = enumerate(sighting for source in sources for sighting in sightings(source))
    while rows := [{"ordinal": n, **asdict(sighting)} for n, sighting in islice(numbered, ROWS_PER_BATCH)]:
        yield pa.RecordBatch.from_pylist(rows, schema=SIGHTINGS)
