"""The notebooks as they are committed: valid, without outputs, on public functions. `test_demo` executes them."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.test_architecture import PACKAGES, ROOT, violations

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_CELL_LINES = 32  # what fits on a screen


def code_of(notebook: Any) -> list[str]:
    """The text of every code cell."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def not_public(source: str) -> list[str]:
    """What `source` takes from our packages that is not there, or not for others."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            module = importlib.import_module(str(node.module))
            names = [alias.name for alias in node.names]
            found += [f"{node.module}.{name}" for name in names if name[0] in "_*" or not hasattr(module, name)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            found.append(ast.unparse(node))
    return found


def leftovers(notebook: Any) -> list[str]:
    """What an execution left in a notebook."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = [f"{cell.id}: outputs" for cell in code if cell.outputs]
    found += [f"{cell.id}: execution_count" for cell in code if cell.execution_count is not None]
    found += [f"{cell.id}: metadata" for cell in notebook.cells if cell.metadata]
    return found + sorted(set(notebook.metadata) - {"kernelspec", "language_info"})


def test_there_are_three_notebooks_and_the_folder_says_what_each_is_for() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["01_explore_lake", "02_compare_experiments", "03_error_analysis"]
    described = (ROOT / "notebooks" / "README.md").read_text()
    assert [name for name in names if f"`{name}`" not in described] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_nothing_of_an_execution_is_committed(path: Path) -> None:
    nbformat.validate(json.loads(path.read_text()))
    notebook = nbformat.read(path, as_version=4)
    assert leftovers(notebook) == []
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_functions_in_short_cells(path: Path) -> None:
    cells = code_of(nbformat.read(path, as_version=4))
    source = "\n".join(cells)
    assert not_public(source) == []
    assert [line for line in violations(f"notebooks/{path.stem}.py", source) if "lines" not in line] == []
    assert [cell for cell in cells if len(cell.splitlines()) > MAX_CELL_LINES] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from jobs.published import published", []),
        ("from jobs.runs import published", ["jobs.runs.published"]),
        ("from jobs.quality import _mean", ["jobs.quality._mean"]),
        ("from schemas import *", ["schemas.*"]),
        ("import jobs.lake", ["jobs.lake"]),
        ("spark._jvm", ["spark._jvm"]),
    ],
)
def test_what_is_not_public_is_seen(source: str, found: list[str]) -> None:
    assert not_public(source) == found


def test_what_an_execution_leaves_is_seen() -> None:
    output = nbformat.v4.new_output("stream", text="1")
    cell = nbformat.v4.new_code_cell("1", id="one", execution_count=1, outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    assert leftovers(notebook) == ["one: outputs", "one: execution_count", "widgets"]
