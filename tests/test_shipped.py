"""Weights that tasks have from the lake: the same bytes, fetched once per machine, and nothing else is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from featurizers.spec import find_spec
from featurizers.weights import WeightsError, WeightsUnreachable, digest
from jobs.shipped import at_hand, ship
from jobs.work import Due

SPEC = find_spec("concept_efficientnet.lite0@1")


@pytest.fixture
def due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Due:
    """A file and a folder as the driver has them; tasks have another cache."""
    driver = tmp_path / "driver"
    (driver / "ner" / "vocab").mkdir(parents=True)
    (driver / "net.onnx").write_bytes(b"network")
    (driver / "ner" / "vocab" / "words").write_bytes(b"words")
    monkeypatch.setenv("LAKELENS_CACHE", str(tmp_path / "executor"))
    paths = {"net": driver / "net.onnx", "ner": driver / "ner"}
    return Due(spec=SPEC, paths=paths, sha256={n: digest(p) for n, p in paths.items()}, fingerprint=tmp_path.name)


@pytest.mark.parametrize("root", ["memory://lake-{}/_weights", "file://{}/_weights"])
def test_tasks_have_shipped_weights_without_the_driver_and_once_per_machine(
    due: Due, tmp_path: Path, root: str
) -> None:
    shipped = ship(due, root.format(tmp_path))
    shutil.rmtree(tmp_path / "driver")
    found = at_hand(shipped)
    assert {name: digest(path) for name, path in found.items()} == due.sha256
    assert {name: path.name for name, path in found.items()} == {"net": "net.onnx", "ner": "ner"}
    fsspec.filesystem("memory").rm("/", recursive=True)
    assert at_hand(shipped) == found


@pytest.mark.parametrize("root", ["memory://torn-{}/_weights", "file://{}/_weights"])
def test_what_a_driver_that_died_has_shipped_in_part_is_made_whole(due: Due, tmp_path: Path, root: str) -> None:
    store, folder = fsspec.core.url_to_fs(f"{root.format(tmp_path)}/{due.sha256['ner']}")
    store.makedirs(f"{folder}/ner/vocab", exist_ok=True)
    store.pipe_file(f"{folder}/ner/vocab/words", b"wo")
    assert digest(at_hand(ship(due, root.format(tmp_path)))["ner"]) == due.sha256["ner"]


def test_what_is_in_the_lake_as_a_whole_is_not_written_again(due: Due, tmp_path: Path) -> None:
    first = ship(due, f"file://{tmp_path}/_weights")
    (tmp_path / "driver" / "net.onnx").unlink()
    assert ship(due, f"file://{tmp_path}/_weights") == first
    (tmp_path / "_weights" / due.sha256["net"] / "_SUCCESS").unlink()  # a driver died while it wrote
    with pytest.raises(WeightsUnreachable, match=r"net\.onnx cannot be put to file://.*_weights"):
        ship(due, f"file://{tmp_path}/_weights")


@pytest.mark.parametrize("root", ["memory://changed-{}/_weights", "file://{}/_weights"])
def test_weights_that_were_changed_in_the_lake_are_not_loaded(due: Due, tmp_path: Path, root: str) -> None:
    shipped = ship(due, root.format(tmp_path))
    with fsspec.open(shipped.shipped["net"], "wb") as file:
        file.write(b"another network")
    with pytest.raises(WeightsError, match=f"net.onnx: its SHA-256 is .*{due.sha256['net']}"):
        at_hand(shipped)


def test_weights_that_were_not_shipped_are_where_the_driver_has_them(due: Due) -> None:
    assert at_hand(due) == due.paths
