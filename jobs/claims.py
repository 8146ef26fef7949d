"""What earlier evaluations say they measured, so that a comparison of them is of exactly that. Computes no metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.evaluate import VERSION_PREFIX
from jobs.lake import Lake, sql_text
from jobs.metrics import metric_key
from jobs.quality import Measurement
from jobs.runs import run_rows
from schemas import FEATURES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SAME_VALUE = 1e-9  # sums of the same floats in another order


class ComparisonRefused(ValueError):
    """Two things that are not what they are said to be, or not comparable; the message shows where they differ."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a run of `lakelens evaluate` says it measured of one featurizer."""

    run_id: str
    featurizer: str
    fingerprint: str
    golden: Mapping[str, int]  # golden set -> version
    features_version: int
    metrics: Mapping[str, float]  # of the run, by name

    def value(self, golden_set: str, metric: str) -> float | None:
        """What the run measured; None for what it did not."""
        return self.metrics.get(f"quality/{golden_set}/{metric_key(self.featurizer)}/{metric}")


def read_claim(spark: SparkSession, lake: Lake, run_id: str, featurizer: str) -> Claim:
    """What the run `run_id`, or `run_id.evaluate`, claims of a featurizer; raises ComparisonRefused."""
    rows = run_rows(spark, lake, f"run_id IN ({sql_text(run_id)}, {sql_text(f'{run_id}.evaluate')})")
    found = [row for row in rows if row["job"] == "evaluate"]
    if not found:
        said = f"run {run_id} is a {rows[0]['job']}" if rows else f"there is no run {run_id} in {lake.uri}"
        raise ComparisonRefused(f"{said}; name a run of lakelens evaluate (lakelens tables lists the last runs)")
    return claim_of(found[0], featurizer)


def claim_of(row: Mapping[str, Any], featurizer: str) -> Claim:
    """What the row of an evaluation in `runs` claims of `id` or `id#digits`; raises ComparisonRefused."""
    spec_id, _, digits = featurizer.partition("#")
    outputs, metrics = row["outputs"] or {}, row["metrics"] or {}
    mine = f"/{metric_key(spec_id)}/"
    if not outputs.get(spec_id, "-").startswith(digits) or not any(mine in name for name in metrics):
        there = ", ".join(f"{name}#{digest[:8]}" for name, digest in sorted(outputs.items()))
        raise ComparisonRefused(f"run {row['run_id']} did not measure {featurizer}; it was given {there or 'nothing'}")
    sets = {name.removeprefix(VERSION_PREFIX): n for name, n in metrics.items() if name.startswith(VERSION_PREFIX)}
    return Claim(
        run_id=row["run_id"],
        featurizer=spec_id,
        fingerprint=outputs[spec_id],
        golden={
            name: int(n) for name, n in sets.items() if any(m.startswith(f"quality/{name}{mine}") for m in metrics)
        },
        features_version=(row["inputs"] or {})[FEATURES.name],
        metrics=metrics,
    )


def agreed(baseline: Claim, candidate: Claim, golden: str) -> tuple[str, int]:
    """The golden set with its version, and the version of `features`, that both claim; raises ComparisonRefused with
    all that differs."""
    golden_set, _, wanted = golden.partition("@")
    for one in (baseline, candidate):
        if golden_set not in one.golden:
            there = ", ".join(f"{name}@{number}" for name, number in sorted(one.golden.items())) or "no golden set"
            raise ComparisonRefused(f"run {one.run_id} was not measured on {golden_set}; it was on {there}")
    versions = baseline.golden[golden_set], candidate.golden[golden_set]
    snapshots = baseline.features_version, candidate.features_version
    found = []
    if wanted and any(str(number) != wanted for number in versions):
        found.append(f"{golden}, and measured were versions {versions[0]} and {versions[1]}")
    elif versions[0] != versions[1]:
        found.append(f"{golden_set} at versions {versions[0]} and {versions[1]}")
    if snapshots[0] != snapshots[1]:
        found.append(f"table {FEATURES.name} at versions {snapshots[0]} and {snapshots[1]}")
    if found:
        raise ComparisonRefused(
            f"runs {baseline.run_id} and {candidate.run_id} cannot be compared: {'; '.join(found)}. One run measures "
            f"both: lakelens evaluate --golden {golden_set} --featurizer {baseline.featurizer} --featurizer "
            f"{candidate.featurizer}"
        )
    return f"{golden_set}@{versions[0]}", snapshots[0]


def check_measured(claim: Claim, golden_set: str, found: Sequence[Measurement]) -> None:
    """Raise ComparisonRefused unless each metric is what the run measured: the configuration may be another by now."""
    for one in found:
        said = claim.value(golden_set, one.metric)
        if said is not None and not math.isclose(said, one.value, abs_tol=SAME_VALUE):
            raise ComparisonRefused(
                f"run {claim.run_id} measured {one.metric} of {claim.featurizer} as {said:.6g}, here it is "
                f"{one.value:.6g}: the configuration differs from the run's (such as evaluate.bridge_labels)"
            )


def check_fingerprint(name: str, claimed: str, computed: str) -> None:
    """Raise ComparisonRefused unless `computed` begins with the digits that are claimed for variant `name`."""
    if not computed.startswith(claimed):
        raise ComparisonRefused(
            f"variant {name} is to have fingerprint {claimed[:8]}, this code and configuration give {computed[:8]}: "
            "another model, decode profile, frame sampling, precision or catalogue"
        )
