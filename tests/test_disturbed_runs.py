"""Runs disturbed for real by models that throw, hang or want memory, by full disks and by each other.

A driver process runs over copies of one small lake, and what is there in the end is compared with an undisturbed run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attempts import (
    Driver,
    Rows,
    assert_same,
    at_driver_phase,
    checkout_with_one_more_featurizer,
    kill_all,
    logged,
    signal_all,
    start_driver,
    tables_of,
    until_struck,
)
from tests.fault_driver import EXPIRY_S, N_SMALL

pytestmark = pytest.mark.spark
MEAN, MIDDLE = "concept_faulty.mean@1", "concept_faulty.middle@1"
STALL_S = 8  # a model is loaded meanwhile, on two cores that others use too
DISK_BYTES = 16 << 20


def of(*featurizers: str) -> str:
    return f"featurize.featurizers=[{', '.join(featurizers)}]"


@dataclass(frozen=True)
class Faults:
    """A driver, the file that tells its featurizer how to fail, a lake to copy, and what it should come to hold."""

    driver: Driver
    folder: Path
    has_disk: bool
    undisturbed: dict[str, Rows]

    @property
    def told(self) -> Path:
        return self.folder / "fault"

    def expected(self, *featurizers: str) -> dict[str, Rows]:
        """What an undisturbed run leaves of some featurizers."""
        rows = {key: row for key, row in self.undisturbed["features"].items() if row["featurizer"] in featurizers}
        return self.undisturbed | {"features": rows}


def start(folder: Path, log: str, *, within: Sequence[str] = ()) -> Driver:
    root, told = folder / "checkout", str(folder / "fault")
    return start_driver(folder / log, master="local[2,2]", root=root, within=within, LAKELENS_FAULT=told)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """The driver has a small disk of its own, at `disk`, where a user may mount one in a namespace."""
    folder = tmp_path_factory.mktemp("faults")
    checkout_with_one_more_featurizer(folder / "checkout")
    (folder / "palette").write_bytes(b"palette")
    (folder / "disk").mkdir()
    in_namespace = ["unshare", "--mount", "--map-root-user"]
    has_disk = shutil.which("unshare") is not None and not subprocess.run([*in_namespace, "true"]).returncode
    mount = f'mount -t tmpfs -o size={DISK_BYTES} none {folder / "disk"} && exec "$0" "$@"'
    driver = start(folder, "log", within=[*in_namespace, "sh", "-c", mount] if has_disk else [])
    try:
        assert driver.ended() == (0, "ready")
        assert driver.attempt(folder / "base", "fill small") == (0, "")
        shutil.copytree(folder / "base", folder / "undisturbed")
        assert driver.attempt(folder / "undisturbed", "u.featurize", of(MEAN, MIDDLE)) == (0, "")
        undisturbed = tables_of(folder / "undisturbed")
        assert len(undisturbed["features"]) == 2 * N_SMALL
        yield Faults(driver, folder, has_disk, undisturbed)
    finally:
        kill_all(driver.process)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def second(faults: Faults) -> Iterator[Driver]:
    """Another driver process."""
    driver = start(faults.folder, "second log")
    try:
        assert driver.ended() == (0, "ready")
        yield driver
    finally:
        kill_all(driver.process)


@pytest.fixture
def lake(faults: Faults, tmp_path: Path) -> Iterator[Path]:
    """A copy of the lake; afterwards nothing is wrong with the featurizer any more."""
    yield Path(shutil.copytree(faults.folder / "base", tmp_path / "lake"))
    faults.told.unlink(missing_ok=True)
    (faults.folder / "palette").write_bytes(b"palette")
    shutil.rmtree(tmp_path, ignore_errors=True)


def codes(lake: Path) -> list[str]:
    rows = tables_of(lake)["features"].values()
    return sorted(row["error"]["code"] for row in rows if row["error"] is not None)


def test_a_model_that_hangs_once_costs_a_worker_and_no_row(faults: Faults, lake: Path) -> None:
    faults.told.write_text("hang once")
    assert faults.driver.attempt(lake, "a.featurize", of(MEAN), f"featurize.stall_s={STALL_S}") == (0, "")
    assert not faults.told.exists(), "it did not hang"
    assert_same(tables_of(lake), faults.expected(MEAN))


def test_a_run_that_fails_for_its_model_or_its_weights_says_why_and_is_resumed(faults: Faults, lake: Path) -> None:
    run = (lake, "a.featurize", of(MIDDLE), f"featurize.stall_s={STALL_S}")
    faults.told.write_text("hang")
    code, message = faults.driver.attempt(*run)
    assert code == 1
    assert message.startswith(f"a worker made no progress for {STALL_S} s (featurize.stall_s) at ")
    assert "featurizers/concept_faulty.py line " in message and " in hang, " in message

    faults.told.write_text("throw")
    code, message = faults.driver.attempt(*run)
    assert code == 1
    assert f"DeviceFailed: {MIDDLE}: " in message and "no kernel image is available" in message

    faults.told.unlink()
    palette = faults.folder / "palette"
    shutil.rmtree(lake / "_staging")  # of the attempts before, whose plan is no sign of this one's
    attempt = faults.driver.begin(*run)
    assert until_struck(attempt, at_driver_phase("planned", lake, commits=1))
    palette.write_bytes(b"Palette")  # after the driver checked it
    code, message = faults.driver.ended()
    assert code == 1 and "WeightsError: " in message and "palette: its SHA-256 is " in message
    code, message = faults.driver.attempt(*run)
    assert code == 2 and "/palette was left as it is, or correct the expected one" in message

    assert tables_of(lake) == {"frames": {}, "features": {}}
    palette.write_bytes(b"palette")
    assert faults.driver.attempt(*run) == (0, "")
    assert_same(tables_of(lake), faults.expected(MIDDLE))


def test_pictures_that_a_model_throws_on_or_lacks_memory_for_are_errors_that_a_later_run_mends(
    faults: Faults, lake: Path
) -> None:
    faults.told.write_text("spoil red")
    assert faults.driver.attempt(lake, "a.featurize", of(MEAN)) == (0, "")
    assert codes(lake) == ["model_failed"] * 2 + ["out_of_memory"] * 2 + ["truncated"]
    faults.told.unlink()
    assert faults.driver.attempt(lake, "again.featurize", of(MEAN)) == (0, "")
    assert_same(tables_of(lake), faults.expected(MEAN))


def test_a_disk_that_is_full_fails_the_run_and_loses_nothing(faults: Faults, tmp_path: Path) -> None:
    if not faults.has_disk:
        pytest.skip("no disk of its own: `unshare --mount --map-root-user` is not permitted here")
    disk = faults.folder / "disk"
    seen = Path(f"/proc/{faults.driver.process.pid}/root{disk}")  # from outside of the driver's namespace
    shutil.copytree(faults.folder / "base", seen / "lake")
    space = os.statvfs(seen)
    with (seen / "filler").open("wb") as filler:
        filler.write(b"x" * (space.f_bavail * space.f_bsize - (200 << 10)))
    code, message = faults.driver.attempt(disk / "lake", "a.featurize", of(MEAN))
    assert code == 1 and "No space left on device" in message
    (seen / "filler").unlink()
    time.sleep(EXPIRY_S)  # it could not even write that it failed
    assert faults.driver.attempt(disk / "lake", "a.featurize", of(MEAN)) == (0, "")
    copy = shutil.copytree(seen / "lake", tmp_path / "lake")
    assert_same(tables_of(Path(copy)), faults.expected(MEAN))


def at_once(faults: Faults, second: Driver, lake: Path, *run_ids: str) -> list[tuple[int, str]]:
    """How two runs of one featurizer end that two drivers begin at one moment."""
    faults.told.write_text("slow")
    drivers = (faults.driver, second)
    for driver, run_id in zip(drivers, run_ids, strict=True):
        driver.begin(lake, run_id, of(MEAN), "featurize.lease_expiry_s=300")
    return [driver.ended() for driver in drivers]


def test_of_two_runs_of_one_featurizer_at_once_one_does_it_and_the_other_names_it(
    faults: Faults, second: Driver, lake: Path
) -> None:
    ends = dict(zip("ab", at_once(faults, second, lake, "a.featurize", "b.featurize"), strict=True))
    [winner] = [name for name, (code, _) in ends.items() if code == 0]
    [(code, message)] = [end for name, end in ends.items() if name != winner]
    assert code == 1 and f"run {winner}.featurize is writing to " in message
    assert_same(tables_of(lake), faults.expected(MEAN))


@pytest.mark.faults
def test_of_two_schedulers_that_start_one_interval_at_once_one_does_it_and_the_other_adds_nothing(
    faults: Faults, second: Driver, lake: Path
) -> None:
    ends = at_once(faults, second, lake, "day.featurize", "day.featurize")
    [(code, message)] = [end for end in ends if end[0] != 0]
    assert code == 1 and message.startswith("run day.featurize ") and ("lives" in message or "same moment" in message)
    assert_same(tables_of(lake), faults.expected(MEAN))


@pytest.mark.faults
def test_a_lake_on_a_read_only_path_is_a_wrong_request_and_stays_as_it_is(faults: Faults, lake: Path) -> None:
    if not faults.has_disk:
        pytest.skip("no mount of its own: `unshare --mount --map-root-user` is not permitted here")
    mount = f'mount --bind {lake} {lake} && mount -o remount,ro,bind {lake} && exec "$0" "$@"'
    driver = start(faults.folder, "read-only log", within=["unshare", "--mount", "--map-root-user", "sh", "-c", mount])
    try:
        assert driver.ended() == (0, "ready")
        code, message = driver.attempt(lake, "a.featurize", of(MEAN))
    finally:
        kill_all(driver.process)
    assert code == 2 and f"lake file://{lake} cannot be written to: " in message and "Read-only file system" in message
    assert faults.driver.attempt(lake, "a.featurize", of(MEAN)) == (0, "")
    assert_same(tables_of(lake), faults.expected(MEAN))


def test_two_runs_of_different_featurizers_at_once_lose_and_double_nothing(
    faults: Faults, second: Driver, lake: Path
) -> None:
    faults.driver.begin(lake, "a.featurize", of(MEAN))
    second.begin(lake, "b.featurize", of(MIDDLE))
    assert [faults.driver.ended(), second.ended()] == [(0, ""), (0, "")]
    assert_same(tables_of(lake), faults.undisturbed)


def test_a_run_that_was_killed_between_its_commits_and_resumed_leaves_what_an_undisturbed_one_does(
    faults: Faults, second: Driver, lake: Path
) -> None:
    """`kill -9` of the driver, its JVM and the workers; the long form, in every phase, is in test_faults."""
    killed = start(faults.folder, "killed log")
    try:
        assert killed.ended() == (0, "ready")
        is_now = at_driver_phase("between the commits", lake, commits=1)
        assert until_struck(killed.begin(lake, "k.featurize", of(MEAN)), is_now)
    finally:
        kill_all(killed.process)
    time.sleep(EXPIRY_S)  # its last heartbeat must be old
    rows = tables_of(lake)
    assert rows["frames"] and not rows["features"]
    assert second.attempt(lake, "k.featurize", of(MEAN)) == (0, "")
    assert_same(tables_of(lake), faults.expected(MEAN))
    assert not list((lake / "_staging").glob("*/*")), "the resumed run left its staging behind"


def check_takeover(faults: Faults, second: Driver, lake: Path, phase: str) -> None:
    """Stop a run in a phase, let another driver take it over and finish it, and let the first go on."""
    is_now = at_driver_phase(phase, lake, commits=1)
    attempt = faults.driver.begin(lake, "a.featurize", of(MEAN))
    try:
        assert until_struck(attempt, is_now)
        signal_all(attempt.process, signal.SIGSTOP)
        time.sleep(EXPIRY_S)
        assert second.attempt(lake, "a.featurize", of(MEAN)) == (0, "")
        commits = {table: logged(lake, table) for table in ("frames", "features", "runs")}
    finally:
        signal_all(attempt.process, signal.SIGCONT)
    code, message = faults.driver.ended()
    assert (code, message) == (1, "run a.featurize was taken over by another attempt; this one stops")
    assert {table: logged(lake, table) for table in commits} == commits
    assert_same(tables_of(lake), faults.expected(MEAN))


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["planned", "staged", "between the commits", "during the commit"])
def test_a_run_that_slept_past_its_lease_in_any_phase_stops_and_writes_nothing_more(
    faults: Faults, second: Driver, lake: Path, phase: str
) -> None:
    check_takeover(faults, second, lake, phase)
