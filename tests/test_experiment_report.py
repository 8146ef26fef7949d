"""The page of an experiment says its verdict first, executes nothing it was fed, and draws every value in its plot."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jobs.compare import Candidate, Guardrail, Line
from jobs.experiment_report import (
    MAX_NAMED,
    MINUS,
    NOTHING,
    PANEL_MARGINS,
    PANEL_SIZES,
    ExperimentReport,
    Pair,
    Variant,
    cost_rows,
    forests,
    panel,
    places_of,
    plain,
    render,
    scale_of,
    signed,
    verdict_class,
)
from jobs.plot_labels import LINE_PX, MARK_PX, place_labels, shortened, step_line, text_width
from jobs.report import pages
from jobs.report import render as render_run
from jobs.sweep import pareto_front
from tests.test_report import Page
from tests.test_report import report_of as run_report

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
HARMLESS = "7" * len(HOSTILE)
PRIMARY = "average_precision_50"
BASELINE = "yolov3-tiny 416"
EXTREMES = [
    [0.5, 0.5, 0.5],
    [0.0, 0.0, 0.0],
    [-3.0, -2.0, -1.0],
    [1e300, -1e300, 0.0],
    [1e-300, 2e-300, 3e-300],
    [5e-324, 0.0, 1e-323],
    [1e9, 1e9 + 1e-7, 1e9],
    [1e-9, 1.0, 1e9],
    [0.1],
]


# -- an example ----------------------------------------------------------------------------------------------------


def drawing(seed: int) -> str:
    """A picture of a few things on a ground, as a data: URI."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (320, 240), tuple(random.integers(120, 220, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for x, y in random.integers(10, 180, (5, 2)).tolist():
        pen.ellipse((x, y, x + 90, y + 60), fill=tuple(random.integers(0, 255, 3).tolist()))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def line(**changed: object) -> Line:
    known = Line(
        metric=PRIMARY, slice=None, higher_is_better=True, margin=0.01, n_items=2048, n_different=711, baseline=0.514,
        candidate=0.547, difference=0.033, low=0.021, high=0.045, p_value=0.0005, adjusted_p=0.004, verdict="better",
        reason="p = 0.004 is below 0.05",
    )  # fmt: skip
    return replace(known, **changed)  # type: ignore[arg-type]


REASONS = {
    "better": "p = 0.004 is below 0.05",
    "worse": "p = 0.004 is below 0.05",
    "equivalent": "the difference is between -0.003 and +0.007, within 0.01 of none",
    "undecided": "the difference may be anything between -0.006 and +0.019; 0.01 would matter",
}


def lines(*, shift: float, n_slices: int) -> list[Line]:
    """Three metrics on all items, then the first two on slices."""
    half = 0.006 if abs(shift) < 0.003 else 0.012
    verdict = "better" if shift > half else "worse" if shift < -half else "equivalent" if half < 0.01 else "undecided"
    found = [
        line(
            candidate=0.514 + shift, difference=shift, low=shift - half, high=shift + half, verdict=verdict,
            reason=REASONS[verdict],
        ),
        line(
            metric="average_recall_100", baseline=0.354, candidate=0.3605, difference=0.0065, low=-0.006, high=0.019,
            p_value=0.31, adjusted_p=0.62, verdict="undecided", reason=REASONS["undecided"], n_more=1240,
        ),
        line(
            metric="false_boxes_per_picture", higher_is_better=False, margin=0.1, baseline=1.31, candidate=1.34,
            difference=0.03, low=-0.02, high=0.08, p_value=0.2, adjusted_p=0.6, verdict="equivalent",
            reason="the difference is between -0.012 and +0.072, within 0.1 of none",
        ),
    ]  # fmt: skip
    names = ["size=small", "size=medium", "size=large", "source=web", "source=video", "light=night"]
    for i, name in enumerate(f"{names[i % 6]}{'' if i < 6 else f' {i}'}" for i in range(n_slices)):
        change, half = shift + 0.03 * (2.5 - i % 6) / 2.5, 0.016 + 0.004 * (i % 6)
        judged = "better" if change > half else "worse" if change < -half else "undecided"
        found.append(
            line(
                slice=name, n_items=800 - 90 * (i % 6), n_different=260 - 30 * (i % 6), baseline=0.5 - 0.05 * (i % 6),
                candidate=0.5 - 0.05 * (i % 6) + change, difference=change, low=change - half, high=change + half,
                p_value=0.01, adjusted_p=0.041 if judged != "undecided" else 0.34, verdict=judged,
                n_more=2310 if judged == "undecided" else None,
            )
        )  # fmt: skip
    if n_slices:
        few = "31 items, at least 50 are needed for an interval"
        nothing = {"low": None, "high": None, "p_value": None, "adjusted_p": None, "verdict": "not judged"}
        found.append(line(slice="light=dusk", n_items=31, n_different=6, reason=few, **nothing))
        undefined = {"baseline": math.nan, "candidate": math.nan, "difference": math.nan}
        found.append(line(slice="light=dawn", n_items=4, n_different=0, reason="4 items", **nothing, **undefined))
    return found


