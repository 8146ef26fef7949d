"""A real S3 server on loopback, and a real proxy before it that counts requests and answers some with 503 SlowDown."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.ports import free_port

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
START_S = 60
AZURITE_PORT = 10000


def environment(endpoint: str, tracking: Path, **changed: str) -> dict[str, str]:
    """The environment by which Spark and Python both find the store; runs are logged in a SQLite file."""
    given = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1", "MLFLOW_TRACKING_URI": f"sqlite:///{tracking}", "SPARK_LOCAL_IP": "127.0.0.1",
    }  # fmt: skip
    return {key: value for key, value in os.environ.items() if not key.startswith("AWS_")} | given | changed


@contextmanager
def moto(log: Path, *buckets: str, **changed: str) -> Iterator[str]:
    """An S3 server with these buckets; yields its endpoint."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env=os.environ | changed, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + START_S
        while not _listens(port):
            assert time.monotonic() < until and process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
        for bucket in buckets:
            assert request("PUT", port, f"/{bucket}").status == 200
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def azurite(folder: Path, container: str) -> Iterator[None]:
    """Azure's blob emulator on its one port, with a container; skips where it is not installed."""
    program = os.environ.get("AZURITE") or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on PATH and AZURITE does not name it: npm install azurite")
    if _listens(AZURITE_PORT):
        pytest.skip(f"port {AZURITE_PORT}, the only one where Hadoop looks for the emulator, is taken")
    command = [program, "--silent", "--skipApiVersionCheck", "--location", str(folder), "--blobPort", str(AZURITE_PORT)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        until = time.monotonic() + START_S
        while not _listens(AZURITE_PORT):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.1)
        from azure.storage.blob import BlobServiceClient

        BlobServiceClient.from_connection_string("UseDevelopmentStorage=true").create_container(container)
        yield
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def request(method: str, port: int, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    connection.request(method, path, headers={"Authorization": signed})
    answer = connection.getresponse()
    answer.read()
    return answer


@dataclass
class Proxy:
    """What passes: counts by method and kind, and the faults to come."""

    endpoint: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[str, str]] = field(default_factory=list)  # path and Range of each ranged GET
    share: float = 0.0  # of the requests that are answered with 503
    burst: int = 0  # so many of the next requests are
    n_faults: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(0))
    lock: Any = field(default_factory=threading.Lock)

    def is_fault(self) -> bool:
        with self.lock:
            self.burst, in_burst = max(0, self.burst - 1), self.burst > 0
            faulty = in_burst or self.random.random() < self.share
            self.n_faults += faulty
            return faulty


@contextmanager
def proxied(endpoint: str) -> Iterator[Proxy]:
    """A proxy before the server at `endpoint`."""
    proxy = Proxy()
    target = urlsplit(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with proxy.lock:
                proxy.seen[self.command] += 1
                if "Range" in self.headers:
                    proxy.ranges.append((self.path, self.headers["Range"]))
            if proxy.is_fault():
                self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
                return
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                self.answer(answer.status, answer.getheaders(), answer.read())
            finally:
                connection.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()
