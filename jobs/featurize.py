"""`lakelens featurize`: media to frames and features, in waves that are each committed once. Contains no model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurizers.spec import FeaturizerSpec, featurizer_module, find_spec, fingerprint
from featurizers.weights import resolve
from jobs import lake as lakes
from jobs.commit import added_files, commit_wave, last_transaction, log_entries, transaction_session
from jobs.config import Config, ConfigError, Featurize
from jobs.engine import STAGED, EngineSettings, featurize_media, loaded_featurizers
from jobs.lake import Lake, append, read, version
from jobs.runs import JobResult, Run, run_rows
from schemas import DOCUMENTS, FEATURES, FRAMES, MEDIA
from schemas.errors import RETRYABLE
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

PARTITION_BYTES = 32 << 20  # media bytes of one task: small enough that the dearest pictures spread over the cores
FEATURES_FILE_BYTES = 128 << 20  # design: at most one features file per featurizer and 128 MB of a wave


@dataclass(frozen=True, kw_only=True)
class Due:
    """A featurizer that this run computes: its spec with digests, its weights on this machine, its fingerprint."""

    spec: FeaturizerSpec
    paths: Mapping[str, Path]
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


def frame_sampling(config: Featurize) -> str:
    """The frame sampling as the fingerprint sees it."""
    return f"key_frames:{config.max_frames_per_video}"


def configured_spec(featurizer_id: str, config: Featurize) -> FeaturizerSpec:
    """The spec of an id, from its module or, for a configured model, described by its module; raises ConfigError."""
    name, _, _ = featurizer_id.partition("@")
    family, _, variant = name.partition(".")
    if name in config.models:
        describe = getattr(featurizer_module(family), "spec_for", None)
        if describe is None:
            raise ConfigError(f"featurize.models.{name}: {family} takes no configured model")
        spec: FeaturizerSpec = describe(variant, config.models[name])
        if spec.id != featurizer_id:
            raise ConfigError(f"featurizer {featurizer_id!r} is not known; the configured model makes {spec.id}")
        return spec
    return find_spec(featurizer_id)


def due_featurizers(config: Featurize) -> list[Due]:
    """The configured featurizers with their weights fetched; raises ConfigError, UnknownFeaturizer, WeightsError."""
    if not config.featurizers:
        raise ConfigError("featurize.featurizers is empty; name at least one, such as concept_efficientnet.lite0@1")
    due = []
    for featurizer_id in dict.fromkeys(config.featurizers):
        spec, paths = resolve(configured_spec(featurizer_id, config))
        digest = fingerprint(spec, decode_profile=config.decode_profile, frame_sampling=frame_sampling(config))
        due.append(Due(spec=spec, paths=paths, fingerprint=digest))
    return due


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


# -- plan ---------------------------------------------------------------------------------------------------------


def new_media_files(
    spark: SparkSession, lake: Lake, due: Due, pinned: int, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[str]] | None:
    """Files of `media` added since the last accepted run that finished its plan, and the runs that may have read them.

    None where the whole table must be planned: no such run, or the log no longer reaches back to it.
    """
    same = [r for r in rows if (r["outputs"] or {}).get(due.spec.id) == due.fingerprint and r["job"] == "featurize"]
    bases = [r for r in same if r["status"] == "accepted" and r["whole_plan"]]
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
) -> DataFrame:
    """(media_id, size_bytes, file, featurizer) of the media that lack this featurizer's rows or may be tried again."""
    from pyspark.sql import functions as F

    pinned = run.inputs[MEDIA.name]
    done = read(spark, lake, FEATURES).where(
        (F.col("featurizer") == due.spec.id) & (F.col("fingerprint") == due.fingerprint)
    )
    everything = _media_to_plan(read(spark, lake, MEDIA, version=pinned))
    since = None if full else new_media_files(spark, lake, due, pinned, run_rows(spark, lake))
    if since is None:
        missing = everything.join(done.select("media_id").distinct(), on="media_id", how="left_anti")
    else:
        paths, runs_since = since
        files = (
            spark.read.schema(schema_ddl(MEDIA.columns)).parquet(*paths) if paths else read(spark, lake, MEDIA).limit(0)
        )
        recent = done.where(F.col("run_id").isin(runs_since)).select("media_id").distinct()
        missing = _media_to_plan(files).join(recent, on="media_id", how="left_anti")
    plan = missing.withColumn("retried", F.lit(False))
    failed = done.where(F.col("error").isNotNull() & (F.col("run_id") != run.run_id))
    if not retry_errors:
        failed = failed.where(F.col("error.code").isin(sorted(map(str, RETRYABLE))))
    if not failed.isEmpty():
        again = everything.join(failed.select("media_id").distinct(), on="media_id", how="left_semi")
        plan = plan.unionByName(again.withColumn("retried", F.lit(True)))
    return plan.select("media_id", "size_bytes", "file", F.lit(due.spec.id).alias("featurizer"), "retried")


