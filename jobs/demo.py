"""Serves the sample site on loopback and says how the demo is configured. Knows no Spark and runs no job."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import socket
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from jobs.config import ConfigError, built_in, merge
from jobs.sample_archives import HELD, write_table, write_wat
from jobs.sample_media import build, sample_folder
from jobs.sample_site import BASE

ADDRESS = "127.0.0.1"
PORT = 8642  # fixed, since a document is known by its URL: another port makes other documents
FILLED = ("robots.txt", "sitemap.xml")  # files of the site that name the address it is served at


@cache
def _etag(path: str, changed_ns: int) -> str:
    return f'"{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]}"'


class _Handler(BaseHTTPRequestHandler):
    """Files of one folder over HTTP/1.1 with validators; no listings, nothing above the folder."""

    protocol_version = "HTTP/1.1"
    server_version = "lakelens-demo"
    sys_version = ""
    site: Path
    base_url: str
    content_types: Mapping[str, str]

    def _file(self) -> Path | None:
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        path = (self.site / name).resolve()
        if path.is_dir():
            path = path / "index.html"
        return path if path.is_file() and path.is_relative_to(self.site) else None

    def _begin(self, status: HTTPStatus, headers: Mapping[str, str], length_bytes: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length_bytes is not None:
            self.send_header("Content-Length", str(length_bytes))
        self.end_headers()

    def do_GET(self) -> None:
        path = self._file()
        if path is None:
            body = b"Not Found\n"
            self._begin(HTTPStatus.NOT_FOUND, {"Content-Type": "text/plain"}, len(body))
            if self.command == "GET":
                self.wfile.write(body)
            return
        status = path.stat()
        guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        etag = _etag(str(path), status.st_mtime_ns)
        validators = {"ETag": etag, "Last-Modified": formatdate(status.st_mtime, usegmt=True)}
        if etag in (tag.strip() for tag in self.headers.get("If-None-Match", "").split(",")):
            self._begin(HTTPStatus.NOT_MODIFIED, validators, None)
            return
        name, body = path.relative_to(self.site).as_posix(), path.read_bytes()
        if name in FILLED:
            body = body.replace(BASE.encode(), self.base_url.encode())
        content_type = self.content_types.get(name, guessed)
        self._begin(HTTPStatus.OK, {"Content-Type": content_type, **validators}, len(body))
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the crawl's `fetches` table is the record."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True  # a finished demo leaves its port in TIME_WAIT; another listener still holds it

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # headers and body are two writes
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet about clients that hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve(sample: Path, *, port: int = PORT) -> Iterator[str]:
    """Serve site/ of a sample on loopback while the block runs; yields its base URL without a slash at the end.

    port: 0 for any free one. Raises ConfigError where the port is taken.
    """
    site = (sample / "site").resolve()
    content_types = json.loads((sample / "content_types.json").read_text())
    handler: type[_Handler] = type("SampleHandler", (_Handler,), {"site": site, "content_types": content_types})
    try:
        server = _Server((ADDRESS, port), handler)
    except (OSError, OverflowError) as e:
        raise ConfigError(
            f"port {port} of {ADDRESS} cannot be listened on ({e}); stop what uses it, or name another by --port and "
            "keep to it: the demo's documents are known by their URLs, so by the port too"
        ) from e
    handler.base_url = f"http://{ADDRESS}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield handler.base_url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def addressed(sample: Path, base_url: str) -> dict[str, Path]:
    """Write the lists of a sample with its addresses filled in, by kind of source; the paths depend on the port."""
    port = urllib.parse.urlsplit(base_url).port

    def text(name: str) -> str:
        return (sample / name).read_text().replace(BASE, base_url)

    paths = {
        "urls": sample / f"urls-{port}.jsonl",
        "wat": sample / f"linked-{port}.warc.wat.gz",
        "table": sample / f"listed-{port}.parquet",
    }
    paths["urls"].write_text(text("urls.jsonl"))
    write_wat(paths["wat"], [json.loads(line) for line in text("linked.jsonl").splitlines()])
    write_table(paths["table"], [json.loads(line) for line in text("listed.jsonl").splitlines()], has_bytes=False)
    return paths


def sources(sample: Path, base_url: str) -> list[dict[str, Any]]:
    """One source or two of each kind: what is served, and what files of the sample hold."""
    lists, archives = addressed(sample, base_url), sample / "archives"
    files = [
        ("web", "urls", lists["urls"]),
        ("folder", "folder", sample / "folder"),
        *((kind, kind, archives / file) for kind, file in HELD.items()),
        ("wat", "wat", lists["wat"]),
        ("list", "table", lists["table"]),
    ]
    held = [{"name": name, "kind": kind, "uri": str(path.resolve())} for name, kind, path in files]
    return [*held, {"name": "site", "kind": "site", "start": [f"{base_url}/"]}]


def demo_overrides(sample: Path, base_url: str) -> dict[str, Any]:
    """What the demo lays over the configuration: conf/demo.yaml, the sources, where the golden sets of that file have
    their labels and pictures, and the one address exempt."""
    settings = yaml.safe_load(built_in("demo.yaml"))
    exempt = [urllib.parse.urlsplit(base_url).netloc]
    served = {"sources": sources(sample, base_url), "allow_addresses": exempt}
    golden = [
        {**one, "labels": str((sample / "golden" / one["labels"]).resolve()), "pictures": base_url}
        for one in settings["golden"]
    ]
    return merge(settings, {"crawl": served, "golden": golden})


def prepared_sample() -> Path:
    """The sample that `make setup` builds, built now if it is absent or of another version.

    Raises SampleError, and WeightsError where a package cannot be had.
    """
    return build(sample_folder())
