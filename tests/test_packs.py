"""Large media: on disk while they arrive, one object of the lake, read in ranges, never whole in memory."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pyarrow as pa
import pytest

from featurizers.probe import probe
from jobs import crawl, featurize
from jobs.addresses import parse_exemptions
from jobs.config import load_config
from jobs.engine import EngineSettings, featurize_media
from jobs.fetch import fetch
from jobs.inference import loaded_featurizers
from jobs.lake import open_lake, read
from jobs.outcomes import Request
from jobs.packs import Body, Packs, StorageFailed, open_pack
from jobs.progress import unseen
from jobs.runs import Run, executing, finish
from jobs.urls import doc_id
from jobs.work import Selection, prepare
from schemas import DOCUMENTS, FEATURES, FETCHES, MEDIA
from tests.crawl_site import Answer, answer, jpeg, serving
from tests.test_engine import MEDIA_SCHEMA, a_spec, code_of, loaded, results
from tests.test_fetch import SETTINGS as FETCH
from tests.test_video import clip

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MIB = 1 << 20
SETTINGS = EngineSettings(max_pixels=1_000_000, max_frames_per_video=3)


def video(n_frames: int) -> bytes:
    """About half a megabyte a frame, all of it noise and every frame a key frame, the index at the end."""
    out, random = io.BytesIO(), np.random.default_rng(0)
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 720, 540, "yuvj420p"
        stream.codec_context.options = {"qmin": "1", "qmax": "1"}
        for _ in range(n_frames):
            frame = av.VideoFrame.from_ndarray(random.integers(0, 256, (540, 720, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of about 40 MB."""
    path = tmp_path_factory.mktemp("large") / "large.mp4"
    path.write_bytes(video(80))
    assert 36 * MIB < path.stat().st_size < 64 * MIB
    return path


def packs_in(folder: Path, inline_bytes: int = 1000) -> Packs:
    return Packs(uri=str(folder / "packs"), partial_uri=str(folder / "partial"), inline_bytes=inline_bytes)


def body_of(data: bytes, packs: Packs) -> Body:
    body = Body(packs)
    for at in range(0, len(data), 300):
        body.write(data[at : at + 300])
    return body


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def by_reference(uri: str, length: int, *, mime: str = "video/mp4", offset: int = 0) -> list[pa.RecordBatch]:
    row = {"media_id": "m", "pack_uri": uri, "offset": offset, "length": length, "mime": mime, "due": [a_spec("a").id]}
    return [pa.RecordBatch.from_pylist([row], schema=MEDIA_SCHEMA)]


def inline(data: bytes) -> list[pa.RecordBatch]:
    row = {"media_id": "m", "content": data, "mime": "video/mp4", "due": [a_spec("a").id]}
    return [pa.RecordBatch.from_pylist([row], schema=MEDIA_SCHEMA)]


def featurized(batches: list[pa.RecordBatch]) -> dict[Any, Any]:
    """Results by key, without what differs from run to run."""
    found = results(featurize_media(batches, [loaded(a_spec("a"))], SETTINGS))
    timed = ("decode_ms", "infer_ms", "results")
    return {key: {name: value for name, value in row.items() if name not in timed} for key, row in found.items()}


# -- writing ------------------------------------------------------------------------------------------------------


def test_a_body_above_the_limit_becomes_one_object_named_by_its_digest_however_often_it_comes(tmp_path: Path) -> None:
    packs, data = packs_in(tmp_path), bytes(range(250)) * 5
    with body_of(data, packs) as body:
        held = body.held()
    media_id = hashlib.sha256(data).hexdigest()
    assert (held.media_id, held.content, held.offset, held.length) == (media_id, None, 0, len(data))
    (stored,) = files_below(tmp_path)
    assert str(stored) == held.pack_uri and stored.name == media_id and stored.read_bytes() == data
    before = stored.stat()
    with body_of(data, packs) as body:
        assert body.held() == held
    assert files_below(tmp_path) == [stored] and stored.stat().st_mtime_ns == before.st_mtime_ns


def test_a_body_is_probed_alike_in_memory_and_on_disk(tmp_path: Path) -> None:
    for data in (jpeg(7, 30, 20), video(2), clip(kind="matroska")):
        for inline_bytes in (900, MIB * 8):
            with body_of(data, packs_in(tmp_path, inline_bytes)) as body:
                assert probe(body.file) == probe(data) and probe(data).media_type is not None


