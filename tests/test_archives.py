"""WARC, WAT, tar and Parquet archives: what they hold as sightings, the bytes again by their place, and damage."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped]
import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs import archives
from jobs.archives import BrokenMember, Payload, open_member
from jobs.config import Source
from jobs.files import read_file
from jobs.outcomes import Outcome, Request
from jobs.robots import headers_opt_out
from jobs.sources import Sighting, SourceError, check_source, sightings, source_parts
from jobs.urls import host_bucket
from tests.archive_files import JPEG, PNG, answer, page, record, response, write_table, write_tar, write_warc
from tests.crawl_site import SETTINGS


class CountedFile(io.BytesIO):
    """A file of the file system below."""

    def read(self, size: int | None = -1, /) -> bytes:
        if CountedFileSystem.is_down:
            raise OSError("the store is down")
        data = super().read(size)
        CountedFileSystem.n_read += len(data)
        return data


class CountedFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory that count how often they are opened and how many bytes are read."""

    protocol = "counted"
    store: dict[str, Any] = {}  # noqa: RUF012
    n_opened = n_read = n_asked = 0
    is_down = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("counted://")))

    def info(self, path: str, **kwargs: Any) -> Any:
        CountedFileSystem.n_asked += 1
        return super().info(path, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode, **kwargs)
        if mode != "rb":
            return file
        CountedFileSystem.n_opened += 1
        return CountedFile(file.getvalue())


fsspec.register_implementation("counted", CountedFileSystem, clobber=True)


def seen(uri: Path | str, kind: str, **more: Any) -> list[Sighting]:
    return list(sightings(Source.model_validate({"name": "s", "kind": kind, "uri": str(uri), **more})))


def content(sighting: Sighting) -> bytes:
    assert sighting.root is not None and sighting.held_as is not None
    with closing(open_member(sighting.root, sighting.held_as, sighting.offset, sighting.length)) as member:
        return b"".join(iter(lambda: member.read(1000), b""))


def outcome(sighting: Sighting, max_bytes: int = 1 << 20) -> Outcome:
    request = Request(
        doc_id=sighting.doc_id,
        url=sighting.url,
        host=sighting.host,
        root=sighting.root,
        held_as=sighting.held_as,
        offset=sighting.offset,
        length=sighting.length,
    )
    return read_file(request, replace(SETTINGS, max_bytes=max_bytes))


# -- WARC ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_pictures_and_videos_of_a_warc_are_listed_and_read_by_their_place(tmp_path: Path, name: str) -> None:
    warc = write_warc(
        tmp_path / name,
        record("warcinfo", "", b"software: x\r\n", "application/warc-fields"),
        response("http://example.com/a.jpg#x"),
        record("request", "http://example.com/a.jpg", b"GET /a.jpg HTTP/1.1\r\n\r\n", "application/http"),
        response("http://example.com/page", b"<html><img src=a.jpg></html>", content_type="text/html"),
        response("http://example.com/File:b.jpg", b"<!doctype html><p>", content_type="text/html"),
        response("http://example.com/sniffed", PNG, content_type="application/octet-stream"),
        response("http://example.com/gone.jpg", JPEG, status="404 Not Found"),
        record("revisit", "http://example.com/a.jpg", answer(b"")),
        response("<http://example.com/ü b?q=1>", PNG, content_type="IMAGE/PNG; charset=x"),
        response("http://example.com/unknown.mp4?x", b"\x01\x02" * 50, content_type=None),
        record("resource", "ftp://example.com/c.jpg", JPEG, "image/jpeg"),
        record("resource", "http://example.com/d", PNG, "image/png"),
        record("metadata", "http://example.com/a.jpg", b"x: y\r\n", "application/warc-fields"),
    )
    found = seen(warc, "warc", priority=7)
    assert [(s.url, s.problem is None) for s in found] == [
        ("http://example.com/a.jpg", True),
        ("http://example.com/sniffed", True),
        ("http://example.com/%C3%BC%20b?q=1", True),
        ("http://example.com/unknown.mp4?x", True),
        ("ftp://example.com/c.jpg", False),
        ("http://example.com/d", True),
    ]
    assert {(s.held_as, s.root, s.priority) for s in found} == {("warc", warc.as_uri(), 7)}
    assert found[0].host_bucket == host_bucket("example.com") and found[0].version is not None
    assert [content(s) for s in found] == [JPEG, PNG, PNG, b"\x01\x02" * 50, JPEG, PNG]
    stored = warc.read_bytes()
    for sighting in found:
        assert sighting.offset is not None and sighting.length is not None
        piece = stored[sighting.offset : sighting.offset + sighting.length]
        assert (gzip.decompress(piece) if name.endswith("gz") else piece).startswith(b"WARC/1.0")
    got = outcome(found[1])
    assert got.content == PNG and got.error is None and got.facts.mime == "image/png"


