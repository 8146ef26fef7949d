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
from jobs.sample_media import BASE, build, sample_folder

ADDRESS = "127.0.0.1"
PORT = 8642  # fixed, since a document is known by its URL: another port makes other documents


@cache
def _etag(path: str, changed_ns: int) -> str:
    return f'"{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]}"'


class _Handler(BaseHTTPRequestHandler):
    """Files of one folder over HTTP/1.1 with validators; no listings, nothing above the folder."""

    protocol_version = "HTTP/1.1"
    server_version = "lakelens-demo"
    sys_version = ""
    site: Path
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
        content_type = self.content_types.get(path.relative_to(self.site).as_posix(), guessed)
        self._begin(HTTPStatus.OK, {"Content-Type": content_type, **validators}, status.st_size)
        if self.command == "GET":
            self.wfile.write(path.read_bytes())

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
    handler = type("SampleHandler", (_Handler,), {"site": site, "content_types": content_types})
    try:
        server = _Server((ADDRESS, port), handler)
    except (OSError, OverflowError) as e:
        raise ConfigError(
            f"port {port} of {ADDRESS} cannot be listened on ({e}); stop what uses it, or name another by --port and "
            "keep to it: the demo's documents are known by their URLs, so by the port too"
        ) from e
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_urls(sample: Path, base_url: str) -> Path:
    """Write the URL list of a sample with its addresses filled in; returns its path, which depends on the port."""
    path = sample / f"urls-{urllib.parse.urlsplit(base_url).port}.jsonl"
    path.write_text((sample / "urls.jsonl").read_text().replace(BASE, base_url))
    return path


def demo_overrides(sample: Path, base_url: str) -> dict[str, Any]:
    """What the demo lays over the configuration: conf/demo.yaml, the two sources, where the golden sets of that file
    have their labels and pictures, and the one address exempt."""
    settings = yaml.safe_load(built_in("demo.yaml"))
    sources = [
        {"name": "web", "kind": "urls", "uri": str(write_urls(sample, base_url).resolve())},
        {"name": "folder", "kind": "folder", "uri": str((sample / "folder").resolve())},
    ]
    served = {"sources": sources, "allow_addresses": [urllib.parse.urlsplit(base_url).netloc]}
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