def pairs(n: int) -> list[Pair]:
    dog, disc = ("dog", 0.1, 0.25, 0.4, 0.5), ("frisbee", 0.55, 0.05, 0.2, 0.2)
    return [
        Pair(
            title=f"a dog that catches a frisbee, {i}.jpg", url=f"https://example.org/{i}.jpg", thumbnail=drawing(i),
            change=0.62 - 0.31 * i, metric=PRIMARY, baseline=["cat", "dog"], candidate=["dog", "frisbee"],
            expected=["dog", "frisbee"], baseline_boxes=[("cat", 0.12, 0.22, 0.3, 0.5)],
            candidate_boxes=[dog, disc], expected_boxes=[dog, disc],
        )
        for i in range(n)
    ]  # fmt: skip


NAMES = ["nanodet-g", "int8", "640 px", "416 flip", "608 px fp16", "letterbox off", "all classes", "pruned 50 %"]
SHIFTS = [0.053, 0.002, 0.036, 0.009, 0.031, -0.019, 0.011, -0.062]
WORDS = ["better", "equivalent", "worse", "undecided", "better", "worse", "not judged", "worse"]


def summary(verdict: str, variant: Variant) -> str:
    change = f"{PRIMARY} 0.514 to {variant.quality:.3f}"
    if variant.p95_ms > 80:
        return f"breaks p95_ms (broken: the whole interval is above). {change}: better, {REASONS['better']}."
    return f"{change}: {REASONS.get(verdict, 'too few items')}. Also: false_boxes_per_picture is equivalent."


def example(n_candidates: int = 2, *, n_slices: int = 6, n_pairs: int = 4) -> ExperimentReport:
    """An experiment as it may come out."""
    names, shifts = [BASELINE, *NAMES[:n_candidates]], [0.0, *SHIFTS[:n_candidates]]
    ms = [54.2, 46.3, 31.5, 121.0, 76.0, 78.5, 53.1, 54.9, 28.8][: n_candidates + 1]
    usd = [12.4, 10.6, 7.9, 27.7, 18.1, 17.0, 12.1, 12.5, 6.1][: n_candidates + 1]
    front = pareto_front([(shift, m, u) for shift, m, u in zip(shifts, ms, usd, strict=True)])
    variants = [
        Variant(
            name=name, featurizer="object_yolov3.tiny@1", fingerprint=f"{i:x}" * 32, is_baseline=i == 0,
            settings={} if i == 0 else {"object_yolov3.input_px": "640", "threads": "1"}, quality=0.514 + shift,
            quality_low=0.514 + shift - 0.014, quality_high=0.514 + shift + 0.014, p95_ms=m, p95_low=0.97 * m,
            p95_high=1.04 * m, usd_per_million=u, usd_low=0.96 * u, usd_high=1.03 * u, error_rate=0.0012,
            is_on_front=is_on_front,
        )
        for i, (name, shift, m, u, is_on_front) in enumerate(zip(names, shifts, ms, usd, front, strict=True))
    ]  # fmt: skip
    candidates = [
        Candidate(
            name=v.name, verdict=WORDS[i], lines=lines(shift=SHIFTS[i], n_slices=n_slices),
            summary=summary(WORDS[i], v),
            guardrails=[
                Guardrail(
                    name="p95_ms", limit="at most 1.5 times the baseline", value=v.p95_ms / 54.2,
                    low=v.p95_ms / 56, high=v.p95_ms / 52, is_kept=v.p95_ms < 80,
                    reason="kept, and certainly so" if v.p95_ms < 80 else "broken: the whole interval is above",
                ),
                Guardrail(
                    name="error_rate", limit="at most 0.001 above the baseline's", value=0.0, is_kept=True,
                    reason="0.12% of the items failed, 0.12% of the baseline's",
                ),
            ],
        )
        for i, v in enumerate(variants[1:])
    ]  # fmt: skip
    shares = {"fetch": 0.08, "decode": 0.22, "infer": 0.55, "storage": 0.05, "overhead": 0.1}
    return ExperimentReport(
        name="detector-resolution",
        question="Does a larger or a cheaper detector find what the present one finds, at a latency we accept?",
        primary_metric=PRIMARY,
        written_at=datetime(2026, 11, 3, 9, 12, tzinfo=UTC),
        lake="file:///lake/photos",
        golden="street-photos",
        golden_version=3,
        n_items=2048,
        card={"source": "photos of 14 cities, 2024", "labelled by": "two people, a third decided", "licence": "CC BY"},
        variants=variants,
        candidates=candidates,
        pairs={one.name: pairs(n_pairs) for one in candidates},
        detectable=0.012,
        costs={v.name: {s: v.usd_per_million * share for s, share in shares.items()} for v in variants},
        inputs={"documents": 41, "media": 17, "frames": 12, "golden": 3},
        settings_text="golden: street-photos\nmetrics:\n  average_precision_50: {margin: 0.01}",
        commands=["git checkout 6e472e5", "lakelens experiment conf/experiments/detector-resolution.yaml --seed 7"],
        versions={"lakelens": "0.1.0+6e472e5", "Spark": "4.1.4", "Python": "3.12.3"},
        notes=[
            "Photos by day are nine tenths of the set: at night the verdict is a guess.",
            "One machine, one thread.",
        ],
    )


