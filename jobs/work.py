"""What is due: the configured featurizers with their weights, and the media that lack their features. Runs no model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurizers.catalogue import CATALOGUE_WEIGHTS, read_catalogue, with_catalogue
from featurizers.linking import LINKER_SPEC
from featurizers.spec import FeaturizerSpec, featurizer_module, find_spec, fingerprint, prepared
from featurizers.weights import digest, resolve
from jobs.commit import added_files, log_entries
from jobs.config import ConfigError, Featurize
from jobs.golden import read_golden
from jobs.lake import Lake, file_of_row, read
from jobs.runs import Run, run_rows
from schemas import DOCUMENTS, FEATURES, MEDIA
from schemas.errors import RETRYABLE
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession


# Media of one anti-join over the whole table: about a gigabyte of ids, which a few cores sort without spilling much.
BUCKET_MEDIA = 10_000_000
MAX_BUCKET_DIGITS = 2  # each bucket reads the narrow columns of `media` again


@dataclass(frozen=True, kw_only=True)
class Due:
    """A featurizer that this run computes: its spec with digests, its weights on this machine, its fingerprint."""

    spec: FeaturizerSpec
    paths: Mapping[str, Path]
    # of what stands at `paths` as the run begins: nothing else may be loaded
    sha256: Mapping[str, str] = field(default_factory=dict)
    shipped: Mapping[str, str] = field(default_factory=dict)  # URIs that the tasks of a cluster have them from
    fingerprint: str

    @property
    def app_id(self) -> str:
        """Delta's transaction application id: one line of waves for one vector space."""
        return f"{self.spec.id}#{self.fingerprint}"


@dataclass(frozen=True)
class MediaFile:
    """A data file of `media` with what is due in it."""

    path: str
    n_media: int
    size_bytes: int


