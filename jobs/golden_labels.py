"""Labels as their makers write them, as the items of a golden set. Knows formats of labels, no lake and no metric."""

from __future__ import annotations

import csv
import hashlib
import json
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jobs.sources import file_uri, open_filesystem
from jobs.urls import InvalidUrl, canonical_url

Kind = Literal["boxes", "labels", "queries", "copies", "text"]
KINDS: tuple[Kind, ...] = ("boxes", "labels", "queries", "copies", "text")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mp4", ".mov", ".mkv", ".webm")
MEDIUM_BOX, LARGE_BOX = 32**2, 96**2  # pixels: COCO's bounds of small, medium and large


class GoldenError(ValueError):
    """Labels that cannot be read or contradict each other; the message names file, line and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class LabelledBox:
    """One object: its class and x0, y0, x1, y1 as fractions of the upright picture."""

    label: str
    box: tuple[float, float, float, float]
    is_crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item of a golden set as its labels have it; `url` is None for a query."""

    url: str | None = None  # of the document that shows it
    labels: tuple[str, ...] | None = None
    boxes: tuple[LabelledBox, ...] | None = None
    query: str | None = None
    relevant: Mapping[str, float] | None = None  # url -> gain
    copy_group: str | None = None
    text: tuple[str, ...] | None = None
    entities: tuple[str, ...] | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


def read_items(kind: Kind, labels: Path, pictures: str) -> list[Item]:
    """The items of a golden set of a kind; raises GoldenError.

    boxes: `labels` is COCO's instances JSON. labels: a CSV with the columns file and label, or a folder of folders
    named by class. queries: a CSV with query, file and gain. copies: a CSV with file and group. text: JSON lines with
    file, lines and, where they are known, entities. Further columns or keys are slices. A file is a URL, or a name
    below `pictures`, itself a folder or a URL.
    """
    if kind == "labels" and labels.is_dir():
        items = [
            Item(url=_url(str(folder), file.name), labels=(folder.name.lower(),))
            for folder in sorted(labels.iterdir())
            if folder.is_dir()
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in PICTURES
        ]
    elif not labels.is_file():
        raise GoldenError(f"{labels} is not there; the labels of a golden set of kind {kind} are needed")
    elif kind == "boxes":
        items = list(_coco(labels, pictures))
    elif kind == "labels":
        items = list(_labels(_csv(labels, ("file", "label")), pictures))
    elif kind == "queries":
        items = list(_queries(_csv(labels, ("query", "file", "gain")), pictures))
    elif kind == "copies":
        rows = _csv(labels, ("file", "group"))
        items = [Item(url=_url(pictures, row["file"]), copy_group=row["group"], slices=_rest(row, 2)) for row in rows]
    else:
        items = list(_texts(labels, pictures))
    if not items:
        raise GoldenError(f"{labels} holds no items")
    return items


def _url(pictures: str, name: str) -> str:
    """The canonical URL of the document that a name means."""
    try:
        if "://" in name:
            return name if name.startswith("file:") else canonical_url(name).href
        if pictures.startswith(("http://", "https://")):
            return canonical_url(f"{pictures.rstrip('/')}/{urllib.parse.quote(name)}").href
    except InvalidUrl as e:
        raise GoldenError(f"{name!r}: {e}") from e
    folder = pictures if "://" in pictures else str(Path(pictures).expanduser().absolute())
    return file_uri(pictures, f"{open_filesystem(folder)[1].rstrip('/')}/{name}")


def _rest(row: Mapping[str, str], n_known: int) -> dict[str, str]:
    return {key: value for key, value in list(row.items())[n_known:] if value}


def _csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV with the needed columns first."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            raise GoldenError(f"{path} lacks the columns {missing}; it has {list(reader.fieldnames or ())}")
        rows = []
        for row in reader:
            if any(row[name] in (None, "") for name in needed):
                raise GoldenError(f"{path} line {reader.line_num}: {', '.join(needed)} must not be empty")
            rows.append({name: row[name] for name in needed} | {k: v for k, v in row.items() if k not in needed and v})
    return rows


def _labels(rows: Sequence[Mapping[str, str]], pictures: str) -> Iterator[Item]:
    """An item for each file; several lines of one file are labels of which any is right."""
    of_file: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        of_file.setdefault(row["file"], []).append(row)
    for name, found in of_file.items():
        labels = tuple(dict.fromkeys(row["label"].lower() for row in found))
        yield Item(url=_url(pictures, name), labels=labels, slices=_rest(found[0], 2))


