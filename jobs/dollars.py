"""What a run's seconds and bytes cost, line by line, and what the lines leave unexplained. Knows no Spark and no table.

Cores and GPUs are paid from the start of the process to its end, so wall clock x machine price is the sum to explain.
Each line is measured on its own; none is what others leave over, but for `unexplained`:

start                 all cores until Spark's session is up: the process's clock
crawl, golden, ...    run time of a job's tasks, as their executors reported it to Spark's status store
load, read, write     the engine's clock in its tasks (jobs.stage_times); `read` also has the tasks that deal media out
decode, infer         the rest of the engine's clock, by the seconds of the threads that did it at the same time
infer/<featurizer>    `infer` by the milliseconds of committed rows
waste                 tasks that failed, were killed or done again: reported run time, else how long they held cores
idle/tail             cores without a task while others had one: launch and finish times on the driver's clock
idle/driver           cores while no task ran anywhere: planning, commits, the report
unexplained           the rest, negative where lines overlap: the hand-over of tasks, the start of Python workers
storage               one month of media, thumbnails and vectors, as committed, without the files' overhead
traffic, requests     bytes and requests of the crawl, as committed
moved                 bytes that tasks read from and wrote to files, by the status store

A task's seconds count once for each core that it holds. A cluster's cores are paid from when an executor is added until
it is removed; a driver on a machine of its own is not in the price. The seconds are those of one process: of a run that
was resumed they are the last one's, though its documents and bytes are all of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jobs.config import Prices
from jobs.progress import readable_s, readable_usd
from jobs.stage_times import StageTimes

if TYPE_CHECKING:
    from jobs.metrics import RunMetrics

BYTES_PER_GB = 1e9
VECTOR_BYTES = 4  # float32
WASTE, TAIL, DRIVER, UNEXPLAINED, TOTAL = "waste", "idle/tail", "idle/driver", "unexplained", "total"
SAYS = {  # the lines in the order in which they are shown
    "start": "Python, Java and Spark come up",
    "crawl": "crawl: plan, fetch, commit",
    "golden": "golden sets",
    "load": "models made ready",
    "read": "media read and dealt out",
    "decode": "pictures decoded and resized",
    "infer": "inference",
    "write": "rows written",
    "featurize": "featurize: plan, commit, link captions",
    "check": "quality gates",
    "evaluate": "evaluation on golden sets",
    "report": "measuring, and this report",
    "bookkeeping": "opening the lake, rows of runs, MLflow",
    WASTE: "tasks that failed, were killed or ran twice",
    TAIL: "cores waiting for the last tasks of a stage",
    DRIVER: "cores waiting while the driver plans and commits",
    UNEXPLAINED: "wall clock that no line accounts for",
    "storage": "one month of media, thumbnails and vectors",
    "traffic": "bytes fetched",
    "moved": "bytes read from and written to the lake",
    "requests": "requests of the crawl",
}
Span = tuple[float, float]  # from, to: seconds since the epoch


class Attempt(NamedTuple):
    """One attempt at a task, ended."""

    stage: int
    partition: int
    launched_s: float  # since the epoch, by the driver's clock
    finished_s: float
    worked_s: float | None  # as the executor reported it; None where it could not
    succeeded: bool
    feeds: bool = False  # the engine, with media
    infers: bool = False  # the engine ran in it
    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def spent_s(self) -> float:
        """What the executor reported, else how long the task held its cores."""
        return self.finished_s - self.launched_s if self.worked_s is None else self.worked_s


@dataclass(frozen=True)
class Held:
    """Cores that are paid for, from when until when (seconds since the epoch)."""

    n_cores: int
    began_s: float = -math.inf
    ended_s: float = math.inf


def held_core_s(held: Iterable[Held], during: Span) -> float:
    """Core seconds paid for in a span."""
    return sum(
        one.n_cores * max(0.0, min(one.ended_s, during[1]) - max(one.began_s, during[0])) for one in held if one.n_cores
    )


def joined(spans: Iterable[Span]) -> list[Span]:
    """The spans' union, in order, as spans that do not touch."""
    found: list[Span] = []
    for began, ended in sorted(spans):
        if found and began <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], ended))
        else:
            found.append((began, ended))
    return found


