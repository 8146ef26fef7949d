"""Where documents come from: sources as parts, parts as sightings. Knows file systems, not the network or Spark.

A part is a folder or one file of a source: cheap to list, and read by any process. What is in a list, an archive or a
table is known by `url_lists`, `crawl_archives` and `shards`.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.fs

from jobs.config import ConfigError, Source
from jobs.robots import DEFAULT_OPT_OUTS
from jobs.urls import MAX_URL, InvalidUrl, canonical_url, doc_id, host_bucket

ROWS_PER_BATCH = 50_000  # of a list on its way to Spark: about 10 MB
MAX_TEXT = 10_000  # characters kept of a caption or title
DESCRIPTION = ("caption", "page_url", "page_title", "license")
FILE_SCHEME = "file://"
COMPRESSIONS = (".gz", ".bz2", ".zst")
SUFFIXES: Mapping[str, tuple[str, ...]] = {  # of the files of each kind
    "urls": (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"),  # compressed or not
    "warc": (".warc", ".warc.gz"),
    "wat": (".wat", ".wat.gz"),
    "webdataset": (".tar",),
    "table": (".parquet",),
}


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
    root: str | None = None  # URI of the folder or archive that holds it; None for what is fetched over HTTP
    version: str | None = None  # of a file or its archive: changes when its size or time of change does
    changed_at: str | None = None  # of a file or its archive: time of change, ISO 8601, UTC
    held_as: str | None = None  # file, warc, tar or parquet; None for what is fetched over HTTP
    offset: int | None = None  # of a WARC record or of the data of a tar's member, in bytes; of a row, its number
    length: int | None = None  # in bytes, of a WARC record as it is stored; None for a file and a row
    priority: int = 0  # higher is fetched first
    opted_out: bool = (
        False  # it is not fetched, as its use is refused by the page that shows it, or its archived answer
    )
    opted_out_by: str | None = None  # what refuses it, such as "X-Robots-Tag: noai" or "meta: noai"
    expects: str | None = None  # page or sitemap; None for a picture or video
    depth: int | None = None  # of a page, links from where its site is entered


_TYPES = {  # of what is not text
    "host_bucket": pa.int32(),
    "offset": pa.int64(),
    "length": pa.int64(),
    "priority": pa.int32(),
    "opted_out": pa.bool_(),
    "depth": pa.int32(),
}
SIGHTINGS = pa.schema(
    [
        ("ordinal", pa.int64()),  # place among all sightings of a run: the first of a document wins
        *((name, _TYPES.get(name, pa.string())) for name in Sighting.__dataclass_fields__),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A folder of a source of kind folder, one file of any other: what one task lists."""

    source: str
    kind: str
    uri: str
    priority: int = 0
    archive: str | None = None
    drop: tuple[str, ...] = ()  # parameters taken out of URLs
    opt_outs: frozenset[str] = DEFAULT_OPT_OUTS  # that archived pages and answers are held to

    @property
    def where(self) -> str:
        """How an error names it."""
        return f"source {self.source}: {self.uri}"


class Stamp(TypedDict):
    """What tells whether a file has changed, as the fields of a sighting."""

    version: str
    changed_at: str | None


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


def _parent(uri: str) -> str:
    if "://" not in uri or uri.startswith(FILE_SCHEME):
        return file_uri("", open_filesystem(uri)[1].rpartition("/")[0])
    if isinstance(open_filesystem(uri)[0], pa.fs.PyFileSystem):
        return uri.rpartition("/")[0]
    base, mark, settings = uri.partition("?")
    return f"{base.rpartition('/')[0]}{mark}{settings}"


def beside(folder: str, inside: str) -> str:
    """The URI that opens what lies at the relative path `inside` of a folder, in the file system that opens that."""
    if "://" not in folder or folder.startswith(FILE_SCHEME):
        return file_uri("", f"{open_filesystem(folder)[1].rstrip('/')}/{inside}")
    if isinstance(open_filesystem(folder)[0], pa.fs.PyFileSystem):
        return f"{folder.rstrip('/')}/{inside}"  # fsspec takes paths as they are
    base, mark, settings = folder.partition("?")
    return f"{base.rstrip('/')}/{urllib.parse.quote(inside)}{mark}{settings}"


def open_file(root: str, url: str) -> pa.NativeFile:
    """A file by its URI, through the file system of the folder it was found in. Raises OSError."""
    return open_filesystem(root)[0].open_input_file(urllib.parse.unquote(url.partition("://")[2]))


def stamp_of(info: pa.fs.FileInfo) -> Stamp:
    """The version of a file, from its size and time of change."""
    return Stamp(
        version=f'"{info.mtime_ns or 0:x}-{info.size or 0:x}"',
        changed_at=info.mtime.isoformat() if info.mtime is not None else None,
    )


def _info(source: Source, path: str) -> pa.fs.FileInfo:
    try:
        return open_filesystem(source.uri)[0].get_file_info(path)
    except OSError as e:
        raise SourceError(f"source {source.name}: {source.uri} cannot be read: {e}") from e


