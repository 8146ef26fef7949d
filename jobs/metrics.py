"""What a run did, measured from its committed rows, and how two such measures merge. Knows no tracker and no model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jobs.config import Prices
from jobs.dollars import cost_usd_per_million
from jobs.gates import IS_PAGE

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

Merge = Literal["sum", "histogram"]
BUCKETS_PER_DECADE = 32  # bounds 7.5 % apart: a percentile is at most 3.7 % from the value it stands for
LOWEST_MS, HIGHEST_MS = 0.01, 1e7  # what is outside is counted in the first or last bucket
CONFIDENT_SCORE = 0.5


def bucket_of(ms: float) -> int:
    """The histogram bucket of a duration."""
    return math.floor(math.log10(min(max(ms, LOWEST_MS), HIGHEST_MS)) * BUCKETS_PER_DECADE)


def bucket_ms(bucket: int) -> float:
    """The geometric middle of a bucket in milliseconds."""
    return float(10 ** ((bucket + 0.5) / BUCKETS_PER_DECADE))


@dataclass(frozen=True)
class Histogram:
    """Durations counted in fixed, logarithmically spaced buckets, so that any two histograms merge exactly."""

    counts: Mapping[int, int] = field(default_factory=dict)  # bucket -> n, n > 0

    @property
    def n(self) -> int:
        """How many durations were counted."""
        return sum(self.counts.values())

    def percentile_ms(self, share: float) -> float | None:
        """The duration that `share` (0..1) of all do not exceed, within 3.7 %; None when empty."""
        below, needed = 0, share * self.n
        for bucket in sorted(self.counts):
            below += self.counts[bucket]
            if below >= needed:
                return bucket_ms(bucket)
        return None

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(_by_key(self.counts, other.counts, lambda a, b: a + b))


def _by_key(a: Mapping[Any, Any], b: Mapping[Any, Any], join: Any) -> dict[Any, Any]:
    return {k: join(a[k], b[k]) if k in a and k in b else a.get(k, b.get(k)) for k in sorted({*a, *b})}


def _merged(how: Merge) -> Any:
    return field(default_factory=dict, metadata={"merge": how})


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """Counts and durations of one or several runs; each field maps a key to a value and declares how values merge.

    Keys: featurizer ids, job names, lines of the cost, error codes or, where a field has one value only, the empty
    string.
    """

    n_documents: Mapping[str, int] = _merged("sum")  # attempted, or whose media was featurized; pages apart
    n_pages: Mapping[str, int] = _merged("sum")  # and sitemaps, attempted
    n_media: Mapping[str, int] = _merged("sum")  # featurized
    n_frames: Mapping[str, int] = _merged("sum")  # decoded
    n_fetches: Mapping[str, int] = _merged("sum")
    n_rows: Mapping[str, int] = _merged("sum")  # of `features`, by featurizer
    n_failed: Mapping[str, int] = _merged("sum")  # rows with an error, by featurizer
    n_features: Mapping[str, int] = _merged("sum")  # things found, by featurizer
    n_confident: Mapping[str, int] = _merged("sum")  # frames whose best score is at least CONFIDENT_SCORE
    n_with_text: Mapping[str, int] = _merged("sum")  # frames in which text was read, by featurizer
    n_linked: Mapping[str, int] = _merged("sum")  # features with a label, by featurizer
    n_mentions: Mapping[str, int] = _merged("sum")  # entities linked, by source
    n_vector_values: Mapping[str, int] = _merged("sum")  # floats stored, by featurizer
    n_errors: Mapping[str, int] = _merged("sum")  # rows of documents, features and mentions, by code
    fetched_bytes: Mapping[str, int] = _merged("sum")
    stored_bytes: Mapping[str, int] = _merged("sum")  # by table: media, frames
    fetch_ms: Mapping[str, Histogram] = _merged("histogram")  # of an attempt
    decode_ms: Mapping[str, Histogram] = _merged("histogram")  # of a frame
    infer_ms: Mapping[str, Histogram] = _merged("histogram")  # of a frame, by featurizer
    document_ms: Mapping[str, Histogram] = _merged("histogram")  # decode + infer over a media's frames and featurizers
    decode_total_ms: Mapping[str, float] = _merged("sum")
    infer_total_ms: Mapping[str, float] = _merged("sum")  # by featurizer
    wall_s: Mapping[str, float] = _merged("sum")  # by job; jobs of one pipeline follow each other
    held_core_s: Mapping[str, float] = _merged("sum")  # by job: cores held, times the seconds for which they were
    held_gpu_s: Mapping[str, float] = _merged("sum")  # the same of GPUs, by kind
    core_s: Mapping[str, float] = _merged("sum")  # by line of the cost: what the held ones are known to have done
    gpu_s: Mapping[str, float] = _merged("sum")  # by `kind/line`
    moved_bytes: Mapping[str, int] = _merged("sum")  # read, written: files, by tasks

    def to_json(self) -> str:
        """The canonical JSON form; `from_json` gives back an equal value."""

        def plain(value: Any) -> Any:
            return {str(k): v for k, v in value.counts.items()} if isinstance(value, Histogram) else value

        described = {f.name: {k: plain(v) for k, v in getattr(self, f.name).items()} for f in fields(self)}
        return json.dumps(described, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RunMetrics:
        """The value `to_json` wrote; raises ValueError naming a field that is not one."""
        raw = json.loads(text)
        known = {f.name: f.metadata["merge"] for f in fields(cls)}
        if unknown := sorted(set(raw) - set(known)):
            raise ValueError(f"not a field of RunMetrics: {unknown}, allowed: {sorted(known)}")
        for name, how in known.items():
            if how == "histogram":
                counts = {k: {int(b): n for b, n in v.items()} for k, v in raw.get(name, {}).items()}
                raw[name] = {k: Histogram(c) for k, c in counts.items()}
        return cls(**raw)


_JOIN = {"sum": lambda a, b: a + b, "histogram": lambda a, b: a + b}


def merge(a: RunMetrics, b: RunMetrics) -> RunMetrics:
    """Both together, each field merged as it declares; associative, commutative, with `RunMetrics()` as zero."""
    return RunMetrics(
        **{f.name: _by_key(getattr(a, f.name), getattr(b, f.name), _JOIN[f.metadata["merge"]]) for f in fields(a)}
    )


class Cell(NamedTuple):
    """One aggregated value on its way from Spark: a field of RunMetrics, its key and, in a histogram, the bucket."""

    measure: str
    key: str
    bucket: int | None
    value: float


def from_cells(cells: Iterable[Cell]) -> RunMetrics:
    """The metrics that cells add up to; raises ValueError for a cell of no field."""
    kinds = {f.name: (f.metadata["merge"], str(f.type)) for f in fields(RunMetrics)}

    def one(cell: Cell) -> RunMetrics:
        if cell.measure not in kinds:
            raise ValueError(f"not a field of RunMetrics: {cell.measure!r}")
        how, type_name = kinds[cell.measure]
        value: Any = int(cell.value) if "int" in type_name else float(cell.value)
        if how == "histogram":
            assert cell.bucket is not None
            value = Histogram({cell.bucket: int(cell.value)})
        named: dict[str, Any] = {cell.measure: {cell.key: value}}
        return RunMetrics(**named)

    return reduce(merge, map(one, cells), RunMetrics())


def measure(tables: Mapping[str, DataFrame], run_ids: Sequence[str]) -> RunMetrics:
    """What the runs committed, in one Spark action over the narrow columns of their rows.

    `tables` holds fetches, documents, media, frames, features and mentions by name. The decoding of a frame is
    counted once, however many featurizers saw it.
    """
    from pyspark.sql import functions as F

    def of_runs(name: str) -> DataFrame:
        return tables[name].where(F.col("run_id").isin(list(run_ids)))

    def bucket(ms: Column) -> Column:
        clipped = F.greatest(F.lit(LOWEST_MS), F.least(F.lit(HIGHEST_MS), ms.cast("double")))
        return F.floor(F.log10(clipped) * BUCKETS_PER_DECADE).cast("int")

    def cells(rows: DataFrame, by: Column, values: Mapping[str, Column]) -> DataFrame:
        """Sums by key, as cells."""
        summed = rows.groupBy(by.alias("key")).agg(*(v.cast("double").alias(n) for n, v in values.items()))
        pairs = F.array(*(F.struct(F.lit(n).alias("measure"), F.col(n).alias("value")) for n in values))
        return summed.select("key", F.explode(pairs).alias("c")).select(
            "c.measure", "key", F.lit(None).cast("int").alias("bucket"), "c.value"
        )

    def histogram(rows: DataFrame, name: str, by: Column, ms: Column) -> DataFrame:
        counted = rows.where(ms.isNotNull()).groupBy(by.alias("key"), bucket(ms).alias("bucket")).count()
        return counted.select(
            F.lit(name).alias("measure"), "key", "bucket", F.col("count").cast("double").alias("value")
        )

    one = F.lit("")

    def n_if(condition: Column) -> Column:
        return F.sum(condition.cast("int"))

    has_label = "size(filter(features, f -> f.label IS NOT NULL))"
    rows = of_runs("features").select(
        "media_id",
        "frame",
        "featurizer",
        "decode_ms",
        "infer_ms",
        F.col("error.code").alias("code"),
        F.expr("size(features)").alias("n"),
        F.expr("array_max(transform(features, f -> f.score))").alias("best"),
        F.expr("exists(features, f -> f.text IS NOT NULL)").alias("has_text"),
        F.expr(has_label).alias("n_labels"),
        F.expr("aggregate(features, 0L, (n, f) -> n + coalesce(size(f.vector), 0))").alias("n_values"),
    )
    by_frame = rows.groupBy("media_id", "frame").agg(
        F.max("decode_ms").cast("double").alias("decode_ms"), F.sum("infer_ms").cast("double").alias("infer_ms")
    )
    work = F.coalesce("decode_ms", F.lit(0.0)) + F.coalesce("infer_ms", F.lit(0.0))
    by_media = by_frame.groupBy("media_id").agg(
        n_if(F.col("decode_ms").isNotNull()).alias("n_frames"),
        F.sum("decode_ms").alias("decode_ms"),
        F.sum(work).alias("ms"),
    )
    fetches = of_runs("fetches")
    tried = fetches.select("doc_id").distinct().withColumn("tried", F.lit(True))
    documents = (
        tables["documents"]
        .select("doc_id", "media_id", F.expr(IS_PAGE).alias("is_page"), F.col("error.code").alias("code"))
        .join(tried, on="doc_id", how="left")
        .join(by_media.select("media_id", F.lit(True).alias("seen")), on="media_id", how="left")
        .where("tried OR seen")
    )
    media = tables["media"].select("media_id", "size_bytes").join(by_media, on="media_id", how="left_semi")
    frames = tables["frames"].select("media_id", F.octet_length("thumbnail").alias("bytes"))
    frames = frames.join(by_media, on="media_id", how="left_semi")
    mentions = of_runs("mentions").select("source", F.col("error.code").alias("code"), F.expr(has_label).alias("n"))
    featurizer, code = F.col("featurizer"), F.col("code")
    found = F.coalesce(F.col("n"), F.lit(0))
    parts = [
        cells(documents.where("NOT is_page"), one, {"n_documents": F.count("*")}),
        cells(documents.where("is_page"), one, {"n_pages": F.count("*")}),
        cells(fetches, one, {"n_fetches": F.count("*"), "fetched_bytes": F.sum("bytes")}),
        cells(media.select(F.col("size_bytes")), F.lit("media"), {"stored_bytes": F.sum("size_bytes")}),
        cells(frames, F.lit("frames"), {"stored_bytes": F.sum("bytes")}),
        cells(
            by_media,
            one,
            {
                "n_media": F.count("*"),
                "n_frames": F.sum("n_frames"),
                "decode_total_ms": F.sum("decode_ms"),
            },
        ),
        cells(
            rows,
            featurizer,
            {
                "n_rows": F.count("*"),
                "n_failed": n_if(code.isNotNull()),
                "n_features": F.sum(found),
                "n_confident": n_if(F.col("best") >= CONFIDENT_SCORE),
                "n_with_text": n_if(F.col("has_text")),
                "n_linked": F.sum("n_labels"),
                "n_vector_values": F.sum("n_values"),
                "infer_total_ms": F.sum("infer_ms"),
            },
        ),
        cells(mentions, F.col("source"), {"n_mentions": F.sum(found)}),
        *(cells(t.where(code.isNotNull()), code, {"n_errors": F.count("*")}) for t in (documents, rows, mentions)),
        histogram(fetches, "fetch_ms", one, F.col("ms")),
        histogram(by_frame, "decode_ms", one, F.col("decode_ms")),
        histogram(rows, "infer_ms", featurizer, F.col("infer_ms")),
        histogram(by_media, "document_ms", one, F.col("ms")),
    ]
    union = reduce(lambda a, b: a.unionByName(b), parts).where("value IS NOT NULL")
    return from_cells(Cell(*row) for row in union.select(*Cell._fields).collect())


def _total(values: Mapping[str, float]) -> float:
    return float(sum(values.values()))


def _kind(values: Mapping[str, int], kind: str) -> int:
    return sum(n for featurizer, n in values.items() if featurizer.startswith(f"{kind}_"))


def metric_key(name: str) -> str:
    """A featurizer id, code or source as a part of a metric name: `@` becomes `.v`, what is not allowed `_`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name.replace("@", ".v"))


