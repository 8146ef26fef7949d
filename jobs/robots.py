"""What a site's robots.txt and response headers allow our agent. Knows their syntax, not how they were fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from protego import Protego

AGENT = "lakelens"
MAX_ROBOTS_BYTES = 500 * 1024  # RFC 9309 section 2.5: parse at least 500 KiB
MAX_ROBOTS_REDIRECTS = 5  # RFC 9309 section 2.3.1.2
MAX_CRAWL_DELAY_S = 86400.0

OPT_OUTS = frozenset({"noai", "noimageai"})
# Directives of X-Robots-Tag that have a value, so that their colon does not end the name of an agent.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT_PREFIX = re.compile(r"\s*([\w.*-]+)\s*:(.*)", re.DOTALL)


@dataclass(frozen=True)
class Robots:
    """The rules of one origin for our agent."""

    rules: Protego | None  # None: there is no robots.txt, all is allowed
    crawl_delay_s: float

    def allows(self, url: str) -> bool:
        """Whether our agent may fetch a URL of this origin."""
        return self.rules is None or self.rules.can_fetch(url, AGENT)

    @property
    def decision(self) -> str:
        """The decision as `fetches.robots` has it, for a URL that is allowed."""
        return "absent" if self.rules is None else "allowed"


ABSENT = Robots(rules=None, crawl_delay_s=0.0)


def parse_robots(body: bytes) -> Robots:
    """The rules in a robots.txt (RFC 9309, with `*`, `$` and Crawl-delay), of which 500 KiB are read."""
    rules = Protego.parse(body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace"))
    return Robots(rules=rules, crawl_delay_s=min(max(0.0, rules.crawl_delay(AGENT) or 0.0), MAX_CRAWL_DELAY_S))


def opts_out(x_robots_tags: Iterable[str], tdm_reservation: str | None) -> str | None:
    """Which header refuses the use of an answer by us, None where none does.

    X-Robots-Tag `noai` and `noimageai`, for all agents or ours; TDM-Reservation 1 (W3C TDMRep).
    """
    if tdm_reservation is not None and tdm_reservation.strip() == "1":
        return "TDM-Reservation: 1"
    for tag in x_robots_tags:
        match = _AGENT_PREFIX.match(tag)
        directives = tag
        if match and match[1].lower() not in _VALUED:
            if match[1].lower() not in (AGENT, "*"):
                continue
            directives = match[2]
        found = {part.strip().lower() for part in directives.split(",")} & OPT_OUTS
        if found:
            return f"X-Robots-Tag: {min(found)}"
    return None
