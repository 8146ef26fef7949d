"""The shape of the code: which folder may import which, what stays out of module tops, how big a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "featurizers", "jobs")
FOLDERS = (*PACKAGES, "airflow_dags", "notebooks", "tests", "benchmarks")
MAY_IMPORT = {  # the only legal arrows from one of our folders to others
    "schemas": set[str](),
    "featurizers": set[str](),
    "jobs": {"featurizers", "schemas"},
    "airflow_dags": set[str](),
    "notebooks": {"jobs", "featurizers", "schemas"},
    "tests": {"airflow_dags", "benchmarks", "jobs", "featurizers", "schemas"},
    "benchmarks": {"jobs", "featurizers", "schemas", "tests"},
}
UNKNOWN_TO = {  # what a folder does not import at all, not even inside a function
    "featurizers": {"pyspark", "delta", "mlflow", "great_expectations"},
    "airflow_dags": {"pyspark", "delta", "mlflow", "great_expectations", "torch", "onnxruntime"},
}
HEAVY = {"torch", "onnxruntime", "transformers", "pyspark", "mlflow", "great_expectations", "av", "PIL"}
ABOUT = {  # modules that are about a heavy package, which they may import at their top
    "featurizers/decode.py": {"PIL"},
    "featurizers/video.py": {"av"},
    "jobs/sample_clips.py": {"PIL", "av"},
    "jobs/sample_pictures.py": {"PIL"},
    "jobs/sample_signs.py": {"PIL"},
}
MEANINGLESS = {"utils", "util", "common", "helpers", "helper", "core", "misc"}
PAGES = {"jobs.experiment_page", "jobs.experiment_plots", "jobs.experiment_report"}
MAX_LINES = 400
MAX_BASE_CLASS_LINES = 40
TOP_LEVEL = {
    *("pyproject.toml", "README.md", "Makefile", "LICENSE", "requirements.lock", "requirements-stores.lock"),
    *("jobs", "featurizers", "schemas", "conf", "notebooks", "tests", "airflow_dags", "benchmarks", "docs"),
}


def imported(tree: ast.AST) -> set[str]:
    """First parts of all absolute imports anywhere in `tree`; a relative import is ".", never allowed."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").split(".")[0])
    return found