def test_a_body_of_just_the_limit_stays_inline(tmp_path: Path) -> None:
    with body_of(b"x" * 1000, packs_in(tmp_path)) as body:
        assert (body.held().content, body.held().pack_uri) == (b"x" * 1000, None)
    assert files_below(tmp_path) == []


def test_a_part_that_a_killed_attempt_left_under_the_final_name_is_not_taken_for_whole(tmp_path: Path) -> None:
    packs, data = packs_in(tmp_path), b"y" * 5000
    with body_of(data, packs) as body:
        target = Path(packs.uri_of(hashlib.sha256(data).hexdigest()))
        target.parent.mkdir(parents=True)
        target.write_bytes(data[:100])
        body.held()
    assert target.read_bytes() == data


FULL = """
import resource, sys
from jobs.packs import Body, Packs, StorageFailed
folder, full = sys.argv[1:]
packs = Packs(uri=folder + "/packs", partial_uri=folder + "/partial", inline_bytes=1000)
def fill(what):
    if what == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    with Body(packs) as body:
        fill("temporary folder")
        for _ in range(40):
            body.write(b"z" * 100)
        fill("lake")
        body.held()
except StorageFailed as e:
    print(e)
"""


@pytest.mark.parametrize("full, named", [("temporary folder", "3100 bytes of a body"), ("lake", "packs/")])
def test_a_full_disk_is_a_storage_failure_that_leaves_nothing_behind(tmp_path: Path, full: str, named: str) -> None:
    """Full is a disk where no file of the process may grow beyond 3,000 bytes."""
    command = [sys.executable, "-c", FULL, str(tmp_path), full]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert named in done.stdout and "File too large" in done.stdout, done.stderr
    assert files_below(tmp_path) == []


def test_a_lake_that_takes_nothing_fails_the_task_and_blames_no_document(tmp_path: Path) -> None:
    (tmp_path / "packs").write_bytes(b"a file where the folder of packs is to be")
    (tmp_path / "video.mp4").write_bytes(video(1))
    url = (tmp_path / "video.mp4").as_uri()
    on_disk = Request(doc_id=doc_id(url), url=url, host="", root=tmp_path.as_uri())
    with serving({"/video.mp4": answer(body=video(1))}) as site:
        settings = replace(FETCH, exemptions=parse_exemptions([site.address]), packs=packs_in(tmp_path))
        url = site.url("/video.mp4")
        for request in (on_disk, Request(doc_id=doc_id(url), url=url, host=site.address)):
            with pytest.raises(StorageFailed, match=r"packs/../[0-9a-f]{64}, \d+ bytes: "):
                list(fetch([request], replace(settings, max_bytes=MIB)))


CRAWL = """
import resource, sys, threading, time
from pathlib import Path
from jobs.addresses import parse_exemptions
from jobs.fetch import fetch
from jobs.fetch_settings import Settings
from jobs.outcomes import Outcome, Request
from jobs.packs import Packs
from jobs.urls import canonical_url, doc_id

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

address, folder, *urls = sys.argv[1:]
settings = Settings(
    contact=None, exemptions=parse_exemptions([address]), max_connections_per_host=2, delay_s=0, connect_timeout_s=1,
    timeout_s=1, max_bytes=1 << 30, max_redirects=2, max_attempts=1,
    packs=Packs(uri=folder + "/packs", partial_uri=folder + "/partial", inline_bytes=1 << 20),
)
def outcomes(urls):
    requests = []
    for url in urls:
        is_file = url.startswith("file:")
        host, root = ("", url.rpartition("/")[0]) if is_file else (canonical_url(url).host, None)
        requests.append(Request(doc_id=doc_id(url), url=url, host=host, root=root))
    return [found for found in list(fetch(requests, settings)) if isinstance(found, Outcome)]

outcomes(urls[:2])  # what is imported and allocated once is there before anything is measured
before = most = resident()
done = False
def watch():
    global most
    while not done:
        most = max(most, resident())
        time.sleep(0.002)
watching = threading.Thread(target=watch, daemon=True)
watching.start()
for outcome in outcomes(urls[2:]):
    print(outcome.request.url, outcome.error and outcome.error["code"], outcome.held and outcome.held.pack_uri,
          outcome.facts.duration_s, outcome.attempts[0].bytes)
done = True
watching.join()
print((most - before) >> 20)
"""


