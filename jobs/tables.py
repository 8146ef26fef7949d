"""`lakelens tables`: what the lake holds and how its last runs ended. Reads the log and `runs`; changes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.command import FINISHED, Common, Ending
from jobs.gates import IS_PAGE
from jobs.lake import lake_at, open_lake, read, snapshot
from jobs.progress import readable_usd
from jobs.runs import covered_run_ids, run_rows, shows_life
from jobs.session import spark_session
from schemas import DOCUMENTS, FEATURES, MEDIA, TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from rich.console import Console
    from rich.table import Table as Grid

N_RUNS = 15
WIDTH = 200  # characters of a line that goes to a file or a pipe
WRAPPED = ("covers", "outcome", "why", "value", "says", "names", "runs")  # headings of long texts


def readable_bytes(n_bytes: float) -> str:
    """1536 as `1.5 kB`: powers of 1024, one decimal from kB on."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1024 or unit == "TB":
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError("unreachable")


def console() -> Console:
    """Where tables are printed: as wide as the terminal, and wide enough for all they say where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)


def age(then: datetime | None, now: datetime) -> str:
    """How long ago, in the largest whole unit."""
    if then is None:
        return ""
    seconds = max(0, int((now - then).total_seconds()))
    for length_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length_s:
            return f"{seconds // length_s} {unit} ago"
    return f"{seconds} s ago"


def grid(title: str, headings: Sequence[str], rows: Sequence[Mapping[str, Any]], numbers: Sequence[str]) -> Grid:
    """A table for the terminal, its texts as they are; `numbers` are the right-aligned columns."""
    from rich.table import Table as Grid
    from rich.text import Text

    shown = Grid(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        shown.add_column(heading, justify="right" if heading in numbers else "left", no_wrap=heading not in WRAPPED)
    for row in rows:
        shown.add_row(*(Text(str(row[heading])) for heading in headings))
    return shown


def freshness(documents: DataFrame, now: datetime) -> DataFrame:
    """For each source: documents, pages among them, errors, due ones, when the newest and oldest were fetched."""
    from pyspark.sql import functions as F

    return (
        documents.groupBy("source")
        .agg(
            F.count("*").alias("documents"),
            F.count_if(F.expr(IS_PAGE)).alias("pages"),
            F.count("error").alias("errors"),
            F.count_if(F.col("next_fetch_at") <= F.lit(now)).alias("due"),
            F.max("fetched_at").alias("newest"),
            F.min("fetched_at").alias("oldest"),
        )
        .orderBy("source")
    )


def described_run(row: Mapping[str, Any], now: datetime, *, expiry_s: float) -> dict[str, Any]:
    """A run as it is shown: one that says `running` and shows no life for `expiry_s` seconds is dead."""
    measured = dict(row["metrics"] or {})
    n_rules, n_failed = measured.get("expectations"), measured.get("expectations_failed", 0)
    gates = "" if not n_rules else f"{n_failed:.0f} of {n_rules:.0f} fail" if n_failed else f"{n_rules:.0f} hold"
    is_dead = row["status"] == "running" and not shows_life(row, now=now, expiry_s=expiry_s)
    return {
        "run": row["run_id"],
        "status": "dead" if is_dead else row["status"],
        "started": age(row["started"], now),
        "heartbeat": age(row["heartbeat"], now),
        "gates": gates,
        "usd": measured.get("usd"),
        "covers": ", ".join(row["covers"] or []),
    }


def _utc(at: datetime | None) -> datetime | None:
    return at.astimezone(UTC) if at is not None else None


def show_tables(common: Common) -> Ending:
    """Print the lake's tables, featurizers, sources and last runs; with --json they are in the outcome instead."""
    from pyspark.sql import functions as F

    lake_at(common.config.lake)  # what is wrong with the address is said before Spark starts
    spark = spark_session(common.config.spark, "lakelens tables", lake=common.config.lake)
    lake = open_lake(spark, common.config.lake, create=False)
    now = datetime.now(UTC)
    tables: list[dict[str, Any]] = []
    for table in TABLES:
        at = snapshot(spark, lake.table(table))
        n_rows = read(spark, lake, table).count()
        n_bytes = int(at.sizeInBytes())
        if table is MEDIA:  # beside the table's files stand the objects that it refers to
            n_bytes += read(spark, lake, table).agg(F.coalesce(F.sum("length"), F.lit(0))).collect()[0][0]
        tables.append({"table": table.name, "rows": n_rows, "version": int(at.version()), "bytes": n_bytes})
    covered = F.broadcast(covered_run_ids(spark, lake).withColumn("published", F.lit(1)))
    by_featurizer = (
        read(spark, lake, FEATURES)
        .select("featurizer", "fingerprint", "run_id", F.col("error").isNotNull().cast("int").alias("failed"))
        .join(covered, on="run_id", how="left")
        .groupBy("featurizer", "fingerprint")
        .agg(F.count("*").alias("rows"), F.sum("failed").alias("errors"), F.count("published").alias("published"))
        .orderBy("featurizer", "fingerprint")
    )
    featurizers = [row.asDict() for row in by_featurizer.collect()]
    sources = [row.asDict() for row in freshness(read(spark, lake, DOCUMENTS), now).collect()]
    runs = sorted(run_rows(spark, lake), key=lambda row: row["started"], reverse=True)
    # What lives is shown however long ago it began.
    shown = [row for i, row in enumerate(runs) if i < N_RUNS or row["status"] == "running"]
    described = [described_run(row, now, expiry_s=common.config.featurize.lease_expiry_s) for row in shown]
    if not common.as_json:
        out = console()
        sized = [{**row, "bytes": readable_bytes(row["bytes"])} for row in tables]
        out.print(grid("tables", ["table", "rows", "version", "bytes"], sized, ["rows", "version", "bytes"]), "")
        names = ["featurizer", "fingerprint", "rows", "errors", "published"]
        shortened = [{**row, "fingerprint": row["fingerprint"][:8]} for row in featurizers]
        out.print(grid("featurizers", names, shortened, names[2:]), "")
        aged = [{**row, **{name: age(_utc(row[name]), now) for name in ("newest", "oldest")}} for row in sources]
        names = ["source", "documents", "pages", "errors", "due", "newest", "oldest"]
        out.print(grid("sources, by their last fetch", names, aged, names[1:5]), "")
        names = ["run", "status", "started", "heartbeat", "gates", "cost", "covers"]
        said = [{**row, "cost": "" if row["usd"] is None else readable_usd(row["usd"])} for row in described]
        out.print(grid("runs", names, said, ["cost"]), "")
    return Ending(
        exit_code=FINISHED,
        message=f"{len(tables)} tables in {lake.uri}",
        facts={
            "tables": tables,
            "featurizers": featurizers,
            "sources": [
                {**row, **{name: at.isoformat() if (at := _utc(row[name])) else None for name in ("newest", "oldest")}}
                for row in sources
            ],
            "runs": described,
        },
    )