def _executed(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: not those of functions, nor those for type checkers."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _executed(node.orelse)
            continue
        nested = [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
        nested += [handler.body for handler in getattr(node, "handlers", [])]
        if any(nested):
            for part in nested:
                yield from _executed(part)
        else:
            yield node


def violations(path: str, source: str) -> list[str]:
    """What the module `path` (relative to the repository) breaks, one line each."""
    folder = path.split("/")[0]
    tree = ast.parse(source)
    everywhere = imported(tree)
    at_top = {name for node in _executed(tree.body) for name in imported(node)}
    broken = [f"{path} imports {name}" for name in sorted((everywhere & set(FOLDERS)) - MAY_IMPORT[folder] - {folder})]
    broken += [f"{path} imports {name}" for name in sorted(everywhere & (UNKNOWN_TO.get(folder, set()) | {"."}))]
    if folder == "schemas":
        strangers = everywhere - set(sys.stdlib_module_names) - {"pyarrow", "schemas", "."}
        broken += [f"{path} imports {name}" for name in sorted(strangers - set(FOLDERS))]
    if folder in PACKAGES:
        broken += [f"{path} imports {name} at its top" for name in sorted((at_top & HEAVY) - ABOUT.get(path, set()))]
    if set(path.removesuffix(".py").split("/")) & MEANINGLESS:
        broken.append(f"{path} has a name that says nothing")
    n_lines = len(source.splitlines())
    if n_lines > MAX_LINES and folder != "tests":
        broken.append(f"{path} has {n_lines} lines, at most {MAX_LINES} are allowed")
    return broken


def big_base_classes(sources: Mapping[str, str]) -> list[str]:
    """Classes of `sources` that others derive from and that are too long."""
    classes = [(path, n) for path, s in sources.items() for n in ast.walk(ast.parse(s)) if isinstance(n, ast.ClassDef)]
    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for _, node in classes for base in node.bases}
    sizes = [(path, node.name, (node.end_lineno or 0) - node.lineno + 1) for path, node in classes]
    return [
        f"{path}: base class {name} has {n_lines} lines"
        for path, name, n_lines in sizes
        if name in bases and n_lines > MAX_BASE_CLASS_LINES
    ]


def our_sources() -> dict[str, str]:
    """Path -> text of every module of ours."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


def test_no_module_breaks_the_rules_of_imports_names_and_size() -> None:
    assert [broken for path, source in our_sources().items() for broken in violations(path, source)] == []


def test_what_measures_and_judges_knows_no_page() -> None:
    for name in ("compare", "paired", "quality", "sweep", "trials", "variants"):
        nodes = ast.walk(ast.parse((ROOT / "jobs" / f"{name}.py").read_text()))
        modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not modules & PAGES, name


def test_no_base_class_is_long() -> None:
    assert big_base_classes(our_sources()) == []


def test_the_top_level_is_a_table_of_contents() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = {path.split("/")[0] for path in tracked.splitlines()}
    assert {name for name in shown if not name.startswith(".")} == TOP_LEVEL


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = f"import sys, jobs.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("schemas/a.py", "import numpy", "schemas/a.py imports numpy"),
        ("schemas/a.py", "def f():\n    import jobs.lake", "schemas/a.py imports jobs"),
        ("featurizers/a.py", "from schemas import MEDIA", "featurizers/a.py imports schemas"),
        ("featurizers/a.py", "def f():\n    import mlflow", "featurizers/a.py imports mlflow"),
        ("featurizers/a.py", "from .spec import Image", "featurizers/a.py imports ."),
        ("airflow_dags/a.py", "def f():\n    from jobs import crawl", "airflow_dags/a.py imports jobs"),
        ("jobs/a.py", "from tests.rows import row", "jobs/a.py imports tests"),
        ("jobs/a.py", "from pyspark.sql import functions", "jobs/a.py imports pyspark at its top"),
        (
            "jobs/a.py",
            "try:\n    import torch\nexcept ImportError:\n    torch = None",
            "jobs/a.py imports torch at its top",
        ),
        ("jobs/a.py", "class A:\n    import av", "jobs/a.py imports av at its top"),
        ("featurizers/video.py", "import av, torch", "featurizers/video.py imports torch at its top"),
        ("jobs/utils.py", "", "jobs/utils.py has a name that says nothing"),
        ("jobs/core/a.py", "", "jobs/core/a.py has a name that says nothing"),
        ("jobs/a.py", "\n" * 401, "jobs/a.py has 401 lines, at most 400 are allowed"),
    ],
)
def test_a_planted_violation_is_seen(path: str, source: str, broken: str) -> None:
    assert violations(path, source) == [broken]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("jobs/a.py", "def f():\n    import torch"),
        ("jobs/a.py", "if TYPE_CHECKING:\n    from pyspark.sql import DataFrame"),
        ("jobs/a.py", "from featurizers.spec import Image\nfrom schemas import MEDIA\n" + "\n" * 398),
        ("featurizers/video.py", "import av"),
        ("schemas/a.py", "import pyarrow as pa, hashlib"),
        ("tests/test_a.py", "import torch, jobs.crawl"),
    ],
)
def test_what_is_allowed_is_not_refused(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_a_long_base_class_is_seen_and_a_long_leaf_is_not() -> None:
    long_class = "class Base(Leaf):\n" + "    x = 1\n" * 40 + "class Leaf:\n    pass\n"
    assert big_base_classes({"jobs/a.py": long_class}) == []
    derived = "class Mine(a.Base[int]):\n    pass\n"
    assert big_base_classes({"jobs/a.py": long_class, "jobs/b.py": derived}) == [
        "jobs/a.py: base class Base has 41 lines"
    ]
