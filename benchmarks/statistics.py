"""Rows S1 and S2: how often equal variants are told apart, and how often 95 % intervals hold the truth.

    python -m benchmarks.statistics              # one table, and the two rows
    python -m benchmarks.statistics --quick      # few comparisons, of simulated answers only; writes no rows
    python -m benchmarks.statistics --limits     # coverage at sizes from 30: where jobs.paired.MIN_ITEMS comes from

Items are drawn again and again from populations whose true difference is known, simulated ones and real answers, and
every sample is compared as `lakelens compare` does it. A/A: both variants answer by the same law. A/B: they differ by
as much as `jobs.paired.detectable` states that so many items can show (simulated), or by what they do (real).
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks import real_answers, simulated
from benchmarks.comparisons import (
    ALPHA,
    Case,
    Outcome,
    binomial_interval,
    coverage,
    family_wise,
    one_run,
    shown,
    simulated_null,
    stated,
    told_apart,
)
from benchmarks.real_answers import Pool
from benchmarks.row import LATEST, Row, machine, table, write
from benchmarks.simulated import KINDS, Kind
from jobs.paired import POWER, min_items

LEAST_COVERAGE, MOST_COVERAGE = 0.93, 0.97
MOST_REFUSED = 0.5  # of a metric's samples: those that are still judged are no fair choice, and do not count
MAX_RUNS_AFTER = 500  # of the second power
SIZES = (30, 50, 100, 200, 400)  # of --limits


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is run."""

    runs: int  # A/A; A/B half as many
    dear_runs: int  # the same of metrics that take long to resample
    n_resamples: int  # a quarter of what `lakelens compare` takes, which only makes its answers noisier
    n_stated: int = 60  # samples that the stated effect is the mean over
    real: bool = True  # real answers too, which takes minutes to compute them


FULL = Scale(runs=1000, dear_runs=200, n_resamples=500)
QUICK = Scale(runs=200, dear_runs=60, n_resamples=300, n_stated=5, real=False)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the comparisons of one kind of metric came to; None: not measured."""

    name: str
    n_items: int
    runs: int
    refused: float  # of the A/A comparisons
    told_apart: float  # A/A
    interval: tuple[float, float]  # that holds the share told apart in 95 % of such series, if alpha is kept
    coverage: float  # A/A
    coverage_b: float | None = None  # A/B
    correlation: float | None = None  # of the two answers to an item
    detectable: float | None = None  # stated before the run
    power: float | None = None  # there
    detectable_after: float | None = None  # stated once the pairing is measured
    power_after: float | None = None


def _one_run(job: tuple[Case, int]) -> Outcome:
    return one_run(*job)


def outcomes(pool: Executor, case: Case, runs: int) -> Iterator[Outcome]:
    """Comparisons of seeds 0, 1, ..., which begin at once."""
    return pool.map(_one_run, [(case, seed) for seed in range(runs)], chunksize=5)


# -- simulated ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Comparisons of a kind that are on their way."""

    null: Case
    runs: int
    equal: Iterator[Outcome]
    stated: Future[tuple[float, float, float]]


def begin(pool: Executor, kind: Kind, scale: Scale) -> Begun:
    """Start what needs no true difference."""
    null = simulated_null(kind, kind.n_items, n_resamples=scale.n_resamples)
    runs = scale.dear_runs if null.is_dear else scale.runs
    return Begun(
        null=null, runs=runs, stated=pool.submit(stated, null, scale.n_stated), equal=outcomes(pool, null, runs)
    )