def _media_to_plan(media: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    # file_path is percent-encoded, and url_decode would take a plus sign for a space
    path = F.expr("url_decode(replace(_metadata.file_path, '+', '%2B'))")
    return media.select("media_id", "size_bytes", path.alias("file"))


def write_plan(spark: SparkSession, lake: Lake, due: Sequence[Due], run: Run, selection: Selection) -> DataFrame:
    """Plan all featurizers, stage the plan once, and return it: (media_id, size_bytes, file, due, retried)."""
    from functools import reduce

    from pyspark.sql import functions as F

    plans = [
        plan_featurizer(spark, lake, one, run, full=selection.full, retry_errors=selection.retry_errors) for one in due
    ]
    plan = (
        reduce(lambda a, b: a.unionByName(b), plans)
        .groupBy("media_id", "size_bytes", "file")
        .agg(F.collect_set("featurizer").alias("due"), F.max("retried").alias("retried"))
    )
    if selection.where is not None:
        chosen = read(spark, lake, DOCUMENTS).where(selection.where).select("media_id").distinct()
        plan = plan.join(chosen, on="media_id", how="left_semi")
    if selection.limit is not None:
        plan = plan.orderBy("media_id").limit(selection.limit)
    path = f"{lake.staging(run.run_id)}/plan"
    plan.write.mode("overwrite").parquet(path)
    return spark.read.parquet(path)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which media a run takes; anything but the default leaves the plan unfinished."""

    full: bool = False
    retry_errors: bool = False
    limit: int | None = None
    where: str | None = None  # SQL condition on `documents`

    @property
    def whole(self) -> bool:
        """True when all that is due is taken."""
        return self.limit is None and self.where is None


# -- one wave -----------------------------------------------------------------------------------------------------


def stage_wave(
    spark: SparkSession, plan: DataFrame, files: Sequence[MediaFile], due: Sequence[Due], config: Featurize, path: str
) -> DataFrame:
    """Run the engine over the media of `files` that are due, write its rows once as Parquet, and read them back."""
    from pyspark.sql import functions as F

    wave = plan.where(F.col("file").isin([f.path for f in files])).select("media_id", "due")
    media = (
        spark.read.schema(schema_ddl(MEDIA.columns))
        .parquet(*[f.path for f in files])
        .select("media_id", "content", "pack_uri", "offset", "length", "mime")
        .join(F.broadcast(wave), on="media_id", how="inner")
    )
    cores = spark.sparkContext.defaultParallelism
    n_partitions = max(
        min(sum(f.n_media for f in files), 8 * cores), math.ceil(sum(f.size_bytes for f in files) / PARTITION_BYTES)
    )
    described = [(one.spec, dict(one.paths), one.fingerprint) for one in due]
    threads = int(spark.conf.get("spark.task.cpus", "1") or 1)
    settings = EngineSettings(
        max_pixels=config.max_pixels, max_frames_per_video=config.max_frames_per_video, decode_threads=threads
    )

    def extract(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        gpus = context.resources().get("gpu") if context is not None else None
        device = f"cuda:{gpus.addresses[0]}" if gpus is not None else "cpu"
        return featurize_media(batches, loaded_featurizers(described, device), settings)

    staged = media.repartition(n_partitions).mapInArrow(extract, schema_ddl(STAGED))
    staged.write.mode("overwrite").parquet(path)
    return spark.read.schema(schema_ddl(STAGED)).parquet(path)


class WaveIncomplete(RuntimeError):
    """A staged wave lacks media that were planned; the run fails and can be resumed."""


def check_complete(staged: DataFrame, plan: DataFrame, files: Sequence[MediaFile]) -> None:
    """Raise WaveIncomplete unless every planned (media, featurizer) is in the staged rows."""
    from pyspark.sql import functions as F

    planned = plan.where(F.col("file").isin([f.path for f in files])).select(
        "media_id", F.explode("due").alias("featurizer")
    )
    there = staged.select("media_id", F.explode("results.featurizer").alias("featurizer")).distinct()
    missing = planned.join(there, on=["media_id", "featurizer"], how="left_anti").limit(3).collect()
    if missing:
        raise WaveIncomplete(f"staged rows lack {[tuple(row) for row in missing]}; the stage is not committed")


def append_frames(spark: SparkSession, lake: Lake, staged: DataFrame) -> None:
    """Append the wave's frames that are not there yet, the anti-join inside the write plan."""
    from pyspark.sql import functions as F

    frames = staged.where(F.col("width").isNotNull())
    wave_media = F.broadcast(frames.select("media_id").distinct())

    def commit() -> None:
        there = read(spark, lake, FRAMES).select("media_id", "frame").join(wave_media, on="media_id", how="left_semi")
        missing = frames.select(*FRAMES.columns.names).join(there, on=["media_id", "frame"], how="left_anti")
        append(missing.coalesce(1), lake, FRAMES)

    lakes.repeated(commit)


def features_rows(staged: DataFrame, due: Due, run: Run, wave: int) -> DataFrame:
    """The rows of `features` that a staged wave holds for one featurizer."""
    from pyspark.sql import functions as F

    return (
        staged.select("media_id", "frame", "decode_ms", F.explode("results").alias("r"))
        .where(F.col("r.featurizer") == due.spec.id)
        .select(
            "media_id", "frame", "r.featurizer", "r.fingerprint", "r.features", "r.error", "decode_ms", "r.infer_ms",
            F.lit(run.run_id).alias("run_id"), F.lit(wave).cast("bigint").alias("wave"),
        )
    )  # fmt: skip


def commit_features(
    spark: SparkSession, lake: Lake, staged: DataFrame, due: Due, run: Run, wave: int, *, retries: bool, n_files: int
) -> int:
    """Commit one wave of one featurizer exactly once; returns the number of its next wave."""
    from pyspark.sql import functions as F

    wave_media = F.broadcast(staged.select("media_id").distinct())

    def left(at: int, wave: int) -> DataFrame:
        there = read(spark, lake, FEATURES, version=at).where(
            (F.col("featurizer") == due.spec.id) & (F.col("fingerprint") == due.fingerprint)
        )
        settled = there.where(F.col("error").isNull()) if retries else there
        settled = settled.select("media_id", "frame").join(wave_media, on="media_id", how="left_semi")
        rows = features_rows(staged, due, run, wave)
        return rows.join(settled, on=["media_id", "frame"], how="left_anti").select(*FEATURES.columns.names)

    def write(rows: DataFrame, wave: int) -> None:
        if retries:
            merge_retries(spark, lake, rows, staged, due, run, wave)
        else:
            append(rows.coalesce(n_files), lake, FEATURES, app_id=due.app_id, transaction=wave, owner=run.owner)

    return commit_wave(spark, lake, FEATURES, run, due.app_id, wave, left=left, write=write)


def merge_retries(
    spark: SparkSession, lake: Lake, rows: DataFrame, staged: DataFrame, due: Due, run: Run, wave: int
) -> None:
    """One MERGE: failed rows replaced, missing ones inserted, error rows of the wave's media not written again deleted.

    Its source is written first, so that the MERGE's two passes over it read files and run no model.
    """
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    path = f"{lake.staging(run.run_id)}/retry-{wave}-{due.fingerprint}"
    rows.write.mode("overwrite").parquet(path)
    media_ids = [r.media_id for r in features_rows(staged, due, run, wave).select("media_id").distinct().collect()]
    with transaction_session(spark, due.app_id, wave, run.owner) as session:
        source = session.read.schema(schema_ddl(FEATURES.columns)).parquet(path)
        here = f"t.featurizer = {_sql(due.spec.id)} AND t.fingerprint = {_sql(due.fingerprint)}"
        (
            DeltaTable.forPath(session, lake.table(FEATURES))
            .alias("t")
            .merge(source.alias("s"), f"{here} AND t.media_id = s.media_id AND t.frame = s.frame")
            .whenMatchedUpdateAll("t.error IS NOT NULL")
            .whenNotMatchedInsertAll()
            .whenNotMatchedBySourceDelete(
                F.expr(here) & F.col("t.error").isNotNull() & F.col("t.media_id").isin(media_ids)
            )
            .execute()
        )


def _sql(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# -- the job ------------------------------------------------------------------------------------------------------


def pins(spark: SparkSession, lake: Lake) -> dict[str, int]:
    """The versions of what this job reads, to be stored with the run before it reads."""
    return {table.name: version(spark, lake, table) for table in (MEDIA, DOCUMENTS)}


def run(
    spark: SparkSession, lake: Lake, config: Config, run: Run, due: Sequence[Due], selection: Selection
) -> JobResult:
    """Featurize all media of the pinned version that are due, wave by wave."""
    from pyspark.sql import functions as F

    lakes.remove_folder(spark, lake.staging(run.run_id))
    plan = write_plan(spark, lake, due, run, selection)
    next_wave = {one.spec.id: last_transaction(spark, lake, FEATURES, one.app_id) + 1 for one in due}
    per_file = plan.groupBy("file").agg(F.count("*"), F.sum("size_bytes"), F.max("retried")).orderBy("file").collect()
    waves = []
    for retries in (False, True):
        files = [MediaFile(row[0], row[1], row[2]) for row in per_file if row[3] == retries]
        limits = {"max_media": config.featurize.wave_media, "max_bytes": config.featurize.wave_bytes}
        waves += [(wave, retries) for wave in assign_waves(files, **limits)]
    for number, (files, retries) in enumerate(waves):
        run.check_owned()
        run.progress(f"wave {number + 1} of {len(waves)}: {sum(f.n_media for f in files)} media")
        path = f"{lake.staging(run.run_id)}/wave-{number}"
        staged = stage_wave(spark, plan, files, due, config.featurize, path)
        check_complete(staged, plan, files)
        append_frames(spark, lake, staged)
        n_files = math.ceil(max(1, _folder_bytes(spark, path)) / FEATURES_FILE_BYTES)
        for one in due:
            next_wave[one.spec.id] = commit_features(
                spark, lake, staged, one, run, next_wave[one.spec.id], retries=retries, n_files=n_files
            )
        lakes.remove_folder(spark, path)
    lakes.remove_folder(spark, lake.staging(run.run_id))
    n_media = sum(row[1] for row in per_file)
    return JobResult(
        status="finished",
        message=f"featurized {n_media} media in {len(waves)} waves",
        outputs={one.spec.id: one.fingerprint for one in due},
        whole_plan=selection.whole,
    )


def _folder_bytes(spark: SparkSession, uri: str) -> int:
    fs, path = lakes.file_system(spark, uri)
    return int(fs.getContentSummary(path).getLength())