def _queries(rows: Sequence[Mapping[str, str]], pictures: str) -> Iterator[Item]:
    """An item for each query, and one for each file that is searched."""
    relevant: dict[str, dict[str, float]] = {}
    slices: dict[str, dict[str, str]] = {}
    urls: dict[str, str] = {}
    for row in rows:
        try:
            gain = float(row["gain"])
        except ValueError:
            raise GoldenError(f"query {row['query']!r}: gain is {row['gain']!r}, a number is needed") from None
        if gain < 0:
            raise GoldenError(f"query {row['query']!r}: gain is {gain:g}, allowed: 0 or more")
        urls[row["file"]] = _url(pictures, row["file"])
        relevant.setdefault(row["query"], {})[row["file"]] = gain
        slices.setdefault(row["query"], _rest(row, 3))
    for query, gains in relevant.items():
        yield Item(query=query, relevant={urls[name]: gain for name, gain in gains.items()}, slices=slices[query])
    for url in dict.fromkeys(urls.values()):
        yield Item(url=url)


def _texts(path: Path, pictures: str) -> Iterator[Item]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            lines, entities = row.pop("lines"), row.pop("entities", None)
            url = _url(pictures, row.pop("file"))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            if isinstance(e, GoldenError):
                raise
            raise GoldenError(f"{path} line {number}: an object with file, lines and entities is needed ({e})") from e
        yield Item(
            url=url,
            text=tuple(map(str, lines)),
            entities=None if entities is None else tuple(map(str, entities)),
            slices={key: str(value) for key, value in row.items()},
        )


def _coco(path: Path, pictures: str) -> Iterator[Item]:
    """Items of COCO's instances JSON; slices: the size of the picture's smallest box."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: str(category["name"]).lower() for category in stated["categories"]}
        of_image: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in stated["images"]}
        for annotation in stated["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        for image in stated["images"]:
            found = of_image[image["id"]]
            yield Item(
                url=_url(pictures, image["file_name"]),
                boxes=tuple(_box(annotation, image, names) for annotation in found),
                slices={"smallest_object": _size(min(float(a["area"]) for a in found))} if found else {},
            )
    except (ValueError, KeyError, TypeError) as e:
        if isinstance(e, GoldenError):
            raise
        raise GoldenError(f"{path} is not COCO's instances JSON: {type(e).__name__}: {e}") from e


def _box(annotation: Mapping[str, Any], image: Mapping[str, Any], names: Mapping[Any, str]) -> LabelledBox:
    x, y, width, height = annotation["bbox"]
    sides = (image["width"], image["height"]) * 2
    corners = [
        min(1.0, max(0.0, value / side)) for value, side in zip((x, y, x + width, y + height), sides, strict=True)
    ]
    return LabelledBox(
        label=names[annotation["category_id"]],
        box=(corners[0], corners[1], corners[2], corners[3]),
        is_crowd=bool(annotation.get("iscrowd", 0)),
    )


def _size(area: float) -> str:
    return "small" if area < MEDIUM_BOX else "medium" if area < LARGE_BOX else "large"


def item_id(item: Item, media_ids: Mapping[str, str]) -> str:
    """The media's id, or a digest of the query."""
    if item.url is not None:
        return media_ids[item.url]
    return hashlib.sha256(f"query:{item.query}".encode()).hexdigest()


def one_item_for_each_media(items: Sequence[Item], media_ids: Mapping[str, str]) -> list[Item]:
    """`items` without repeats of the same bytes, which of copies are one item too.

    Raises GoldenError where two documents of equal bytes are labelled differently.
    """
    kept: dict[str, Item] = {}
    for item in items:
        key = item_id(item, media_ids)
        if key in kept and replace(item, url=kept[key].url, slices={}) != replace(kept[key], slices={}):
            raise GoldenError(f"{item.url} and {kept[key].url} are the same bytes with different labels")
        kept.setdefault(key, item)
    return list(kept.values())


def golden_rows(
    name: str, kind: Kind, items: Sequence[Item], media_ids: Mapping[str, str], card: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of `golden` without their version, in the order of item_id; the card says their number and digest."""
    rows: list[dict[str, Any]] = []
    for item in one_item_for_each_media(items, media_ids):
        relevant = None
        if item.relevant is not None:
            gains: dict[str, float] = {}
            for url, gain in item.relevant.items():
                gains[media_ids[url]] = max(gain, gains.get(media_ids[url], 0.0))
            relevant = [{"media_id": media_id, "gain": gain} for media_id, gain in sorted(gains.items())]
        rows.append(
            {
                "golden_set": name,
                "item_id": item_id(item, media_ids),
                "kind": kind,
                "media_id": media_ids[item.url] if item.url is not None else None,
                "url": item.url,
                "labels": None if item.labels is None else list(item.labels),
                "boxes": None if item.boxes is None else [asdict(box) | {"box": list(box.box)} for box in item.boxes],
                "query": item.query,
                "relevant": relevant,
                "copy_group": item.copy_group,
                "text": None if item.text is None else list(item.text),
                "entities": None if item.entities is None else list(item.entities),
                "slices": dict(item.slices),
            }
        )
    rows.sort(key=lambda row: str(row["item_id"]))
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    described = json.dumps({**card, "kind": kind, "items": len(rows), "sha256": digest}, sort_keys=True)
    return [{**row, "card": described} for row in rows]
