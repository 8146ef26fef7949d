"""Verdicts on a candidate against a baseline, metric by metric and slice by slice. Knows no lake and no page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.paired import Difference, holm, judge
from jobs.quality import Measurement, compare_measurements, too_few_of

NOT_JUDGED = "not judged"
Slices = Mapping[str, Mapping[str, str]]  # item id -> slice -> value


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a comparison is to decide."""

    margins: Mapping[str, float]  # metric -> the largest difference that does not matter; the first metric decides
    slices: Sequence[str] = ()  # keys whose values are judged apart
    alpha: float = 0.05
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric, of all items or of one slice, of a candidate against the baseline."""

    metric: str
    slice: str | None  # None: all items; else "source=web"
    higher_is_better: bool
    margin: float  # the largest difference that does not matter
    n_items: int
    n_different: int  # items that the two answer differently
    baseline: float
    candidate: float
    difference: float  # candidate minus baseline
    low: float | None  # 95 % interval of the difference; None: too few items, `reason` says so
    high: float | None
    p_value: float | None
    adjusted_p: float | None
    verdict: str  # better, worse, equivalent, undecided or not judged
    reason: str
    n_more: int | None = None  # items that would decide an undecided one


@dataclass(frozen=True, kw_only=True)
class Guardrail:
    """A limit that a candidate must keep whatever its quality."""

    name: str
    limit: str
    value: float
    low: float | None = None  # 95 % interval
    high: float | None = None
    is_kept: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What was found about one variant."""

    name: str
    verdict: str
    summary: str  # one sentence
    lines: Sequence[Line]
    guardrails: Sequence[Guardrail] = ()


@dataclass(frozen=True)
class _Question:
    metric: str
    slice: str | None
    baseline: Measurement
    candidate: Measurement


def questions(
    baseline: Sequence[Measurement], candidate: Sequence[Measurement], slices: Slices, asked: Asked
) -> list[_Question]:
    """Every metric that is asked for, on all items and on each value of each slice.

    Raises ValueError for a metric that was not measured.
    """
    measured = [{one.metric: one for one in each} for each in (baseline, candidate)]
    found = []
    for metric in asked.margins:
        if missing := [
            name for name, each in zip(("baseline", "candidate"), measured, strict=True) if metric not in each
        ]:
            raise ValueError(
                f"{metric} was not measured of the {' and the '.join(missing)}; measured: {', '.join(measured[0])}"
            )
        one, other = (each[metric] for each in measured)
        found.append(_Question(metric, None, one, other))
        for key in asked.slices:
            values = [slices.get(item, {}).get(key) for item in one.items]
            for value in sorted({value for value in values if value is not None}):
                keep = [i for i, here in enumerate(values) if here == value]
                found.append(_Question(metric, f"{key}={value}", one.only(keep), other.only(keep)))
    return found


def lines(
    baseline: Sequence[Measurement], candidates: Sequence[Sequence[Measurement]], slices: Slices, asked: Asked
) -> list[list[Line]]:
    """For each candidate a judged line for each metric and slice.

    P-values are corrected for all lines of all candidates together (Holm): whoever tries many variants finds one that
    looks better. Equivalence is corrected for the number of candidates alone, see jobs.paired.judge.
    """
    all_asked = [questions(baseline, candidate, slices, asked) for candidate in candidates]
    differences = [[_difference(each, asked.seed + i) for i, each in enumerate(of_one)] for of_one in all_asked]
    judged = [found.p_value for of_one in differences for found in of_one if not isinstance(found, str)]
    adjusted = iter(holm(judged))
    return [
        [
            _not_judged(each, found, asked.margins[each.metric])
            if isinstance(found, str)
            else _judged(each, found, next(adjusted), asked, n_candidates=len(candidates))
            for each, found in zip(*of_one, strict=True)
        ]
        for of_one in zip(all_asked, differences, strict=True)
    ]


def _difference(question: _Question, seed: int) -> Difference | str:
    n_different = int(question.baseline.differs(question.candidate).sum())
    if reason := too_few_of(question.baseline, n_different):
        return reason
    try:
        return compare_measurements(question.baseline, question.candidate, seed=seed)
    except ValueError as e:
        return str(e)


def _not_judged(question: _Question, reason: str, margin: float) -> Line:
    one, other = question.baseline, question.candidate
    return Line(
        metric=question.metric,
        slice=question.slice,
        higher_is_better=one.higher_is_better,
        margin=margin,
        n_items=len(one.items),
        n_different=int(one.differs(other).sum()),
        baseline=one.value,
        candidate=other.value,
        difference=other.value - one.value,
        low=None,
        high=None,
        p_value=None,
        adjusted_p=None,
        verdict=NOT_JUDGED,
        reason=reason,
    )