# -- the page ------------------------------------------------------------------------------------------------------


def report_of(text: str) -> ExperimentReport:
    """A report in which every text that comes from outside is `text`."""
    region = (text, 0.1, 0.2, 0.5, 0.6)
    pair = Pair(
        title=text, url=f"https://example.org/{text}", thumbnail=drawing(0), change=1.0, metric=text, baseline=[text],
        candidate=[text, "dog"], expected=[text], baseline_boxes=[region], candidate_boxes=[region],
        expected_boxes=[region],
    )  # fmt: skip
    few = line(metric=text, slice=text, low=None, high=None, verdict=text, reason=text, n_more=7)
    base = example(1).variants[0]
    return replace(
        example(1),
        name=text, question=text, primary_metric=text, lake=text, golden=text, card={text: text},
        variants=[
            replace(base, name=text, featurizer=text, fingerprint=text),
            replace(base, name=text, is_baseline=False, settings={text: text}, p95_ms=60.0, is_on_front=False),
        ],
        candidates=[
            Candidate(
                name=text, verdict=text, summary=text, lines=[line(metric=text, verdict=text, reason=text), few],
                guardrails=[Guardrail(name=text, limit=text, value=1.0, is_kept=False, reason=text)],
            )
        ],
        pairs={text: [pair, replace(pair, url=text, thumbnail=None)]},
        costs={text: {text: 1.0}}, inputs={text: 1}, settings_text=text, commands=[text], versions={"lakelens": text},
        notes=[text],
    )  # fmt: skip


