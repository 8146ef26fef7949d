"""`lakelens plan`: what a featurize run would take, from a rehearsal with a sample of its media. Changes no table.

The sample goes through the job itself into a lake of its own under the staging folder, which is removed in the end. No
row of `runs` is written: a plan holds no lease, and what later runs plan from must not see it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurizers.probe import VIDEO_FORMAT
from jobs import featurize
from jobs import lake as lakes
from jobs.command import FINISHED, REJECTED, Common, Ending, progress_of
from jobs.config import Config
from jobs.dollars import machine_usd_per_s
from jobs.estimate import Population, Prediction, Rehearsal, Stratum, allocate, over_limit, predict
from jobs.lake import Lake, append, open_lake, read
from jobs.mentions import due_sources
from jobs.progress import Progress, readable_s, readable_usd
from jobs.report import write_report
from jobs.run import Prepared, measured, run_job
from jobs.runs import Run, stored_run_id
from jobs.session import spark_session
from jobs.shipped import for_tasks
from jobs.tables import console, grid, readable_bytes
from jobs.tracking import Tracked
from jobs.work import Selection, Work, media_to_plan, prepare, write_plan
from schemas import DOCUMENTS, FEATURES, MEDIA, MENTIONS
from schemas.table import schema_ddl

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

N_PILOT = 16  # media that make workers and models warm, and say how many SAMPLE_S is
SAMPLE_S = 15.0  # of every core's time: then the sample's chance outweighs the clock's
MIN_SAMPLE, MAX_SAMPLE = 48, 1024  # media
MAX_SHARE = 0.3  # of what is due: a plan is to cost less than the run
MAX_SAMPLE_BYTES = 256 << 20  # that are copied; a few of each kind are taken whatever their bytes
SAMPLE_FILES = 16  # of `media` that the sample is read from, for all of a file is read for one row
HANDLING_MS = 1.0  # of a media beside decoding and inference, and of one that cannot be decoded


@dataclass(frozen=True)
class Candidate:
    """A media that may be sampled."""

    media_id: str
    pixels: int


Sample = Mapping[Stratum, Sequence[Candidate]]


def describe(spark: SparkSession, lake: Lake, plan: DataFrame, run: Run) -> DataFrame:
    """The plan with the stratum of each media, its pixels and its bytes in its row: columns is_video, size_class,
    pixels, inline_bytes."""
    from pyspark.sql import functions as F

    facts = read(spark, lake, MEDIA, version=run.inputs[MEDIA.name])
    facts = facts.select("media_id", "mime", "width", "height", "pack_uri")
    pixels = F.coalesce(F.col("width").cast("bigint") * F.col("height"), F.lit(0))
    return plan.join(facts, on="media_id", how="inner").select(
        *plan.columns,
        F.coalesce(F.col("mime").isin(sorted(VIDEO_FORMAT)), F.lit(False)).alias("is_video"),
        F.floor(F.floor(F.log2(F.greatest("size_bytes", F.lit(1)))) / 2).cast("int").alias("size_class"),
        pixels.alias("pixels"),
        F.when(F.col("pack_uri").isNull(), F.col("size_bytes")).otherwise(0).alias("inline_bytes"),
    )


def count_due(
    spark: SparkSession, lake: Lake, config: Config, work: Work, run: Run, described: DataFrame, *, whole: bool
) -> Population:
    """The population of a described plan."""
    from pyspark.sql import functions as F

    found = described.groupBy("is_video", "size_class").agg(
        F.count("*").alias("n"),
        F.sum("size_bytes").alias("size_bytes"),
        F.sum("inline_bytes").alias("inline_bytes"),
        F.max("pixels").alias("pixels"),
    )
    rows = {(row.is_video, row.size_class): row for row in found.collect()}
    linker = work.linker if whole else None
    return Population(
        n={s: row.n for s, row in rows.items()},
        size_bytes={s: row.size_bytes for s, row in rows.items()},
        inline_bytes=sum(row.inline_bytes for row in rows.values()),
        max_pixels=max((row.pixels for row in rows.values()), default=0),
        n_waves=len(featurize.plan_waves(described, config.featurize)),
        n_sources=due_sources(spark, lake, linker, run.inputs).count() if linker is not None else 0,
    )


def candidates(described: DataFrame, most: Mapping[Stratum, int]) -> Sample:
    """The media that a sample is taken from, at most so many of a stratum, first come first.

    The order is that of the digest's last digits, so that it is the same every time, by chance, and has nothing to do
    with `--sample` and `--limit`, which go by the first. Those of a stratum are from SAMPLE_FILES files, chosen by
    their names' digests, where there are more: what differs between files is then in the sample only as far as those
    differ.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    stratum_of = Window.partitionBy("is_video", "size_class")
    files = described.select("is_video", "size_class", "file").distinct()
    files = files.withColumn("file_place", F.row_number().over(stratum_of.orderBy(F.xxhash64("file"))))
    few = F.broadcast(files.where(F.col("file_place") <= SAMPLE_FILES))
    place = F.row_number().over(stratum_of.orderBy(F.substring("media_id", 33, 32)))
    ranked = described.join(few, on=["is_video", "size_class", "file"], how="left_semi").withColumn("place", place)
    rows = ranked.where(F.col("place") <= max(most.values())).orderBy("place")
    found: dict[Stratum, list[Candidate]] = {}
    for row in rows.select("is_video", "size_class", "media_id", "pixels").collect():
        stratum = (row.is_video, row.size_class)
        if len(found.setdefault(stratum, [])) < most[stratum]:
            found[stratum].append(Candidate(row.media_id, row.pixels))
    return found


