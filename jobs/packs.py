"""Bytes too large for a row: spooled as they arrive, stored once in the lake, read in ranges. Knows files, no Spark."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

COPY_BYTES = 1 << 20  # at a time, from the spool to the lake
READ_AHEAD_BYTES = 1 << 20  # of one ranged read: a few key frames of a video, or a part of its index


class StorageFailed(Exception):
    """Bytes could not be written to, or had from, where they are kept; not the data's fault and worth another try."""


def check_store(uri: str) -> None:
    """That fsspec can open the store of a URI, without asking the store; raises ConfigError."""
    from jobs.stores import open_store

    try:
        open_store(uri)
    except Exception as e:  # a missing package, an unknown scheme, what a store's client asks of its environment
        from jobs.config import ConfigError  # what reads packs on a worker needs no configuration

        raise ConfigError(
            f"bodies above crawl.inline_bytes cannot be stored at {uri}: {e}; or set crawl.max_bytes to that"
        ) from e


# -- writing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Held:
    """The bytes of a media, inline or by reference, as a row of `media` has them."""

    media_id: str
    size_bytes: int
    content: bytes | None = None
    pack_uri: str | None = None
    offset: int | None = None
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Packs:
    """Where a lake keeps each body above `inline_bytes`: as an object of its own, named by its digest.

    So a body that is stored twice is written once, and a rerun finds what a killed attempt left. The object is written
    under another name and renamed when it is whole: what stands under its name has all its bytes. On S3 a rename is a
    copy inside the store: 12 requests for 20 MiB instead of about 6, against a body that an error cut short and whose
    upload fsspec completes all the same.
    """

    uri: str
    partial_uri: str  # a folder of the same store for what is not whole; whoever owns it clears it
    inline_bytes: int

    def uri_of(self, media_id: str) -> str:
        """The full URI of a media's object, readable by any fsspec: neither lake nor table is needed for it."""
        return f"{self.uri}/{media_id[:2]}/{media_id}"

    def store(self, file: IO[bytes], *, media_id: str, size_bytes: int) -> str:
        """Write the bytes of `file`, unless they are there, and return their URI. Raises StorageFailed."""
        from jobs.stores import open_store

        uri = self.uri_of(media_id)
        try:
            filesystem, path = open_store(uri)
            if not _is_there(filesystem, path, size_bytes):
                partial = open_store(f"{self.partial_uri}/{uuid.uuid4().hex}")[1]
                for parent in (path, partial):
                    filesystem.makedirs(parent.rpartition("/")[0], exist_ok=True)
                file.seek(0)
                try:
                    with filesystem.open(partial, "wb") as out:
                        shutil.copyfileobj(file, out, COPY_BYTES)
                    rename(filesystem, partial, path, size_bytes)
                finally:
                    with suppress(Exception):
                        filesystem.rm(partial)
        except Exception as e:  # every store has its own
            raise StorageFailed(f"{uri}, {size_bytes} bytes: {type(e).__name__}: {e}") from e
        return uri


def _is_there(filesystem: Any, path: str, size_bytes: int) -> bool:
    return bool(filesystem.exists(path)) and filesystem.size(path) == size_bytes


def rename(filesystem: Any, partial: str, path: str, size_bytes: int) -> None:
    """Give an object of so many bytes, which is there as a whole, its name; another of that name is as good."""
    if filesystem.size(partial) != size_bytes:
        raise OSError(f"{filesystem.size(partial)} bytes were written")
    try:
        filesystem.mv(partial, path)
    except Exception:  # some stores do not replace what another task has just put there
        if not _is_there(filesystem, path, size_bytes):
            raise


