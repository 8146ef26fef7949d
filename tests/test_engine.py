"""The engine against a plain sequential one, and with every fault that data, models and consumers can cause."""

from __future__ import annotations

import gc
import hashlib
import io
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from featurizers.decode import DecodeError, decode_image
from featurizers.delivery import fit, upright_boxes
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, no_features
from featurizers.video import key_frames
from jobs.engine import EngineSettings, featurize_media
from jobs.inference import DeviceFailed, Loaded, infer_batch
from jobs.staged import STAGED
from tests.pictures import encode, noise

SETTINGS = EngineSettings(max_pixels=100_000, max_frames_per_video=3, decode_threads=2)
MEDIA_SCHEMA = pa.schema(
    [
        ("media_id", pa.string()),
        ("content", pa.binary()),
        ("pack_uri", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("mime", pa.string()),
        ("due", pa.list_(pa.string())),
    ]
)


def a_spec(name: str, **changes: object) -> FeaturizerSpec:
    base: dict[str, object] = {
        "family": f"concept_{name}",
        "variant": "v",
        "version": 1,
        "kind": "concept",
        "dim": 3,
        "image_size": 32,
        "fit": "crop",
        "batch_size": 4,
        "weights": (),
    }
    return FeaturizerSpec(**{**base, **changes})  # type: ignore[arg-type]


def mean_colour(spec: FeaturizerSpec) -> Extract:
    """One feature for a picture: its mean colour, with a box on the left half; nothing where it is nearly black."""

    def extract(images: Sequence[Image]) -> Features:
        means = [image.reshape(-1, 3).mean(axis=0) for image in images]
        kept = [i for i, mean in enumerate(means) if mean.max() > 5]
        if not kept:
            return no_features(spec)
        vectors = np.array([means[i] / np.linalg.norm(means[i]) for i in kept], np.float32)
        return Features(
            image=np.array(kept, np.int32),
            vector=vectors,
            label=["colour"] * len(kept),
            score=np.full(len(kept), 0.5, np.float32),
            box=np.tile(np.array([[0.0, 0.25, 0.5, 0.75]], np.float32), (len(kept), 1)),
        )

    return extract


def loaded(spec: FeaturizerSpec, extract: Extract | None = None, *, lanes: int = 1) -> Loaded:
    fingerprint = hashlib.md5(spec.id.encode()).hexdigest()
    return Loaded(spec=spec, fingerprint=fingerprint, extract=extract or mean_colour(spec), lanes=lanes)


def poisoned(spec: FeaturizerSpec, is_poison: Callable[[Image], bool], failure: Exception | None = None) -> Extract:
    """Throws for a batch that holds a picture for which `is_poison`."""
    inner = mean_colour(spec)

    def extract(images: Sequence[Image]) -> Features:
        if any(is_poison(image) for image in images):
            raise failure or RuntimeError("cannot digest this")
        return inner(images)

    return extract


def is_red(image: Image) -> bool:
    middle = image[image.shape[0] // 2, image.shape[1] // 2]
    return bool(middle[0] > 240 and middle[1] < 20 and middle[2] < 20)


def picture(colour: tuple[int, int, int], *, size: tuple[int, int] = (60, 40), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def clip(colours: Sequence[tuple[int, int, int]]) -> bytes:
    """Every frame is a key frame, ten a second, in a container that is readable however early it is cut."""
    out = io.BytesIO()
    with av.open(out, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for colour in colours:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def media(
    contents: Sequence[bytes | None], due: Sequence[Sequence[str]], *, rows_per_batch: int = 3
) -> list[pa.RecordBatch]:
    rows = [
        {"media_id": f"{i:04d}", "content": content, "mime": "image/png", "due": list(ids)}
        for i, (content, ids) in enumerate(zip(contents, due, strict=True))
    ]
    table = pa.Table.from_pylist(rows, schema=MEDIA_SCHEMA)
    return table.to_batches(max_chunksize=rows_per_batch)


def results(batches: Iterable[pa.RecordBatch]) -> dict[tuple[str, int, str], dict[str, object]]:
    """(media_id, frame, featurizer) -> result with the frame's columns; fails if a key comes twice."""
    found: dict[tuple[str, int, str], dict[str, object]] = {}
    for batch in batches:
        assert batch.schema.equals(STAGED)
        batch.validate(full=True)
        for row in batch.to_pylist():
            for result in row["results"]:
                key = (row["media_id"], row["frame"], result["featurizer"])
                assert key not in found, f"{key} came twice"
                assert (result["features"] is None) != (result["error"] is None)
                found[key] = {**row, **result}
    return found


def code_of(result: dict[str, object]) -> str | None:
    failure = result["error"]
    return failure["code"] if isinstance(failure, dict) else None


def one_by_one(batches: Iterable[pa.RecordBatch], featurizers: Sequence[Loaded]) -> dict[tuple[str, int, str], object]:
    """What the engine must find, by the plainest program: code of the error, or number of features and their boxes."""
    expected: dict[tuple[str, int, str], object] = {}
    by_id = {one.spec.id: one for one in featurizers}
    for row in (row for batch in batches for row in batch.to_pylist()):
        frames: list[tuple[int, Image]] = []
        code = None
        try:
            if row["content"] is None:
                code = "storage"
            elif row["content"][8:12] == b"AVI ":
                for frame in key_frames(row["content"], max_frames=3, max_pixels=SETTINGS.max_pixels):
                    frames.append(frame)
            else:
                frames.append((0, decode_image(row["content"], max_pixels=SETTINGS.max_pixels)))
        except DecodeError as e:
            code = "undecodable" if e.code == "unsupported_format" else e.code
        for featurizer in row["due"]:
            if code is not None:
                expected[row["media_id"], 0, featurizer] = code
            for frame, image in frames:
                one = by_id[featurizer]
                try:
                    features = one.extract([fit(image, one.spec)])
                    height, width = image.shape[:2]
                    box = features.box if features.box is not None else np.zeros((0, 4), np.float32)
                    expected[row["media_id"], frame, featurizer] = upright_boxes(box, one.spec, width, height).tolist()
                except RuntimeError:
                    expected[row["media_id"], frame, featurizer] = "model_failed"
    return expected


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_wrong_with_the_media_rows_out_are_rows_in_and_equal_to_those_of_a_plain_loop(seed: int) -> None:
    draw = random.Random(seed)
    specs = [
        a_spec("a", batch_size=draw.randint(1, 7)),
        a_spec("b", batch_size=draw.randint(1, 7), fit="letterbox", image_size=48),
        a_spec("c", batch_size=draw.randint(1, 7), fit="native", image_size=0),
    ]
    featurizers = [
        loaded(specs[0], lanes=draw.randint(1, 3)),
        loaded(specs[1], poisoned(specs[1], is_red), lanes=draw.randint(1, 3)),
        loaded(specs[2], lanes=draw.randint(1, 3)),
    ]

    def content() -> bytes | None:
        colour = (draw.randint(60, 200), draw.randint(60, 200), draw.randint(60, 200))
        whole = picture(colour, size=(draw.randint(1, 90), draw.randint(1, 90)))
        return draw.choice(
            [
                whole,
                picture(colour, kind=draw.choice(["JPEG", "GIF", "WEBP", "BMP", "TIFF"])),
                picture((255, 0, 0)),  # poison for the second featurizer
                picture((0, 0, 0)),  # in which nothing is found
                None,
                b"",
                whole[: len(whole) // 2],
                draw.randbytes(50),
                b"<html>not a picture</html>",
                picture(colour, size=(400, 400)),  # above the pixel limit
                clip([colour] * draw.randint(1, 8)),
                clip([colour] * 8)[:-4000],
            ]
        )

    n = draw.randint(0, 30)
    ids = [spec.id for spec in specs]
    batches = media([content() for _ in range(n)], [draw.sample(ids, draw.randint(0, 3)) for _ in range(n)])
    settings = EngineSettings(
        max_pixels=SETTINGS.max_pixels,
        max_frames_per_video=3,
        decode_threads=draw.randint(1, 3),
        queue_bytes=draw.choice([1, 10_000, 32 << 20]),
        output_bytes=draw.choice([1, 4 << 20]),
    )
    found = results(featurize_media(batches, featurizers, settings))
    expected = one_by_one(batches, featurizers)
    assert found.keys() == expected.keys()
    for key, wanted in expected.items():
        result = found[key]
        if isinstance(wanted, str):
            assert code_of(result) == wanted
        else:
            assert result["features"] is not None
            assert [feature["box"] for feature in result["features"]] == wanted  # type: ignore[attr-defined]


def test_a_frame_is_described_by_its_upright_size_its_time_and_a_thumbnail() -> None:
    spec = a_spec("a", image_size=16, batch_size=1)
    rows = list(featurize_media(media([clip([(9, 99, 9)] * 5)], [[spec.id]]), [loaded(spec)], SETTINGS))
    row = rows[0].to_pylist()[1]
    assert (row["frame"], row["time_s"], row["shot"], row["width"], row["height"]) == (200, 0.2, None, 64, 48)
    assert PIL.Image.open(io.BytesIO(row["thumbnail"])).size == (64, 48)
    assert row["decode_ms"] > 0
    assert row["results"][0]["infer_ms"] > 0
    assert np.linalg.norm(row["results"][0]["features"][0]["vector"]) == pytest.approx(1)


def test_media_that_cannot_be_decoded_is_one_row_without_size_and_with_an_error_for_each_featurizer() -> None:
    first, second = a_spec("a"), a_spec("b")
    batches = featurize_media(media([b"junk"], [[first.id, second.id]]), [loaded(first), loaded(second)], SETTINGS)
    (row,) = [row for batch in batches for row in batch.to_pylist()]
    assert [row[name] for name in ("frame", "width", "height", "thumbnail", "decode_ms")] == [0, None, None, None, None]
    assert [result["error"]["code"] for result in row["results"]] == ["undecodable", "undecodable"]
    assert [result["error"]["stage"] for result in row["results"]] == ["decode", "decode"]


def test_specs_that_want_the_same_delivery_get_the_very_same_pixels() -> None:
    seen: dict[str, list[Image]] = {"a": [], "b": [], "c": []}

    def recording(name: str, spec: FeaturizerSpec) -> Extract:
        def extract(images: Sequence[Image]) -> Features:
            seen[name] += images
            return mean_colour(spec)(images)

        return extract

    specs = {"a": a_spec("a"), "b": a_spec("b", dim=3, batch_size=1), "c": a_spec("c", image_size=16)}
    featurizers = [loaded(spec, recording(name, spec)) for name, spec in specs.items()]
    list(featurize_media(media([picture((9, 99, 9))], [[s.id for s in specs.values()]]), featurizers, SETTINGS))
    assert seen["a"][0] is seen["b"][0]
    assert seen["c"][0].shape == (16, 16, 3)


def test_the_fast_profile_gives_a_featurizer_the_same_pixels_whatever_else_is_due() -> None:
    specs = {"small": a_spec("small", image_size=16), "large": a_spec("large", image_size=64)}
    seen: dict[str, list[Image]] = {name: [] for name in specs}

    def recording(name: str, spec: FeaturizerSpec) -> Extract:
        def extract(images: Sequence[Image]) -> Features:
            seen[name] += images
            return mean_colour(spec)(images)

        return extract

    jpeg = encode(noise(640, 400), "JPEG")
    fast = EngineSettings(max_pixels=1_000_000, max_frames_per_video=1, decode_profile="fast")
    featurizers = [loaded(spec, recording(name, spec)) for name, spec in specs.items()]
    ids = [spec.id for spec in specs.values()]
    for due in (ids[:1], ids[1:], ids):
        rows = [row for batch in featurize_media(media([jpeg], [due]), featurizers, fast) for row in batch.to_pylist()]
        assert [(row["width"], row["height"]) for row in rows] == [(640, 400)]
    for name, spec in specs.items():
        alone, together = seen[name]
        assert np.array_equal(alone, together)
        assert not np.array_equal(alone, fit(decode_image(jpeg, max_pixels=1_000_000), spec))


def test_a_delivery_that_no_picture_survives_is_our_fault_and_raises() -> None:
    impossible = a_spec("impossible", short_side=16)  # less than the crop cut out of it
    with pytest.raises(ValueError, match="short_side is 16"):
        list(featurize_media(media([picture((9, 99, 9))], [[impossible.id]]), [loaded(impossible)], SETTINGS))


def test_batches_mix_the_frames_of_different_media_and_are_full_but_for_the_last() -> None:
    sizes: list[int] = []
    spec = a_spec("a", batch_size=4)

    def extract(images: Sequence[Image]) -> Features:
        sizes.append(len(images))
        return mean_colour(spec)(images)

    contents = [clip([(90, 99, 9)] * 3), *[picture((9, 99, 9))] * 7]
    list(featurize_media(media(contents, [[spec.id]] * 8), [loaded(spec, extract)], SETTINGS))
    assert sizes == [4, 4, 2]


def test_with_two_lanes_two_batches_are_inferred_at_once_and_no_more() -> None:
    spec = a_spec("a", batch_size=2)
    together = threading.Barrier(2, timeout=20)
    n_now, most = 0, 0
    counting = threading.Lock()

    def extract(images: Sequence[Image]) -> Features:
        nonlocal n_now, most
        with counting:
            n_now += 1
            most = max(most, n_now)
        together.wait()
        with counting:
            n_now -= 1
        return mean_colour(spec)(images)

    contents = [picture((90, 99, 9))] * 16  # an even number of batches, so that each meets another
    found = results(featurize_media(media(contents, [[spec.id]] * 16), [loaded(spec, extract, lanes=2)], SETTINGS))
    assert Counter(code_of(result) for result in found.values()) == {None: 16}
    assert most == 2


def test_one_poisoned_picture_costs_only_itself() -> None:
    spec = a_spec("a", batch_size=8)
    contents = [picture((9, 99, 9))] * 7 + [picture((255, 0, 0))]
    found = results(featurize_media(media(contents, [[spec.id]] * 8), [loaded(spec, poisoned(spec, is_red))], SETTINGS))
    assert Counter(code_of(result) for result in found.values()) == {None: 7, "model_failed": 1}


@pytest.mark.parametrize("n", [1, 5])
def test_a_batch_of_nothing_but_poison_fails_in_its_rows_while_the_model_still_takes_a_good_picture(n: int) -> None:
    spec = a_spec("a", batch_size=8)
    found = results(
        featurize_media(
            media([picture((255, 0, 0))] * n, [[spec.id]] * n), [loaded(spec, poisoned(spec, is_red))], SETTINGS
        )
    )
    assert Counter(code_of(result) for result in found.values()) == {"model_failed": n}


@pytest.mark.parametrize("n", [1, 5])
def test_a_device_that_takes_nothing_any_more_fails_the_task(n: int) -> None:
    spec = a_spec("a", batch_size=2)
    contents = [picture((9, 99, 9))] * n
    dead = loaded(spec, poisoned(spec, lambda image: True, RuntimeError("device lost")))
    with pytest.raises(DeviceFailed, match=r"concept_a\.v@1.*device lost"):
        list(featurize_media(media(contents, [[spec.id]] * n), [dead], SETTINGS))


def test_a_device_that_dies_half_way_fails_the_task_though_it_worked_before() -> None:
    spec = a_spec("a", batch_size=2)
    n_calls = 0

    def extract(images: Sequence[Image]) -> Features:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 3:
            raise RuntimeError("device lost")
        return mean_colour(spec)(images)

    with pytest.raises(DeviceFailed):
        list(featurize_media(media([picture((9, 99, 9))] * 20, [[spec.id]] * 20), [loaded(spec, extract)], SETTINGS))


def test_a_model_that_refuses_grey_is_probed_with_a_picture_that_it_took_before() -> None:
    spec = a_spec("a", batch_size=1)
    extract = poisoned(spec, lambda image: is_red(image) or image.std() == 0)
    striped = PIL.Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8)[:, None, None], (1, 40, 3)))
    out = io.BytesIO()
    striped.save(out, "PNG")
    one_thread = EngineSettings(max_pixels=100_000, max_frames_per_video=1)
    found = results(
        featurize_media(
            media([out.getvalue(), picture((255, 0, 0))], [[spec.id]] * 2), [loaded(spec, extract)], one_thread
        )
    )
    assert [code_of(result) for result in found.values()] == [None, "model_failed"]


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        OutOfMemoryError("CUDA"),
        RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 9"),
        RuntimeError("CUDA failure 2: out of memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(failure: Exception) -> None:
    spec = a_spec("a", batch_size=16)
    sizes = []

    def extract(images: Sequence[Image]) -> Features:
        sizes.append(len(images))
        if len(images) > 3:
            raise failure
        return mean_colour(spec)(images)

    outcomes = infer_batch(loaded(spec, extract), [np.full((32, 32, 3), 99, np.uint8)] * 16)
    assert all(outcome.found is not None for outcome in outcomes)
    assert sizes == [16, 8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2]


def test_a_single_picture_that_does_not_fit_is_out_of_memory_and_the_others_go_on() -> None:
    spec = a_spec("a", fit="native", image_size=0, batch_size=4)
    extract = poisoned(spec, lambda image: image.shape[0] > 100, MemoryError())
    contents = [picture((9, 99, 9))] * 3 + [picture((9, 99, 9), size=(20, 200))]
    found = results(featurize_media(media(contents, [[spec.id]] * 4), [loaded(spec, extract)], SETTINGS))
    assert [code_of(found[f"{i:04d}", 0, spec.id]) for i in range(4)] == [None, None, None, "out_of_memory"]


def test_features_that_break_the_contract_are_an_error_of_their_picture_only() -> None:
    spec = a_spec("a", batch_size=4)

    def extract(images: Sequence[Image]) -> Features:
        vectors = np.array([[1.0, 0, 0] if not is_red(image) else [9.0, 0, 0] for image in images], np.float32)
        return Features(image=np.arange(len(images), dtype=np.int32), vector=vectors)

    contents = [picture((9, 99, 9))] * 3 + [picture((255, 0, 0))]
    found = results(featurize_media(media(contents, [[spec.id]] * 4), [loaded(spec, extract)], SETTINGS))
    assert [code_of(found[f"{i:04d}", 0, spec.id]) for i in range(4)] == [None, None, None, "model_failed"]


def test_rows_of_nan_become_null_and_what_a_featurizer_does_not_give_is_null() -> None:
    spec = a_spec("a", dim=2, fit="native", image_size=0)

    def extract(images: Sequence[Image]) -> Features:
        return Features(
            image=np.array([0, 0], np.int32),
            vector=np.array([[np.nan, np.nan], [0, 1]], np.float32),
            box=np.array([[0, 0, 1, 1], [np.nan] * 4], np.float32),
            text=["read", None],
        )

    batches = featurize_media(media([picture((9, 9, 9))], [[spec.id]]), [loaded(spec, extract)], SETTINGS)
    (result,) = results(batches).values()
    assert result["features"] == [
        {"vector": None, "label": None, "score": None, "box": [0, 0, 1, 1], "text": "read"},
        {"vector": [0, 1], "label": None, "score": None, "box": None, "text": None},
    ]


def by_reference(pack_uri: str, offset: int, length: int, featurizer: str) -> list[pa.RecordBatch]:
    row = {"media_id": "m", "pack_uri": pack_uri, "offset": offset, "length": length, "due": [featurizer]}
    return [pa.RecordBatch.from_pylist([row], schema=MEDIA_SCHEMA)]


@pytest.mark.parametrize("as_uri", [str, lambda path: path.as_uri()])
def test_media_held_by_reference_is_read_from_its_pack(tmp_path: Path, as_uri: Callable[[Path], str]) -> None:
    spec = a_spec("a")
    content = picture((9, 99, 9))
    (tmp_path / "pack").write_bytes(b"before" + content + b"after")
    batches = by_reference(as_uri(tmp_path / "pack"), 6, len(content), spec.id)
    (result,) = results(featurize_media(batches, [loaded(spec)], SETTINGS)).values()
    assert (code_of(result), result["width"]) == (None, 60)


@pytest.mark.parametrize("name, length", [("absent", 9), ("pack", 99)])
def test_a_pack_that_is_gone_or_too_short_is_a_storage_error(tmp_path: Path, name: str, length: int) -> None:
    spec = a_spec("a")
    (tmp_path / "pack").write_bytes(b"short")
    batches = by_reference(str(tmp_path / name), 0, length, spec.id)
    (result,) = results(featurize_media(batches, [loaded(spec)], SETTINGS)).values()
    assert (code_of(result), name in str(result["error"])) == ("storage", True)


def test_a_featurizer_that_is_due_but_not_loaded_raises_and_names_it() -> None:
    with pytest.raises(ValueError, match=r"concept_x\.v@1.*not loaded"):
        list(featurize_media(media([picture((9, 9, 9))], [["concept_x.v@1"]]), [], SETTINGS))


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "infer"))]


