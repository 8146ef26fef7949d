"""`lakelens experiment FILE`: variants featurized, evaluated, timed in turn and compared. Knows no model's code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from jobs import evaluate, tracking
from jobs.check import EXPERIMENT, reports_folder
from jobs.claims import Claim, agreed, check_fingerprint, check_measured, read_claim
from jobs.command import FINISHED, Common, Ending, progress_of
from jobs.compare import Asked, Candidate, Line, errors_kept, limit_kept, lines, overall, slices_kept
from jobs.config import Config, ConfigError
from jobs.experiment_file import Experiment
from jobs.experiment_page import page
from jobs.experiment_report import render
from jobs.experiment_tracking import RunOf, log_experiment, variant_runs
from jobs.golden import read_golden
from jobs.lake import Lake, lake_at, open_lake, sql_text
from jobs.paired import detectable
from jobs.progress import Progress
from jobs.promote import BASELINE, CANDIDATE, COMPARE
from jobs.quality import GoldenItem, Measurement
from jobs.run import Prepared, run_job, sole_writer_of
from jobs.runs import JobResult, RunAccepted, run_rows, stored_run_id
from jobs.session import spark_session
from jobs.sweep import Trial, best, variant, with_grid
from jobs.trials import searched
from jobs.variants import (
    Arm,
    Measured,
    Seen,
    arm_of,
    arms,
    evaluating,
    is_same,
    measure,
    measurements,
    part_of,
    primary,
    run_arm,
    run_once,
)
from schemas import FEATURES, GOLDEN

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def run_arms(
    spark: SparkSession, lake: Lake, common: Common, golden: str, variants: Sequence[Arm], run_of: RunOf,
    progress: Progress, *, known: set[str], seen: Seen,
) -> None:  # fmt: skip
    """Featurize variants, then evaluate them all at one version of `features`, and add what was measured to `seen`.

    Fingerprints that are `known` are not computed again.
    """
    mine = [replace(common, config=arm.config, run_id=f"{common.run_id}.{arm.name}") for arm in variants]
    for of_arm, arm in zip(mine, variants, strict=True):
        with run_of(arm) as run:
            run_arm(spark, lake, of_arm, arm, golden, run, progress, known=known)
    for of_arm, arm in zip(mine, variants, strict=True):
        with run_of(arm) as run:
            run_once(spark, lake, of_arm, evaluating(arm, golden, seen), run, progress)


def check_asked(experiment: Experiment, measured: Sequence[Measurement], items: Sequence[GoldenItem]) -> None:
    """Raise ConfigError for a metric that was not measured of the baseline, and for a slice that no item has."""
    there = [one.metric for one in measured]
    if missing := [metric for metric in experiment.metrics if metric not in there]:
        raise ConfigError(f"metric {missing[0]!r} is not measured on {experiment.golden}; measured: {', '.join(there)}")
    slices = {key for item in items for key in item.slices}
    if missing := [key for key in experiment.slices if key not in slices]:
        said = ", ".join(sorted(slices)) or "none"
        raise ConfigError(f"slice {missing[0]!r} is of no item of {experiment.golden}; there are: {said}")


def foreseen(experiment: Experiment, first: Measurement, *, n_lines: int) -> tuple[float, str]:
    """The smallest difference that the items are likely to show, known from the baseline alone, and that in words.

    n_lines: that p-values are corrected for; what one alone could show is less.
    """
    n, margin = len(first.items), experiment.metrics[first.metric].margin
    metric, alpha = first.pair(first.data, first.data), experiment.alpha / n_lines
    least = detectable(metric, n, seed=experiment.seed, groups=first.groups, alpha=alpha)
    said = f"{n} items are likely to show a difference of {least:.2g} in {first.metric} (baseline {first.value:.3f})"
    if least > margin:
        said += f"; to show the margin, {margin:g}, takes about {n * (least / margin) ** 2:,.0f}"
    return least, said


def n_lines(experiment: Experiment, n_candidates: int, items: Sequence[GoldenItem]) -> int:
    """At most so many lines are judged together: metrics, on all items and each value of each slice, by candidate."""
    values = {(key, item.slices[key]) for item in items for key in experiment.slices if key in item.slices}
    return len(experiment.metrics) * (1 + len(values)) * n_candidates


def confirmed(experiment: Experiment, trials: Sequence[Trial], baseline: Arm, base: Config) -> Experiment:
    """The experiment with the best of the trials among its variants; none that is the baseline once more.

    Raises ConfigError where a trial has the name of a variant, or none is left.
    """
    assert experiment.sweep is not None
    made = {one.name: variant(experiment.sweep, one.settings) for one in trials}
    if twice := sorted(set(made) & set(experiment.variants)):
        raise ConfigError(f"experiment {experiment.name}: variant {twice[0]} is named and was tried; rename it")
    others = [one for one in trials if not is_same(arm_of(one.name, made[one.name], base), baseline)]
    chosen = {one.name: made[one.name] for one in best(others, experiment.sweep.confirm)}
    if not chosen and len(experiment.variants) < 2:
        raise ConfigError(f"experiment {experiment.name}: the search tried nothing but the baseline")
    return experiment.model_copy(update={"variants": experiment.variants | chosen})


def all_judged(
    experiment: Experiment, baseline: Measured, candidates: Sequence[Measured], items: Sequence[GoldenItem]
) -> list[Candidate]:
    """The verdict on each candidate, without the pictures."""
    asked = Asked(
        margins={name: metric.margin for name, metric in experiment.metrics.items()},
        slices=experiment.slices,
        alpha=experiment.alpha,
        seed=experiment.seed,
    )
    slices = {item.item_id: item.slices for item in items}
    found = lines(baseline.measurements, [one.measurements for one in candidates], slices, asked)
    return [_judged(experiment, baseline, one, its) for one, its in zip(candidates, found, strict=True)]


def _judged(experiment: Experiment, baseline: Measured, candidate: Measured, found: Sequence[Line]) -> Candidate:
    rails = []
    if limit := experiment.guardrails.p95_ms:
        rails.append(limit_kept("p95_ms", baseline.passes.p95_ms, candidate.passes.p95_ms, at_most=limit.at_most))
    if limit := experiment.guardrails.usd_per_million:
        both = (baseline.passes.cpu_s_per_media, candidate.passes.cpu_s_per_media)
        rails.append(limit_kept("usd_per_million", *both, at_most=limit.at_most))
    if limit := experiment.guardrails.error_rate:
        rails.append(errors_kept(baseline.error_rate, candidate.error_rate, at_most=limit.at_most))
    if experiment.slices:
        rails.append(slices_kept(found))
    verdict, summary = overall(found, rails)
    return Candidate(name=candidate.arm.name, verdict=verdict, summary=summary, lines=found, guardrails=rails)


def earlier(spark: SparkSession, lake: Lake, common: Common, experiment: Experiment) -> Mapping[str, Any] | None:
    """The evaluation of the baseline in an earlier attempt at this run id, a row of `runs`."""
    first = stored_run_id(f"{common.run_id}.{experiment.baseline}", "evaluate")
    return next(iter(run_rows(spark, lake, f"run_id = {sql_text(first)}")), None)


def decided(spark: SparkSession, lake: Lake, common: Common, experiment: Experiment) -> bool:
    """Whether this run id has accepted verdicts alone; raises ConfigError where they are on another experiment."""
    found = run_rows(spark, lake, f"job = {sql_text(COMPARE)} AND startswith(run_id, {sql_text(common.run_id + '.')})")
    if any((row["outputs"] or {}).get(EXPERIMENT) != named(common, experiment) for row in found):
        raise ConfigError(f"run {common.run_id} decided another experiment than this file states; give a new --run-id")
    return bool(found) and all(row["status"] == "accepted" for row in found)


def named(common: Common, experiment: Experiment) -> str:
    """Its run id, #, and the SHA-256 (64 hex digits) of all that it states, its golden set with its version."""
    stated = json.dumps(experiment.model_dump(mode="json"), sort_keys=True)
    return f"{common.run_id}#{hashlib.sha256(stated.encode()).hexdigest()}"


