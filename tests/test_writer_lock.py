"""Who may write a lake on S3, by an object with conditional writes; in memory here, on a server in test_stores.py."""

from __future__ import annotations

import importlib
import sys
import time
from dataclasses import dataclass, field, replace

import pytest

from jobs.stores import StoreRefused, client_options, open_store, spark_settings, store_of
from jobs.writer_lock import Holder, S3Object, Seen, WriterLost, WriterRefused, free_tag, held, needs_lock, take, write

URI = "s3a://bucket/lake"
MINE = Holder(owner="me", run_id="r1", host="here", expiry_s=60)
OTHER = Holder(owner="other", run_id="r2", host="there", expiry_s=60)


@dataclass
class InMemory:
    """An object with conditional writes; `lost` answers are those of writes that arrive and look as if they had not."""

    there: Holder | None = None
    tag: int = 0
    written_at: float = field(default_factory=time.monotonic)
    n_lost: int = 0
    ignores_conditions: bool = False

    def read(self) -> Seen | None:
        if self.there is None:
            return None
        return Seen(holder=self.there, tag=str(self.tag), age_s=time.monotonic() - self.written_at)

    def write(self, holder: Holder, *, tag: str | None) -> str | None:
        if not self.ignores_conditions and tag != (str(self.tag) if self.there is not None else None):
            return None
        self.there, self.tag, self.written_at = holder, self.tag + 1, time.monotonic()
        self.n_lost -= 1
        return str(self.tag) if self.n_lost < 0 else None


def test_only_a_lake_on_s3_needs_the_lock() -> None:
    uris = ("s3a://b/l", "file:///l", "hdfs://h/l", "abfss://c@a.dfs.core.windows.net/l", "gs://b/l")
    assert [needs_lock(uri) for uri in uris] == [True, False, False, False, False]


def test_a_lock_that_nobody_holds_any_more_is_free_under_the_tag_it_has() -> None:
    assert free_tag(None, URI) is None
    assert free_tag(Seen(holder=replace(OTHER, is_released=True), tag="7", age_s=0), URI) == "7"
    assert free_tag(Seen(holder=OTHER, tag="7", age_s=60), URI) == "7"


def test_a_lock_whose_holder_lives_is_refused_with_who_and_for_how_long() -> None:
    with pytest.raises(WriterRefused, match=r"run r2 on there is writing to s3a://bucket/lake.*59 s ago.*died, in 1 s"):
        free_tag(Seen(holder=OTHER, tag="7", age_s=59), URI)


def test_of_two_that_find_it_free_one_takes_it() -> None:
    class Overtaken(InMemory):
        def read(self) -> Seen | None:
            seen = super().read()
            if seen is None:
                InMemory.write(self, OTHER, tag=None)
            return seen

    lock = Overtaken()
    with pytest.raises(WriterRefused, match="run r2 on there is writing"):
        take(lock, MINE, URI)
    assert lock.there == OTHER


def test_a_write_that_arrived_though_its_answer_was_lost_is_mine() -> None:
    lock = InMemory(n_lost=1)
    assert write(lock, MINE, tag=None) == "1"


def test_a_store_that_ignores_conditions_is_refused() -> None:
    with pytest.raises(StoreRefused, match="ignores If-None-Match"):
        take(InMemory(ignores_conditions=True), MINE, URI)


def test_a_holder_beats_and_leaves_the_lock_released() -> None:
    lock = InMemory()
    with held(lock, URI, run_id="r", heartbeat_s=0.02, expiry_s=60) as (owner, check):
        until = time.monotonic() + 5
        while (lock.there is None or lock.there.beats < 2) and time.monotonic() < until:
            time.sleep(0.01)
        check()
        assert lock.there is not None and lock.there.owner == owner and lock.there.beats >= 2
    assert lock.there is not None and lock.there.is_released
    with held(lock, URI, run_id="r", heartbeat_s=60, expiry_s=60):
        pass


def test_a_holder_that_slept_past_its_time_beats_before_it_goes_on_and_stops_where_another_took_over() -> None:
    lock = InMemory()
    with held(lock, URI, run_id="r", heartbeat_s=60, expiry_s=0.02) as (_, check):
        time.sleep(0.03)
        check()
        assert lock.there is not None and lock.there.beats == 1
        time.sleep(0.03)
        take(lock, OTHER, URI)
        with pytest.raises(WriterLost, match="took over writing to s3a://bucket/lake"):
            check()
    assert lock.there == OTHER  # not released by who lost it


def test_a_write_that_meets_another_is_repeated_and_one_that_lost_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answered(Exception):
        def __init__(self, code: str) -> None:
            self.response = {"Error": {"Code": code}}

    class Store:
        """As s3fs: it translates what the server said, which is the cause."""

        def __init__(self, *codes: str) -> None:
            self.codes = list(codes)

        def split_path(self, path: str) -> tuple[str, str, None]:
            return ("bucket", path, None)

        def call_s3(self, method: str, **given: object) -> dict[str, str]:
            if self.codes:
                raise OSError("translated") from Answered(self.codes.pop(0))
            return {"ETag": "7"}

    monkeypatch.setattr("jobs.writer_lock.time.sleep", lambda seconds: None)
    conflict = "ConditionalRequestConflict"
    for codes, tag in (((conflict, conflict), "7"), (("PreconditionFailed",), None), ((conflict,) * 9, None)):
        store = Store(*codes)
        monkeypatch.setattr("jobs.writer_lock.open_store", lambda uri, store=store: (store, "lock"))
        assert S3Object(URI).write(MINE, tag="6") == tag


def test_a_machine_that_was_suspended_or_paused_knows_it_by_one_of_two_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for asleep in ((600.0, 0.0), (0.0, 600.0)):
        lock, slept = InMemory(), [(0.0, 0.0)]
        monkeypatch.setattr("jobs.writer_lock.clocks", lambda slept=slept: slept[0])
        with held(lock, URI, run_id="r", heartbeat_s=3600, expiry_s=300) as (_, check):
            check()
            assert lock.there is not None and lock.there.beats == 0
            slept[0] = asleep
            check()
            assert lock.there.beats == 1


def test_what_is_set_in_the_environment_is_said_to_spark_and_to_python() -> None:
    both = {"AWS_ENDPOINT_URL": "http://here:1", "AWS_REGION": "eu-west-1"}
    settings = {key.rpartition("s3a.")[2]: value for key, value in spark_settings(URI, both).items()}
    assert settings == {
        "endpoint": "http://here:1", "path.style.access": "true", "endpoint.region": "eu-west-1",
    }  # fmt: skip
    assert client_options(URI, both)["client_kwargs"] == {"region_name": "eu-west-1"}
    assert spark_settings("file:///lake", both) == client_options("file:///lake", both) == {}
    assert spark_settings(URI, {}) == {}  # Amazon's own endpoint
    assert client_options(URI, {"AWS_MAX_ATTEMPTS": "3"})["config_kwargs"]["retries"]["max_attempts"] == 3


def test_a_store_whose_client_is_missing_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3a", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as Python itself says that there is no such package
    with pytest.raises(
        StoreRefused, match=r"Python package s3fs: pip install 'lakelens\[s3\]' or make setup STORES=s3"
    ):
        open_store(URI)


def test_every_store_has_the_digests_of_its_jars() -> None:
    for uri in (URI, "wasb://c@a/l"):
        store = store_of(uri)
        assert store is not None and all(len(sha256) == 64 for sha256 in store.jars().values())
        assert any(name.startswith("org.apache.hadoop_hadoop-") for name in store.jars())
