"""Takes one file or folder out of a Python package on the index that pip is configured for. Knows nothing of weights.

Nothing of the package is installed, imported or run: no metadata build, no setup.py, no dependencies.
"""

from __future__ import annotations

import ast
import base64
import difflib
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

TIMEOUT_S = 30.0  # of one read from the socket; a stalled index is reported, not waited for
ATTEMPTS = 3  # of one request, for failures that may pass: timeouts, dropped connections, 429 and 5xx
CHUNK_BYTES = 1 << 20
Members = dict[str, Callable[[], IO[bytes]]]  # path as it would be installed -> opens its content

T = TypeVar("T")


class PackageError(Exception):
    """A package, version or member that cannot be had; the message says what was found and what to do."""


@dataclass(frozen=True)
class Archive:
    """One wheel or source distribution, as an index lists it."""

    filename: str
    url: str
    sha256: str | None


def _redacted(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


@cache
def _pip_files() -> dict[str, str]:
    """What pip's configuration files say, keys without their section."""
    if importlib.util.find_spec("pip") is None:
        return {}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section.strip() in ("global", "install", "download"):
            settings[name] = str(ast.literal_eval(value))
    return settings


def _pip_settings() -> dict[str, str]:
    """What pip's files and environment say; the environment wins."""
    environment = {n[4:].lower().replace("_", "-"): v for n, v in os.environ.items() if n.startswith("PIP_") and v}
    return {**_pip_files(), **environment}


def _built_in_index() -> str | None:
    """The index that pip uses when nothing is configured."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return None
    return str(PyPI.simple_url)


def index_urls() -> list[str]:
    """Addresses of the simple indexes to ask, in order: what uv's or pip's environment and files say, else pip's own.

    Raises PackageError where there is none.
    """
    pip = _pip_settings()
    uv = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    urls = pip.get("extra-index-url", "").split()
    if pip.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        main = pip.get("index-url") or uv or _built_in_index()
        urls = [main, *urls] if main else urls
    if not urls and not pip.get("find-links"):
        raise PackageError(
            "no package index is configured: set PIP_INDEX_URL, or install pip into this environment "
            f"({sys.executable} -m ensurepip)"
        )
    return urls


@cache
def _tls() -> ssl.SSLContext:
    configured = next(filter(None, map(os.environ.get, ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))), None)
    return ssl.create_default_context(cafile=configured if configured and Path(configured).is_file() else None)


def _request(url: str, accept: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        urllib.parse.urlunsplit(parts._replace(netloc=host, fragment="")), headers={"Accept": accept}
    )
    if credentials:
        token = base64.b64encode(urllib.parse.unquote(credentials).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


@contextmanager
def _opened(url: str, accept: str) -> Iterator[Any]:
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_tls()))
    with opener.open(_request(url, accept), timeout=TIMEOUT_S) as response:
        yield response


def _persistently(url: str, action: Callable[[], T]) -> T:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except urllib.error.HTTPError as e:
            if (e.code != 429 and e.code < 500) or attempt == ATTEMPTS:
                raise PackageError(f"{_redacted(url)} answers {e.code} {e.reason}") from e
        except (OSError, http.client.HTTPException) as e:
            refused = isinstance(getattr(e, "reason", e), (ConnectionRefusedError, ssl.SSLCertVerificationError))
            if refused or attempt == ATTEMPTS:
                raise PackageError(
                    f"{_redacted(url)} cannot be reached ({getattr(e, 'reason', e)}); check the network, the proxy "
                    "(HTTPS_PROXY) and the index (PIP_INDEX_URL), or name the file by a file:// URI"
                ) from e
        time.sleep(0.5 * attempt)
    raise AssertionError("the last attempt returns or raises")


class _Links(HTMLParser):
    """The links of a simple-index page (PEP 503)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.found.append(href)


def _listed(page_url: str, body: bytes, content_type: str) -> list[Archive]:
    if "json" in content_type:  # PEP 691
        return [
            Archive(f["filename"], urllib.parse.urljoin(page_url, f["url"]), f.get("hashes", {}).get("sha256"))
            for f in json.loads(body)["files"]
        ]
    links = _Links()
    links.feed(body.decode("utf-8", "replace"))
    archives = []
    for href in links.found:
        url = urllib.parse.urljoin(page_url, href)
        parts = urllib.parse.urlsplit(url)
        sha256 = re.search(r"(?:^|&)sha256=([0-9a-f]{64})", parts.fragment)
        name = PurePosixPath(urllib.parse.unquote(parts.path)).name
        archives.append(Archive(name, url, sha256.group(1) if sha256 else None))
    return archives


def _archives(package: str) -> list[Archive]:
    """Every archive of a package in the local find-links folders and on the indexes; an index may lack it."""
    archives: list[Archive] = []
    for place in _pip_settings().get("find-links", "").split():
        folder = Path(place.removeprefix("file://"))
        if folder.is_dir():
            archives += [Archive(p.name, p.resolve().as_uri(), None) for p in sorted(folder.iterdir()) if p.is_file()]
    for index in index_urls():
        base = urllib.parse.urlsplit(index)
        page = f"{index.rstrip('/')}/{canonicalize_name(package)}/"

        def read(page: str = page) -> tuple[bytes, str]:
            with _opened(page, "application/vnd.pypi.simple.v1+json, text/html;q=0.1") as response:
                return response.read(), response.headers.get("Content-Type", "")

        try:
            listed = _listed(page, *_persistently(page, read))
        except PackageError as e:
            if isinstance(e.__cause__, urllib.error.HTTPError) and e.__cause__.code == 404:
                continue
            raise
        credentials = base.netloc.rpartition("@")[0]
        for archive in listed:
            parts = urllib.parse.urlsplit(archive.url)
            if credentials and parts.netloc == base.netloc.rpartition("@")[2]:
                url = urllib.parse.urlunsplit(parts._replace(netloc=base.netloc))
                archive = Archive(archive.filename, url, archive.sha256)
            archives.append(archive)
    return archives


def _identity(filename: str) -> tuple[str, Version, int] | None:
    """Package, version and preference (pure wheel, other wheel, source) of an archive's file name."""
    try:
        if filename.endswith(".whl"):
            name, version, _, tags = parse_wheel_filename(filename)
            return name, version, 0 if all(tag.platform == "any" for tag in tags) else 1
        name, version = parse_sdist_filename(filename)
        return name, version, 2
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None


def candidates(package: str, version: str) -> list[Archive]:
    """The archives to look into, best first: a wheel for any platform, else one wheel, then the source distribution.

    Raises PackageError for a package or version that the index does not have.
    """
    try:
        wanted = Version(version)
    except InvalidVersion:
        raise PackageError(f"{version!r} is not a version of {package}") from None
    known = [(i, a) for a in _archives(package) if (i := _identity(a.filename)) and i[0] == canonicalize_name(package)]
    if not known:
        asked = ", ".join(map(_redacted, index_urls())) or "the find-links folders"
        raise PackageError(f"package {package!r} is not on the configured index ({asked})")
    of_version = sorted(((i[2], a.filename, a) for i, a in known if i[1] == wanted), key=lambda c: c[:2])
    if not of_version:
        versions = ", ".join(map(str, sorted({i[1] for i, _ in known})[-10:]))
        raise PackageError(f"{package} has no version {version}; the newest there are: {versions}")
    wheel = [a for preference, _, a in of_version if preference < 2][:1]
    return wheel + [a for preference, _, a in of_version if preference == 2][:1]


def download(archive: Archive, folder: Path) -> Path:
    """Write an archive into `folder` and check it against the index's own digest; raises PackageError."""
    target = folder / PurePosixPath(archive.filename).name
    handle, scratch = tempfile.mkstemp(dir=folder)  # another thread may be at the same archive
    os.close(handle)

    def copy() -> str:
        digest = hashlib.sha256()
        with _opened(archive.url, "*/*") as response, open(scratch, "wb") as file:
            expected = response.headers.get("Content-Length")
            while chunk := response.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            if expected is not None and file.tell() != int(expected):
                raise ConnectionError(f"ended after {file.tell()} of {expected} bytes")
        return digest.hexdigest()

    found = _persistently(archive.url, copy)
    if archive.sha256 and found != archive.sha256:
        os.unlink(scratch)
        raise PackageError(f"{archive.filename}: its SHA-256 is {found}, the index says {archive.sha256}; try again")
    os.replace(scratch, target)
    return target


def _safe(name: str) -> PurePosixPath | None:
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts
    return None if unsafe else path


@contextmanager
def _members(archive: Path) -> Iterator[Members]:
    """Regular files of an archive; links and unsafe names are left out."""
    files: Members = {}
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            infos = [i for i in opened.infolist() if not i.is_dir() and (i.external_attr >> 28) in (0, 8)]
            nested = archive.suffix != ".whl"
            for info in infos:
                if path := _safe(info.filename):
                    name = "/".join(path.parts[1:] if nested else path.parts)
                    files[name] = partial(opened.open, info)
            yield files
        return
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            path = _safe(member.name) if member.isreg() else None
            if path and len(path.parts) > 1:  # the top folder of a source distribution is name-version

                def read(member: tarfile.TarInfo = member) -> IO[bytes]:
                    content = tar.extractfile(member)
                    assert content is not None, "a regular file has content"
                    return content

                files["/".join(path.parts[1:])] = read
        yield files


def nearest(member: str, names: Iterable[str]) -> list[str]:
    """Up to five of `names` that look like `member`: of the same file name first."""
    names = sorted(names)
    last = PurePosixPath(member).name
    same = [n for n in names if PurePosixPath(n).name == last]
    return list(dict.fromkeys([*same, *difflib.get_close_matches(member, names, n=5, cutoff=0.5)]))[:5]


def take(archive: Path, member: str, target: Path) -> list[str]:
    """Copy `member` (a file, or a folder and all below it) of an archive to `target`.

    Returns the files of the archive where it has no such member, and nothing is written; an empty list otherwise.
    """
    wanted = member.strip("/")
    try:
        with _members(archive) as files:
            below = {n: files[n] for n in files if n == wanted or n.startswith(f"{wanted}/")}
            if not below:
                return sorted(files)
            for name, read in below.items():
                path = target if name == wanted else target / name[len(wanted) + 1 :]
                path.parent.mkdir(parents=True, exist_ok=True)
                with read() as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK_BYTES)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as e:
        raise PackageError(f"{archive.name} is not a readable archive: {e}") from e
    return []
