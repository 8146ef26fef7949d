"""Folders and URL lists as sightings: real files of every kind, and what is wrong with them."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from jobs.config import Source
from jobs.sources import SIGHTINGS, Sighting, SourceError, open_file, sighting_batches, sightings

ROWS: list[dict[str, Any]] = [
    {"url": "http://example.com/a.jpg#x", "caption": "ein Bär", "license": "CC0"},
    {"url": " http://example.com/b.jpg ", "page_url": "http://example.com/", "page_title": "Home"},
    {"url": "ftp://example.com/c.jpg", "caption": "not fetched"},
]


def seen(uri: Path | str, kind: str = "urls") -> list[Sighting]:
    return list(sightings(Source.model_validate({"name": "s", "kind": kind, "uri": str(uri)})))


def as_csv(path: Path, delimiter: str = ",") -> None:
    names = ["URL", "caption", "page_url", "page_title", "license", "unused"]
    lines = [names, *([row.get(name.lower(), "") for name in names] for row in ROWS)]
    path.write_text("\ufeff" + "".join(delimiter.join(f'"{value}"' for value in line) + "\n" for line in lines))


def as_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("list.csv", as_csv),
        ("list.tsv", lambda path: as_csv(path, "\t")),
        ("list.v1.jsonl", as_jsonl),
        ("list.parquet", lambda path: pyarrow.parquet.write_table(pa.Table.from_pylist(
            [{name: row.get(name) for name in ("url", "caption", "page_url", "page_title", "license")} for row in ROWS]
        ), path)),
    ],
)  # fmt: skip
def test_a_list_of_any_form_gives_the_same_sightings(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    first, second, third = seen(tmp_path / name)
    assert (first.url, first.host, first.caption, first.license) == (
        "http://example.com/a.jpg",
        "example.com",
        "ein Bär",
        "CC0",
    )
    assert (second.url, second.page_url, second.page_title, second.caption) == (
        "http://example.com/b.jpg",
        "http://example.com/",
        "Home",
        None,
    )
    assert (third.url, third.host) == ("ftp://example.com/c.jpg", "")
    assert third.problem is not None and "ftp:" in third.problem
    assert len({sighting.doc_id for sighting in (first, second, third)}) == 3


def test_a_text_list_has_a_url_a_line_and_may_be_compressed(tmp_path: Path) -> None:
    text = b"# comment\nhttp://example.com/a\n\nhttp://example.com/\xff\r\nno url\n"
    (tmp_path / "l.txt").write_bytes(text)
    (tmp_path / "l.txt.gz").write_bytes(gzip.compress(text))
    (tmp_path / "l.txt.bz2").write_bytes(bz2.compress(text))
    plain = seen(tmp_path / "l.txt")
    assert [(s.url, s.problem is None) for s in plain] == [
        ("http://example.com/a", True),
        ("http://example.com/%EF%BF%BD", True),
        ("no url", False),
    ]
    assert seen(tmp_path / "l.txt.gz") == plain == seen((tmp_path / "l.txt.bz2").as_uri())


def test_a_row_that_cannot_be_used_is_still_a_row(tmp_path: Path) -> None:
    lines = ["{broken", '"text"', '{"caption": "no url"}', '{"url": 5}', '{"url": "http://a/", "caption": ["x"]}']
    (tmp_path / "l.jsonl").write_text("\n".join([*lines, '{"url": "\\ud800", "caption": "\\ud800"}']))
    found = seen(tmp_path / "l.jsonl")
    assert [s.problem is None for s in found] == [False, False, False, False, True, False]
    assert found[0].problem == "line 1 is not a JSON object" and found[4].caption is None
    (batch,) = list(sighting_batches([Source(name="s", kind="urls", uri=str(tmp_path / "l.jsonl"))]))
    assert batch.schema == SIGHTINGS and batch.column("ordinal").to_pylist() == list(range(6))


def test_a_folder_gives_every_file_below_it_by_its_uri_and_its_version_follows_its_content(tmp_path: Path) -> None:
    (tmp_path / "top" / "deep").mkdir(parents=True)
    (tmp_path / "top" / ".git").mkdir()
    for name in ("b #?ü%41.jpg", "deep/a.txt", ".hidden", ".git/c.jpg"):
        (tmp_path / "top" / name).write_bytes(name.encode())
    found = seen(tmp_path / "top", "folder")
    assert [s.url for s in found] == [(tmp_path / "top" / n).as_uri() for n in ("b #?ü%41.jpg", "deep/a.txt")]
    assert [(s.host, s.problem) for s in found] == [("", None)] * 2
    assert seen((tmp_path / "top").as_uri(), "folder") == found
    for sighting, name in zip(found, ("b #?ü%41.jpg", "deep/a.txt"), strict=True):
        assert sighting.root is not None
        with open_file(sighting.root, sighting.url) as file:
            assert file.read() == name.encode()
    (tmp_path / "top" / "deep" / "a.txt").write_bytes(b"longer than it was")
    assert [a.version == b.version for a, b in zip(found, seen(tmp_path / "top", "folder"), strict=True)] == [
        True,
        False,
    ]


def test_a_folder_of_any_fsspec_file_system_is_read() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/x/a b.jpg": b"one", "/bucket/x/y/c.jpg": b"two"})
    found = seen("memory:///bucket/x", "folder")
    assert [s.url for s in found] == ["memory:///bucket/x/a%20b.jpg", "memory:///bucket/x/y/c.jpg"]
    assert found[0].root is not None
    with open_file(found[0].root, found[0].url) as file:
        assert file.read() == b"one"


@pytest.mark.parametrize(
    ("name", "kind", "content", "message"),
    [
        ("none", "folder", None, "is not a folder"),
        ("a.txt", "folder", b"x", "is not a folder"),
        ("none.txt", "urls", None, "is not a file"),
        ("a.xls", "urls", b"x", "is not one of .txt, .csv"),
        ("a.csv", "urls", b"link,caption\nhttp://a/,x\n", "has no column url; it has link, caption"),
        ("a.parquet", "urls", b"not parquet at all", "cannot be read"),
        ("a.txt.gz", "urls", b"not gzip at all", "cannot be read"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, kind: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as caught:
        seen(tmp_path / name, kind)
    assert message in str(caught.value) and "source s:" in str(caught.value) and name in str(caught.value)


def test_a_file_system_nobody_knows_is_refused() -> None:
    with pytest.raises(SourceError, match="no file system opens 'nosuch://x'"):
        seen("nosuch://x", "folder")
