"""Judges rules over Spark rows with Great Expectations and names the rows that break them. Knows no lake and no run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.gates import Rule

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

NAMED_ROWS = 20  # of each failed expectation, in the results
TABLES_AT_ONCE = 3  # small tables leave cores idle between their Spark stages
SHOWN_ROWS = 3  # of each failed expectation, in the line a command ends with
ERROR_RATE = "error_rate"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The judged rows of a table: key columns, a 0/1 column for each rule (1: broken), and `failed` (1: an error row,
    null: not counted in the error rate)."""

    table: str
    key: tuple[str, ...]
    rules: Sequence[Rule]
    max_error_rate: float | None
    rows: DataFrame


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one expectation found; all are critical."""

    table: str
    rule: str
    says: str
    passed: bool
    observed: float | None
    allowed: float
    n_rows: int  # judged
    rows: Sequence[Mapping[str, str]] = field(default_factory=tuple)  # keys of at most NAMED_ROWS rows that break it


def validate(suites: Sequence[Suite], folder: Path) -> list[Judgement]:
    """Judge each suite with Great Expectations, write its data docs under `folder`, and name the rows that break rules.

    A rule is one expectation on the sum of its column, so that all of a table are one Spark aggregation.
    """
    from pyspark.sql import functions as F

    cached = [suite.rows.cache() for suite in suites]

    def count(rows: DataFrame) -> tuple[int, int]:
        n_rows, n_counted = rows.agg(F.count("*"), F.count("failed")).collect()[0]
        return int(n_rows), int(n_counted)

    try:
        # Spark judges the tables side by side while Great Expectations is imported, which takes seconds.
        with ThreadPoolExecutor(max_workers=TABLES_AT_ONCE) as pool:
            counts = [pool.submit(count, rows) for rows in cached]
            context = _validation_context(folder)
            source = context.data_sources.add_spark("lake")
            outcomes = [
                outcome
                for suite, rows, counted in zip(suites, cached, counts, strict=True)
                for outcome in _validate_suite(context, source, suite, rows, *counted.result())
            ]
        context.build_data_docs(site_names=["gates"])
    finally:
        for rows in cached:
            rows.unpersist()
    return outcomes


def _validation_context(folder: Path) -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    site = {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
    context.add_data_docs_site("gates", site)
    return context


def _validate_suite(
    context: Any, source: Any, suite: Suite, rows: DataFrame, n_rows: int, n_counted: int
) -> list[Judgement]:
    import great_expectations as gx
    from great_expectations import expectations as gxe
    from pyspark.sql import functions as F

    expected: list[Any] = [gxe.ExpectTableRowCountToBeBetween(min_value=0, meta={"rule": "rows"})]
    rules = {rule.name: (rule.says, 0.0) for rule in suite.rules} if n_rows else {}
    for name, (says, allowed) in rules.items():
        expected.append(
            gxe.ExpectColumnSumToBeBetween(
                column=name, max_value=allowed, severity="critical", notes=says, meta={"rule": name}
            )
        )
    if suite.max_error_rate is not None and n_counted:
        says = f"the share of rows with an error is at most {suite.max_error_rate:g}"
        rules[ERROR_RATE] = (says, suite.max_error_rate)
        expected.append(
            gxe.ExpectColumnMeanToBeBetween(
                column="failed",
                max_value=suite.max_error_rate,
                severity="critical",
                notes=says,
                meta={"rule": ERROR_RATE},
            )
        )
    batch = source.add_dataframe_asset(suite.table).add_batch_definition_whole_dataframe("judged")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name=suite.table,
            data=batch,
            suite=context.suites.add(gx.ExpectationSuite(name=suite.table, expectations=expected)),
        )
    )
    results = definition.run(batch_parameters={"dataframe": rows}, result_format="BASIC").results

    def breaking(rule: str) -> list[dict[str, str]]:
        broken = rows.where(F.col("failed" if rule == ERROR_RATE else rule) == 1)
        keys = broken.select(*(F.col(f"key_{name}").cast("string").alias(name) for name in suite.key))
        return [row.asDict() for row in keys.limit(NAMED_ROWS).collect()]

    outcomes = []
    for result in results:
        rule = result.expectation_config.meta["rule"]
        if rule == "rows":
            continue
        says, allowed = rules[rule]
        observed = result.result.get("observed_value")
        outcome = Judgement(
            table=suite.table,
            rule=rule,
            says=says,
            passed=bool(result.success),
            observed=None if observed is None else float(observed),
            allowed=allowed,
            n_rows=n_rows,
            rows=[] if result.success else breaking(rule),
        )
        outcomes.append(outcome)
    return outcomes


def describe_failure(outcome: Judgement) -> str:
    """A failed expectation and some of its rows on one line."""
    keys = [" ".join(f"{name}={value}" for name, value in row.items()) for row in outcome.rows[:SHOWN_ROWS]]
    observed = "nothing" if outcome.observed is None else f"{outcome.observed:g}"
    more = ", ..." if len(outcome.rows) > SHOWN_ROWS or (outcome.observed or 0) > len(keys) else ""
    what = f"{observed} (allowed {outcome.allowed:g})" if outcome.rule == ERROR_RATE else f"broken by {observed} rows"
    return f"{outcome.table}.{outcome.rule}: {what} ({outcome.says}): {', '.join(keys)}{more}"
