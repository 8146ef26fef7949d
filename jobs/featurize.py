"""`lakelens featurize`: media to frames and features, in waves that are each committed once. Contains no model."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from jobs import lake as lakes
from jobs.commit import commit_wave, last_transaction, transaction_session
from jobs.config import Config, Featurize
from jobs.dollars import machine_usd_per_s
from jobs.engine import EngineSettings, featurize_media
from jobs.inference import loaded_featurizers
from jobs.lake import Lake, append, read, sql_text, version
from jobs.log import log_task, told_to_tasks
from jobs.mentions import write_mentions
from jobs.meter import engine_tasks
from jobs.progress import media_line
from jobs.runs import JobResult, Run
from jobs.session import keep_zip_listings
from jobs.shipped import at_hand, for_tasks
from jobs.stage_times import Added, StageTimes, stage_metrics, verdict
from jobs.staged import STAGED
from jobs.stall import naming_stalls, watched
from jobs.work import Due, MediaFile, Selection, Work, assign_waves, write_plan
from schemas import DOCUMENTS, FEATURES, FRAMES, MEDIA
from schemas.table import schema_ddl

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark import Accumulator
    from pyspark.sql import DataFrame, SparkSession

PARTITION_BYTES = 32 << 20  # media bytes of one task: small enough that the dearest pictures spread over the cores
GPU_PARTITION_BYTES = 512 << 20  # of one task on a GPU: about a second of the fastest model on the fastest GPU
TASKS_PER_CORE = 8  # of a small wave, for the same reason
RUSAGE_BYTES = 1 if sys.platform == "darwin" else 1024  # what getrusage counts resident size in
FEATURES_FILE_BYTES = 128 << 20  # at most one features file for each featurizer and 128 MB of a wave


def stage_wave(
    spark: SparkSession,
    plan: DataFrame,
    files: Sequence[MediaFile],
    due: Sequence[Due],
    config: Featurize,
    path: str,
    *,
    stages: Accumulator[StageTimes] | None = None,
) -> DataFrame:
    """Run the engine over the media of `files` that are due, write its rows once as Parquet, and read them back.

    Each task that ends adds its times to `stages`; they are for show, since a task tried again is in them twice.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    wave = plan.where(F.col("file").isin([f.path for f in files]))
    wave = wave.select("media_id", "due", F.row_number().over(Window.orderBy("media_id")).alias("task"))
    media = (
        spark.read.schema(schema_ddl(MEDIA.columns))
        .parquet(*[f.path for f in files])
        .select("media_id", "content", "pack_uri", "offset", "length", "mime")
        .join(F.broadcast(wave), on="media_id", how="inner")
    )
    cores, task_cpus = spark.sparkContext.defaultParallelism, int(spark.conf.get("spark.task.cpus", "1") or 1)
    on_gpus = spark.conf.get("spark.task.resource.gpu.amount", "") != ""
    n_tasks = n_partitions(files, cores=cores, n_gpus=cores // task_cpus if on_gpus else 0)
    # Dealt out in turn. `repartition` would sort all media first, bytes and all, to deal the same if it runs again.
    dealt = media.repartitionById(n_tasks, "task").drop("task")
    staged = featurized(spark, dealt, due, config, stages=stages)
    with naming_stalls(config.stall_s), engine_tasks(spark):
        staged.write.mode("overwrite").parquet(path)
    return spark.read.schema(schema_ddl(STAGED)).parquet(path)


def featurized(
    spark: SparkSession,
    media: DataFrame,
    due: Sequence[Due],
    config: Featurize,
    *,
    stages: Accumulator[StageTimes] | None = None,
) -> DataFrame:
    """The engine's rows, of schema STAGED, for media with their bytes and what is `due`, as `featurize_media` says."""
    settings = EngineSettings(
        max_pixels=config.max_pixels,
        max_frames_per_video=config.max_frames_per_video,
        decode_profile=config.decode_profile,
        decode_threads=int(spark.conf.get("spark.task.cpus", "1") or 1),
        stall_s=config.stall_s,
    )

    def extract(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        times = StageTimes()
        with watched(settings.stall_s), times.spent_on("load_s"):
            described = [(one.spec, at_hand(one), one.fingerprint) for one in due]
            featurizers = loaded_featurizers(described, task_device())
            keep_zip_listings()
        yield from featurize_media(batches, featurizers, settings, times=times)
        times.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RUSAGE_BYTES
        log_task("featurized", **times.rounded())
        if stages is not None:
            stages.add(times)

    return media.mapInArrow(extract, schema_ddl(STAGED))


def task_device() -> str:
    """ "cuda:N" of the GPU that Spark lends to the task that this is called in, "cpu" where it lends none."""
    from pyspark import TaskContext

    context = TaskContext.get()
    gpus = context.resources().get("gpu") if context is not None else None
    return f"cuda:{gpus.addresses[0]}" if gpus is not None else "cpu"


def n_partitions(files: Sequence[MediaFile], *, cores: int, n_gpus: int) -> int:
    """Tasks of a wave: small ones on CPUs, which spread evenly; on GPUs as many for each and long, for a GPU idles
    while a task begins and ends."""
    n_media, size_bytes = sum(f.n_media for f in files), sum(f.size_bytes for f in files)
    if n_gpus:
        return min(n_media, n_gpus * math.ceil(size_bytes / (n_gpus * GPU_PARTITION_BYTES)) or 1)
    return max(1, min(n_media, max(TASKS_PER_CORE * cores, math.ceil(size_bytes / PARTITION_BYTES))))


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


def features_files(staged: DataFrame, due: Sequence[Due], *, staged_bytes: int) -> dict[str, int]:
    """How many files each featurizer's rows of a wave become: one for each FEATURES_FILE_BYTES of their vectors."""
    from pyspark.sql import functions as F

    if staged_bytes <= FEATURES_FILE_BYTES:
        return {one.spec.id: 1 for one in due}
    found = staged.select(F.explode("results").alias("r")).groupBy("r.featurizer")
    counts = {
        row[0]: row[1]
        for row in found.agg(F.sum(F.expr("size(filter(r.features, f -> f.vector IS NOT NULL))"))).collect()
    }
    return {
        one.spec.id: max(1, math.ceil((counts.get(one.spec.id) or 0) * 4 * one.spec.dim / FEATURES_FILE_BYTES))
        for one in due
    }


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
        here = f"t.featurizer = {sql_text(due.spec.id)} AND t.fingerprint = {sql_text(due.fingerprint)}"
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


def stage_times(spark: SparkSession) -> Accumulator[StageTimes]:
    """An accumulator of what the engine's stages take."""
    return spark.sparkContext.accumulator(StageTimes(), Added())  # type: ignore[arg-type]  # it has what Spark calls


def pins(spark: SparkSession, lake: Lake) -> dict[str, int]:
    """The versions of what this job reads, to be stored with the run before it reads."""
    return {table.name: version(spark, lake, table) for table in (MEDIA, DOCUMENTS)}


def run(spark: SparkSession, lake: Lake, config: Config, run: Run, work: Work, selection: Selection) -> JobResult:
    """Featurize all media of the pinned version that are due, wave by wave, then link what documents say."""
    lakes.remove_folder(spark, lake.staging(run.run_id))
    run.progress("planning")
    plan = write_plan(spark, lake, work.due, run, selection)
    return run_plan(spark, lake, config, run, work, plan, whole=selection.whole)


def plan_waves(plan: DataFrame, config: Featurize) -> list[tuple[list[MediaFile], bool]]:
    """The files of a plan in waves, and whether a wave tries errors again; those that do come last."""
    from pyspark.sql import functions as F

    per_file = plan.groupBy("file").agg(F.count("*"), F.sum("size_bytes"), F.max("retried")).orderBy("file").collect()
    waves = []
    for retries in (False, True):
        files = [MediaFile(row[0], row[1], row[2]) for row in per_file if row[3] == retries]
        limits = {"max_media": config.wave_media, "max_bytes": config.wave_bytes}
        waves += [(wave, retries) for wave in assign_waves(files, **limits)]
    return waves


def run_plan(
    spark: SparkSession, lake: Lake, config: Config, run: Run, work: Work, plan: DataFrame, *, whole: bool
) -> JobResult:
    """Featurize the media of a plan into `lake`, wave by wave, then, if the plan is whole, link what documents say."""
    work = for_tasks(spark, lake, work)
    waves = plan_waves(plan, config.featurize)
    next_wave = {one.spec.id: last_transaction(spark, lake, FEATURES, one.app_id) + 1 for one in work.due}
    stages = stage_times(spark)
    n_media = sum(file.n_media for files, _ in waves for file in files)
    spark_config, n_cores = config.spark, spark.sparkContext.defaultParallelism
    usd_per_s = machine_usd_per_s(
        config.prices, n_cores=n_cores, n_gpus=spark_config.gpus, gpu_kind=spark_config.gpu_kind
    )
    began = time.monotonic()

    def so_far(wave: str) -> Callable[[], str]:
        def line() -> str:
            now, spent_s = stages.value, time.monotonic() - began
            counts = {"done": now.n_media, "planned": n_media, "n_failed": now.n_failed}
            return f"featurizing, {wave}  {media_line(**counts, elapsed_s=spent_s, usd=spent_s * usd_per_s)}"

        return line

    for number, (files, retries) in enumerate(waves):
        run.check_owned()
        run.progress(so_far(f"wave {number + 1} of {len(waves)}"), wave=number + 1)
        path = f"{lake.staging(run.run_id)}/wave-{number}"
        with told_to_tasks(spark, wave=number + 1):
            staged = stage_wave(spark, plan, files, work.due, config.featurize, path, stages=stages)
        check_complete(staged, plan, files)
        run.progress(f"committing wave {number + 1} of {len(waves)}", wave=number + 1)
        run.check_owned()
        append_frames(spark, lake, staged)
        n_files = features_files(staged, work.due, staged_bytes=_folder_bytes(spark, path))
        for one in work.due:
            next_wave[one.spec.id] = commit_features(
                spark, lake, staged, one, run, next_wave[one.spec.id], retries=retries, n_files=n_files[one.spec.id]
            )
        lakes.remove_folder(spark, path)
    n_linked = 0
    if work.linker is not None and whole:
        run.progress("linking")
        n_linked = write_mentions(spark, lake, work.linker, run)
    lakes.remove_folder(spark, lake.staging(run.run_id))
    spent = stages.value
    ids = ", ".join(one.spec.id for one in work.due)
    return JobResult(
        status="finished",
        message=f"{n_media} media by {ids}; {n_linked} captions, titles and positions linked",
        metrics=stage_metrics(spent),
        outputs=work.outputs,
        whole_plan=whole,
        notes=[said] if (said := verdict(spent)) else [],
    )


def _folder_bytes(spark: SparkSession, uri: str) -> int:
    fs, path = lakes.file_system(spark, uri)
    return int(fs.getContentSummary(path).getLength())
