"""Text in pictures and the entities it names: RapidOCR, then the linker. Knows no captions and no tables."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.device import threads
from featurizers.linking import LINKER_SETTINGS, LINKER_SPEC, load_linker
from featurizers.minilm import MINILM_DIM
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, Weights, no_features

_SOURCE = "RapidAI/RapidOCR 3.10; PP-OCRv6 small, PaddlePaddle/PaddleOCR"


def _model(name: str, file: str, sha256: str) -> Weights:
    return Weights(
        name=name,
        uri=f"pypi://rapidocr==3.10.0/rapidocr/models/{file}",
        sha256=sha256,
        licence="Apache-2.0",
        source=_SOURCE,
    )


OCR_WEIGHTS: tuple[Weights, ...] = (
    _model(
        "text_detector",
        "PP-OCRv6_det_small.onnx",
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    ),
    _model(
        "text_recognizer",
        "PP-OCRv6_rec_small.onnx",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
    _model(
        "text_direction",
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
)


# The detector enlarges the short side to 736 pixels: a strip of 1 x 500 would become 28 million pixels, and minutes.
# Thinner pictures hold no line of text; they are left out, in which alone the plain variant differs from RapidOCR.
MIN_SIDE_PX = 12
MAX_ASPECT = 20.0


def _spec(variant: str, *settings: tuple[str, str | int | float | bool]) -> FeaturizerSpec:
    return FeaturizerSpec(
        family="entity_ocr",
        variant=variant,
        version=1,
        kind="entity",
        dim=MINILM_DIM,
        image_size=0,
        fit="native",
        batch_size=8,
        weights=(*OCR_WEIGHTS, *LINKER_SPEC.weights),
        settings=(*LINKER_SETTINGS, ("min_side_px", MIN_SIDE_PX), ("max_aspect", MAX_ASPECT), *settings),
    )


SPECS: tuple[FeaturizerSpec, ...] = (
    # RapidOCR as called plainly: its own lowest line score and nothing dropped besides.
    _spec("rapidocr", ("min_score", 0.5), ("min_letters", 0)),
    # A first look of the detector at a small copy of the picture; then only around what it finds there, enlarged no
    # further than that text needs. Measured on 116 pictures by benchmarks/text.py: .87 of the lines at .23 of the cost.
    # With box score .3, text enlarged to 48 / 80 / 112 pixels: .85 at .19, .86 at .26, .87 at .29; as far as the plain
    # variant does: .88 at .34; the whole of each picture in which the first look finds text: .93 at .70.
    _spec(
        "rapidocr_gated",
        ("min_score", 0.5),
        ("min_letters", 2),
        ("gate_side_px", 256),
        ("gate_box_score", 0.2),
        ("gate_margin_px", 16),  # of the small copy
        ("gate_text_px", 64),  # height of the smallest text of a region, as the detector sees it the second time
    ),
)

Region = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the last two exclusive
ReadLines = Callable[[Image], "list[Line]"]


@dataclass(frozen=True)
class Line:
    """A line of text in a picture."""

    text: str
    score: float  # in [0, 1]
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 around it, as fractions of the picture


def load(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Extract:
    """Each text line is a feature (text, box, score, text vector, no label); each entity linked in it is another one
    behind it (label = catalogue id, text = surface form, the line's box, the entity's vector).

    Runs on the CPU whatever the device: the models are small and most pictures hold no text.
    """
    read = load_reader(spec, weights)
    linker = load_linker(weights)
    encode = linker.encode

    def extract(images: Sequence[Image]) -> Features:
        rows: list[tuple[int, NDArray[np.float32], str | None, float, tuple[float, ...], str]] = []
        for index, image in enumerate(images):
            lines = read(image)
            links = linker.link([line.text for line in lines], cased=False)
            vectors = encode([line.text for line in lines]) if lines else ()
            for line, vector, linked in zip(lines, vectors, links, strict=True):
                rows.append((index, vector, None, line.score, line.box, line.text))
                rows.extend((index, k.vector, k.id, k.score * line.score, line.box, k.surface) for k in linked)
        if not rows:
            return no_features(spec)
        image_of, vector_of, label, score, box, text = zip(*rows, strict=True)
        return Features(
            image=np.array(image_of, np.int32),
            vector=np.stack(vector_of).astype(np.float32),
            label=label,
            score=np.array(score, np.float32),
            box=np.array(box, np.float32),
            text=text,
        )

    return extract


def load_reader(spec: FeaturizerSpec, weights: Mapping[str, Path]) -> ReadLines:
    """A function from a picture to its lines, top to bottom; without linking.

    With the settings gate_*, lines are looked for in the regions alone where the detector finds a box of gate_box_score
    on a copy whose longest side is gate_side_px.
    """
    from rapidocr import RapidOCR

    engine: Any = RapidOCR(
        params={
            "Det.model_path": str(weights["text_detector"]),
            "Rec.model_path": str(weights["text_recognizer"]),
            "Cls.model_path": str(weights["text_direction"]),
            "EngineConfig.onnxruntime.intra_op_num_threads": threads(),
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Global.log_level": "error",
        }
    )
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    settings = spec.setting
    min_score, min_letters = float(settings["min_score"]), int(settings["min_letters"])
    if "gate_side_px" in settings:
        engine.text_det = _gated(engine._load_det_model(), settings)

    def read(image: Image) -> list[Line]:
        short, long = sorted(image.shape[:2])
        if short < MIN_SIDE_PX or long > MAX_ASPECT * short:
            return []
        bgr = np.ascontiguousarray(image[:, :, ::-1])  # arrays are taken as OpenCV's channel order
        found = engine(bgr)
        if found.txts is None or found.boxes is None:
            return []
        size = np.array([image.shape[1], image.shape[0]], np.float32)
        lines = []
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            if score < min_score or sum(c.isalnum() for c in text) < min_letters:
                continue
            (x0, y0), (x1, y1) = (np.clip(edge / size, 0, 1).tolist() for edge in (corners.min(0), corners.max(0)))
            lines.append(Line(text, min(float(score), 1.0), (x0, y0, x1, y1)))
        return lines

    return read


def _gated(detector: Any, settings: Mapping[str, Any]) -> Callable[[NDArray[np.uint8]], Any]:
    """What RapidOCR calls in place of its `detector`: the same in the regions of a first look, at a scale that fits."""
    import cv2
    from rapidocr.ch_ppocr_det import TextDetOutput

    side, margin = int(settings["gate_side_px"]), int(settings["gate_margin_px"])
    text_px = float(settings["gate_text_px"])
    glance = copy.copy(detector)
    glance.limit_side_len, glance.limit_type = side, "max"
    glance.postprocess_op = copy.copy(detector.postprocess_op)
    glance.postprocess_op.box_thresh = float(settings["gate_box_score"])

    def detect(picture: NDArray[np.uint8]) -> Any:
        height, width = picture.shape[:2]
        shrink = min(1.0, side / max(height, width))
        small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        seen = glance(cv2.resize(picture, small, interpolation=cv2.INTER_AREA)).boxes  # (N, 4, 2) corners
        if seen is None:
            return TextDetOutput()
        low = np.maximum(0, np.floor((seen.min(axis=1) - margin) / shrink)).astype(int)
        high = np.minimum((width, height), np.ceil((seen.max(axis=1) + margin) / shrink)).astype(int)
        text_height = np.linalg.norm(seen[:, [1, 3]] - seen[:, :1], axis=2).min(axis=1) / shrink
        full = max(1.0, detector.limit_side_len / min(height, width))  # the scale of the plain variant
        boxes, scores = [], []
        for x0, y0, x1, y1 in disjoint_regions(np.hstack([low, high]).tolist()):
            inside = (low >= (x0, y0)).all(axis=1) & (high <= (x1, y1)).all(axis=1)
            scale = min(full, text_px / text_height[inside].min())
            found = _at_scale(detector, scale, x1 - x0, y1 - y0)(np.ascontiguousarray(picture[y0:y1, x0:x1]))
            if found.boxes is not None:
                boxes.append(found.boxes + np.array([x0, y0], np.float32))
                scores += found.scores
        if not boxes:
            return TextDetOutput()
        return TextDetOutput(picture, detector.sorted_boxes(np.concatenate(boxes)), scores)

    return detect


def _at_scale(detector: Any, scale: float, width: int, height: int) -> Any:
    """`detector` as it resizes a picture of `width` x `height` by `scale`."""
    scaled = copy.copy(detector)
    if scale >= 1:
        scaled.limit_type, scaled.limit_side_len = "min", round(scale * min(width, height))
    else:
        scaled.limit_type, scaled.limit_side_len = "max", max(1, round(scale * max(width, height)))
    return scaled


def disjoint_regions(regions: Sequence[Region]) -> list[Region]:
    """`regions` with any two that overlap replaced by the one around both, until none do."""
    apart: list[Region] = []
    for region in regions:
        x0, y0, x1, y1 = region
        while touching := [r for r in apart if x0 < r[2] and r[0] < x1 and y0 < r[3] and r[1] < y1]:
            apart = [r for r in apart if r not in touching]
            x0, y0 = min(x0, *(r[0] for r in touching)), min(y0, *(r[1] for r in touching))
            x1, y1 = max(x1, *(r[2] for r in touching)), max(y1, *(r[3] for r in touching))
        apart.append((x0, y0, x1, y1))
    return apart