def run_experiment(
    common: Common, experiment: Experiment, command: str, *, claimed: Sequence[str] = (), is_dry: bool = False
) -> Ending:
    """Featurize, evaluate, time and compare the variants; writes the page. Raises what ends it otherwise.

    command: what the reader of the page types to do it again.
    claimed: the runs of `evaluate` that measured baseline and candidate; nothing is computed, and ComparisonRefused is
    raised unless both measured the same items of the same tables, and what is measured here is what they say.
    is_dry: only the baseline is run, and what the golden set can show is said.
    """
    tracking.tracking_store(lake_at(common.config.lake))
    experiment = with_grid(experiment)
    variants = arms(experiment, common.config)
    progress = progress_of(common)
    with ExitStack() as stack:
        stack.enter_context(progress.shown())
        stack.enter_context(sole_writer_of(common))
        progress(f"experiment {experiment.name}: starting Spark")
        spark = spark_session(common.config.spark, f"lakelens experiment {experiment.name}", lake=common.config.lake)
        lake = open_lake(spark, common.config.lake, create=False)
        claims = [
            read_claim(spark, lake, run_id, arm.due.spec.id) for run_id, arm in zip(claimed, variants, strict=False)
        ]
        experiment = as_claimed(experiment, variants, claims)
        before = earlier(spark, lake, common, experiment)
        at = before["inputs"][GOLDEN.name] if before is not None else None  # a resumed run keeps its version of the set
        number, items = read_golden(spark, lake, experiment.golden, at=at)
        golden_set = experiment.golden.partition("@")[0]
        experiment = experiment.model_copy(update={"golden": f"{golden_set}@{number}"})
        file = reports_folder(lake, common.run_id) / "experiment.html"
        if decided(spark, lake, common, experiment) and file.exists():
            message = f"experiment {common.run_id} was decided before; nothing to do; report at {file}"
            return Ending(exit_code=FINISHED, message=message, facts={"run_id": common.run_id, "report": str(file)})
        parent = stack.enter_context(
            tracking.pipeline_run(
                lake,
                common.config,
                name=common.run_id,
                experiment=experiment.name,
                warn=progress,
                tags={"jobs": "experiment", "golden": experiment.golden, "baseline": experiment.baseline},
            )
        )
        run_of = variant_runs(parent, lake, experiment)
        try:
            known, seen = set[str](), Seen()
            part, trials = part_of(experiment, items, searched=False), list[Trial]()
            stated, is_computed = experiment, experiment.features_version is None
            if is_computed:
                run_arms(spark, lake, common, experiment.golden, variants[:1], run_of, progress, known=known, seen=seen)
            inputs = _inputs(spark, lake, experiment)
            _, measured = measurements(
                spark, lake, variants[0], experiment.golden, items, part, at=inputs[FEATURES.name], seen=seen
            )
            check_asked(experiment, measured, items)
            n_candidates = len(variants) - 1 + (experiment.sweep.confirm if experiment.sweep is not None else 0)
            n_judged = n_lines(experiment, n_candidates, items)
            least, said = foreseen(experiment, primary(measured, experiment), n_lines=n_judged)
            progress.note(said)
            if is_dry:
                facts = {"run_id": common.run_id, "lake": lake.uri, "golden": experiment.golden, "detectable": least}
                return Ending(exit_code=FINISHED, message=said, facts=facts)
            if is_computed:
                if experiment.sweep is not None:
                    tried_on = part_of(experiment, items, searched=True)
                    trials = searched(
                        spark, lake, common, experiment, variants[0], items, tried_on, run_of, progress, known=known
                    )
                    experiment = confirmed(experiment, trials, variants[0], common.config)
                    variants = arms(experiment, common.config)
                run_arms(spark, lake, common, experiment.golden, variants[1:], run_of, progress, known=known, seen=seen)
                inputs = _inputs(spark, lake, experiment)
            progress("timing the variants in turn")
            found = measure(spark, lake, experiment, variants, items, part, at=inputs[FEATURES.name], seen=seen)
            for claim, one in zip(claims, found, strict=False):
                check_measured(claim, golden_set, one.measurements)
            progress("comparing")
            judged = all_judged(experiment, found[0], found[1:], items)
            report = page(
                spark, lake, experiment, found, items, number, inputs,
                candidates=judged, stated=stated, command=command, detectable=least, trials=trials,
            )  # fmt: skip
            for one, candidate in zip(found[1:], judged, strict=True):
                mine = replace(common, run_id=f"{common.run_id}.{candidate.name}")
                job = concluding(found[0], one, candidate, inputs, named(common, stated))
                with run_of(one.arm) as run, suppress(RunAccepted):  # it is written already
                    run_job(spark, lake, mine, job, run, progress)
        except BaseException as e:
            e.add_note(f"run_id={common.run_id}")
            raise
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(report), encoding="utf-8")
        tracking.log_files(parent, [file])
        log_experiment(parent, run_of, lake, experiment, found, report)
    said = "; ".join(f"{one.name} is {one.verdict}: {one.summary}" for one in judged)
    facts = {
        "run_id": common.run_id,
        "lake": lake.uri,
        "golden": experiment.golden,
        "verdicts": {one.name: one.verdict for one in judged},
        "report": str(file),
    }
    return Ending(exit_code=FINISHED, message=f"{said} report at {file}", facts=facts)