def _list(source: str, uri: str, path: str, *, recursive: bool = True) -> list[pa.fs.FileInfo]:
    try:
        found = open_filesystem(uri)[0].get_file_info(pa.fs.FileSelector(path, recursive=recursive))
    except OSError as e:
        raise SourceError(f"source {source}: {uri} cannot be listed: {e}") from e
    return sorted(found, key=lambda info: str(info.path))


# -- sightings ----------------------------------------------------------------------------------------------------

Row = Mapping[str, Any]


def row_sighting(
    row: Row, part: Part, *, base: str | None = None, own_url: str | None = None, held: Row | None = None
) -> Sighting:
    """What a row with url, caption, page_url, page_title and license says, its URL resolved against `base`.

    A URL that cannot be used, or is longer than MAX_URL, is a sighting with its `problem` and what fits of it, or where
    there is one, has `own_url` in its place: the URI of bytes that are at hand whatever they are called. `held` are the
    fields that say where those are.
    """
    given = row.get("url")
    text = given.strip() if isinstance(given, str) else "" if given is None else str(given)
    problem, href, host = row.get("problem"), text[:MAX_URL], ""
    if problem is None:
        try:
            url = canonical_url(text, base, part.drop)
            if len(url.href) > MAX_URL:
                raise InvalidUrl(f"the URL has {len(url.href)} characters, more than {MAX_URL}")
            href, host = url.href, url.host
        except InvalidUrl as e:
            href, problem = (own_url, None) if own_url is not None else (href, str(e))
    else:  # a row that cannot be used may still be the URL of a document, which is one wherever it is named
        with suppress(InvalidUrl):
            host = url.host if (url := canonical_url(href)).href == href else ""
    href = _valid(href)
    said: dict[str, Any] = {name: _text_of(row.get(name)) for name in DESCRIPTION}
    return Sighting(
        doc_id=doc_id(href),
        url=href,
        host=host,
        host_bucket=host_bucket(host),
        source=part.source,
        priority=part.priority,
        problem=problem,
        **said,
        **(held or {}),
    )


def _text_of(value: object) -> str | None:
    text = value.strip()[:MAX_TEXT] if isinstance(value, str) else ""
    return _valid(text) or None