def chunked(data: bytes, size: int = 700) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(JPEG), "Content-Encoding: gzip\r\n"),
        (brotli.compress(JPEG), "content-encoding: BR\r\n"),
        (zlib.compress(JPEG), "Content-Encoding: deflate\r\n"),
        (chunked(JPEG), "Transfer-Encoding: chunked\r\n"),
        (chunked(gzip.compress(JPEG), 50), "Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n"),
        (JPEG, "Content-Encoding: gzip\r\n"),
        (JPEG, "Content-Encoding: x-unknown\r\n"),
        (JPEG, "Content-Encoding: br\r\nTransfer-Encoding: chunked\r\n"),
        (gzip.compress(JPEG), "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
        (chunked(JPEG), "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
        (JPEG, "Content-Encoding: identity\r\n"),
    ],
)
def test_an_encoded_payload_comes_decoded_whatever_the_archiver_decoded(
    tmp_path: Path, body: bytes, headers: str
) -> None:
    warc = write_warc(
        tmp_path / "a.warc.gz",
        response("http://a/declared", body, headers=headers),
        response("http://a/sniffed", body, content_type="application/octet-stream", headers=headers),
    )
    found = seen(warc, "warc")
    assert "http://a/declared" in [s.url for s in found]
    assert [content(s) for s in found] == [JPEG] * len(found)
    assert outcome(found[0]).error is None


@pytest.mark.parametrize("body", [b"\x01\x02" * 900, gzip.compress(JPEG)[:-900] + b"\0" * 900])
def test_a_payload_that_cannot_be_decoded_is_an_error_of_its_row(tmp_path: Path, body: bytes) -> None:
    warc = write_warc(tmp_path / "a.warc.gz", response("http://a/", body, headers="Content-Encoding: gzip\r\n"))
    (sighting,) = seen(warc, "warc")
    error = outcome(sighting).error
    assert error is not None and error["code"] == "not_found" and "warc at 0 in file:" in error["detail"]


def test_what_is_encoded_is_sniffed_decoded(tmp_path: Path) -> None:
    bodies = [gzip.compress(PNG), brotli.compress(PNG), chunked(gzip.compress(PNG), 5)]
    headers = ["Content-Encoding: gzip\r\n", "Content-Encoding: br\r\n"]
    headers.append("Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n")
    records = [response(f"http://a/{n}", bodies[n], content_type=None, headers=headers[n]) for n in range(3)]
    page = gzip.compress(b"<html>" * 100)
    records.append(response("http://a/x.jpg", page, content_type="text/html", headers=headers[0]))
    assert [s.url for s in seen(write_warc(tmp_path / "a.warc.gz", *records), "warc")] == [
        "http://a/0",
        "http://a/1",
        "http://a/2",
    ]


def test_a_bomb_is_cut_off_while_it_is_decoded(tmp_path: Path) -> None:
    compressor = brotli.Compressor(quality=1)
    packed = b"".join(compressor.process(b"\0" * (1 << 20)) for _ in range(512)) + compressor.finish()
    assert len(packed) < 1 << 20
    headers = "Content-Encoding: br\r\n"
    body = b"\0" * (200 << 20)
    warc = write_warc(
        tmp_path / "b.warc.gz", response("http://a/1", packed, headers=headers), response("http://a/2", body)
    )
    del body
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for sighting in seen(warc, "warc"):
        got = outcome(sighting, max_bytes=100_000)
        assert got.error is not None and got.error["code"] == "too_large" and got.attempts[0].bytes == 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50 << 10


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_a_warc_cut_anywhere_lists_what_is_whole_and_says_where_it_is_cut(tmp_path: Path, name: str) -> None:
    body = JPEG[:4] + random.Random(0).randbytes(300)
    whole, last = response("http://a/1", body), response("http://a/2", body)
    if name.endswith(".gz"):
        whole, last = gzip.compress(whole), gzip.compress(last)
    path = tmp_path / name
    for cut in range(1, len(last)):
        path.write_bytes(whole + last[:cut])
        found = seen(path, "warc")
        assert content(found[0]) == body and found[0].length == len(whole), cut
        if not name.endswith(".gz") and cut >= len(last) - 4:  # the record is whole, only its end is not marked
            assert [s.url for s in found] == ["http://a/1", "http://a/2"] and content(found[1]) == body
        else:
            (problem,) = found[1:]
            assert problem.problem is not None and f"at byte {len(whole)} of {path.as_uri()}" in problem.problem, cut
            assert problem.held_as is None
    path.write_bytes(whole + last)
    assert [content(s) for s in seen(path, "warc")] == [body, body]