def simulated_kind(pool: Executor, begun: Begun) -> tuple[Found, list[Outcome]]:
    """A/A, coverage and power of a kind; and the A/A comparisons."""
    null, kind = begun.null, begun.null.of
    assert isinstance(kind, Kind)
    before, after, correlation = begun.stated.result()
    case = shown(null, before)
    different = outcomes(pool, case, begun.runs // 2)
    case_after = shown(null, after)
    runs_after = min(begun.runs // 2, MAX_RUNS_AFTER) if kind.is_as_varied else 0
    different_after = outcomes(pool, case_after, runs_after)
    equal, shows = list(begun.equal), list(different)
    found = Found(
        name=kind.name,
        n_items=null.n_items,
        runs=begun.runs,
        refused=0.0,
        told_apart=told_apart(equal),
        interval=binomial_interval(begun.runs),
        coverage=coverage(null, equal),
        coverage_b=coverage(case, shows),
        correlation=correlation,
    )
    if kind.is_as_varied:
        found = replace(
            found,
            detectable=before,
            power=told_apart(shows, int(np.sign(case.truth))),
            detectable_after=after,
            power_after=told_apart(list(different_after), int(np.sign(case_after.truth))),
        )
    return found, equal


# -- real ---------------------------------------------------------------------------------------------------------


def real_metric(pool: Executor, answers: Pool, i: int, scale: Scale) -> tuple[Found, list[Outcome]]:
    """A/A and coverage of a metric of real answers; and the A/A comparisons."""
    population = real_answers.populations(answers)[i]
    n_pool = len(population.differs)
    one, other = population.metric(np.repeat(np.eye(2), n_pool, axis=1)).tolist()
    n_items = max(answers.n_items, min_items(answers.metrics[i]))
    null = Case(
        name=population.name, of=(answers, i), n_items=n_items, effect=0.0, truth=0.0, n_resamples=scale.n_resamples
    )
    runs = scale.dear_runs if null.is_dear else scale.runs
    actual = replace(null, effect=1.0, truth=other - one)
    begun = [outcomes(pool, null, runs), outcomes(pool, actual, runs // 2)]
    equal, different = (list(each) for each in begun)
    judged = sum(found.p_value is not None for found in equal)
    return Found(
        name=f"{population.name} ({n_pool})",
        n_items=n_items,
        runs=runs,
        refused=1 - judged / runs,
        told_apart=told_apart(equal) if judged else float("nan"),
        interval=binomial_interval(max(judged, 1)),
        coverage=coverage(null, equal),
        coverage_b=coverage(actual, different),
    ), equal


# -- the whole ----------------------------------------------------------------------------------------------------


HEADINGS = (
    "| metric | items | runs | refused | A/A told apart | allowed | A/A coverage | A/B coverage | correlation "
    "| detectable | power | detectable, measured | power |\n|---|" + "---:|" * 12
)


def line(found: Found) -> str:
    """A line of the table."""

    def figure(value: float | None, digits: int = 3) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    low, high = found.interval
    cells = [
        found.name, str(found.n_items), str(found.runs), figure(found.refused, 2), figure(found.told_apart),
        f"{low:.3f} to {high:.3f}", figure(found.coverage), figure(found.coverage_b), figure(found.correlation, 2),
        figure(found.detectable), figure(found.power), figure(found.detectable_after), figure(found.power_after),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def processes() -> ProcessPoolExecutor:
    """Two, which start with all that has been computed here."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


def measured(scale: Scale) -> Iterator[tuple[Found, list[Outcome]] | str]:
    """Each kind of metric, simulated and real, as it is done; a sentence for what cannot be measured here."""
    reasons = {answers: real_answers.missing(answers) for answers in real_answers.POOLS if scale.real}
    with processes() as pool:
        begun = [begin(pool, kind, scale) for kind in KINDS]
        for answers, reason in reasons.items():
            if reason is None:
                real_answers.populations(answers)
        for each in begun:
            yield simulated_kind(pool, each)
    with processes() as pool:
        for answers, reason in reasons.items():
            if reason is not None:
                yield f"{answers.name}: {reason}"
                continue
            for i, population in enumerate(real_answers.populations(answers)):
                if not population.differs.any():
                    yield f"{population.name}: not measured, the two variants answer all items alike"
                else:
                    yield real_metric(pool, answers, i, scale)


def rows(scale: Scale = FULL) -> list[Row]:
    """S1 and S2; prints the table as it goes."""
    print(HEADINGS, flush=True)
    found: list[Found] = []
    equal: dict[str, list[list[Outcome]]] = {}
    notes: list[str] = []
    for each in measured(scale):
        if isinstance(each, str):
            notes.append(each)
            continue
        print(line(each[0]), flush=True)
        found.append(each[0])
        source = each[0].name.rpartition(" of ")[2] if each[0].correlation is None else "simulated kinds"
        equal.setdefault(source, []).append(each[1])
    together = {source: family_wise(each) for source, each in equal.items()}
    for source, share in together.items():
        print(f"any of {len(equal[source])} metrics of {source} told apart after Holm: {share:.3f}")
    print("\n".join(notes))
    return _rows(found, together, notes)


def _rows(found: Sequence[Found], together: dict[str, float], notes: Sequence[str]) -> list[Row]:
    judged = [one for one in found if one.refused <= MOST_REFUSED]
    worst = max(judged, key=lambda one: one.told_apart)
    rate = max(worst.told_apart, 1 / worst.runs)
    covered = [(share, one) for one in judged for share in (one.coverage, one.coverage_b) if share]
    least, most = min(covered, key=lambda pair: pair[0]), max(covered, key=lambda pair: pair[0])
    kinds = [{key: _rounded(value) for key, value in asdict(one).items()} for one in found]
    power = [abs(each - POWER) for one in found for each in (one.power, one.power_after) if each is not None]
    return [
        Row(
            id="S1", what="equal variants told apart, of the metric where it is most often",
            unit="share of comparisons",
            ours=round(rate, 4), peer=ALPHA, ratio=round(ALPHA / rate, 3), reach=0.78,
            settings={
                "worst": worst.name, "after_holm": {k: _rounded(v) for k, v in together.items()},
                "metrics": kinds, "not_counted": [one.name for one in found if one not in judged],
                "notes": list(notes), **machine(),
            },
        ),
        Row(
            id="S2", what="95 % intervals that hold the true difference, of the metric where fewest do",
            unit="share of comparisons", ours=round(least[0], 4), peer=LEAST_COVERAGE,
            ratio=round(least[0] / LEAST_COVERAGE, 3), reach=1.0,
            settings={
                "worst": least[1].name, "highest": [most[1].name, round(most[0], 4)], "highest_allowed": MOST_COVERAGE,
                "power_off_by_at_most": _rounded(max(power)), **machine(),
            },
        ),
    ]  # fmt: skip


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 4)
    return value


def limits(scale: Scale) -> None:
    """Print the coverage of each kind at each size; A/B at what is detectable there, or as much as can be shown."""
    print(
        "| metric | items | runs | A/A told apart | A/A coverage | A/B coverage | true difference |\n|---|"
        + "---:|" * 6
    )
    with processes() as pool:
        for kind in KINDS:
            largest = abs(simulated.true_difference(kind, kind.largest_effect))
            for n_items in SIZES:
                null = simulated_null(kind, n_items, n_resamples=scale.n_resamples)
                runs = scale.dear_runs if null.is_dear else scale.runs
                equal = outcomes(pool, null, runs)
                case = shown(null, min(stated(null, scale.n_stated)[0], 0.7 * largest))
                different = outcomes(pool, case, runs)
                both = [list(each) for each in (equal, different)]
                print(
                    f"| {kind.name} | {n_items} | {runs} | {told_apart(both[0]):.3f} | {coverage(null, both[0]):.3f} "
                    f"| {coverage(case, both[1]):.3f} | {case.truth:+.3f} |",
                    flush=True,
                )


def main(arguments: list[str]) -> int:
    """Print the tables; 2 for an unknown argument."""
    import threadpoolctl

    if unknown := [one for one in arguments if one not in ("--quick", "--limits")]:
        print(f"unknown: {', '.join(unknown)}; allowed: --quick, --limits", file=sys.stderr)
        return 2
    scale = QUICK if "--quick" in arguments else FULL
    with threadpoolctl.threadpool_limits(1):  # two processes share the cores
        if "--limits" in arguments:
            limits(replace(scale, runs=scale.runs // 4, dear_runs=scale.dear_runs // 3, n_stated=8))
            return 0
        found = rows(scale)
    if scale is FULL:
        write(found)
        print(f"written to {LATEST}")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
