"""`lakelens promote` and `lakelens rollback`: which vector space readers of a kind get. Computes no feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs import tracking
from jobs.command import FINISHED, Common, Ending, progress_of
from jobs.lake import Lake, lake_at, open_lake, read
from jobs.published import PROMOTE, ROLLBACK, Champion, champions, kind_of
from jobs.run import Prepared, run_job, sole_writer_of
from jobs.runs import JobResult, covered_run_ids, run_rows
from jobs.session import spark_session
from schemas import FEATURES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

COMPARE = "compare"
BASELINE, CANDIDATE = "baseline", "candidate"  # keys of a comparison's outputs


class PromotionRefused(ValueError):
    """The vector space may not become the champion; the message says what is lacking."""


def comparison(rows: Sequence[Mapping[str, Any]], candidate: str, champion: str | None) -> str | None:
    """Id of the last comparison of `candidate` among rows of `runs`, against the champion, where there is one; None
    where there is none, or where it was rejected.

    candidate, champion: `featurizer#fingerprint`.
    """
    judged = [
        row
        for row in rows
        if row["job"] == COMPARE
        and row["status"] in ("accepted", "rejected")
        and (row["outputs"] or {}).get(CANDIDATE) == candidate
        and champion in (None, (row["outputs"] or {}).get(BASELINE))
    ]
    last = max(judged, key=lambda row: (row["ended"], row["run_id"]), default=None)
    return last["run_id"] if last is not None and last["status"] == "accepted" else None


def published_fingerprint(spark: SparkSession, lake: Lake, name: str) -> tuple[str, str]:
    """Featurizer and fingerprint of `id` or `id#digits`; raises PromotionRefused unless exactly one is published."""
    from pyspark.sql import functions as F

    spec_id, _, digits = name.partition("#")
    rows = read(spark, lake, FEATURES).where((F.col("featurizer") == spec_id) & F.col("fingerprint").startswith(digits))
    covered = rows.join(F.broadcast(covered_run_ids(spark, lake)), on="run_id", how="left_semi")
    found = sorted(row.fingerprint for row in covered.select("fingerprint").distinct().collect())
    if not found:
        raise PromotionRefused(f"{name} is not published in {lake.uri}; featurize with it, and run lakelens check")
    if len(found) > 1:
        names = ", ".join(f"{spec_id}#{fingerprint[:8]}" for fingerprint in found)
        raise PromotionRefused(f"{name} is published with {len(found)} fingerprints; name one: {names}")
    return spec_id, found[0]


def promote(common: Common, name: str, *, force: str | None) -> Ending:
    """Make a published vector space the champion of its kind.

    force: why it is promoted without an accepted comparison against the champion; None: there must be one.
    """

    def chosen(spark: SparkSession, lake: Lake) -> tuple[Champion, str]:
        featurizer, fingerprint = published_fingerprint(spark, lake, name)
        standing = champions(spark, lake).get(kind_of(featurizer), [])
        if standing and (standing[-1].featurizer, standing[-1].fingerprint) == (featurizer, fingerprint):
            raise PromotionRefused(f"{standing[-1]} is the champion already, by {standing[-1].run_id}")
        before = f"{standing[-1].featurizer}#{standing[-1].fingerprint}" if standing else None
        found = comparison(run_rows(spark, lake, f"job = '{COMPARE}'"), f"{featurizer}#{fingerprint}", before)
        if found is None and force is None:
            against = f" against {standing[-1]}" if standing else ""
            raise PromotionRefused(
                f"no accepted comparison of {featurizer}#{fingerprint[:8]}{against}; run lakelens compare or an "
                "experiment, or give a reason with --force"
            )
        why = f"by {found}" if found else f"forced: {force}"
        return Champion(featurizer, fingerprint, ""), f"{why}; before: {standing[-1] if standing else 'none'}"

    return _move(common, PROMOTE, chosen)


def rollback(common: Common, kind: str) -> Ending:
    """Put the champion before the present one back."""

    def chosen(spark: SparkSession, lake: Lake) -> tuple[Champion, str]:
        standing = champions(spark, lake).get(kind, [])
        if len(standing) < 2:
            raise PromotionRefused(f"there is no champion of kind {kind} before {standing[-1] if standing else 'any'}")
        return standing[-2], f"taken back: {standing[-1]}"

    return _move(common, ROLLBACK, chosen)


def _move(common: Common, job: str, chosen: Any) -> Ending:
    config = common.config
    tracking.tracking_store(lake_at(config.lake))
    progress = progress_of(common)
    with progress.shown(), sole_writer_of(common):
        progress(f"{job}: starting Spark")
        spark = spark_session(config.spark, f"lakelens {job}", lake=config.lake)
        lake = open_lake(spark, config.lake, create=False)
        champion, why = chosen(spark, lake)
        said = f"champion of kind {kind_of(champion.featurizer)} is now {champion} ({why})"
        outputs = {champion.featurizer: champion.fingerprint}
        prepared = Prepared(
            name=job,
            outputs={},
            pins=lambda spark, lake: {},
            run=lambda spark, lake, run: JobResult(status="accepted", message=said, outputs=outputs),
            is_measured=False,
        )
        with tracking.pipeline_run(
            lake, config, name=common.run_id, warn=progress, tags={"jobs": job, "why": why}
        ) as parent:
            done = run_job(spark, lake, common, prepared, parent, progress)
            standing = champions(spark, lake)[kind_of(champion.featurizer)]
            register(parent, lake, standing)
    facts = {"run_id": done.run_id, "champion": f"{champion.featurizer}#{champion.fingerprint}", "why": why}
    return Ending(exit_code=FINISHED, message=said, facts=facts)


def register(tracked: tracking.Tracked, lake: Lake, standing: Sequence[Champion]) -> None:
    """Aliases `champion` and `previous` of the lake's model in MLflow; nothing is `previous` to the first champion."""
    model = tracking.model_of(lake, kind_of(standing[-1].featurizer))
    for alias, one in {"champion": standing[-1], "previous": standing[-2] if len(standing) > 1 else None}.items():
        stands = {"featurizer": one.featurizer, "fingerprint": one.fingerprint, "lake": lake.uri} if one else None
        tracking.set_alias(tracked, model, alias, stands)