def test_damage_in_a_warc_ends_its_list_with_its_place(tmp_path: Path) -> None:
    first, second = response("http://a/1"), response("http://a/2", PNG)
    packed, large = gzip.compress(first), response("http://a/3", random.Random(4).randbytes(500_000))
    flipped = bytearray(gzip.compress(response("http://a/x", random.Random(1).randbytes(5000))))
    flipped[3000] ^= 1
    for data, n_good, at in [
        (packed + b"garbage" * 9, 1, len(packed)),
        (packed + b"\0" * 20 + gzip.compress(second), 1, len(packed)),
        (packed + bytes(flipped) + gzip.compress(second), 1, len(packed)),
        (packed + gzip.compress(second)[:-8] + b"\0" * 8, 1, len(packed)),
        (packed + gzip.compress(large)[:-8] + b"\0" * 8, 1, len(packed)),
        (packed + gzip.compress(first + second) + gzip.compress(second), 1, len(packed)),
        (b"not an archive at all", 0, 0),
        (gzip.compress(b"neither is this"), 0, 0),
    ]:
        (tmp_path / "a.warc.gz").write_bytes(data)
        *good, bad = seen(tmp_path / "a.warc.gz", "warc")
        assert [s.url for s in good[:1]] == ["http://a/1"][:n_good]
        assert bad.problem is not None and "a.warc.gz" in bad.problem and "at byte " in bad.problem
        if len(good) == n_good:
            assert f"at byte {at} of" in bad.problem
        for sighting in good:
            assert content(sighting) in (JPEG, PNG)
    (tmp_path / "p.warc").write_bytes(first + b"garbage" * 9)
    (first_seen, bad) = seen(tmp_path / "p.warc", "warc")
    assert content(first_seen) == JPEG and bad.problem is not None and f"at byte {len(first)} of" in bad.problem
    (tmp_path / "p.warc").write_bytes(first + b"\r\n\r\n")
    assert [s.url for s in seen(tmp_path / "p.warc", "warc")] == ["http://a/1"]


def test_a_warc_compressed_as_one_says_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(gzip.compress(response("http://a/1") + response("http://a/2", PNG)))
    found = seen(path, "warc")
    problem = found[-1].problem
    assert problem is not None and "one gzip member for each record" in problem and "a.warc.gz" in problem
    assert all(content(s) == JPEG for s in found[:-1])


def test_odd_http_in_a_warc_does_not_end_its_list(tmp_path: Path) -> None:
    odd = [
        b"",
        JPEG,
        b"HTTP/1.1 200 OK\nContent-Type: image/jpeg\n\n" + JPEG,
        b"HTTP/1.1 200 OK\r\nContent-Type: image/p",
    ]
    odd += [
        b"HTTP/2 200\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG,
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 200 \xe4\r\n\r\n" + PNG,
    ]
    records = [record("response", f"http://a/{n}", block) for n, block in enumerate(odd)]
    found = seen(write_warc(tmp_path / "a.warc.gz", *records, response("http://a/last")), "warc")
    by_url = {s.url: s for s in found}
    assert {"http://a/2", "http://a/4", "http://a/6", "http://a/last"} <= by_url.keys()
    assert [s.problem for s in found] == [None] * len(found)
    assert content(by_url["http://a/2"]) == JPEG and content(by_url["http://a/6"]) == PNG


def test_ten_thousand_records_are_listed_and_each_is_at_its_place(tmp_path: Path) -> None:
    bodies = [JPEG[:100] + str(n).encode() for n in range(10_000)]
    warc = write_warc(tmp_path / "a.warc.gz", *(response(f"http://a/{n}", body) for n, body in enumerate(bodies)))
    found = seen(warc, "warc")
    assert [s.url for s in found] == [f"http://a/{n}" for n in range(10_000)]
    assert all(content(found[n]) == bodies[n] for n in random.Random(2).sample(range(10_000), 500))


# -- open archives ------------------------------------------------------------------------------------------------


@pytest.fixture
def counted() -> Iterator[type[CountedFileSystem]]:
    CountedFileSystem.store.clear()
    CountedFileSystem.is_down = False
    archives._open.clear()
    yield CountedFileSystem
    archives._open.clear()


def test_listing_the_files_of_a_source_opens_none_of_them(counted: type[CountedFileSystem]) -> None:
    fsspec.filesystem("counted").pipe({f"/b/{n}.warc": response("http://a/1") for n in range(3)})
    source = Source(name="s", kind="warc", uri="counted:///b")
    assert [part.uri for part in source_parts(source)] == [f"counted:///b/{n}.warc" for n in range(3)]
    check_source(source)
    assert counted.n_opened == 0
    assert len(seen("counted:///b", "warc")) == 3 and counted.n_opened == 3


def test_threads_read_one_archive_without_opening_it_each_time(counted: type[CountedFileSystem]) -> None:
    bodies = [JPEG + random.Random(n).randbytes(2000) for n in range(300)]
    packed = b"".join(gzip.compress(response(f"http://a/{n}", body)) for n, body in enumerate(bodies))
    fsspec.filesystem("counted").pipe("/b/a b.warc.gz", packed)
    found = seen("counted:///b", "warc")
    counted.n_opened = counted.n_asked = 0
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(content, found)) == bodies
    assert counted.n_opened <= 4 and counted.n_asked <= 20


