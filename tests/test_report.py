"""The report is one file that loads nothing, executes nothing it was fed, and shows what was committed."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jobs.config import load_config
from jobs.contact_sheet import MAX_FRAMES_PER_VIDEO, MAX_THUMBNAIL_BYTES, varied, within_budget
from jobs.crawl_report import CrawlReport, HostReport, jain
from jobs.metrics import Histogram, RunMetrics
from jobs.report import (
    BARS,
    ErrorCount,
    Report,
    Video,
    duration,
    file_name,
    number,
    picture_of,
    render,
    shared_latency,
)
from tests import rows
from tests.rows import CONCEPT, ENTITY, OBJECT

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """What a browser would make of a page: its tags, attributes and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("file:///photos/K%C3%A4fer%20und%20Bl%C3%BCte.jpg", "Käfer und Blüte.jpg"),
        ("http://example.org/", "http://example.org/"),
        ("http://example.org/50%25", "50%"),
    ],
)
def test_a_file_is_named_as_a_person_would_write_it(url: str, name: str) -> None:
    assert file_name(url) == name


def features_of(text: str) -> list[dict[str, Any]]:
    """The rows of three featurizers for a frame, every text in them `text`."""
    box = [0.1, 0.2, 0.5, 0.6]
    return [
        {"featurizer": CONCEPT, "code": None, "found": [rows.found(label=text, score=0.5)]},
        {"featurizer": OBJECT, "code": None, "found": [rows.found(label=text, score=0.9, box=box)]},
        {
            "featurizer": ENTITY,
            "code": "model_failed",
            "found": [rows.found(label=text, text=text, box=box), rows.found(text=text), rows.found(text=f"{text} 7")],
        },
    ]


def report_of(text: str) -> Report:
    """A report in which every text that comes from outside is `text`."""
    facts = {"url": f"http://example.org/{text}", "caption": text, "mentions": [("caption", text, text)]}
    picture = picture_of(rows.frame("cat"), features_of(text), facts)
    metrics = RunMetrics(
        n_documents={"": 2}, n_pages={"": 3}, document_ms={"": Histogram({10: 3, 20: 1})}, n_errors={text: 1},
        infer_total_ms={text: 5.0}, wall_s={"featurize": 3.0}, held_core_s={"featurize": 6.0},
        core_s={"infer": 4.0, text: 1.5, "waste": 0.0},
    )  # fmt: skip
    return Report(
        title=text,
        verdict="rejected",
        written_at=rows.NOW,
        lake=text,
        metrics=metrics,
        prices=load_config().prices,
        pictures=[picture],
        videos=[Video(url=text, duration_s=2.0, pictures=[picture, picture])],
        errors=[ErrorCount(code=text, stage="decode", n=1, examples=[(text, text)])],
        crawl=CrawlReport(
            attempts=1100, requests=1200, errors=30, moved=1, not_modified=7, bytes=3 << 20, busy_s=90.0, span_s=60.0,
                wait_s=500.0, n_hosts=3, fairness=0.9,
            hosts=[HostReport(host=text, attempts=9, errors=5, mean_ms=120.0, wait_s=8.0, bytes=2048)],
        ),
        gates=[
            {
                "table": text, "rule": "x", "says": text, "passed": False, "observed": 1.0, "allowed": 0.0, "n_rows": 3,
                "rows": [{"media_id": text}],
            }
        ],
        runs=[rows.run_row(text, "featurize", outputs={text: text})],
        versions={"lakelens": text},
    )  # fmt: skip


def test_hostile_texts_are_shown_and_not_executed() -> None:
    page, harmless = Page(render(report_of(HOSTILE))), Page(render(report_of("plain")))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert(1)</script>" in page.text


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html = render(report_of("plain"))
    page = Page(html)
    loading = [a.get(name) or "" for _, a in page.tags for name in ("src", "srcset", "data", "poster", "action")]
    assert all(value == "" or value.startswith("data:image/jpeg;base64,") for value in loading)
    assert all((a.get("href") or "#").startswith("#") for _, a in page.tags)
    assert not re.search(r"@import|url\(", html)
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy


def test_an_empty_report_is_a_page_too() -> None:
    empty = Report(
        title="none", verdict="not judged", written_at=rows.NOW, lake="file:///lake", metrics=RunMetrics(),
        prices=load_config().prices,
    )  # fmt: skip
    assert "No picture was featurized" in render(empty) and "pages" not in Page(render(empty)).text
    assert "0 distinct media, and 3 pages" in Page(render(report_of("plain"))).text


def test_the_cost_is_shown_by_line_and_checked_against_the_clock() -> None:
    text = " ".join(Page(render(report_of("plain"))).text.split())
    # six core seconds at .0425 dollars an hour for two documents
    assert "$35.42every line measured" in text
    assert "infer/plaininference23.6166.7 %" in text and "unexplainedwall clock" in text
    assert "2 cores were held for 3 s, which costs $0.000071; the lines" in text and "all but 8.3% of it" in text


