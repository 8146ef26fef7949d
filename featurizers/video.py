"""Encoded videos to a few upright RGB key frames, named by presentation time. Knows no model and no table."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import av
import av.container
import numpy as np
from av.stream import Discard

from featurizers.decode import DecodeError
from featurizers.probe import SNIFF_BYTES, VIDEO_FORMAT, Encoded, MediaFacts, as_file, sniff
from featurizers.spec import Image

MAX_PROBED_PACKETS = 64  # read for the first frame, whose side data alone states the rotation


def key_frames(data: Encoded, *, max_frames: int, max_pixels: int) -> Iterator[tuple[int, Image]]:
    """At most `max_frames` key frames, spread evenly in time: (milliseconds since the start, upright RGB), ascending.

    The key frames are taken from the container's index where it has one, and of a file then only the index and the
    chosen frames are read; else a pass over all packets lists them without decoding (2,000 times real time). Frames
    that cannot be decoded are left out; pixels are taken as square. Two frames never share a millisecond. Whatever is
    read has been read before the first frame is given.
    Raises DecodeError: pixel_limit by the header; no_frames if there is not one readable key frame.
    """
    file = as_file(data)
    size_bytes = file.seek(0, io.SEEK_END)
    with _open(file) as container:
        stream = _video_stream(container)
        _refuse_pixels(stream.codec_context.width, stream.codec_context.height, max_pixels)
        times = _indexed_times(stream, size_bytes=size_bytes)
        packets = _sought(container, stream, spread(times, max_frames)) if times else []
        if packets:
            yield from _decoded(stream, packets, times, max_pixels)
            return
        times = sorted({_time(packet) for packet in _key_packets(container, stream)})
    if not times:
        raise DecodeError("no_frames", "there is no key frame")
    with _open(file) as container:
        stream = _video_stream(container)
        packets = _met(container, stream, set(spread(times, max_frames)))
        yield from _decoded(stream, packets, times, max_pixels)


def _decoded(stream: Any, packets: Sequence[Any], times: Sequence[int], max_pixels: int) -> Iterator[tuple[int, Image]]:
    start = stream.start_time if stream.start_time is not None else min(times)
    last_ms = -1
    for packet in packets:
        image = _decode_alone(stream, packet, max_pixels)
        at_ms = max(0, round((_time(packet) - start) * 1000 * float(stream.time_base or 0)))
        if image is not None and at_ms > last_ms:
            last_ms = at_ms
            yield at_ms, image
    if last_ms < 0:
        raise DecodeError("no_frames", f"none of {len(times)} key frames can be decoded")


def spread(times: Sequence[int], n: int) -> list[int]:
    """`n` of the ascending `times`, the nearest to `n` points spread evenly from end to end; all if there are no more.

    With n = 1 the one nearest to the middle.
    """
    if len(times) <= n:
        return list(times)
    first, last = times[0], times[-1]
    chosen: list[int] = []
    low = 0
    for i in range(n):
        target = first + (last - first) * (i / (n - 1) if n > 1 else 0.5)
        nearest = min(range(low, len(times) - (n - 1 - i)), key=lambda j: abs(times[j] - target))
        chosen.append(times[nearest])
        low = nearest + 1
    return chosen


def _open(data: Encoded) -> Any:
    file = as_file(data)
    mime = sniff(file.read(SNIFF_BYTES))
    if mime not in VIDEO_FORMAT:
        raise DecodeError("unsupported_format", f"{mime}, allowed: {', '.join(VIDEO_FORMAT)}")
    file.seek(0)
    try:
        return av.open(file, format=VIDEO_FORMAT[mime], metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as e:
        raise DecodeError("no_frames", f"{mime} cannot be opened: {e}") from e


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise DecodeError("no_frames", "the file holds no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError("no_frames", "the video's codec is not known")
    stream.codec_context.thread_count = 1  # the decode pool is the parallelism
    stream.codec_context.skip_frame = "NONKEY"
    return stream


def _indexed_times(stream: Any, *, size_bytes: int) -> list[int]:
    """Ascending distinct decoding times of the key packets by the container's index, of a cut file those that are in
    it; none where the index does not list every frame (fragmented MP4, Matroska) or there is no index."""
    entries = stream.index_entries
    if not stream.frames or len(entries) != stream.frames:
        return []
    return sorted({e.timestamp for e in entries if e.is_keyframe and e.size and e.pos + e.size <= size_bytes})


def _sought(container: Any, stream: Any, times: Sequence[int]) -> list[Any]:
    """The key packets of these decoding times, each sought in the index; no other packet is read."""
    for other in container.streams:
        if other.index != stream.index:  # discarding non-key packets of ours would make FFmpeg's MP4 times wrong
            other.discard = Discard.all
    found = []
    for time in times:
        try:
            container.seek(time, stream=stream)
            for packet in container.demux(stream):
                if packet.dts is None or packet.dts >= time:
                    found += [packet] if packet.dts == time and packet.is_keyframe else []
                    break
        except av.FFmpegError:
            pass  # this one cannot be read; others may
    return found


def _met(container: Any, stream: Any, times: set[int]) -> list[Any]:
    """The key packets of these presentation times, met on a pass from the start."""
    found: dict[int, Any] = {}
    for packet in _key_packets(container, stream):
        if _time(packet) in times:
            found.setdefault(_time(packet), packet)
            if len(found) == len(times):
                break
    return list(found.values())


def _key_packets(container: Any, stream: Any) -> Iterator[Any]:
    try:
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.size and (packet.pts is not None or packet.dts is not None):
                yield packet
    except av.FFmpegError:
        pass  # cut off: what came before counts


def _time(packet: Any) -> int:
    return int(packet.pts if packet.pts is not None else packet.dts)


def _refuse_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError("pixel_limit", f"{width}x{height} = {width * height} pixels, allowed: {max_pixels}")


def _decode_alone(stream: Any, packet: Any, max_pixels: int) -> Image | None:
    """The picture of one key packet, decoded with nothing before or after it; None if it cannot be."""
    codec = stream.codec_context
    try:
        frames = [*codec.decode(packet), *codec.decode(None)]
    except (av.FFmpegError, EOFError):
        frames = []
    codec.flush_buffers()
    if not frames:
        return None
    _refuse_pixels(frames[0].width, frames[0].height, max_pixels)
    return _upright(frames[0].to_ndarray(format="rgb24"), frames[0].rotation)


def _upright(image: Image, rotation: float) -> Image:
    """`image` turned by the counter-clockwise degrees of its display matrix, in quarters."""
    quarters = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def video_facts(data: Encoded, mime: str) -> MediaFacts:
    """What the container's header says, and the rotation of its first frame. Never raises on what the bytes are."""
    facts = MediaFacts(mime=mime, media_type="video")
    try:
        with _open(data) as container:
            if not container.streams.video:
                return MediaFacts(mime=mime)
            stream = _video_stream(container)
            width, height = stream.codec_context.width, stream.codec_context.height
            if container.duration is not None and container.duration > 0:
                facts = replace(facts, duration_s=container.duration / av.time_base)
            metadata = {**stream.metadata, **container.metadata}
            facts = replace(facts, taken_at=_created(metadata.get("creation_time", "")))
            if width > 0 and height > 0:
                if _quarters(container, stream) % 2:
                    width, height = height, width
                facts = replace(facts, width=width, height=height)
    except Exception:  # FFmpeg's errors, and whatever broken metadata makes Python raise: the decoder will say
        pass
    return facts


def _quarters(container: Any, stream: Any) -> int:
    for n, packet in enumerate(container.demux(stream)):
        if n >= MAX_PROBED_PACKETS:
            return 0
        if packet.is_keyframe and packet.size:
            frames = [*stream.codec_context.decode(packet), *stream.codec_context.decode(None)]
            return round(frames[0].rotation / 90) if frames else 0
    return 0


def _created(text: str) -> datetime | None:
    try:
        created = datetime.fromisoformat(text)
        created = (created if created.tzinfo else created.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return created if created.year > 1970 else None  # an unset QuickTime clock reads 1904 or 1970