def quality(metrics: RunMetrics) -> dict[str, float]:
    """Label-free quality: ratios over the frames that did not fail, by kind of featurizer; a kind not run is absent."""
    shares: dict[str, float] = {}
    for name, values, kind in (
        ("confident_concept_share", metrics.n_confident, "concept"),
        ("objects_per_frame", metrics.n_features, "object"),
        ("text_found_share", metrics.n_with_text, "entity"),
        ("entities_per_frame", metrics.n_linked, "entity"),
    ):
        if n_frames := _kind(metrics.n_rows, kind) - _kind(metrics.n_failed, kind):
            shares[name] = _kind(values, kind) / n_frames
    if n_documents := metrics.n_documents.get("", 0):
        linked = _kind(metrics.n_linked, "entity") + sum(metrics.n_mentions.values())
        shares["entities_per_document"] = linked / n_documents
    return shares


def flat(metrics: RunMetrics, prices: Prices) -> dict[str, float]:
    """Every metric by its name in MLflow and in `runs`: counts bare, the rest under `quality/`, `latency_ms/`,
    `throughput/`, `cost_usd/` (for a million documents) and `errors/`."""
    named: dict[str, float] = {
        "documents": metrics.n_documents.get("", 0),
        "pages": metrics.n_pages.get("", 0),
        "media": metrics.n_media.get("", 0),
        "frames": metrics.n_frames.get("", 0),
        "fetches": metrics.n_fetches.get("", 0),
        "features": sum(metrics.n_features.values()),
        "mentions": sum(metrics.n_mentions.values()),
        "errors": sum(metrics.n_errors.values()),
    }
    named |= {f"errors/{code}": n for code, n in metrics.n_errors.items()}
    named |= {f"quality/{name}": value for name, value in quality(metrics).items()}
    timed = {"fetch": metrics.fetch_ms, "decode": metrics.decode_ms, "document": metrics.document_ms}
    histograms = {stage: by_key.get("", Histogram()) for stage, by_key in timed.items()}
    histograms |= {f"infer/{metric_key(key)}": h for key, h in metrics.infer_ms.items()}
    for stage, h in histograms.items():
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            if (ms := h.percentile_ms(share)) is not None:
                named[f"latency_ms/{stage}/{name}"] = ms
    for job, seconds in metrics.wall_s.items():
        named[f"wall_s/{metric_key(job)}"] = seconds
        per = {
            "crawl": {"documents": metrics.n_documents},
            "featurize": {"media": metrics.n_media, "frames": metrics.n_frames},
        }
        for what, counts in per.get(job, {}).items():
            if seconds > 0:
                named[f"throughput/{what}_per_s"] = _total(counts) / seconds
    for line, usd in cost_usd_per_million(metrics, prices).items():
        named["/".join(("cost_usd", *map(metric_key, line.split("/", 1))))] = usd
    return {name: float(value) for name, value in named.items()}
