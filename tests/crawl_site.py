"""A real HTTP server on loopback for crawl tests, whose behaviour is a table of paths and whose log is evidence."""

from __future__ import annotations

import asyncio
import io
import math
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image

from jobs.fetch_settings import Settings

SETTINGS = Settings(  # of a fetcher that is in a hurry
    contact=None,
    exemptions=frozenset(),
    max_connections_per_host=2,
    delay_s=0,
    connect_timeout_s=1,
    timeout_s=1,
    max_bytes=10_000,
    max_redirects=2,
    max_attempts=2,
    backoff_s=0.01,
    round_s=5,
)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, "Asked"], Awaitable[None]]
Answer = bytes | Handler | list["bytes | Handler"]  # a list answers in turn, its last for ever


@dataclass
class Asked:
    """One request as the server saw it."""

    path: str
    headers: Mapping[str, str]
    at_s: float
    n_open: int  # connections open at that moment, this one included
    begun_s: float = math.inf  # when the first byte of the answer was written


@dataclass
class Site:
    """A running server: where it is and what it was asked."""

    ip: str = "127.0.0.1"
    port: int = 0
    log: list[Asked] = field(default_factory=list)
    n_open: int = 0  # connections

    @property
    def address(self) -> str:
        """Address and port as `crawl.allow_addresses` takes them."""
        return f"{self.ip}:{self.port}"

    def url(self, path: str) -> str:
        """The URL of a path."""
        return f"http://{self.address}{path}"

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [asked.path for asked in self.log]


def answer(status: str = "200 OK", body: bytes = b"", **headers: str) -> bytes:
    """A whole HTTP answer; underscores in header names become hyphens."""
    given = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def jpeg(shade: int = 0, width: int = 20, height: int = 10) -> bytes:
    """A small JPEG; another shade is another content."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 100, 200)).save(file, "JPEG")
    return file.getvalue()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> None:
    """No answer until the client gives up."""
    await reader.read()


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> None:
    """A connection that is reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    raise ConnectionResetError


@contextmanager
def serving(pages: Mapping[str, Answer], ip: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve `pages`, path to answer, on a free port of a loopback address; any other path is 404."""
    with serving_all([(ip, pages)], tls) as (site,):
        yield site


@contextmanager
def serving_all(
    sites: Sequence[tuple[str, Mapping[str, Answer]]], tls: ssl.SSLContext | None = None
) -> Iterator[list[Site]]:
    """Serve the pages of several sites, each on a free port of its loopback address, in one thread."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    running = [Site(ip) for ip, _ in sites]

    async def serve() -> None:
        for site, (_, pages) in zip(running, sites, strict=True):
            server = await asyncio.start_server(_connection(site, pages), site.ip, 0, ssl=tls)
            site.port = server.sockets[0].getsockname()[1]
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield running
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def _connection(
    site: Site, pages: Mapping[str, Answer]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    n_asked: dict[str, int] = {}

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.n_open += 1
        write = writer.write
        try:
            while line := await reader.readline():
                path = line.split()[1].decode()
                headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                asked = Asked(path, headers, time.monotonic(), site.n_open)
                site.log.append(asked)
                writer.write = _noted(write, asked)  # type: ignore[method-assign]
                found = pages.get(path, answer("404 Not Found"))
                if isinstance(found, list):
                    n_asked[path] = n_asked.get(path, 0) + 1
                    found = found[min(n_asked[path], len(found)) - 1]
                if isinstance(found, bytes):
                    writer.write(found)
                    await writer.drain()
                else:
                    await found(reader, writer, asked)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            site.n_open -= 1
            writer.close()

    return connection


def _noted(write: Callable[[bytes], None], asked: Asked) -> Callable[[bytes], None]:
    def noting(data: bytes) -> None:
        asked.begun_s = min(asked.begun_s, time.monotonic())
        write(data)

    return noting
