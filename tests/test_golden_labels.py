"""Labels become items as they stand, and what is wrong with them is said by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.golden import GoldenError, Item, LabelledBox, one_item_for_each_media, read_items


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three files named like pictures."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def labels(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_coco_boxes_become_fractions_with_the_size_of_the_smallest_as_a_slice(pictures: Path) -> None:
    stated = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 200], "area": 2000, "iscrowd": 0},
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "Dog"}, {"id": 2, "name": "person"}],
    }
    [item] = read_items("boxes", labels(pictures, json.dumps(stated), "instances.json"), pictures)
    assert item.file == pictures / "a.jpg" and item.slices == {"smallest_object": "small"}
    assert item.boxes == (
        LabelledBox(label="dog", box=(0.1, 0.1, 0.6, 1.0)),
        LabelledBox(label="person", box=(0.0, 0.0, 0.05, 0.1), is_crowd=True),
    )


def test_several_lines_of_a_file_are_labels_of_which_any_is_right(pictures: Path) -> None:
    file = labels(pictures, "file,label,camera\na.jpg,Cat,x\nb.jpg,dog,\na.jpg,tabby,x\n")
    assert read_items("labels", file, pictures) == [
        Item(file=pictures / "a.jpg", labels=("cat", "tabby"), slices={"camera": "x"}),
        Item(file=pictures / "b.jpg", labels=("dog",)),
    ]


def test_folders_are_classes(pictures: Path) -> None:
    (pictures / "classes" / "cat").mkdir(parents=True)
    (pictures / "classes" / "cat" / "1.jpg").touch()
    (pictures / "classes" / "cat" / "notes.txt").touch()
    [item] = read_items("labels", pictures / "classes", pictures / "classes")
    assert item.labels == ("cat",)


def test_queries_become_items_beside_the_files_they_search(pictures: Path) -> None:
    file = labels(pictures, "query,file,gain\na cat,a.jpg,2\na cat,b.jpg,0\na dog,c.jpg,1\n")
    found = read_items("queries", file, pictures)
    assert [(item.query, len(item.relevant or {})) for item in found if item.query] == [("a cat", 2), ("a dog", 1)]
    assert [item.file for item in found if item.file] == [pictures / name for name in ("a.jpg", "b.jpg", "c.jpg")]


def test_copies_and_texts_are_read(pictures: Path) -> None:
    groups = read_items("copies", labels(pictures, "file,group\na.jpg,1\nb.jpg,1\n"), pictures)
    assert [item.copy_group for item in groups] == ["1", "1"]
    line = json.dumps({"file": "a.jpg", "lines": ["BERLIN"], "entities": ["city:2950159"], "source": "signs"})
    [sign] = read_items("text", labels(pictures, f"{line}\n\n", "text.jsonl"), pictures)
    assert (sign.text, sign.entities, sign.slices) == (("BERLIN",), ("city:2950159",), {"source": "signs"})


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("labels", "file,class\na.jpg,cat\n", r"lacks the columns \['label'\]; it has \['file', 'class'\]"),
        ("labels", "file,label\na.jpg,\n", "line 2: file, label must not be empty"),
        ("labels", "file,label\nz.jpg,cat\n", "z.jpg is not there"),
        ("labels", "file,label\n", "holds no items"),
        ("queries", "query,file,gain\nx,a.jpg,much\n", "gain is 'much', a number is needed"),
        ("queries", "query,file,gain\nx,a.jpg,-1\n", "gain is -1, allowed: 0 or more"),
        ("text", '{"file": "a.jpg"}\n', "line 1: an object with file, lines and entities is needed"),
        ("text", "[]\n", "line 1: an object with file, lines and entities is needed"),
        ("boxes", "{}", "is not COCO's instances JSON: KeyError: 'categories'"),
        ("boxes", "no json", "is not COCO's instances JSON"),
    ],
)
def test_wrong_labels_are_refused_by_file_and_line(kind: str, text: str, said: str, pictures: Path) -> None:
    with pytest.raises(GoldenError, match=said):
        read_items(kind, labels(pictures, text), pictures)  # type: ignore[arg-type]


def test_equal_bytes_are_one_item_and_must_agree(pictures: Path) -> None:
    a, b = pictures / "a.jpg", pictures / "b.jpg"
    same = {a: "1" * 64, b: "1" * 64}
    assert one_item_for_each_media([Item(file=a, labels=("cat",)), Item(file=b, labels=("cat",))], same) == [
        Item(file=a, labels=("cat",))
    ]
    with pytest.raises(GoldenError, match=r"b\.jpg and .*a\.jpg are the same bytes with different labels"):
        one_item_for_each_media([Item(file=a, labels=("cat",)), Item(file=b, labels=("dog",))], same)
