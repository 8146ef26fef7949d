"""Sources as parts and sightings: folders and URL lists, real files of every kind, and what is wrong with them."""

from __future__ import annotations

import bz2
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet
import pytest

from jobs.config import ConfigError, Source, load_config
from jobs.frontier import PART_SHIFT, listed
from jobs.sources import (
    SIGHTINGS,
    SUFFIXES,
    Part,
    Sighting,
    SourceError,
    beside,
    check_source,
    open_file,
    open_filesystem,
    part_sightings,
    sightings,
    source_parts,
)
from jobs.url_lists import READERS
from jobs.urls import canonical_url

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
    assert pa.RecordBatch.from_pylist([vars(s) for s in found]).num_rows == 6  # JSON may hold what Arrow may not


def test_a_row_whose_url_is_absurdly_long_is_a_short_row_that_says_so(tmp_path: Path) -> None:
    given = ["http://a.example/" + "b" * 7983, "http://a.example/" + "b" * 7984, "http://a.example/?" + "b" * 10**6]
    given += [
        "http://u:p@" + "c" * 10**6 + ".example/",
        "data:image/png;base64," + "A" * 10**6,
        "http://a/" + "ü" * 1400,
    ]
    given += ["s" * 10**6 + "://a/"]
    (tmp_path / "l.txt").write_text("".join(f"{url}\n" for url in given))
    found = seen(tmp_path / "l.txt")
    assert [(s.host, len(s.url), (s.problem or "")[:46]) for s in found] == [
        ("a.example", 8000, ""),
        ("", 8000, "the URL has 8001 characters, more than 8000"),
        ("", 8000, "the URL has 1000018 characters, more than 8000"),
        ("", 8000, "the host " + "c" * 37),
        ("", 8000, "scheme 'data:' is not one of http:, https:"),
        ("", 1409, "the URL has 8409 characters, more than 8000"),
        ("", 8000, "scheme '" + "s" * 38),
    ]
    assert max(len(s.problem or "") for s in found) < 300


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


# -- parts --------------------------------------------------------------------------------------------------------


def parts_of(kind: str, uri: Path | str, **more: Any) -> list[Part]:
    return source_parts(Source.model_validate({"name": "s", "kind": kind, "uri": str(uri), **more}))


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    names = [
        *("CC 1/warc/b.warc.gz", "CC 1/warc/a.WARC.gz", "CC 1/wat/a.warc.wat.gz", "CC 1/wet/a.warc.wet.gz"),
        *("CC 1/.hidden/c.warc", "CC 1/.d.warc", "CC 2.warc", "CC 2.warc.txt", "CC/e.warc", "lists/u.jsonl.gz"),
        *("lists/t/x.csv", "lists/readme.md", "table/_temporary/p.parquet", "table/k=1/p.gz.parquet"),
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "uri", "found"),
    [
        ("warc", "CC 1", ["CC 1/warc/a.WARC.gz", "CC 1/warc/b.warc.gz"]),
        ("warc", "CC", ["CC/e.warc"]),
        ("warc", "CC ", ["CC 1/warc/a.WARC.gz", "CC 1/warc/b.warc.gz", "CC 2.warc"]),
        ("warc", "CC 1/warc/b", ["CC 1/warc/b.warc.gz"]),
        ("warc", "CC 2.warc", ["CC 2.warc"]),
        ("wat", "CC 1/", ["CC 1/wat/a.warc.wat.gz"]),
        ("urls", "lists", ["lists/t/x.csv", "lists/u.jsonl.gz"]),
        ("urls", "lists/u", ["lists/u.jsonl.gz"]),
        ("table", "table", ["table/k=1/p.gz.parquet"]),
    ],
)
def test_a_source_is_one_file_or_all_of_its_kind_below_a_folder_or_prefix(
    crawl: Path, kind: str, uri: str, found: list[str]
) -> None:
    expected = [(crawl / name).as_uri() for name in found]
    for form in (f"{crawl}/{uri}", f"{crawl.as_uri()}/{uri}".replace(" ", "%20")):
        parts = parts_of(kind, form, priority=3)
        assert [part.uri for part in parts] == expected
        assert {(part.source, part.kind, part.priority) for part in parts} == {("s", kind, 3)}


def test_parts_on_other_file_systems_are_opened_by_their_uris() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe({"/lists/a b%20.txt": b"http://a/1", "/lists/c.txt": b"http://a/2"})
    for uri in ("memory:///lists", "memory:///lists/", "memory://lists/"):
        parts = parts_of("urls", uri)
        assert [s.url for part in parts for s in part_sightings(part)] == ["http://a/1", "http://a/2"]
    assert [s.url for part in parts_of("urls", "memory:///lists/a") for s in part_sightings(part)] == ["http://a/1"]
    there = beside("s3://bucket/x%20y?region=us-east-1", "a b/%20#?.warc.gz")
    assert there == "s3://bucket/x%20y/a%20b/%2520%23%3F.warc.gz?region=us-east-1"
    assert open_filesystem(there)[1] == "bucket/x y/a b/%20#?.warc.gz"


