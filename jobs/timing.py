"""Variants of the engine over the same media in turn, in this process: what each costs. Knows no Spark and no table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.engine import EngineSettings, featurize_media
from jobs.inference import Loaded

REPEATS = 5
QUANTILE = 0.95


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One variant: a featurizer that is ready, and how the engine is set."""

    name: str
    loaded: Loaded
    settings: EngineSettings


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What R passes over M media took."""

    media_ms: NDArray[np.float64]  # (R, M) decode and inference of each media
    cpu_s: NDArray[np.float64]  # (R,) of the whole process, all threads

    @property
    def p95_ms(self) -> NDArray[np.float64]:
        """(R,): the 95th percentile over the media."""
        found: NDArray[np.float64] = np.quantile(self.media_ms, QUANTILE, axis=1)
        return found

    @property
    def cpu_s_per_media(self) -> NDArray[np.float64]:
        """(R,)."""
        seconds: NDArray[np.float64] = self.cpu_s / self.media_ms.shape[1]
        return seconds


def orders(n_variants: int, n_repeats: int) -> list[list[int]]:
    """In what order the variants go in each repeat: each is as often first, second, ... as it can be."""
    return [[(i + repeat) % n_variants for i in range(n_variants)] for repeat in range(n_repeats)]


def interleaved(variants: Sequence[Timed], media: pa.RecordBatch, *, n_repeats: int = REPEATS) -> Mapping[str, Passes]:
    """Run each variant over `media` in turn, after an unmeasured pass of each.

    media: columns media_id, content, pack_uri, offset, length, mime, as the engine takes them.
    """
    for variant in variants:
        one_pass(variant, media)
    done: dict[str, list[tuple[NDArray[np.float64], float]]] = {variant.name: [] for variant in variants}
    for order in orders(len(variants), n_repeats):
        for i in order:
            done[variants[i].name].append(one_pass(variants[i], media))
    return {
        name: Passes(media_ms=np.array([ms for ms, _ in passes]), cpu_s=np.array([cpu_s for _, cpu_s in passes]))
        for name, passes in done.items()
    }


def one_pass(variant: Timed, media: pa.RecordBatch) -> tuple[NDArray[np.float64], float]:
    """(M,) milliseconds of each media, in their order, and the CPU seconds of the pass."""
    due = pa.array([[variant.loaded.spec.id]] * media.num_rows)
    batch = media.append_column("due", due)
    began_s = time.process_time()
    rows = [row for out in featurize_media([batch], [variant.loaded], variant.settings) for row in out.to_pylist()]
    cpu_s = time.process_time() - began_s
    ms = dict.fromkeys(media.column("media_id").to_pylist(), 0.0)
    for row in rows:
        ms[row["media_id"]] += (row["decode_ms"] or 0.0) + sum(one["infer_ms"] or 0.0 for one in row["results"])
    return np.array(list(ms.values())), cpu_s
