"""Lakes on a real S3 server: the rows of a local lake, one writing driver, throttling, and what is refused.

Run by `make test-stores`. Drivers are processes of `lakelens`; the server is moto's, behind a proxy that counts and can
answer with 503.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas import DOCUMENTS, FEATURES, FRAMES, MEDIA, RUNS, Table
from tests.attempts import ROOT, Rows, assert_same, kill_all, signal_all, tables_of
from tests.object_store import Proxy, azurite, environment, moto, proxied
from tests.pictures import encode
from tests.test_packs import by_reference, featurized, inline, video

pytestmark = pytest.mark.stores

BUCKET = "bucket"
EXPIRY_S = 20
PATIENCE_S = 280
TABLES = (DOCUMENTS, MEDIA, FRAMES, FEATURES, RUNS)
PIPELINE = """
spark: {{master: "local[2,2]"}}
crawl:
  inline_bytes: 1000000
  sources: [{{name: photos, kind: folder, uri: {folder}}}]
featurize:
  featurizers: [concept_efficientnet.lite0@1]
  link_captions: false
  heartbeat_s: 2
  lease_expiry_s: {expiry_s}
check: {{max_error_rate: {{documents: .5, features: .5}}}}
"""


@dataclass(frozen=True)
class Place:
    """What every test is about: the pipeline's file, the server, and the proxy that the environment names."""

    pipeline: Path
    endpoint: str
    proxy: Proxy
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def rows(self, lake: str, tables: Sequence[Table] = TABLES) -> dict[str, Rows]:
        """Tables as delta-rs reads them, past Spark and the proxy."""
        options = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        options |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        return tables_of(f"s3://{BUCKET}/{lake}", tables, options)

    def begin(self, lake: str, log: Path, *, command: str = "run") -> subprocess.Popen[str]:
        """Begin the pipeline, or its crawl alone, on a lake of the bucket."""
        what = ["run", str(self.pipeline)] if command == "run" else [command, "--conf", str(self.pipeline)]
        process = begin([*what, "--lake", f"s3a://{BUCKET}/{lake}", "--run-id", "r"], log, self.environment)
        self.started.append(process)
        return process

    def store(self) -> Any:
        """The server by fsspec, past the proxy."""
        import s3fs

        return s3fs.S3FileSystem(key="test", secret="test", endpoint_url=self.endpoint, use_listings_cache=False)


