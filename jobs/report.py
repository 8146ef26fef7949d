"""The report of some runs: one self-contained HTML file made from committed rows. Knows no model and no tracker."""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from jobs.check import reports_folder
from jobs.config import Config, Prices
from jobs.contact_sheet import chosen_frames, within_budget
from jobs.crawl_report import CrawlReport, crawl_report
from jobs.dollars import cost_lines, cost_usd_per_million, paid, prices_said
from jobs.lake import Lake, read
from jobs.metrics import Histogram, RunMetrics, bucket_ms, measure, quality
from jobs.progress import readable_usd
from jobs.runs import code_version, run_rows
from jobs.stage_times import times_of, verdict
from jobs.tables import readable_bytes
from schemas import DOCUMENTS, FEATURES, FETCHES, FRAMES, HOSTS, MEDIA, MENTIONS
from schemas.errors import stage_of

if TYPE_CHECKING:
    from jinja2 import Environment
    from pyspark.sql import DataFrame, SparkSession

MAX_PICTURES = 72
MAX_VIDEOS = 6
EXAMPLES_PER_CODE = 5
SHOWN_BOXES = 12  # of one picture: more hide it
TAGGED_WIDTH = 0.12  # of the picture; a name is about 40 pixels wide in a thumbnail of 320
BARS = 48  # of the latency histogram
TABLES = (FETCHES, DOCUMENTS, MEDIA, HOSTS, FRAMES, FEATURES, MENTIONS)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle over a picture, in fractions of it, with what it is called."""

    kind: str  # object or text
    name: str
    score: float | None
    x: float
    y: float
    width: float
    height: float

    @property
    def tagged(self) -> bool:
        """True for an object large enough that its name does not hide it."""
        return self.kind == "object" and self.width >= TAGGED_WIDTH and self.height >= TAGGED_WIDTH


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One frame with what was found in it."""

    media_id: str
    time_s: float
    size: str  # of the upright frame, width x height
    thumbnail: str  # data: URI
    url: str
    caption: str
    concepts: Sequence[tuple[str, float]] = ()
    boxes: Sequence[Box] = ()
    objects: Sequence[tuple[str, int]] = ()  # label, how many
    texts: Sequence[str] = ()
    entities: Sequence[tuple[str, str]] = ()  # catalogue id, surface form
    mentions: Sequence[tuple[str, str, str]] = ()  # source, catalogue id, surface form
    errors: Sequence[tuple[str, str]] = ()  # featurizer, code


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video with its key frames in order."""

    url: str
    duration_s: float
    pictures: Sequence[Picture]


@dataclass(frozen=True, kw_only=True)
class ErrorCount:
    """An error code, how many rows carry it, and some of them."""

    code: str
    stage: str
    n: int
    examples: Sequence[tuple[str, str]]  # URL, detail


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the template shows."""

    title: str
    verdict: str  # accepted, rejected or not judged
    written_at: datetime
    lake: str
    metrics: RunMetrics
    prices: Prices
    pictures: Sequence[Picture] = ()
    videos: Sequence[Video] = ()
    errors: Sequence[ErrorCount] = ()
    crawl: CrawlReport | None = None
    gates: Sequence[Mapping[str, Any]] = ()
    runs: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # what made it: code, Spark, Python


