"""`lakelens new featurizer`: what it writes keeps the contract as it is; what it refuses leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from featurizers.spec import KINDS
from jobs import quality
from jobs.cli import app
from jobs.config import load_config
from jobs.experiment_file import read_experiment
from jobs.golden_labels import LabelledBox
from jobs.new import MAX_NAME, MAX_VARIANT, NEEDED, NewFeaturizer, files_of
from jobs.quality import Answer, GoldenItem

ROOT = Path(__file__).parent.parent
# One of each kind: name, options, id.
MADE = [
    ("concept_tinynet", ["--json"], "concept_tinynet.base@1"),
    ("object_tinybox", ["--variant", "small"], "object_tinybox.small@1"),
    ("entity_lines", [], "entity_lines.base@1"),
]


def new(*arguments: str, folder: Path) -> Result:
    """`lakelens new featurizer ARGUMENTS` in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(app, ["new", "featurizer", *arguments])


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_dir() and "__pycache__" not in path.parts
    }


def copy_of_checkout(folder: Path) -> Path:
    """What of this checkout a featurizer and its contract suite need."""
    for name in ("featurizers", "conf", "tests/data/golden_vectors"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "contract_pictures.py", "test_featurizer_contract.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def hollow_checkout(folder: Path) -> Path:
    """A folder that passes for a checkout, for requests that are refused before anything runs."""
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@dataclass(frozen=True)
class Made:
    """A copy of the checkout with a new featurizer of each kind."""

    folder: Path
    said: dict[str, str]  # by name: what the command printed
    written: set[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = copy_of_checkout(tmp_path_factory.mktemp("checkout"))
    before = files(folder)
    said = {}
    for name, options, _ in MADE:
        done = new(name, *options, folder=folder)
        assert done.exit_code == 0, done.output
        said[name] = done.stdout
    return Made(folder, said, files(folder) - before)


@pytest.fixture(scope="module")
def checkout(made: Made) -> Path:
    return made.folder


def module(checkout: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, checkout / "featurizers" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_new_featurizer_of_each_kind_passes_the_contract_suite_as_it_is(checkout: Path) -> None:
    names = " or ".join(name for name, _, _ in MADE)
    command = [sys.executable, "-m", "pytest", "-n0", "-k", names, "--junitxml=outcomes.xml", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/test_featurizer_contract.py"], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    passed: dict[str, set[str]] = defaultdict(set)
    for case in ElementTree.parse(checkout / "outcomes.xml").iter("testcase"):
        if not list(case):  # neither failed nor skipped
            test, _, of = case.attrib["name"].removesuffix("]").partition("[")
            passed[of].add(test)
    for name, _, featurizer_id in MADE:
        assert "test_stored_pixels_give_the_golden_vectors" in passed[featurizer_id]
        assert len(passed[featurizer_id]) >= 7
        assert passed[name] == {"test_no_module_imports_a_heavy_package_at_its_top"}


def test_ruff_and_mypy_accept_what_was_written(checkout: Path, tmp_path: Path) -> None:
    modules = [f"featurizers/{name}.py" for name, _, _ in MADE]
    for command in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        caches = f"--cache-dir={tmp_path / command[0]}"
        arguments = [sys.executable, "-m", *command, caches, *modules]
        done = subprocess.run(arguments, cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_longest_names_stay_within_a_line(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "featurizers").mkdir()
    (tmp_path / "featurizers" / "__init__.py").touch()
    for kind in KINDS:
        longest = NewFeaturizer(kind=kind, model="m" * (MAX_NAME - len(kind) - 1), variant="v" * MAX_VARIANT)
        for file, text in files_of(longest).items():
            if file.endswith(".py"):
                (tmp_path / file).write_text(text)
            assert max(map(len, text.splitlines())) <= 120
    for command in (["check"], ["format", "--check"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_words_find_the_pictures_of_a_new_concept_featurizer(checkout: Path) -> None:
    tinynet = module(checkout, "concept_tinynet")
    spec = tinynet.SPECS[0]
    red, blue = (np.full((224, 224, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    found = tinynet.load(spec, {}, "cpu")([red, blue])
    search = tinynet.text_search(spec, {}, n_labels=5)
    pictures = np.array([search.of_frame(found.vector[[i]], [found.label[i]], found.score[[i]]) for i in (0, 1)])
    asked = search.of_texts(["a photo of a Blue car", "red", "a photo of a dog"]) @ pictures.T
    assert asked.argmax(axis=1).tolist()[:2] == [1, 0]
    assert asked[2, 0] == asked[2, 1] > 0


def test_the_experiment_compares_it_with_the_default_of_its_kind(checkout: Path) -> None:
    assert yaml.safe_load((checkout / "conf/experiments/concept_tinynet.yaml").read_text()) == {
        "name": "concept_tinynet",
        "question": "Does concept_tinynet find what concept_efficientnet finds, at what cost?",
        "golden": "sample-captions",
        "baseline": "current",
        "variants": {
            "current": {"featurizer": "concept_efficientnet.lite0@1"},
            "concept_tinynet": {"featurizer": "concept_tinynet.base@1"},
        },
        "metrics": {"ndcg_at_10": {"margin": 0.02}},
        "guardrails": {"p95_ms": {"at_most": 1.5}},
    }
    for name, _, featurizer_id in MADE:
        experiment = read_experiment(checkout / f"conf/experiments/{name}.yaml")
        baseline = experiment.variants[experiment.baseline].featurizer
        assert experiment.variants[name].featurizer == featurizer_id
        assert baseline in load_config().featurize.featurizers
        assert baseline.partition("_")[0] == name.partition("_")[0]


def test_the_metric_that_decides_is_one_of_the_golden_set_of_its_kind(checkout: Path) -> None:
    query = GoldenItem(item_id="q", kind="queries", query="red", relevant={"m": 1.0})
    boxes = GoldenItem(item_id="m", kind="boxes", media_id="m", boxes=(LabelledBox(label="cat", box=(0, 0, 1, 1)),))
    sign = GoldenItem(item_id="m", kind="text", media_id="m", text=("Paris",), entities=("city:2988507",))
    rows, nothing = np.zeros((0, 4)), np.zeros(0)
    found = Answer(vector=rows.astype(np.float32), label=(), score=nothing, box=rows, text=())
    measured = {
        "concept_tinynet": quality.query_retrieval([query], ["m"], np.array([[1.0]])),
        "object_tinybox": quality.detection([boxes], {"m": found}),
        "entity_lines": quality.text_reading([sign], {"m": found}),
    }
    demo = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text())
    kinds = {one["name"]: one["kind"] for one in demo["golden"]} | {"boxes": "boxes"}
    for name, of in {"concept_tinynet": "queries", "object_tinybox": "boxes", "entity_lines": "text"}.items():
        experiment = read_experiment(checkout / f"conf/experiments/{name}.yaml")
        assert kinds[experiment.golden] == of
        assert set(experiment.metrics) <= {one.metric for one in measured[name]}


def test_three_files_are_written_and_no_other(made: Made) -> None:
    assert made.written == {
        file
        for name, _, featurizer_id in MADE
        for file in (
            f"featurizers/{name}.py",
            f"tests/data/golden_vectors/{featurizer_id}.npz",
            f"conf/experiments/{name}.yaml",
        )
    }


def test_one_line_says_what_was_written_and_what_to_type_next(made: Made) -> None:
    assert made.said["entity_lines"] == (
        "lakelens new featurizer: wrote featurizers/entity_lines.py, "
        "tests/data/golden_vectors/entity_lines.base@1.npz, conf/experiments/entity_lines.yaml; next: "
        "pytest tests/test_featurizer_contract.py -k entity_lines && "
        "lakelens experiment conf/experiments/entity_lines.yaml\n"
    )
    told = json.loads(made.said["concept_tinynet"])
    assert told["written"][0] == "featurizers/concept_tinynet.py"
    assert told["next"][1] == "lakelens experiment conf/experiments/concept_tinynet.yaml"


def test_objects_are_told_to_add_the_boxes_that_the_demo_lacks(made: Made) -> None:
    add = "lakelens golden add boxes --kind boxes --labels INSTANCES.json --pictures FOLDER"
    following = made.said["object_tinybox"].partition("; next: ")[2].split(" && ")
    assert following[1:] == [add, "lakelens experiment conf/experiments/object_tinybox.yaml\n"]
    assert add in (made.folder / "conf/experiments/object_tinybox.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audio_tinynet"], "the kind 'audio' of 'audio_tinynet' is not known, allowed: concept, object, entity"),
        (["tinynet"], "the kind 'tinynet' of 'tinynet' is not known, allowed: concept, object, entity"),
        (["../concept_x"], "the kind '../concept' of '../concept_x' is not known"),
        (["concept_"], "NAME is 'concept_', allowed: concept_ and a model of lower-case letters, digits and single _"),
        (["concept_TinyNet"], "NAME is 'concept_TinyNet', allowed: concept_ and a model of lower-case letters"),
        (["concept_a/../b"], "NAME is 'concept_a/../b', allowed: "),
        (["concept_a\n"], r"NAME is 'concept_a\n', allowed: "),
        (["object_" + "x" * 30], "at most 36 characters in all"),
        (["object_x", "--variant", "Small"], "--variant is 'Small', allowed: lower-case letters, digits and single _"),
        (["object_x", "--variant", ""], "--variant is '', allowed: "),
        (["object_x", "--variant", "v" * 21], "at most 20 characters"),
    ],
)
def test_a_bad_name_is_refused_with_what_is_allowed(arguments: list[str], said: str, tmp_path: Path) -> None:
    folder = hollow_checkout(tmp_path)
    before = files(folder)
    done = new(*arguments, folder=folder)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr
    assert files(folder) == before


@pytest.mark.parametrize(
    "there",
    [
        "featurizers/concept_x.py",
        "tests/data/golden_vectors/concept_x.base@1.npz",
        "conf/experiments/concept_x.yaml",
    ],
)
def test_a_file_that_is_there_is_not_overwritten_and_nothing_is_written_beside_it(there: str, tmp_path: Path) -> None:
    folder = hollow_checkout(tmp_path)
    (folder / there).parent.mkdir(parents=True, exist_ok=True)
    (folder / there).write_text("mine")
    before = files(folder)
    done = new("concept_x", folder=folder)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"lakelens new featurizer: {there} is already there, and nothing is overwritten; "
        "choose another NAME or remove it\n"
    )
    assert files(folder) == before and (folder / there).read_text() == "mine"


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path: Path) -> None:
    folder = hollow_checkout(tmp_path / "checkout")
    (folder / "featurizers" / "concept_x.py").symlink_to(tmp_path / "elsewhere.py")
    assert new("concept_x", folder=folder).exit_code == 2
    assert not (tmp_path / "elsewhere.py").exists()


@pytest.mark.parametrize("lacking", NEEDED)
def test_a_folder_that_is_no_checkout_is_refused(lacking: str, tmp_path: Path) -> None:
    folder = hollow_checkout(tmp_path)
    (folder / lacking).unlink()
    before = files(folder)
    done = new("concept_x", folder=folder)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"lakelens new featurizer: {tmp_path} is no checkout of Lakelens: {lacking} is not there; "
        "cd to the folder that holds featurizers/, tests/ and conf/\n"
    )
    assert files(folder) == before


def test_where_the_golden_vectors_cannot_be_made_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for variable in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("LAKELENS_CACHE", str(tmp_path / "cache"))
    folder = copy_of_checkout(tmp_path / "checkout")
    before = files(folder)
    done = new("concept_tinynet", folder=folder)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "the golden vectors of concept_tinynet.base@1 could not be made, so nothing was written" in done.stderr
    assert f"127.0.0.1:{port}/simple/scikit-image/ cannot be reached" in done.stderr
    assert files(folder) == before


def test_an_installation_carries_the_templates() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = described["tool"]["setuptools"]["package-data"]["jobs"]
    carried = {path for pattern in patterns for path in (ROOT / "jobs").glob(pattern)}
    templates = set((ROOT / "jobs" / "new_featurizer").iterdir())
    assert templates and templates <= carried
