"""`lakelens experiment FILE`: variants featurized, evaluated, timed in turn and compared. Knows no model's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from jobs import evaluate, tracking
from jobs.check import reports_folder
from jobs.claims import Claim, agreed, check_fingerprint, check_measured, read_claim
from jobs.command import FINISHED, Common, Ending
from jobs.experiment_file import Experiment
from jobs.experiment_page import Arm, Measured, page, primary
from jobs.experiment_report import Candidate, Trial, render
from jobs.experiment_tracking import RunOf, log_experiment, variant_runs
from jobs.golden import read_golden
from jobs.lake import Lake, lake_at, open_lake
from jobs.paired import detectable
from jobs.progress import Progress
from jobs.promote import BASELINE, CANDIDATE, COMPARE
from jobs.quality import Measurement
from jobs.run import Prepared, run_job
from jobs.runs import JobResult, RunAccepted
from jobs.session import spark_session
from jobs.sweep import best, variant, with_grid
from jobs.trials import searched
from jobs.variants import arms, evaluating, measure, measurements, part_of, run_arm
from schemas import FEATURES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def run_arms(
    spark: SparkSession, lake: Lake, common: Common, golden: str, variants: Sequence[Arm], run_of: RunOf,
    progress: Progress, *, known: set[str],
) -> None:  # fmt: skip
    """Featurize and evaluate variants; fingerprints that are `known` are not computed again."""
    for arm in variants:
        mine = replace(common, config=arm.config, run_id=f"{common.run_id}.{arm.name}")
        run_arm(spark, lake, mine, arm, golden, run_of(arm), progress, known=known)
        run_job(spark, lake, mine, evaluating(arm, golden), run_of(arm), progress)


def foreseen(experiment: Experiment, first: Measurement) -> tuple[float, str]:
    """The smallest difference that the items are likely to show, known from the baseline alone, and that in words."""
    n, margin = len(first.items), experiment.metrics[first.metric].margin
    metric = first.pair(first.data, first.data)
    least = detectable(metric, n, seed=experiment.seed, groups=first.groups, alpha=experiment.alpha)
    said = f"{n} items are likely to show a difference of {least:.2g} in {first.metric} (baseline {first.value:.3f})"
    if least > margin:
        said += f"; to show the margin, {margin:g}, takes about {n * (least / margin) ** 2:,.0f}"
    return least, said


def confirmed(experiment: Experiment, trials: Sequence[Trial]) -> Experiment:
    """The experiment with the best of the trials among its variants."""
    assert experiment.sweep is not None
    chosen = {one.name: variant(experiment.sweep, one.settings) for one in best(trials, experiment.sweep.confirm)}
    return experiment.model_copy(update={"variants": chosen | experiment.variants})


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
    progress = Progress(live=not (common.as_json or common.debug))
    with ExitStack() as stack:
        stack.enter_context(progress.shown())
        progress(f"experiment {experiment.name}: starting Spark")
        spark = spark_session(common.config.spark, f"lakelens experiment {experiment.name}")
        lake = open_lake(spark, common.config.lake, create=False)
        claims = [
            read_claim(spark, lake, run_id, arm.due.spec.id) for run_id, arm in zip(claimed, variants, strict=False)
        ]
        experiment = as_claimed(experiment, variants, claims)
        number, items = read_golden(spark, lake, experiment.golden)
        golden_set = experiment.golden.partition("@")[0]
        experiment = experiment.model_copy(update={"golden": f"{golden_set}@{number}"})
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
        run_of = stack.enter_context(variant_runs(parent, lake, experiment))
        try:
            known: set[str] = set()
            part, trials = part_of(experiment, items, searched=False), list[Trial]()
            stated, is_computed = experiment, experiment.features_version is None
            if is_computed:
                run_arms(spark, lake, common, experiment.golden, variants[:1], run_of, progress, known=known)
            inputs = _inputs(spark, lake, experiment)
            _, measured = measurements(spark, lake, variants[0], items, part, at=inputs[FEATURES.name])
            least, said = foreseen(experiment, primary(measured, experiment))
            progress.note(said)
            if is_dry:
                facts = {"run_id": common.run_id, "lake": lake.uri, "golden": experiment.golden, "detectable": least}
                return Ending(exit_code=FINISHED, message=said, facts=facts)
            if is_computed:
                if experiment.sweep is not None:
                    seen = part_of(experiment, items, searched=True)
                    trials = searched(
                        spark, lake, common, experiment, variants[0], items, seen, run_of, progress, known=known
                    )
                    experiment = confirmed(experiment, trials)
                    variants = arms(experiment, common.config)
                run_arms(spark, lake, common, experiment.golden, variants[1:], run_of, progress, known=known)
                inputs = _inputs(spark, lake, experiment)
            progress("timing the variants in turn")
            found = measure(spark, lake, experiment, variants, items, part, at=inputs[FEATURES.name])
            for claim, one in zip(claims, found, strict=False):
                check_measured(claim, golden_set, one.measurements)
            progress("comparing")
            report = page(
                spark, lake, experiment, found, items, number, inputs,
                stated=stated, command=command, detectable=least, trials=trials,
            )  # fmt: skip
            for one, candidate in zip(found[1:], report.candidates, strict=True):
                mine = replace(common, run_id=f"{common.run_id}.{candidate.name}")
                with suppress(RunAccepted):  # it is written already
                    run_job(spark, lake, mine, concluding(found[0], one, candidate, inputs), run_of(one.arm), progress)
        except BaseException as e:
            e.add_note(f"run_id={common.run_id}")
            raise
        file = reports_folder(lake, common.run_id) / "experiment.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(report), encoding="utf-8")
        tracking.log_files(parent, [file])
        log_experiment(parent, run_of, lake, experiment, found, report)
    said = "; ".join(f"{one.name} is {one.verdict}: {one.summary}" for one in report.candidates)
    facts = {
        "run_id": common.run_id,
        "lake": lake.uri,
        "golden": experiment.golden,
        "verdicts": {one.name: one.verdict for one in report.candidates},
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


def concluding(baseline: Measured, candidate: Measured, found: Candidate, inputs: Mapping[str, int]) -> Prepared:
    """The job that writes down a verdict: accepted where it is better or equivalent, rejected where it is worse."""
    both = {BASELINE: baseline, CANDIDATE: candidate}
    status: dict[str, Literal["finished", "accepted", "rejected"]] = {
        "better": "accepted", "equivalent": "accepted", "worse": "rejected",
    }  # fmt: skip
    result = JobResult(
        status=status.get(found.verdict, "finished"),
        message=f"{found.name} is {found.verdict}",
        outputs={key: f"{one.arm.due.spec.id}#{one.arm.due.fingerprint}" for key, one in both.items()},
        metrics={f"difference/{line.metric}": line.difference for line in found.lines if line.slice is None},
    )
    return Prepared(
        name=COMPARE,
        outputs={},
        pins=lambda spark, lake: inputs,
        run=lambda spark, lake, run: result,
        is_measured=False,
    )
