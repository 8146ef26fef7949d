"""Where names and lines stand in a plot: near their points, over no other. Knows pixels, and not what they mean."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Point = tuple[float, float]  # x, y in pixels

MARK_PX = 7.0  # half the size of a mark
LINE_PX, LETTER_PX = 16.0, 7.6  # of a label in 12.5 px; letters of DejaVu Sans, the widest of the fonts asked for


@dataclass(frozen=True, kw_only=True)
class Label:
    """A name in a plot; pixels."""

    text: str
    left: float
    top: float
    leader: Point | None  # of one far from its point: where the line to it ends


def step_line(points: Sequence[Point], area: Rectangle) -> str:
    """SVG path: right of and below it, one of the points is better. Up and left is better."""
    path, best = "", math.inf
    for x, y in sorted(points):
        if y < best:
            path += f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {area[3]:.1f}V{y:.1f}"
            best = y
    return path and f"{path}H{area[2]:.1f}"


def text_width(text: str) -> float:
    """Pixels of a label, rather too many than too few."""
    return LETTER_PX * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shortened(text: str, width: float) -> str:
    """The text, or its beginning and end where it is wider than `width` pixels."""
    n_kept, kept = len(text), text
    while text_width(kept) > width and n_kept > 1:
        n_kept -= 1
        kept = f"{text[: n_kept - n_kept // 2]}\u2026{text[len(text) - n_kept // 2 :]}"
    return kept


def place_labels(points: Sequence[Point], names: Sequence[str], area: Rectangle) -> list[Label]:
    """Names near their points, inside the area, over no mark and no other name while there is room."""
    taken = [(x - MARK_PX, y - MARK_PX, x + MARK_PX, y + MARK_PX) for x, y in points]
    labels = []
    for (x, y), name in zip(points, names, strict=True):
        text = shortened(name, (area[2] - area[0]) / 2)
        width = text_width(text)
        boxes = [(left, top, left + width, top + LINE_PX) for left, top in _spots(x, y, width, area)]
        free = (b for b in boxes if all(b[2] <= t[0] or t[2] <= b[0] or b[3] <= t[1] or t[3] <= b[1] for t in taken))
        box = next(free, boxes[0])
        taken.append(box)
        near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        is_far = math.dist(near, (x, y)) > 2.5 * MARK_PX
        labels.append(Label(text=text, left=box[0], top=box[1], leader=near if is_far else None))
    return labels


def _spots(x: float, y: float, width: float, area: Rectangle) -> Iterator[Point]:
    """Where a name may begin: beside, above and below its point first, then ever farther from it."""
    right, left, middle = MARK_PX + 3, -MARK_PX - 3 - width, -LINE_PX / 2
    above, below = middle - MARK_PX - 3, middle + MARK_PX + 3  # beside the mark they leave its interval free
    near = [(right, above), (right, below), (left, above), (left, below), (-width / 2, -LINE_PX - MARK_PX - 3)]
    far = [(dx, middle + sign * dy) for dy in range(0, 400, 4) for dx in (right, left, -width / 2) for sign in (-1, 1)]
    anywhere = [(left - x, top - y) for top in range(0, 400, 4) for left in range(0, 600, 4)]
    for dx, dy in (*near, *far, *anywhere):
        if area[0] <= x + dx <= area[2] - width and area[1] <= y + dy <= area[3] - LINE_PX:
            yield x + dx, y + dy