def sorted_out(attempts: Iterable[Attempt]) -> tuple[list[Attempt], list[Attempt]]:
    """The attempts whose work counts, the last success of each partition, and those that were waste."""
    useful: dict[tuple[int, int], Attempt] = {}
    wasted = []
    for attempt in sorted(attempts, key=lambda a: a.finished_s):
        if not attempt.succeeded:
            wasted.append(attempt)
            continue
        if before := useful.pop((attempt.stage, attempt.partition), None):
            wasted.append(before)
        useful[attempt.stage, attempt.partition] = attempt
    return list(useful.values()), wasted


def engine_s(times: StageTimes) -> dict[str, float]:
    """The engine's seconds by line. Decoding and inference, which go on at once, share the time by their threads'."""
    both_s = times.wait_s + times.infer_s
    threads_s = times.decode_s + times.infer_s
    decode_s = both_s * times.decode_s / threads_s if threads_s > 0 else both_s
    return {
        "load": times.load_s,
        "read": times.read_s,
        "decode": decode_s,
        "infer": both_s - decode_s,
        "write": times.write_s,
    }


def core_seconds(
    job: str,
    attempts: Sequence[Attempt],
    *,
    during: Span,
    held: Sequence[Held],
    cpus_per_task: int,
    engine: StageTimes | None = None,
    unseen_s: float = 0.0,
) -> dict[str, float]:
    """Core seconds of a job by line.

    attempts: those that ended meanwhile, of the job and what it waits for. engine: what its tasks measured that ended
    well. unseen_s: task seconds that ended without being among `attempts`; cores were not idle in them, nor is it
    known what they did.
    """
    useful, wasted = sorted_out(attempts)
    task_s: dict[str, float] = defaultdict(float)
    for one in useful:
        if not one.infers:
            task_s["read" if one.feeds else job] += one.spent_s
    if engine is not None:
        well, twice = (sum(a.spent_s for a in some if a.infers and a.succeeded) for some in (useful, wasted))
        share = well / (well + twice) if well + twice > 0 else 1.0  # of what `engine` counted, that is no waste
        for line, seconds in engine_s(engine).items():
            if seconds > 0:  # a job without an engine has no such lines
                task_s[line] += seconds * share
    task_s[WASTE] = sum(one.spent_s for one in wasted)
    core_s = {line: seconds * cpus_per_task for line, seconds in task_s.items()}
    spans = [(max(a.launched_s, during[0]), min(a.finished_s, during[1])) for a in attempts]
    spans = [(began, ended) for began, ended in spans if ended > began]
    with_tasks_s = sum(held_core_s(held, span) for span in joined(spans))
    occupied_s = sum(ended - began for began, ended in spans) * cpus_per_task
    without_s = held_core_s(held, during) - with_tasks_s - unseen_s * cpus_per_task
    return core_s | {TAIL: max(0.0, with_tasks_s - occupied_s), DRIVER: max(0.0, without_s)}


def gpu_seconds(
    core_s: Mapping[str, float], *, kind: str, gpus_per_core: float, engine: StageTimes | None = None
) -> dict[str, float]:
    """GPU seconds by `kind/line`: a task holds a GPU with its cores, and while it waits for pictures, decoding does."""
    gpu_s = {line: seconds * gpus_per_core for line, seconds in core_s.items()}
    if engine is not None and (both_s := engine.wait_s + engine.infer_s) > 0:
        together_s = gpu_s.get("decode", 0.0) + gpu_s.get("infer", 0.0)
        gpu_s |= {"decode": together_s * engine.wait_s / both_s, "infer": together_s * engine.infer_s / both_s}
    return {f"{kind}/{line}": seconds for line, seconds in gpu_s.items()}


def machine_usd_per_s(prices: Prices, *, n_cores: float, n_gpus: float = 0, gpu_kind: str | None = None) -> float:
    """What cores and GPUs cost for a second."""
    gpus = n_gpus * prices.usd_per_gpu_hour[gpu_kind] if n_gpus and gpu_kind is not None else 0.0
    return (n_cores * prices.usd_per_core_hour + gpus) / 3600


def machine_usd(metrics: RunMetrics, prices: Prices) -> float:
    """Wall clock x machine price: what the cores and GPUs that were held cost."""
    usd = machine_usd_per_s(prices, n_cores=sum(metrics.held_core_s.values()))
    for kind, gpu_s in metrics.held_gpu_s.items():
        usd += machine_usd_per_s(prices, n_cores=0, n_gpus=gpu_s, gpu_kind=kind)
    return usd


