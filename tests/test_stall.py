"""What counts as a stall of a worker and what does not, each in a process of its own that hangs or waits for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.stall import stalled_at

ROOT = Path(__file__).parent.parent
LIMIT_S = 1
ENGINE = f"""
import re, sys, time
from dataclasses import replace
from tests.test_engine import a_spec, loaded, mean_colour, media, picture
from jobs.engine import EngineSettings, featurize_media

spec = a_spec("a", batch_size=1)
settings = EngineSettings(max_pixels=100_000, max_frames_per_video=1, output_bytes=1, stall_s={LIMIT_S})

def batches(wait_s=0):
    for _ in range(2):
        time.sleep(wait_s)
        yield from media([picture((9, 99, 9), size=(32, 32))], [[spec.id]])

def consume(rows, wait_s=0):
    for batch in rows:
        time.sleep(wait_s)
        print(batch.num_rows)
"""


def ran(body: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", ENGINE + body], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={name: value for name, value in os.environ.items() if name != "PYTHON_FAULTHANDLER_DIR"},
    )  # fmt: skip
    return done


def test_waiting_for_a_slow_reader_or_a_slow_consumer_is_no_stall() -> None:
    done = ran(f"consume(featurize_media(batches({1.5 * LIMIT_S}), [loaded(spec)], settings), {1.5 * LIMIT_S})")
    assert done.returncode == 0, done.stderr
    assert sum(map(int, done.stdout.split())) == 2


def test_a_model_that_is_slow_but_comes_on_is_no_stall() -> None:
    slow = f"""
def extract(images):
    time.sleep({0.6 * LIMIT_S})
    return mean_colour(spec)(images)
at_once = replace(settings, output_bytes=1 << 20)
consume(featurize_media(batches(), [loaded(spec, extract)], at_once))
"""
    done = ran(slow)
    assert done.returncode == 0, done.stderr
    assert sum(map(int, done.stdout.split())) == 2


@pytest.mark.parametrize("hang", ["time.sleep(60)", 're.match(r"(a+)+$", "a" * 60 + "b")'], ids=["waiting", "locked"])
def test_a_model_that_hangs_ends_the_process_with_the_place(hang: str) -> None:
    hanging = f"""
def extract(images):
    {hang}
consume(featurize_media(batches(), [loaded(spec, extract)], settings))
"""
    done = ran(hanging)
    assert done.returncode == 1
    place = stalled_at(done.stderr)
    assert place is not None and place.endswith((" in extract", " in match"))


def test_media_that_can_never_be_read_ends_the_process_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pack")  # opening it waits for a writer, for ever
    done = ran(f"""
batch = next(batches()).slice(0, 1).to_pylist()
batch[0] |= {{"content": None, "pack_uri": "file://{tmp_path}/pack", "offset": 0, "length": 9}}
import pyarrow as pa
from tests.test_engine import MEDIA_SCHEMA
consume(featurize_media([pa.RecordBatch.from_pylist(batch, MEDIA_SCHEMA)], [loaded(spec)], settings))
""")
    assert done.returncode == 1, done.stderr
    assert stalled_at(done.stderr) is not None and "jobs/packs.py" in done.stderr


def test_a_worker_that_ended_otherwise_is_not_said_to_have_stalled() -> None:
    assert stalled_at("Python worker exited unexpectedly (crashed): Fatal Python error: Segmentation fault") is None


def test_the_thread_that_works_is_named_and_in_it_the_featurizer() -> None:
    dump = """Python worker exited unexpectedly (crashed): Timeout (0:05:00)!
Thread 0x01 (most recent call first):
  File "/l/jobs/byte_queue.py", line 36 in put
  File "/l/jobs/engine.py", line 190 in _decode
Thread 0x02 (most recent call first):
  File "/p/onnxruntime/session.py", line 9 in run
  File "/l/featurizers/concept_x.py", line 12 in extract
  File "/l/jobs/inference.py", line 110 in _extract
  File "/l/jobs/engine.py", line 330 in _run
"""
    assert stalled_at(dump) == "/l/featurizers/concept_x.py line 12 in extract"
    waits = dump.replace("/p/onnxruntime/session.py", "/l/jobs/byte_queue.py").replace("190 in _decode", "190 in get")
    assert stalled_at(waits.replace("jobs/byte_queue.py", "decode.py", 1)) == "/l/decode.py line 36 in put"


def test_of_several_lanes_the_one_that_infers_is_named_and_not_the_thread_that_waits_for_it() -> None:
    dump = """Timeout (0:05:00)!
Thread 0x01 (most recent call first):
  File "/p/concurrent/futures/_base.py", line 451 in result
  File "/l/jobs/inference.py", line 102 in done
  File "/l/jobs/engine.py", line 330 in _run
Thread 0x02 (most recent call first):
  File "/l/featurizers/device.py", line 40 in run
  File "/l/jobs/inference.py", line 140 in _extract
  File "/p/concurrent/futures/thread.py", line 58 in run
"""
    assert stalled_at(dump) == "/l/featurizers/device.py line 40 in run"
