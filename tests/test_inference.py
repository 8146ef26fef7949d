"""A batch that does not fit into memory, for real: a process with less than the network wants; what stays loaded."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

from featurizers.spec import find_spec, prepared
from featurizers.weights import resolve
from jobs.inference import loaded_featurizers

ROOT = Path(__file__).parent.parent
N_PICTURES = 64
IN_LITTLE_MEMORY = f"""
import json, resource, sys
import numpy as np
from featurizers.spec import find_spec, prepared
from featurizers.weights import resolve
from jobs.inference import loaded_featurizers
from jobs.inference import Loaded, infer_batch

spec, paths = resolve(find_spec("concept_efficientnet.lite0@1"))
[loaded] = loaded_featurizers([(spec, prepared(spec, paths), "x")], "cpu")
pictures = list(np.random.default_rng(0).integers(0, 256, ({N_PICTURES}, 224, 224, 3), np.uint8))
alone = [infer_batch(loaded, [picture])[0].found for picture in pictures]
failures, sizes = [], []

def extract(images):
    sizes.append(len(images))
    try:
        return loaded.extract(images)
    except Exception as e:
        failures.append(f"{{type(e).__name__}}: {{e}}"[:200])
        raise

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (200 << 20), resource.RLIM_INFINITY))
outcomes = infer_batch(Loaded(spec=spec, fingerprint="x", extract=extract), pictures)
json.dump({{
    "sizes": sizes,
    "failures": failures,
    "errors": [outcome.error.detail for outcome in outcomes if outcome.error is not None],
    "furthest": max(
        float(1 - one.found.vector[0] @ other.vector[0]) for one, other in zip(outcomes, alone) if one.found is not None
    ),
}}, sys.stdout)
"""


def test_a_batch_that_memory_does_not_suffice_for_is_halved_and_every_picture_comes_through() -> None:
    done = subprocess.run([sys.executable, "-c", IN_LITTLE_MEMORY], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["failures"], "it fitted"
    assert found["sizes"][:2] == [N_PICTURES, N_PICTURES // 2]
    assert found["errors"] == [] and found["furthest"] <= 1e-4


def test_loaded_featurizers_are_left_out_of_garbage_collection_until_they_are_let_go() -> None:
    spec, paths = resolve(find_spec("concept_efficientnet.lite0@1"))
    [loaded] = loaded_featurizers([(spec, prepared(spec, paths), "x")], "cpu")
    try:
        assert len(gc.get_objects()) < 1000
        extract = weakref.ref(loaded.extract)
        del loaded
        assert loaded_featurizers([], "cpu") == []
        assert extract() is None
    finally:
        gc.unfreeze()
