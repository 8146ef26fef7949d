"""The pictures that all engines read: generated once, kept as Parquet under build/bench. Knows no engine."""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.decode import generated_jpegs
from benchmarks.measure import BUILD
from schemas import MEDIA

N_DISTINCT = 512
N_IMAGES = 1024  # each picture twice, with bytes behind its end that tell them apart
PER_FILE = 128


def _some(seed: int) -> list[bytes]:
    return generated_jpegs(16, seed=seed)


def distinct(n: int = N_DISTINCT) -> list[bytes]:
    """`n` different JPEGs of 1024 x 683, about 110 KB; made once, then read back."""
    path = BUILD / f"pictures-{n}.parquet"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            made = [picture for some in pool.map(_some, range(-(-n // 16))) for picture in some][:n]
        pq.write_table(pa.table({"content": made}), path)
    return pq.read_table(path).column("content").to_pylist()


def media_rows(contents: list[bytes]) -> pa.Table:
    """Rows of `media` for JPEGs."""
    n = len(contents)
    columns = {name: pa.nulls(n, MEDIA.columns.field(name).type) for name in MEDIA.columns.names}
    columns["media_id"] = pa.array([hashlib.sha256(content).hexdigest() for content in contents])
    columns["content"] = pa.array(contents, pa.binary())
    columns["mime"] = pa.array(["image/jpeg"] * n)
    columns["size_bytes"] = pa.array([len(content) for content in contents], pa.int64())
    columns["ingested_at"] = pa.array([datetime.now(UTC)] * n, pa.timestamp("us", tz="UTC"))
    return pa.table(columns)


def copies(n: int) -> list[bytes]:
    """`n` contents of different digest, from the distinct pictures in turn."""
    pictures = distinct()
    return [pictures[i % len(pictures)] + (b"" if i < len(pictures) else i.to_bytes(4)) for i in range(n)]


def media_files(n: int = N_IMAGES) -> list[str]:
    """Uncompressed Parquet files of PER_FILE pictures, one row group each."""
    folder = BUILD / f"media-{n}"
    if not folder.exists():
        unfinished = BUILD / f"media-{n}.unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        contents = copies(n)
        for first in range(0, n, PER_FILE):
            table = media_rows(contents[first : first + PER_FILE])
            pq.write_table(table, unfinished / f"{first:06d}.parquet", compression="none", use_dictionary=False)
        unfinished.rename(folder)
    return sorted(map(str, folder.glob("*.parquet")))
