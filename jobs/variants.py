"""The variants of an experiment: made ready, featurized, measured on golden items, timed in turn. Judges nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from jobs import evaluate, featurize, tracking
from jobs.check import EXPERIMENT
from jobs.claims import check_fingerprint
from jobs.command import Common
from jobs.config import Config, ConfigError, load_config
from jobs.engine import EngineSettings
from jobs.experiment_file import Experiment, Range, VariantConf
from jobs.inference import loaded_featurizers
from jobs.lake import Lake, read
from jobs.progress import Progress
from jobs.quality import GoldenItem, Measurement
from jobs.run import Prepared, run_job
from jobs.runs import JobResult, Run, RunAccepted, RunPublished
from jobs.sweep import Settings, is_searched, variant, variant_name
from jobs.timing import Passes, Timed, interleaved
from jobs.work import Due, Selection, Work, prepare
from schemas import FEATURES, MEDIA

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Seen = dict[tuple[str, int], evaluate.Evaluated]  # what was measured of a variant at a version of `features`


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A variant that was checked before Spark started."""

    name: str
    settings: Mapping[str, object]  # what is set for it over the configuration
    config: Config
    work: Work

    @property
    def due(self) -> Due:
        """Its featurizer."""
        return self.work.due[0]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a variant."""

    arm: Arm
    frames: evaluate.Frames
    measurements: Sequence[Measurement]
    passes: Passes
    error_rate: float


def arm_of(name: str, variant: VariantConf, base: Config) -> Arm:
    """A variant; raises what is wrong with it."""
    featurizer, _, digits = variant.featurizer.partition("#")
    chosen = {"featurizers": [featurizer], "link_captions": False}
    assignments = [f"{key}={json.dumps(value)}" for key, value in variant.set.items()]
    described = base.model_dump(mode="json")
    config = load_config((), assignments, {**described, "featurize": {**described["featurize"], **chosen}})
    arm = Arm(name=name, settings=variant.set, config=config, work=prepare(config.featurize))
    check_fingerprint(name, digits, arm.due.fingerprint)
    return arm


def arms(experiment: Experiment, base: Config) -> list[Arm]:
    """The variants, the baseline first; raises what is wrong with one of them, or with what is to be searched."""
    names = [experiment.baseline, *(name for name in experiment.variants if name != experiment.baseline)]
    found = [arm_of(name, experiment.variants[name], base) for name in names]
    if same := [arm.name for arm in found[1:] if arm.settings and is_same(arm, found[0])]:
        raise ConfigError(
            f"experiment {experiment.name}: what is set for {same[0]} changes neither what is computed nor how it is "
            f"evaluated: {', '.join(found[names.index(same[0])].settings)}"
        )
    if experiment.sweep is not None:
        values = {
            key: [each.low, each.high, each.between] if isinstance(each, Range) else each
            for key, each in experiment.sweep.over.items()
        }
        first: Settings = {key: each[0] for key, each in values.items()}
        for settings in [first, *({**first, key: value} for key, each in values.items() for value in each[1:])]:
            arm_of(variant_name(settings), variant(experiment.sweep, settings), base)
    return found


def is_same(one: Arm, other: Arm) -> bool:
    """Whether two variants compute the same vectors and evaluate them alike."""
    return one.due.fingerprint == other.due.fingerprint and one.config.evaluate == other.config.evaluate


def run_once(
    spark: SparkSession, lake: Lake, common: Common, job: Prepared, parent: tracking.Tracked, progress: Progress
) -> None:
    """Run a job of an experiment, unless an earlier attempt of this run id finished it and a check has accepted it.

    Where one was killed, and a check has published what it wrote by then, the rest is another run.
    """
    try:
        run_job(spark, lake, common, job, parent, progress)
    except RunAccepted:
        return
    except RunPublished:
        run_once(spark, lake, replace(common, run_id=f"{common.run_id}+"), job, parent, progress)


def run_arm(
    spark: SparkSession, lake: Lake, common: Common, arm: Arm, golden: str, parent: tracking.Tracked,
    progress: Progress, *, known: set[str],
) -> None:  # fmt: skip
    """Featurize the golden set's media that a variant lacks, unless its fingerprint is `known`, and add it to those.

    The run's job is `experiment`: a check does not judge it, so what a variant found is not published.
    """
    if arm.due.fingerprint not in known:
        run_once(spark, lake, common, featurizing(arm, Selection(golden=golden)), parent, progress)
        known.add(arm.due.fingerprint)


def featurizing(arm: Arm, selection: Selection) -> Prepared:
    """The job that computes what a variant lacks."""
    return Prepared(
        name=EXPERIMENT,
        outputs=arm.work.outputs,
        pins=featurize.pins,
        run=lambda spark, lake, run: featurize.run(spark, lake, arm.config, run, arm.work, selection),
    )


def evaluating(arm: Arm, golden: str, seen: Seen) -> Prepared:
    """The job that measures a variant item by item, and adds what it measured to `seen`."""
    chosen = arm.config.evaluate.model_copy(update={"golden": (golden,)})
    config = arm.config.model_copy(update={"evaluate": chosen})

    def evaluated(spark: SparkSession, lake: Lake, run: Run) -> JobResult:
        found = list(evaluate.evaluated(spark, lake, config, run, arm.work))
        for one in found:
            seen[arm.name, run.inputs[FEATURES.name]] = one
        return evaluate.written(spark, lake, config, run, arm.work, found)

    return Prepared(name="evaluate", outputs={}, pins=evaluate.pins, run=evaluated, is_measured=False)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some items of a golden set: those that a search sees, or the others."""

    groups: Mapping[str, str]  # item id -> what must not be torn apart: copies, and queries for the same pictures
    share: float  # that a search sees
    seed: int
    searched: bool

    def of(self, measured: Measurement) -> Measurement:
        """A metric on these items alone."""
        drawn = [is_searched(self.groups.get(item, item), share=self.share, seed=self.seed) for item in measured.items]
        mine = [i for i, searched in enumerate(drawn) if searched == self.searched]
        return measured if len(mine) == len(drawn) else measured.only(mine)


