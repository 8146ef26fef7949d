"""Rows B3 to B8: encoded pictures end to end, ours against Spark's, Daft's and Ray Data's patterns. Knows no pattern.

All engines run in turn on the same files and cores; each is a process of its own (`benchmarks.engines`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks import lakes
from benchmarks.measure import (
    REPOSITORY,
    Engine,
    cores,
    interleaved,
    median_cpu_ms,
    median_wall_ms,
    running,
)
from benchmarks.pictures import N_IMAGES, PER_FILE, media_files
from benchmarks.row import Row, machine, not_measured

# What their users install; everything else in their environment has our versions, so that libraries are the same.
PEER_PACKAGES = ("daft==0.7.26", "ray[data]==2.60.0")
SHARED_PACKAGES = (
    "torch",
    "torchvision",
    "onnxruntime-gpu" if sys.platform == "linux" else "onnxruntime",
    "simplejpeg",
    "pillow",
    "pyarrow",
    "numpy",
    "psutil",
    "aiohttp",  # Ray 2.60 looks for it in several threads at once and fails where it is missing
)
PEERS = REPOSITORY / "build" / "peers"
N_ROUNDS = 3
N_TAX_ROUNDS = 5  # B8: a difference of a few per cent
FEW = 2  # of the 8 files: the shorter run, of which only the difference to the longer one counts


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One row: a peer's pattern, as published or at its best."""

    row: str
    what: str
    module: str
    pattern: str = ""
    own_environment: bool = False
    unit: str = "cpu_ms/image"
    reach: float | None = None


PATTERNS = (
    Peer(row="B3", what="Daft's published Spark notebook", module="spark_notebook", reach=7),
    Peer(row="B3.best", what="one fused pandas_udf with our decoder", module="spark_best", pattern="pandas_udf"),
    Peer(row="B4", what="predict_batch_udf as documented", module="spark_predict_batch", reach=8),
    Peer(row="B4.best", what="predict_batch_udf, our decoder inside", module="spark_best", pattern="predict_batch_udf"),
    Peer(
        row="B5",
        what="Daft native decode_image().resize()",
        module="daft_engine",
        pattern="native",
        own_environment=True,
        unit="wall_ms/image",
        reach=2.2,
    ),
    Peer(
        row="B5.published",
        what="Daft's published benchmark, a transform for each row",
        module="daft_engine",
        pattern="published",
        own_environment=True,
        unit="wall_ms/image",
    ),
    Peer(
        row="B5.best",
        what="Daft with our decoder, fused",
        module="daft_engine",
        pattern="best",
        own_environment=True,
        unit="wall_ms/image",
    ),
    Peer(
        row="B6",
        what="Ray Data map -> map_batches",
        module="ray_engine",
        pattern="published",
        own_environment=True,
        reach=3,
    ),
    Peer(
        row="B6.best",
        what="Ray Data with our decoder, fused",
        module="ray_engine",
        pattern="best",
        own_environment=True,
    ),
)


def peers_python() -> Path:
    """The Python of the peers' own environment, installed if it is not there. Raises RuntimeError with what uv said."""
    return installed(PEERS, [*PEER_PACKAGES, *(f"{name}=={version(name)}" for name in SHARED_PACKAGES)])


