"""Archives for tests: WARC and WAT records, WebDataset shards and tables, byte by byte. Knows no reader of ours."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from jobs.urls import doc_id

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8
PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 3000


def record(kind: str, url: str, block: bytes, content_type: str = "application/http; msgtype=response") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{doc_id(url)}>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def answer(body: bytes, content_type: str | None = "image/jpeg", status: str = "200 OK", headers: str = "") -> bytes:
    declared = f"Content-Type: {content_type}\r\n" if content_type is not None else ""
    return f"HTTP/1.1 {status}\r\n{declared}{headers}\r\n".encode() + body


def response(url: str, body: bytes = JPEG, **more: Any) -> bytes:
    return record("response", url, answer(body, **more))


def write_warc(path: Path, *records: bytes) -> Path:
    path.write_bytes(b"".join(map(gzip.compress, records) if path.suffix == ".gz" else records))
    return path


def write_tar(path: Path, *members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_table(path: Path, rows: dict[str, pa.Array], **more: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(rows), path, **more)
    return path


def page(url: str, links: Any, *, head: Any = None, headers: Any = None) -> bytes:
    html = {"Head": head or {}, "Links": links}
    answer = {"Headers": headers or {}, "HTML-Metadata": html}
    warc = {"WARC-Target-URI": url}
    envelope = {"Payload-Metadata": {"HTTP-Response-Metadata": answer}, "WARC-Header-Metadata": warc}
    return record("metadata", url, json.dumps({"Envelope": envelope}).encode(), "application/json")