def test_more_archives_than_stay_open_are_read_at_once(tmp_path: Path) -> None:
    for n in range(10):
        write_warc(tmp_path / f"{n}.warc.gz", response(f"http://a/{n}", JPEG + bytes([n]) * 5_000_000))
    found = seen(tmp_path, "warc")
    members = [open_member(s.root or "", "warc", s.offset, s.length) for s in found]
    assert len(archives._open) <= archives.N_OPEN
    first = [member.read(10_000) for member in members]
    assert [head + member.read(6_000_000) for head, member in zip(first, members, strict=True)] == [
        JPEG + bytes([n]) * 5_000_000 for n in range(10)
    ]


def test_an_archive_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    path = write_warc(tmp_path / "a.warc.gz", response("http://a/1"))
    (before,) = seen(path, "warc")
    assert content(before) == JPEG
    write_warc(tmp_path / "new", response("http://a/1", PNG * 2))
    (tmp_path / "new").unlink()
    new = write_warc(tmp_path / "b.warc.gz", response("http://a/1", PNG * 2))
    os.replace(new, path)
    (after,) = seen(path, "warc")
    assert content(after) == PNG * 2 and after.version != before.version


def test_what_is_not_at_its_place_is_an_error_of_its_row_that_is_not_tried_again(tmp_path: Path) -> None:
    path = write_warc(tmp_path / "a.warc.gz", response("http://a/1"), response("http://a/2", status="500 No"))
    page = write_warc(tmp_path / "b.warc.gz", record("request", "http://a/", b"GET / HTTP/1.1\r\n\r\n"))
    cut = tmp_path / "c.warc"
    cut.write_bytes(response("http://a/1")[:-500])
    end = len(gzip.compress(response("http://a/1")))
    for root, held_as, offset, length, said in [
        (path, "warc", 10**9, 10, "no such place"),
        (path, "warc", None, None, "no such place"),
        (path, "warc", 7, 500, "warc at 7"),
        (path, "warc", end, 5000, "HTTP status 500"),
        (page, "warc", 0, 5000, "no record of a response"),
        (cut, "warc", 0, 5000, "bytes are missing"),
        (path, "tar", 10, 10**6, "bytes are wanted"),
        (path, "parquet", 0, None, "parquet at 0"),
        (path, "zip", 0, 5, "not one of warc, tar, parquet"),
        (tmp_path / "none.warc", "warc", 0, 5, "is not there"),
    ]:
        request = Request(
            doc_id="d", url="http://a/", host="a", root=root.as_uri(), held_as=held_as, offset=offset, length=length
        )
        got = read_file(request, SETTINGS)
        assert got.error is not None and got.error["code"] == "not_found" and said in got.error["detail"], got.error
        assert got.next_fetch_at is None and len(got.attempts) == 1


def test_a_store_that_fails_is_worth_another_try(counted: type[CountedFileSystem]) -> None:
    fsspec.filesystem("counted").pipe("/b/a.warc.gz", gzip.compress(response("http://a/1", JPEG * 2000)))
    (sighting,) = seen("counted:///b/a.warc.gz", "warc")
    assert content(sighting) == JPEG * 2000
    counted.is_down = True
    got = outcome(sighting, max_bytes=10 << 20)
    assert got.error is not None and got.error["code"] == "connection_failed" and not got.is_final
    assert "the store is down" in got.error["detail"]
    with pytest.raises(SourceError, match=r"source s: counted:///b/a.warc.gz cannot be read: the store is down"):
        seen("counted:///b/a.warc.gz", "warc")
    counted.is_down = False
    assert content(sighting) == JPEG * 2000


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_store_that_fails_under_shards_and_tables_is_not_their_damage(
    counted: type[CountedFileSystem], tmp_path: Path, kind: str
) -> None:
    if kind == "tar":
        path, source = write_tar(tmp_path / "a.tar", ("a.jpg", JPEG)), "webdataset"
    else:
        path, source = (
            write_table(tmp_path / "a.parquet", {"content": pa.array([JPEG, PNG])}, row_group_size=1),
            "table",
        )
    uri = f"counted:///b/{path.name}"
    fsspec.filesystem("counted").pipe(f"/b/{path.name}", path.read_bytes())
    seen_before = seen(uri, source)
    archives._open.clear()
    assert content(seen_before[0]) == JPEG
    counted.is_down = True
    got = outcome(seen_before[-1])
    assert got.error is not None and got.error["code"] == "connection_failed", got.error
    with pytest.raises(SourceError, match="the store is down"):
        seen(uri, source)
    counted.is_down = False
    assert content(seen_before[-1]) == (JPEG if kind == "tar" else PNG)