def cost_usd(metrics: RunMetrics, prices: Prices) -> dict[str, float]:
    """Dollars by line, in the order in which they are shown, with `total`; no line of time where none was measured."""
    usd: dict[str, float] = defaultdict(float)
    for line, core_s in metrics.core_s.items():
        usd[line] += machine_usd_per_s(prices, n_cores=core_s)
    for key, gpu_s in metrics.gpu_s.items():
        kind, _, line = key.partition("/")
        usd[line] += machine_usd_per_s(prices, n_cores=0, n_gpus=gpu_s, gpu_kind=kind)
    if metrics.held_core_s:
        usd[UNEXPLAINED] = machine_usd(metrics, prices) - sum(usd.values())
    stored_bytes = sum(metrics.stored_bytes.values()) + sum(metrics.n_vector_values.values()) * VECTOR_BYTES
    usd["storage"] = stored_bytes / BYTES_PER_GB * prices.usd_per_gb_month
    usd["traffic"] = sum(metrics.fetched_bytes.values()) / BYTES_PER_GB * prices.usd_per_gb_fetched
    usd["moved"] = sum(metrics.moved_bytes.values()) / BYTES_PER_GB * prices.usd_per_gb_moved
    usd["requests"] = sum(metrics.n_fetches.values()) / 1e6 * prices.usd_per_million_requests
    infer_ms = {name: ms for name, ms in sorted(metrics.infer_total_ms.items()) if ms > 0}
    places = list(SAYS)
    ordered: dict[str, float] = {}
    for line in sorted(usd, key=lambda line: places.index(line) if line in SAYS else len(places)):
        if line == "infer" and infer_ms:
            total_ms = sum(infer_ms.values())
            ordered |= {f"infer/{name}": usd[line] * ms / total_ms for name, ms in infer_ms.items()}
        else:
            ordered[line] = usd[line]
    return ordered | {TOTAL: sum(ordered.values())}


def cost_usd_per_million(metrics: RunMetrics, prices: Prices) -> dict[str, float]:
    """`cost_usd` of a million documents like these; empty where no document was counted."""
    n_documents = metrics.n_documents.get("", 0)
    return {line: usd * 1e6 / n_documents for line, usd in cost_usd(metrics, prices).items()} if n_documents else {}


def unexplained_share(metrics: RunMetrics, prices: Prices) -> float | None:
    """The unexplained dollars over wall clock x machine price, as an absolute value; None without either."""
    paid_usd = machine_usd(metrics, prices)
    return abs(cost_usd(metrics, prices)[UNEXPLAINED]) / paid_usd if paid_usd > 0 else None


def said(line: str) -> str:
    """What a line is, in words; its name where it is of a job without any."""
    return SAYS.get(line) or SAYS.get(line.partition("/")[0], line)


def cost_lines(usd: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """The lines of the cost that are shown, each with what it is: those of nothing are left out, but for two that are
    good news."""
    shown = {line: value for line, value in usd.items() if line != TOTAL}
    return [(line, said(line), value) for line, value in shown.items() if value or line in (WASTE, UNEXPLAINED)]


def paid(metrics: RunMetrics, prices: Prices) -> str:
    """Wall clock x machine price in words, how much of it the lines explain, and its jobs; empty without a clock."""
    if (share := unexplained_share(metrics, prices)) is None:
        return ""
    wall_s = sum(metrics.wall_s.values())
    held = f"{sum(metrics.held_core_s.values()) / wall_s:.3g} cores"
    held += "".join(f" and {gpu_s / wall_s:.3g} {kind} GPUs" for kind, gpu_s in sorted(metrics.held_gpu_s.items()))
    return (
        f"Checked against the clock: {held} were held for {readable_s(wall_s)}, which costs "
        f"{readable_usd(machine_usd(metrics, prices))}; the lines, each measured on its own, account for all but "
        f"{share:.1%} of it. By job: {', '.join(f'{job} {s / wall_s:.0%}' for job, s in metrics.wall_s.items())}."
    )


def prices_said(prices: Prices) -> str:
    """The prices in words."""
    flat = prices.model_dump()
    gpus = ", ".join(f"{kind} {usd:g}" for kind, usd in flat.pop("usd_per_gpu_hour").items())
    return ", ".join(f"{name} {usd:g}" for name, usd in flat.items()) + (f", usd_per_gpu_hour {gpus}" if gpus else "")