def configured_spec(featurizer_id: str, config: Featurize) -> FeaturizerSpec:
    """The spec of an id, from its module or, for a configured model, described by its module; raises ConfigError."""
    name, _, _ = featurizer_id.partition("@")
    family, _, variant = name.partition(".")
    if name in config.models:
        describe = getattr(featurizer_module(family), "spec_for", None)
        if describe is None:
            raise ConfigError(f"featurize.models.{name}: {family} takes no configured model")
        model = config.models[name]
        uri, precision = (model, "float32") if isinstance(model, str) else (model.uri, model.precision)
        spec: FeaturizerSpec = describe(variant, uri, precision)
        if spec.id != featurizer_id:
            raise ConfigError(f"featurizer {featurizer_id!r} is not known; the configured model makes {spec.id}")
        return spec
    return find_spec(featurizer_id)


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a run computes."""

    due: Sequence[Due]
    linker: Due | None  # of captions, titles and positions

    @property
    def outputs(self) -> dict[str, str]:
        """Featurizer id -> fingerprint."""
        return {one.spec.id: one.fingerprint for one in (*self.due, *([self.linker] if self.linker else []))}


def prepare(config: Featurize, *, on_gpus: bool = False) -> Work:
    """The configured featurizers and linker with their weights fetched and converted.

    Raises ConfigError, also for one that no GPU can run, UnknownFeaturizer, WeightsError, CatalogueError.
    """
    if not config.featurizers:
        raise ConfigError("featurize.featurizers is empty; name at least one, such as concept_efficientnet.lite0@1")

    def ready(spec: FeaturizerSpec, *, decode_profile: str, sampling: str) -> Due:
        reads_catalogue = any(w.name == CATALOGUE_WEIGHTS[0].name for w in spec.weights)
        if config.catalogue is not None and reads_catalogue:
            read_catalogue(Path(config.catalogue))  # what is wrong with it is said here, not by an executor
            spec = with_catalogue(spec, Path(config.catalogue))
        spec, paths = resolve(spec)
        ready_paths = prepared(spec, paths)
        return Due(
            spec=spec,
            paths=ready_paths,
            sha256={name: digest(path) for name, path in ready_paths.items()},
            fingerprint=fingerprint(spec, decode_profile=decode_profile, frame_sampling=sampling),
        )

    sampling = f"key_frames@2:{config.max_frames_per_video}"  # @2: spread by the container's index, in decoding order
    specs = [configured_spec(featurizer_id, config) for featurizer_id in dict.fromkeys(config.featurizers)]
    if on_gpus and (integers := [spec.id for spec in specs if spec.precision == "int8"]):
        raise ConfigError(
            f"{', '.join(integers)} runs on CPUs only; set spark.gpus=0, or take a float32 or fp16 variant"
        )
    return Work(
        due=[ready(spec, decode_profile=config.decode_profile, sampling=sampling) for spec in specs],
        linker=ready(LINKER_SPEC, decode_profile="none", sampling="none") if config.link_captions else None,
    )


def assign_waves(files: Sequence[MediaFile], *, max_media: int, max_bytes: int) -> list[list[MediaFile]]:
    """Files in the given order, cut into waves within both bounds; a file above a bound is a wave of its own."""
    waves: list[list[MediaFile]] = []
    n_media = size_bytes = 0
    for file in files:
        if not waves or n_media + file.n_media > max_media or size_bytes + file.size_bytes > max_bytes:
            waves.append([])
            n_media = size_bytes = 0
        waves[-1].append(file)
        n_media += file.n_media
        size_bytes += file.size_bytes
    return waves


def new_media_files(
    spark: SparkSession, lake: Lake, due: Due, pinned: int, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[str]] | None:
    """Files of `media` added since the last accepted run that finished its plan, and the runs that may have read them.

    None where the whole table must be planned: no such run, or the log no longer reaches back to it.
    """
    same = [r for r in rows if (r["outputs"] or {}).get(due.spec.id) == due.fingerprint]
    bases = [r for r in same if r["job"] == "featurize" and r["status"] == "accepted" and r["whole_plan"]]
    if not bases:
        return None
    base = max(bases, key=lambda r: r["inputs"]["media"])
    if any(r["job"] == "discard" and r["started"] > base["started"] for r in rows):
        return None
    since = int(base["inputs"]["media"])
    try:
        entries = list(log_entries(spark, lake, MEDIA, after=since))[: max(0, pinned - since)]
    except FileNotFoundError:
        return None
    paths = [f"{lake.table(MEDIA)}/{name}" for name in added_files(entries)]
    return paths, [r["run_id"] for r in same if r["started"] >= base["started"]]


def plan_featurizer(
    spark: SparkSession, lake: Lake, due: Due, run: Run, *, full: bool, retry_errors: bool
) -> tuple[DataFrame, bool]:
    """(media_id, size_bytes, file, featurizer) of the media that lack this featurizer's rows or may be tried again.

    And whether that is planned over the whole table.
    """
    from pyspark.sql import functions as F

    pinned = run.inputs[MEDIA.name]
    done = read(spark, lake, FEATURES).where(
        (F.col("featurizer") == due.spec.id) & (F.col("fingerprint") == due.fingerprint)
    )
    everything = media_to_plan(read(spark, lake, MEDIA, version=pinned))
    since = None if full else new_media_files(spark, lake, due, pinned, run_rows(spark, lake))
    if since is None:
        missing = everything.join(done.select("media_id").distinct(), on="media_id", how="left_anti")
    else:
        paths, runs_since = since
        files = (
            spark.read.schema(schema_ddl(MEDIA.columns)).parquet(*paths) if paths else read(spark, lake, MEDIA).limit(0)
        )
        recent = done.where(F.col("run_id").isin(runs_since)).select("media_id").distinct()
        missing = media_to_plan(files).join(recent, on="media_id", how="left_anti")
    plan = missing.withColumn("retried", F.lit(False))
    failed = done.where(F.col("error").isNotNull() & (F.col("run_id") != run.run_id))
    if not retry_errors:
        failed = failed.where(F.col("error.code").isin(sorted(map(str, RETRYABLE))))
    if not failed.isEmpty():
        again = everything.join(failed.select("media_id").distinct(), on="media_id", how="left_semi")
        plan = plan.unionByName(again.withColumn("retried", F.lit(True)))
    plan = plan.select("media_id", "size_bytes", "file", F.lit(due.spec.id).alias("featurizer"), "retried")
    return plan, since is None


def media_to_plan(media: DataFrame) -> DataFrame:
    """(media_id, size_bytes, file) of rows of `media` just read, `file` as Spark's readers take it."""
    return media.select("media_id", "size_bytes", file_of_row().alias("file"))