# -- WebDataset ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_of_a_shard_are_listed_with_what_they_say_and_read_by_their_place(tmp_path: Path, form: int) -> None:
    said = {
        "url": "http://example.com/a.jpg#x",
        "caption": "ein B\u00e4r",
        "LICENSE": "CC0",
        "problem": "none",
        "key": 1,
    }
    shard = write_tar(
        tmp_path / "sh ard.tar",
        ("x/0.json", json.dumps(said).encode()),
        ("x/0.jpg", JPEG),
        ("x/0.txt", b"another"),
        ("x/1.seg.PNG", PNG),
        ("x/1.png", JPEG),
        ("x/1.caption", "über\n".encode()),
        ("y/1.cls", b"3"),
        ("y/._1.jpg", b"a resource fork"),
        ("ü #?%41/" + "n" * 150 + ".jpeg", PNG),
        ("b.json", b"{broken"),
        ("b.mp4", b"\0\0\0\x18ftypmp42" + bytes(100)),
        ("c.webp", b""),
        ("c.json", b'{"url": "not a url", "caption": ["x"], "page_url": "http://p/"}'),
        form=form,
    )
    found = seen(shard, "webdataset")
    own = shard.as_uri()
    assert [(s.url, s.caption) for s in found] == [
        ("http://example.com/a.jpg", "ein Bär"),
        (f"{own}#x/1.seg.PNG", "über"),
        (f"{own}#%C3%BC%20%23%3F%2541/{'n' * 150}.jpeg", None),
        (f"{own}#b.mp4", None),
        (f"{own}#c.webp", None),
    ]
    assert {(s.problem, s.held_as, s.root) for s in found} == {(None, "tar", own)}
    assert (found[0].license, found[0].host, found[4].page_url, found[4].host) == (
        "CC0",
        "example.com",
        "http://p/",
        "",
    )
    assert [content(s) for s in found] == [JPEG, PNG, PNG, b"\0\0\0\x18ftypmp42" + bytes(100), b""]
    assert outcome(found[1]).content == PNG
    empty = outcome(found[4]).error
    assert empty is not None and empty["code"] == "empty"


def test_names_of_members_need_not_be_utf_8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        member = tarfile.TarInfo("b\xe4r.jpg")
        member.size = len(JPEG)
        tar.addfile(member, io.BytesIO(JPEG))
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (sighting,) = seen(tmp_path / "a.tar", "webdataset")
    assert sighting.url.endswith("a.tar#b%E4r.jpg") and content(sighting) == JPEG


def test_a_member_with_an_endless_name_has_a_short_url_of_its_own(tmp_path: Path) -> None:
    names = ["n" * 100_000 + f"/{n}.jpg" for n in range(2)]
    found = seen(write_tar(tmp_path / "a.tar", *((name, JPEG) for name in names)), "webdataset")
    assert len({s.url for s in found}) == 2 and all(len(s.url) < 9000 for s in found)
    assert [content(s) for s in found] == [JPEG, JPEG]


def test_a_tar_cut_anywhere_lists_what_is_whole_and_says_where_it_is_cut(tmp_path: Path) -> None:
    members = [(f"{n}.jpg", JPEG[: 700 + n]) for n in range(3)]
    whole = write_tar(tmp_path / "a.tar", *members, form=tarfile.GNU_FORMAT).read_bytes()
    ends = [512 + 1024, 2 * (512 + 1024), 3 * (512 + 1024)]
    for cut in [*range(0, ends[-1] + 512, 61), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends)]:
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        *good, bad = seen(tmp_path / "a.tar", "webdataset")
        n_whole = sum(cut >= start + 512 + 700 + n for n, start in enumerate([0, *ends[:-1]]))
        assert [content(s) for s in good] == [data for _, data in members[:n_whole]], cut
        assert bad.problem is not None and "at byte " in bad.problem and "a.tar" in bad.problem and bad.held_as is None
    (tmp_path / "a.tar").write_bytes(whole[: ends[-1] + 512])
    assert len(seen(tmp_path / "a.tar", "webdataset")) == 3
    damaged = bytearray(whole)
    damaged[ends[0] : ends[0] + 100] = b"z" * 100
    (tmp_path / "a.tar").write_bytes(damaged)
    first, bad = seen(tmp_path / "a.tar", "webdataset")
    assert content(first) == members[0][1] and bad.problem is not None and f"at byte {ends[0]} of" in bad.problem
    (tmp_path / "a.tar").write_bytes(b"junk" * 1000)
    (bad,) = seen(tmp_path / "a.tar", "webdataset")
    assert bad.problem is not None and "at byte 0 of" in bad.problem


def test_a_compressed_shard_is_refused_wherever_it_lies(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("a.jpg", JPEG))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    for uri in (tmp_path, tmp_path / "b.tar.gz", tmp_path / "b"):
        with pytest.raises(SourceError, match=r"source s: .*b\.tar\.gz cannot be read by offset; allowed: \.tar"):
            seen(uri, "webdataset")


