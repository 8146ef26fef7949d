"""Encoded media to features, from Arrow record batches to Arrow record batches. Knows no Spark, no table, no model.

reader -> bounded queue -> decode threads -> bounded queue -> batches for each featurizer -> rows
The caller's thread reads and infers; decoding goes on meanwhile, for the decoders release the interpreter lock. For a
GPU threads of their own infer, so that one batch is copied and unpacked while another is computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from featurizers.decode import DecodeError, DecodeProfile, decode_reduced, plain_jpeg_size
from featurizers.delivery import Delivery, dct_divisor, delivery, fit_each, thumbnail, upright_boxes
from featurizers.probe import SNIFF_BYTES, VIDEO_FORMAT, Encoded, sniff
from featurizers.spec import Features, FeaturizerSpec, Image
from jobs.byte_queue import ByteQueue, Closed
from jobs.inference import Lanes, Loaded, Outcome
from jobs.packs import READ_AHEAD_BYTES, StorageFailed, open_pack
from jobs.stage_times import StageTimes
from jobs.staged import FrameRow, record_batch
from jobs.stall import StallWatch
from schemas.errors import Error, ErrorCode, error

MAX_PIXEL_BYTES = 8  # of an encoded picture by reference: one above max_pixels of 4 x 16 bits is not read
MEDIA_OVERHEAD_BYTES = 4096  # what a media counts for beside its bytes, so that a million empty ones are not read ahead


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How much at a time; none of it changes what comes out, but for the first three."""

    max_pixels: int  # of one picture
    max_frames_per_video: int
    decode_profile: DecodeProfile = "exact"
    decode_threads: int = 1
    queue_bytes: int = 32 << 20  # of encoded media read ahead, and again of decoded pictures waiting for a featurizer
    output_bytes: int = 4 << 20  # of one Arrow batch: larger ones fall out of the cache (2.3 times slower at 64 MB)
    stall_s: float | None = None  # without progress the process ends, with its stacks; None: it may hang for ever


@dataclass(frozen=True, kw_only=True)
class _Media:
    media_id: str
    due: tuple[str, ...]
    content: memoryview | None
    pack_uri: str | None
    offset: int | None
    length: int | None
    mime: str | None

    @property
    def size_bytes(self) -> int:
        """What it holds while it waits and is decoded: a video held by reference is read in ranges, never whole."""
        if self.content is not None:
            return MEDIA_OVERHEAD_BYTES + len(self.content)
        length = self.length or 0
        return MEDIA_OVERHEAD_BYTES + (min(length, READ_AHEAD_BYTES) if self.mime in VIDEO_FORMAT else length)


@dataclass(frozen=True)
class _Picture:
    """A frame as it was decoded."""

    frame: int  # presentation time, milliseconds
    width: int  # of the upright picture in full
    height: int
    for_each: Sequence[Image]  # of the specs: what it is to be delivered from; one array where it was decoded once


@dataclass(frozen=True)
class _Decoded:
    """A frame, and what each kind of delivery makes of it; no deliveries where the media could not be decoded."""

    row: FrameRow
    delivered: Mapping[Delivery, Image]
    failure: Error | None = None


@dataclass(frozen=True)
class _Finished:
    """A media has given all its frames; `bug` is an exception that is not the data's fault."""

    size_bytes: int
    times: StageTimes  # of the decode thread
    bug: BaseException | None = None


@dataclass(kw_only=True)
class _Station:
    """A featurizer with the pictures that wait for its next batch."""

    loaded: Loaded
    lanes: Lanes[list[tuple[FrameRow, Image]]]
    waiting: list[tuple[FrameRow, Image]] = field(default_factory=list)
    waiting_bytes: int = 0
    known_good: Image | None = None