def test_a_part_is_listed_in_any_process_and_all_parts_are_the_source(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"http://a/{n}\nhttp://b/{n}\n")
    source = Source(name="s", kind="urls", uri=str(tmp_path), priority=-2)
    by_part = [list(part_sightings(pickle.loads(pickle.dumps(part)))) for part in source_parts(source)]
    assert [[s.url for s in part] for part in by_part] == [[f"http://a/{n}", f"http://b/{n}"] for n in range(3)]
    assert [s for part in by_part for s in part] == list(sightings(source))
    assert {s.priority for part in by_part for s in part} == {-2}
    folder = Source(name="f", kind="folder", uri=str(tmp_path))
    (part,) = source_parts(folder)
    assert part.uri == tmp_path.as_uri() and len(list(part_sightings(part))) == 3
    assert {s.held_as for s in sightings(folder)} == {"file"}
    parts = [*source_parts(source), part]
    batches = list(listed(enumerate(parts)))
    assert [batch.column("ordinal").to_pylist() for batch in batches] == [
        [(number << PART_SHIFT) + n for n in range(3 if number == 3 else 2)] for number in range(4)
    ]
    assert {batch.schema.remove(batch.schema.get_field_index("failure")) for batch in batches} == {SIGHTINGS}
    types = {name: SIGHTINGS.field(name).type for name in ("offset", "length", "priority", "host_bucket", "opted_out")}
    assert list(types.values()) == [pa.int64(), pa.int64(), pa.int32(), pa.int32(), pa.bool_()]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("warc", "nowhere/at/all", "is not a file, a folder or how names of files begin"),
        ("warc", "wat", "is not a file, a folder or how names of files begin"),
        ("warc", "lists", "holds no file whose name ends in one of .warc, .warc.gz"),
        ("warc", "CC 2.warc.txt", "is not one of .warc, .warc.gz"),
        ("table", "lists/readme.md", "is not one of .parquet"),
        ("webdataset", "CC 1", "holds no file whose name ends in one of .tar"),
    ],
)
def test_a_source_without_files_of_its_kind_says_which_it_takes(
    crawl: Path, kind: str, name: str, message: str
) -> None:
    with pytest.raises(SourceError) as caught:
        check_source(Source.model_validate({"name": "s", "kind": kind, "uri": f"{crawl}/{name}"}))
    assert message in str(caught.value) and f"source s: {crawl}/{name}" in str(caught.value)


@pytest.mark.parametrize("kind", ["table", "urls"])
def test_a_delta_table_is_refused_for_not_all_of_its_files_count(tmp_path: Path, kind: str) -> None:
    (tmp_path / "t" / "_delta_log").mkdir(parents=True)
    (tmp_path / "t" / "_delta_log" / "00000000000000000000.json").write_text("{}")
    pyarrow.parquet.write_table(pa.table({"url": ["http://a/"]}), tmp_path / "t" / "part-0.parquet")
    for name in ("t", "", "t/"):
        with pytest.raises(SourceError, match=r"is a Delta table.* name an export of it as Parquet"):
            parts_of(kind, f"{tmp_path}/{name}")
    assert len(parts_of(kind, tmp_path / "t" / "part-0.parquet")) == 1


def test_every_list_that_is_taken_has_a_reader() -> None:
    assert set(READERS) == set(SUFFIXES["urls"])


def test_the_readme_shows_a_source_of_every_kind_that_is_taken(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (tmp_path / "web.yaml").write_text("# web.yaml" + readme.partition("```yaml\n# web.yaml")[2].partition("```")[0])
    found = {source.name: source for source in load_config([tmp_path / "web.yaml"]).crawl.sources}
    kinds = Source.model_fields["kind"].annotation
    assert {source.kind for source in found.values()} == set(get_args(kinds)) and len(found) == 9
    assert found["common-crawl"].archive == "s3://commoncrawl/?region=us-east-1"
    dropped = "utm_source=x&FBCLID=1&_ga=2&ASPSESSIONIDABC=3&phpsessid=4"
    url = f"https://cats.example/a;jsessionid=1?page=2&{dropped}&id=3"
    for name in ("cats", "linked"):
        assert canonical_url(url, drop=found[name].drop_parameters).href == "https://cats.example/a?page=2&id=3"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{name: a, kind: warc}", "source a of kind warc needs uri"),
        ("{name: a, kind: site}", "source a of kind site needs start"),
        ("{name: a, kind: site, start: [http://a/], uri: /x}", "source a of kind site takes start, not uri"),
        ("{name: a, kind: urls, uri: /x, start: [http://a/]}", "source a of kind urls takes uri, not start"),
        ("{name: a, kind: site, start: [http://a/], depth: 21}", "less than or equal to 20"),
        ("{name: a, kind: warc, uri: /x, archive: /y}", "takes no archive, only a table does"),
        ("{name: a, kind: urls, uri: /x, depth: 3}", "source a of kind urls takes no depth, only a site does"),
        (
            "{name: a, kind: site, start: [http://a/], hosts: [b, 'https://a.example']}",
            "crawl.sources.0.hosts: source a: 'https://a.example' is not a host and nothing else, allowed: hosts as "
            "URLs have them, such as www.example.org and example.org:8080",
        ),
        (
            "{name: a, kind: site, start: [http://a/], hosts: ['a:22']}",
            "source a: port 22 is not one that serves the web",
        ),
        ("{name: a, kind: zip, uri: /x}", "'folder', 'urls', 'warc', 'wat', 'webdataset', 'table' or 'site'"),
        ("{name: a, kind: urls, uri: /x, priority: 3000000000}", "less than 2147483648"),
    ],
)
def test_a_source_says_what_its_kind_takes(source: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(assignments=[f"crawl.sources=[{source}]"])
    assert message in str(caught.value)