def installed(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of an environment with these packages, made if it is not there; raises RuntimeError."""
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = "\n".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    uv = Path(sys.executable).with_name("uv")
    environment = dict(os.environ)
    index = os.environ.get("PIP_INDEX_URL") or _said(sys.executable, "-m", "pip", "config", "get", "global.index-url")
    if index:
        environment.setdefault("UV_DEFAULT_INDEX", index)
    for command in (
        ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        ["pip", "install", "--quiet", "--python", str(python), *packages],
    ):
        done = subprocess.run([str(uv), *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the peers' environment {folder.name} could not be installed: {done.stderr[-2000:]}")
    stamp.write_text(wanted)
    return python


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def base_task(featurizer: str) -> dict[str, object]:
    """What every engine is told."""
    task: dict[str, object] = {"media": media_files(), "featurizer": featurizer}
    if featurizer == "lite0":
        from featurizers.concept_efficientnet import NAMES, NETWORK, SPECS
        from featurizers.spec import prepared
        from featurizers.weights import resolve

        paths = prepared(*resolve(SPECS[0]))
        task |= {"network": str(paths[NETWORK]), "names": str(paths[NAMES])}
    return task


def same_labels(one: Mapping[str, str], other: Mapping[str, str]) -> float:
    """Share of pictures to which both gave the same label."""
    return round(sum(other.get(key) == label for key, label in one.items()) / max(1, len(one)), 3)


def measured(engine: Engine) -> dict[str, float]:
    """An engine's figures for `settings`."""
    return {
        "cpu_ms": round(median_cpu_ms(engine), 3),
        "wall_ms": round(median_wall_ms(engine), 3),
        "start_s": round(engine.start_s, 1),
    }


def compare(peers: Sequence[Peer], *, featurizer: str, n_rounds: int = N_ROUNDS) -> list[Row]:
    """Ours and `peers` in turn on the task of `featurizer`; a row for each peer, without figures if it fails."""
    task = base_task(featurizer)
    where = cores()
    started: list[tuple[Peer, Engine | str]] = []
    with ExitStack() as stack:
        ours = stack.enter_context(running("lakelens", Path(sys.executable), "lakelens", task, where=where))
        for peer in peers:
            try:
                python = peers_python() if peer.own_environment else Path(sys.executable)
                its_task = task | {"pattern": peer.pattern}
                engine = stack.enter_context(running(peer.row, python, peer.module, its_task, where=where))
            except RuntimeError as e:
                started.append((peer, str(e)))
            else:
                started.append((peer, engine))
        ended = interleaved(
            [ours, *(engine for _, engine in started if not isinstance(engine, str))],
            FEW,
            N_IMAGES // PER_FILE,
            images_per_file=PER_FILE,
            n_rounds=n_rounds,
        )
    return [
        _row(peer, ours, ended.get(ours.name, ended.get(peer.row, engine)), featurizer=featurizer, where=where)
        for peer, engine in started
    ]


def _row(peer: Peer, ours: Engine, engine: Engine | str, *, featurizer: str, where: Sequence[int]) -> Row:
    what = f"end to end on {len(where)} cores, {featurizer}, against {peer.what}"
    if isinstance(engine, str):
        return not_measured(peer.row, what, unit=peer.unit, reach=peer.reach, reason=engine)
    median = median_wall_ms if peer.unit.startswith("wall") else median_cpu_ms
    our_ms, peer_ms = median(ours), median(engine)
    return Row(
        id=peer.row,
        what=what,
        unit=peer.unit,
        ours=round(our_ms, 3),
        peer=round(peer_ms, 3),
        ratio=round(peer_ms / our_ms, 3),
        reach=peer.reach,
        peer_version=", ".join(f"{name} {of}" for name, of in engine.answer["versions"].items()),
        settings={
            "n_images": [FEW * PER_FILE, N_IMAGES],
            "rounds": len(engine.turns),
            "cores": list(where),
            "ours": measured(ours),
            "peer": measured(engine),
            "same_label": same_labels(ours.answer["labels"], engine.answer["labels"]),
            **machine(),
        },
    )


def _group(row_id: str) -> list[Peer]:
    """The peers of B3, with B3.best."""
    return [peer for peer in PATTERNS if peer.row.partition(".")[0] == row_id]


def notebook_rows() -> list[Row]:
    """B3 and B3.best."""
    return compare(_group("B3"), featurizer="mean_colour")


def predict_batch_rows() -> list[Row]:
    """B4 and B4.best."""
    return compare(_group("B4"), featurizer="mean_colour")


def daft_rows() -> list[Row]:
    """B5, B5.published and B5.best."""
    return compare(_group("B5"), featurizer="mean_colour")


def ray_rows() -> list[Row]:
    """B6 and B6.best."""
    return compare(_group("B6"), featurizer="mean_colour")


def model_rows() -> list[Row]:
    """B7: all patterns of B3 to B6 with EfficientNet-Lite0; `B7.B5.best` is that of B5.best. Ahead of each is asked.

    All by CPU time, which other work on the machine moves less; wall time stands in `settings`.
    """
    peers = [replace(peer, row=f"B7.{peer.row}", unit="cpu_ms/image", reach=1.0) for peer in PATTERNS]
    # One by one: predict_batch_udf's tensors take 6 GB in each of its workers.
    return [row for peer in peers for row in compare([peer], featurizer="lite0")]


def tax_rows() -> list[Row]:
    """B8, against a loop that takes picture by picture, and B8.same, which does all that our engine does.

    What is in no steady state stands in `settings`: a whole run over a lake, the start of its session, its commits.
    """
    loops = [
        Peer(row="B8", what="a bare loop in one process", module="loop", reach=0.926),
        Peer(row="B8.same", what="a bare loop that makes thumbnails too", module="loop", pattern="same"),
    ]
    whole = {"images": lakes.N_IMAGES, **lakes.measure("run", str(lakes.N_IMAGES), "lite0")}
    rows = compare(loops, featurizer="lite0", n_rounds=N_TAX_ROUNDS)
    return [replace(row, settings={**row.settings, "whole_run": whole}) for row in rows]