# -- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("content", pa.array([JPEG, None, PNG, b"", None])),
        ("Image", pa.array([JPEG, None, PNG, b"", None], pa.large_binary())),
        ("image", pa.array([{"bytes": JPEG, "path": "x"}, None, {"bytes": PNG}, {"bytes": b""}, {"path": "y"}])),
        ("jpg", pa.array([JPEG, None, PNG, b"", None], pa.binary_view())),
    ],
)
@pytest.mark.parametrize("statistics", [True, False])
def test_rows_with_bytes_are_read_from_the_table_and_others_fetched(
    tmp_path: Path, name: str, cells: pa.Array, statistics: bool
) -> None:
    urls = ["http://a/0", "http://a/1", "no url", None, None]
    table = write_table(
        tmp_path / "t ü.parquet",
        {name: cells, "URL": pa.array(urls), "caption": pa.array(["c"] * 5), "n": pa.array(range(5))},
        row_group_size=2,
        write_statistics=statistics,
    )
    found, own = seen(table, "table"), table.as_uri()
    assert [(s.url, s.held_as, s.offset, s.problem is None) for s in found] == [
        ("http://a/0", "parquet", 0, True),
        ("http://a/1", None, None, True),
        (f"{own}#2", "parquet", 2, True),
        (f"{own}#3", "parquet", 3, True),
        (f"{own}#4", None, None, False),
    ]
    assert {s.caption for s in found[:4]} == {"c"} and {s.length for s in found} == {None}
    assert (found[1].root, found[1].host) == (None, "a")
    assert [content(found[n]) for n in (3, 0, 2)] == [b"", JPEG, PNG]
    got = outcome(found[2])
    assert got.content == PNG and got.error is None
    with pytest.raises(BrokenMember, match="no bytes in any of content, image, bytes, jpg"):
        open_member(own, "parquet", 4, None)
    with pytest.raises(BrokenMember, match="no bytes"):
        open_member(own, "parquet", 5, None)


def test_a_table_of_bytes_alone_has_urls_of_its_own(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"bytes": pa.array([JPEG, PNG])})
    assert [(s.url, content(s)) for s in seen(table, "table")] == [
        (f"{table.as_uri()}#0", JPEG),
        (f"{table.as_uri()}#1", PNG),
    ]


def test_a_row_group_is_decoded_once_for_rows_that_are_read_one_after_another(
    counted: type[CountedFileSystem], tmp_path: Path
) -> None:
    generator = random.Random(3)
    cells = [JPEG[:4] + generator.randbytes(60_000) for _ in range(600)]
    table = write_table(tmp_path / "t.parquet", {"content": pa.array(cells)}, row_group_size=200)
    fsspec.filesystem("counted").pipe("/b/t.parquet", table.read_bytes())
    found = seen("counted:///b/t.parquet", "table")
    counted.n_read = counted.n_opened = 0
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(content, found)) == cells
    assert counted.n_read < 1.5 * table.stat().st_size and counted.n_opened <= 4
    order = list(range(600))
    generator.shuffle(order)
    assert all(content(found[n]) == cells[n] for n in order[:50])


def test_decoded_rows_of_a_large_row_group_are_given_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "KEPT_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "BATCH_BYTES", 200_000)
    cells = [JPEG[:4] + random.Random(n).randbytes(10_000) for n in range(1000)]
    table = write_table(tmp_path / "t.parquet", {"content": pa.array(cells)})
    found = seen(table, "table")
    for n in (0, 1, 500, 999, 998, 3, 700):
        assert content(found[n]) == cells[n]
        kept = archives._open[table.as_uri()].cells
        assert kept is not None and sum(part.nbytes for _, part in kept._kept) <= (1 << 20) + 250_000


def test_a_damaged_table_is_an_error_of_the_source_or_of_its_row(tmp_path: Path) -> None:
    cells = [JPEG[:4] + random.Random(n).randbytes(5000) for n in range(4)]
    table = write_table(tmp_path / "t.parquet", {"content": pa.array(cells)}, compression="zstd", row_group_size=1)
    found = seen(table, "table")
    data = bytearray(table.read_bytes())
    data[100:200] = b"\0" * 100
    table.write_bytes(data)
    got = outcome(found[0])
    assert got.content is None or got.content != cells[0]
    assert content(found[3]) == cells[3]
    table.write_bytes(data[:-50])
    with pytest.raises(SourceError, match=r"source s: .*t\.parquet cannot be read"):
        seen(table, "table")
    error = outcome(found[3]).error
    assert error is not None and error["code"] == "not_found"


def test_a_table_without_columns_to_use_names_those_it_has(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"image": pa.array(["a.jpg"]), "link": pa.array(["http://a/"])})
    with pytest.raises(SourceError, match=r"t\.parquet has neither a column url nor one of bytes; it has image, link"):
        seen(table, "table")