def endless() -> Iterator[pa.RecordBatch]:
    batches = media([picture((9, 99, 9))] * 4, [["concept_a.v@1"]] * 4)
    while True:
        yield from batches


SMALL = EngineSettings(max_pixels=100_000, max_frames_per_video=1, decode_threads=3, queue_bytes=20_000, output_bytes=1)


def test_a_consumer_that_stops_early_leaves_no_thread_behind() -> None:
    rows = featurize_media(endless(), [loaded(a_spec("a"), lanes=2)], SMALL)
    next(rows)
    assert {name.split("_")[0] for name in engine_threads()} == {"decode", "infer"}
    rows.close()  # type: ignore[attr-defined]
    assert not engine_threads()


def test_a_generator_that_is_forgotten_leaves_no_thread_behind() -> None:
    rows = featurize_media(endless(), [loaded(a_spec("a"))], SMALL)
    next(rows)
    del rows
    gc.collect()
    assert not engine_threads()


def test_an_error_of_the_source_or_of_the_device_comes_out_and_leaves_no_thread_behind() -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from media([picture((9, 99, 9))] * 4, [["concept_a.v@1"]] * 4)
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        list(featurize_media(broken(), [loaded(a_spec("a"))], SETTINGS))
    for lanes in (1, 2):
        dead = loaded(a_spec("a"), poisoned(a_spec("a"), lambda image: True), lanes=lanes)
        with pytest.raises(DeviceFailed):
            list(featurize_media(endless(), [dead], SMALL))
    assert not engine_threads()


def test_reading_stays_within_the_queue_however_slow_the_consumer() -> None:
    n_read = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal n_read
        for batch in endless():
            n_read += batch.num_rows
            yield batch

    settings = EngineSettings(max_pixels=100_000, max_frames_per_video=1, queue_bytes=50_000, output_bytes=1)
    rows = featurize_media(counted(), [loaded(a_spec("a"))], settings)
    next(rows)
    assert n_read <= 4 * (50_000 // 4096 + 1)
    rows.close()  # type: ignore[attr-defined]


def test_arrow_batches_out_are_about_as_large_as_asked_for() -> None:
    settings = EngineSettings(max_pixels=100_000, max_frames_per_video=1, output_bytes=4000)
    batches = list(
        featurize_media(media([picture((9, 99, 9))] * 40, [["concept_a.v@1"]] * 40), [loaded(a_spec("a"))], settings)
    )
    assert sum(batch.num_rows for batch in batches) == 40
    assert len(batches) > 3