def _valid(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair


def named(row: Mapping[Any, Any]) -> Row:
    """A row by the names of its columns in lower case; what its `problem` is, is not for the row to say."""
    return {name: value for key, value in row.items() if (name := str(key).strip().lower()) != "problem"}


def member_url(part: Part, member: str) -> str:
    """The URI of what an archive holds: that of the archive, and the name or place of the member as fragment."""
    archive, inside = (
        file_uri(part.uri, open_filesystem(part.uri)[1]),
        urllib.parse.quote(member, errors="surrogateescape"),
    )
    if len(inside) > MAX_URL:  # a tar may hold names of any length
        inside = f"{inside[:MAX_URL]}~{doc_id(inside)}"
    return f"{archive}#{inside}"


def damage(part: Part, at: int, reason: object, stamp: Stamp) -> Sighting:
    """What stands for that which cannot be read at a place of an archive."""
    text = f"{reason}, at byte {at} of {part.uri}"
    return row_sighting({"url": member_url(part, str(at)), "problem": text}, part, held={"root": part.uri, **stamp})


def folder_sightings(part: Part) -> Iterator[Sighting]:
    """Every file below a folder in order of path, names that begin with a dot apart. Raises SourceError."""
    top = open_filesystem(part.uri)[1]
    for info in _list(part.source, part.uri, top):
        inside = PurePosixPath(info.path).relative_to(top).parts
        if info.type == pa.fs.FileType.File and not any(name.startswith(".") for name in inside):
            held = {"root": part.uri, "held_as": "file", **stamp_of(info)}
            yield row_sighting({}, part, own_url=file_uri(part.uri, info.path), held=held)


# -- parts --------------------------------------------------------------------------------------------------------


def suffix_of(kind: str, name: str) -> str | None:
    """Which of the suffixes of a kind a file's name has; None for none."""
    name = name.lower()
    if kind == "urls":
        name = next((name.removesuffix(packed) for packed in COMPRESSIONS if name.endswith(packed)), name)
    return max((suffix for suffix in SUFFIXES[kind] if name.endswith(suffix)), key=len, default=None)


def source_parts(source: Source, opt_outs: frozenset[str] = DEFAULT_OPT_OUTS) -> list[Part]:
    """The folder, or in order of path the files, of a source: its own file, those of a folder or of a prefix.

    Lists and opens nothing. Of a site the URLs to enter it by. Raises SourceError where there is no file of the kind.
    """

    def part(uri: str) -> Part:
        own = {"priority": source.priority, "archive": source.archive, "drop": source.drop_parameters}
        return Part(source=source.name, kind=source.kind, uri=uri, opt_outs=opt_outs, **own)  # type: ignore[arg-type]

    if source.kind == "site":
        return [part(url) for url in source.start]
    if source.kind == "folder":
        return [part(source.uri if "://" in source.uri else file_uri("", open_filesystem(source.uri)[1]))]
    path = open_filesystem(source.uri)[1]
    path = path.rstrip("/") or path
    info = _info(source, path)
    if info.type == pa.fs.FileType.File:
        _refuse(source, path.rpartition("/")[2])
        if suffix_of(source.kind, path) is None:
            raise SourceError(f"source {source.name}: {source.uri} is not one of {', '.join(SUFFIXES[source.kind])}")
        return [part(source.uri if "://" in source.uri else file_uri("", path))]
    if info.type == pa.fs.FileType.Directory:
        folder, top = source.uri, path
        found = _list(source.name, source.uri, path)
    else:
        folder, top = _parent(source.uri), path.rpartition("/")[0]
        found = _prefixed(source, top, path)
    parts = []
    for info in found:
        inside = str(PurePosixPath(info.path).relative_to(top))
        if info.type == pa.fs.FileType.File and not _is_hidden(source.kind, inside):
            _refuse(source, inside)
            if suffix_of(source.kind, inside) is not None:
                parts.append(part(beside(folder, inside)))
    if not parts:
        allowed = ", ".join(SUFFIXES[source.kind])
        raise SourceError(f"source {source.name}: {source.uri} holds no file whose name ends in one of {allowed}")
    return parts


def _prefixed(source: Source, top: str, path: str) -> list[pa.fs.FileInfo]:
    missing = SourceError(f"source {source.name}: {source.uri} is not a file, a folder or how names of files begin")
    if not top or _info(source, top).type != pa.fs.FileType.Directory:
        raise missing
    begun = [info for info in _list(source.name, source.uri, top, recursive=False) if info.path.startswith(path)]
    if not begun:
        raise missing
    found = [info for info in begun if info.type == pa.fs.FileType.File]
    for info in begun:
        if info.type == pa.fs.FileType.Directory:
            found += _list(source.name, source.uri, info.path)
    return sorted(found, key=lambda info: str(info.path))


def _is_hidden(kind: str, inside: str) -> bool:
    # What writes tables puts aside what is not part of them under names that begin with an underscore.
    marks = (".", "_") if kind == "table" else (".",)
    return any(name.startswith(marks) and name != "_delta_log" for name in inside.split("/"))


def _refuse(source: Source, inside: str) -> None:
    where = f"source {source.name}: {source.uri}"
    if "_delta_log" in inside.split("/"):
        raise SourceError(f"{where} is a Delta table, not all of whose files count; name an export of it as Parquet")
    packed = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
    if source.kind == "webdataset" and inside.lower().endswith(packed):
        raise SourceError(f"{where}: the members of {inside} cannot be read by offset; allowed: .tar, not compressed")
    if source.kind in ("warc", "wat") and inside.lower().endswith(".zst"):
        raise SourceError(f"{where}: {inside} is compressed by zstd; allowed: {', '.join(SUFFIXES[source.kind])}")


# -- all sources --------------------------------------------------------------------------------------------------


def _lister(kind: str) -> Callable[[Part], Iterator[Sighting]]:
    """What lists a part of a kind; each of these modules knows this one."""
    from jobs import crawl_archives, shards, sites, url_lists

    listers: Mapping[str, Callable[[Part], Iterator[Sighting]]] = {
        "folder": folder_sightings,
        "urls": url_lists.list_sightings,
        "warc": crawl_archives.warc_sightings,
        "wat": crawl_archives.wat_sightings,
        "webdataset": shards.shard_sightings,
        "table": shards.table_sightings,
        "site": sites.site_sightings,
    }
    return listers[kind]


def part_sightings(part: Part) -> Iterator[Sighting]:
    """All that a part shows, in its order; runs in any process. Raises SourceError."""
    return _lister(part.kind)(part)


def check_source(source: Source) -> None:
    """That a source is there and of the right form; raises SourceError naming it."""
    if source.kind == "site":
        if problems := [one.problem for one in sightings(source) if one.problem is not None]:
            raise SourceError(f"source {source.name}: start: {problems[0]}")
        return
    if source.kind == "folder":
        if _info(source, open_filesystem(source.uri)[1]).type != pa.fs.FileType.Directory:
            raise SourceError(f"source {source.name}: {source.uri} is not a folder")
        return
    parts = source_parts(source)
    if parts and source.kind in ("urls", "table"):  # which have columns; an archive may have no media for long
        next(part_sightings(parts[0]), None)


def sightings(source: Source, opt_outs: frozenset[str] = DEFAULT_OPT_OUTS) -> Iterator[Sighting]:
    """All that a source shows, in its order. Raises SourceError."""
    if source.kind == "folder":
        check_source(source)
    for part in source_parts(source, opt_outs):
        yield from part_sightings(part)
