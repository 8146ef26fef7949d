"""Ours: `jobs.fetch.fetch` in this process, from a list of URLs to outcomes with their bytes. No Spark and no table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.engines.serve import Run, Task, serve


def build(task: Task) -> tuple[Run, Mapping[str, str]]:
    """One call of the fetcher over all lists; raises RuntimeError unless every URL gave its bytes."""
    import aiohttp

    from jobs.addresses import parse_exemptions
    from jobs.fetch import fetch
    from jobs.fetch_settings import Settings
    from jobs.outcomes import Outcome, Request
    from jobs.urls import canonical_url, doc_id

    settings = Settings(
        contact=None,
        exemptions=parse_exemptions(task["hosts"]),
        max_connections_per_host=task["connections_per_host"],
        n_connections=task["connections"],
        delay_s=0.0,
        connect_timeout_s=10,
        timeout_s=60,
        max_bytes=1 << 30,
        max_redirects=5,
        max_attempts=3,
    )

    def run(files: Sequence[str], collect: bool) -> Mapping[str, str]:
        urls = [canonical_url(url) for file in files for url in Path(file).read_text().splitlines()]
        requests = [Request(doc_id=doc_id(url.href), url=url.href, host=url.host) for url in urls]
        n_had, n_bytes, problem = 0, 0, None
        for outcome in fetch(requests, settings):
            if isinstance(outcome, Outcome):
                n_had += outcome.content is not None
                n_bytes += len(outcome.content or b"")
                problem = outcome.error or problem
        if n_had < len(urls):
            raise RuntimeError(f"{n_had} of {len(urls)} images were had, the last error: {problem}")
        return {"images": str(n_had), "bytes": str(n_bytes)} if collect else {}

    return run, {"aiohttp": aiohttp.__version__}


if __name__ == "__main__":
    serve(build)
