"""What is taken down is known by every name it has, and what is no takedown is refused before anything is done."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from jobs.cli import app
from jobs.lake import Lake, append, open_lake, read
from jobs.runs import Run
from jobs.sample import Sample, begin_shard, cut
from jobs.takedowns import MET, Added, add, met_by_host, read_takedowns, said
from jobs.taken_down import (
    NOTHING_TAKEN_DOWN,
    Takedown,
    TakedownRefused,
    names_of,
    parse_entry,
    parse_line,
    read_entries,
    said_text,
    takedowns_of,
)
from jobs.urls import canonical_url, doc_id
from schemas import DOCUMENTS, HOSTS, TAKEDOWNS
from tests import rows, small_lake
from tests.test_evaluate import Command, lakelens
from tests.test_lake import strangers

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["lakelens"]  # fixture

HEX = hashlib.sha256(b"a picture").hexdigest()


# -- what is given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("url", " HTTP://Example.COM:80/a%20b.jpg?x=1#part ", "http://example.com/a%20b.jpg?x=1"),
        ("url", "https://bücher.example", "https://xn--bcher-kva.example/"),
        ("url", "/data/my photos/100%.jpg", "file:///data/my%20photos/100%25.jpg"),
        ("url", "file:///data/my%20photos/100%25.jpg", "file:///data/my%20photos/100%25.jpg"),
        ("url", "FILE:///data/my photos/é.jpg", "file:///data/my%20photos/%C3%A9.jpg"),
        ("host", "Example.COM", "example.com"),
        ("host", "example.com.", "example.com"),
        ("host", "bücher.example", "xn--bcher-kva.example"),
        ("host", "BÜCHER。example", "xn--bcher-kva.example"),
        ("host", "a_b.example", "a_b.example"),
        ("host", "localhost", "localhost"),
        ("host", "127.1", "127.0.0.1"),
        ("host", "[2001:DB8::0001]", "[2001:db8::1]"),
        ("host", "2001:db8::1", "[2001:db8::1]"),
        ("hash", HEX.upper(), HEX),
    ],
)
def test_an_entry_has_the_value_that_documents_have(kind: str, text: str, value: str) -> None:
    assert parse_entry(kind, text) == Takedown(kind, value)
    assert parse_entry(kind, value) == Takedown(kind, value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("url", "example.com/a.jpg"),
        ("url", "//example.com/a.jpg"),
        ("url", "file://host/a.jpg"),
        ("url", "file:////host/a.jpg"),
        ("url", "file:a.jpg"),
        ("url", "ftp://example.com/a.jpg"),
        ("url", "https://me:secret@example.com/a.jpg"),
        ("url", "http://\udcff.example/"),
        ("url", ""),
        ("host", "https://example.com"),
        ("host", "example.com:8080"),
        ("host", "example.com:80"),
        ("host", "[::1]:80"),
        ("host", "[::1"),
        ("host", "::1::"),
        ("host", "example.com/a"),
        ("host", "example.com\\a"),
        ("host", "me@example.com"),
        ("host", "example.com?"),
        ("host", "example.com#"),
        ("host", "exa\tmple.com"),
        ("host", "a.example b.example"),
        ("host", "*.example.com"),
        ("host", ".example.com"),
        ("host", "a..example"),
        ("host", "com"),
        ("host", "256.1.1.1"),
        ("host", ""),
        ("hash", HEX[:63]),
        ("hash", HEX + "0"),
        ("hash", HEX[:-1] + "g"),
        ("hash", hashlib.sha1(b"a picture").hexdigest()),
    ],
)
def test_what_is_no_takedown_is_refused_by_name_with_what_is_allowed(kind: str, text: str) -> None:
    with pytest.raises(TakedownRefused) as refused:
        parse_entry(kind, text)
    allowed = {"url": "an http or https URL", "host": "a name with a dot", "hash": "64 hex digits"}
    assert str(refused.value).startswith(f"{kind} {text!r} is not allowed") and allowed[kind] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(TakedownRefused, match="'domain' is no kind of takedown; allowed: url, host, hash"):
        parse_entry("domain", "example.com")


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("url https://a.example/x y.jpg", Takedown("url", "https://a.example/x%20y.jpg")),
        ("Host\tA.example", Takedown("host", "a.example")),
        (f"hash {HEX}", Takedown("hash", HEX)),
        (HEX.upper(), Takedown("hash", HEX)),
        ("HTTPS://a.example/x.jpg", Takedown("url", "https://a.example/x.jpg")),
        ("/data/x.jpg", Takedown("url", "file:///data/x.jpg")),
        (" a.example\r", Takedown("host", "a.example")),
        ("[2001:db8::1.2.3.4]", Takedown("host", "[2001:db8::102:304]")),
    ],
)
def test_a_line_names_its_kind_or_its_kind_is_evident(line: str, entry: Takedown) -> None:
    assert parse_line(line) == entry


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("localhost", "'localhost' may be anything; put one of url, host, hash before it"),
        (HEX[:32], f"'{HEX[:32]}' may be anything"),
        ("a.example/x.jpg", "'a.example/x.jpg' may be anything"),
        ("ftp://a.example/x.jpg", "'ftp://a.example/x.jpg' may be anything"),
        ("a.example:80", "host 'a.example:80' is not allowed"),
        ("hash a.example", "hash 'a.example' is not allowed"),
        ("https:a.example", "host 'https:a.example' is not allowed"),
    ],
)
def test_a_line_that_may_be_several_things_is_none(line: str, said: str) -> None:
    with pytest.raises(TakedownRefused) as refused:
        parse_line(line)
    assert str(refused.value).startswith(said)


def test_entries_come_from_options_files_and_standard_input_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(f"\ufeffhost a.example\r\n\n  # a comment\nhttps://a.example/x#{'y' * 9}\n{HEX}".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"host A.EXAMPLE\nhost b.example\n")))
    given = {"url": ["https://a.example/x"], "host": ["a.example", "A.example"]}
    assert list(map(str, read_entries(given, [str(file), "-"]))) == [
        "url https://a.example/x",
        "host a.example",
        f"hash {HEX}",
        "host b.example",
    ]


def test_a_file_with_bad_lines_is_refused_whole_and_tells_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "list.txt"
    file.write_text("a.example\n\nfoo\n" + "host com\n" * 3)
    with pytest.raises(TakedownRefused) as refused:
        read_entries({"hash": ["0"]}, [str(file)])
    assert str(refused.value).startswith("nothing was added: hash '0' is not allowed")
    assert f"; {file} line 3: 'foo' may be anything" in str(refused.value)
    assert f"; {file} line 4: host 'com' is not allowed" in str(refused.value)
    assert str(refused.value).endswith("; and 2 more") and "line 5" not in str(refused.value)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"foo")))
    with pytest.raises(TakedownRefused, match="standard input line 1: 'foo' may be anything"):
        read_entries({}, ["-"])


def test_a_file_that_cannot_be_read_or_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("bücher.example".encode("latin-1"))
    (tmp_path / "empty").write_text("# nothing yet\n\n")
    for name, message in (
        ("latin", "latin is not UTF-8"),
        ("missing", "missing cannot be read: No such file or directory"),
        ("", "cannot be read: Is a directory"),
        ("empty", "there is nothing to take down; name it with --url, --host, --hash or --file"),
    ):
        with pytest.raises(TakedownRefused, match=message):
            read_entries({}, [str(tmp_path / name)])


def test_a_reason_is_one_printable_line_or_none() -> None:
    assert said_text("--reason", " their  lawyer\nwrote ") == "their lawyer wrote"
    assert said_text("--reason", " ") is said_text("--reason", None) is None
    for text in ("\x1b[2J", "a\udcff", "a\x00"):
        with pytest.raises(TakedownRefused, match=r"--requested-by .* printable text only"):
            said_text("--requested-by", text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--host", "https://a.example"],
            "nothing was added: host 'https://a.example' is not allowed; allowed: a name",
        ),
        (["--host", "a.example", "--hash", "cat"], "nothing was added: hash 'cat' is not allowed; allowed: a media_id"),
        (["--url", "cat.jpg"], "nothing was added: url 'cat.jpg' is not allowed (not a URL: 'cat.jpg'); allowed: an"),
        (["--file", "{tmp}/none"], "/none cannot be read"),
        ([], "there is nothing to take down; name it with --url, --host, --hash or --file"),
        (["--host", "a.example", "--reason", "\x1b[2J"], "--reason '\\x1b[2J' is not allowed: printable text only"),
        (["--host", "a.example", "--set", "crawl.dealy_s=1"], "crawl.dealy_s is not a configuration key"),
    ],
)
def test_a_wrong_takedown_is_one_message_with_code_2_before_spark_starts(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    given = ["takedown", "add", *given, "--lake", str(tmp_path / "lake")]
    assert app(given, standalone_mode=False) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert app([*given, "--json"], standalone_mode=False) == 2
    assert said in json.loads(capsys.readouterr().out)["message"]
    assert not (tmp_path / "lake").exists()


# -- what is asked ------------------------------------------------------------------------------------------------


def test_a_host_speaks_for_all_its_ports_and_all_hosts_below_it_and_for_no_other() -> None:
    taken = takedowns_of(
        [Takedown("host", "b.example"), Takedown("host", "[2001:db8::1]"), Takedown("host", "1.2.3.4")]
    )
    for host in ("b.example", "b.example:8080", "a.b.example", "x.a.b.example:1", "b.example.", "a.b.example.:81"):
        assert taken.of_url("0" * 32, host) == "host b.example was taken down"
    assert taken.of_url("0" * 32, "[2001:db8::1]:8080") == "host [2001:db8::1] was taken down"
    assert taken.of_url("0" * 32, "1.2.3.4:81") == "host 1.2.3.4 was taken down"
    for host in ("ab.example", "example", "b.example.org", "b-example", "[2001:db8::2]", "2.3.4", "1.2.3.5", ""):
        assert taken.of_url("0" * 32, host) is None


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("a.b.example:80", ["a.b.example", "b.example", "example"]),
        ("localhost:1", ["localhost"]),
        ("[::1]", ["[::1]"]),
        ("[2001:db8::1234]", ["[2001:db8::1234]"]),
        ("", []),
        ("...", []),
    ],
)
def test_the_names_that_speak_for_a_host_begin_with_its_own(host: str, names: list[str]) -> None:
    assert list(names_of(host)) == names


@pytest.mark.parametrize("host", ["BÜCHER.example", "a.example.", "127.1", "2001:db8::1", "localhost"])
def test_a_host_as_it_was_typed_meets_the_documents_that_were_crawled_from_it(host: str) -> None:
    taken = takedowns_of([parse_entry("host", host)])
    typed = f"[{host}]" if ":" in host else host
    for url in (f"http://{typed}/x", f"https://{typed}:8443/x"):
        assert taken.of_url("0" * 32, canonical_url(url).host) is not None


def test_a_url_speaks_for_its_document_alone_and_bytes_are_known_by_their_hash() -> None:
    taken = takedowns_of([parse_entry("url", "http://A.example/x.jpg#1"), parse_entry("hash", HEX)])
    assert taken.of_url(doc_id("http://a.example/x.jpg"), "a.example") == "this URL was taken down"
    assert taken.of_url(doc_id("http://a.example/y.jpg"), "a.example") is None
    assert taken.of_hash(HEX) == f"content with SHA-256 {HEX} was taken down"
    assert taken.of_hash(doc_id("http://a.example/x.jpg")) is None
    assert NOTHING_TAKEN_DOWN.of_url(doc_id("http://a.example/x.jpg"), "a.example") is None
    assert NOTHING_TAKEN_DOWN.of_hash(HEX) is None


def test_a_million_entries_go_to_tasks_and_are_asked_as_fast_as_one() -> None:
    n = 333_333
    ids = [f"{i:032x}" for i in range(n)]
    many = replace(
        takedowns_of([Takedown("host", f"h{i}.example") for i in range(n)]),
        doc_ids=frozenset(ids),
        hashes=frozenset(f"{i:064x}" for i in range(n)),
    )
    sent = pickle.loads(pickle.dumps(many))
    assert sent == many and repr(sent) == "Takedowns()"

    def ask(taken: Any) -> float:
        began = time.process_time()
        for i in range(20_000):
            taken.of_url(f"f{i:031x}", f"a.b.h{i}.other")
            taken.of_hash(f"f{i:063x}")
        return time.process_time() - began

    assert ask(sent) < 20 * ask(takedowns_of([Takedown("host", "a.example")]))  # a search through all: 10,000 times
    assert sent.of_url("f" * 32, "x.h7.example:80") == "host h7.example was taken down"


def test_hosts_are_counted_for_every_entry_that_speaks_for_them() -> None:
    counts = [("a.b.example:80", 3), ("b.example", 2), ("c.example", 4), ("", 9)]
    batches = [pa.RecordBatch.from_pylist([{"host": h, "n": n} for h, n in part]) for part in (counts[:2], counts[2:])]
    found = list(met_by_host(batches, frozenset({"b.example", "a.b.example"})))
    assert [batch.schema for batch in found] == [MET, MET]
    assert [{row["value"]: row["n"] for row in batch.to_pylist()} for batch in found] == [
        {"a.b.example": 3, "b.example": 5},
        {},
    ]


def test_the_last_line_says_what_is_new_and_that_what_is_stored_stays() -> None:
    new = Added(entry=Takedown("host", "a.example"), added_at=rows.NOW, is_new=True, n_documents=3)
    line = said([new, replace(new, entry=Takedown("hash", HEX), is_new=False, n_documents=0)])
    assert line.startswith(
        "takedowns added: 1, there already: 1; meeting documents of the lake: 1; the next crawl marks"
    )
    assert "what the lake already holds of them stays until it is removed, and there is no command that" in line
    assert "there already" not in said([new])


# -- the table ----------------------------------------------------------------------------------------------------


def run_of(run_id: str) -> Run:
    return Run(run_id=run_id, job="takedown", owner="0" * 16, inputs={}, started=rows.NOW, resumed=False)


@pytest.mark.spark
def test_an_entry_is_written_once_says_what_it_meets_and_is_asked_by_the_next_crawl(
    spark: SparkSession, small: Lake, tmp_path: Path, lakelens: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = small_lake.copied(small, tmp_path / "lake")
    below = rows.document("below", host="img.other.example:8080", media_id=small_lake.LARGE_ID)
    append(rows.frame_of(spark, DOCUMENTS, [below]), lake, DOCUMENTS)
    n_documents = read(spark, lake, DOCUMENTS).count()
    (tmp_path / "list").write_text(f"{small_lake.LARGE_ID}\nhttp://EXAMPLE.org/clip.jpg\nnobody.example\n")
    options = ["--host", "Other.example", "--file", str(tmp_path / "list"), "--reason", "[/x] wrote", "--run-id", "one"]
    first = lakelens("takedown", "add", *options, "--requested-by", "Ada")
    assert {(one["kind"], one["value"]): (one["is_new"], one["documents"]) for one in first["takedowns"]} == {
        ("host", "other.example"): (True, 2),
        ("hash", small_lake.LARGE_ID): (True, 2),
        ("url", "http://example.org/clip.jpg"): (True, 1),
        ("host", "nobody.example"): (True, 0),
    }
    assert first["message"].startswith("takedowns added: 4; meeting documents of the lake: 3; the next crawl")
    assert first["run_id"] == "one.takedown"
    again = lakelens("takedown", "add", "--host", "other.example", "--host", "new.example", "--run-id", "two")
    known = again["takedowns"][0]
    assert (known["is_new"], known["added_at"]) == (False, first["takedowns"][0]["added_at"])
    assert again["takedowns"][1]["is_new"] and "takedowns added: 1, there already: 1" in again["message"]
    resumed = lakelens("takedown", "add", "--host", "new.example", "--run-id", "two")
    assert "takedowns added: 0, there already: 1" in resumed["message"]

    listed = lakelens("takedown", "list")["takedowns"]
    assert len(listed) == 5 and [row["value"] for row in listed][-1] == "new.example"
    evidence = {row["value"]: (row["reason"], row["requested_by"], row["run_id"]) for row in listed}
    assert evidence["other.example"] == ("[/x] wrote", "Ada", "one.takedown")
    assert evidence["new.example"] == (None, None, "two.takedown")
    assert app(["takedown", "list", "--lake", str(tmp_path / "lake")], standalone_mode=False) == 0
    assert "5 takedowns in" in (shown := capsys.readouterr().out) and "[/x]" in shown

    taken = read_takedowns(spark, lake)
    assert taken.of_url(below["doc_id"], below["host"]) == "host other.example was taken down"
    assert taken.of_url(rows.document("clip")["doc_id"], "example.org") == "this URL was taken down"
    assert taken.of_url(below["doc_id"], "example.org") is None
    assert taken.of_hash(small_lake.LARGE_ID) is not None
    assert read_takedowns(spark, lake, at=0) == NOTHING_TAKEN_DOWN
    assert read(spark, lake, DOCUMENTS).count() == n_documents  # nothing that is stored goes
    assert strangers(spark, lake) == {}


@pytest.mark.spark
def test_two_that_add_the_same_entry_at_one_moment_write_it_once(
    spark: SparkSession, small: Lake, tmp_path: Path
) -> None:
    lake = small_lake.copied(small, tmp_path / "lake")
    entries, together = [Takedown("host", "a.example"), Takedown("hash", HEX)], threading.Barrier(2)

    def added(run_id: str) -> list[Added]:
        together.wait()
        return add(spark, lake, run_of(run_id), entries, reason=run_id, requested_by=None)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(added, ["x.takedown", "y.takedown"]))
    assert sorted((row.kind, row.value) for row in read(spark, lake, TAKEDOWNS).collect()) == [
        ("hash", HEX),
        ("host", "a.example"),
    ]
    assert sum(one.is_new for found in both for one in found) == 2


@pytest.mark.spark
def test_an_older_lake_gets_the_table_from_who_adds_and_a_wrong_address_is_no_lake(
    spark: SparkSession, small: Lake, tmp_path: Path, lakelens: Command
) -> None:
    refused = lakelens("takedown", "add", "--host", "a.example", exit_code=2)
    assert "is not a lake: there is nothing" in refused["message"] and not (tmp_path / "lake").exists()
    small_lake.copied(small, tmp_path / "lake")
    for table in (TAKEDOWNS, HOSTS):
        shutil.rmtree(tmp_path / "lake" / table.name)
    assert "has no table hosts, takedowns" in lakelens("takedown", "list", exit_code=2)["message"]
    assert lakelens("takedown", "add", "--host", "a.example")["takedowns"][0]["is_new"]
    assert (tmp_path / "lake" / "hosts" / "_delta_log").is_dir()
    assert [row["value"] for row in lakelens("takedown", "list")["takedowns"]] == ["a.example"]


@pytest.mark.spark
def test_a_shard_keeps_what_is_taken_down_without_who_asked_and_the_hosts_of_its_documents(
    spark: SparkSession, small: Lake, tmp_path: Path
) -> None:
    lake = small_lake.copied(small, tmp_path / "lake")
    entries = [("host", "a.example"), ("url", "http://example.org/x"), ("hash", HEX)]
    append(rows.frame_of(spark, TAKEDOWNS, [rows.takedown(*entry) for entry in entries]), lake, TAKEDOWNS)
    hosts = [rows.host("example.org", robots="User-agent: *", robots_status="found"), rows.host("never.example")]
    append(rows.frame_of(spark, HOSTS, hosts), lake, HOSTS)

    def shard(name: str, *hashed: str) -> tuple[set[tuple[str, str]], set[str]]:
        out = begin_shard(spark, lake, str(tmp_path / name))
        chosen = Sample(fraction=1, hashed=hashed)
        cut(spark, lake, out, chosen, run_id="s.sample", progress=lambda text: None)
        assert open_lake(spark, out.uri, create=False) == out
        kept = read(spark, out, TAKEDOWNS).collect()
        assert {(row.reason, row.requested_by) for row in kept} == {(None, None)}
        return {(row.kind, row.value) for row in kept}, {row.host for row in read(spark, out, HOSTS).collect()}

    assert shard("whole") == (set(entries), {"example.org"})
    assert shard("hashed", "url", "host") == ({("hash", HEX)}, set())
