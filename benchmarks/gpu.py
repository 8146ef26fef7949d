"""Row B13: the engine on a GPU, end to end from JPEGs, against the same network with its inputs on the GPU already.

Runs without Spark, so a bare GPU machine needs neither Java nor pyspark; FILE is a stream of Arrow batches:

    python -m benchmarks.gpu inputs FILE
    python -m benchmarks.gpu measure FILE --device cuda:0 --decode-threads 16
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from benchmarks.row import LATEST, Row, machine, not_measured, table, write
from featurizers import concept_clip, concept_efficientnet, object_yolov3
from featurizers.device import LANES, FixedBatches, Network, gpu_index
from featurizers.onnx_session import open_network
from featurizers.spec import FeaturizerSpec, find_spec
from featurizers.weights import WeightsError, resolve
from jobs.engine import EngineSettings, featurize_media
from jobs.inference import Loaded, grey_probe, loaded_featurizers

REACH = 0.6  # of the on-device rate
REACH_BUSY = 0.9  # of the time, with cores enough
N_DISTINCT = 64  # JPEGs of about 110 KB that the inputs repeat
N_INPUTS = 2048
ROWS_PER_BATCH = 32  # 4 MB, as Spark is told to hand over
COMPUTES_PER_RECEIVE = 8  # on the device alone: outputs are fetched, and so waited for, once in as many batches
SAMPLE_MS = 200  # between two looks at how busy the GPU is

# Radford et al. 2021, table 20, and a small one to try this program with. Only speed is measured: weights are random.
VISION: Mapping[str, Mapping[str, int]] = {
    "vit_b32": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                "patch_size": 32, "image_size": 224, "projection_dim": 512},
    "vit_l14": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                "patch_size": 14, "image_size": 224, "projection_dim": 768},
    "vit_tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "patch_size": 16, "image_size": 64, "projection_dim": 16},
}  # fmt: skip
DEFAULTS = {  # model: family, variant in float32, variant in float16
    "efficientnet": ("concept_efficientnet", "lite0", "lite0_fp16"),
    "yolov3": ("object_yolov3", "tiny", "tiny_fp16"),
}
MODELS = ("vit_b32", "vit_l14", *DEFAULTS)


def write_inputs(path: Path, n: int = N_INPUTS, *, width: int = 1024, height: int = 683) -> None:
    """Write `n` JPEGs as a stream of Arrow batches, as Spark hands them to the engine but for the column `due`."""
    from benchmarks.decode import generated_jpegs

    distinct = generated_jpegs(min(n, N_DISTINCT), width=width, height=height)
    schema = pa.schema(
        [("media_id", pa.string()), ("content", pa.binary()), ("pack_uri", pa.string()), ("offset", pa.int64()),
         ("length", pa.int64()), ("mime", pa.string())]
    )  # fmt: skip
    with pa.ipc.new_stream(str(path), schema) as stream:
        for first in range(0, n, ROWS_PER_BATCH):
            rows = [
                {"media_id": f"{i:064x}", "content": distinct[i % len(distinct)], "mime": "image/jpeg"}
                for i in range(first, min(n, first + ROWS_PER_BATCH))
            ]
            stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def inputs(path: Path, due: Sequence[str], *, seconds: float) -> Iterator[pa.RecordBatch]:
    """The batches of the file with `due`, over and over until `seconds` have passed; once if they are 0."""
    deadline = time.perf_counter() + seconds
    while True:
        with pa.ipc.open_stream(str(path)) as stream:
            for batch in stream:
                wanted = pa.array([list(due)] * batch.num_rows, pa.list_(pa.string()))
                yield batch.append_column("due", wanted)
                if seconds and time.perf_counter() >= deadline:
                    return
        if not seconds:
            return


def random_clip(folder: Path, name: str) -> Path:
    """A CLIP of the shape VISION[name] with random weights and a text side of next to nothing, as a model folder."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    vision = dict(VISION[name])
    projection = vision.pop("projection_dim")
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)).save_pretrained(folder)
    side = vision["image_size"]
    preprocessing = {
        "do_center_crop": True, "size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side},
        "resample": concept_clip.BICUBIC, "image_mean": [0.481, 0.458, 0.408], "image_std": [0.269, 0.261, 0.276],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def model(name: str, precision: str, folder: Path) -> tuple[FeaturizerSpec, dict[str, Path]]:
    """Spec and weights of a model; what is made for it goes to `folder`. Raises WeightsError."""
    if name in VISION:
        target = folder / name
        target.mkdir()
        return resolve(concept_clip.spec_for(name, random_clip(target, name).as_uri(), precision))
    family, float32, float16 = DEFAULTS[name]
    return resolve(find_spec(f"{family}.{float32 if precision == 'float32' else float16}@1"))


def network(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Network:
    """The network of a featurizer alone, as its `load` opens it."""
    if spec.family == "concept_clip":
        return concept_clip.open_network(spec, weights, device)
    module = {"concept_efficientnet": concept_efficientnet, "object_yolov3": object_yolov3}[spec.family]
    path = module.prepare(spec, weights)[module.NETWORK]
    return open_network(path, device, outputs=module.OUTPUTS, batch_size=spec.batch_size)


def on_device_rate(run: Network, spec: FeaturizerSpec, *, seconds: float) -> float:
    """Images a second of the network with its inputs on the device already, from as many threads as the engine has."""
    if not isinstance(run, FixedBatches):  # a CPU: one picture after the other
        picture = [grey_probe(spec)]
        return _rate(lambda: len(run(picture)[0]), seconds)
    batches = run

    def loop() -> float:
        lane = batches.lane()
        lane.send()

        def compute() -> int:
            for _ in range(COMPUTES_PER_RECEIVE):
                lane.compute()
            lane.receive()
            return COMPUTES_PER_RECEIVE * lane.size

        return _rate(compute, seconds)

    rates: list[float] = []
    lanes = [threading.Thread(target=lambda: rates.append(loop())) for _ in range(LANES)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    if len(rates) < LANES:
        raise RuntimeError(f"{spec.id}: a lane failed on the device, see above")
    return sum(rates)


def _rate(step: Callable[[], int], seconds: float) -> float:
    """What `step` returns, summed, per second over `seconds`; the first step is not counted."""
    step()
    n, started = 0, time.perf_counter()
    while not n or time.perf_counter() - started < seconds:
        n += step()
    return n / (time.perf_counter() - started)


@contextmanager
def watching(gpu: str | None) -> Iterator[list[float]]:
    """The share of each SAMPLE_MS in which the GPU ran a kernel, filled in when the block ends; none for no GPU.

    gpu: index or UUID, as nvidia-smi knows it.
    """
    shares: list[float] = []
    if gpu is None or shutil.which("nvidia-smi") is None:
        yield shares
        return
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with subprocess.Popen([*command, f"--loop-ms={SAMPLE_MS}"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield shares
        finally:
            process.terminate()
            lines = process.communicate()[0].split()
    shares.extend(float(line) / 100 for line in lines)


def gpu_of(device: str) -> tuple[str, str] | tuple[None, None]:
    """Name and UUID of the GPU, None for a CPU."""
    index = gpu_index(device)
    if index is None:
        return None, None
    import torch

    properties = torch.cuda.get_device_properties(index)
    return str(properties.name), f"GPU-{properties.uuid}"


def end_to_end(
    path: Path, loaded: Loaded, device: str, *, decode_threads: int, seconds: float
) -> tuple[float, float | None, float, int]:
    """Images a second, GPU busy share, CPU cores used and images of the engine from encoded to features."""
    settings = EngineSettings(max_pixels=50_000_000, max_frames_per_video=1, decode_threads=decode_threads)

    def run(seconds: float) -> int:
        n = 0
        for batch in featurize_media(inputs(path, [loaded.spec.id], seconds=seconds), [loaded], settings):
            failed = batch.column("results").flatten().field("error").drop_null()
            if len(failed):
                raise RuntimeError(f"{loaded.spec.id}: {failed[0]}")
            n += batch.num_rows
        return n

    run(min(seconds, 2.0))  # until algorithms are chosen and graphs captured
    cpu, wall = time.process_time(), time.perf_counter()
    with watching(gpu_of(device)[1]) as shares:
        n_images = run(seconds)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return n_images / wall, statistics.mean(shares) if shares else None, cpu / wall, n_images


def measure(
    path: Path, name: str, device: str, *, precision: str, decode_threads: int, seconds: float, batch_size: int | None
) -> Row:
    """The row of one model; not measured where its weights cannot be had."""
    what = f"{name}: end to end from JPEGs / on the device alone"
    with tempfile.TemporaryDirectory() as folder:
        try:
            spec, weights = model(name, precision, Path(folder))
        except WeightsError as e:
            return not_measured(f"B13.{name}", what, unit="images/s", reach=REACH, reason=str(e))
        spec = replace(spec, batch_size=batch_size or spec.batch_size)
        alone = on_device_rate(network(spec, weights, device), spec, seconds=seconds)
        (loaded,) = loaded_featurizers([(spec, weights, f"{name} {precision}")], device)
        rate, busy, cores, n_images = end_to_end(path, loaded, device, decode_threads=decode_threads, seconds=seconds)
    return Row(
        id=f"B13.{name}",
        what=what,
        unit="images/s",
        ours=round(rate, 1),
        peer=round(alone, 1),
        ratio=round(rate / alone, 3),
        reach=REACH,
        peer_version="itself, inputs on the device",
        settings={
            "device": device,
            "gpu": gpu_of(device)[0],
            "gpu_busy_share": None if busy is None else round(busy, 3),
            "reach_busy_share": REACH_BUSY,
            "cores_used": round(cores, 2),
            "cpu_ms_per_image": round(cores / rate * 1000, 3),
            "decode_threads": decode_threads,
            "precision": spec.precision,
            "batch_size": loaded.spec.batch_size,
            "lanes": loaded.lanes,
            "n_images": n_images,
            **machine(),
        },
    )


def rows() -> list[Row]:
    """B13 for `make bench`: all models on the first GPU with all cores but one decoding, or that there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return [
            not_measured(
                f"B13.{name}",
                f"{name}: end to end from JPEGs / on the device alone",
                unit="images/s",
                reach=REACH,
                reason="not measured: no GPU",
            )
            for name in MODELS
        ]
    decode_threads = max(1, (os.cpu_count() or 2) - 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.arrow"
        write_inputs(path)
        return [
            measure(
                path, name, "cuda:0", precision="float16", decode_threads=decode_threads, seconds=20.0, batch_size=None
            )
            for name in MODELS
        ]


def main(arguments: Sequence[str]) -> int:
    """Write inputs, or measure and print the rows; those of a GPU are also written to results/latest.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Row B13, on a machine without Spark")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("inputs", help="write a file of Arrow batches of generated JPEGs")
    measuring = commands.add_parser("measure", help="measure from such a file")
    for command in (making, measuring):
        command.add_argument("file", type=Path)
    making.add_argument("--images", type=int, default=N_INPUTS)
    making.add_argument("--width", type=int, default=1024)
    making.add_argument("--height", type=int, default=683)
    measuring.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try this program")
    measuring.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join((*VISION, *DEFAULTS))}")
    measuring.add_argument("--precision", default="float16", choices=concept_clip.PRECISIONS)
    measuring.add_argument("--decode-threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    measuring.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    measuring.add_argument("--batch-size", type=int, default=None, help="that of the featurizer if not given")
    given = parser.parse_args(arguments)
    if given.command == "inputs":
        write_inputs(given.file, given.images, width=given.width, height=given.height)
        print(f"{given.images} images in {given.file}, {given.file.stat().st_size / 1e6:.1f} MB")
        return 0
    names = given.models.split(",")
    unknown = sorted(set(names) - set(VISION) - set(DEFAULTS))
    if unknown:
        parser.error(f"--models {','.join(unknown)}: allowed: {', '.join((*VISION, *DEFAULTS))}")
    measured = [
        measure(
            given.file, name, given.device, precision=given.precision, decode_threads=given.decode_threads,
            seconds=given.seconds, batch_size=given.batch_size,
        )
        for name in names
    ]  # fmt: skip
    for row in measured:
        print(json.dumps({"id": row.id, **row.settings}))
    print(table(measured))
    if gpu_index(given.device) is not None:
        write(measured)
        print(f"written to {LATEST}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
