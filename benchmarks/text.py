"""Rows B14 and B15, measured together: text in pictures, against RapidOCR called in a plain loop. Links no entity."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.row import Row, machine, not_measured
from featurizers.entity_ocr import OCR_WEIGHTS, SPECS, Line, load_reader
from featurizers.spec import Image
from featurizers.weights import fetch

SIGNS = Path(__file__).parent.parent / "build" / "sample" / "site" / "signs"
READABLE_SCORE, READABLE_CHARACTERS = 0.8, 3  # a line counts where RapidOCR reads that much
REACH = {"B14": 1.2, "B15": 3.0}
REACH_SHARE = 0.85  # of RapidOCR's lines that B15 is to keep
WHAT = {
    "B14": "text of signs, pages and photographs by `rapidocr`, against RapidOCR in a plain loop",
    "B15": "the same by `rapidocr_gated`",
}


def readable(lines: Sequence[Line]) -> list[str]:
    """The texts of the lines that count, in order."""
    return [x.text for x in lines if x.score >= READABLE_SCORE and len(x.text.strip()) >= READABLE_CHARACTERS]


def pictures() -> Iterator[Image]:
    """The signs and pages of the sample media, then the photographs of LAKELENS_DEV_DATA, by name."""
    from featurizers.decode import decode_image

    folders = [SIGNS, *(Path(folder) for folder in [os.environ.get("LAKELENS_DEV_DATA")] if folder)]
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png")):
            yield decode_image(path.read_bytes(), max_pixels=50_000_000)


def plainly() -> Callable[[Image], list[Line]]:
    """RapidOCR as its documentation calls it, on one thread; its boxes are left out."""
    from rapidocr import RapidOCR

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    engine = RapidOCR(params={"Global.log_level": "error", **threads})

    def read(image: Image) -> list[Line]:
        found = engine(np.ascontiguousarray(image[:, :, ::-1]))
        scored = zip(found.txts or (), found.scores or (), strict=True)
        return [Line(text, float(score), (0, 0, 0, 0)) for text, score in scored]

    return read


@contextmanager
def network_seconds() -> Iterator[list[float]]:
    """While the block runs: the CPU seconds that ONNX Runtime's sessions take, as the one number of a list."""
    import onnxruntime

    spent, run = [0.0], onnxruntime.InferenceSession.run

    def counted(*arguments: Any, **options: Any) -> Any:
        started = time.process_time()
        answer = run(*arguments, **options)
        spent[0] += time.process_time() - started
        return answer

    onnxruntime.InferenceSession.run = counted
    try:
        yield spent
    finally:
        onnxruntime.InferenceSession.run = run


def rows() -> list[Row]:
    """B14 and B15, picture by picture in turn, process CPU seconds."""
    if not SIGNS.is_dir():
        reason = f"{SIGNS} is not there; run make setup"
        return [not_measured(i, WHAT[i], unit="cpu_s/image", reach=REACH[i], reason=reason) for i in WHAT]
    weights = {w.name: fetch(w.uri, w.sha256) for w in OCR_WEIGHTS}
    readers = [plainly(), *(load_reader(spec, weights) for spec in SPECS)]
    spent, in_networks = [0.0] * len(readers), [0.0] * len(readers)
    n_pictures = n_lines = n_same = 0
    n_kept = [0] * len(readers)
    for picture in pictures():
        found = []
        for i, read in enumerate(readers):
            with network_seconds() as seconds_there:
                started = time.process_time()
                found.append(read(picture))
                spent[i] += time.process_time() - started
            in_networks[i] += seconds_there[0]
        n_pictures += 1
        n_lines += len(readable(found[0]))
        n_same += [line.text for line in found[1]] == [line.text for line in found[0]]
        for i, lines in enumerate(found):
            left = readable(found[0])
            n_kept[i] += sum(text in left and left.remove(text) is None for text in readable(lines))
    shares = [round(there / seconds, 3) for there, seconds in zip(in_networks, spent, strict=True)]
    settings = {"n_images": n_pictures, "readable_lines": n_lines, "peer_share_in_networks": shares[0], **machine()}
    more: list[dict[str, object]] = [
        {"pictures_with_the_same_lines": n_same, "share_in_networks": shares[1]},
        {
            "share_in_networks": shares[2],
            "share_of_lines": round(n_kept[2] / max(1, n_lines), 3),
            "reach_share_of_lines": REACH_SHARE,
        },
    ]
    return [
        Row(
            id=row_id,
            what=WHAT[row_id],
            unit="cpu_s/image",
            ours=round(seconds / n_pictures, 3),
            peer=round(spent[0] / n_pictures, 3),
            ratio=round(spent[0] / seconds, 2),
            reach=REACH[row_id],
            peer_version="rapidocr 3.10.0",
            settings={**settings, **extra},
        )
        for row_id, seconds, extra in zip(WHAT, spent[1:], more, strict=True)
    ]
