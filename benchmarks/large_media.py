"""Rows M2: the peak memory of a worker that takes a 500 MB video or a picture of 100 megapixels. Knows no Spark."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.memory import cheap_spec, mean_colour, resident_mib
from benchmarks.row import Row, machine

N_BYTES = 500_000_000
SIDE = 10_000  # of the picture, pixels
N_DISTINCT = 8  # frames of the video that are encoded; the others repeat them


def rows() -> list[Row]:
    """The video by reference against the same inline, and pictures against their bare pixels, each in its process."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / kind for kind in ("video", "jpeg", "png")}
        paths["video"].write_bytes(video(N_BYTES))
        for kind in ("jpeg", "png"):
            paths[kind].write_bytes(picture(kind))
        reference, inline = (peak(paths["video"], how) for how in ("reference", "inline"))
        pixels = {"peak_mib": SIDE * SIDE * 3 / 2**20}
        found = [
            row("M2.video", "500 MB video by reference / the same inline", reference, inline, paths["video"]),
            row("M2.png", "PNG of 100 megapixels / its pixels", peak(paths["png"], "reference"), pixels, paths["png"]),
        ]
        for how in ("exact", "fast"):
            what = f"JPEG of 100 megapixels, decode profile {how} / its pixels"
            measured = peak(paths["jpeg"], "reference", how)
            found.append(row(f"M2.jpeg.{how}", what, measured, pixels, paths["jpeg"]))
    return found


def row(row_id: str, what: str, ours: dict[str, float], peer: dict[str, float], path: Path) -> Row:
    """One comparison of peaks."""
    return Row(
        id=row_id,
        what=f"peak resident size of one worker: {what}",
        unit="MiB",
        ours=ours["peak_mib"],
        peer=round(peer["peak_mib"], 1),
        ratio=round(peer["peak_mib"] / ours["peak_mib"], 3),
        reach=None,
        settings={
            **{name: ours[name] for name in ("idle_mib", "read_mib")},
            "encoded_mib": round(path.stat().st_size / 2**20, 1),
            **machine(),
        },
    )


def video(n_bytes: int) -> bytes:
    """An MP4 of about `n_bytes`, noise of 1280 x 720, every frame a key frame, its index at the end."""
    import av

    out, random = io.BytesIO(), np.random.default_rng(0)
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuvj420p"
        encoded: list[bytes] = []
        for _ in range(N_DISTINCT):
            pixels = random.integers(0, 256, (720, 1280, 3), np.uint8)
            encoded += [bytes(p) for p in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))]
        for i in range(n_bytes // (sum(map(len, encoded)) // len(encoded))):
            packet = av.Packet(encoded[i % len(encoded)])
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, i, i, True
            packet.time_base = stream.codec_context.time_base
            container.mux(packet)
    return out.getvalue()


def picture(kind: str) -> bytes:
    """SIDE x SIDE pixels of enlarged noise."""
    import PIL.Image

    noise = np.random.default_rng(0).integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)
    out = io.BytesIO()
    enlarged = PIL.Image.fromarray(noise).resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR)
    enlarged.save(out, kind, **({"quality": 90} if kind == "jpeg" else {"compress_level": 1}))
    return out.getvalue()


def peak(path: Path, how: str, decode_profile: str = "exact") -> dict[str, float]:
    """Resident size of a worker process before it takes the media, and the highest until it is done, MiB."""
    command = [sys.executable, "-m", "benchmarks.large_media", str(path), how, decode_profile]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the benchmark of large media failed: {done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def peak_resident_mib() -> float:
    """The highest resident size of this process, MiB; `getrusage` would count what its parent had when it forked."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def read_mib() -> float:
    """What this process has read from files so far, MiB."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"]) / 2**20


def measure(path: Path, how: str, decode_profile: str) -> dict[str, float]:
    """As `peak`, in this process."""
    from jobs.engine import EngineSettings, featurize_media
    from jobs.inference import Loaded

    specs = [cheap_spec("crop"), cheap_spec("letterbox", fit="letterbox", image_size=416)]
    loaded = [Loaded(spec=spec, fingerprint=spec.variant, extract=mean_colour) for spec in specs]
    settings = EngineSettings(
        max_pixels=SIDE * SIDE,
        max_frames_per_video=8,
        decode_profile="fast" if decode_profile == "fast" else "exact",
    )
    mime = {"video": "video/mp4", "jpeg": "image/jpeg", "png": "image/png"}[path.name]
    due = [spec.id for spec in specs]

    def n_rows_of(batch: pa.RecordBatch) -> int:
        return sum(out.num_rows for out in featurize_media([batch], loaded, settings))

    from benchmarks.decode import generated_jpegs

    n_rows_of(media_batch(due, mime, content=generated_jpegs(1, width=640, height=480, seed=0)[0]))
    idle_mib, idle_read = resident_mib(), read_mib()
    if how == "reference":
        batch = media_batch(due, mime, pack_uri=str(path), offset=0, length=path.stat().st_size)
    else:
        batch = media_batch(due, mime, content=path.read_bytes())
    n_rows = n_rows_of(batch)
    if n_rows != (8 if mime == "video/mp4" else 1):
        raise RuntimeError(f"{path.name}: {n_rows} rows")
    return {
        "idle_mib": round(idle_mib, 1),
        "read_mib": round(read_mib() - idle_read, 1),
        "peak_mib": round(peak_resident_mib(), 1),
    }


def media_batch(due: list[str], mime: str, **held: object) -> pa.RecordBatch:
    """One media as the engine takes it, inline or by reference."""
    kinds = {"content": pa.binary(), "pack_uri": pa.string(), "offset": pa.int64(), "length": pa.int64()}
    columns = {name: pa.array([held.get(name)], kind) for name, kind in kinds.items()}
    return pa.RecordBatch.from_pydict({"media_id": ["0" * 64], "mime": [mime], "due": [due], **columns})


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), *sys.argv[2:])))
