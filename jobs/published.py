"""What readers see: rows that an accepted run covers, of one vector space. Knows `runs`, needs no tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurizers.spec import KINDS
from jobs.lake import Lake, read
from jobs.runs import covered_run_ids, run_rows
from schemas import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PROMOTE, ROLLBACK = "promote", "rollback"


class SeveralFingerprints(ValueError):
    """A reader asked for a featurizer of which several vector spaces are published; the message lists them."""


class NoChampion(ValueError):
    """A reader asked for the champion of a kind that has none; the message says how to make one."""


@dataclass(frozen=True)
class Champion:
    """The vector space that readers of a kind get."""

    featurizer: str
    fingerprint: str
    run_id: str  # of the promotion

    def __str__(self) -> str:
        return f"{self.featurizer}#{self.fingerprint[:8]}"


def kind_of(featurizer: str) -> str:
    """concept, object, entity: what a featurizer's id begins with."""
    return featurizer.partition("_")[0]


def promotions(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Champion]]:
    """Kind -> its champions from the first to the one that holds now, from rows of `runs`.

    A rollback takes the last one away. Only promotions and rollbacks that were accepted count, in order of start.
    """
    standing: dict[str, list[Champion]] = {}
    for row in sorted(rows, key=lambda row: (row["started"], row["run_id"])):
        if row["status"] != "accepted" or row["job"] not in (PROMOTE, ROLLBACK):
            continue
        for featurizer, fingerprint in (row["outputs"] or {}).items():
            line = standing.setdefault(kind_of(featurizer), [])
            if row["job"] == PROMOTE:
                line.append(Champion(featurizer, fingerprint, row["run_id"]))
            elif len(line) > 1:
                line.pop()
    return standing


def champions(spark: SparkSession, lake: Lake) -> dict[str, list[Champion]]:
    """`promotions` of the lake."""
    return promotions(run_rows(spark, lake, f"job IN ('{PROMOTE}', '{ROLLBACK}')"))


def published(spark: SparkSession, lake: Lake, table: Table, featurizer: str) -> DataFrame:
    """The rows of `features` or `mentions` that readers are meant to see: of one vector space, and accepted.

    featurizer: a kind, which is its champion; a spec id, of which the champion is taken, or else the only one there
    is; or `id#first digits of a fingerprint`. Raises NoChampion, and SeveralFingerprints rather than mix vector spaces.
    """
    from pyspark.sql import functions as F

    standing = champions(spark, lake)
    if featurizer in KINDS:
        if not standing.get(featurizer):
            raise NoChampion(f"no {featurizer} featurizer was promoted in {lake.uri}; `lakelens promote ID` does that")
        champion = standing[featurizer][-1]
        featurizer = f"{champion.featurizer}#{champion.fingerprint}"
    spec_id, _, digits = featurizer.partition("#")
    of_it = read(spark, lake, table).where((F.col("featurizer") == spec_id) & F.col("fingerprint").startswith(digits))
    rows = of_it.join(F.broadcast(covered_run_ids(spark, lake)), on="run_id", how="left_semi")
    found = sorted(row.fingerprint for row in rows.select("fingerprint").distinct().collect())
    if len(found) > 1:
        promoted = [one for one in standing.get(kind_of(spec_id), ()) if one.featurizer == spec_id]
        if promoted and promoted[-1].fingerprint in found:
            return rows.where(F.col("fingerprint") == promoted[-1].fingerprint)
        raise SeveralFingerprints(
            f"{featurizer} is published with {len(found)} fingerprints, whose vectors cannot be compared; "
            f"name one: {', '.join(f'{spec_id}#{fingerprint[:8]}' for fingerprint in found)}"
        )
    return rows
