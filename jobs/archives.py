"""Reads one document out of an archive by its place: WARC record, tar member, Parquet row. Knows no source, no table.

Archives stay open between two members, for the members of one are mostly read one after another, by a few threads.
"""

from __future__ import annotations

import io
import threading
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from featurizers.probe import PILLOW_FORMAT, SNIFF_BYTES, VIDEO_FORMAT, sniff
from jobs.sources import FILE_SCHEME, open_filesystem

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from fastwarc.warc import WarcRecord

N_OPEN = 4  # archives at a time: as many as threads read
RECHECK_S = 30.0  # after so long an archive on a store is asked whether it is still the one that was opened
MEMBER_BYTES = 1 << 20  # of one ranged read: most members are smaller
# Of the decoded cells of one table: a batch, and how many bytes of batches are kept for rows that come out of order.
BATCH_BYTES = 8 << 20
KEPT_BYTES = 64 << 20
MAX_BATCH_ROWS = 100  # equal cells are stored once, so that their size says little
CONTENT_COLUMNS = ("content", "image", "bytes", "jpg")  # of a table, the first of these that holds bytes
# What of a payload may be encoded, most first: archivers decode some or all of it and leave the headers as they were.
DECODINGS: tuple[Literal["all", "content", "transfer", "none"], ...] = ("all", "content", "transfer", "none")


class BrokenMember(Exception):
    """An archive that can be read does not hold a readable member at a place; another try would find the same."""


class Member(Protocol):
    """The bytes of a member, in order."""

    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


class Window(io.RawIOBase):
    """A part of a file, as a file of its own; others may read the same file at the same time.

    Libraries take any OSError for a fault of the archive: `failure` is set where it was the store's.
    """

    def __init__(self, file: pa.NativeFile, offset: int, length: int) -> None:
        self.file, self.offset, self.length = file, offset, length
        self.failure: Exception | None = None
        self._at = 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be sought."""
        return True

    def tell(self) -> int:
        """The place of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place, which may lie beyond the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read what comes next into a buffer. Raises OSError."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self.length - self._at)
        if wanted <= 0:
            return 0
        try:
            data = self.file.read_at(wanted, self.offset + self._at)
        except Exception as e:  # every store has its own
            self.failure = e
            raise OSError(str(e)) from e
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


# -- open archives ------------------------------------------------------------------------------------------------


@dataclass
class Archive:
    """A file that stays open between two members."""

    file: pa.NativeFile
    size_bytes: int
    changed: tuple[int | None, int | None]  # size and time of change when it was opened
    checked_s: float
    cells: Cells | None = None  # of a table
    lock: threading.Lock = field(default_factory=threading.Lock)


_open: OrderedDict[str, Archive] = OrderedDict()
_opening = threading.Lock()


def open_archive(uri: str) -> Archive:
    """An archive by its URI, opened again where it has changed. Raises OSError, SourceError."""
    filesystem, path = open_filesystem(uri)
    now = time.monotonic()
    with _opening:
        found = _open.get(uri)
        if found is not None:
            _open.move_to_end(uri)
    is_local = uri.startswith(FILE_SCHEME)
    if found is not None and not is_local and now - found.checked_s < RECHECK_S:
        return found
    info = filesystem.get_file_info(path)
    if info.type == pa.fs.FileType.NotFound:
        raise FileNotFoundError(f"{uri} is not there")
    changed = (info.size, info.mtime_ns)
    if found is not None and found.changed == changed:
        found.checked_s = now
        return found
    file = filesystem.open_input_file(path)
    opened = Archive(file=file, size_bytes=file.size(), changed=changed, checked_s=now)
    with _opening:
        other = _open.get(uri)
        if other is not None and other.changed == changed:  # which another thread has opened meanwhile
            return other
        _open[uri] = opened
        while len(_open) > N_OPEN:
            _open.popitem(last=False)  # and is closed once nobody reads it
    return opened


