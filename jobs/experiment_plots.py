"""The forest and the trade-offs of an experiment as figures, for where its page cannot be shown. Knows no tracker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.compare import Line
from jobs.experiment_report import ExperimentReport, Variant, measured, numbers, verdict_class
from jobs.plot_labels import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, GRID, BAND, FRONT, BLUE = "#1b2430", "#5b6673", "#e3e7ec", "#e9edf2", "#bcd2f7", "#1f5fd0"
# The page's colours and shapes.
COLOURS = {
    "better": "#157347", "worse": "#b42318", "equivalent": "#1f4f9e", "undecided": "#7a5b00", "unjudged": "#5b6673",
}  # fmt: skip
SHAPES = {"better": "^", "worse": "v", "equivalent": "s", "undecided": "o", "unjudged": "D"}
HOLLOW = ("undecided", "unjudged")
LABEL_PX = 230.0  # of a name on an axis
DPI = 110
ROW_INCHES, HEAD_INCHES = 0.36, 0.95  # of a forest


def forest_figure(report: ExperimentReport) -> Figure:
    """Differences of all candidates on all items with their intervals, a panel for each metric; right is better."""
    from matplotlib.figure import Figure

    rows = [(one.name, line) for one in report.candidates for line in one.lines if line.slice is None]
    metrics = sorted({line.metric: None for _, line in rows}, key=lambda metric: metric != report.primary_metric)
    panels = [[(name, line) for name, line in rows if line.metric == metric] for metric in metrics]
    heights = [HEAD_INCHES + ROW_INCHES * len(panel) for panel in panels]
    figure = Figure(figsize=(9, max(1.0, sum(heights))), dpi=DPI, layout="constrained")
    if not panels:
        return figure
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for i, panel in enumerate(panels):
        _forest(figure.add_subplot(grid[i]), panel, is_primary=metrics[i] == report.primary_metric)
    return figure


def _forest(axes: Any, rows: list[tuple[str, Line]], *, is_primary: bool) -> None:
    first = rows[0][1]
    axes.axvspan(-first.margin, first.margin, color=BAND, linewidth=0)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    for i, (_, line) in enumerate(rows):
        kind = verdict_class(line.verdict)
        if line.low is not None and line.high is not None:
            axes.plot([line.low, line.high], [i, i], color=COLOURS[kind], linewidth=2, marker="|", markersize=8)
        axes.plot([line.difference], [i], **_mark(SHAPES[kind], COLOURS[kind], is_hollow=kind in HOLLOW))
        said = line.verdict if line.adjusted_p is None else f"{line.verdict}, p = {line.adjusted_p:.2g}"
        axes.annotate(
            said, (1.02, i), xycoords=("axes fraction", "data"), va="center", color=COLOURS[kind],
            annotation_clip=False, fontsize=9,
        )  # fmt: skip
    ends = [v for _, line in rows for v in (line.difference, line.low, line.high, 1.6 * line.margin) if v is not None]
    reach = 1.08 * max((abs(v) for v in ends if math.isfinite(v)), default=1.0) or 1.0
    axes.set_xlim(*((-reach, reach) if first.higher_is_better else (reach, -reach)))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_literal(shortened(name, LABEL_PX)) for name, _ in rows])
    direction = "" if first.higher_is_better else ", less is better"
    title = f"{first.metric}{direction}{' (decides)' if is_primary else ''}"
    axes.set_title(_literal(title), loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel("\u2190 worse    candidate minus baseline, 95 % interval    better \u2192", fontsize=8, color=SOFT)
    _plain(axes)


def trade_off_figure(report: ExperimentReport) -> Figure:
    """Quality against latency and against dollars; up and left is better, filled marks are on the front."""
    from matplotlib.figure import Figure

    drawn = [v for v in report.variants if all(map(math.isfinite, (v.quality, v.p95_ms, v.usd_per_million)))]
    lines = [line for one in report.candidates for line in one.lines if line.metric == report.primary_metric]
    figure = Figure(figsize=(12, 5), dpi=DPI, layout="constrained")
    names = numbers(report.variants)
    said = (
        "Filled: no other variant is as good in quality, latency and dollars and better in one. Square: the baseline."
    )
    figure.suptitle(said + (" Numbers: rows of variants.json." if names else ""), fontsize=9.5, color=SOFT)
    for i, (price, name) in enumerate((("latency", "p95 latency of an item, ms"), ("dollars", "dollars per million"))):
        axes = figure.add_subplot(1, 2, i + 1)
        _trade_off(axes, drawn, price, names)
        if lines and not lines[0].higher_is_better:
            axes.invert_yaxis()
        axes.set_xlabel(f"{name} (left is better)", color=SOFT)
        axes.set_ylabel(_literal(f"{report.primary_metric} (up is better)"), color=SOFT)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(0.12)
        _plain(axes)
    return figure


def _trade_off(axes: Any, variants: list[Variant], price: str, names: Mapping[str, str]) -> None:
    for variant in variants:
        x, low, high = measured(variant, price)
        colour = INK if variant.is_baseline else BLUE
        if low is not None and high is not None:
            axes.plot([low, high], [variant.quality] * 2, color=SOFT, linewidth=1)
        if variant.quality_low is not None and variant.quality_high is not None:
            axes.plot([x, x], [variant.quality_low, variant.quality_high], color=SOFT, linewidth=1)
        shape = "s" if variant.is_baseline else "o"
        axes.plot([x], [variant.quality], **_mark(shape, colour, is_hollow=not variant.is_on_front))
        weight = "bold" if variant.is_baseline else "normal"
        axes.annotate(
            _literal(shortened(names.get(variant.name, variant.name), LABEL_PX)), (x, variant.quality), xytext=(7, 5),
            textcoords="offset points", fontsize=8.5, color=INK, fontweight=weight,
        )  # fmt: skip


def _mark(shape: str, colour: str, *, is_hollow: bool) -> dict[str, Any]:
    face = "white" if is_hollow else colour
    return {"marker": shape, "markersize": 8, "markerfacecolor": face, "markeredgecolor": colour, "zorder": 3}


def _literal(text: str) -> str:
    """A text in which matplotlib sees no mathematics."""
    return text.replace("$", r"\$")


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=8.5, colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#97a1ad")
