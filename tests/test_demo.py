"""`lakelens demo` from the command line, with one featurizer: every planted fault is a row with its code, once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from jobs.cli import app
from jobs.demo import prepared_sample, serve
from schemas import TABLES

SPEC = "concept_efficientnet.lite0@1"


@pytest.fixture
def port() -> Iterator[int]:
    """A free port: documents are known by their URLs, so both runs take the same."""
    with serve(prepared_sample(), port=0) as base_url:
        found = urlsplit(base_url).port
    assert found is not None
    yield found


def demo(lake: Path, port: int, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    settings = [*more, f"featurize.featurizers=[{SPEC}]", "featurize.link_captions=false"]
    arguments = ["demo", "--lake", str(lake), "--port", str(port), "--json"]
    code = app([*arguments, *(x for s in settings for x in ("--set", s))], standalone_mode=False)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    outcome: dict[str, Any] = json.loads(shown.out)
    return outcome


@pytest.mark.spark
def test_the_demo_holds_every_document_and_each_planted_fault_and_a_second_run_adds_nothing(
    spark: Any, tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from deltalake import DeltaTable

    def rows(table: str, *columns: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = DeltaTable(str(lake / table)).to_pyarrow_table(columns=list(columns)).to_pylist()
        return found

    lake = tmp_path / "lake"
    outcome = demo(lake, port, capsys)
    assert outcome["status"] == "accepted" and Path(outcome["report"]).is_file()
    for table in TABLES:  # read by another Delta reader
        assert [field.name for field in DeltaTable(str(lake / table.name)).schema().fields] == table.columns.names

    expected = json.loads((prepared_sample() / "expected.json").read_text())
    documents = {place(row["url"]): row for row in rows("documents", "url", "media_id", "error")}
    assert len(documents) == len(expected)
    features = {row["media_id"]: row["error"] for row in rows("features", "media_id", "error")}
    for row in expected:
        document = documents[row["source"], row["path"]]
        refused = document["error"]["code"] if document["error"] else None
        assert refused == (row["code"] if row["table"] == "documents" else None), row
        if row["table"] != "documents":
            failed = features[document["media_id"]]
            assert (failed["code"] if failed else None) == row["code"], row

    golden = rows("golden", "golden_set", "kind", "media_id", "query")
    sets = {(row["golden_set"], row["kind"]) for row in golden}
    assert sets == {
        ("sample-concepts", "labels"),
        ("sample-captions", "queries"),
        ("sample-copies", "copies"),
        ("sample-signs", "text"),
    }
    evaluations = rows("evaluations", "golden_set", "metric", "value")
    top_5 = [row["value"] for row in evaluations if row["metric"] == "top_5"]
    ndcg = [
        row["value"] for row in evaluations if row["metric"] == "ndcg_at_10" and row["golden_set"] == "sample-captions"
    ]
    assert len(top_5) >= 50 and sum(top_5) / len(top_5) > 0.8
    assert len(ndcg) >= 50 and sum(ndcg) / len(ndcg) > 0.3

    before = {name: len(rows(name, "media_id")) for name in ("media", "frames", "features")}
    assert demo(lake, port, capsys, "golden=[]", "evaluate.golden=[]")["status"] == "accepted"
    assert {name: len(rows(name, "media_id")) for name in before} == before


def place(url: str) -> tuple[str, str]:
    """Source and path in the sample of a document's URL."""
    path = unquote(urlsplit(url).path)
    return ("folder", path.partition("/sample/folder/")[2]) if url.startswith("file:") else ("web", path[1:])