def cut(spark: SparkSession, lake: Lake, run: Run, plan: DataFrame, sample: Sample) -> Lake:
    """A lake below the staging folder that holds these media and their documents, as the real one does."""
    from pyspark.sql import functions as F

    scratch = open_lake(spark, f"{lake.staging(run.run_id)}/rehearsal")
    chosen = F.broadcast(_media_ids(spark, sample))
    files = [row.file for row in plan.join(chosen, on="media_id", how="left_semi").select("file").distinct().collect()]
    media = spark.read.schema(schema_ddl(MEDIA.columns)).parquet(*files)
    append(media.join(chosen, on="media_id", how="left_semi"), scratch, MEDIA)
    documents = read(spark, lake, DOCUMENTS, version=run.inputs[DOCUMENTS.name])
    append(documents.join(chosen, on="media_id", how="left_semi"), scratch, DOCUMENTS)
    return scratch


def sampled_plan(spark: SparkSession, scratch: Lake, plan: DataFrame, sample: Sample) -> DataFrame:
    """What the plan says of these media, with the bytes of `scratch`; none is a retry, whose MERGE takes longer."""
    from pyspark.sql import functions as F

    due = plan.select("media_id", "due").join(F.broadcast(_media_ids(spark, sample)), on="media_id", how="left_semi")
    there = media_to_plan(read(spark, scratch, MEDIA))
    return there.join(F.broadcast(due), on="media_id", how="inner").withColumn("retried", F.lit(False))


def _media_ids(spark: SparkSession, sample: Sample) -> DataFrame:
    return spark.createDataFrame([(one.media_id,) for each in sample.values() for one in each], "media_id STRING")


def warm_up(
    spark: SparkSession, scratch: Lake, config: Config, work: Work, run: Run, pilot: DataFrame
) -> tuple[float, float]:
    """Featurize a few media and throw the rows away.

    Returns seconds of the clock, and about those of a task for one media: the dearest are left out, among which are
    those that waited for imports and first calls.
    """
    from pyspark.sql import functions as F

    files = [file for wave, _ in featurize.plan_waves(pilot, config.featurize) for file in wave]
    path = f"{scratch.staging(run.run_id)}/pilot"
    due = for_tasks(spark, scratch, work).due
    began = time.monotonic()
    staged = featurize.stage_wave(spark, pilot, files, due, config.featurize, path)
    pilot_s = time.monotonic() - began
    infer_ms = F.aggregate("results", F.lit(0.0), lambda total, r: total + F.coalesce(r["infer_ms"], F.lit(0.0)))
    frame_ms = F.coalesce("decode_ms", F.lit(0.0)) + infer_ms + F.lit(HANDLING_MS)
    media_ms = sorted(row[1] for row in staged.groupBy("media_id").agg(F.sum(frame_ms)).collect())
    usual = media_ms[: max(1, len(media_ms) - 2 * spark.sparkContext.defaultParallelism)]
    return pilot_s, sum(usual) / len(usual) / 1000