def featurize_media(
    batches: Iterable[pa.RecordBatch],
    featurizers: Sequence[Loaded],
    settings: EngineSettings,
    *,
    times: StageTimes | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows of schema STAGED: one for each (media, frame), with a result for each featurizer that is due, in any order.

    batches: columns media_id, content, pack_uri, offset, length, mime, due (ids of the featurizers to run; a media
    without any gives no row). Each media is read and decoded once, whatever is due. What is wrong with the data stands
    in the rows; raises DeviceFailed if a featurizer takes not even a good picture, and ValueError for an id in `due`
    that is not among `featurizers`. Memory is bounded by the settings and one picture for each decode thread.
    What each stage takes is added to `times` while it goes on. Closing the generator, or an error, ends its threads.
    """
    times = times if times is not None else StageTimes()
    stations = {loaded.spec.id: _Station(loaded=loaded, lanes=Lanes(loaded)) for loaded in featurizers}
    decoded: ByteQueue[_Decoded | _Finished] = ByteQueue(settings.queue_bytes)
    pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
    watch = StallWatch(settings.stall_s)
    source = _read_media(watch.unwatched(batches), stations)
    finished: list[FrameRow] = []
    finished_bytes = 0
    n_reading, reading_bytes, is_drained = 0, 0, False

    def given() -> Iterator[pa.RecordBatch]:
        watch.pause()
        with times.spent_on("write_s"):
            yield record_batch(finished)
        watch.moved()

    try:
        while True:
            while not is_drained and reading_bytes < settings.queue_bytes:
                with times.spent_on("read_s"):
                    media = next(source, None)
                if media is None:
                    is_drained = True
                    break
                n_reading, reading_bytes = n_reading + 1, reading_bytes + media.size_bytes
                specs = [stations[featurizer].loaded.spec for featurizer in media.due]
                pool.submit(_decode, media, specs, settings, decoded)
            if not n_reading:
                with times.spent_on("infer_s"):
                    completed = []
                    for station in stations.values():
                        completed += _run(station, wait=True)
                        watch.moved()
            else:
                with times.spent_on("wait_s"):
                    item = decoded.get()
                watch.moved()
                if isinstance(item, _Finished):
                    if item.bug is not None:
                        raise item.bug
                    n_reading, reading_bytes = n_reading - 1, reading_bytes - item.size_bytes
                    times.add(item.times)
                    continue
                with times.spent_on("infer_s"):
                    completed = _distribute(item, stations, settings)
            watch.moved()
            for row in completed:
                times.n_failed += row.is_failed
                finished.append(row)
                finished_bytes += row.size_bytes
                if finished_bytes >= settings.output_bytes:
                    yield from given()
                    finished, finished_bytes = [], 0
            if not n_reading and is_drained:
                break
        if finished:
            yield from given()
    finally:
        decoded.close()
        watch.moved()
        try:
            pool.shutdown(wait=True, cancel_futures=True)
            for station in stations.values():
                station.lanes.close()
        finally:
            watch.stop()


def _read_media(batches: Iterable[pa.RecordBatch], known: Mapping[str, object]) -> Iterator[_Media]:
    for batch in batches:
        names = ("media_id", "content", "pack_uri", "offset", "length", "mime", "due")
        columns = {name: batch.column(name) for name in names}
        for i in range(batch.num_rows):
            due = tuple(dict.fromkeys(columns["due"][i].as_py() or ()))
            unknown = [featurizer for featurizer in due if featurizer not in known]
            if unknown:
                raise ValueError(f"featurizers {unknown} are due but not loaded; loaded: {sorted(known)}")
            if not due:
                continue
            content = columns["content"][i]
            yield _Media(
                media_id=columns["media_id"][i].as_py(),
                due=due,
                # Without a copy; the cast is for simplejpeg, which takes no signed bytes.
                content=memoryview(content.as_buffer()).cast("B") if content.is_valid else None,
                pack_uri=columns["pack_uri"][i].as_py(),
                offset=columns["offset"][i].as_py(),
                length=columns["length"][i].as_py(),
                mime=columns["mime"][i].as_py(),
            )


# -- decode threads -----------------------------------------------------------------------------------------------


def _decode(
    media: _Media, specs: Sequence[FeaturizerSpec], settings: EngineSettings, decoded: ByteQueue[_Decoded | _Finished]
) -> None:
    """Put every frame of `media` on the queue, or its error, and then that it is finished; never raises."""
    bug: BaseException | None = None
    times = StageTimes(n_media=1)
    began = time.perf_counter()
    try:
        for item, size_bytes in _frames(media, specs, settings):
            with times.spent_on("blocked_s"):
                decoded.put(item, size_bytes)
    except Closed:
        return
    except BaseException as e:
        bug = e
    times.decode_s = time.perf_counter() - began - times.blocked_s
    try:
        decoded.put(_Finished(media.size_bytes, times, bug), 0)
    except Closed:
        return


def _frames(media: _Media, specs: Sequence[FeaturizerSpec], settings: EngineSettings) -> Iterator[tuple[_Decoded, int]]:
    """Each frame with the bytes it holds; one row with an error if there is none."""
    n_frames = 0
    failure: Error | None = None
    started = time.perf_counter()
    pictures = _pictures(media, specs, settings)
    while True:
        try:
            picture = _next(pictures)
            if picture is None:
                break
            item = _delivered(media, specs, picture)
            del picture
        except StorageFailed as e:
            if n_frames:
                raise
            failure = error(ErrorCode.STORAGE, str(e))
            break
        except DecodeError as e:
            code = ErrorCode.UNDECODABLE if e.code == "unsupported_format" else ErrorCode(e.code)
            failure = error(code, e.detail)
            break
        except MemoryError as e:
            if n_frames:  # a media with some of its frames would pass for whole: the task is to be tried again
                raise
            failure = error(ErrorCode.OUT_OF_MEMORY, f"while decoding: {e}")
            break
        item.row.decode_ms = (time.perf_counter() - started) * 1000
        n_frames += 1
        yield item, item.row.size_bytes + sum(array.nbytes for array in item.delivered.values())
        started = time.perf_counter()
    if failure is not None and not n_frames:  # a cut video keeps its readable frames
        yield _Decoded(FrameRow(media_id=media.media_id, due=media.due), {}, failure), 0


def _next(pictures: Iterator[_Picture]) -> _Picture | None:
    """The next picture, None at the end. Whatever a decoder throws at bytes that its authors did not foresee is a
    DecodeError; a library that cannot be imported is our own fault and raises as it is."""
    try:
        return next(pictures, None)
    except (DecodeError, StorageFailed, MemoryError, ImportError):
        raise
    except Exception as e:
        raise DecodeError("undecodable", f"{type(e).__name__}: {e}") from e


def _delivered(media: _Media, specs: Sequence[FeaturizerSpec], picture: _Picture) -> _Decoded:
    """What `_deliver` makes of a picture. Where that fails and a plain grey one comes through, the data is at fault
    and a DecodeError is raised; where not even that does, it is ours and raises as it is."""
    try:
        return _deliver(media, specs, picture)
    except MemoryError:
        raise
    except Exception as e:
        grey = np.full((64, 64, 3), 128, np.uint8)
        _deliver(media, specs, _Picture(0, 64, 64, [grey] * len(specs)))
        raise DecodeError("undecodable", f"{type(e).__name__}: {e}") from e


def _deliver(media: _Media, specs: Sequence[FeaturizerSpec], picture: _Picture) -> _Decoded:
    delivered, for_thumbnail = fit_each(picture.for_each, specs)
    row = FrameRow(
        media_id=media.media_id,
        due=media.due,
        frame=picture.frame,
        width=picture.width,
        height=picture.height,
        thumbnail=thumbnail(for_thumbnail, picture.width, picture.height),
    )
    return _Decoded(row, delivered)


def _pictures(media: _Media, specs: Sequence[FeaturizerSpec], settings: EngineSettings) -> Iterator[_Picture]:
    if media.content is not None:
        if sniff(bytes(media.content[:SNIFF_BYTES])) in VIDEO_FORMAT:
            yield from _key_frames(media.content, len(specs), settings)
        else:
            yield _still(media.content, specs, settings)
        return
    with open_pack(media.pack_uri, media.offset, media.length) as pack:
        if sniff(pack.read(SNIFF_BYTES)) in VIDEO_FORMAT:
            for picture in _key_frames(pack, len(specs), settings):
                pack.check()  # all was read before the first frame: one that would lack others is not given
                yield picture
            return
        if pack.length > settings.max_pixels * MAX_PIXEL_BYTES:
            raise DecodeError("pixel_limit", f"{pack.length} bytes, more than {settings.max_pixels} pixels can take")
        data = pack.whole()
    yield _still(data, specs, settings)


def _key_frames(data: Encoded, n_specs: int, settings: EngineSettings) -> Iterator[_Picture]:
    from featurizers.video import key_frames

    for frame, image in key_frames(data, max_frames=settings.max_frames_per_video, max_pixels=settings.max_pixels):
        yield _Picture(frame, image.shape[1], image.shape[0], [image] * n_specs)


def _still(data: bytes | memoryview, specs: Sequence[FeaturizerSpec], settings: EngineSettings) -> _Picture:
    size = plain_jpeg_size(data) if settings.decode_profile == "fast" else None
    divisors = [1 if size is None else dct_divisor(spec, *size) for spec in specs]
    decoded = {d: decode_reduced(data, max_pixels=settings.max_pixels, divisor=d) for d in sorted(set(divisors))}
    largest, divisor = decoded[min(decoded)]
    height, width = largest.shape[0] * divisor, largest.shape[1] * divisor
    return _Picture(0, width, height, [decoded[d][0] for d in divisors])


# -- featurizers --------------------------------------------------------------------------------------------------


def _distribute(item: _Decoded, stations: Mapping[str, _Station], settings: EngineSettings) -> list[FrameRow]:
    """Hand a frame to every featurizer that is due, run those whose batch is full; the rows that this completed."""
    completed = []
    for featurizer in item.row.due:
        station = stations[featurizer]
        if item.failure is not None:
            item.row.results[featurizer] = (station.loaded, Outcome(error=item.failure))
            continue
        image = item.delivered[delivery(station.loaded.spec)]
        station.waiting.append((item.row, image))
        station.waiting_bytes += image.nbytes
        if len(station.waiting) >= station.loaded.spec.batch_size or station.waiting_bytes >= settings.queue_bytes:
            completed += _run(station)
    return [item.row] if item.failure is not None else completed


def _run(station: _Station, *, wait: bool = False) -> list[FrameRow]:
    """Run the featurizer over what waits for it; the rows that this completed.

    With several lanes these may be rows of earlier batches, unless all that is on its way is to be waited for.
    """
    waiting, station.waiting, station.waiting_bytes = station.waiting, [], 0
    if waiting:
        station.lanes.start(waiting, [image for _, image in waiting], known_good=station.known_good)
    completed = []
    for batch, outcomes in station.lanes.done(wait=wait):
        for (row, image), outcome in zip(batch, outcomes, strict=True):
            if outcome.found is not None:
                station.known_good = image
                outcome = replace(outcome, found=_upright(outcome.found, station.loaded.spec, row))
            row.results[station.loaded.spec.id] = (station.loaded, outcome)
            if row.is_complete:
                completed.append(row)
    return completed


def _upright(found: Features, spec: FeaturizerSpec, row: FrameRow) -> Features:
    if found.box is None or row.width is None or row.height is None:
        return found
    return replace(found, box=upright_boxes(found.box, spec, row.width, row.height))
