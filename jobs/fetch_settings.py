"""How to fetch: the section `crawl` of the configuration as the fetcher takes it. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.addresses import Exemptions
from jobs.outcomes import Recrawl
from jobs.packs import Packs
from jobs.robots import DEFAULT_OPT_OUTS
from jobs.sites import Site
from jobs.taken_down import NOTHING_TAKEN_DOWN, Takedowns


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to fetch; the fields of the configuration's section `crawl`, checked."""

    contact: str | None  # None: nothing but the exemptions may be dialled
    exemptions: Exemptions
    max_connections_per_host: int
    delay_s: float
    connect_timeout_s: float
    timeout_s: float
    max_bytes: int
    max_redirects: int
    max_attempts: int
    rate_per_minute: float | None = None
    burst: int = 10
    backoff_s: float = 1.0  # before the second attempt; doubled for each further one, times 0.5 to 1.5 at random
    round_s: float = 600.0  # of one call of `fetch`: no request begins later, and what is left is deferred
    n_connections: int = 64  # of one call of `fetch`, over all hosts
    opt_outs: frozenset[str] = DEFAULT_OPT_OUTS
    recrawl: Recrawl = Recrawl()  # noqa: RUF009  # frozen
    taken_down: Takedowns = NOTHING_TAKEN_DOWN
    sites: Mapping[str, Site] = field(default_factory=dict)  # by source
    asks_rules_again: bool = False  # also where a robots.txt is kept
    is_resumed: bool = False  # an attempt before may have asked any host just now
    packs: Packs | None = None  # where large bodies go; None: all are kept in memory