def index_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    defaults = {"warc_filename": "w/a.warc.gz", "warc_record_offset": 0, "warc_record_length": 10, "fetch_status": 200}
    defaults |= {"content_mime_type": "image/jpeg", "content_mime_detected": None}
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("url", "warc_filename", "content_mime_type", "content_mime_detected")),
            *((name, pa.int32()) for name in ("warc_record_offset", "warc_record_length", "fetch_status")),
        ]
    )
    pyarrow.parquet.write_table(pa.Table.from_pylist([defaults | row for row in rows], schema=schema), path)
    return path


def test_common_crawls_index_leads_to_records_of_warc_files(tmp_path: Path) -> None:
    (tmp_path / "cr awl" / "w").mkdir(parents=True)
    warc = write_warc(tmp_path / "cr awl" / "w" / "a.warc.gz", response("http://a/1"), response("http://a/2", PNG))
    listed = [
        {"url": s.url, "warc_record_offset": s.offset, "warc_record_length": s.length} for s in seen(warc, "warc")
    ]
    rows: list[dict[str, Any]] = [
        *listed,
        {"url": "http://a/page.jpg", "content_mime_type": "image/jpeg", "fetch_status": 404},
        {"url": "http://a/page2.jpg", "content_mime_type": "text/html"},
        {"url": "http://a/3.jpg", "content_mime_type": "application/octet-stream"},
        {"url": "http://a/3", "content_mime_type": "application/octet-stream"},
        {"url": "http://a/4", "content_mime_type": None, "content_mime_detected": "video/mp4"},
        {"url": "http://a/5", "warc_filename": "../../etc/passwd"},
        {"url": "http://a/6", "warc_record_offset": -1},
        {"url": "http://a/7", "warc_filename": None},
        {"url": "ftp://a/8"},
    ]
    index = index_table(tmp_path / "i.parquet", rows)
    with pytest.raises(SourceError, match=r"i\.parquet names records of WARC files; say in `archive`"):
        seen(index, "table")
    for archive in (str(tmp_path / "cr awl"), (tmp_path / "cr awl").as_uri() + "/"):
        found = seen(index, "table", archive=archive)
        assert [(s.url, s.held_as, s.problem is None) for s in found] == [
            ("http://a/1", "warc", True),
            ("http://a/2", "warc", True),
            ("http://a/3.jpg", "warc", True),
            ("http://a/4", "warc", True),
            ("http://a/5", None, False),
            ("http://a/6", None, False),
            ("http://a/7", None, True),
            ("ftp://a/8", "warc", False),
        ]
        assert [content(s) for s in found[:2]] == [JPEG, PNG] and found[0].root == warc.as_uri()
        assert found[0].version != found[1].version and found[0].version is not None
    (far, *_) = seen(index, "table", archive="s3://commoncrawl/?region=us-east-1")
    assert far.root == "s3://commoncrawl/w/a.warc.gz?region=us-east-1"


# -- WAT ----------------------------------------------------------------------------------------------------------


def test_pictures_and_videos_of_pages_in_a_wat_are_to_be_fetched(tmp_path: Path) -> None:
    links = [
        {"path": "IMG@/src", "url": "../a.jpg#x", "alt": "ein Bär"},
        {"path": "A@/href", "url": "/page"},
        {"path": "IMG@/src", "url": "data:image/gif;base64,AAAA"},
        {"path": "VIDEO@/src", "url": "//cdn.example.com/v.mp4"},
        {"path": "SOURCE@/src", "url": "v.webm"},
        {"path": "IMG@/src", "url": "http://other/b.jpg"},
        {"path": "IMG@/src", "url": "http://other/b.jpg", "alt": "second"},
        {"path": "IMG@/src", "url": " "},
        {"path": "IMG@/src", "url": 5},
        {"path": "IMG@/src", "url": "http://[broken/"},
        "odd",
    ]
    head = {"Title": " T\n", "Metas": [{"property": "og:image", "content": "/og.png"}, 7, {"name": None}]}
    wat = write_warc(
        tmp_path / "a.warc.wat.gz",
        record("warcinfo", "", b"x: y", "application/warc-fields"),
        page("http://example.com/x/y/z", links, head=head),
        page("http://example.com/x/", [links[0]], head={"Base": "/base/deep/"}),
        page("dns:example.com", [links[0], links[5]]),
        record("metadata", "http://a/", b'{"Envelope": {"Payload-Metadata": []}}', "application/json"),
        record("metadata", "http://a/", b"{broken", "application/json"),
        page("http://example.com/", {"not": "a list"}, head=["not", "a", "mapping"]),
        page("http://last/", [{"path": "IMG@/src", "url": "l.jpg"}]),
    )
    found = seen(wat, "wat")
    assert [(s.url, s.caption, s.problem is None) for s in found] == [
        ("http://example.com/x/a.jpg", "ein Bär", True),
        ("http://cdn.example.com/v.mp4", None, True),
        ("http://example.com/x/y/v.webm", None, True),
        ("http://other/b.jpg", "second", True),
        ("http://[broken/", None, False),
        ("http://example.com/og.png", None, True),
        ("http://example.com/base/a.jpg", "ein Bär", True),
        ("../a.jpg#x", "ein Bär", False),
        ("http://other/b.jpg", None, True),
        (found[9].url, None, False),
        ("http://last/l.jpg", None, True),
    ]
    assert (found[0].page_url, found[0].page_title) == ("http://example.com/x/y/z", "T")
    assert found[9].problem is not None and "a record is not JSON, at byte" in found[9].problem
    assert {(s.held_as, s.root, s.opted_out) for s in found if s.problem is None} == {(None, None, False)}
    wat.write_bytes(wat.read_bytes()[:-30])
    *same, cut = seen(wat, "wat")
    assert [s.url for s in same] == [s.url for s in found[:-1]] and cut.problem is not None and "cut" in cut.problem


