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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks import real_answers, simulated
from benchmarks.real_answers import Pool
from benchmarks.row import LATEST, Row, machine, table, write
from benchmarks.simulated import KINDS, Kind
from jobs.paired import POWER, Difference, compare, detectable, holm, judge, min_items, too_few

ALPHA, CONFIDENCE = 0.05, 0.95
LEAST_COVERAGE, MOST_COVERAGE = 0.93, 0.97
SIZES = (30, 50, 100, 200, 400)  # of --limits
Compare = Callable[..., Difference]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is run."""

    runs: int  # A/A; A/B half as many
    dear_runs: int  # the same of metrics that take long to resample
    n_resamples: int  # half of what `lakelens compare` takes, which only makes its answers noisier
    n_stated: int = 20  # samples that the stated effect is the mean over
    real: bool = True  # real answers too, which takes a minute to compute them


FULL = Scale(runs=2000, dear_runs=600, n_resamples=1000)
QUICK = Scale(runs=200, dear_runs=60, n_resamples=400, n_stated=5, real=False)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A population and a sample size; `of` is a simulated kind, or a pool of real answers and one of its metrics."""

    name: str
    of: Kind | tuple[Pool, int]
    n_items: int
    effect: float  # 0: A/A
    truth: float
    n_resamples: int

    @property
    def is_dear(self) -> bool:
        """Whether a comparison takes ten times as long as one of means."""
        return any(name in self.name for name in ("average precision", "average_precision", "copies"))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One comparison; None throughout where the report refuses an interval."""

    p_value: float | None = None
    told: int = 0  # 1 better, -1 worse
    low: float | None = None
    high: float | None = None


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


def sampled(case: Case, seed: int) -> tuple[Any, Any, str | None]:
    """The metric of a sample, the groups of its items, and why it is not judged."""
    random = np.random.default_rng(seed)
    if isinstance(case.of, Kind):
        return case.of.simulate(random, case.n_items, case.effect), case.of.groups(case.n_items), None
    pool, i = case.of
    population = real_answers.populations(pool)[i]
    at = random.integers(0, len(population.differs), case.n_items)
    is_swapped = random.random(case.n_items) < (0.5 if case.effect == 0 else 0.0)
    n_different = int(population.differs[at].sum())
    classes = None if population.classes is None else population.classes[at]
    reason = too_few(pool.metrics[i], case.n_items, n_different, classes=classes)
    return population.drawn(at, is_swapped), None, reason


def one_run(case: Case, seed: int, compare: Compare = compare) -> Outcome:
    """One sample, compared and judged."""
    metric, groups, reason = sampled(case, seed)
    if reason is not None:
        return Outcome()
    found = compare(metric, case.n_items, seed=seed, n_resamples=case.n_resamples, groups=groups)
    judged = judge(found, adjusted_p=found.p_value, margin=1.0, higher_is_better=True, alpha=ALPHA)
    low, high = found.interval(CONFIDENCE)
    return Outcome(p_value=found.p_value, told={"better": 1, "worse": -1}.get(judged.verdict, 0), low=low, high=high)


def _one_run(job: tuple[Case, int]) -> Outcome:
    return one_run(*job)


def outcomes(pool: Executor, case: Case, runs: int) -> list[Outcome]:
    """Comparisons of seeds 0, 1, ..."""
    return list(pool.map(_one_run, [(case, seed) for seed in range(runs)], chunksize=5))


def coverage(case: Case, found: Sequence[Outcome]) -> float:
    """The share of the intervals that hold the true difference."""
    inside = [one.low <= case.truth <= one.high for one in found if one.low is not None and one.high is not None]
    return float(np.mean(inside)) if inside else float("nan")


def told_apart(found: Sequence[Outcome], sign: int | None = None) -> float:
    """The share of the judged comparisons that end in `better` or `worse`, or in that of one sign."""
    judged = [one for one in found if one.p_value is not None]
    return float(np.mean([one.told != 0 if sign is None else one.told == sign for one in judged]))


def binomial_interval(runs: int) -> tuple[float, float]:
    """Which shares told apart 95 % of series of so many runs have, if alpha is kept."""
    from scipy.stats import binom

    low, high = binom.interval(0.95, runs, ALPHA)
    return float(low / runs), float(high / runs)


# -- simulated ----------------------------------------------------------------------------------------------------


def simulated_null(kind: Kind, n_items: int, scale: Scale) -> Case:
    """A/A of a kind."""
    return Case(name=kind.name, of=kind, n_items=n_items, effect=0.0, truth=0.0, n_resamples=scale.n_resamples)


def stated(null: Case, scale: Scale) -> tuple[float, float, float]:
    """What is stated as detectable before a run and after one, and how the two answers to an item correlate; means."""
    kind, rows = null.of, []
    assert isinstance(kind, Kind)
    for seed in range(scale.n_stated):
        metric, groups, _ = sampled(null, 1_000_000 + seed)
        before = detectable(metric, null.n_items, seed=seed, groups=groups)
        found = compare(metric, null.n_items, seed=seed, n_resamples=1000, groups=groups)
        rows.append((before, found.detectable(null.n_items)))
    before, after = np.mean(rows, axis=0)
    # detectable() takes .5: the variance of the difference is 2 (1 - correlation) times that of one answer
    return float(before), float(after), float(1 - 0.5 * (after / before) ** 2)


def shown(null: Case, difference: float) -> Case:
    """A/B of the same kind, where the variants truly differ by so much."""
    assert isinstance(null.of, Kind)
    effect = simulated.effect_of(null.of, difference)
    return replace(null, effect=effect, truth=simulated.true_difference(null.of, effect))


def simulated_kind(pool: Executor, kind: Kind, n_items: int, scale: Scale) -> tuple[Found, list[Outcome]]:
    """A/A, coverage and power of a kind; and the A/A comparisons."""
    null = simulated_null(kind, n_items, scale)
    runs = scale.dear_runs if null.is_dear else scale.runs
    equal = outcomes(pool, null, runs)
    before, after, correlation = stated(null, scale)
    cases = [shown(null, difference) for difference in ((before, after) if kind.is_as_varied else (before,))]
    different = [outcomes(pool, case, runs // 2) for case in cases]
    found = Found(
        name=kind.name,
        n_items=n_items,
        runs=runs,
        refused=0.0,
        told_apart=told_apart(equal),
        interval=binomial_interval(runs),
        coverage=coverage(null, equal),
        coverage_b=coverage(cases[0], different[0]),
        correlation=correlation,
    )
    if kind.is_as_varied:
        powers = [told_apart(each, int(np.sign(case.truth))) for case, each in zip(cases, different, strict=True)]
        found = replace(found, detectable=before, power=powers[0], detectable_after=after, power_after=powers[1])
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
    equal = outcomes(pool, null, runs)
    actual = replace(null, effect=1.0, truth=other - one)
    different = outcomes(pool, actual, runs // 2)
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


def family_wise(families: Sequence[Sequence[Outcome]]) -> float:
    """How often any metric of a family is told apart after Holm's correction; run i of each metric is one family."""
    told = []
    for family in zip(*families, strict=False):
        p_values = [one.p_value for one in family if one.p_value is not None]
        told.append(any(p < ALPHA for p in holm(p_values)))
    return float(np.mean(told))


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