def shared_latency(metrics: RunMetrics) -> list[tuple[float, int]]:
    """At most BARS + 1 bars of the per-document latency: (upper milliseconds, documents), neighbours put together."""
    counts = metrics.document_ms.get("", Histogram()).counts
    if not counts:
        return []
    low, high = min(counts), max(counts)
    step = max(1, -(-(high - low + 1) // BARS))
    bars = [0] * (-(-(high - low + 1) // step))
    for bucket, n in counts.items():
        bars[(bucket - low) // step] += n
    return [(bucket_ms(low + (i + 1) * step), n) for i, n in enumerate(bars)]


def pages() -> Environment:
    """Where the templates of pages, and the style that they share, come from; every text is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = importlib.resources.files("jobs")
    return Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def render(report: Report) -> str:
    """The HTML of a report; every text from outside is escaped, nothing in it is loaded from elsewhere."""
    environment = pages()
    environment.filters["number"] = number
    environment.filters["duration"] = duration
    environment.filters["file_name"] = file_name
    environment.filters["usd"] = readable_usd
    environment.filters["bytes"] = readable_bytes
    metrics = report.metrics
    stages = {"fetch": metrics.fetch_ms.get(""), "decode": metrics.decode_ms.get("")}
    stages |= {f"infer {name}": h for name, h in metrics.infer_ms.items()} | {"document": metrics.document_ms.get("")}
    latency = [(n, h.n, *(h.percentile_ms(s) for s in (0.5, 0.95, 0.99))) for n, h in stages.items() if h is not None]
    usd = cost_usd_per_million(metrics, report.prices)
    return environment.get_template("report.html.j2").render(
        report=report,
        cost=cost_lines(usd),
        total_usd=usd.get("total"),
        paid=paid(metrics, report.prices),
        prices=prices_said(report.prices),
        metrics=metrics,
        quality=quality(metrics),
        latency=latency,
        bars=shared_latency(metrics),
        stage_lines=[line for run in report.runs if (line := verdict(times_of(run.get("metrics") or {})))],
        n_failed_gates=sum(1 for gate in report.gates if not gate["passed"]),
    )


def number(value: float | None) -> str:
    """A number for reading: three significant digits, thousands apart."""
    if value is None:
        return "–"  # noqa: RUF001 (typography)
    if value == 0 or (abs(value) >= 1000 or float(value).is_integer()):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(ms: float | None) -> str:
    """Milliseconds for reading."""
    if ms is None:
        return "–"  # noqa: RUF001 (typography)
    return f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"


def file_name(url: str) -> str:
    """What a URL calls its file, as a person would write it; the URL itself where it ends in a slash."""
    return unquote(url.rsplit("/", 1)[-1]) or url


def picture_of(frame: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> Picture:
    """A picture from a row of `frames`, its rows of `features` without vectors, and the facts of its document."""
    concepts: list[tuple[str, float]] = []
    boxes: list[Box] = []
    objects: dict[str, int] = {}
    texts: list[str] = []
    entities: list[tuple[str, str]] = []
    errors = []
    for row in sorted(rows, key=lambda row: str(row["featurizer"])):
        kind = str(row["featurizer"]).partition("_")[0]
        if row["code"] is not None:
            errors.append((row["featurizer"], row["code"]))
        for found in row["found"] or []:
            label, score, text = found["label"], found["score"], found["text"]
            if kind == "concept" and label is not None:
                concepts.append((label, score or 0.0))
            if kind == "object":
                objects[label or "?"] = objects.get(label or "?", 0) + 1
            if kind == "entity" and text is not None:
                if label is None:
                    texts.append(text)
                else:
                    entities.append((label, text))
            if found["box"] is not None and kind in ("object", "entity") and len(found["box"]) == 4:
                x0, y0, x1, y1 = (float(v) for v in found["box"])
                name = (text if kind == "entity" else label) or ""
                shown = "text" if kind == "entity" else "object"
                boxes.append(Box(kind=shown, name=name, score=score, x=x0, y=y0, width=x1 - x0, height=y1 - y0))
    return Picture(
        media_id=frame["media_id"],
        time_s=frame["time_s"],
        size=f"{frame['width']} × {frame['height']}",  # noqa: RUF001 (typography)
        thumbnail="data:image/jpeg;base64," + base64.b64encode(frame["thumbnail"]).decode(),
        url=facts.get("url") or "",
        caption=facts.get("caption") or facts.get("page_title") or "",
        concepts=concepts[:5],
        boxes=boxes[:SHOWN_BOXES],
        objects=sorted(objects.items()),
        texts=[text for text in texts if text not in {surface for _, surface in entities}],
        entities=list(dict.fromkeys(entities)),
        mentions=facts.get("mentions", ()),
        errors=errors,
    )


def _facts(tables: Mapping[str, DataFrame], media_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """URL, caption, title and mentions of one document of each media."""
    from pyspark.sql import functions as F

    documents = tables["documents"].where(F.col("media_id").isin(list(media_ids)))
    first = documents.groupBy("media_id").agg(
        F.min(F.struct("url", "doc_id", "caption", "page_title")).alias("d"), F.collect_list("doc_id").alias("doc_ids")
    )
    links = tables["mentions"].select("doc_id", "source", F.explode("features").alias("f"))
    links = links.where("f.label IS NOT NULL").select("doc_id", "source", "f.label", "f.text")
    facts = {row.media_id: row.d.asDict() for row in first.select("media_id", "d").collect()}
    media_of = {f["doc_id"]: media_id for media_id, f in facts.items()}
    for row in links.where(F.col("doc_id").isin(sorted(media_of))).collect():
        known = facts[media_of[row.doc_id]].setdefault("mentions", [])
        if (row.source, row.label, row.text or "") not in known:
            known.append((row.source, row.label, row.text or ""))
    return facts


def _errors(tables: Mapping[str, DataFrame], run_ids: Sequence[str]) -> list[ErrorCount]:
    """Error rows of the runs by code: documents they attempted, and media they could not decode or infer."""
    from pyspark.sql import functions as F

    by_run = F.col("run_id").isin(list(run_ids))
    tried = tables["fetches"].where(by_run).select("doc_id").distinct()
    documents = (
        tables["documents"].join(tried, on="doc_id", how="left_semi").where("error IS NOT NULL").select("url", "error")
    )
    urls = tables["documents"].where("media_id IS NOT NULL").groupBy("media_id").agg(F.min("url").alias("url"))
    features = tables["features"].where(by_run).where("error IS NOT NULL").select("media_id", "error")
    media = features.join(urls, on="media_id", how="left").select(F.coalesce("url", "media_id").alias("url"), "error")
    rows = documents.unionByName(media).select("url", "error.code", "error.detail")
    grouped = rows.groupBy("code").agg(
        F.count("*").alias("n"),
        F.slice(F.sort_array(F.collect_set(F.struct("url", "detail"))), 1, EXAMPLES_PER_CODE).alias("e"),
    )
    from schemas.errors import ErrorCode

    counts = [
        ErrorCount(
            code=row.code,
            stage=stage_of(ErrorCode(row.code)) if row.code in list(ErrorCode) else "",
            n=row.n,
            examples=[(e.url, e.detail or "") for e in row.e],
        )
        for row in grouped.collect()
    ]
    return sorted(counts, key=lambda e: (["fetch", "decode", "infer", ""].index(e.stage), -e.n, e.code))


def read_gates(lake: Lake, run_ids: Sequence[str]) -> list[dict[str, Any]]:
    """The outcomes that checks among the runs left; of a remote lake those of this process."""
    files = [reports_folder(lake, run_id) / "gates" / "gates.json" for run_id in run_ids]
    return [one for file in files if file.is_file() for one in json.loads(file.read_text())["expectations"]]


def collect(
    spark: SparkSession,
    lake: Lake,
    config: Config,
    run_ids: Sequence[str],
    *,
    metrics: RunMetrics | None = None,
    gates: Sequence[Mapping[str, Any]] | None = None,
) -> Report:
    """What the report of these runs shows, read from committed rows."""
    import platform
    from datetime import UTC

    from pyspark.sql import functions as F

    tables = {table.name: read(spark, lake, table) for table in TABLES}
    known = {row["run_id"]: row for row in run_rows(spark, lake)}
    runs = [known[run_id] for run_id in run_ids if run_id in known]
    measured = metrics or measure(tables, run_ids)
    outputs = {(name, fp) for row in runs for name, fp in (row["outputs"] or {}).items()}
    # Frames that an earlier run of the same featurizers understood are shown too, after this run's own.
    wanted = F.concat_ws("#", "featurizer", "fingerprint").isin([f"{name}#{fp}" for name, fp in sorted(outputs)])
    fresh = F.col("run_id").isin(list(run_ids))
    tables["features"] = tables["features"].where(wanted | fresh if outputs else fresh)
    rows = tables["features"].select(
        "media_id",
        "frame",
        "featurizer",
        F.col("error.code").alias("code"),
        F.expr("transform(features, f -> struct(f.label, f.score, f.box, f.text))").alias("found"),
        fresh.alias("fresh"),
    )
    stills = chosen_frames(tables, rows, videos=False, limit=MAX_PICTURES)
    moving = chosen_frames(tables, rows, videos=True, limit=MAX_VIDEOS)
    frames = within_budget([*moving, *stills])
    ids = sorted({frame["media_id"] for frame in frames})
    facts = _facts(tables, ids)
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows.where(F.col("media_id").isin(ids)).collect():
        found.setdefault((row.media_id, row.frame), []).append(row.asDict(recursive=True))
    videos: dict[str, list[Picture]] = {}
    pictures: list[Picture] = []
    moving_ids = {frame["media_id"] for frame in moving}
    for frame in frames:
        key = frame["media_id"]
        picture = picture_of(frame, found.get((key, frame["frame"]), []), facts.get(key, {}))
        (videos.setdefault(key, []) if key in moving_ids else pictures).append(picture)
    lengths = {frame["media_id"]: frame["duration_s"] for frame in moving}
    statuses = [row["status"] for row in runs if row["job"] == "check"]
    outcomes = list(gates) if gates is not None else read_gates(lake, run_ids)
    judged = "rejected" if any(not one["passed"] for one in outcomes) else "accepted" if outcomes else "not judged"
    return Report(
        title=run_ids[0].rpartition(".")[0] or run_ids[0] if run_ids else "no run",
        verdict=next((s for s in statuses if s in ("accepted", "rejected")), judged),
        written_at=datetime.now(UTC),
        lake=lake.uri,
        metrics=measured,
        prices=config.prices,
        pictures=pictures,
        videos=[
            Video(url=p[0].url, duration_s=max(lengths[key] or 0.0, p[-1].time_s), pictures=p)
            for key, p in videos.items()
        ],
        errors=_errors(tables, run_ids),
        crawl=crawl_report(tables, run_ids, delay_s=config.crawl.delay_s),
        gates=outcomes,
        runs=runs,
        versions={"lakelens": code_version(), "Spark": spark.version, "Python": platform.python_version()},
    )


def write_report(
    spark: SparkSession,
    lake: Lake,
    config: Config,
    run_ids: Sequence[str],
    path: Path,
    *,
    metrics: RunMetrics | None = None,
    gates: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write the report of some runs of one pipeline to `path`, a local file below 10 MB.

    `metrics` are theirs, with the time of their jobs (measured here without it if not given); `gates` are the
    expectations of a gates.json (read from the lake's reports if not given).
    """
    return write_page(collect(spark, lake, config, run_ids, metrics=metrics, gates=gates), path)


def write_page(report: Report, path: Path) -> Path:
    """Write a report to `path`, a local file below 10 MB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(report), encoding="utf-8")
    return path
