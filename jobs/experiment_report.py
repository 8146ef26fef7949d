"""The page of an experiment: verdict, intervals, trade-offs, pictures. Knows no lake and no statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from jobs.compare import Candidate, Line
from jobs.plot_labels import Label, place_labels, shortened, step_line
from jobs.report import duration, number, pages
from jobs.sweep import Trial, dominates

Region = tuple[str, float, float, float, float]  # label, x, y, width, height as fractions of the picture

MINUS, NOTHING = "\u2212", "\u2013"  # typography
VERDICTS = ("better", "worse", "equivalent", "undecided")  # each has a colour and a shape; all else is not judged
LOG_FROM_DECADES = 1.3  # from here a linear axis heaps the small values up at its end
NO_SPAN = 1e-290  # below it, floating point has no room for ticks
PANEL_SIZES = {"wide": (528.0, 372.0), "narrow": (318.0, 330.0)}  # pixels; beside each other, and on a telephone
PANEL_MARGINS = (58.0, 32.0, 16.0, 48.0)  # pixels left, top, right, bottom: room for ticks and the axis's name
MAX_NAMED = 8  # variants whose names a plot has room for; more are numbered


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An item that the two answer differently."""

    title: str
    url: str
    thumbnail: str | None  # data: URI
    change: float  # of `metric`, candidate minus baseline
    metric: str
    baseline: Sequence[str] = ()  # what each said, best first
    candidate: Sequence[str] = ()
    expected: Sequence[str] = ()
    baseline_boxes: Sequence[Region] = ()
    candidate_boxes: Sequence[Region] = ()
    expected_boxes: Sequence[Region] = ()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A featurizer as it was configured, with its three prices: quality, latency, dollars."""

    name: str
    featurizer: str
    fingerprint: str
    is_baseline: bool
    settings: Mapping[str, str] = field(default_factory=dict)  # what differs from the baseline's configuration
    quality: float  # of the primary metric
    quality_low: float | None = None
    quality_high: float | None = None
    p95_ms: float
    p95_low: float | None = None
    p95_high: float | None = None
    usd_per_million: float
    usd_low: float | None = None
    usd_high: float | None = None
    error_rate: float
    is_on_front: bool


@dataclass(frozen=True, kw_only=True)
class ExperimentReport:
    """All that the template shows."""

    name: str
    question: str
    primary_metric: str
    written_at: datetime
    lake: str
    golden: str
    golden_version: int
    n_items: int
    card: Mapping[str, str] = field(default_factory=dict)  # data card of the golden set
    variants: Sequence[Variant]
    candidates: Sequence[Candidate]
    pairs: Mapping[str, Sequence[Pair]] = field(default_factory=dict)  # by candidate
    detectable: float  # smallest difference of the primary metric that the items could show, known before the run
    trials: Sequence[Trial] = ()  # of a search, whose best are the candidates
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # variant -> stage -> dollars per million
    inputs: Mapping[str, int] = field(default_factory=dict)  # table -> version
    settings_text: str = ""  # YAML of the experiment
    commands: Sequence[str] = ()  # how to reproduce
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what the verdict does not say


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis on the page: `low` stands at `start`, `high` at `end`, which may be left of it."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value stands; one beyond an end stands at that end."""
        low, high, here = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * min(1.0, max(0.0, (here - low) / (high - low)))

    def ticks(self, at_most: int) -> list[tuple[float, float, str]]:
        """Round values: where they stand, what they are, and how they are written."""
        if self.is_log:
            values = _round_powers(self.low, self.high, at_most)
            return [(self.at(v), v, plain(v, _places(v))) for v in values]
        step = _round_step((self.high - self.low) / at_most)
        values = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [(self.at(v), v, plain(v, _places(step))) for v in values]


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Labelled lines of one metric on an axis in percent; zero is in its middle and better is right."""

    metric: str
    scale: Scale
    rows: Sequence[tuple[str, Line]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The variants' quality against one price, as large as PANEL_SIZES[size]; up and left is better."""

    size: str
    price: str  # latency or dollars
    x: Scale
    y: Scale
    labels: Sequence[Label]  # in the order of the variants
    front: str  # SVG path