def measured(scale: Scale) -> Iterator[tuple[Found, list[Outcome]] | str]:
    """Each kind of metric, simulated and real, as it is done; a sentence for what cannot be measured here."""
    reasons = {answers: real_answers.missing(answers) for answers in real_answers.POOLS if scale.real}
    for answers, reason in reasons.items():
        if reason is None:
            real_answers.populations(answers)  # before the fork, so that no process computes them again
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        for kind in KINDS:
            yield simulated_kind(pool, kind, kind.n_items, scale)
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
    judged = [one for one in found if not np.isnan(one.told_apart)]
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
                "metrics": kinds, "notes": list(notes), **machine(),
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
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        for kind in KINDS:
            for n_items in SIZES:
                null = simulated_null(kind, n_items, scale)
                runs = scale.dear_runs if null.is_dear else scale.runs
                equal = outcomes(pool, null, runs)
                largest = abs(simulated.true_difference(kind, kind.largest_effect))
                case = shown(null, min(stated(null, scale)[0], 0.7 * largest))
                print(
                    f"| {kind.name} | {n_items} | {runs} | {told_apart(equal):.3f} | {coverage(null, equal):.3f} "
                    f"| {coverage(case, outcomes(pool, case, runs)):.3f} | {case.truth:+.3f} |",
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
            limits(replace(scale, runs=scale.runs // 2, dear_runs=scale.dear_runs // 4, n_resamples=500))
            return 0
        found = rows(scale)
    if scale is FULL:
        write(found)
        print(f"written to {LATEST}")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