def open_member(root: str, held_as: str, offset: int | None, length: int | None) -> Member:
    """The bytes of a member: `held_as` is warc, tar or parquet, `root` the URI of the archive.

    `offset` and `length` are bytes, of a row its number and None. Payloads of WARC records come decoded. Raises
    OSError and SourceError where the archive cannot be read, BrokenMember, here or in `read`, where the member cannot.
    """
    archive = open_archive(root)
    where = f"{held_as} at {offset} in {root}"
    if offset is None or offset < 0 or (offset >= archive.size_bytes and held_as != "parquet"):
        raise BrokenMember(f"{where}: no such place, the file has {archive.size_bytes} bytes")
    if held_as == "parquet":
        return _cell(archive, offset, where)
    length = archive.size_bytes - offset if length is None else max(0, length)
    if held_as == "tar":
        if offset + length > archive.size_bytes:
            raise BrokenMember(f"{where}: {length} bytes are wanted, the file has {archive.size_bytes}")
        return io.BufferedReader(Window(archive.file, offset, length), min(max(length, 1), MEMBER_BYTES))
    if held_as == "warc":
        return _payload(archive, offset, length, where)
    raise BrokenMember(f"{where}: not one of warc, tar, parquet")


# -- records of WARC files ----------------------------------------------------------------------------------------


def is_media(head: bytes) -> bool:
    """Whether bytes that begin so are a picture or video that can be decoded here."""
    return (sniff(head) or "") in PILLOW_FORMAT.keys() | VIDEO_FORMAT.keys()


def is_encoded(record: WarcRecord) -> bool:
    """Whether the payload of a parsed HTTP record is encoded, as its headers say."""
    headers = record.http_headers
    names = ("Content-Encoding", "Transfer-Encoding")
    return headers is not None and any((headers.get(n) or "").strip().lower() not in ("", "identity") for n in names)


