"""What a job would take, guessed from a sample of its media by strata, with intervals. Knows no Spark and no table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LINK_S = 0.006  # of one core, for one caption, title or position
CONFIDENCE = 0.9  # share of the plans whose interval is to hold the true figure
MIN_SAMPLED = 4  # of a stratum, where it has as many: the spread of fewer says next to nothing
N_DRAWS = 2000  # of the bootstrap: the ends of the interval then vary by about 1 % of it
Z = 1.645  # of the normal distribution, for CONFIDENCE

COST_BYTES = 1_000_000  # decode in about as long as the default featurizers but the text's take for a picture
# Standard deviation of the seconds of the same run repeated on a machine that others use too.
MACHINE_SPREAD = 0.1
PEAK_SPREAD = 1.15  # of the largest worker between runs, and after hours over a minute (row M1: 1 %)
PIXEL_BYTES = 2 * 3  # a picture is held as decoded and as it is being made upright or resized

Stratum = tuple[bool, int]  # is it a video, and which class of size: each goes to four times the bytes of the last
Draws = NDArray[np.float64]  # (N_DRAWS,) what the figure would be had other media been sampled


@dataclass(frozen=True)
class Estimate:
    """A figure, and the interval that is to hold the true one."""

    point: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.point * factor, self.low * factor, self.high * factor)


def allocate(sizes: Mapping[Stratum, int], costs: Mapping[Stratum, float], n: int) -> dict[Stratum, int]:
    """About `n` media over strata of so many: by size times guessed cost, which the spread goes with (Neyman 1934).

    At least MIN_SAMPLED of each, and no more than it has, so that the sum may differ from `n`.
    """
    weight = {s: sizes[s] * costs[s] for s in sizes}
    total = sum(weight.values()) or 1.0
    return {s: min(sizes[s], max(MIN_SAMPLED, math.ceil(n * weight[s] / total))) for s in sizes}


def total(sizes: Mapping[Stratum, int], sampled: Mapping[Stratum, Sequence[float]]) -> float:
    """The sum over the population: each stratum's size times its sample's mean.

    A stratum of which nothing was sampled is taken for the nearest that was. Raises ValueError if none was.
    """
    return sum(n * float(np.mean(sampled[_nearest(s, sampled)])) for s, n in sizes.items())


def total_draws(sizes: Mapping[Stratum, int], sampled: Mapping[Stratum, Sequence[float]], *, seed: int = 0) -> Draws:
    """`total` as it would have been for other samples: a bootstrap within strata.

    The deviations are scaled so that their variance is the one of sampling without replacement (Rao and Wu 1988): a
    stratum that was sampled whole has none.
    """
    random = np.random.default_rng(seed)
    draws = np.zeros(N_DRAWS)
    groups: dict[Stratum, int] = {}
    for s, n in sizes.items():
        near = _nearest(s, sampled)
        groups[near] = groups.get(near, 0) + n
    for s in sorted(groups):
        values = np.asarray(sampled[s], float)
        n = len(values)
        resampled = values[random.integers(0, n, (N_DRAWS, n))].mean(axis=1)
        left = max(0.0, 1 - n / groups[s])
        scale = math.sqrt(left * n / (n - 1)) if n > 1 else math.sqrt(left)
        draws += groups[s] * (values.mean() + scale * (resampled - values.mean()))
    return draws


def _nearest(stratum: Stratum, sampled: Mapping[Stratum, Sequence[float]]) -> Stratum:
    there = [s for s in sampled if len(sampled[s])]
    if not there:
        raise ValueError(f"nothing was sampled of {len(sampled)} strata")
    return min(there, key=lambda s: (s[0] != stratum[0], abs(s[1] - stratum[1]), s))


def interval(point: float, draws: Draws, *, spread: float = 0.0, seed: int = 1) -> Estimate:
    """The middle CONFIDENCE of the draws around `point`, each multiplied by chance of relative deviation `spread`.

    A mean of skewed values is more often too low than too high: the upper end is the draws' mirror where that is
    further out (the basic and the percentile interval, whichever is wider; Davison and Hinkley 1997, section 5.2).
    """
    noise = np.exp(np.random.default_rng(seed).normal(0, spread, len(draws))) if spread else 1.0
    low, high = np.quantile(draws * noise, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(point, max(0.0, min(float(low), 2 * point - float(high))), max(float(high), 2 * point - float(low)))


def share(point: float, n: int, n_population: int) -> Estimate:
    """A share of which `point` was seen among `n` of `n_population`: Wilson's interval (1927), which none seen widens
    too; nothing but the point where all were seen."""
    left = 1 - n / n_population if n_population else 0.0
    if not n or left <= 0:
        return Estimate(point, point, point)
    z2 = Z * Z * left / n
    middle = (point + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * point * (1 - point) + z2 * z2 / 4) / (1 + z2)
    return Estimate(point, min(point, max(0.0, middle - half)), max(point, min(1.0, middle + half)))


# -- a job ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Population:
    """What is due: media, bytes and the largest picture by stratum."""

    n: Mapping[Stratum, int]
    size_bytes: Mapping[Stratum, int]
    inline_bytes: int  # of all, those that are not held by reference
    max_pixels: int
    n_waves: int
    n_sources: int  # captions, titles and positions

    def guessed_cost(self, max_frames: int) -> dict[Stratum, float]:
        """The cost of a media of each stratum beside that of a small picture."""
        return {s: (max_frames if s[0] else 1) * (1 + self.size_bytes[s] / self.n[s] / COST_BYTES) for s in self.n}


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What the sample took: seconds of the clock, but for `media_s`, which are those of a task."""

    start_s: float  # once: Spark, the lake, the plan
    around_s: float  # once: the run's row, linking as far as rehearsed, measuring, the report
    warm_up_s: float  # once: workers and models
    wave_s: float  # of each wave: Spark's stages, the commits
    n_tasks: int  # at once
    n_cores: int
    media_s: Mapping[Stratum, Sequence[float]]
    failed: Mapping[Stratum, Sequence[float]]  # of each media sampled, which share of its rows has an error
    n_sources: int  # captions, titles and positions that were linked
    max_pixels: int
    peak_bytes: int  # of a worker

    @property
    def n_media(self) -> int:
        """How many were sampled."""
        return sum(map(len, self.media_s.values()))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the whole job would take, each with an interval that is to hold it nine times of ten."""

    hours: Estimate
    usd: Estimate  # that time at the machine's price
    error_rate: Estimate  # share of media
    peak_bytes: Estimate  # of a worker
    parts_s: Mapping[str, float]  # of the point


def predict(population: Population, seen: Rehearsal, *, usd_per_s: float, max_pixels: int) -> Prediction:
    """The whole job from its rehearsal: what is done once, once a wave, and for each media.

    usd_per_s: of all cores and GPUs that the job holds.
    """
    parts = {
        "start": seen.start_s,
        "warm_up": seen.warm_up_s,
        "media": total(population.n, seen.media_s) / seen.n_tasks,
        "waves": population.n_waves * seen.wave_s,
        "link": max(0, population.n_sources - seen.n_sources) * LINK_S / seen.n_cores,
        "around": seen.around_s,
    }
    seconds = sum(parts.values())
    draws: Draws = seconds - parts["media"] + total_draws(population.n, seen.media_s) / seen.n_tasks
    hours = interval(seconds, draws, spread=MACHINE_SPREAD).times(1 / 3600)
    n_media = sum(population.n.values())
    error_rate = total(population.n, seen.failed) / n_media
    largest = max(0, min(population.max_pixels, max_pixels) - seen.max_pixels) * PIXEL_BYTES
    n_threads = seen.n_cores // seen.n_tasks
    peak = seen.peak_bytes
    return Prediction(
        hours=hours,
        usd=hours.times(3600 * usd_per_s),
        error_rate=share(error_rate, seen.n_media, n_media),
        peak_bytes=Estimate(peak, peak / PEAK_SPREAD, peak * PEAK_SPREAD + largest * n_threads),
        parts_s=parts,
    )


def over_limit(prediction: Prediction, *, max_usd: float | None, max_hours: float | None) -> str | None:
    """What to say where the upper end of an interval is above its limit; None where it is not."""
    for name, limit, found in (("hours", max_hours, prediction.hours), ("usd", max_usd, prediction.usd)):
        if limit is not None and found.high > limit:
            return (
                f"over the limit: {name} may reach {found.high:.3g} (predicted {found.point:.3g}, 90 % interval from "
                f"{found.low:.3g}), allowed by --max-{name}: {limit:g}"
            )
    return None
