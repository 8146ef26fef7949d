"""Text lines kept and their cost, and how well names are linked: `python -m benchmarks.quality_entities [--data DIR]`.

Prints figures and asserts nothing. Items of the test half of the golden set are never printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from featurizers.entity_ocr import OCR_WEIGHTS, SPECS, Line, load_reader
from featurizers.linking import LINKER_SPEC, Linker, load_linker
from featurizers.spec import Image
from featurizers.weights import fetch

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "data"
SIGNS = ROOT / "build" / "sample" / "site" / "signs"
PLACES = ("country:", "subdivision:", "city:")
READABLE_SCORE, READABLE_CHARACTERS = 0.8, 3  # a line counts where the plain variant reads that much


def readable(lines: Sequence[Line]) -> list[str]:
    """The texts of the lines that count, in order."""
    return [x.text for x in lines if x.score >= READABLE_SCORE and len(x.text.strip()) >= READABLE_CHARACTERS]


def timed(read: Callable[[Image], list[Line]], picture: Image) -> tuple[list[str], float]:
    """The lines of a picture that count, and the CPU seconds they took."""
    start = time.process_time()
    lines = read(picture)
    return readable(lines), time.process_time() - start


def pictures(folders: Sequence[Path], n_each: int) -> Iterator[tuple[str, Image]]:
    """The first pictures of each folder, by name."""
    from featurizers.decode import decode_image

    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))[:n_each]:
            yield path.name, decode_image(path.read_bytes(), max_pixels=50_000_000)


def reading(folders: Sequence[Path], n_each: int) -> None:
    """Print lines read and CPU seconds of both variants over the same pictures, picture by picture in turn, and in how
    many of them the plain one reads exactly what RapidOCR reads when it is called plainly."""
    from rapidocr import RapidOCR

    weights = {w.name: fetch(w.uri, w.sha256) for w in OCR_WEIGHTS}
    plain, gated = (load_reader(spec, weights) for spec in SPECS)
    bare = RapidOCR(params={"Global.log_level": "error"})
    n_pictures = n_plain = n_kept = n_same = 0
    plain_s = gated_s = 0.0
    for _, picture in pictures(folders, n_each):
        started = time.process_time()
        read = plain(picture)
        lines, seconds = readable(read), time.process_time() - started
        n_same += [line.text for line in read] == list(bare(picture[:, :, ::-1]).txts or ())
        kept, gated_seconds = timed(gated, picture)
        left = list(lines)
        n_kept += sum(text in left and left.remove(text) is None for text in kept)
        n_pictures, n_plain = n_pictures + 1, n_plain + len(lines)
        plain_s, gated_s = plain_s + seconds, gated_s + gated_seconds
    if not n_pictures:
        print(f"text: no pictures in {', '.join(map(str, folders)) or 'no folder'}; run make setup or give --data")
        return
    share = f"{n_kept / n_plain:.2f}" if n_plain else "-"
    print(f"text: {n_pictures} pictures, {n_plain} readable lines; CPU seconds a picture {plain_s / n_pictures:.2f}")
    print(f"text, plain: the same lines as RapidOCR called plainly in {n_same} of {n_pictures} pictures")
    print(f"text, gated: {share} of the lines, {gated_s / plain_s:.2f} of the cost ({gated_s / n_pictures:.2f} s)")


def linking(linker: Linker, half: str) -> None:
    """Print precision and recall of a half of the golden set: sets of ids per item, summed over the items."""
    items = [json.loads(x) for x in (GOLDEN / f"entity_linking_{half}.jsonl").read_text("utf-8").splitlines()]
    start = time.process_time()
    found = [{k.id for k in linker.link([i["text"]], cased=i["source"] != "ocr")[0]} for i in items]
    milliseconds = 1000 * (time.process_time() - start) / len(items)
    for kind, prefixes in (("places", PLACES), ("all types", ("",))):
        right = given = expected = 0
        for item, got in zip(items, found, strict=True):
            g, w = ({i for i in ids if i.startswith(prefixes)} for ids in (got, set(item["expected"])))
            right, given, expected = right + len(g & w), given + len(g), expected + len(w)
        precision, recall = right / max(given, 1), right / max(expected, 1)
        print(f"linking, {half}, {kind}: precision {precision:.3f}, recall {recall:.3f} ({expected} expected)")
    print(f"linking, {half}: {len(items)} texts, {milliseconds:.1f} ms CPU a text")


def main(arguments: list[str]) -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality_entities", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("LAKELENS_DEV_DATA"), help="folder of labelled photos")
    parser.add_argument("--n", type=int, default=16, help="pictures of each folder")
    parser.add_argument("--half", action="append", choices=["dev", "test"], help="of the golden set; both by default")
    parser.add_argument("--skip", action="append", default=[], choices=["text", "linking"])
    asked = parser.parse_args(arguments)
    if "linking" not in asked.skip:
        linker = load_linker({w.name: fetch(w.uri, w.sha256) for w in LINKER_SPEC.weights})
        for half in asked.half or ["dev", "test"]:
            linking(linker, half)
    if "text" not in asked.skip:
        reading([f for f in (SIGNS, Path(asked.data) if asked.data else None) if f is not None and f.is_dir()], asked.n)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
