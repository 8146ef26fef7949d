"""The crawl job on a real site and folder, into real tables, once, again, and after being killed."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import crawl
from jobs.config import Config, ConfigError, load_config
from jobs.lake import Lake, open_lake, read
from jobs.runs import Run
from jobs.sources import SourceError
from schemas import DOCUMENTS, FETCHES, MEDIA
from tests.crawl_site import Answer, Site, answer, jpeg, serving

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
        plan, _ = crawl.stage_plan(spark, lake, config, run)
        planned = plan.where("action = 'fetch' AND wave = 0")
        crawl.stage_wave(spark, planned, crawl.settings_of(config.crawl), crawl.wave_uri(lake, run, 0))
        n_asked = site.paths().count("/a.jpg")
        staged = spark.read.parquet(crawl.wave_uri(lake, run, 0))
        crawl._append_fetches(spark, lake, run, staged, 0)  # and here it dies: no media, no documents
        resumed = dataclasses.replace(run, owner="another", resumed=True)
        crawl.run(spark, lake, config, resumed)
        assert site.paths().count("/a.jpg") == n_asked == 1
        fetches = read(spark, lake, FETCHES).collect()
        assert len(fetches) == len({(r["doc_id"], r["attempt"]) for r in fetches}) == 12
        assert len(keyed(spark, lake)) == 12 and read(spark, lake, MEDIA).count() == 4


@pytest.mark.spark
def test_waves_are_numbered_in_the_order_of_the_sources_however_many_parts_are_numbered_at_once(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crawl, "PART_ORDINALS", 4)
    lake = open_lake(spark, str(tmp_path / "lake"))
    urls = [f"http://127.0.0.1:8080/{n}.jpg" for n in range(25)]
    (tmp_path / "urls.txt").write_text("\n".join([*urls[:9], *urls[3:7], *urls[9:]]))  # some of them twice
    source = {"name": "web", "kind": "urls", "uri": str(tmp_path / "urls.txt")}
    config = load_config((), (), {"crawl": {"sources": [source], "wave_documents": 3}})
    plan, counts = crawl.stage_plan(spark, lake, config, run_of("one.crawl"))
    assert counts == {"seen": 29, "distinct": 25, "fetch": 25}
    assert {row["url"]: row["wave"] for row in plan.collect()} == {url: n // 3 for n, url in enumerate(urls)}


@pytest.mark.spark
def test_what_was_obtained_outlives_an_error_that_will_be_tried_again_but_not_a_final_one(
    spark: Any, tmp_path: Path, folder: Path
) -> None:
    lake = open_lake(spark, str(tmp_path / "lake"))
    pages: dict[str, Answer] = {
        "/flaky.jpg": [answer(body=jpeg(1)), answer("500 Oops")],
        "/removed.jpg": [answer(body=jpeg(2)), answer("410 Gone")],
    }
    with serving(pages) as site:
        urls = tmp_path / "urls.txt"
        urls.write_text(f"{site.url('/flaky.jpg')}\n{site.url('/removed.jpg')}\nno url\n")
        config = config_of(site, urls, folder, "crawl.max_attempts=1", "crawl.wave_documents=100")
        first = crawl.run(spark, lake, config, run_of("one.crawl"))
        assert first.metrics["new_media"] == 3
        assert read(spark, lake, DOCUMENTS).where("media_id IS NOT NULL").count() == 4
        in_two_months = dataclasses.replace(run_of("two.crawl"), started=datetime.now(UTC) + timedelta(days=60))
        crawl.run(spark, lake, config, in_two_months)
        found = keyed(spark, lake)
        assert found["flaky.jpg"]["error"] is None and found["flaky.jpg"]["media_id"] is not None
        assert found["removed.jpg"]["error"]["code"] == "not_found" and found["removed.jpg"]["media_id"] is None
        codes = [row["error"]["code"] for row in read(spark, lake, FETCHES).where("run_id = 'two.crawl'").collect()]
        assert sorted(codes) == ["http_server_error", "not_found"]


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
    missing = {"name": "photos", "kind": "folder", "uri": str(tmp_path / "none")}
    with pytest.raises(SourceError, match=r"source photos: .*none is not a folder"):
        crawl.validate(load_config((), (), {"crawl": {**good, "sources": [missing]}}))
    with_contact = {**good, "contact": "me@example.com"}
    crawl.validate(load_config((), (), {"crawl": with_contact}))
    nowhere = {"lake": "nostore://bucket/lake", "crawl": with_contact}
    with pytest.raises(ConfigError, match=r"nostore://bucket/lake/_packs: .*nostore.*crawl.max_bytes"):
        crawl.validate(load_config((), (), nowhere))
    crawl.validate(load_config((), ["crawl.max_bytes=16777216"], nowhere))