def test_a_large_body_is_taken_over_http_and_from_a_folder_without_being_held_in_memory(
    tmp_path: Path, large: Path
) -> None:
    """The server makes 40 MB as it sends them, slower than the time of a request allows but steadily enough."""
    small, size = video(4), large.stat().st_size

    async def generated(_: Any, writer: Any, asked: Any) -> None:
        n_padding = size - len(small)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + small)
        writer.write(n_padding.to_bytes(4, "big") + b"free")
        for left in range(n_padding - 8, 0, -MIB):
            writer.write(bytes(min(MIB, left)))
            await writer.drain()
            await asyncio.sleep(0.05)

    pages: dict[str, Answer] = {"/a.jpg": answer(body=jpeg()), "/small.mp4": answer(body=small)}
    with serving({**pages, "/generated.mp4": generated}) as site:
        first = [site.url("/a.jpg"), site.url("/small.mp4")]
        urls = [*first, site.url("/generated.mp4"), large.as_uri()]
        command = [sys.executable, "-c", CRAWL, site.address, str(tmp_path), *urls]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, grown_mib = done.stdout.splitlines()
    found = {line.split()[0]: line.split()[1:] for line in lines}
    assert int(grown_mib) < 16, f"{grown_mib} MiB more for bodies of {size >> 20} MiB"
    for url, duration_s in ((urls[2], 0.4), (urls[3], 8.0)):
        code, uri, stated_s, n_bytes = found[url]
        assert (code, float(stated_s), int(n_bytes)) == ("None", pytest.approx(duration_s), size)
        assert hashlib.sha256(Path(uri).read_bytes()).hexdigest() == Path(uri).name
    assert Path(found[urls[3]][1]).read_bytes() == large.read_bytes()
    assert len(files_below(tmp_path)) == 3


# -- reading ------------------------------------------------------------------------------------------------------


@dataclass
class Store:
    """A web server that answers ranges, standing in for an object store; breaks after `n_good` answers."""

    content: bytes
    url: str = ""
    n_good: int = 1 << 30
    n_sent: list[int] = field(default_factory=list)


@contextmanager
def store(content: bytes) -> Iterator[Store]:
    state = Store(content)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()

        def do_GET(self) -> None:
            if len(state.n_sent) >= state.n_good:
                self.send_error(503)
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            assert asked is not None, "the whole object was asked for"
            first, last = int(asked[1]), min(int(asked[2]), len(state.content) - 1)
            state.n_sent.append(last + 1 - first)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(state.content)}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            self.wfile.write(state.content[first : last + 1])

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/pack"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_few_frames_of_a_video_are_read_with_a_fraction_of_its_bytes_and_are_those_of_the_whole(large: Path) -> None:
    data = large.read_bytes()
    with store(b"before" + data + b"after") as remote:
        found = featurized(by_reference(remote.url, len(data), offset=6))
    assert found == featurized(inline(data)) and len(found) == 3
    assert sum(remote.n_sent) < len(data) / 4, f"{sum(remote.n_sent)} bytes of {len(data)}"


@pytest.mark.parametrize("kind", ["matroska", "mpegts", "fragmented"])
def test_a_video_without_a_whole_index_is_read_through_and_has_the_frames_of_the_whole(kind: str) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if kind == "fragmented" else {}
    data = clip(kind="mp4" if kind == "fragmented" else kind, options=options)
    with store(b"before" + data + b"after") as remote:
        found = featurized(by_reference(remote.url, len(data), offset=6))
    assert found == featurized(inline(data)) and len(found) == 3


@pytest.mark.parametrize("n_good", [0, 1, 3])
def test_a_store_that_breaks_while_a_video_is_read_is_a_storage_error_and_never_a_video_with_fewer_frames(
    large: Path, n_good: int
) -> None:
    with store(large.read_bytes()) as remote:
        remote.n_good = n_good
        (result,) = featurized(by_reference(remote.url, large.stat().st_size)).values()
    assert code_of(result) == "storage" and remote.url in str(result["error"])


WORK = """
import sys, threading, time
from pathlib import Path
from benchmarks.memory import resident_mib
from jobs.engine import featurize_media
from tests.test_packs import SETTINGS, a_spec, by_reference, loaded

def n_frames(path):
    batches = by_reference(path, Path(path).stat().st_size)
    return sum(batch.num_rows for batch in featurize_media(batches, [loaded(a_spec("a"))], SETTINGS))

def watch():
    global most
    while not done:
        most = max(most, resident_mib())
        time.sleep(0.002)

small, large = sys.argv[1:]
n_frames(small)
before = most = resident_mib()
done = False
watching = threading.Thread(target=watch, daemon=True)
watching.start()
print(n_frames(large))
done = True
watching.join()
print(most - before)
"""


