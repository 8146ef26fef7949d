"""What became of one document is told step by step, whoever asks by doc_id, URL or media_id."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import app
from jobs.explain import UnknownDocument, named, outcomes, plain, publication
from jobs.explain_page import next_commands, render, steps, write_page
from jobs.lake import Lake, lake_at
from jobs.urls import doc_id
from tests import rows, small_lake
from tests.rows import CONCEPT, FINGERPRINTS, OBJECT
from tests.test_report import HOSTILE, Page

NOW = rows.NOW + timedelta(hours=2)
ERROR = {"stage": "decode", "code": "truncated", "detail": "ends after 812 bytes"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0" * 32, ("doc_id", "0" * 32)),
        ("0" * 64, ("media_id", "0" * 64)),
        ("HTTP://Example.org:80/a.jpg#top", ("doc_id", doc_id("http://example.org/a.jpg"))),
        ("/photos/a b.jpg", ("doc_id", doc_id("file:///photos/a%20b.jpg"))),
        ("file:///photos/a%20b.jpg", ("doc_id", doc_id("file:///photos/a%20b.jpg"))),
    ],
)
def test_a_document_is_named_by_its_id_its_media_its_url_or_its_path(text: str, names: tuple[str, str]) -> None:
    assert named(text) == names


def test_what_names_no_document_is_refused_with_what_would() -> None:
    with pytest.raises(UnknownDocument, match="'cat' names no document: a doc_id has 32 hex digits, a media_id 64"):
        named("cat")


@pytest.mark.parametrize(
    ("runs", "is_published", "why"),
    [
        ([rows.run_row("a.featurize", "featurize")], False, "no check has judged it"),
        ([], False, "run a.featurize is not in runs"),
        ([rows.run_row("a.featurize", "featurize", status="failed")], False, "its run failed, and no check"),
        ([rows.run_row("a.featurize", "featurize", status="running", heartbeat=NOW)], False, "its run goes on"),
        ([rows.run_row("a.featurize", "featurize", status="running")], False, "its run died"),
        (
            [
                rows.run_row("a.featurize", "featurize", status="rejected"),
                rows.run_row("c.check", "check", status="rejected", covers=["a.featurize"]),
            ],
            False,
            "rejected by c.check",
        ),
        (
            [
                rows.run_row("a.featurize", "featurize", status="failed"),
                rows.run_row("c.check", "check", status="rejected", covers=["a.featurize"]),
                rows.run_row("d.check", "check", status="accepted", covers=["a.featurize"]),
            ],
            True,
            "accepted by d.check",
        ),
    ],
)
def test_why_a_row_is_published_or_not(runs: list[rows.Row], is_published: bool, why: str) -> None:
    published, said = publication("a.featurize", runs, now=NOW, expiry_s=300)
    assert published == is_published and said.startswith(why)


def facts(text: str = "a cat") -> dict[str, Any]:
    """A picture that one featurizer understood, one failed on and one has not seen, every text `text`."""
    runs = [
        rows.run_row("r.featurize", "featurize"),
        rows.run_row("r.check", "check", status="accepted", covers=["r.featurize"]),
    ]
    box = [0.25, 0.25, 0.75, 0.75]
    features = [
        rows.feature("a", CONCEPT, None, error=ERROR | {"detail": text}, decode_ms=None, infer_ms=None),
        rows.feature("a", OBJECT, [{"label": text, "score": 0.9, "box": box, "text": None, "dim": 256}]),
    ]
    return {
        "lake": "file:///lake",
        "document": rows.document("a", caption=text, url=f"http://example.org/{text}", error=None),
        "found_on": None,
        "shows": [],
        "same_media": [],
        "fetches": [rows.fetch("a", error=ERROR | {"detail": text})],
        "media": rows.media("a", pack_uri=None),
        "frames": [rows.frame("a", shot=None)],
        "outcomes": outcomes(features, runs, now=NOW, expiry_s=300),
        "mentions": [rows.mention("a", features=[rows.found(label=text, text=text)], published=True, why=text)],
        "golden": [
            {"golden_set": text, "golden_version": 1, "item_id": text, "kind": text, "labels": [text], "query": None}
        ],
        "runs": runs,
    }  # fmt: skip


def test_each_featurizer_of_the_lake_has_an_outcome() -> None:
    found = {one["featurizer"]: one for one in facts()["outcomes"]}
    assert found.keys() == FINGERPRINTS.keys()
    assert [error["code"] for error in found[CONCEPT]["errors"]] == ["truncated"]
    assert found[OBJECT]["published"] and found[OBJECT]["why"] == "accepted by r.check"
    assert found[rows.ENTITY]["why"] == "no row yet; r.featurize was the last to write it"
    told = {step.name: step.rows for step in steps(facts())}
    assert [row["outcome"] for row in told["features"]] == [
        "truncated (decode, final): a cat",
        "looked",
        "not tried",
    ]


def test_the_page_shows_hostile_texts_and_executes_none() -> None:
    page, harmless = Page(render(facts(HOSTILE))), Page(render(facts()))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert "script" not in {tag for tag, _ in page.tags} and HOSTILE in page.text
    [picture] = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert (picture or "").startswith("data:image/jpeg;base64,")
    assert [attributes["x"] for tag, attributes in page.tags if tag == "rect"] == ["0.2500"]


def test_a_picture_tells_on_which_page_of_which_source_it_was_found() -> None:
    page = {"doc_id": "1" * 32, "url": "http://example.org/", "source": "site", "media_type": "page", "depth": 2}
    told = {step.name: step.rows for step in steps(facts() | {"found_on": page | {"error": None}})}
    [found] = [row["value"] for row in told["document"] if row["field"] == "found on"]
    assert found == f"page of source site, depth 2, doc_id {'1' * 32}: got it"


def test_a_page_tells_what_it_shows_and_nothing_of_media() -> None:
    shown = {"doc_id": "2" * 32, "url": "http://example.org/a.jpg", "source": "site", "media_type": "image"}
    page = rows.document("a", media_id=None, media_type="page", depth=1, error=None, caption=None)
    nothing = {"media": None, "frames": [], "outcomes": [], "mentions": [], "golden": []}
    of_page = facts() | nothing | {"document": page, "shows": [shown | {"depth": None, "error": None}]}
    told = {step.name: step.rows for step in steps(of_page)}
    assert list(told) == ["document", "shows", "fetches", "runs"]
    assert told["shows"] == [{"url": shown["url"], "doc_id": shown["doc_id"], "outcome": "image"}]
    assert next_commands(of_page) == [] and "lakelens featurize" not in render(of_page)
    assert "lakelens featurize" in render(facts())


def test_facts_are_json_without_thumbnails() -> None:
    said = json.loads(json.dumps(plain(facts())))
    assert said["document"]["fetched_at"] == "2026-03-01T12:00:00+00:00" and "thumbnail" not in said["frames"][0]


def test_where_the_lake_cannot_be_written_the_page_is_elsewhere(tmp_path: Path) -> None:
    lake = lake_at(str(tmp_path))
    assert write_page(lake, "a", "page") == tmp_path / "reports/explain/a.html"
    (tmp_path / "reports/explain/a.html").unlink()
    (tmp_path / "reports/explain").rmdir()
    (tmp_path / "reports/explain").touch()  # what root cannot write into either
    elsewhere = write_page(lake, "a", "page")
    assert elsewhere.read_text() == "page" and not elsewhere.is_relative_to(tmp_path)


@pytest.fixture
def lakelens(small: Lake) -> Callable[..., dict[str, Any]]:
    """`lakelens explain` on a small lake."""

    def explained(text: str, capsys: pytest.CaptureFixture[str], exit_code: int = 0) -> dict[str, Any]:
        code = app(["explain", text, "--lake", small.uri, "--json"], standalone_mode=False)
        said = capsys.readouterr().out
        assert code == exit_code, said
        outcome: dict[str, Any] = json.loads(said)
        return outcome

    return explained


@pytest.mark.spark
def test_a_document_of_a_lake_is_explained_from_fetch_to_golden_set(
    lakelens: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    name = small_lake.NAMES[1]
    url = rows.document(name)["url"]
    by_url = lakelens(url, capsys)
    assert [row["run_id"] for row in by_url["fetches"]] == ["r.crawl"]
    spaces = {(one["featurizer"], one["fingerprint"]): one for one in by_url["outcomes"]}
    concept = spaces[CONCEPT, FINGERPRINTS[CONCEPT]]
    assert concept["published"] and concept["champion"] and concept["found"][0]["label"] == "tabby cat"
    assert concept["found"][0]["dim"] == 1280
    assert spaces[OBJECT, small_lake.TRIED]["why"] == "rejected by tried.check"
    assert [row["item_id"] for row in by_url["golden"]] == sorted([rows.media_id(name), "q1"])
    assert [row["run_id"] for row in by_url["runs"]] == [
        "r.check",
        "r.crawl",
        "r.featurize",
        "tried.check",
        "tried.featurize",
    ]
    page = Page(Path(by_url["page"]).read_text())
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 1
    by_media = lakelens(rows.media_id(name), capsys)
    assert {**by_media, "message": ""} == {**by_url, "message": ""}

    page_of = by_url["found_on"]
    assert (page_of["source"], page_of["depth"]) == ("web", 0)
    crawled = lakelens(page_of["doc_id"], capsys)
    assert url in {row["url"] for row in crawled["shows"]} and crawled["commands"] == []
    assert (crawled["media"], crawled["found_on"]) == (None, None)

    refused = lakelens(rows.document(small_lake.NAMES[-1])["doc_id"], capsys)
    assert (refused["media"], refused["outcomes"]) == (None, [])
    assert refused["document"]["error"]["code"] == "robots_disallowed"
    truncated = lakelens(rows.document(small_lake.TRUNCATED)["doc_id"], capsys)
    assert {error["code"] for one in truncated["outcomes"] for error in one["errors"]} == {"truncated"}
    unknown = lakelens("http://example.org/nobody.jpg", capsys, exit_code=2)
    assert unknown["message"].startswith("http://example.org/nobody.jpg is not in file:///")
