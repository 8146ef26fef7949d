"""Rows B10 and B11: what one decode for several featurizers saves, and key frames for every frame. Runs no Spark."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator, Sequence

import av
import numpy as np
import pyarrow as pa

from benchmarks.decode import MAX_PIXELS, generated_jpegs
from benchmarks.pictures import media_rows
from benchmarks.row import Row, machine
from featurizers.spec import find_spec
from featurizers.video import key_frames
from featurizers.weights import resolve
from jobs import engine
from jobs.engine import EngineSettings, featurize_media
from jobs.inference import Loaded, loaded_featurizers

CONCEPTS, OBJECTS = "concept_efficientnet.lite0@1", "object_yolov3.tiny@1"
ENTITIES = "entity_ocr.rapidocr_gated@1"
PHOTOGRAPH_PX = (4032, 3024)
N_PHOTOGRAPHS = 8
N_SMALL = 24
N_ROUNDS = 7
CLIP_S, CLIP_RATE, CLIP_PX = 20, 30, (1280, 720)
KEY_FRAME_EVERY = {"B11": 60, "B11.x264": 250}  # frames: two seconds, as streaming services ask, and x264's default


def loaded(ids: Sequence[str]) -> list[Loaded]:
    """Featurizers as a worker on a CPU loads them."""
    resolved = [resolve(find_spec(featurizer)) for featurizer in ids]
    return loaded_featurizers([(spec, paths, spec.id) for spec, paths in resolved], "cpu")


def batches(contents: list[bytes], due: Sequence[Loaded]) -> Iterator[pa.RecordBatch]:
    """The engine's input: one record batch for every 4 media."""
    table = media_rows(contents).select(["media_id", "content", "pack_uri", "offset", "length", "mime"])
    ids = pa.array([[one.spec.id for one in due]] * len(contents))
    yield from table.append_column("due", ids).to_batches(max_chunksize=4)


def cpu_s(contents: list[bytes], passes: Sequence[Sequence[Loaded]]) -> float:
    """Process CPU seconds of the engine over all contents, once for each group of featurizers."""
    settings = EngineSettings(max_pixels=MAX_PIXELS, max_frames_per_video=1, decode_threads=1)
    started = time.process_time()
    for group in passes:
        n_rows = sum(batch.num_rows for batch in featurize_media(batches(contents, group), group, settings))
        assert n_rows == len(contents), n_rows
    return time.process_time() - started


def n_decodes(contents: list[bytes], group: Sequence[Loaded]) -> int:
    """How often the engine decodes in one pass."""
    counted, decode = [0], engine.decode_reduced

    def counting(*args: object, **named: object) -> object:
        counted[0] += 1
        return decode(*args, **named)  # type: ignore[arg-type]

    engine.decode_reduced = counting  # type: ignore[assignment]
    try:
        cpu_s(contents, [group])
    finally:
        engine.decode_reduced = decode
    return counted[0]


def fusion_row(row_id: str, what: str, contents: list[bytes], ids: Sequence[str], *, reach: float) -> Row:
    """All of `ids` in one pass against a pass for each, in turn."""
    group = loaded(ids)
    passes = {"fused": [group], "separate": [[one] for one in group]}
    spent: dict[str, list[float]] = {name: [] for name in passes}
    decodes = n_decodes(contents, group)  # which also warms up
    for _ in range(N_ROUNDS):
        for name, groups in passes.items():
            spent[name].append(cpu_s(contents, groups) * 1000 / len(contents))
    fused, separate = (statistics.median(spent[name]) for name in passes)
    return Row(
        id=row_id,
        what=what,
        unit="cpu_ms/image",
        ours=round(fused, 2),
        peer=round(separate, 2),
        ratio=round(separate / fused, 3),
        reach=reach,
        peer_version="itself, a pass for each featurizer",
        settings={
            "featurizers": list(ids),
            "n_images": len(contents),
            "mean_bytes": round(statistics.mean(map(len, contents))),
            "decodes_fused": decodes,
            "rounds": N_ROUNDS,
            **machine(),
        },
    )


def fusion_rows() -> list[Row]:
    """B10, and B10.small for the three default featurizers on pictures of 100 KB."""
    large = generated_jpegs(N_PHOTOGRAPHS, width=PHOTOGRAPH_PX[0], height=PHOTOGRAPH_PX[1])
    return [
        fusion_row("B10", "concepts and objects of 12 megapixels in one pass", large, [CONCEPTS, OBJECTS], reach=1.25),
        fusion_row(
            "B10.small",
            "concepts, objects and entities of 100 KB in one pass",
            generated_jpegs(N_SMALL),
            [CONCEPTS, OBJECTS, ENTITIES],
            reach=1.0,
        ),
    ]


# -- video --------------------------------------------------------------------------------------------------------


def clip(*, key_frame_every: int) -> bytes:
    """A silent H.264 clip of 20 s, 1280 x 720: a camera that pans over a generated picture of twice that size."""
    import simplejpeg

    width, height = CLIP_PX
    scene = simplejpeg.decode_jpeg(generated_jpegs(1, width=2 * width, height=2 * height)[0], "RGB")
    n_frames = CLIP_S * CLIP_RATE
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=CLIP_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = key_frame_every
        stream.codec_context.options = {"crf": "23", "preset": "veryfast"}
        for i in range(n_frames):
            left, top = width * i // n_frames, height * i // n_frames
            window = np.ascontiguousarray(scene[top : top + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())
    return written.getvalue()


def every_frame(data: bytes, *, convert: bool = True) -> int:
    """Decode every frame on one thread, to RGB where asked; how many there were."""
    n_frames = 0
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            n_frames += 1
            if convert:
                frame.to_ndarray(format="rgb24")
    return n_frames


def video_rows() -> list[Row]:
    """B11 with a key frame every two seconds, B11.x264 with one every 250 frames."""
    rows = []
    for row_id, every in KEY_FRAME_EVERY.items():
        data = clip(key_frame_every=every)
        spent: dict[str, list[float]] = {"ours": [], "peer": [], "unconverted": []}
        for _ in range(3):
            for name in spent:
                started = time.process_time()
                if name == "ours":
                    n_key_frames = len(list(key_frames(data, max_frames=1000, max_pixels=MAX_PIXELS)))
                else:
                    n_frames = every_frame(data, convert=name == "peer")
                spent[name].append((time.process_time() - started) * 1000 / CLIP_S)
        ours, peer, unconverted = (statistics.median(each) for each in spent.values())
        rows.append(
            Row(
                id=row_id,
                what=f"all key frames of a clip, one every {every} frames, against decoding every frame",
                unit="cpu_ms/second of video",
                ours=round(ours, 2),
                peer=round(peer, 2),
                ratio=round(peer / ours, 1),
                reach=8 if row_id == "B11" else None,
                peer_version=f"PyAV {av.__version__}",
                settings={
                    "clip": f"{CLIP_S} s, {CLIP_PX[0]} x {CLIP_PX[1]}, {CLIP_RATE} frames/s, H.264 crf 23",
                    "bytes": len(data),
                    "key_frames": n_key_frames,
                    "frames": n_frames,
                    "peer_without_rgb": round(unconverted, 2),
                    "rounds": 3,
                    **machine(),
                },
            )
        )
    return rows
