"""The crawl job on a real site and folder, into real tables, once, again, and after being killed."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs import crawl, crawl_merges, crawl_wave, frontier
from jobs.config import Config, ConfigError, load_config
from jobs.crawl_report import crawl_report
from jobs.lake import Lake, append, open_lake, read
from jobs.runs import Run
from jobs.sources import SourceError, row_sighting
from jobs.taken_down import Takedowns
from jobs.urls import host_bucket
from schemas import DOCUMENTS, FETCHES, HOSTS, MEDIA, TAKEDOWNS
from tests import archive_files as archives
from tests import rows
from tests.crawl_site import Answer, Site, answer, jpeg, serving
from tests.rows import frame_of

ROBOTS = answer(body=b"User-agent: *\nDisallow: /private/\n")
PAGES: dict[str, Answer] = {
    "/robots.txt": ROBOTS,
    "/a.jpg": answer(body=jpeg(1), ETag='"a"'),
    "/copy.jpg": answer(body=jpeg(1)),
    "/b.jpg": answer(body=jpeg(2, 30, 40)),
    "/empty.jpg": answer(),
    "/html.jpg": answer(body=b"<!DOCTYPE html><title>no</title>", Content_Type="image/jpeg"),
    "/busy.jpg": [answer("503 Service Unavailable"), answer(body=jpeg(3))],
    "/private/c.jpg": answer(body=jpeg(4)),
}


def write_list(folder: Path, site: Site, captions: dict[str, str] | None = None) -> Path:
    path = folder / "urls.jsonl"
    rows: list[dict[str, Any]] = [
        {"url": site.url(p), "caption": (captions or {}).get(p)} for p in PAGES if p != "/robots.txt"
    ]
    rows += [{"url": site.url("/a.jpg") + "#again"}, {"url": site.url("/gone.jpg")}, {"url": "javascript:alert(1)"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(site: Site, urls: Path, folder: Path, *extra: str) -> Config:
    sources = [
        {"name": "web", "kind": "urls", "uri": str(urls)},
        {"name": "disk", "kind": "folder", "uri": str(folder)},
    ]
    overrides = {"crawl": {"sources": sources, "allow_addresses": [site.address], "delay_s": 0, "wave_documents": 8}}
    return load_config((), extra, overrides)


def run_of(run_id: str) -> Run:
    return Run(run_id=run_id, job="crawl", owner=f"owner-{run_id}", inputs={}, started=datetime.now(UTC), resumed=False)


def span_of(run: Run) -> frontier.Span:
    return frontier.Span(since=run.started, until=run.started)


def planned_of(spark: Any, lake: Lake, config: Config, run: Run) -> Any:
    plan = frontier.stage_plan(spark, lake, config, run, span_of(run))
    assert plan is not None
    return plan.fetched


def keyed(spark: Any, lake: Lake) -> dict[str, Any]:
    """documents by the end of their URL."""
    return {row["url"].rsplit("/", 1)[-1]: row for row in read(spark, lake, DOCUMENTS).collect()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "photos" / "one.jpg").write_bytes(jpeg(1))
    (tmp_path / "photos" / "deep" / "two ü.jpg").write_bytes(jpeg(9))
    (tmp_path / "photos" / "notes.txt").write_text("hello")
    return tmp_path / "photos"


@pytest.mark.spark
def test_a_crawl_writes_a_row_for_every_document_and_a_second_one_adds_nothing(
    spark: Any, tmp_path: Path, folder: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    with serving(PAGES) as site:
        urls = write_list(tmp_path, site, {"/a.jpg": "a thing"})
        config = config_of(site, urls, folder)
        crawl.validate(config)
        result = crawl.run(spark, lake, config, run_of("one.crawl"))
        found = keyed(spark, lake)
        codes = {name: row["error"] and row["error"]["code"] for name, row in found.items()}
        assert codes == {
            "a.jpg": None,
            "copy.jpg": None,
            "b.jpg": None,
            "empty.jpg": "empty",
            "html.jpg": "not_media",
            "busy.jpg": None,
            "c.jpg": "robots_disallowed",
            "gone.jpg": "not_found",
            "javascript:alert(1)": "http_client_error",
            "one.jpg": None,
            "two%20%C3%BC.jpg": None,
            "notes.txt": "not_media",
        }
        assert site.url("/private/c.jpg") not in map(site.url, site.paths())
        assert found["a.jpg"]["caption"] == "a thing" and found["a.jpg"]["etag"] == '"a"'
        assert found["a.jpg"]["media_id"] == found["copy.jpg"]["media_id"] == found["one.jpg"]["media_id"]
        media = {row["media_id"]: row for row in read(spark, lake, MEDIA).collect()}
        assert read(spark, lake, MEDIA).count() == len(media) == 4
        big = media[found["b.jpg"]["media_id"]]
        assert (big["width"], big["height"], big["mime"], bytes(big["content"])) == (
            30,
            40,
            "image/jpeg",
            jpeg(2, 30, 40),
        )
        fetches = read(spark, lake, FETCHES).collect()
        assert sorted(r["attempt"] for r in fetches if r["url"].endswith("busy.jpg")) == [1, 2]
        assert len(fetches) == len({(r["doc_id"], r["attempt"]) for r in fetches}) == 12
        assert "11 fetched, 4 new media" in result.message and result.metrics["documents_untried"] == 1
        assert result.metrics["duplicates"] == 1 and result.metrics["new_media"] == 4 and result.metrics["retries"] == 1
        assert not (tmp_path / "lake" / "_staging" / "one.crawl").exists()

        n_asked = len(site.log)
        write_list(tmp_path, site, {"/a.jpg": "a better caption"})
        (folder / "notes.txt").write_bytes(jpeg(50))
        again = crawl.run(spark, lake, config, run_of("two.crawl"))
        assert len(site.log) == n_asked
        assert "1 fetched, 1 new media" in again.message
        found = keyed(spark, lake)
        assert len(found) == 12 and found["notes.txt"]["error"] is None and found["notes.txt"]["media_type"] == "image"
        assert found["a.jpg"]["caption"] == "a better caption" and found["a.jpg"]["media_id"] is not None


@pytest.mark.spark
def test_a_wave_that_was_staged_and_partly_committed_is_finished_by_the_next_attempt(
    spark: Any, tmp_path: Path, folder: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    with serving(PAGES) as site:
        config = config_of(site, write_list(tmp_path, site), folder)
        run = run_of("cut.crawl")
        plan = planned_of(spark, lake, config, run)
        [first] = plan.where("url LIKE '%/a.jpg'").collect()
        planned = plan.where(f"wave = {first.wave}")
        uri = crawl_wave.wave_uri(lake, run, 0)
        crawl_wave.stage_wave(spark, lake, planned, crawl.settings_of(config.crawl), uri)
        n_asked = site.paths().count("/a.jpg")
        staged = spark.read.parquet(uri).where("doc_id IS NOT NULL")
        crawl_wave._append_fetches(spark, lake, run, staged, 0)  # and here it dies: no media, no documents
        resumed = dataclasses.replace(run, owner="another", resumed=True)
        crawl.run(spark, lake, config, resumed)
        assert site.paths().count("/a.jpg") == n_asked == 1
        fetches = read(spark, lake, FETCHES).collect()
        assert len(fetches) == len({(r["doc_id"], r["attempt"]) for r in fetches}) == 12
        assert len(keyed(spark, lake)) == 12 and read(spark, lake, MEDIA).count() == 4


@pytest.mark.spark
def test_of_a_host_a_wave_has_what_its_pauses_let_through_the_highest_priority_first(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontier, "PART_ORDINALS", 4)
    lake = open_lake(spark, str(tmp_path / "lake"))
    slow, fast = ([f"http://{host}.example/{n}.jpg" for n in range(9)] for host in ("slow", "fast"))
    (tmp_path / "slow.txt").write_text("\n".join([*slow, *slow[3:7]]))  # some of them twice
    (tmp_path / "fast.txt").write_text("\n".join(fast))
    (tmp_path / "photos").mkdir()
    for n in range(10):
        (tmp_path / "photos" / f"{n}.jpg").write_bytes(b"")
    sources = [
        {"name": "slow", "kind": "urls", "uri": str(tmp_path / "slow.txt")},
        {"name": "fast", "kind": "urls", "uri": str(tmp_path / "fast.txt"), "priority": 1},
        {"name": "photos", "kind": "folder", "uri": str(tmp_path / "photos")},
    ]
    said = {"sources": sources, "contact": "me@example.com", "wave_documents": 6, "delay_s": 1, "round_s": 4}
    config = load_config((), (), {"crawl": said})
    row = rows.host("slow.example", crawl_delay_s=1.7)
    append(frame_of(spark, HOSTS, [row]), lake, HOSTS)
    run = run_of("one.crawl")
    plan = frontier.stage_plan(spark, lake, config, run, span_of(run))
    assert plan is not None and plan.counts == {"seen": 32, "distinct": 28, "fetch": 28}
    waves: dict[str, list[int]] = {}
    for found in plan.fetched.orderBy("ordinal").collect():
        waves.setdefault(found["host"], []).append(found["wave"])
    assert {host: max(map(numbers.count, numbers)) for host, numbers in waves.items()} == {
        "slow.example": 2,  # of 0.9 * 4 s, at 1.7 s each
        "fast.example": 3,
        "": 5,
    }
    assert all(numbers == sorted(numbers) for numbers in waves.values())
    assert max(sum(numbers.count(wave) for numbers in waves.values()) for wave in range(20)) <= 6 + 2


@pytest.mark.spark
def test_what_was_obtained_outlives_an_error_that_will_be_tried_again_but_not_a_final_one(
    spark: Any, tmp_path: Path, folder: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    pages: dict[str, Answer] = {
        "/robots.txt": answer("404 Not Found"),
        "/flaky.jpg": [answer(body=jpeg(1)), answer("500 Oops")],
        "/removed.jpg": [answer(body=jpeg(2)), answer("410 Gone")],
        "/same.jpg": [answer(body=jpeg(4), ETag='"4"'), answer("304 Not Modified")],
    }
    with serving(pages) as site:
        urls = tmp_path / "urls.txt"
        urls.write_text("".join(f"{site.url(path)}\n" for path in list(pages)[1:]) + "no url\n")
        more = ("crawl.max_attempts=1", "crawl.wave_documents=100", "crawl.recrawl.n_gone=2")
        config = config_of(site, urls, folder, *more)
        first = crawl.run(spark, lake, config, run_of("one.crawl"))
        assert first.metrics["new_media"] == 4
        assert read(spark, lake, DOCUMENTS).where("media_id IS NOT NULL").count() == 5
        for run_id, days in (("two.crawl", 60), ("three.crawl", 200)):
            later = dataclasses.replace(run_of(run_id), started=datetime.now(UTC) + timedelta(days=days))
            crawl.run(spark, lake, config, later)
            found = keyed(spark, lake)
            assert found["flaky.jpg"]["error"] is None and found["flaky.jpg"]["media_id"] is not None
            assert found["same.jpg"]["error"] is None and found["same.jpg"]["media_id"] is not None
            assert found["same.jpg"]["etag"] == '"4"' and found["same.jpg"]["media_type"] == "image"
            gone = found["removed.jpg"]
            assert gone["n_gone"] == (1 if run_id == "two.crawl" else 2)
            assert (gone["media_id"] is None) == (gone["error"] is not None) == (run_id == "three.crawl")
        assert gone["error"]["code"] == "not_found" and gone["next_fetch_at"] is None
        fetched = read(spark, lake, FETCHES).where("run_id = 'two.crawl'").collect()
        statuses = {row["url"].rsplit("/", 1)[-1]: row["http_status"] for row in fetched}
        assert statuses == {"flaky.jpg": 500, "removed.jpg": 410, "same.jpg": 304}
        days = (found["same.jpg"]["next_fetch_at"] - found["same.jpg"]["fetched_at"]).days
        assert days in (119, 120)  # 30, then twice unchanged


@pytest.mark.spark
def test_a_list_without_one_usable_url_is_documents_and_no_attempts(spark: Any, tmp_path: Path) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    (tmp_path / "urls.txt").write_text("no url\nftp://example.com/a\n")
    source = {"name": "web", "kind": "urls", "uri": str(tmp_path / "urls.txt")}
    config = load_config((), (), {"crawl": {"sources": [source]}})
    crawl.validate(config)
    for name in ("one.crawl", "two.crawl"):
        result = crawl.run(spark, lake, config, run_of(name))
        assert result.metrics["documents_untried"] == 2 and "0 fetched" in result.message
    assert {row["error"]["code"] for row in read(spark, lake, DOCUMENTS).collect()} == {"http_client_error"}
    assert read(spark, lake, DOCUMENTS).count() == 2


def test_what_is_wrong_with_a_configuration_is_said_before_spark_starts(tmp_path: Path) -> None:
    urls = tmp_path / "urls.txt"
    urls.write_text("http://127.0.0.1:8080/a.jpg\nhttp://example.com/b.jpg\n")
    good = {"sources": [{"name": "web", "kind": "urls", "uri": str(urls)}], "allow_addresses": ["127.0.0.1:8080"]}

    def refused(**changed: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            crawl.validate(load_config((), (), {"crawl": {**good, **changed}}))
        return str(caught.value)

    assert "example.com/b.jpg" in refused()
    assert "crawl.sources is empty" in refused(sources=[])
    assert "more than once" in refused(contact="me@example.com", sources=[*good["sources"], *good["sources"]])
    assert "not one IP address with a port" in refused(allow_addresses=["127.0.0.1"])
    assert "not an e-mail address or URL" in refused(contact="me@example.com\r\nX: y")
    assert "crawl.retry_errors: 'no_media' is not one of blocked_address, " in refused(retry_errors=["no_media"])
    missing = {"name": "photos", "kind": "folder", "uri": str(tmp_path / "none")}
    with pytest.raises(SourceError, match=r"source photos: .*none is not a folder"):
        crawl.validate(load_config((), (), {"crawl": {**good, "sources": [missing]}}))
    with_contact = {**good, "contact": "me@example.com"}
    crawl.validate(load_config((), (), {"crawl": with_contact}))
    nowhere = {"lake": "nostore://bucket/lake", "crawl": with_contact}
    with pytest.raises(ConfigError, match=r"nostore://bucket/lake/_packs: .*nostore.*crawl.max_bytes"):
        crawl.validate(load_config((), (), nowhere))
    crawl.validate(load_config((), ["crawl.max_bytes=16777216"], nowhere))


@pytest.mark.spark
def test_an_answer_that_leads_to_another_domain_is_followed_by_the_task_that_asks_that_one(
    spark: Any, tmp_path: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    there: dict[str, Answer] = {"/b.jpg": answer(body=jpeg(1)), "/loop": [answer("302 Found", Location="http://x/")]}
    with serving(there) as other:
        away, loop = (f"http://localhost:{other.port}{path}" for path in ("/b.jpg", "/loop"))
        pages: dict[str, Answer] = {
            "/a.jpg": answer("302 Found", Location=away),
            "/loop": answer("302 Found", Location=loop),
        }
        with serving(pages) as site:
            there["/loop"] = answer("302 Found", Location=site.url("/loop"))
            urls = tmp_path / "urls.txt"
            urls.write_text(f"{site.url('/a.jpg')}\n{site.url('/loop')}\n{away}\n")
            said = {"allow_addresses": [site.address, other.address], "delay_s": 0.2, "max_redirects": 1}
            said["sources"] = [{"name": "web", "kind": "urls", "uri": str(urls)}]
            crawl.run(spark, lake, load_config((), (), {"crawl": said}), run_of("one.crawl"))
            found = {row["url"]: row for row in read(spark, lake, DOCUMENTS).collect()}
            assert found[site.url("/a.jpg")]["media_id"] == found[away]["media_id"] is not None
            assert found[site.url("/a.jpg")]["host"] == site.address
            assert found[site.url("/loop")]["error"]["code"] == "redirect_refused"
            fetches = read(spark, lake, FETCHES).orderBy("attempt").collect()
            assert len(fetches) == len({(row["doc_id"], row["attempt"]) for row in fetches})
            (first, second) = [row for row in fetches if row["url"] == site.url("/a.jpg")]
            assert (first["http_status"], first["final_url"]) == (302, site.url("/a.jpg"))
            assert (second["http_status"], second["final_url"]) == (200, away)
            for one in (site, other):
                times = [asked.at_s for asked in one.log]
                assert min(b - a for a, b in itertools.pairwise(times)) >= 0.2
            hosts = {row["host"]: row for row in read(spark, lake, HOSTS).collect()}
            asked = {f"localhost:{other.port}": len(other.log), site.address: len(site.log)}
            assert {host: row["requests"] for host, row in hosts.items()} == asked
            assert not (tmp_path / "lake" / "_staging" / "one.crawl").exists()


@pytest.mark.spark
def test_what_was_taken_down_is_not_fetched_and_what_the_lake_has_of_it_is_marked(spark: Any, tmp_path: Path) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    pages: dict[str, Answer] = {f"/{n}.jpg": answer(body=jpeg(40 * n)) for n in range(4)}
    with serving(pages) as site:
        urls = tmp_path / "urls.txt"
        urls.write_text(site.url("/0.jpg") + "\n" + site.url("/1.jpg"))
        said = {"allow_addresses": [site.address], "delay_s": 0}
        said["sources"] = [{"name": "web", "kind": "urls", "uri": str(urls)}]
        config = load_config((), (), {"crawl": said})
        crawl.run(spark, lake, config, run_of("one.crawl"))
        known = keyed(spark, lake)
        entries = [("url", site.url("/2.jpg")), ("hash", known["1.jpg"]["media_id"])]
        append(frame_of(spark, TAKEDOWNS, [rows.takedown(*entry) for entry in entries]), lake, TAKEDOWNS)
        urls.write_text("".join(site.url(path) + "\n" for path in pages))
        again = crawl.run(spark, lake, config, run_of("two.crawl"))
        found = keyed(spark, lake)
        codes = {name: row["error"] and row["error"]["code"] for name, row in found.items()}
        assert codes == {"0.jpg": None, "1.jpg": "taken_down", "2.jpg": "taken_down", "3.jpg": None}
        assert found["1.jpg"]["media_id"] is None and found["1.jpg"]["next_fetch_at"] is None
        assert "/2.jpg" not in site.paths() and site.paths().count("/1.jpg") == 1
        assert again.metrics["documents_taken_down"] == 1


@pytest.mark.spark
def test_sources_of_every_kind_are_mixed_in_one_run(spark: Any, tmp_path: Path, folder: Path) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    with serving({path: answer(body=jpeg(shade)) for path, shade in (("/wat.jpg", 60), ("/row.jpg", 90))}) as site:
        records = [archives.response(f"http://w.example/{n}.jpg", jpeg(120 + n, 30 + n)) for n in range(3)]
        archives.write_warc(tmp_path / "a.warc.gz", *records)
        links = [{"path": "IMG@/src", "url": site.url("/wat.jpg"), "alt": "a cat"}]
        archives.write_warc(tmp_path / "a.warc.wat.gz", archives.page("http://w.example/page", links))
        described = json.dumps({"url": "http://t.example/a.jpg", "caption": "a dog"}).encode()
        archives.write_tar(tmp_path / "a.tar", ("1.jpg", jpeg(200)), ("1.json", described), ("2.jpg", jpeg(230)))
        rows_ = {
            "url": pa.array(["http://p.example/a.jpg", site.url("/row.jpg")]),
            "image": pa.array([jpeg(250), None]),
        }
        archives.write_table(tmp_path / "a.parquet", rows_)
        kinds = {"warc": "a.warc.gz", "wat": "a.warc.wat.gz", "webdataset": "a.tar", "table": "a.parquet"}
        sources = [{"name": kind, "kind": kind, "uri": str(tmp_path / name)} for kind, name in kinds.items()]
        sources.append({"name": "disk", "kind": "folder", "uri": str(folder)})
        said = {"sources": sources, "allow_addresses": [site.address], "delay_s": 0}
        config = load_config((), (), {"crawl": said})
        crawl.validate(config)
        result = crawl.run(spark, lake, config, run_of("one.crawl"))
        found = read(spark, lake, DOCUMENTS).collect()
        errors = [(row["url"], row["error"]) for row in found if row["error"] is not None]
        assert [url.rsplit("/", 1)[-1] for url, _ in errors] == ["notes.txt"]
        by_source = {kind: sorted(row["url"] for row in found if row["source"] == kind) for kind in kinds}
        assert {kind: len(urls) for kind, urls in by_source.items()} == {
            "warc": 3,
            "wat": 1,
            "webdataset": 2,
            "table": 2,
        }
        said_of = {row["url"]: row for row in found}
        assert said_of[site.url("/wat.jpg")]["caption"] == "a cat"
        assert said_of["http://t.example/a.jpg"]["caption"] == "a dog"
        media = {row["media_id"]: bytes(row["content"]) for row in read(spark, lake, MEDIA).collect()}
        assert media[said_of["http://w.example/2.jpg"]["media_id"]] == jpeg(122, 32)
        assert media[said_of["http://p.example/a.jpg"]["media_id"]] == jpeg(250)
        assert result.metrics["new_media"] == len(media) == 10
        assert (result.metrics["n_hosts"], result.metrics["requests"]) == (1, 2)  # archives ask nobody
        assert sorted(site.paths()) == ["/robots.txt", "/row.jpg", "/wat.jpg"]
        again = crawl.run(spark, lake, config, run_of("two.crawl"))
        assert "0 fetched" in again.message and len(site.log) == 3


@pytest.mark.spark
def test_a_source_that_breaks_while_it_is_listed_ends_the_run_with_its_name(spark: Any, tmp_path: Path) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not all that it takes")
    source = {"name": "broken", "kind": "table", "uri": str(tmp_path / "a.parquet")}
    with pytest.raises(SourceError, match=r"source broken: .*a\.parquet"):
        crawl.run(spark, lake, load_config((), (), {"crawl": {"sources": [source]}}), run_of("one.crawl"))
    assert read(spark, lake, DOCUMENTS).isEmpty()


def tagged(body: bytes, tag: str, **headers: str) -> Answer:
    """An answer to conditional requests."""

    async def page(_: Any, writer: Any, asked: Any) -> None:
        same = asked.headers.get("if-none-match") == tag
        writer.write(answer("304 Not Modified", ETag=tag) if same else answer(body=body, ETag=tag, **headers))
        await writer.drain()

    return page


@pytest.mark.spark
def test_a_site_is_followed_by_links_and_sitemaps_and_costs_nothing_while_it_stays_as_it_is(
    spark: Any, tmp_path: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    html = {"Content_Type": "text/html"}
    pages: dict[str, Answer] = {
        "/robots.txt": answer(body=b"User-agent: *\nDisallow: /private/\nSitemap: /map.xml\n"),
        "/": tagged(
            b"<title>Home</title><img src=/1.jpg alt=one><a href=/a>a</a><a href=/private/>p</a>", '"h"', **html
        ),
        "/a": tagged(b"<img src=/2.jpg><img src=/gone.jpg><a href=/b>b</a>", '"a"', **html),
        "/b": tagged(b"<img src=/3.jpg><a href=/c>too far</a>", '"b"', **html),
        "/mapped": tagged(b"<meta name=robots content=noai><img src=/4.jpg>", '"m"', **html),
        "/map.xml": tagged(b"<urlset><url><loc>/mapped</loc></url></urlset>", '"x"', Content_Type="text/xml"),
        **{f"/{n}.jpg": tagged(jpeg(40 * n), f'"{n}"') for n in range(1, 5)},
    }
    with serving(pages) as site:
        source = {"name": "cats", "kind": "site", "start": [site.url("/")], "depth": 2}
        config = load_config((), (), {"crawl": {"sources": [source], "allow_addresses": [site.address], "delay_s": 0}})
        crawl.validate(config)
        result = crawl.run(spark, lake, config, run_of("one.crawl"))
        assert result.metrics["new_media"] == 3
        found = {row["url"].removeprefix(site.url("")): row for row in read(spark, lake, DOCUMENTS).collect()}
        said = {path: (row["media_type"], row["error"] and row["error"]["code"]) for path, row in found.items()}
        assert said == {
            "/": ("page", None),
            "/a": ("page", None),
            "/b": ("page", None),
            "/private/": ("page", "robots_disallowed"),
            "/mapped": ("page", None),
            "/map.xml": ("sitemap", None),
            **{f"/{n}.jpg": ("image", None) for n in range(1, 4)},
            "/4.jpg": (None, "opted_out"),
            "/gone.jpg": (None, "not_found"),
        }
        assert found["/1.jpg"]["caption"] == "one" and found["/1.jpg"]["page_title"] == "Home"
        assert found["/4.jpg"]["opted_out"] and "/4.jpg" not in site.paths()
        assert {path: row["depth"] for path, row in found.items() if row["depth"] is not None} == {
            **{"/": 0, "/map.xml": 0, "/mapped": 0, "/a": 1, "/private/": 1, "/b": 2},
        }
        assert len(site.paths()) == len(set(site.paths())) and "/c" not in site.paths()

        before = len(site.log)
        later = dataclasses.replace(run_of("two.crawl"), started=datetime.now(UTC) + timedelta(days=60))
        again = crawl.run(spark, lake, config, later)
        asked = site.paths()[before:]
        assert sorted(asked) == sorted(set(pages) - {"/4.jpg", "/robots.txt"} | {"/gone.jpg"})
        fetches = read(spark, lake, FETCHES).where("run_id = 'two.crawl'").collect()
        statuses = Counter(row["http_status"] for row in fetches)
        assert statuses == {304: 8, 404: 1}
        assert again.metrics["new_media"] == 0 and again.metrics["not_modified"] == 8
        tables = {"fetches": read(spark, lake, FETCHES), "hosts": read(spark, lake, HOSTS)}
        said_of = crawl_report(tables, ["two.crawl"], delay_s=0)
        assert said_of is not None and [one.host for one in said_of.hosts] == [site.address]
        assert (said_of.requests, said_of.errors, said_of.not_modified, said_of.bytes) == (9, 1, 8, 0)
        assert again.metrics["requests"] == 9 and again.metrics["n_hosts"] == 1
        assert crawl_report(tables, ["none"], delay_s=0) is None


@pytest.mark.spark
def test_what_a_round_does_not_reach_is_fetched_in_the_same_run_and_what_a_run_does_not_in_the_next(
    spark: Any, tmp_path: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    pages: dict[str, Answer] = {"/robots.txt": answer(body=b"User-agent: *\nCrawl-delay: 1\n")}
    pages |= {f"/{n}.jpg": answer(body=jpeg(40 * n)) for n in range(4)}
    with serving(pages) as site:
        urls = tmp_path / "urls.txt"
        source = {"name": "web", "kind": "urls", "uri": str(urls)}
        said = {"allow_addresses": [site.address], "delay_s": 0.05, "round_s": 1.5, "sources": [source]}
        urls.write_text("".join(site.url(f"/{n}.jpg\n") for n in range(3)))
        first = crawl.run(spark, lake, load_config((), (), {"crawl": said}), run_of("one.crawl"))
        assert first.metrics["new_media"] == 3 and "3 fetched" in first.message
        times = [asked.at_s for asked in site.log]
        assert min(b - a for a, b in itertools.pairwise(times)) >= 1
        assert len(site.paths()) == len(set(site.paths())) == 4
        urls.write_text(site.url("/3.jpg"))
        short = load_config((), ["crawl.max_hours=1e-9"], {"crawl": said})
        second = crawl.run(spark, lake, short, run_of("two.crawl"))
        assert (second.metrics["new_media"], second.metrics["documents_untried"]) == (0, 1) and len(site.log) == 4
        left = keyed(spark, lake)["3.jpg"]
        assert left["error"]["code"] == "deferred" and left["next_fetch_at"] is not None
        third = crawl.run(spark, lake, load_config((), (), {"crawl": said}), run_of("three.crawl"))
        assert third.metrics["new_media"] == 1 and keyed(spark, lake)["3.jpg"]["error"] is None


@pytest.mark.spark
def test_a_host_has_a_budget_of_pages_and_any_page_may_refuse_what_it_shows(spark: Any, tmp_path: Path) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    source = {"name": "cats", "kind": "site", "start": ["http://a.example/"], "max_pages": 3}
    config = load_config((), (), {"crawl": {"sources": [source], "contact": "me@example.com"}})
    part = crawl.site_of(config.crawl.sources[0]).part
    place = {"host": "a.example", "host_bucket": host_bucket("a.example"), "source": "cats"}
    known = rows.document("known", **place, media_id=None, media_type="page", depth=1)
    append(frame_of(spark, DOCUMENTS, [known]), lake, DOCUMENTS)
    links = [
        row_sighting({"url": f"http://{host}.example/{n}"}, part, held=page_at(n)) for host in "ab" for n in range(5)
    ]
    shown = [
        row_sighting({"url": "http://c.example/1.jpg"}, part, held={"opted_out": refused}) for refused in (False, True)
    ]
    kept = [row_sighting({"url": "http://c.example/2.jpg"}, part)]
    staged = pa.RecordBatch.from_pylist([{"found": [vars(one) for one in (*links, *shown, *kept)]}], crawl_wave.STAGED)
    seen = crawl_wave.found(spark.createDataFrame(pa.Table.from_batches([staged])))
    left = {row["url"]: row for row in frontier.within_budgets(spark, lake, config, seen).collect()}
    pages = sorted(url for url in left if left[url]["depth"] is not None)
    assert pages == [
        f"http://{url}" for url in ("a.example/0", "a.example/1", "b.example/0", "b.example/1", "b.example/2")
    ]
    refusals = {url.rsplit("/", 1)[-1]: row["opted_out"] for url, row in left.items() if row["depth"] is None}
    assert refusals == {"1.jpg": True, "2.jpg": False}


def page_at(depth: int) -> dict[str, Any]:
    return {"expects": "page", "depth": depth}


def test_of_a_host_a_run_plans_what_its_pauses_let_through_and_one_where_a_pause_outlasts_a_round() -> None:
    found = pa.table({"fetch_host": ["", "fast", "slow", "slower"], "part": [0] * 4, "rows": [9, 50, 50, 50]})
    limits = {"delay_s": 0.0, "round_s": 100.0, "run_s": 1000.0, "wave_documents": 20}
    waves = frontier.hosts_in_waves(found, {"slow": 60.0, "slower": 101.0}, **limits)
    assert waves["most"].to_pylist() == [9, 50, 16, 1]
    assert waves["per_wave"].to_pylist() == [9, 17, 1, 1]


def test_a_document_is_taken_down_with_its_host_and_with_the_host_that_it_has_moved_to() -> None:
    planned = {"problem": None, "opted_out": False, "doc_id": "0", "host": "a.example", "url": "http://a.example/"}
    planned |= {"fetch_url": "http://b.example/", "fetch_host": "b.example"}
    for host, is_refused in (("a.example", True), ("b.example", True), ("c.example", False)):
        refused = crawl_wave.refusal(planned, Takedowns(hosts=frozenset({host})))
        assert (refused is not None and refused["code"] == "taken_down") is is_refused, host


@pytest.mark.spark
def test_a_wave_that_is_committed_undoes_no_refusal_no_newer_answer_and_no_move(spark: Any, tmp_path: Path) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    before, after = rows.NOW - timedelta(hours=1), rows.NOW + timedelta(hours=1)
    refusal = {"stage": "fetch", "code": "opted_out", "detail": "a page says so"}
    deferral = {"stage": "fetch", "code": "deferred", "detail": "no turn"}
    refused = {"opted_out": True, "error": refusal, "media_id": None, "media_type": None}
    known = [
        *(rows.document(name, **refused) for name in ("got", "same", "retried")),
        rows.document("moved", error=deferral, media_id=None, media_type=None, moved_to="http://b.example/"),
        rows.document("newer", fetched_at=after),
        rows.document("had"),
    ]
    append(frame_of(spark, DOCUMENTS, known), lake, DOCUMENTS)
    plain = {"is_unchanged": False, "is_final": False, "was_opted_out": False, "was_fetched_at": before, "attempts": []}
    late = {"error": deferral, "media_id": None, "media_type": None, "fetched_at": None, "was_fetched_at": rows.NOW}
    staged = [
        plain | rows.document("got", fetched_at=after),
        plain | rows.document("same", fetched_at=after, media_id=None, is_unchanged=True),
        plain | rows.document("retried", fetched_at=after, was_opted_out=True),
        plain | rows.document("moved", **late),
        plain | rows.document("newer", **late),
        plain | rows.document("had", **late),
    ]
    batch = pa.RecordBatch.from_pylist(staged, crawl_wave.STAGED)
    crawl_merges.merge_documents(spark, lake, spark.createDataFrame(pa.Table.from_batches([batch])))
    found = {name.removesuffix(".jpg"): row for name, row in keyed(spark, lake).items()}
    codes = {name: row["error"] and row["error"]["code"] for name, row in found.items()}
    obeyed = {"got": "opted_out", "same": "opted_out"}
    assert codes == {**obeyed, "retried": None, "moved": "deferred", "newer": None, "had": None}
    has_media = {name for name, row in found.items() if row["media_id"] is not None}
    assert has_media == {"retried", "newer", "had"} and found["moved"]["moved_to"] == "http://b.example/"
    assert not found["retried"]["opted_out"] and found["got"]["opted_out"] and found["same"]["opted_out"]