def _round_step(at_least: float) -> float:
    power = 10.0 ** math.floor(math.log10(at_least))
    return next((m * power for m in (1, 2, 2.5, 5) if m * power >= at_least), 10 * power)


def _round_powers(low: float, high: float, at_most: int) -> list[float]:
    """At most so many of 1, 2 and 5 times powers of ten."""
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [v for k in exponents for m in multiples if low <= (v := m * 10.0**k) <= high]
        if len(values) <= at_most:
            break
    return values[:: -(-len(values) // at_most) or 1]


def scale_of(values: Sequence[float], *, start: float, end: float) -> Scale:
    """A scale that holds all values with some room beside them; logarithmic where they span orders of magnitude."""
    low, high = min(values), max(values)
    if low > NO_SPAN and (n_decades := math.log10(high) - math.log10(low)) > LOG_FROM_DECADES:
        room = 10 ** min(1.0, 0.08 * n_decades)
        return Scale(low=low / room, high=high * room, start=start, end=end, is_log=True)
    large, span = max(abs(low), abs(high)), high - low
    room = 0.08 * span if span > max(1e-9 * large, NO_SPAN) else large / 10 if large > NO_SPAN else 1.0
    return Scale(low=low - room, high=high + room, start=start, end=end)


def forests(rows: Sequence[tuple[str, Line]], primary_metric: str) -> list[Forest]:
    """Labelled lines as one forest plot for each metric, the primary one first.

    Zero is in the middle of each, and a metric of which less is better runs from right to left.
    """
    found = []
    for metric in sorted({line.metric: None for _, line in rows}, key=lambda m: m != primary_metric):
        mine = [(label, line) for label, line in rows if line.metric == metric]
        ends = [v for _, line in mine for v in (line.difference, line.low, line.high, 1.6 * line.margin)]
        reach = 1.06 * max(abs(v) for v in [*ends, 0.0] if v is not None and math.isfinite(v))
        reach = reach if reach > NO_SPAN else 1.0
        start, end = (0.0, 100.0) if mine[0][1].higher_is_better else (100.0, 0.0)
        found.append(Forest(metric=metric, scale=Scale(low=-reach, high=reach, start=start, end=end), rows=mine))
    return found


def measured(variant: Variant, what: str) -> tuple[float, float | None, float | None]:
    """A variant's quality, latency in ms or dollars, with the ends of its interval."""
    return {
        "quality": (variant.quality, variant.quality_low, variant.quality_high),
        "latency": (variant.p95_ms, variant.p95_low, variant.p95_high),
        "dollars": (variant.usd_per_million, variant.usd_low, variant.usd_high),
    }[what]


def numbers(variants: Sequence[Variant]) -> dict[str, str]:
    """What stands for a variant's name in a plot that has no room for so many names; nothing where it has."""
    return {v.name: str(i + 1) for i, v in enumerate(variants)} if len(variants) > MAX_NAMED else {}


def panel(
    variants: Sequence[Variant], *, higher_is_better: bool, price: str, size: str,
    names: Mapping[str, str] | None = None,
) -> Panel:  # fmt: skip
    """Quality against latency or dollars; names: what stands for a variant's name, itself if not given."""
    (width, height), (left, top, right, bottom) = PANEL_SIZES[size], PANEL_MARGINS
    area = (left, top, width - right, height - bottom)

    def scale(what: str, start: float, end: float) -> Scale:
        ends = [v for variant in variants for v in measured(variant, what) if v is not None]
        return scale_of([v for v in ends if math.isfinite(v)], start=start, end=end)

    x = scale(price, area[0], area[2])
    y = scale("quality", area[3], area[1]) if higher_is_better else scale("quality", area[1], area[3])
    points = [(x.at(measured(v, price)[0]), y.at(v.quality)) for v in variants]
    labels = place_labels(points, [(names or {}).get(v.name, v.name) for v in variants], area)
    front = step_line([point for point, v in zip(points, variants, strict=True) if v.is_on_front], area)
    return Panel(size=size, price=price, x=x, y=y, labels=labels, front=front)


def _places(size: float) -> int:
    """Decimal places that tell round numbers of this size apart."""
    if not NO_SPAN < size < math.inf:
        return 3
    digits = -math.floor(math.log10(size))
    return max(0, digits + (round(size * 10.0**digits, 9) % 1 > 0))


def plain(value: float | None, places: int) -> str:
    """A number with so many decimal places, thousands apart; very large and very small ones as powers of ten."""
    if value is None or not math.isfinite(value):
        return NOTHING
    has_power = abs(value) >= 1e9 or (places > 9 and value != 0)
    text = f"{value:.3g}" if has_power else f"{value:,.{min(places, 9)}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.lstrip("-")


def signed(value: float | None, places: int) -> str:
    """A difference: with its sign, except none and zero."""
    text = plain(value, places)
    return text if text[0] in (MINUS, NOTHING) or not text.strip("0.,") else f"+{text}"


def places_of(line: Line) -> int:
    """Decimal places for the numbers of a line: one more than the first digit of its margin."""
    sizes = (line.margin, ((line.high or 0.0) - (line.low or 0.0)) / 2, abs(line.difference))
    size = next((s for s in sizes if NO_SPAN < s < math.inf), 1.0)
    return max(0, 1 - math.floor(math.log10(size)))


def verdict_class(verdict: str) -> str:
    """Which of VERDICTS a verdict begins with, else unjudged."""
    return next((known for known in VERDICTS if verdict.strip().lower().startswith(known)), "unjudged")


def cost_rows(costs: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float, dict[str, float]]]:
    """Variant, dollars of all its stages, dollars of each; a `total` among the stages is none of them."""
    rows = [(name, {stage: usd for stage, usd in of.items() if stage != "total"}) for name, of in costs.items()]
    return [(name, sum(stages.values()), stages) for name, stages in rows]


def render(report: ExperimentReport) -> str:
    """The HTML of a report; every text from outside is escaped, nothing in it is loaded from elsewhere."""
    for pair in (pair for shown in report.pairs.values() for pair in shown):
        if pair.thumbnail is not None and not pair.thumbnail.startswith("data:image/"):
            raise ValueError(f"the thumbnail of {pair.title!r} is {pair.thumbnail[:40]!r}, not a data:image/ URI")
    lines = [(candidate, line) for candidate in report.candidates for line in candidate.lines]
    directions = {line.metric: 1 if line.higher_is_better else -1 for _, line in lines}
    sign = directions.get(report.primary_metric, 1)
    cut = {(candidate.name, line.metric) for candidate, line in lines if line.slice is not None}
    own = [(c, [(x.slice or "All items", x) for x in c.lines if (c.name, x.metric) in cut]) for c in report.candidates]
    drawn = [v for v in report.variants if all(map(math.isfinite, (v.quality, v.p95_ms, v.usd_per_million)))]
    kinds = [(price, size) for price in ("latency", "dollars") for size in PANEL_SIZES] if drawn else []
    numbered = numbers(report.variants)
    quality = {v.name: sign * v.quality for v in report.variants if math.isfinite(v.quality)}
    ranks = {"better": 0, "equivalent": 1, "undecided": 2, "unjudged": 3, "worse": 4}
    costs = cost_rows(report.costs)
    functions = (number, duration, plain, signed, places_of, verdict_class, measured, dominates, shortened)
    environment = pages()
    environment.globals.update({function.__name__: function for function in functions})
    return environment.get_template("experiment.html.j2").render(
        report=report,
        baseline=next((v for v in report.variants if v.is_baseline), None),
        variants={v.name: v for v in report.variants},
        primary=next((line for _, line in lines if line.metric == report.primary_metric), None),
        directions=directions,
        sign=sign,
        overall=forests([(c.name, x) for c, x in lines if x.slice is None], report.primary_metric),
        slices=[(c, forests(rows, report.primary_metric)) for c, rows in own if rows],
        drawn=drawn,
        numbered=numbered,
        ranked=sorted(
            report.candidates, key=lambda c: (ranks[verdict_class(c.verdict)], -quality.get(c.name, -math.inf))
        ),
        panels=[
            panel(drawn, higher_is_better=sign > 0, price=price, size=size, names=numbered) for price, size in kinds
        ],
        PANEL_SIZES=PANEL_SIZES,
        quality_places=max((places_of(x) for _, x in lines if x.metric == report.primary_metric), default=3),
        costs=costs,
        stages=list({stage: None for _, _, stages in costs for stage in stages}),
    )