def test_hostile_texts_are_shown_and_not_executed() -> None:
    page, harmless = Page(render(report_of(HOSTILE))), Page(render(report_of(HARMLESS)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    n_shown = page.text.count(HOSTILE)
    assert n_shown == harmless.text.count(HARMLESS) and n_shown > 40


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing() -> None:
    html = render(example(3))
    page = Page(html)
    loading = [a.get(name) or "" for _, a in page.tags for name in ("src", "srcset", "data", "poster", "action")]
    assert {value[:23] for value in loading} == {"", "data:image/jpeg;base64,"}
    for tag, attributes in page.tags:
        href = attributes.get("href") or "#"
        assert href.startswith("#") or (tag == "a" and href.startswith("https://example.org/"))
    assert not re.search(r"@import|url\(", html)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_only_addresses_of_the_web_become_links() -> None:
    [pair] = pairs(1)
    shown = [replace(pair, url=url) for url in ("javascript:alert(1)", "file:///a.jpg", "http://example.org/")]
    page = Page(render(replace(example(1), pairs={NAMES[0]: shown})))
    assert [a["href"] for tag, a in page.tags if tag == "a" and not (a["href"] or "").startswith("#")] == [
        "http://example.org/"
    ]
    assert "javascript:alert(1)" in page.text


def test_a_thumbnail_that_would_be_loaded_is_refused() -> None:
    [pair] = pairs(1)
    loaded = replace(pair, thumbnail="http://example.org/a.jpg")
    with pytest.raises(ValueError, match=r"'http://example\.org/a\.jpg', not a data:image/ URI"):
        render(replace(example(1), pairs={NAMES[0]: [loaded]}))


@pytest.mark.parametrize("n_candidates", [1, 3, 8])
def test_the_verdicts_and_their_sentences_come_first(n_candidates: int) -> None:
    report = example(n_candidates)
    header, _, rest = render(report).partition("</header>")
    text = Page(header).text
    for candidate in report.candidates:
        assert candidate.verdict.capitalize() in text and candidate.summary in text and candidate.name in text
    assert text.count("of 2 guardrails broken") == sum(
        not all(g.is_kept for g in c.guardrails) for c in report.candidates
    )
    assert all(title in Page(rest).text for title in ("Intervals", "Trade-offs", "Slices", "Items that differ most"))


@pytest.mark.parametrize("n_candidates", range(1, 9))
@pytest.mark.parametrize("n_slices", [0, 55])
def test_every_line_of_every_candidate_is_a_row_with_its_verdict(n_candidates: int, n_slices: int) -> None:
    report = example(n_candidates, n_slices=n_slices, n_pairs=0)
    page = Page(render(report))
    found = [v for c in report.candidates for v in c.lines if v.slice is None or n_slices]
    # Slices are shown beneath the whole of their metric, which the intervals have shown already.
    n_again = n_candidates if n_slices else 0
    assert sum(a.get("class") == "row" for _, a in page.tags) == len(found) + n_again
    for kind in ("better", "worse", "equivalent", "undecided", "unjudged"):
        again = [c.lines[0] for c in report.candidates] if n_slices else []
        drawn = [v for v in [*found, *again] if verdict_class(v.verdict) == kind and math.isfinite(v.difference)]
        points = [a for _, a in page.tags if a.get("class") == "point" and a["href"] == f"#{kind}"]
        assert len(points) == len(drawn)
    assert "No item was kept to look at" in page.text


def sweep(n_candidates: int, name: str = "fast.max_pixels-{}") -> ExperimentReport:
    """An experiment of so many variants, those of `example` over and over."""
    base = example(8, n_slices=0, n_pairs=12)
    names = [name.format(i) for i in range(n_candidates)]
    variants = [replace(base.variants[1 + i % 8], name=name, settings={}) for i, name in enumerate(names)]
    candidates = [replace(base.candidates[i % 8], name=name) for i, name in enumerate(names)]
    shown = {name: base.pairs[NAMES[i % 8]] for i, name in enumerate(names)}
    return replace(base, variants=[base.variants[0], *variants], candidates=candidates, pairs=shown)


def test_a_sweep_says_how_many_are_better_and_ranks_them() -> None:
    report = sweep(12)
    header = render(report).partition("</header>")[0]
    assert "12 candidates: 3 better, 2 equivalent, 2 undecided, 1 not judged, 4 worse." in Page(header).text
    names = [variant.name for variant in report.variants[1:]]
    order = sorted(names, key=lambda name: header.index(f">{name}<"))
    quality = {variant.name: variant.quality for variant in report.variants}
    verdicts = {candidate.name: candidate.verdict for candidate in report.candidates}
    assert [verdicts[name] for name in order] == [
        *["better"] * 3, *["equivalent"] * 2, *["undecided"] * 2, "not judged", *["worse"] * 4,
    ]  # fmt: skip
    for one, other in pairwise(order):
        assert verdicts[one] != verdicts[other] or quality[one] >= quality[other]


@pytest.mark.parametrize(
    "name", ["{}", "a very long name of a variant that a sweep has made of its settings, number {}"]
)
@pytest.mark.parametrize("n_candidates", [MAX_NAMED - 1, MAX_NAMED, 12, 63])
def test_a_plot_of_many_variants_has_numbers_that_its_table_explains(n_candidates: int, name: str) -> None:
    report = sweep(n_candidates, name)
    html = render(report)
    numbered = re.findall(r'<span class="number">(\d+)</span><span class="strong">([^<]*)', html)
    is_named = n_candidates < MAX_NAMED
    assert numbered == ([] if is_named else [(str(i), v.name) for i, v in enumerate(report.variants, start=1)])
    labels = re.findall(r'<text class="label(?: base)?"[^>]*>([^<]*)<', html)
    assert len(labels) == 4 * (n_candidates + 1) and ("1" in labels) == (not is_named or name == "{}")
    n_cards = sum(a.get("class") == "pair" for _, a in Page(html).tags)
    assert n_cards == n_candidates * max(2, min(12, 48 // n_candidates))


def test_the_page_says_what_is_corrected_and_what_is_not() -> None:
    text = " ".join(Page(render(example(2))).text.split())
    assert (
        "Better and worse are corrected for all lines of all candidates (Holm), equivalent for the number of "
        "candidates (Bonferroni) and not for metrics and slices"
    ) in text


def test_both_pages_have_one_style_which_turns_dark_and_can_be_printed() -> None:
    shared = pages().get_template("page.css.j2").render()
    for html in (render(example(1)), render_run(run_report("plain"))):
        [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
        assert shared.strip() in style and "prefers-color-scheme:dark" in style and "@media print" in style
        named = set(re.findall(r"var\((--[a-z0-9]+)\)", html))
        stated = set(re.findall(r"(--[a-z0-9]+):", html))
        assert named <= stated, named - stated
        colours = set(re.findall(r"#[0-9a-f]{3,6}\b", html.replace(shared.strip(), "")))
        assert colours <= {"#fff", "#000"}  # of frames and their halo over pictures, and of paper


def test_every_colour_of_the_light_page_that_dark_needs_another_of_has_one() -> None:
    shared = pages().get_template("page.css.j2").render()
    light, dark = (set(re.findall(r"(--[a-z0-9]+):", part)) for part in re.findall(r":root\{([^}]*)\}", shared))
    assert dark <= light and light - dark == {"--object", "--text"}  # which stand over pictures


def test_a_bare_report_is_a_page_too() -> None:
    report = example(1, n_slices=0, n_pairs=0)
    candidate = replace(report.candidates[0], lines=report.candidates[0].lines[:1], guardrails=())
    page = Page(render(replace(report, candidates=[candidate], costs={}, notes=(), card={}, inputs={}, commands=())))
    assert {"guardrails", "slices", "costs", "limits"}.isdisjoint(a.get("id") for _, a in page.tags)


def test_too_few_items_show_a_point_without_whisker_and_say_why() -> None:
    reason = "31 items, at least 50 are needed for an interval"
    few = line(n_items=31, low=None, high=None, adjusted_p=None, verdict="not judged", reason=reason)
    report = example(1, n_pairs=0)
    page = Page(render(replace(report, candidates=[replace(report.candidates[0], lines=[few])])))
    classes = [a.get("class") for _, a in page.tags]
    assert "whisker" not in classes and classes.count("point") == 1
    assert "no interval" in page.text and reason in page.text


def test_each_side_of_a_pair_shows_what_it_said() -> None:
    [pair] = pairs(1)
    said = replace(pair, baseline=["cat 93 %"], candidate=["dog 71 %", "frisbee", "dogfish"])
    report = example(1)
    html = render(replace(report, pairs={NAMES[0]: [said]}))
    one, other = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert BASELINE in one and NAMES[0] in other
    assert [html.count(f'class="{kind}"') for html in (one, other) for kind in ("found", "truth")] == [1, 2, 2, 2]
    assert 'x="0.1200" y="0.2200" width="0.3000" height="0.5000"' in one and "cat" in one and "dog 71" not in one
    assert (one.count('class="hit"'), other.count('class="hit"')) == (0, 2)


def test_a_lower_value_of_a_metric_of_errors_is_shown_as_better() -> None:
    [pair] = pairs(1)
    errors = "false_boxes_per_picture"
    lower = line(metric=errors, higher_is_better=False)
    report = example(1)
    shown = [replace(pair, metric=errors, change=-0.5)]
    candidate = replace(report.candidates[0], lines=[lower])
    html = render(replace(report, candidates=[candidate], pairs={NAMES[0]: shown}, primary_metric=errors))
    assert re.search(r'class="pill better">(?:(?!</span>).)*false_boxes_per_picture \u22120.50', html, re.DOTALL)
    assert "less is better" in html


def test_a_variant_without_a_quality_is_told_and_not_drawn() -> None:
    report = example(2)
    variants = [*report.variants[:2], replace(report.variants[2], quality=math.nan)]
    html = render(replace(report, variants=variants))
    n_marks = [(a.get("class") or "").split()[:1] for tag, a in Page(html).tags if tag == "use"].count(["mk"])
    assert n_marks == 2 * len(PANEL_SIZES) * 2 and not re.search(r"\bnan\b", html)


# -- plots ---------------------------------------------------------------------------------------------------------


def test_the_step_line_joins_the_front_and_leaves_out_what_lies_beneath() -> None:
    area = (0.0, 0.0, 100.0, 80.0)
    assert step_line([(50, 20), (10, 60), (30, 70)], area) == "M10.0 80.0V60.0H50.0V20.0H100.0"
    assert step_line([], area) == ""


@pytest.mark.parametrize("values", EXTREMES)
def test_a_scale_holds_every_value_in_its_order(values: list[float]) -> None:
    scale = scale_of(values, start=20, end=300)
    places = [scale.at(value) for value in sorted(values)]
    assert all(20 < place < 300 for place in places) and places == sorted(places)
    ticks = scale.ticks(5)
    assert all(20 <= at <= 300 for at, _, _ in ticks) and 1 <= len(ticks) <= 6
    assert all(len(text) < 12 for _, _, text in ticks)


def test_a_scale_over_orders_of_magnitude_is_logarithmic() -> None:
    scale = scale_of([2.0, 900.0], start=0, end=1)
    assert scale.is_log and [text for _, _, text in scale.ticks(5)] == ["10", "100", "1,000"]
    assert not scale_of([0.0, 900.0], start=0, end=1).is_log


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.5, 0.58], ["0.50", "0.52", "0.54", "0.56", "0.58"]),
        ([-2.0, 3.0], [f"{MINUS}2", "0", "2"]),
        ([0.0, 1000.0], ["0", "250", "500", "750", "1,000"]),
        ([0.0, 1e12], ["0", "2.5e+11", "5e+11", "7.5e+11", "1e+12"]),
    ],
)
def test_ticks_are_round_numbers(values: list[float], texts: list[str]) -> None:
    assert [text for _, _, text in scale_of(values, start=0, end=1).ticks(5)] == texts


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_right_is_better_in_a_forest_whichever_way_the_metric_runs(higher_is_better: bool) -> None:
    gain = 0.03 if higher_is_better else -0.03
    [forest] = forests([("a", line(higher_is_better=higher_is_better, difference=gain))], PRIMARY)
    assert forest.scale.at(gain) > forest.scale.at(0) == 50 > forest.scale.at(-gain)
    band = sorted((forest.scale.at(-0.01), forest.scale.at(0.01)))
    assert band[0] + band[1] == pytest.approx(100) and 0 < band[0] < 50


@pytest.mark.parametrize("values", EXTREMES)
@pytest.mark.parametrize("margin", [0.0, 0.01, 1e300])
def test_a_forest_holds_points_whiskers_and_band(values: list[float], margin: float) -> None:
    rows = [
        (str(i), line(difference=v, low=min(values), high=max(values), margin=margin)) for i, v in enumerate(values)
    ]
    [forest] = forests(rows, PRIMARY)
    drawn = [v for _, x in rows for v in (x.difference, x.low, x.high, x.margin, -x.margin) if v is not None]
    assert all(0 <= forest.scale.at(v) <= 100 for v in drawn) and forest.scale.at(0) == 50
    assert max(abs(forest.scale.at(v) - 50) for v in drawn) < 50
    assert all(0 <= at <= 100 for at, _, _ in forest.scale.ticks(5))


def test_the_primary_metric_is_the_first_forest() -> None:
    rows = [("a", line(metric="accuracy")), ("a", line()), ("b", line(metric="accuracy"))]
    assert [(f.metric, len(f.rows)) for f in forests(rows, PRIMARY)] == [(PRIMARY, 1), ("accuracy", 2)]


def area_of(size: str) -> tuple[float, float, float, float]:
    (width, height), (left, top, right, bottom) = PANEL_SIZES[size], PANEL_MARGINS
    return left, top, width - right, height - bottom


def assert_apart_and_inside(points: Sequence[tuple[float, float]], names: Sequence[str], size: str) -> None:
    area, labels = area_of(size), place_labels(points, names, area_of(size))
    boxes = [(x.left, x.top, x.left + text_width(x.text), x.top + LINE_PX) for x in labels]
    marks = [(x - MARK_PX, y - MARK_PX, x + MARK_PX, y + MARK_PX) for x, y in points]
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert area[0] <= left and right <= area[2] and area[1] <= top and bottom <= area[3]
        for other in [*boxes[:i], *marks]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


@pytest.mark.parametrize("size", PANEL_SIZES)
@pytest.mark.parametrize("seed", range(20))
def test_names_in_a_plot_lie_over_no_other_and_no_mark(seed: int, size: str) -> None:
    random, area = np.random.default_rng(seed), area_of(size)
    spread = [1.0, 0.1, 0.0][seed % 3]  # everywhere, crowded, all in one place
    middle = random.random(2) * (1 - spread)
    places = middle + spread * random.random((9, 2))
    points = [(area[0] + x * (area[2] - area[0]), area[1] + y * (area[3] - area[1])) for x, y in places.tolist()]
    assert_apart_and_inside(points, [f"variant number {i} with a long name" for i in range(9)], size)


def test_where_no_place_is_free_a_name_stands_over_another() -> None:
    left, top, right, bottom = area_of("narrow")
    labels = place_labels([(left + i, top + i) for i in range(100)], ["a name of some length"] * 100, area_of("narrow"))
    assert len(labels) == 100
    assert all(left <= x.left <= right - text_width(x.text) and top <= x.top <= bottom - LINE_PX for x in labels)


@pytest.mark.parametrize("values", EXTREMES)
@pytest.mark.parametrize("price", ["latency", "dollars"])
def test_a_panel_holds_extreme_variants(values: list[float], price: str) -> None:
    base = example(1).variants[0]
    low, high = min(values), max(values)
    base = replace(base, quality_low=low, quality_high=high, p95_low=low, p95_high=high, usd_low=low, usd_high=high)
    variants = [replace(base, quality=v, p95_ms=v, usd_per_million=v) for v in values]
    found = panel(variants, higher_is_better=True, price=price, size="wide")
    left, top, right, bottom = area_of("wide")
    points = [(found.x.at(v), found.y.at(v)) for v in values]
    assert all(left < x < right and top < y < bottom for x, y in points)
    assert_apart_and_inside(points, [v.name for v in variants], "wide")


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_up_is_better_in_a_panel(higher_is_better: bool) -> None:
    found = panel(example(2).variants, higher_is_better=higher_is_better, price="latency", size="wide")
    assert (found.y.at(0.6) < found.y.at(0.5)) == higher_is_better  # pixels grow downwards


def test_a_long_name_keeps_its_two_ends() -> None:
    short = shortened("object_yolov3.tiny@1 with 640 px", 150)
    assert short.startswith("object_yo") and short.endswith("640 px") and text_width(short) <= 150
    assert shortened("a", 1) == "a" and text_width(shortened("\u732b" * 40, 150)) <= 150
    assert text_width("\u732b") == 2 * text_width("a")


# -- numbers -------------------------------------------------------------------------------------------------------


def test_numbers_are_written_as_people_read_them() -> None:
    known = [(1234.5, "1,234.50"), (-0.126, f"{MINUS}0.13"), (-0.001, "0.00"), (None, NOTHING), (math.nan, NOTHING)]
    assert [plain(value, 2) for value, _ in known] == [text for _, text in known]
    assert [signed(v, 1) for v in (2.0, -2.0, 0.01, None)] == ["+2.0", f"{MINUS}2.0", "0.0", NOTHING]
    assert plain(1.5e300, 2) == "1.5e+300" and plain(0.0, 300) == "0.000000000"


def test_a_margin_decides_how_many_places_its_numbers_have() -> None:
    assert [places_of(line(margin=margin)) for margin in (0.01, 0.025, 1.0, 20.0)] == [3, 3, 1, 0]
    assert places_of(line(margin=0.0)) == 3  # from the interval
    assert places_of(line(margin=0.0, low=None, high=None, difference=0.0)) == 1


def test_costs_leave_a_given_total_out() -> None:
    assert cost_rows({"a": {"infer": 1.0, "total": 9.0, "decode": 2.0}}) == [("a", 3.0, {"infer": 1.0, "decode": 2.0})]


def test_a_verdict_that_is_none_of_the_four_is_not_judged() -> None:
    assert [verdict_class(v) for v in ("better", "Worse ", "not judged", "?")] == ["better", "worse", *2 * ["unjudged"]]
