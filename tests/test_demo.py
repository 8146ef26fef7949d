"""`lakelens demo` from the command line, an experiment on the lake that it makes, and the notebooks over both."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from jobs.cli import app
from jobs.demo import ADDRESS, demo_overrides, prepared_sample, serve
from jobs.sample_site import BASE, SAMPLE
from schemas import TABLES
from tests.test_architecture import ROOT

SPECS = ["concept_efficientnet.lite0@1", "object_yolov3.tiny@1"]
SECONDS_PER_CELL = 300


def lakelens(*arguments: str | Path) -> dict[str, Any]:
    """The outcome of a command that succeeds."""
    shown = io.StringIO()
    with redirect_stdout(shown):
        code = app([*map(str, arguments), "--json"], standalone_mode=False)
    assert code == 0, shown.getvalue()
    outcome: dict[str, Any] = json.loads(shown.getvalue())
    return outcome


def demo(lake: Path, port: int, *more: str) -> dict[str, Any]:
    settings = [*more, f"featurize.featurizers={json.dumps(SPECS)}", "featurize.link_captions=false"]
    return lakelens("demo", "--lake", lake, "--port", str(port), *(x for s in settings for x in ("--set", s)))


def boxes(folder: Path) -> Path:
    """COCO labels of two pictures: a cat, which the detector does not see, and a cup, which it does."""
    images = [
        {"id": 1, "file_name": "animals/chelsea-full.jpg", "width": 451, "height": 300},
        {"id": 2, "file_name": "table/coffee-full.jpg", "width": 600, "height": 400},
    ]
    labelled = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 380, 300], "area": 380 * 300},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [150, 22, 276, 288], "area": 276 * 288},
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cup"}]
    described = {"images": images, "categories": categories, "annotations": labelled}
    path = folder / "boxes.json"
    path.write_text(json.dumps(described))
    return path


@pytest.fixture(scope="module")
def port() -> int:
    """A free port: documents are known by their URLs, so both runs take the same."""
    with serve(prepared_sample(), port=0) as base_url:
        found = urlsplit(base_url).port
    assert found is not None
    return found


@pytest.fixture(scope="module")
def made(spark: Any, tmp_path_factory: pytest.TempPathFactory, port: int) -> dict[str, Any]:
    """The outcome of a demo with two featurizers and, beside its own golden sets, one of boxes."""
    folder = tmp_path_factory.mktemp("demo")
    base_url = f"http://{ADDRESS}:{port}"
    overrides = demo_overrides(prepared_sample(), base_url)
    boxed = {"name": "sample-boxes", "kind": "boxes", "labels": str(boxes(folder)), "pictures": base_url}
    names = [*overrides["evaluate"]["golden"], boxed["name"]]
    more = [f"golden={json.dumps([*overrides['golden'], boxed])}", f"evaluate.golden={json.dumps(names)}"]
    return demo(folder / "lake", port, *more)


@pytest.fixture(scope="module")
def lake(made: dict[str, Any]) -> Path:
    """The demo's lake."""
    return Path(made["lake"].removeprefix("file://"))


