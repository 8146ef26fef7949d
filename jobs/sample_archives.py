"""The archives of the sample: WARC, WAT, WebDataset, tables. Knows bytes, no picture; equal input gives equal bytes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jobs.sample_site import BASE, Document, again, file_url

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecordType

ARCHIVED_AT = datetime(2024, 3, 1, tzinfo=UTC)
TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4"}


def content_type(path: str) -> str:
    """What a server says of a file by its suffix; raises KeyError for one that is not in TYPES."""
    return TYPES[PurePosixPath(path).suffix]


def _record(kind: WarcRecordType, url: str, block: bytes, type_: str) -> bytes:
    """One WARC record as a gzip member, as readers by offset want it."""
    from fastwarc.warc import WarcRecord

    record = WarcRecord()
    record.init_headers(kind, uuid.uuid5(uuid.NAMESPACE_URL, url).urn.removeprefix("urn:").encode())
    record.headers["WARC-Target-URI"] = url
    record.headers["Content-Type"] = type_
    record.record_date = ARCHIVED_AT
    record.set_bytes_content(block)
    written = io.BytesIO()
    record.write(written)
    return gzip.compress(written.getvalue(), mtime=0)


def write_warc(path: Path, answers: Iterable[tuple[str, str, bytes]]) -> None:
    """Write (URL, Content-Type, body) as the records of responses with status 200, behind that of a page."""
    from fastwarc.warc import WarcRecordType

    page = ("http://archive.example/", "text/html", b"<!doctype html>\n<title>What is no picture is left out</title>\n")
    records = []
    for url, type_, body in (page, *answers):
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {type_}\r\nContent-Length: {len(body)}\r\n\r\n"
        records.append(
            _record(WarcRecordType.response, url, head.encode() + body, "application/http; msgtype=response")
        )
    path.write_bytes(b"".join(records))


def write_wat(path: Path, pages: Iterable[Mapping[str, Any]]) -> None:
    """Write pages, each its url, title and pictures of src and alt, as Common Crawl's WAT files describe pages."""
    from fastwarc.warc import WarcRecordType

    records = []
    for page in pages:
        links = [{"path": "IMG@/src", "url": one["src"], "alt": one["alt"]} for one in page["pictures"]]
        html = {"Head": {"Title": page["title"]}, "Links": links}
        answer = {"Headers": {"Content-Type": "text/html"}, "HTML-Metadata": html}
        envelope = {
            "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": page["url"]},
            "Payload-Metadata": {"HTTP-Response-Metadata": answer},
        }
        said = json.dumps({"Envelope": envelope}, ensure_ascii=False).encode()
        records.append(_record(WarcRecordType.metadata, page["url"], said, "application/json"))
    path.write_bytes(b"".join(records))


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write members by name and bytes as a tar, those of a sample one after another."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)  # of no time and no owner
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], *, has_bytes: bool) -> None:
    """Write rows of url and caption, and `image`, the bytes, where a table has them, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = {"url": pa.string(), "caption": pa.string()} | ({"image": pa.binary()} if has_bytes else {})
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows), schema=pa.schema(columns.items())), path)


HELD = {"warc": "archive.warc.gz", "webdataset": "shard.tar", "table": "pictures.parquet"}  # kind -> file


def archived_documents(described: Mapping[str, Any], site: Mapping[str, Document]) -> Iterator[Document]:
    """Every document that archives hold, or that lists of archives name. described: the section of the sample.

    What has no URL is known by the archive and the name or number of the member.
    """
    for kind, file in HELD.items():
        for number, item in enumerate(described[kind]):
            name = PurePosixPath(item["of"]).name
            url = item.get("url") or f"{file_url(f'archives/{file}')}#{number if kind == 'table' else name}"
            yield again(site[item["of"]], kind, name, url=url, caption=item.get("caption"))
    for page in described["linked"]:
        for item in page["pictures"]:
            yield again(site[item["of"]], "wat", item["path"], caption=item["caption"], collection=page["url"])
    for item in described["listed"]:
        yield again(site[item["of"]], "list", item["path"], caption=item["caption"])


def write_archives(folder: Path, described: Mapping[str, Any], site: Mapping[str, Document]) -> None:
    """Write archives/, and as JSON lines what is written anew for each address that the site is served at."""

    def content(item: Mapping[str, Any]) -> bytes:
        return site[item["of"]].content or b""

    archives = folder / "archives"
    archives.mkdir()
    answers = [(item["url"], content_type(item["of"]), content(item)) for item in described["warc"]]
    write_warc(archives / HELD["warc"], answers)
    members: list[tuple[str, bytes]] = []
    for item in described["webdataset"]:
        path = PurePosixPath(item["of"])
        said = {"url": item.get("url"), "caption": item["caption"]}
        text = (".json", json.dumps(said)) if "url" in item else (".txt", item["caption"])
        members += [(path.name, content(item)), (path.stem + text[0], text[1].encode())]
    write_shard(archives / HELD["webdataset"], members)
    rows = [{"url": item.get("url"), "caption": item["caption"], "image": content(item)} for item in described["table"]]
    write_table(archives / HELD["table"], rows, has_bytes=True)
    pages = [
        {
            "url": page["url"],
            "title": page["title"],
            "pictures": [{"src": f"{BASE}/{one['path']}", "alt": one["caption"]} for one in page["pictures"]],
        }
        for page in described["linked"]
    ]
    listed = [{"url": f"{BASE}/{item['path']}", "caption": item["caption"]} for item in described["listed"]]
    for name, lines in (("linked", pages), ("listed", listed)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