def begin(arguments: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Begin a command; its output goes to `log`."""
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments], cwd=ROOT, env=environment, stdout=output, stderr=output,
            text=True, start_new_session=True,
        )  # fmt: skip


def ended(process: subprocess.Popen[str], log: Path, code: int) -> str:
    """What a command said that ended with `code`."""
    try:
        found = process.wait(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            kill_all(process)
    said = log.read_text()
    assert found == code, said[-4000:]
    return said


def done(arguments: list[str], log: Path, environment: dict[str, str], code: int = 0) -> str:
    return ended(begin(arguments, log, environment), log, code)


def fill(folder: Path) -> None:
    """A dozen pictures, one of them cut, a page that says it is a picture, and a video that is held by reference."""
    random = np.random.default_rng(0)
    for i in range(12):
        pixels = np.kron(random.integers(0, 256, (12, 16, 3), np.uint8), np.ones((20, 20, 1), np.uint8))
        data = encode(pixels, "JPEG")
        (folder / f"{i:02}.jpg").write_bytes(data[: len(data) // 2] if i == 5 else data)
    (folder / "page.jpg").write_text("<html></html>")
    (folder / "clip.mp4").write_bytes(video(6))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("stores")
    (root / "photos").mkdir()
    fill(root / "photos")
    pipeline = root / "pipeline.yaml"
    pipeline.write_text(PIPELINE.format(folder=root / "photos", expiry_s=EXPIRY_S))
    with moto(root / "moto.log", BUCKET) as endpoint, proxied(endpoint) as proxy:
        place = Place(pipeline, endpoint, proxy, environment(proxy.endpoint, root / "mlflow.db"))
        yield place
        for process in place.started:
            if process.poll() is None:  # of a test that failed, perhaps asleep
                kill_all(process)


@pytest.fixture(scope="module")
def local(place: Place) -> Path:
    """A local lake of the same pipeline."""
    lake, log = place.pipeline.parent / "lake", place.pipeline.parent / "local.log"
    began = time.monotonic()
    done(["run", str(place.pipeline), "--lake", str(lake), "--run-id", "r"], log, dict(os.environ))
    print(f"local: {time.monotonic() - began:.0f} s")
    return lake


def assert_same_rows(place: Place, lake: str, local: Path) -> dict[str, Rows]:
    """The lake holds what the local one does, every object that it refers to among it."""
    found, expected = place.rows(lake), tables_of(local, TABLES)
    assert_same(*({name: rows[name] for name in (FRAMES.name, FEATURES.name)} for rows in (found, expected)))
    assert_same_crawl(place, found, expected)
    assert {row["status"] for row in found[RUNS.name].values()} == {"accepted"}
    return found


def assert_same_crawl(place: Place, found: dict[str, Rows], expected: dict[str, Rows]) -> None:
    """The same documents and media, and every object that they refer to has its bytes."""
    compared = {DOCUMENTS.name: ("url", "media_id", "error"), MEDIA.name: ("content", "size_bytes", "mime")}
    for name, columns in compared.items():
        assert found[name].keys() == expected[name].keys()
        for key, row in expected[name].items():
            assert [found[name][key][column] for column in columns] == [row[column] for column in columns]
    for (media_id,), row in found[MEDIA.name].items():
        if row["pack_uri"] is not None:
            assert hashlib.sha256(stored(place, row["pack_uri"])).hexdigest() == media_id


def stored(place: Place, uri: str) -> bytes:
    """The bytes at a `pack_uri`, by any fsspec."""
    data: bytes = place.store().cat_file(uri)
    return data


def test_a_lake_on_s3_holds_the_rows_of_a_local_one_and_its_objects_are_readable(
    place: Place, local: Path, tmp_path: Path
) -> None:
    place.proxy.seen.clear()
    began = time.monotonic()
    ended(place.begin("same", tmp_path / "run.log"), tmp_path / "run.log", 0)
    wall_s, requests = time.monotonic() - began, dict(place.proxy.seen)
    found = assert_same_rows(place, "same", local)
    assert any(row["pack_uri"] for row in found[MEDIA.name].values())
    assert any(row["error"] for row in found[FEATURES.name].values())
    said = done(["tables", "--lake", f"s3a://{BUCKET}/same", "--json"], tmp_path / "tables.log", place.environment)
    shown = json.loads(said.splitlines()[-1])
    assert {row["table"]: row["rows"] for row in shown["tables"]}["media"] == len(found[MEDIA.name])
    print(f"S3: {wall_s:.0f} s and {sum(requests.values())} requests: {requests}")


def test_a_shard_is_cut_from_a_store_into_a_store_and_the_lake_is_explained_and_tidied(
    place: Place, tmp_path: Path
) -> None:
    """Of the lake that the test before this one made."""
    lake, log = f"s3a://{BUCKET}/same", tmp_path / "log"

    def told(command: list[str], of: str = lake) -> dict[str, Any]:
        said = done([*command, "--lake", of, "--json"], log, place.environment)
        facts: dict[str, Any] = json.loads(said.splitlines()[-1])
        return facts

    strata = ["--stratify", "error", "--stratify", "media_type"]
    cut = told(["sample", "--fraction", ".3", "--out", f"s3a://{BUCKET}/shard", *strata])
    whole, shard = place.rows("same"), place.rows("shard")
    assert 2 < len(shard[DOCUMENTS.name]) == cut["documents"] < len(whole[DOCUMENTS.name]) == cut["of_documents"]
    assert {key[0] for key in shard[FEATURES.name]} == {key[0] for key in shard[MEDIA.name]}
    assert {row["error"]["code"] for row in shard[FEATURES.name].values() if row["error"]} == {"truncated"}
    [(media_id, clip)] = [(key[0], row) for key, row in shard[MEDIA.name].items() if row["pack_uri"]]
    assert "/shard/" in clip["pack_uri"]
    assert hashlib.sha256(stored(place, clip["pack_uri"])).hexdigest() == media_id
    shown = told(["explain", media_id], of=f"s3a://{BUCKET}/shard")
    assert shown["media"]["pack_uri"] == clip["pack_uri"]
    told(["maintain", "--dry-run"])
    assert place.rows("same") == whole


def test_a_few_percent_of_slow_down_and_a_burst_cost_time_and_no_row(place: Place, local: Path, tmp_path: Path) -> None:
    place.proxy.share, place.proxy.n_faults = 0.03, 0
    try:
        process = place.begin("slow", tmp_path / "run.log", command="crawl")
        until = time.monotonic() + PATIENCE_S
        while "media" not in written(place, "slow") and process.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        place.proxy.burst = 30
        ended(process, tmp_path / "run.log", 0)
    finally:
        place.proxy.share, place.proxy.burst = 0.0, 0
    assert place.proxy.n_faults > 35
    assert_same_crawl(place, place.rows("slow"), tables_of(local, TABLES))


def written(place: Place, lake: str) -> set[str]:
    """The tables of a lake that have a commit beyond their creation."""
    return {path.split("/")[-3] for path in place.store().glob(f"{BUCKET}/{lake}/*/_delta_log/*1.json")}


def test_of_two_drivers_at_once_one_works_and_the_other_is_refused(place: Place, local: Path, tmp_path: Path) -> None:
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    both = [place.begin("two", log, command="crawl") for log in logs]
    codes = [process.wait(timeout=PATIENCE_S) for process in both]
    said = [log.read_text() for log in logs]
    assert sorted(codes) == [0, 1], said
    refused = said[codes.index(1)]
    assert "is writing to s3a://bucket/two" in refused or "began to write to s3a://bucket/two" in refused
    assert "Traceback" not in refused
    assert_same_crawl(place, place.rows("two"), tables_of(local, TABLES))


AT_ONCE = """
import sys, time
from jobs.writer_lock import WriterRefused, sole_writer
from jobs.stores import open_store
open_store(sys.argv[1])[0].connect()
print("ready", flush=True)
sys.stdin.readline()
try:
    with sole_writer(sys.argv[1], run_id="r", heartbeat_s=1, expiry_s=float(sys.argv[2])):
        print("took it", flush=True)
        time.sleep(3)
except WriterRefused:
    print("refused", flush=True)
"""


def test_of_many_that_begin_at_one_moment_one_gets_the_lock_be_it_new_or_old(place: Place) -> None:
    for expected in ("new", "released"):
        command = [sys.executable, "-c", AT_ONCE, f"s3a://{BUCKET}/race", "30"]
        many = [
            subprocess.Popen(
                command, cwd=ROOT, env=place.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(6)
        ]
        for process in many:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in many:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = sorted(process.communicate(timeout=60)[0].strip() for process in many)
        assert said == ["refused"] * 5 + ["took it"], expected


def test_a_killed_driver_is_taken_over_once_it_was_silent_for_long_enough(
    place: Place, local: Path, tmp_path: Path
) -> None:
    log = tmp_path / "killed.log"
    killed = place.begin("killed", log, command="crawl")
    until = time.monotonic() + PATIENCE_S
    while "media" not in written(place, "killed"):
        assert killed.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.1)
    kill_all(killed)
    began = time.monotonic()
    said = ended(place.begin("killed", log, command="crawl"), log, 1)
    assert "run r on" in said and "if it died, in" in said
    assert time.monotonic() - began < 15  # before Spark starts
    time.sleep(EXPIRY_S)
    ended(place.begin("killed", log, command="crawl"), log, 0)
    assert_same_crawl(place, place.rows("killed"), tables_of(local, TABLES))


def test_a_driver_that_wakes_after_another_took_over_writes_nothing_more(
    place: Place, local: Path, tmp_path: Path
) -> None:
    logs = [tmp_path / "asleep.log", tmp_path / "next.log"]
    asleep = place.begin("asleep", logs[0], command="crawl")
    until = time.monotonic() + PATIENCE_S
    while "media" not in written(place, "asleep"):
        assert asleep.poll() is None and time.monotonic() < until, logs[0].read_text()[-3000:]
        time.sleep(0.1)
    signal_all(asleep, signal.SIGSTOP)
    time.sleep(EXPIRY_S + 2)
    ended(place.begin("asleep", logs[1], command="crawl"), logs[1], 0)
    before = place.rows("asleep")
    signal_all(asleep, signal.SIGCONT)
    said = ended(asleep, logs[0], 1)
    assert "took over" in said or "taken over" in said or "was committed by another attempt" in said, said
    assert place.rows("asleep") == before
    assert_same_crawl(place, place.rows("asleep"), tables_of(local, TABLES))


def test_a_bucket_that_is_not_there_is_a_wrong_request_that_names_it(place: Place, tmp_path: Path) -> None:
    for command in (["run", str(place.pipeline)], ["tables"]):
        said = done([*command, "--lake", "s3a://nowhere/lake"], tmp_path / "log", place.environment, 2)
        assert "nowhere" in last_line(said) and "does not exist" in last_line(said)


def test_wrong_credentials_and_none_are_a_wrong_request(place: Place, tmp_path: Path) -> None:
    with moto(tmp_path / "moto.log", BUCKET, INITIAL_NO_AUTH_ACTION_COUNT="1") as endpoint:
        given = environment(endpoint, tmp_path / "mlflow.db")
        for command in (["run", str(place.pipeline)], ["tables"]):
            said = done([*command, "--lake", f"s3a://{BUCKET}/lake"], tmp_path / "log", given, 2)
            refused = ("InvalidAccessKeyId", "does not exist in our records", "AccessDeniedException")
            assert any(words in last_line(said) for words in refused)
        given.pop("AWS_ACCESS_KEY_ID")
        given |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path), "LAKELENS_CACHE": cache()}
        said = done(["run", str(place.pipeline), "--lake", f"s3a://{BUCKET}/lake"], tmp_path / "log", given, 2)
        assert "AWS_ACCESS_KEY_ID" in last_line(said)


def cache() -> str:
    from featurizers.weights import cache_dir

    return str(cache_dir())


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1]


def test_an_endpoint_that_only_spark_is_told_is_refused(place: Place, tmp_path: Path) -> None:
    with moto(tmp_path / "moto.log", BUCKET) as other:
        command = ["run", str(place.pipeline), "--lake", f"s3a://{BUCKET}/apart"]
        command += ["--set", f"spark.settings={{spark.hadoop.fs.s3a.endpoint: '{other}'}}"]
        said = done(command, tmp_path / "log", place.environment, 2)
    assert "is not the same place for Spark and for Python" in last_line(said)


def test_of_a_video_the_index_and_the_chosen_frames_are_read_in_few_requests_and_through_slow_down(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, place.environment[name])
    from jobs.stores import open_store

    data, uri = video(80), f"s3a://{BUCKET}/video.mp4"
    store, path = open_store(uri)
    store.pipe_file(path, data)
    place.proxy.seen.clear()
    place.proxy.ranges.clear()
    expected = featurized(inline(data))
    assert featurized(by_reference(uri, len(data))) == expected
    spans = [sorted(map(int, span.removeprefix("bytes=").split("-"))) for _, span in place.proxy.ranges]
    n_bytes = sum(last - first + 1 for first, last in spans)
    print(f"{len(data) >> 20} MiB: {len(spans)} ranges of {n_bytes / 2**20:.1f} MiB, {dict(place.proxy.seen)}")
    assert len(spans) <= 8 and n_bytes < len(data) / 4
    place.proxy.burst = 4
    assert featurized(by_reference(uri, len(data))) == expected
    assert place.proxy.burst == 0


def test_a_lake_on_azure_blob_storage_holds_the_rows_of_a_local_one(local: Path, place: Place, tmp_path: Path) -> None:
    """By wasb://, for the emulator has no abfss://; nothing is held by reference, for fsspec has no wasb://."""
    account = "devstoreaccount1"
    with azurite(tmp_path / "azurite", BUCKET):
        command = ["run", str(place.pipeline), "--lake", f"wasb://{BUCKET}@{account}/lake", "--run-id", "r"]
        command += ["--set", f"spark.settings={{spark.hadoop.fs.azure.storage.emulator.account.name: {account}}}"]
        command += ["--set", "crawl.inline_bytes=100000000", "--set", "crawl.max_bytes=100000000"]
        done(command, tmp_path / "log", place.environment)
        found = tables_of(f"az://{BUCKET}/lake", options={"azure_storage_use_emulator": "true"})
    assert_same(found, tables_of(local))


# -- tables that newer code has changed, on a local lake ------------------------------------------------------------


@pytest.fixture(scope="module")
def newer(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a copy of the local lake whose `media` newer code has changed, by one action of its log."""

    def changed(change: dict[str, Any]) -> Path:
        lake = tmp_path_factory.mktemp("newer") / "lake"
        shutil.copytree(local, lake)
        log = lake / "media" / "_delta_log"
        last = max(int(file.stem) for file in log.glob("*.json"))
        (log / f"{last + 1:020d}.json").write_text(json.dumps(change) + "\n")
        for checksum in log.glob("*.crc"):
            checksum.unlink()
        return lake

    return changed


def test_a_table_of_a_newer_protocol_is_a_wrong_request(newer: Any, tmp_path: Path) -> None:
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["fromTheFuture"]}
    lake = newer({"protocol": protocol | {"writerFeatures": ["fromTheFuture"]}})
    said = done(["tables", "--lake", str(lake)], tmp_path / "log", dict(os.environ), 2)
    assert "media" in last_line(said) and "fromTheFuture" in said


def test_a_table_with_a_column_that_this_code_does_not_know_is_a_wrong_request(
    newer: Any, local: Path, tmp_path: Path
) -> None:
    first = local / "media" / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in first.read_text().splitlines()]
    metadata = next(action["metaData"] for action in actions if "metaData" in action)
    schema = json.loads(metadata["schemaString"])
    schema["fields"].append({"name": "depth_m", "type": "float", "nullable": True, "metadata": {}})
    lake = newer({"metaData": metadata | {"schemaString": json.dumps(schema)}})
    said = done(["tables", "--lake", str(lake)], tmp_path / "log", dict(os.environ), 2)
    assert "was written by other code" in last_line(said) and "media.depth_m" in last_line(said)