class Payload:
    """The payload of one WARC record, decoded while it is read."""

    def __init__(self, window: Window, where: str, decoding: Literal["all", "content", "transfer", "none"]) -> None:
        """Raises OSError, BrokenMember."""
        from fastwarc.warc import ArchiveIterator, WarcRecordType

        self.window, self.where = window, where
        self.headers: tuple[tuple[str, str], ...] = ()  # of the HTTP answer, which may refuse its use
        self._head = b""
        buffered = io.BufferedReader(window, min(max(window.length, 1), MEMBER_BYTES))
        try:
            self._records = ArchiveIterator(buffered, parse_http=False)
            record = next(self._records, None)
            if record is None or record.record_type not in (WarcRecordType.response, WarcRecordType.resource):
                raise BrokenMember(f"{where}: no record of a response or resource begins there")
            if record.record_type == WarcRecordType.response:
                record.parse_http(auto_decode=decoding, quirks_mode=True)
                headers = record.http_headers  # false where there are none but a status line
                status = headers.status_code if headers is not None else None
                if status != 200:
                    raise BrokenMember(f"{where}: HTTP status {status}, allowed: 200")
                self.headers = headers.to_tuples() if headers is not None else ()
        except OSError as e:
            raise self._fault(e) from e
        self._record = record
        self.is_encoded = is_encoded(record)
        self._left = None if self.is_encoded and decoding != "none" else record.content_length

    def peek(self) -> bytes:
        """The first bytes, which the next read gives again. Raises OSError, BrokenMember."""
        self._head = self.read(SNIFF_BYTES)
        return self._head

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size` of them; none at the end. Raises OSError, BrokenMember."""
        if self._head:
            data, self._head = self._head, b""
            return data
        assert self._record.reader is not None
        try:
            data = self._record.reader.read(size)
        except OSError as e:
            raise self._fault(e) from e
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left > 0:
                raise BrokenMember(f"{self.where}: the record is cut, {self._left} bytes are missing")
        return data

    def close(self) -> None:
        """Nothing: the archive stays open."""

    def _fault(self, problem: OSError) -> Exception:
        if self.window.failure is not None:
            return OSError(f"{self.where}: {self.window.failure}")
        return BrokenMember(f"{self.where}: {str(problem)[:100]}")


def _payload(archive: Archive, offset: int, length: int, where: str) -> Payload:
    broken: BrokenMember | None = None
    for decoding in DECODINGS:
        try:
            payload = Payload(Window(archive.file, offset, length), where, decoding)
            if not payload.is_encoded:
                return payload
            head = payload.peek()
        except BrokenMember as e:
            broken = broken or e
        else:
            if decoding == "all" or is_media(head):
                return payload
    assert broken is not None
    raise broken


# -- rows of tables -----------------------------------------------------------------------------------------------


def content_column(schema: pa.Schema) -> tuple[str, str] | None:
    """The column of a table that holds bytes, and its path in a Parquet file; None where there is none.

    It is binary, or as Hugging Face stores pictures a struct of bytes and path.
    """
    for name in CONTENT_COLUMNS:
        for column in schema:
            if column.name.strip().lower() == name:
                if _is_binary(column.type):
                    return column.name, column.name
                is_struct = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
                if is_struct and _is_binary(column.type.field("bytes").type):
                    return column.name, f"{column.name}.bytes"
    return None


def _is_binary(type_: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(type_) for test in tests)


def rows_per_batch(metadata: pa.parquet.FileMetaData, group: int, leaf: str) -> int:
    """How many rows of a row group are decoded at a time, so that the bytes in them are about BATCH_BYTES."""
    rows = metadata.row_group(group)
    sizes = [rows.column(n).total_uncompressed_size for n in range(rows.num_columns) if _path(rows, n) == leaf]
    return int(max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * rows.num_rows // max(1, sum(sizes)))))


def _path(rows: pa.parquet.RowGroupMetaData, n: int) -> str:
    return str(rows.column(n).path_in_schema)


def bytes_of(column: pa.Array) -> pa.Array:
    """The bytes in the cells of that column."""
    return column.flatten()[0] if pa.types.is_struct(column.type) else column


class Cells:
    """The cells of a table's column of bytes, by number of the row: a batch is decoded once for all its rows."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.parquet = pyarrow.parquet.ParquetFile(window, buffer_size=MEMBER_BYTES, pre_buffer=False)
        metadata = self.parquet.metadata
        self._ends = list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))
        self._kept: deque[tuple[int, pa.Array]] = deque()
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next, self._end = 0, 0  # of the row group that is being decoded: the next row, the one after the last

    def cell(self, row: int) -> Any:
        """One cell, a binary scalar; None where there is no such row or column."""
        column = content_column(self.parquet.schema_arrow)
        if column is None or not self._ends or row >= self._ends[-1]:
            return None
        if (kept := self._find(row)) is not None:
            return kept
        if not self._next <= row < self._end:
            group = bisect_right(self._ends, row)
            self._next, self._end = self._ends[group - 1] if group else 0, self._ends[group]
            size = rows_per_batch(self.parquet.metadata, group, column[1])
            self._batches = self.parquet.iter_batches(size, row_groups=[group], columns=[column[1]])
        while self._next <= row:
            cells = bytes_of(next(self._batches).column(0))
            self._kept.append((self._next, cells))
            self._next += len(cells)
            while len(self._kept) > 1 and sum(cells.nbytes for _, cells in self._kept) > KEPT_BYTES:
                self._kept.popleft()
        return self._find(row)

    def _find(self, row: int) -> Any:
        for first, cells in reversed(self._kept):
            if first <= row < first + len(cells):
                return cells[row - first]
        return None


def _cell(archive: Archive, row: int, where: str) -> Member:
    with archive.lock:
        window = archive.cells.window if archive.cells else Window(archive.file, 0, archive.size_bytes)
        try:
            archive.cells = archive.cells or Cells(window)
            cell = archive.cells.cell(row)
        except (OSError, pa.ArrowException, StopIteration) as e:
            archive.cells, failure = None, window.failure
            if failure is not None:
                raise OSError(f"{where}: {failure}") from e
            raise BrokenMember(f"{where}: {str(e)[:100]}") from e
    if cell is None or not cell.is_valid:
        raise BrokenMember(f"{where}: there are no bytes in any of {', '.join(CONTENT_COLUMNS)}")
    return pa.BufferReader(cell.as_buffer())  # type: ignore[no-any-return]