def test_how_the_crawl_went_is_said_with_the_hosts_that_gave_most_trouble() -> None:
    text = " ".join(Page(render(report_of("plain"))).text.split())
    assert "1,200 requests to 3 hosts in 60 s, 20.0 requests and 51.2 kB a second; 7 not modified, 30 failed." in text
    assert "waited 500 s for their hosts' pauses. Fairness between hosts that were asked often: 0.90 of 1." in text
    assert re.search(r"plain ?9 ?5 ?120(\.0)? ms ?8.0 s ?2.0 kB", text)


def test_shares_that_are_equal_are_fair_and_one_that_has_all_is_not() -> None:
    assert jain(4, 4 * 0.5, 4 * 0.25) == 1.0
    assert jain(4, 1.0, 1.0) == 0.25
    assert jain(1, 1.0, 1.0) is None and jain(3, 0.0, 0.0) is None


def test_a_picture_gathers_what_each_kind_of_featurizer_found() -> None:
    picture = picture_of(rows.frame("cat"), features_of("x"), {"url": "u", "page_title": "a title"})
    assert picture.concepts == [("x", 0.5)] and picture.objects == [("x", 1)]
    assert picture.texts == ["x 7"] and picture.entities == [("x", "x")]
    assert picture.errors == [(ENTITY, "model_failed")] and picture.caption == "a title"
    assert [(box.kind, round(box.width, 6)) for box in picture.boxes] == [("text", 0.4), ("object", 0.4)]


def test_thumbnails_stay_within_their_budget() -> None:
    large = [{"media_id": str(i), "thumbnail": b"x" * 1_000_000} for i in range(20)]
    assert sum(len(f["thumbnail"]) for f in within_budget(large)) <= MAX_THUMBNAIL_BYTES
    long = [{"media_id": "video", "thumbnail": b"x"} for _ in range(30)]
    assert len(within_budget(long)) == MAX_FRAMES_PER_VIDEO


def test_bars_of_the_histogram_lose_no_document() -> None:
    counts = {bucket: bucket + 70 for bucket in range(-64, 200)}
    bars = shared_latency(RunMetrics(document_ms={"": Histogram(counts)}))
    assert sum(n for _, n in bars) == sum(counts.values()) and len(bars) <= BARS
    assert [ms for ms, _ in bars] == sorted(ms for ms, _ in bars)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (12345, "12,345"), (0.123456, "0.123"), (123.46, "123.5"), (7.0, "7")]
)
def test_numbers_are_written_for_reading(value: float, shown: str) -> None:
    assert number(value) == shown


def test_durations_are_written_for_reading() -> None:
    assert (duration(12.34), duration(1234.0), duration(None)) == ("12.3 ms", "1.23 s", "–")  # noqa: RUF001


@pytest.mark.spark
def test_the_report_of_a_lake_shows_its_pictures_videos_and_errors(spark: Any, tmp_path: Path) -> None:
    from jobs.lake import append, open_lake
    from jobs.report import collect, write_report
    from schemas import TABLES

    lake, config = open_lake(spark, str(tmp_path / "lake")), load_config()
    refused = {"stage": "fetch", "code": "robots_disallowed", "detail": "/private/"}
    data = {
        "fetches": [*(rows.fetch(n) for n in ("cat", "clip", "broken")), rows.fetch("refused", error=refused)],
        "documents": [
            rows.document("cat", caption=f"A cat in Berlin {HOSTILE}"),
            rows.document("clip", media_type="video"),
            rows.document("broken"),
            rows.document("refused", media_id=None, media_type=None, error=refused),
        ],
        "media": [rows.media("cat"), rows.media("clip", mime="video/mp4", duration_s=2.0), rows.media("broken")],
        "frames": [rows.frame("cat"), rows.frame("clip", 0), rows.frame("clip", 900)],
        "features": [
            *rows.understood("cat"),
            *rows.understood("clip"),
            *rows.understood("clip", 900),
            *rows.failed("broken", "truncated", detail="ends early"),
        ],
        "mentions": [rows.mention("cat")],
        "runs": [rows.run_row("r.crawl", "crawl"), rows.run_row("r.featurize", "featurize")],
    }
    for table in (table for table in TABLES if table.name in data):
        append(rows.frame_of(spark, table, data[table.name]), lake, table)
    report = collect(spark, lake, config, ["r.crawl", "r.featurize"])
    assert [p.media_id for p in report.pictures] == [rows.media_id("cat")]
    assert report.pictures[0].mentions == [("caption", "geonames:2950159", "Berlin")]
    assert [[p.time_s for p in v.pictures] for v in report.videos] == [[0.0, 0.9]]
    assert [(e.code, e.n, e.examples[0][1]) for e in report.errors] == [
        ("robots_disallowed", 1, "/private/"),
        ("truncated", 3, "ends early"),
    ]
    assert report.title == "r" and report.verdict == "not judged"
    path = write_report(spark, lake, config, ["r.crawl", "r.featurize"], tmp_path / "reports" / "latest.html")
    assert path.stat().st_size < 10_000_000 and "tabby cat" in path.read_text()


def test_the_contact_sheet_shows_no_two_pictures_that_look_alike() -> None:
    vectors = {"a": [1.0, 0.0], "crop of a": [0.9, 0.436], "b": [0.0, 1.0]}
    assert varied(["a", "crop of a", "no vector", "b"], vectors, 3) == ["a", "no vector", "b"]
    assert varied(["crop of a", "b", "a"], vectors, 1) == ["crop of a"]