def as_claimed(experiment: Experiment, variants: Sequence[Arm], claims: Sequence[Claim]) -> Experiment:
    """The experiment on what both claims measured, as it is without claims; raises ComparisonRefused."""
    if not claims:
        return experiment
    baseline, candidate = claims
    for claim, arm in zip(claims, variants, strict=True):
        check_fingerprint(
            f"{arm.name} ({arm.due.spec.id} of run {claim.run_id})", claim.fingerprint, arm.due.fingerprint
        )
    golden, at = agreed(baseline, candidate, experiment.golden)
    return experiment.model_copy(update={"golden": golden, "features_version": at})


def _inputs(spark: SparkSession, lake: Lake, experiment: Experiment) -> dict[str, int]:
    """The versions of the tables that are compared."""
    now = dict(evaluate.pins(spark, lake))
    return now if experiment.features_version is None else now | {FEATURES.name: experiment.features_version}


def concluding(
    baseline: Measured, candidate: Measured, found: Candidate, inputs: Mapping[str, int], experiment: str
) -> Prepared:
    """The job that writes down a verdict: accepted where it is better or equivalent, rejected where it is worse.

    Neither where both have the same vectors and differ in how they are evaluated: it says nothing of the vectors.
    experiment: its run id and digest.
    """
    both = {BASELINE: baseline, CANDIDATE: candidate}
    status: dict[str, Literal["finished", "accepted", "rejected"]] = {
        "better": "accepted", "equivalent": "accepted", "worse": "rejected",
    }  # fmt: skip
    outputs = {key: f"{one.arm.due.spec.id}#{one.arm.due.fingerprint}" for key, one in both.items()}
    is_on_vectors = outputs[BASELINE] != outputs[CANDIDATE]
    result = JobResult(
        status=status.get(found.verdict, "finished") if is_on_vectors else "finished",
        message=f"{found.name} is {found.verdict}",
        outputs=outputs | {EXPERIMENT: experiment},
        metrics={f"difference/{line.metric}": line.difference for line in found.lines if line.slice is None},
    )
    return Prepared(
        name=COMPARE,
        outputs={},
        pins=lambda spark, lake: inputs,
        run=lambda spark, lake, run: result,
        is_measured=False,
    )
