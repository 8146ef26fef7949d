"""Which wave a document is fetched in, so that no wave outlasts a round by one host's pauses. Knows counts, no URL."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

ANSWER_S = 0.15  # from a request to the begin of its answer; with .25 row C2 of benchmarks/ loses time of fast hosts

Counts = NDArray[np.int64]  # (H,) one for each host


def per_round(delays_s: NDArray[np.float64], *, round_s: float, wave_documents: int) -> Counts:
    """How many documents of each host one wave may hold: what its pauses allow in a round, and what fits a wave."""
    allowed = np.where(delays_s > 0, np.floor(round_s / (delays_s + ANSWER_S)), wave_documents)
    counts: Counts = np.clip(allowed, 1, wave_documents).astype(np.int64)
    return counts


def packed(
    n_documents: Counts, per_round: Counts, *, wave_documents: int, near: Counts | None = None
) -> tuple[Counts, Counts]:
    """The first wave of each host, and how many of its documents each of its waves takes, one wave after another.

    A host of many documents needs as many waves as its pauses ask for, and is in all of them from its first on. Those
    that need most begin first, each in the first wave that has room (longest processing time first; Graham, 1969), so
    that a wave is full before the next one begins to fill. Hosts that need one wave fill what the others leave: a wave
    holds `wave_documents`, and at most one of these hosts more; they come in the order of `near`, so that those with
    near numbers share a wave. A host without documents has wave 0.
    """
    needed = np.maximum(1, -(-n_documents // per_round))
    per_wave, first = -(-n_documents // needed), np.zeros_like(n_documents)
    order = np.argsort(-(n_documents / per_round), kind="stable")
    order = order[n_documents[order] > 0]
    many, one = order[needed[order] > 1], order[needed[order] == 1]
    if near is not None:
        one = one[np.argsort(near[one], kind="stable")]
    wave, load = 0, 0
    ending: Counter[int] = Counter()  # wave -> what hosts took of each wave before it
    for host, n_waves, size in zip(many.tolist(), needed[many].tolist(), per_wave[many].tolist(), strict=True):
        while load and load + size > wave_documents:
            wave += 1
            load -= ending.pop(wave, 0)
        first[host] = wave
        load += size
        ending[wave + n_waves] += size
    sizes = n_documents[one]
    n_waves = max(ending, default=wave) - wave + 1 + int(sizes.sum()) // wave_documents
    rooms = np.full(n_waves, wave_documents - load)
    for end, size in ending.items():
        rooms[end - wave :] += size
    first[one] = wave + np.searchsorted(np.cumsum(rooms), np.cumsum(sizes) - sizes, side="right")
    return first, per_wave
