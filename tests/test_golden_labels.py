"""Labels become items as they stand, and what is wrong with them is said by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.golden_labels import GoldenError, Item, LabelledBox, golden_rows, one_item_for_each_media, read_items

PICTURES = "https://pictures.example/of"
A, B, C = (f"{PICTURES}/{name}.jpg" for name in "abc")


def labels(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_coco_boxes_become_fractions_with_the_size_of_the_smallest_as_a_slice(tmp_path: Path) -> None:
    stated = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 200], "area": 2000, "iscrowd": 0},
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "Dog"}, {"id": 2, "name": "person"}],
    }
    [item] = read_items("boxes", labels(tmp_path, json.dumps(stated), "instances.json"), PICTURES)
    assert item.url == A and item.slices == {"smallest_object": "small"}
    assert item.boxes == (
        LabelledBox(label="dog", box=(0.1, 0.1, 0.6, 1.0)),
        LabelledBox(label="person", box=(0.0, 0.0, 0.05, 0.1), is_crowd=True),
    )


def test_several_lines_of_a_file_are_labels_of_which_any_is_right(tmp_path: Path) -> None:
    file = labels(tmp_path, "file,label,camera\na.jpg,Cat,x\nb.jpg,dog,\na.jpg,tabby,x\n")
    assert read_items("labels", file, PICTURES) == [
        Item(url=A, labels=("cat", "tabby"), slices={"camera": "x"}),
        Item(url=B, labels=("dog",)),
    ]


def test_folders_are_classes(tmp_path: Path) -> None:
    folder = tmp_path / "Cat"
    folder.mkdir()
    (folder / "1 of 2.jpg").touch()
    (folder / "notes.txt").touch()
    [item] = read_items("labels", tmp_path, str(tmp_path))
    assert item == Item(url=f"{folder.as_uri()}/1%20of%202.jpg", labels=("cat",))


def test_queries_become_items_beside_the_files_they_search(tmp_path: Path) -> None:
    file = labels(tmp_path, "query,file,gain\na cat,a.jpg,2\na cat,b.jpg,0\na dog,c.jpg,1\n")
    found = read_items("queries", file, PICTURES)
    assert [(item.query, len(item.relevant or {})) for item in found if item.query] == [("a cat", 2), ("a dog", 1)]
    assert [item.url for item in found if item.url] == [A, B, C]


def test_copies_and_texts_are_read(tmp_path: Path) -> None:
    groups = read_items("copies", labels(tmp_path, "file,group\na.jpg,1\nb.jpg,1\n"), PICTURES)
    assert [item.copy_group for item in groups] == ["1", "1"]
    line = json.dumps({"file": "a.jpg", "lines": ["BERLIN"], "entities": ["city:2950159"], "source": "signs"})
    [sign] = read_items("text", labels(tmp_path, f"{line}\n\n", "text.jsonl"), PICTURES)
    assert (sign.text, sign.entities, sign.slices) == (("BERLIN",), ("city:2950159",), {"source": "signs"})


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("labels", "file,class\na.jpg,cat\n", r"lacks the columns \['label'\]; it has \['file', 'class'\]"),
        ("labels", "file,label\na.jpg,\n", "line 2: file, label must not be empty"),
        ("labels", "file,label\nftp://x/a.jpg,cat\n", "scheme 'ftp:' is not one of http:, https:"),
        ("labels", "file,label\n", "holds no items"),
        ("queries", "query,file,gain\nx,a.jpg,much\n", "gain is 'much', a number is needed"),
        ("queries", "query,file,gain\nx,a.jpg,-1\n", "gain is -1, allowed: 0 or more"),
        ("text", '{"file": "a.jpg"}\n', "line 1: an object with file, lines and entities is needed"),
        ("text", "[]\n", "line 1: an object with file, lines and entities is needed"),
        ("boxes", "{}", "is not COCO's instances JSON: KeyError: 'categories'"),
        ("boxes", "no json", "is not COCO's instances JSON"),
    ],
)
def test_wrong_labels_are_refused_by_file_and_line(kind: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match=said):
        read_items(kind, labels(tmp_path, text), PICTURES)  # type: ignore[arg-type]


def test_a_name_is_below_the_pictures_a_folder_or_a_url_or_a_url_itself(tmp_path: Path) -> None:
    file = labels(tmp_path, "file,group\nsub/a b.jpg,1\nhttps://Other.example/x.jpg#top,1\n")
    urls = {
        pictures: [item.url for item in read_items("copies", file, pictures)] for pictures in (PICTURES, "/data/x/")
    }
    assert urls[PICTURES] == [f"{PICTURES}/sub/a%20b.jpg", "https://other.example/x.jpg"]
    assert urls["/data/x/"] == ["file:///data/x/sub/a%20b.jpg", "https://other.example/x.jpg"]


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match=r"none\.csv is not there; the labels of a golden set of kind copies"):
        read_items("copies", tmp_path / "none.csv", PICTURES)


def test_equal_bytes_are_one_item_and_must_agree() -> None:
    same = {A: "1" * 64, B: "1" * 64}
    assert one_item_for_each_media([Item(url=A, labels=("cat",)), Item(url=B, labels=("cat",))], same) == [
        Item(url=A, labels=("cat",))
    ]
    with pytest.raises(GoldenError, match=r"b\.jpg and .*a\.jpg are the same bytes with different labels"):
        one_item_for_each_media([Item(url=A, labels=("cat",)), Item(url=B, labels=("dog",))], same)


def test_rows_name_media_and_the_card_their_number_and_digest_whatever_the_order() -> None:
    media_ids = {A: "1" * 64, B: "2" * 64, C: "2" * 64}
    items = [
        Item(query="a cat", relevant={A: 1.0, B: 0.0, C: 0.5}, slices={"words": "two"}),
        *(Item(url=url) for url in (A, B, C)),
    ]
    rows = golden_rows("cats", "queries", items, media_ids, {"licence": "CC0"})
    assert [row["media_id"] for row in rows if row["query"] is None] == ["1" * 64, "2" * 64]
    [query] = [row for row in rows if row["query"]]
    assert query["relevant"] == [{"media_id": "1" * 64, "gain": 1.0}, {"media_id": "2" * 64, "gain": 0.5}]
    card = json.loads(rows[0]["card"])
    assert (card["licence"], card["kind"], card["items"]) == ("CC0", "queries", 3)
    assert (
        golden_rows("cats", "queries", items[::-1], media_ids, {"licence": "CC0"})[0]["item_id"] == rows[0]["item_id"]
    )
