"""A crawl that is killed and begun again: nothing is lost, and no host sees more of us than it allows."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from schemas import DOCUMENTS, FETCHES, MEDIA
from tests.attempts import PATIENCE_S, kill_all, start_command, tables_of
from tests.crawl_site import Answer, Site, answer, jpeg, serving

pytestmark = [pytest.mark.spark, pytest.mark.faults]

DELAY_S = 0.4
N_DOCUMENTS = 14  # of a host
EXPIRY_S = 6


def pages_of(host: int) -> dict[str, Answer]:
    rules = b"User-agent: *\nDisallow: /no\n" + (b"Crawl-delay: 0.6\n" if host == 0 else b"")
    pages: dict[str, Answer] = {"/robots.txt": answer(body=rules)}
    pages |= {f"/{n}.jpg": answer(body=jpeg(host * 80 + n * 5, 20 + host, 10 + n)) for n in range(N_DOCUMENTS)}
    return pages | {"/no.jpg": answer(body=jpeg())}


def pauses(site: Site) -> list[float]:
    return [after.at_s - before.at_s for before, after in itertools.pairwise(site.log)]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_crawl_killed_at_any_point_loses_no_document_and_keeps_to_every_pause(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with ExitStack() as stack:
        sites = [stack.enter_context(serving(pages_of(host))) for host in range(3)]
        names = ("127.0.0.1", "localhost", "127.0.0.1")
        named = [f"http://{name}:{site.port}" for name, site in zip(names, sites, strict=True)]
        urls = [f"{host}/{n}.jpg" for n in range(N_DOCUMENTS) for host in named] + [f"{host}/no.jpg" for host in named]
        (tmp_path / "urls.txt").write_text("\n".join(urls))
        config: dict[str, Any] = {
            "spark": {"master": "local[2]"},
            "crawl": {
                "sources": [{"name": "web", "kind": "urls", "uri": str(tmp_path / "urls.txt")}],
                "allow_addresses": [site.address for site in sites],
                "delay_s": DELAY_S,
                "max_connections_per_host": 1,
                "wave_documents": 20,
            },
            "featurize": {"heartbeat_s": 1, "lease_expiry_s": EXPIRY_S},
        }
        (tmp_path / "crawl.yaml").write_text(json.dumps(config))
        command = ("crawl", "--conf", str(tmp_path / "crawl.yaml"), "--run-id", "k")
        lake, log = tmp_path / "lake", tmp_path / "log"
        attempt = start_command(lake, log, *command)
        n_asked, until = chance.randrange(4, 40), time.monotonic() + PATIENCE_S
        while sum(len(site.log) for site in sites) < n_asked and time.monotonic() < until:
            assert attempt.process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.02)
        kill_all(attempt.process)
        asked_before = {f"{host}{path}" for host, site in zip(named, sites, strict=True) for path in site.paths()}
        time.sleep(EXPIRY_S)
        code = start_command(lake, log, *command).process.wait(timeout=PATIENCE_S)
        assert code == 0, log.read_text()[-3000:]
        tables = tables_of(lake, (DOCUMENTS, FETCHES, MEDIA))
        documents = {row["url"]: row for row in tables[DOCUMENTS.name].values()}
        assert documents.keys() == set(urls)
        for url, row in documents.items():
            code_of_row = row["error"] and row["error"]["code"]
            assert code_of_row == ("robots_disallowed" if url.endswith("/no.jpg") else None), url
        assert len(tables[MEDIA.name]) == 3 * N_DOCUMENTS
        for site, host, delay_s in zip(sites, named, (0.6, DELAY_S, DELAY_S), strict=True):
            assert "/no.jpg" not in site.paths()
            assert max(asked.n_open for asked in site.log) == 1
            assert min(pauses(site)[1:]) >= delay_s, host  # the first is before robots.txt is known
            times = Counter(site.paths())
            for path, n_times in times.items():  # what was in flight or not yet staged when it was killed, once more
                assert n_times <= (2 if f"{host}{path}" in asked_before else 1)
