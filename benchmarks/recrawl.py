"""Row C3: what a second crawl of a site that has not changed asks for, stores and computes. Compares no peer.

The site is real, on loopback: `N_PAGES` pages under one that leads to them, `PER_PAGE` pictures on each. Pictures carry
an ETag, every second one only a Last-Modified, and every hundredth neither, whose bytes come again. The measurement is
a process: `python -m benchmarks.recrawl` prints JSON.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.lakes import featurize, ready, session
from benchmarks.measure import BUILD
from benchmarks.row import Row, machine

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from jobs.lake import Lake

N_PAGES, PER_PAGE = 100, 99  # 10,000 documents without the page that leads to them
REACH = 0.98
CHANGED = "Mon, 01 Jan 2024 00:00:00 GMT"


@dataclass
class Served:
    """Where the site is, and what it has answered: HTTP status -> times."""

    port: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


def content(path: str) -> tuple[bytes, Mapping[str, str]] | None:
    """The body of a path with its type and validators; None for what is not there."""
    from PIL import Image

    name, _, number = path.strip("/").partition("/")
    if path == "/":
        return "".join(f"<a href=/page/{n}>{n}</a>" for n in range(N_PAGES)).encode(), page_headers(path)
    if name == "page" and number.isdigit():
        first = int(number) * PER_PAGE
        return "".join(f"<img src=/img/{first + n}>" for n in range(PER_PAGE)).encode(), page_headers(path)
    if name != "img" or not number.isdigit():
        return None
    n, file = int(number), io.BytesIO()
    Image.new("RGB", (64, 64), (n % 256, n // 256, 100)).save(file, "PNG")
    validators = {"ETag": f'"{path}"', "Last-Modified": CHANGED} if n % 2 else {"Last-Modified": CHANGED}
    return file.getvalue(), {"Content-Type": "image/png"} | ({} if n % 100 == 0 else validators)


def page_headers(path: str) -> dict[str, str]:
    return {"Content-Type": "text/html", "ETag": f'"{path}"'}


@contextmanager
def site() -> Iterator[Served]:
    """The site, served by a thread."""
    served, loop, is_up = Served(), asyncio.new_event_loop(), threading.Event()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                asked = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode("latin-1").partition(":")
                    asked[name.lower()] = value.strip()
                status, headers, body = answer(line.split()[1].decode(), asked)
                served.statuses[status] += 1
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def run() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(asyncio.start_server(connection, "127.0.0.1", 0))
        served.port = server.sockets[0].getsockname()[1]
        is_up.set()
        loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    is_up.wait()
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(loop.stop)


def answer(path: str, asked: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
    """What the site answers to a path and the headers of a request."""
    found = content(path)
    if found is None:
        return 404, {}, b""
    body, headers = found
    tag = headers.get("ETag")
    is_same = asked.get("if-none-match") == tag if tag is not None else asked.get("if-modified-since") == CHANGED
    if is_same and headers.keys() & {"ETag", "Last-Modified"}:
        return 304, {"ETag": tag} if tag is not None else {}, b""
    return 200, headers, body


def crawl(spark: SparkSession, lake: Lake, served: Served, run_id: str) -> dict[str, float]:
    """One crawl of the site as the command does it: its metrics, and `wall_s`."""
    from jobs import crawl as job
    from jobs.config import load_config
    from jobs.progress import unseen
    from jobs.runs import executing, finish

    source = {"name": "site", "kind": "site", "start": [f"http://127.0.0.1:{served.port}/"], "depth": 1}
    said: dict[str, Any] = {"sources": [source], "allow_addresses": [f"127.0.0.1:{served.port}"], "delay_s": 0}
    said |= {"max_connections_per_host": 16, "recrawl": {"first_days": 1e-6, "least_days": 1e-6}}  # due at once
    config, started = load_config((), (), {"crawl": said}), time.perf_counter()
    job.validate(config)
    with executing(
        spark,
        lake,
        run_id=run_id,
        job="crawl",
        inputs=job.pins(spark, lake),
        outputs={},
        config_digest="benchmark",
        heartbeat_s=config.featurize.heartbeat_s,
        expiry_s=config.featurize.lease_expiry_s,
        progress=unseen,
    ) as run:
        result = job.run(spark, lake, config, run)
        finish(spark, lake, run, result, mlflow_run_id=None)
    return {**result.metrics, "wall_s": time.perf_counter() - started}


def measured() -> dict[str, Any]:
    """What the second crawl and featurize of the site did."""
    from pyspark.sql import functions as F

    from jobs.lake import open_lake, read
    from jobs.work import Selection
    from schemas import DOCUMENTS, FEATURES, MEDIA

    spark, folder = session(), BUILD / "lake-recrawl"
    shutil.rmtree(folder, ignore_errors=True)
    lake = open_lake(spark, str(folder))

    def held() -> dict[str, int]:
        media = read(spark, lake, MEDIA).agg(F.count("*"), F.coalesce(F.sum("size_bytes"), F.lit(0))).collect()[0]
        return {"media": media[0], "media_bytes": media[1], "features": read(spark, lake, FEATURES).count()}

    with site() as served:
        first = crawl(spark, lake, served, "first.crawl")
        featurize(spark, lake, [ready("mean")], "first.featurize", Selection())
        before, asked = held(), dict(served.statuses)
        second = crawl(spark, lake, served, "second.crawl")
        featurize(spark, lake, [ready("mean")], "second.featurize", Selection())
        after, answered = held(), served.statuses - Counter(asked)
    n_documents = read(spark, lake, DOCUMENTS).where("error IS NULL").count()
    shutil.rmtree(folder)
    return {
        "n_documents": n_documents,
        "answers": {str(status): n for status, n in sorted(answered.items())},
        "not_modified_or_skipped": 1 - (answered.total() - answered[304]) / n_documents,
        "media_before": before["media"],
        "new": {name: after[name] - before[name] for name in before},
        "body_bytes": second["bytes"],
        "crawl_s": {"first": round(first["wall_s"], 1), "second": round(second["wall_s"], 1)},
    }


def rows() -> list[Row]:
    """C3, measured in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.recrawl"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the recrawl failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    share = found["not_modified_or_skipped"]
    return [
        Row(
            id="C3",
            what="second crawl of an unchanged site: documents answered 304 or not asked for / documents",
            unit="share",
            ours=share,
            peer=None,
            ratio=share,
            reach=REACH,
            settings={**found, **machine()},
        )
    ]


if __name__ == "__main__":
    print(json.dumps(measured()))
