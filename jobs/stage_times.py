"""Where the engine's seconds go, stage by stage, and which stage limits it. Knows no Spark, no table and no model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

# Of the inferring threads' time. A stage with more, made twice as fast, makes the whole at least 1.4 times as fast
# (Amdahl 1967), so its remedy is worth naming; nearer to one half it would come and go between runs.
LIMITS_SHARE = 0.6
REMEDIES = {
    "read": "larger files of `media`, or a store nearer to the workers",
    "decode": "featurize.decode_profile=fast, or, where a GPU waits for it, more cores per task (spark.task.cpus)",
    "infer": "a cheaper variant of the dearest featurizer, or a GPU; where there is one, fewer cores per task will do",
    "write": "fewer or shorter vectors, or a faster disk for the lake's staging",
}


@dataclass(kw_only=True)
class StageTimes:
    """Seconds of one task, or of several added up: read, wait, infer and write divide the inferring thread's time."""

    load_s: float = 0.0  # models made ready, before the first media
    read_s: float = 0.0  # waiting for the reader
    wait_s: float = 0.0  # nothing is decoded yet
    infer_s: float = 0.0
    write_s: float = 0.0  # rows made, and taken by the consumer
    decode_s: float = 0.0  # of all decode threads, while the inferring thread does one of the above
    blocked_s: float = 0.0  # of all decode threads: decoded pictures found the queue full
    n_media: int = 0
    n_failed: int = 0  # frames, or media without any, that carry an error
    peak_bytes: int = 0  # resident size of the worker at its highest; of several the largest

    def add(self, other: StageTimes) -> None:
        """Take what `other` counted on top."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            setattr(self, f.name, max(mine, theirs) if f.name == "peak_bytes" else mine + theirs)

    def rounded(self) -> dict[str, float]:
        """Its fields by name, seconds to a thousandth."""
        return {f.name: round(getattr(self, f.name), 3) for f in fields(self)}

    @contextmanager
    def spent_on(self, stage: str) -> Iterator[None]:
        """Count the seconds of the block as those of `stage`, such as `read_s`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - began)


def busy_s(times: StageTimes) -> float:
    """The inferring threads' seconds, models loaded before not counted."""
    return times.read_s + times.wait_s + times.infer_s + times.write_s


def shares(times: StageTimes) -> dict[str, float]:
    """Which part of the inferring threads' seconds went to each stage; waiting for a picture is decoding's.

    Empty where nothing was featurized.
    """
    spent = {"read": times.read_s, "decode": times.wait_s, "infer": times.infer_s, "write": times.write_s}
    total_s = busy_s(times)
    return {stage: seconds / total_s for stage, seconds in spent.items()} if total_s > 0 else {}


def stage_metrics(times: StageTimes) -> dict[str, float]:
    """The seconds by their names in MLflow and `runs`, over all tasks, and the largest worker; empty without media."""
    if not times.n_media:
        return {}
    seconds = {f.name.removesuffix("_s"): getattr(times, f.name) for f in fields(times) if f.name.endswith("_s")}
    return {f"stage_s/{stage}": spent for stage, spent in seconds.items()} | {"worker_peak_bytes": times.peak_bytes}


def times_of(metrics: Mapping[str, float]) -> StageTimes:
    """The seconds that `stage_metrics` named."""
    times = StageTimes()
    for f in fields(times):
        if (found := metrics.get(f"stage_s/{f.name.removesuffix('_s')}")) is not None:
            setattr(times, f.name, found)
    return times


def verdict(times: StageTimes) -> str:
    """In words: which stage limits, and, above LIMITS_SHARE of the time, what would help; empty without media."""
    parts = shares(times)
    if not parts:
        return ""
    limiting = max(parts, key=lambda stage: parts[stage])
    listed = ", ".join(f"{stage} {share:.0%}" for stage, share in parts.items())
    listed += f" (decoding went on for {times.decode_s / busy_s(times):.0%})"
    if parts[limiting] < LIMITS_SHARE:
        return f"stages: {listed}; {limiting} limits, and no stage by much"
    others = {"decode": "inference waited for pictures", "infer": "decoded pictures waited for inference"}
    waited = others.get(limiting, "the other stages waited")
    return f"stages: {listed}; {limiting} limits: {waited} {parts[limiting]:.0%} of the time; {REMEDIES[limiting]}"


class Added:
    """How Spark adds up StageTimes in an accumulator."""

    def zero(self, value: StageTimes) -> StageTimes:
        """What adds nothing."""
        return StageTimes()

    def addInPlace(self, a: StageTimes, b: StageTimes) -> StageTimes:
        """Both together."""
        a.add(b)
        return a