def test_a_video_held_by_reference_is_not_held_in_memory_while_it_is_featurized(tmp_path: Path, large: Path) -> None:
    (tmp_path / "small.mp4").write_bytes(video(4))
    command = [sys.executable, "-c", WORK, str(tmp_path / "small.mp4"), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    n_frames, grown_mib = done.stdout.split()
    assert n_frames == "3" and float(grown_mib) < 16, f"{grown_mib} MiB for {large.stat().st_size >> 20}"


def test_a_picture_of_more_bytes_than_its_pixels_may_take_is_refused_unread(tmp_path: Path) -> None:
    head, size = jpeg(), 64 << 30
    with (tmp_path / "pack").open("wb") as file:
        file.write(head)
        file.truncate(size)  # 64 GiB without a block on the disk: reading them whole would not end well
    found = featurized(by_reference(str(tmp_path / "pack"), size, mime="image/jpeg"))
    assert [code_of(result) for result in found.values()] == ["pixel_limit"]


def test_what_stands_in_a_pack_is_probed_and_sought_like_a_file(tmp_path: Path, large: Path) -> None:
    data = large.read_bytes()
    (tmp_path / "pack").write_bytes(b"before" + data + b"after")
    with open_pack(str(tmp_path / "pack"), 6, len(data)) as pack:
        assert probe(pack) == probe(data)
        assert (pack.seek(-4, io.SEEK_END), pack.read(), pack.read(5)) == (len(data) - 4, data[-4:], b"")
        assert (pack.seek(len(data) + 9), pack.read(5)) == (len(data) + 9, b"")
    for reference in ((None, 0, 1), (str(tmp_path / "pack"), 0, None)):
        with pytest.raises(StorageFailed, match="neither content nor a whole reference"), open_pack(*reference):
            pass


# -- on Spark -----------------------------------------------------------------------------------------------------


def settings_for(folder: Path, *more: str) -> list[str]:
    sources = json.dumps([{"name": "disk", "kind": "folder", "uri": str(folder)}])
    return [f"crawl.sources={sources}", "crawl.delay_s=0", "featurize.link_captions=false", *more]


def crawl_run(run_id: str, owner: str = "owner") -> Run:
    return Run(run_id=run_id, job="crawl", owner=owner, inputs={}, started=datetime.now(UTC), resumed=False)


@pytest.mark.spark
def test_a_video_by_reference_has_the_features_of_the_same_video_inline(spark: SparkSession, tmp_path: Path) -> None:
    folder, data = tmp_path / "media", video(16)
    folder.mkdir()
    (folder / "large.mp4").write_bytes(data)
    (folder / "copy.mp4").write_bytes(data)
    (folder / "small.jpg").write_bytes(jpeg(7, 200, 100))
    chosen = ["featurize.featurizers=[concept_efficientnet.lite0@1]", f"crawl.inline_bytes={MIB}"]
    config = load_config(assignments=settings_for(folder, *chosen))
    lake = open_lake(spark, str(tmp_path / "lake"))
    crawl.run(spark, lake, config, crawl_run("a.crawl"))
    media = {row["mime"]: row for row in read(spark, lake, MEDIA).collect()}
    assert read(spark, lake, MEDIA).count() == len(media) == 2
    held = media["video/mp4"]
    assert held["content"] is None and held["pack_uri"] is not None
    assert media["image/jpeg"]["content"] is not None and media["image/jpeg"]["pack_uri"] is None
    assert held["size_bytes"] == len(data) and held["duration_s"] == pytest.approx(1.6)
    assert (held["offset"], held["length"]) == (0, held["size_bytes"])
    files = read(spark, lake, MEDIA).selectExpr("pack_uri IS NULL AS inline", "_metadata.file_path AS file")
    assert len({(row["inline"], row["file"]) for row in files.collect()}) == 2
    work = prepare(config.featurize)
    with executing(
        spark, lake, run_id="a.featurize", job="featurize", inputs=featurize.pins(spark, lake),
        outputs=work.outputs, config_digest="d", heartbeat_s=60, expiry_s=300, progress=unseen,
    ) as run:  # fmt: skip
        finish(spark, lake, run, featurize.run(spark, lake, config, run, work, Selection()), mlflow_run_id=None)
    found = {
        (row["media_id"], row["frame"]): [feature.asDict() for feature in row["features"]]
        for row in read(spark, lake, FEATURES).collect()
    }

    [due] = work.due
    limits = EngineSettings(
        max_pixels=config.featurize.max_pixels, max_frames_per_video=config.featurize.max_frames_per_video
    )
    bytes_of = {"video/mp4": data, "image/jpeg": media["image/jpeg"]["content"]}
    rows = [
        {"media_id": row["media_id"], "content": bytes_of[mime], "mime": mime, "due": [due.spec.id]}
        for mime, row in media.items()
    ]
    inline = results(
        featurize_media(
            pa.Table.from_pylist(rows, schema=MEDIA_SCHEMA).to_batches(),
            loaded_featurizers([(due.spec, dict(due.paths), due.fingerprint)], "cpu"),
            limits,
        )
    )
    assert found == {(media_id, frame): result["features"] for (media_id, frame, _), result in inline.items()}
    assert len(found) == 9


def children_of(pid: int) -> set[int]:
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents: Mapping[int, int] = {int(p): int(pp) for p, pp in (line.split() for line in listed.splitlines()[1:])}
    found, last = {pid}, set[int]()
    while found != last:
        last, found = found, found | {p for p, parent in parents.items() if parent in found}
    return found


@pytest.mark.faults
def test_a_kill_between_the_object_and_the_commit_leaves_no_row_and_the_rerun_the_same_as_an_undisturbed_run(
    spark: SparkSession, tmp_path: Path, large: Path
) -> None:
    """The crawl hangs on its second document when its first one already stands in the lake as an object."""
    release = threading.Event()

    async def slow(_: Any, writer: Any, asked: Any) -> None:
        while not release.is_set():
            await asyncio.sleep(0.05)
        writer.write(answer(body=jpeg()))
        await writer.drain()

    lake_folder = tmp_path / "lake"
    with serving({"/slow.jpg": slow}) as site:
        folder, urls = tmp_path / "media", tmp_path / "urls.txt"
        folder.mkdir()
        (folder / "large.mp4").write_bytes(large.read_bytes())
        urls.write_text(site.url("/slow.jpg") + "\n")
        sources = [
            {"name": "disk", "kind": "folder", "uri": str(folder)},
            {"name": "web", "kind": "urls", "uri": str(urls)},
        ]
        chosen = [f"crawl.sources={json.dumps(sources)}", f"crawl.allow_addresses=['{site.address}']"]
        chosen += [f"crawl.inline_bytes={MIB}", "crawl.timeout_s=300", "spark.master=local[2]"]
        command = [sys.executable, "-m", "jobs", "crawl", "--lake", str(lake_folder), "--run-id", "cut"]
        with subprocess.Popen([*command, *(part for one in chosen for part in ("--set", one))]) as killed:
            until = time.monotonic() + 120
            while not (objects := files_below(lake_folder / "_packs")) and time.monotonic() < until:
                assert killed.poll() is None, "the crawl ended by itself"
                time.sleep(0.05)
            for pid in children_of(killed.pid):
                os.kill(pid, signal.SIGKILL)
        assert [path.name for path in objects] == [hashlib.sha256(large.read_bytes()).hexdigest()]
        lake = open_lake(spark, str(lake_folder))
        assert [read(spark, lake, table).count() for table in (MEDIA, DOCUMENTS, FETCHES)] == [0, 0, 0]
        written_ns = objects[0].stat().st_mtime_ns
        release.set()
        config = load_config(assignments=chosen)
        other = open_lake(spark, str(tmp_path / "undisturbed"))
        crawl.run(spark, lake, config, crawl_run("cut.crawl", "another"))
        crawl.run(spark, other, config, crawl_run("whole.crawl"))
    facts = ("media_id", "content", "offset", "length", "mime", "size_bytes", "width", "height", "duration_s")

    def rows_of(held: Any) -> list[Any]:
        return sorted((tuple(row[name] for name in facts) for row in read(spark, held, MEDIA).collect()), key=str)

    assert rows_of(lake) == rows_of(other) and len(rows_of(lake)) == 2
    assert files_below(lake_folder / "_packs") == objects and objects[0].stat().st_mtime_ns == written_ns
    assert not files_below(lake_folder / "_staging")
