"""An experiment in MLflow: a run for each variant, tables, plots, versions of models. Knows no table, no statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from jobs import tracking
from jobs.compare import Candidate
from jobs.evaluate import health_of
from jobs.experiment_file import Experiment
from jobs.experiment_plots import forest_figure, trade_off_figure
from jobs.experiment_report import ExperimentReport, Variant
from jobs.lake import Lake
from jobs.outbox import DESCRIPTION
from jobs.published import kind_of
from jobs.runs import code_version
from jobs.tracking import Tracked
from jobs.variants import Arm, Measured

RunOf = Callable[[Arm], AbstractContextManager[Tracked]]  # the run of a variant, for a block of its own work
BASELINE = "baseline"  # what stands where the others have a verdict


def variant_runs(parent: Tracked, lake: Lake, experiment: Experiment) -> RunOf:
    """The runs of variants within the experiment's run, one for each: it begins with the first block that asks for it,
    ends with that, and goes on with the next; what fails outside of its blocks does not fail it.

    experiment: with the version of its golden set.
    """
    begun: dict[str, Tracked] = {}

    @contextmanager
    def run_of(arm: Arm) -> Iterator[Tracked]:
        if arm.name in begun:
            run = tracking.continued(begun[arm.name])
        else:
            parameters = tracking.flat_parameters({"featurizer": arm.due.spec.id, **arm.settings})
            tags = variant_tags(arm, experiment) | {"lake": lake.uri, "code_version": code_version()}
            run = tracking.child_run(parent, name=arm.name, tags=tags, parameters=parameters)
        with run as begun[arm.name]:
            yield begun[arm.name]

    return run_of


def variant_tags(arm: Arm, experiment: Experiment) -> dict[str, str]:
    """What the run of a variant is searched by; its verdict comes later."""
    return {
        "variant": arm.name,
        "featurizer": arm.due.spec.id,
        "fingerprint": arm.due.fingerprint,
        "is_baseline": json.dumps(arm.name == experiment.baseline),
        "experiment": experiment.name,
        "question": experiment.question,
        "golden": experiment.golden,
    }


def log_measured(tracked: Tracked, measured: Measured, variant: Variant, baseline: Measured | None) -> None:
    """What was measured of a variant: every metric, its prices, and what can be told without labels.

    baseline: whose answers the shifts are against; None: it is the baseline.
    """
    named = {f"quality/{one.metric}": one.value for one in measured.measurements}
    named |= {"latency_ms/p95": variant.p95_ms, "cost_usd/total": variant.usd_per_million}  # dollars of a million items
    named["errors/rate"] = variant.error_rate
    before = baseline.frames if baseline is not None else None
    named |= {f"quality/health/{figure}": value for figure, value in health_of(measured.frames, before).items()}
    tracking.log_metrics(tracked, named)


def log_verdict(tracked: Tracked, candidate: Candidate) -> None:
    """What was found about a candidate: its differences from the baseline on all items, the verdict and why."""
    named: dict[str, float] = {}
    for line in candidate.lines:
        if line.slice is None:
            ends = {"low": line.low, "high": line.high, "p_value": line.p_value, "adjusted_p": line.adjusted_p}
            named[f"difference/{line.metric}"] = line.difference
            named |= {f"difference/{line.metric}/{end}": value for end, value in ends.items() if value is not None}
    tracking.log_metrics(tracked, named)
    broken = [one.name for one in candidate.guardrails if not one.is_kept]
    told = {"verdict": candidate.verdict, "guardrails_broken": ", ".join(broken) or "none"}
    tracking.log_tags(tracked, told | {DESCRIPTION: f"**{candidate.verdict.capitalize()}**: {candidate.summary}"})


def log_experiment(
    parent: Tracked, run_of: RunOf, lake: Lake, experiment: Experiment, found: Sequence[Measured],
    report: ExperimentReport,
) -> None:  # fmt: skip
    """All that MLflow keeps of an experiment beside its jobs' own runs.

    found: the baseline first, then the candidates in the order of the report's.
    """
    baseline, *others = found
    runs: dict[str, Tracked] = {}
    shown = {variant.name: variant for variant in report.variants}
    for one in found:
        with run_of(one.arm) as runs[one.arm.name]:
            log_measured(runs[one.arm.name], one, shown[one.arm.name], baseline if one is not baseline else None)
    first = runs[baseline.arm.name]
    tracking.log_tags(first, {"verdict": BASELINE, DESCRIPTION: "The baseline, which the others are compared with."})
    for one, candidate in zip(others, report.candidates, strict=True):
        log_verdict(runs[one.arm.name], candidate)
    for tracked in (parent, *runs.values()):
        tracking.log_inputs(tracked, lake, report.inputs)
    log_overview(parent, report)
    register(first, lake, experiment, baseline.arm, None)
    verdicts = {candidate.name: candidate.verdict for candidate in report.candidates}
    for one in others:
        # A candidate that differs in how it is evaluated alone has the baseline's vectors, and no verdict on them.
        is_new = one.arm.due.fingerprint != baseline.arm.due.fingerprint
        register(runs[one.arm.name], lake, experiment, one.arm, verdicts[one.arm.name] if is_new else None)


def log_overview(parent: Tracked, report: ExperimentReport) -> None:
    """The verdicts as tags and text, the tables and the plots of the experiment's own run."""
    tracking.log_table(parent, "comparison.json", comparison_rows(report))
    tracking.log_table(parent, "variants.json", variant_rows(report))
    tracking.log_table(parent, "guardrails.json", guardrail_rows(report))
    tracking.log_table(parent, "trials.json", trial_rows(report))
    tracking.log_figure(parent, "forest.png", lambda: forest_figure(report))
    tracking.log_figure(parent, "trade_offs.png", lambda: trade_off_figure(report))
    tags = {f"verdict.{one.name}": one.verdict for one in report.candidates}
    lines = [f"- **{one.name} is {one.verdict}**: {one.summary}" for one in report.candidates]
    tags |= {"experiment": report.name, "question": report.question, "primary_metric": report.primary_metric}
    tracking.log_tags(parent, tags | {DESCRIPTION: "\n".join([report.question, "", *lines])})
    tracking.describe_experiment(parent, report.question)


