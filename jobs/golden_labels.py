"""`lakelens golden`: labelled files to versions of golden sets. Knows formats of labels, no metric and no model."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

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
    """One item of a golden set; `file` is None for a query."""

    file: Path | None = None
    labels: tuple[str, ...] | None = None
    boxes: tuple[LabelledBox, ...] | None = None
    query: str | None = None
    relevant: Mapping[str, float] | None = None  # file name -> gain
    copy_group: str | None = None
    text: tuple[str, ...] | None = None
    entities: tuple[str, ...] | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


def read_items(kind: Kind, labels: Path, pictures: Path) -> list[Item]:
    """The items of a golden set of a kind; raises GoldenError.

    boxes: `labels` is COCO's instances JSON. labels: a CSV with the columns file and label, or a folder of folders
    named by class. queries: a CSV with query, file and gain. copies: a CSV with file and group. text: JSON lines with
    file, lines and entities. Further columns or keys are slices. File names are relative to `pictures`.
    """
    if kind == "boxes":
        items = list(_coco(labels, pictures))
    elif kind == "labels" and labels.is_dir():
        items = [
            Item(file=file, labels=(folder.name,))
            for folder in sorted(labels.iterdir())
            if folder.is_dir()
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in PICTURES
        ]
    elif kind == "labels":
        items = list(_labels(_csv(labels, ("file", "label")), pictures))
    elif kind == "queries":
        items = list(_queries(_csv(labels, ("query", "file", "gain")), pictures))
    elif kind == "copies":
        rows = _csv(labels, ("file", "group"))
        items = [Item(file=_file(pictures, row["file"]), copy_group=row["group"], slices=_rest(row, 2)) for row in rows]
    else:
        items = list(_texts(labels, pictures))
    if not items:
        raise GoldenError(f"{labels} holds no items")
    return items


def _file(pictures: Path, name: str) -> Path:
    file = pictures / name
    if not file.is_file():
        raise GoldenError(f"{file} is not there; file names are relative to {pictures}")
    return file


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


def _labels(rows: Sequence[Mapping[str, str]], pictures: Path) -> Iterator[Item]:
    """An item for each file; several lines of one file are labels of which any is right."""
    of_file: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        of_file.setdefault(row["file"], []).append(row)
    for name, found in of_file.items():
        labels = tuple(dict.fromkeys(row["label"].lower() for row in found))
        yield Item(file=_file(pictures, name), labels=labels, slices=_rest(found[0], 2))


def _queries(rows: Sequence[Mapping[str, str]], pictures: Path) -> Iterator[Item]:
    """An item for each query, and one for each file that is searched."""
    relevant: dict[str, dict[str, float]] = {}
    slices: dict[str, dict[str, str]] = {}
    files: dict[str, Path] = {}
    for row in rows:
        try:
            gain = float(row["gain"])
        except ValueError:
            raise GoldenError(f"query {row['query']!r}: gain is {row['gain']!r}, a number is needed") from None
        if gain < 0:
            raise GoldenError(f"query {row['query']!r}: gain is {gain:g}, allowed: 0 or more")
        files[row["file"]] = _file(pictures, row["file"])
        relevant.setdefault(row["query"], {})[row["file"]] = gain
        slices.setdefault(row["query"], _rest(row, 3))
    for query, gains in relevant.items():
        yield Item(query=query, relevant={str(files[name]): gain for name, gain in gains.items()}, slices=slices[query])
    for file in files.values():
        yield Item(file=file)


def _texts(path: Path, pictures: Path) -> Iterator[Item]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            lines, entities = row.pop("lines"), row.pop("entities", None)
            file = _file(pictures, row.pop("file"))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            if isinstance(e, GoldenError):
                raise
            raise GoldenError(f"{path} line {number}: an object with file, lines and entities is needed ({e})") from e
        yield Item(
            file=file,
            text=tuple(map(str, lines)),
            entities=None if entities is None else tuple(map(str, entities)),
            slices={key: str(value) for key, value in row.items()},
        )


def _coco(path: Path, pictures: Path) -> Iterator[Item]:
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
                file=_file(pictures, image["file_name"]),
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


def item_id(item: Item, media_ids: Mapping[Path, str]) -> str:
    """The media's id, or a digest of the query."""
    if item.file is not None:
        return media_ids[item.file]
    return hashlib.sha256(f"query:{item.query}".encode()).hexdigest()


def one_item_for_each_media(items: Sequence[Item], media_ids: Mapping[Path, str]) -> list[Item]:
    """`items` without repeats of the same bytes; raises GoldenError where two files of equal bytes are labelled
    differently."""
    kept: dict[str, Item] = {}
    for item in items:
        key = item_id(item, media_ids)
        if key in kept and replace(item, file=kept[key].file) != kept[key]:
            raise GoldenError(f"{item.file} and {kept[key].file} are the same bytes with different labels")
        kept.setdefault(key, item)
    return list(kept.values())