@pytest.mark.parametrize(
    ("head", "headers", "by"),
    [
        ({"Metas": [{"name": "Robots", "content": "noindex, NoAI"}]}, {}, "meta: noai"),
        ({"Metas": [{"name": "robots", "content": "noimageindex noimageai"}]}, {}, "meta: noimageai"),
        ({"Metas": [{"name": "lakelens", "content": "noimageai"}]}, {}, "meta: noimageai"),
        ({"Metas": [{"name": "tdm-reservation", "content": "1"}]}, {}, "meta: tdm-reservation"),
        ({}, {"x-robots-TAG": "noai"}, "X-Robots-Tag: noai"),
        ({}, {"X-Robots-Tag": ["index", "noimageai"]}, "X-Robots-Tag: noimageai"),
        ({}, {"TDM-Reservation": "1"}, "TDM-Reservation: 1"),
        ({"Metas": [{"name": "robots", "content": "noindex, nofollow, noimageindex"}]}, {}, None),
        ({"Metas": [{"name": "otherbot", "content": "noai"}, {"name": "robots", "content": None}]}, {}, None),
        ({"Metas": [{"name": "tdm-reservation", "content": "0"}]}, {"X-Robots-Tag": "otherbot: noai"}, None),
    ],
)
def test_a_page_that_opts_out_takes_its_pictures_with_it(
    tmp_path: Path, head: dict[str, Any], headers: dict[str, Any], by: str | None
) -> None:
    links = [{"path": "IMG@/src", "url": "a.jpg"}, {"path": "IMG@/src", "url": "b.jpg"}]
    wat = write_warc(tmp_path / "a.wat", page("http://a/", links, head=head, headers=headers))
    assert [(s.url, s.opted_out, s.opted_out_by, s.problem) for s in seen(wat, "wat")] == [
        ("http://a/a.jpg", by is not None, by, None),
        ("http://a/b.jpg", by is not None, by, None),
    ]


def test_an_archived_picture_is_opted_out_by_the_headers_it_was_sent_with(tmp_path: Path) -> None:
    headers = (
        "",
        "x-robots-tag: all\r\nX-Robots-Tag: noai, noindex\r\n",
        "tdm-reservation: 1\r\n",
        "X-Robots-Tag: noindex\r\n",
    )
    records = [response(f"http://a/{n}", headers=said) for n, said in enumerate(headers)]
    warc = write_warc(tmp_path / "a.warc.gz", *records, record("resource", "http://a/4", PNG, "image/png"))
    by = [None, "X-Robots-Tag: noai", "TDM-Reservation: 1", None, None]
    assert [s.opted_out_by for s in seen(warc, "warc")] == by
    assert [s.opted_out for s in seen(warc, "warc")] == [reason is not None for reason in by]
    for sighting, reason in zip(seen(warc, "warc"), by, strict=True):  # which an index of records does not tell
        member = open_member(warc.as_uri(), "warc", sighting.offset, sighting.length)
        assert isinstance(member, Payload) and headers_opt_out(member.headers) == reason


@pytest.mark.parametrize("policy", [frozenset({"noindex"}), frozenset[str]()])
def test_archives_are_held_to_the_policy_that_is_given(tmp_path: Path, policy: frozenset[str]) -> None:
    links = [{"path": "IMG@/src", "url": "http://a/a.jpg"}]
    meta = {"Metas": [{"name": "robots", "content": "noai, noindex"}]}
    wat = write_warc(tmp_path / "a.wat", page("http://a/", links, head=meta))
    warc = write_warc(tmp_path / "a.warc", response("http://a/1", headers="X-Robots-Tag: noai, noindex\r\n"))
    for kind, file, name in (("wat", wat, "meta"), ("warc", warc, "X-Robots-Tag")):
        (found,) = sightings(Source.model_validate({"name": "s", "kind": kind, "uri": str(file)}), policy)
        assert found.opted_out_by == (f"{name}: noindex" if policy else None)