def comparison_rows(report: ExperimentReport) -> list[dict[str, object]]:
    """Every comparison that was judged: candidates, metrics and slices."""
    return [
        {
            "variant": candidate.name,
            "metric": line.metric,
            "slice": line.slice or "all items",
            "verdict": line.verdict,
            "difference": rounded(line.difference),
            "low": rounded(line.low),
            "high": rounded(line.high),
            "baseline": rounded(line.baseline),
            "candidate": rounded(line.candidate),
            "p_value": rounded(line.p_value),
            "adjusted_p": rounded(line.adjusted_p),
            "reason": line.reason,
            "margin": line.margin,
            "n_items": line.n_items,
            "n_different": line.n_different,
        }
        for candidate in report.candidates
        for line in candidate.lines
    ]


def variant_rows(report: ExperimentReport) -> list[dict[str, object]]:
    """The variants with their three prices."""
    verdicts = {candidate.name: candidate.verdict for candidate in report.candidates}
    return [
        {
            "number": i,
            "variant": variant.name,
            "verdict": verdicts.get(variant.name, BASELINE),
            "featurizer": variant.featurizer,
            "settings": ", ".join(f"{key}={value}" for key, value in variant.settings.items()),
            report.primary_metric: rounded(variant.quality),
            "p95_ms": rounded(variant.p95_ms),
            "usd_per_million": rounded(variant.usd_per_million),
            "error_rate": rounded(variant.error_rate),
            "is_on_front": variant.is_on_front,
            "fingerprint": variant.fingerprint,
        }
        for i, variant in enumerate(report.variants, start=1)
    ]


def guardrail_rows(report: ExperimentReport) -> list[dict[str, object]]:
    """Every limit of every candidate, kept or broken."""
    return [
        {
            "variant": candidate.name,
            "guardrail": one.name,
            "is_kept": one.is_kept,
            "limit": one.limit,
            "value": rounded(one.value),
            "low": rounded(one.low),
            "high": rounded(one.high),
            "reason": one.reason,
        }
        for candidate in report.candidates
        for one in candidate.guardrails
    ]


def trial_rows(report: ExperimentReport) -> list[dict[str, object]]:
    """What a search tried, on the items that it saw; costs are ratios to the baseline's."""
    candidates = {candidate.name for candidate in report.candidates}
    return [
        {
            "variant": trial.name,
            "settings": ", ".join(f"{key}={value}" for key, value in trial.settings.items()),
            "quality_for_the_search": rounded(trial.objectives[0]),
            "p95_ratio": rounded(trial.objectives[1]),
            "usd_ratio": rounded(trial.objectives[2]),
            "is_judged": trial.name in candidates,
        }
        for trial in report.trials
    ]


def rounded(value: float | None) -> float | None:
    """To six digits, which is all that a table needs; none where it is not finite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def register(tracked: Tracked, lake: Lake, experiment: Experiment, arm: Arm, verdict: str | None) -> None:
    """A version of the lake's registered model of the kind for a variant's fingerprint, with the last verdict on it.

    verdict: None: there is none, and what earlier experiments found stays.
    """
    model = tracking.model_of(lake, kind_of(arm.due.spec.id))
    stands = {"featurizer": arm.due.spec.id, "fingerprint": arm.due.fingerprint, "lake": lake.uri}
    found = {"experiment": experiment.name, "golden": experiment.golden, "verdict": verdict} if verdict else {}
    tracking.register_version(tracked, model, stands, found)