class Body:
    """A body while it arrives: in memory, or above `inline_bytes` of `packs` in a file of the temporary folder.

    That file has no name, so that not even a killed process leaves it behind. Closing gives up what it holds.
    """

    def __init__(self, packs: Packs | None = None) -> None:
        self.packs = packs
        self.size_bytes = 0
        self.closing = ExitStack()
        self.file: IO[bytes] = io.BytesIO()  # FFmpeg finds no streams in a SpooledTemporaryFile in memory
        self.closing.callback(self._close_file)
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Append a chunk. Raises StorageFailed where the temporary folder is full."""
        try:
            was_large, self.size_bytes = self.is_large, self.size_bytes + len(chunk)
            if self.is_large and not was_large:
                begun = self.read()
                self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
                self.file.write(begun)
            if len(chunk) == self.size_bytes and not self.is_large:
                self.file = io.BytesIO(chunk)  # holds the chunk itself, which `read` gives back: not one copy
                self.file.seek(0, io.SEEK_END)
            else:
                self.file.write(chunk)
                self.file.flush()  # what does not fit is to be known here, not where the file is read
        except OSError as e:
            raise StorageFailed(f"{tempfile.gettempdir()}, {self.size_bytes} bytes of a body: {e}") from e
        self._digest.update(chunk)

    @property
    def is_large(self) -> bool:
        """Whether it is to be held by reference."""
        return self.packs is not None and self.size_bytes > self.packs.inline_bytes

    @property
    def media_id(self) -> str:
        """The digest of its bytes so far."""
        return self._digest.hexdigest()

    def read(self) -> bytes:
        """All its bytes."""
        if isinstance(self.file, io.BytesIO):
            return self.file.getvalue()
        self.file.seek(0)
        return self.file.read()

    def held(self) -> Held:
        """Its bytes where they stay: in memory, or stored in the lake. Raises StorageFailed."""
        media_id = self.media_id
        if self.packs is None or not self.is_large:
            return Held(media_id=media_id, size_bytes=self.size_bytes, content=self.read())
        uri = self.packs.store(self.file, media_id=media_id, size_bytes=self.size_bytes)
        return Held(media_id=media_id, size_bytes=self.size_bytes, pack_uri=uri, offset=0, length=self.size_bytes)

    def _close_file(self) -> None:
        with suppress(OSError):  # of bytes that did not fit, which it tries to write again
            self.file.close()

    def close(self) -> None:
        """Give up the file, and what was registered with `closing`."""
        self.closing.close()

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# -- reading ------------------------------------------------------------------------------------------------------


class PackFile:
    """A media held by reference as a file that can be sought; holds READ_AHEAD_BYTES of it at a time.

    Whoever reads it through a library that takes a failed read for the end of the file asks `check` afterwards.
    """

    def __init__(self, pack_uri: str, offset: int, length: int) -> None:
        """Raises StorageFailed where the file is not there or ends too early."""
        from jobs.stores import open_store

        self.where = f"{pack_uri}[{offset}:{offset + length}]"
        self.offset, self.length = offset, length
        self._at = 0
        self._failure: Exception | None = None
        try:
            self._filesystem, self._path = open_store(pack_uri)
            self._file = self._filesystem.open(self._path, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
        except Exception as e:  # every store has its own
            raise StorageFailed(f"{self.where}: {type(e).__name__}: {e}") from e
        if self._file.size is None or self._file.size < offset + length:
            self._file.close()
            raise StorageFailed(f"{self.where}: the file has {self._file.size} bytes")

    def tell(self) -> int:
        """The place of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place, which may lie beyond the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes, all that are left if negative. Raises what the store raises."""
        left = max(0, self.length - self._at)
        try:
            self._file.seek(self.offset + self._at)
            data: bytes = self._file.read(min(size, left) if size >= 0 else left)
        except Exception as e:
            self._failure = e
            raise
        self._at += len(data)
        return data

    def whole(self) -> bytes:
        """All its bytes, in one ranged read. Raises StorageFailed."""
        try:
            data: bytes = self._filesystem.cat_file(self._path, start=self.offset, end=self.offset + self.length)
        except Exception as e:
            raise StorageFailed(f"{self.where}: {type(e).__name__}: {e}") from e
        if len(data) != self.length:
            raise StorageFailed(f"{self.where}: {len(data)} bytes")
        return data

    def check(self) -> None:
        """Raise StorageFailed if a read has failed."""
        if self._failure is not None:
            raise StorageFailed(f"{self.where}: {type(self._failure).__name__}: {self._failure}") from self._failure

    def close(self) -> None:
        """Give up the connection and what is held."""
        self._file.close()


@contextmanager
def open_pack(pack_uri: str | None, offset: int | None, length: int | None) -> Iterator[PackFile]:
    """The bytes of media held by reference. Raises StorageFailed, also in place of what a failed read led to."""
    if pack_uri is None or offset is None or length is None:
        raise StorageFailed(f"neither content nor a whole reference: {pack_uri}, {offset}, {length}")
    with closing(PackFile(pack_uri, offset, length)) as file:
        try:
            yield file
        except Exception:
            file.check()
            raise
        file.check()