@pytest.fixture(scope="module")
def compared(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a worked experiment over the vectors that the demo made, timed on few media."""
    stated = yaml.safe_load((ROOT / "conf" / "experiments" / "bridge_labels.yaml").read_text())
    file = tmp_path_factory.mktemp("experiment") / "bridge_labels.yaml"
    file.write_text(yaml.safe_dump(stated | {"repeats": 3, "timed_media": 4}))
    return lakelens("experiment", file, "--lake", lake, "--run-id", "labels")


@pytest.fixture(scope="module")
def execute(lake: Path) -> Iterator[Callable[[str], Any]]:
    """Executes a notebook over the demo's lake, from its folder; any cell's error fails.

    All in one kernel, so that Spark starts once; each begins without a name of the one before.
    """
    import nbformat
    from jupyter_client import KernelManager
    from nbclient import NotebookClient

    manager = KernelManager(kernel_name="python3")
    folder = ROOT / "notebooks"
    manager.start_kernel(cwd=str(folder), env=os.environ | {"LAKELENS_LAKE": str(lake), "PYTHONPATH": str(ROOT)})

    def executed(name: str) -> Any:
        notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f", id="reset"))
        return NotebookClient(notebook, km=manager, timeout=SECONDS_PER_CELL).execute()

    yield executed
    manager.shutdown_kernel(now=True)


def said_by(notebook: Any, cell_id: str) -> str:
    """All text that a cell of an executed notebook shows."""
    [cell] = [cell for cell in notebook.cells if cell.id == cell_id]
    parts = [one.get("text") or one.get("data", {}).get("text/plain", "") for one in cell.outputs]
    return "\n".join(parts)


def cells_with_figures(notebook: Any) -> set[str]:
    """The ids of cells that show a figure."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {cell.id for cell in code if any("image/png" in one.get("data", {}) for one in cell.outputs)}


@pytest.mark.spark
def test_the_demo_holds_every_document_and_each_planted_fault(made: dict[str, Any], lake: Path, port: int) -> None:
    from deltalake import DeltaTable

    assert made["status"] == "accepted" and Path(made["report"]).is_file()
    for table in TABLES:  # read by another Delta reader
        assert [field.name for field in DeltaTable(str(lake / table.name)).schema().fields] == table.columns.names

    sample = prepared_sample()
    expected = {
        row["url"].replace(BASE, f"http://{ADDRESS}:{port}").replace(SAMPLE, sample.as_uri()): row
        for row in json.loads((sample / "expected.json").read_text())
    }
    columns = ("url", "source", "caption", "media_type", "media_id", "depth", "error")
    documents = {row["url"]: row for row in rows(lake, "documents", *columns)}
    assert documents.keys() == expected.keys()
    features: dict[str, set[str | None]] = {}
    for row in rows(lake, "features", "media_id", "error"):
        features.setdefault(row["media_id"], set()).add(row["error"]["code"] if row["error"] else None)
    for url, row in expected.items():
        document = documents[url]
        refused = document["error"]["code"] if document["error"] else None
        assert refused == (row["code"] if row["table"] == "documents" else None), row
        assert document["media_id"] == row["media_id"], row
        assert document["source"] == row["source"], row
        assert document["caption"] == row["caption"], row
        if row["media_type"] is not None:
            assert (document["media_type"], document["depth"]) == (row["media_type"], row["depth"])
        elif row["table"] != "documents":
            assert features[row["media_id"]] == {row["code"]}, row

    golden = rows(lake, "golden", "golden_set", "kind", "media_id", "query")
    sets = {(row["golden_set"], row["kind"]) for row in golden}
    assert sets == {
        ("sample-boxes", "boxes"),
        ("sample-concepts", "labels"),
        ("sample-captions", "queries"),
        ("sample-copies", "copies"),
        ("sample-signs", "text"),
    }
    evaluations = rows(lake, "evaluations", "golden_set", "metric", "value")
    top_5 = [row["value"] for row in evaluations if row["metric"] == "top_5"]
    ndcg = [
        row["value"] for row in evaluations if row["metric"] == "ndcg_at_10" and row["golden_set"] == "sample-captions"
    ]
    assert len(top_5) >= 50 and sum(top_5) / len(top_5) > 0.8
    assert len(ndcg) >= 50 and sum(ndcg) / len(ndcg) > 0.3


@pytest.mark.spark
def test_a_second_demo_adds_nothing(lake: Path, port: int) -> None:
    before = {name: len(rows(lake, name, "media_id")) for name in ("media", "frames", "features", "documents")}
    assert demo(lake, port, "golden=[]", "evaluate.golden=[]")["status"] == "accepted"
    assert {name: len(rows(lake, name, "media_id")) for name in before} == before


@pytest.mark.spark
def test_five_labels_of_a_picture_find_it_better_than_one(compared: dict[str, Any]) -> None:
    assert compared["verdicts"] == {"five": "better"} and Path(compared["report"]).is_file()


@pytest.mark.spark
def test_the_first_notebook_shows_what_the_lake_holds_and_finds_pictures_by_words(
    lake: Path, execute: Callable[[str], Any]
) -> None:
    notebook = execute("01_explore_lake")
    best = said_by(notebook, "search-best").splitlines()[2:]
    for words, picture in {"espresso": "coffee-", "man in a suit": "driver", "rocket": "rocket-"}.items():
        assert any(line.startswith(words) and f" {picture}" in line for line in best), best
    counted = {line.split()[1]: int(line.split()[2]) for line in said_by(notebook, "tables").splitlines()[1:]}
    assert counted["documents"] == len(rows(lake, "documents", "doc_id"))
    assert cells_with_figures(notebook) == {"sheet", "concepts", "objects", "search", "near"}
    assert "no entity featurizer has looked at this lake" in said_by(notebook, "text")
    assert "nothing is linked in this lake" in said_by(notebook, "mentions")


@pytest.mark.spark
def test_the_second_notebook_comes_to_the_verdict_of_the_experiment(
    compared: dict[str, Any], lake: Path, execute: Callable[[str], Any]
) -> None:
    notebook = execute("02_compare_experiments")
    [verdict] = [row for row in rows(lake, "runs", "run_id", "metrics") if row["run_id"] == "labels.five.compare"]
    [line] = [line for line in said_by(notebook, "verdicts").splitlines() if line.startswith("ndcg_at_10")]
    assert float(line.split()[1]) == pytest.approx(dict(verdict["metrics"])["difference/ndcg_at_10"], abs=1e-4)
    assert "better" in line
    assert compared["report"] in said_by(notebook, "page")
    kept = [line.split() for line in said_by(notebook, "mlflow").splitlines() if line.startswith(("one ", "five "))]
    assert sorted(name for name, *_ in kept) == ["five", "one"]
    assert all(float(figure) > 0 for _, *figures in kept for figure in figures)
    assert cells_with_figures(notebook) == {"forest-plot", "items", "mlflow-plot"}


@pytest.mark.spark
def test_the_third_notebook_counts_the_planted_faults_and_shows_what_was_missed(
    compared: dict[str, Any], execute: Callable[[str], Any]
) -> None:
    notebook = execute("03_error_analysis")
    expected = [row["code"] for row in json.loads((prepared_sample() / "expected.json").read_text()) if row["code"]]
    counted = {line.split()[2]: int(line.split()[3]) for line in said_by(notebook, "codes").splitlines()[1:]}
    assert counted == {code: expected.count(code) for code in expected}
    missed = {line.split()[0]: line.split()[1:] for line in said_by(notebook, "boxes").splitlines()[2:]}
    assert missed == {"cat": ["1", "1"], "cup": ["0", "1"]}
    figures = {"codes-plot", "pictures", "search-worst", "confusion-plot", "slices-plot", "boxes-plot"}
    assert cells_with_figures(notebook) == figures
    assert "no text was read" in said_by(notebook, "text")


def rows(lake: Path, table: str, *columns: str) -> list[dict[str, Any]]:
    """The rows of a table, by another Delta reader."""
    from deltalake import DeltaTable

    found: list[dict[str, Any]] = DeltaTable(str(lake / table)).to_pyarrow_table(columns=list(columns)).to_pylist()
    return found