def rehearse(
    spark: SparkSession, scratch: Lake, common: Common, work: Work, sampled: DataFrame, progress: Progress,
    *, whole: bool,
) -> tuple[Mapping[str, float], dict[str, float]]:  # fmt: skip
    """Run the job over the sampled media, report and all; no tracker sees it.

    Returns the job's metrics, and the seconds of its phases by their first word.
    """
    job = Prepared(
        name="featurize",
        outputs=work.outputs,
        pins=featurize.pins,
        run=lambda s, there, r: featurize.run_plan(s, there, common.config, r, work, sampled, whole=whole),
    )
    progress("opening the run")
    first = len(progress.phases) - 1
    done = run_job(spark, scratch, common, job, Tracked(), progress)
    progress("writing the report")
    with tempfile.TemporaryDirectory(prefix="lakelens-") as folder:
        measures = measured(spark, scratch, [done.run_id])
        write_report(spark, scratch, common.config, [done.run_id], Path(folder) / "report.html", metrics=measures)
    progress("predicting")
    spent: dict[str, float] = {}
    for (text, began), (_, ended) in zip(progress.phases[first:-1], progress.phases[first + 1 :], strict=True):
        name = text.replace(",", " ").split()[0]
        spent[name] = spent.get(name, 0.0) + ended - began
    return done.result.metrics, spent


def costs(spark: SparkSession, scratch: Lake) -> dict[str, tuple[float, float]]:
    """Of each media: about its milliseconds over all frames and featurizers, and the share of rows with an error."""
    from pyspark.sql import functions as F

    ms = F.coalesce(F.max("decode_ms"), F.lit(0.0)) + F.coalesce(F.sum("infer_ms"), F.lit(0.0))
    failed = F.col("error").isNotNull().cast("double")
    frames = (
        read(spark, scratch, FEATURES).groupBy("media_id", "frame").agg(ms.alias("ms"), F.avg(failed).alias("failed"))
    )
    all_ms = F.sum("ms") + F.lit(HANDLING_MS)
    rows = frames.groupBy("media_id").agg(all_ms.alias("ms"), F.avg("failed").alias("failed")).collect()
    return {row.media_id: (row.ms, row.failed) for row in rows}


