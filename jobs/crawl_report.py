"""How a crawl went, host by host, from the attempts that it committed. Knows tables, not how to fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.outcomes import REDIRECTS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MAX_HOSTS = 10  # that a report lists
LEAST_ATTEMPTS = 5  # at a host, to say at what rate it was asked


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """What became of the attempts at one host."""

    host: str
    attempts: int
    errors: int
    mean_ms: float  # of an attempt, from dialling to the last byte
    wait_s: float  # that its requests waited for its pauses, in all
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CrawlReport:
    """What became of all attempts over HTTP, and the hosts that gave most trouble."""

    attempts: int
    requests: int  # redirects among them, those for robots.txt apart
    errors: int
    moved: int  # attempts that led to a host that another task asks
    not_modified: int
    bytes: int
    busy_s: float  # that attempts took, in all
    span_s: float  # from the first attempt to the last
    wait_s: float
    n_hosts: int
    fairness: float | None  # Jain's index; None: no two hosts were asked often enough
    hosts: Sequence[HostReport]

    def metrics(self) -> dict[str, float]:
        """As metrics of a run, by name."""
        rates = {"requests_per_s": self.requests / self.span_s, "bytes_per_s": self.bytes / self.span_s}
        named = ("attempts", "requests", "not_modified", "bytes", "n_hosts")
        found = {name: float(getattr(self, name)) for name in named} | rates
        found |= {"request_s": self.busy_s, "politeness_wait_s": self.wait_s}
        return found if self.fairness is None else found | {"host_fairness": self.fairness}


def jain(n: int, total: float, squares: float) -> float | None:
    """Jain's fairness index of n shares, from their sum and the sum of their squares: 1 where all are equal.

    R. Jain, D. Chiu and W. Hawe, DEC-TR-301, 1984.
    """
    return total**2 / (n * squares) if n > 1 and squares > 0 else None


def crawl_report(tables: Mapping[str, DataFrame], run_ids: Sequence[str], *, delay_s: float) -> CrawlReport | None:
    """How the crawls among the runs went; None where nothing was asked over HTTP.

    Fairness is of the share of the rate that its pauses allow which each host got, over hosts with pauses that were
    asked at least LEAST_ATTEMPTS times.
    """
    from pyspark.sql import functions as F

    # A file and a member of an archive has no robots.txt, whatever it is called.
    attempts = tables["fetches"].where(F.col("run_id").isin(list(run_ids)) & F.col("robots").isNotNull())
    began = F.unix_micros("started_at") / 1e6
    by_host = attempts.groupBy(F.expr("try_parse_url(coalesce(final_url, url), 'AUTHORITY')").alias("host")).agg(
        F.count("*").alias("attempts"),
        F.sum("n_requests").alias("requests"),
        F.count("error").alias("errors"),
        F.count_if(F.col("http_status").isin(*REDIRECTS) & F.col("error").isNull()).alias("moved"),
        F.count_if(F.col("http_status") == 304).alias("not_modified"),
        F.sum("bytes").alias("bytes"),
        F.sum("ms").alias("ms"),
        F.sum("wait_ms").alias("wait_ms"),
        F.min(began).alias("first"),
        F.max(began).alias("last"),
    )
    pauses = tables["hosts"].select("host", "crawl_delay_s")
    by_host = by_host.join(pauses, on="host", how="left").cache()
    try:
        pause_s = F.greatest(F.coalesce("crawl_delay_s", F.lit(0.0)), F.lit(delay_s))
        is_often = (F.col("attempts") >= LEAST_ATTEMPTS) & (pause_s > 0) & (F.col("last") > F.col("first"))
        share = F.when(is_often, (F.col("attempts") - 1) * pause_s / (F.col("last") - F.col("first")))
        names = ("attempts", "requests", "errors", "moved", "not_modified", "bytes", "ms", "wait_ms")
        total = by_host.agg(
            *(F.sum(name).alias(name) for name in names),
            F.count("*").alias("hosts"),
            (F.max("last") - F.min("first")).alias("span_s"),
            F.count(share).alias("n_shares"),
            F.sum(share).alias("shares"),
            F.sum(share * share).alias("squares"),
        ).collect()[0]
        if not total.attempts:
            return None
        worst = by_host.orderBy(F.desc("errors"), F.desc("wait_ms"), "host").limit(MAX_HOSTS).collect()
    finally:
        by_host.unpersist()
    return CrawlReport(
        attempts=total.attempts,
        requests=total.requests,
        errors=total.errors,
        moved=total.moved,
        not_modified=total.not_modified,
        bytes=total.bytes,
        busy_s=total.ms / 1e3,
        span_s=max(total.span_s, total.ms / 1e3 / total.attempts, 1e-3),  # of one attempt: the time that it took
        wait_s=total.wait_ms / 1e3,
        n_hosts=total.hosts,
        fairness=jain(total.n_shares, total.shares or 0.0, total.squares or 0.0),
        hosts=[
            HostReport(
                host=row.host or "",
                attempts=row.attempts,
                errors=row.errors,
                mean_ms=row.ms / row.attempts,
                wait_s=row.wait_ms / 1e3,
                bytes=row.bytes,
            )
            for row in worst
        ],
    )