def buckets(n_ids: int, *, of: int) -> list[str]:
    """First hex digits of ids, so that each bucket holds about `of` of them at most: every id begins with one."""
    n_digits = 0
    while n_ids > of * 16**n_digits and n_digits < MAX_BUCKET_DIGITS:
        n_digits += 1
    return ["".join(digits) for digits in itertools.product("0123456789abcdef", repeat=n_digits)]


def in_sample(digest: Column, share: float) -> Column:
    """Whether a media or document is in the sample of `share`: its id, read as a number, is in the lowest part."""
    from pyspark.sql import functions as F

    return F.conv(F.substring(digest, 1, 8), 16, 10).cast("double") < share * 2**32


def write_plan(spark: SparkSession, lake: Lake, due: Sequence[Due], run: Run, selection: Selection) -> DataFrame:
    """Plan all featurizers, stage the plan once, and return it: (media_id, size_bytes, file, due, retried).

    Raises ConfigError for a `where` that is no condition.
    """
    from pyspark.errors import AnalysisException, ParseException
    from pyspark.sql import functions as F

    plans = [
        plan_featurizer(spark, lake, one, run, full=selection.full, retry_errors=selection.retry_errors) for one in due
    ]
    plan = (
        reduce(lambda a, b: a.unionByName(b), [plan for plan, _ in plans])
        .groupBy("media_id", "size_bytes", "file")
        .agg(F.collect_set("featurizer").alias("due"), F.max("retried").alias("retried"))
    )
    if selection.where is not None:
        documents = read(spark, lake, DOCUMENTS, version=run.inputs[DOCUMENTS.name])
        try:
            chosen = documents.where(selection.where).select("media_id").distinct()
        except (AnalysisException, ParseException) as e:
            raise ConfigError(f"--where {selection.where!r} is no condition on documents: {str(e).strip()}") from e
        plan = plan.join(chosen, on="media_id", how="left_semi")
    if selection.golden is not None:
        _, items = read_golden(spark, lake, selection.golden)
        media_ids = [(item.media_id,) for item in items if item.media_id is not None]
        chosen = F.broadcast(spark.createDataFrame(media_ids, "media_id STRING"))
        plan = plan.join(chosen, on="media_id", how="left_semi")
    if selection.sample is not None:
        plan = plan.where(in_sample(F.col("media_id"), selection.sample))
    if selection.limit is not None:
        plan = plan.orderBy("media_id").limit(selection.limit)
    path = f"{lake.staging(run.run_id)}/plan"
    is_large = selection.limit is None and any(is_whole for _, is_whole in plans)
    n_media = read(spark, lake, MEDIA, version=run.inputs[MEDIA.name]).count() if is_large else 0
    for i, bucket in enumerate(buckets(n_media, of=BUCKET_MEDIA)):
        # Spark carries the condition to both sides of the anti-join, so that each join is of one bucket.
        plan.where(F.col("media_id").startswith(bucket)).write.mode("append" if i else "overwrite").parquet(path)
    return spark.read.parquet(path)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which media a run takes; anything but the default leaves the plan unfinished."""

    full: bool = False
    retry_errors: bool = False
    limit: int | None = None
    where: str | None = None  # SQL condition on `documents`
    sample: float | None = None  # share of the media, the same ones every time: a larger share holds a smaller one
    golden: str | None = None  # name of a golden set, or name@version

    @property
    def whole(self) -> bool:
        """True when all that is due is taken."""
        return self.limit is None and self.where is None and self.sample is None and self.golden is None
