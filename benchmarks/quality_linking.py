"""How well names in captions and text lines are linked: `python -m benchmarks.quality_linking [--half test]`.

Prints figures and asserts nothing. Items of the test half of the golden set are never printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from featurizers.linking import LINKER_SPEC, Linker, load_linker
from featurizers.weights import fetch

GOLDEN = Path(__file__).parent.parent / "tests" / "data"
PLACES = ("country:", "subdivision:", "city:")


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
    """Measure the halves asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality_linking", description=__doc__)
    parser.add_argument("--half", action="append", choices=["dev", "test"], help="of the golden set; both by default")
    asked = parser.parse_args(arguments)
    linker = load_linker({w.name: fetch(w.uri, w.sha256) for w in LINKER_SPEC.weights})
    for half in asked.half or ["dev", "test"]:
        linking(linker, half)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