def _judged(question: _Question, found: Difference, adjusted_p: float, asked: Asked, *, n_candidates: int) -> Line:
    margin, one = asked.margins[question.metric], question.baseline
    judged = judge(
        found,
        adjusted_p=adjusted_p,
        margin=margin,
        higher_is_better=one.higher_is_better,
        alpha=asked.alpha,
        n_candidates=n_candidates,
    )
    low, high = found.interval(1 - asked.alpha)
    return Line(
        metric=question.metric,
        slice=question.slice,
        higher_is_better=one.higher_is_better,
        margin=margin,
        n_items=found.n_items,
        n_different=int(one.differs(question.candidate).sum()),
        baseline=found.baseline,
        candidate=found.candidate,
        difference=found.difference,
        low=low,
        high=high,
        p_value=found.p_value,
        adjusted_p=adjusted_p,
        verdict=judged.verdict,
        reason=judged.reason,
        n_more=judged.n_more,
    )


# -- latency, dollars, errors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def level(repeats: NDArray[np.float64], *, confidence: float = 0.95) -> Estimate:
    """What R repeats of one positive figure have in common: the geometric mean and Student's interval of the logs."""
    from scipy.stats import t

    logs = np.log(repeats)
    half = 0.0
    if len(logs) > 1:
        half = float(t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    middle = float(logs.mean())
    return Estimate(float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half)))


def limit_kept(
    name: str, baseline: NDArray[np.float64], candidate: NDArray[np.float64], *, at_most: float
) -> Guardrail:
    """Whether the candidate's figure is at most so many times the baseline's.

    baseline, candidate: (R,), taken in turn, repeat i of one beside repeat i of the other, so that what else the
    machine did meets both. Broken where the whole interval of the ratio is above the limit.
    """
    ratio = level(candidate / baseline)
    is_kept = ratio.low <= at_most
    sure = "and certainly so" if ratio.high <= at_most else "or not: the interval holds the limit"
    said = f"kept, {sure}" if is_kept else "broken: the whole interval is above"
    return Guardrail(
        name=name,
        limit=f"at most {at_most:g} times the baseline",
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        is_kept=is_kept,
        reason=said,
    )


def errors_kept(baseline: float, candidate: float, *, at_most: float) -> Guardrail:
    """Whether the share of items that failed is at most so much above the baseline's; both on the same items."""
    return Guardrail(
        name="error_rate",
        limit=f"at most {at_most:g} above the baseline's",
        value=candidate - baseline,
        is_kept=candidate - baseline <= at_most,
        reason=f"{candidate:.2%} of the items failed, {baseline:.2%} of the baseline's",
    )


def slices_kept(judged: Sequence[Line]) -> Guardrail:
    """Whether no slice is worse by more than the metric's margin."""
    apart = [line for line in judged if line.slice is not None]
    broken = [line for line in apart if line.verdict == "worse" and abs(line.difference) > line.margin]
    worse = [f"{line.metric} on {line.slice}" for line in broken]
    unknown = sum(line.verdict == NOT_JUDGED for line in apart)
    said = f"worse: {', '.join(worse)}" if worse else "none is worse" if apart else "no metric's items have the slices"
    return Guardrail(
        name="slices",
        limit="no slice worse by more than its margin",
        value=float(len(worse)),
        is_kept=not worse,
        reason=said + (f"; {unknown} of {len(apart)} too small to judge" if unknown else ""),
    )


def overall(judged: Sequence[Line], guardrails: Sequence[Guardrail]) -> tuple[str, str]:
    """The verdict on a candidate and one sentence why: that of the first metric on all items, unless a guardrail broke.

    A candidate that breaks one is worse whatever its quality.
    """
    first = judged[0]
    change = f"{first.metric} {first.baseline:.3f} to {first.candidate:.3f}"
    broken = [f"{one.name} ({one.reason})" for one in guardrails if not one.is_kept]
    if broken:
        return "worse", f"breaks {'; '.join(broken)}. {change}: {first.verdict}, {first.reason}."
    others = [f"{one.metric} is {one.verdict}" for one in judged[1:] if one.slice is None]
    more = f" {first.n_more} more items would decide it." if first.n_more else ""
    return first.verdict, f"{change}: {first.reason}.{more}" + (f" Also: {', '.join(others)}." if others else "")