def rehearsal(
    spark: SparkSession, lake: Lake, common: Common, work: Work, run: Run, plan: DataFrame, population: Population,
    described: DataFrame, progress: Progress, *, start_s: float, whole: bool,
) -> Rehearsal:  # fmt: skip
    """Choose the sample, warm up, rehearse, and say what it took."""
    config = common.config
    n_cores = spark.sparkContext.defaultParallelism
    n_tasks = max(1, n_cores // int(spark.conf.get("spark.task.cpus", "1") or 1))
    guessed = population.guessed_cost(config.featurize.max_frames_per_video)
    copied_bytes = max(1.0, population.inline_bytes / sum(population.n.values()))  # of a media: references are small
    most_copied = int(min(MAX_SAMPLE, MAX_SAMPLE_BYTES / copied_bytes))
    there = candidates(described, allocate(population.n, guessed, most_copied))

    def chosen(n: int) -> Sample:
        return {s: there[s][:k] for s, k in allocate(population.n, guessed, n).items() if s in there}

    scratch = cut(spark, lake, run, plan, there)
    progress("warming up")
    pilot = chosen(N_PILOT)
    pilot_s, one_s = warm_up(spark, scratch, config, work, run, sampled_plan(spark, scratch, plan, pilot))
    most = min(MAX_SAMPLE, sum(population.n.values()) * MAX_SHARE)
    sample = chosen(int(max(MIN_SAMPLE, min(most, SAMPLE_S * n_tasks / one_s))))
    progress(f"rehearsing with {sum(map(len, sample.values()))} media")
    sampled = sampled_plan(spark, scratch, plan, sample)
    n_waves = len(featurize.plan_waves(sampled, config.featurize))
    metrics, spent = rehearse(spark, scratch, common, work, sampled, progress, whole=whole)
    task_s = sum(metrics[f"stage_s/{stage}"] for stage in ("read", "wait", "infer", "write"))
    stages_s = max(0.0, spent.pop("featurizing") - task_s / n_tasks) / n_waves  # each wave's, beside its media
    by_media = costs(spark, scratch)
    per_ms = task_s / sum(ms for ms, _ in by_media.values())
    again_s = sum(by_media[one.media_id][0] * per_ms for each in pilot.values() for one in each)
    return Rehearsal(
        start_s=start_s,
        wave_s=stages_s + spent.pop("committing") / n_waves,
        around_s=sum(spent.values()),
        warm_up_s=max(0.0, pilot_s - again_s / n_tasks - stages_s),
        n_tasks=n_tasks,
        n_cores=n_cores,
        media_s={s: [by_media[one.media_id][0] * per_ms for one in each] for s, each in sample.items()},
        failed={s: [by_media[one.media_id][1] for one in each] for s, each in sample.items()},
        n_sources=read(spark, scratch, MENTIONS).count(),
        max_pixels=max(one.pixels for each in sample.values() for one in each),
        peak_bytes=int(metrics["worker_peak_bytes"]),
    )


# -- the command --------------------------------------------------------------------------------------------------


def show_plan(common: Common, selection: Selection, *, max_usd: float | None, max_hours: float | None) -> Ending:
    """Print what the run would take; REJECTED where the upper end of an interval is above its limit."""
    config = common.config
    work = prepare(config.featurize, on_gpus=config.spark.gpus > 0)
    progress = progress_of(common)
    began = time.monotonic()
    with progress.shown():
        progress("starting Spark")
        spark = spark_session(config.spark, f"lakelens plan {common.run_id}", lake=config.lake)
        lake = open_lake(spark, config.lake, create=False)
        run = Run(
            run_id=stored_run_id(common.run_id, "plan"),
            job="plan",
            owner="",
            inputs=featurize.pins(spark, lake),
            started=datetime.now(UTC),
            resumed=False,
        )
        try:
            progress("planning")
            plan = write_plan(spark, lake, work.due, run, selection)
            start_s = time.monotonic() - began
            progress("counting")
            described = describe(spark, lake, plan, run)
            population = count_due(spark, lake, config, work, run, described, whole=selection.whole)
            if not population.n:
                return Ending(exit_code=FINISHED, message="no media are due", facts={"lake": lake.uri, "n_media": 0})
            seen = rehearsal(
                spark, lake, common, work, run, plan, population, described, progress,
                start_s=start_s, whole=selection.whole,
            )  # fmt: skip
        finally:
            lakes.remove_folder(spark, lake.staging(run.run_id))
    spark_config, n_cores = config.spark, seen.n_cores
    usd_per_s = machine_usd_per_s(
        config.prices, n_cores=n_cores, n_gpus=spark_config.gpus, gpu_kind=spark_config.gpu_kind
    )
    prediction = predict(population, seen, usd_per_s=usd_per_s, max_pixels=config.featurize.max_pixels)
    if not common.as_json:
        _print_table(prediction)
    n_media, ids = sum(population.n.values()), ", ".join(one.spec.id for one in work.due)
    waves = "one wave" if population.n_waves == 1 else f"{population.n_waves} waves"
    summary = f"{n_media:,} media in {waves} by {ids}, from a sample of {seen.n_media}"
    over = over_limit(prediction, max_usd=max_usd, max_hours=max_hours)
    return Ending(
        exit_code=REJECTED if over else FINISHED,
        message=over or summary,
        facts=_facts(lake, population, seen, prediction),
    )


def _facts(lake: Lake, population: Population, seen: Rehearsal, prediction: Prediction) -> dict[str, Any]:
    return {
        "lake": lake.uri,
        "n_media": sum(population.n.values()),
        "size_bytes": sum(population.size_bytes.values()),
        "n_waves": population.n_waves,
        "n_sampled": seen.n_media,
        "n_cores": seen.n_cores,
        **asdict(prediction),
    }


def _print_table(prediction: Prediction) -> None:
    shown = {
        "time": (prediction.hours.times(3600), readable_s),
        "dollars": (prediction.usd, readable_usd),
        "errors, share of media": (prediction.error_rate, lambda value: f"{value:.1%}"),
        "peak memory of a worker": (prediction.peak_bytes, readable_bytes),
    }
    rows = [
        {"": name, "predicted": text(found.point), "from": text(found.low), "to": text(found.high)}
        for name, (found, text) in shown.items()
    ]
    console().print(
        grid("the whole job, 90 % intervals", ["", "predicted", "from", "to"], rows, ["predicted", "from", "to"])
    )