def query_groups(relevant: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Query -> a name of its group: queries that have a relevant media in common, whatever connects them, are one.

    relevant: query -> media ids, at least one each.
    """
    parent: dict[str, str] = {}

    def root(media_id: str) -> str:
        while (above := parent.setdefault(media_id, media_id)) != media_id:
            media_id = above
        return media_id

    for media_ids in relevant.values():
        for other in media_ids[1:]:
            parent[root(other)] = root(media_ids[0])
    return {query: root(media_ids[0]) for query, media_ids in relevant.items()}


def part_of(experiment: Experiment, items: Sequence[GoldenItem], *, searched: bool) -> Part:
    """The items that a search sees, or those that the verdict is on; without a search all of them."""
    share = 0.0 if experiment.sweep is None or experiment.sweep.method != "search" else experiment.sweep.search_share
    groups = {item.item_id: item.copy_group for item in items if item.copy_group is not None}
    groups |= query_groups({item.item_id: sorted(item.relevant) for item in items if item.relevant})
    return Part(groups=groups, share=share, seed=experiment.seed, searched=searched)


def measurements(
    spark: SparkSession, lake: Lake, arm: Arm, golden: str, items: Sequence[GoldenItem], part: Part, *, at: int,
    seen: Seen,
) -> tuple[evaluate.Frames, list[Measurement]]:  # fmt: skip
    """What a variant found in the golden set's media at a version of `features`, and every metric of it.

    What is not in `seen`, as where an evaluation was accepted before, is measured here and added to it.
    """
    if (key := (arm.name, at)) not in seen:
        labels = arm.config.evaluate.bridge_labels
        seen[key] = evaluate.evaluate_on(spark, lake, arm.due, golden, items, bridge_labels=labels, at=at)
    return seen[key].frames, [part.of(one) for one in seen[key].measurements]


def primary(measured: Sequence[Measurement], experiment: Experiment) -> Measurement:
    """The measurement that decides; raises ConfigError where it is none of these."""
    wanted = next(iter(experiment.metrics))
    there = {one.metric: one for one in measured}
    if wanted in there and not there[wanted].items:
        raise ConfigError(f"no item is left to measure {wanted} on; the golden set is too small to be divided")
    if wanted not in there:
        raise ConfigError(f"metric {wanted!r} is not measured here; measured: {', '.join(there)}")
    return there[wanted]


def measure(
    spark: SparkSession, lake: Lake, experiment: Experiment, variants: Sequence[Arm], items: Sequence[GoldenItem],
    part: Part, *, at: int, seen: Seen,
) -> list[Measured]:  # fmt: skip
    """Every metric of every variant at one version of `features`, and what it costs, in turn on this machine."""
    found = []
    for arm in variants:
        frames, measured = measurements(spark, lake, arm, experiment.golden, items, part, at=at, seen=seen)
        failed = [all(frame.features is None for frame in each) for each in frames.values()]
        found.append((arm, frames, measured, float(np.mean(failed))))
    timed = timing(spark, lake, experiment, variants, found[0][1])
    return [
        Measured(arm=arm, frames=frames, measurements=measured, passes=timed[arm.name], error_rate=error_rate)
        for arm, frames, measured, error_rate in found
    ]


def timing(
    spark: SparkSession, lake: Lake, experiment: Experiment, variants: Sequence[Arm], frames: evaluate.Frames
) -> Mapping[str, Passes]:
    """Passes of all variants over the same media, in turn; those of one fingerprint are one.

    frames: of the baseline, whose first media by id are taken, except those that failed. Raises ConfigError where all
    did.
    """
    from pyspark.sql import functions as F

    columns = ["media_id", "content", "pack_uri", "offset", "length", "mime"]
    whole = [media_id for media_id, each in frames.items() if any(frame.features is not None for frame in each)]
    if not whole:
        raise ConfigError(f"none of the {len(frames)} media of {experiment.golden} can be featurized, so none is timed")
    chosen = sorted(whole)[: experiment.timed_media]
    table = (
        read(spark, lake, MEDIA).where(F.col("media_id").isin(chosen)).select(*columns).orderBy("media_id").toArrow()
    )
    [batch] = table.combine_chunks().to_batches()
    of_fingerprint = {arm.due.fingerprint: arm for arm in variants}
    timed = []
    for fingerprint, arm in of_fingerprint.items():
        settings = arm.config.featurize
        [loaded] = loaded_featurizers([(arm.due.spec, dict(arm.due.paths), fingerprint)], "cpu")
        timed.append(
            Timed(
                name=fingerprint,
                loaded=loaded,
                settings=EngineSettings(
                    max_pixels=settings.max_pixels,
                    max_frames_per_video=settings.max_frames_per_video,
                    decode_profile=settings.decode_profile,
                    decode_threads=1,
                ),
            )
        )
    passes = interleaved(timed, batch, n_repeats=experiment.repeats)
    return {arm.name: passes[arm.due.fingerprint] for arm in variants}
