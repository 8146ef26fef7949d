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

from featurizers.decode import DecodeError
from featurizers.probe import SNIFF_BYTES, VIDEO_FORMAT, MediaFacts, sniff
from featurizers.spec import Image

MAX_PROBED_PACKETS = 64  # read for the first frame, whose side data alone states the rotation


def key_frames(data: bytes, *, max_frames: int, max_pixels: int) -> Iterator[tuple[int, Image]]:
    """At most `max_frames` key frames, spread evenly in time: (milliseconds since the start, upright RGB), ascending.

    A first pass lists the key packets without decoding (2,000 times real time), the second decodes the chosen ones.
    Frames that cannot be decoded are left out; pixels are taken as square. Two frames never share a millisecond.
    Raises DecodeError: pixel_limit by the header; no_frames if there is not one readable key frame.
    """
    times = _key_times(data, max_pixels=max_pixels)
    chosen = set(spread(times, max_frames))
    last_ms = -1
    with _open(data) as container:
        stream = _video_stream(container)
        start = stream.start_time if stream.start_time is not None else min(times)
        try:
            for packet in container.demux(stream):
                at = packet.pts if packet.pts is not None else packet.dts
                if at not in chosen or not packet.is_keyframe:
                    continue
                chosen.discard(at)
                image = _decode_alone(stream, packet, max_pixels)
                at_ms = max(0, round((at - start) * 1000 * float(stream.time_base or 0)))
                if image is not None and at_ms > last_ms:
                    last_ms = at_ms
                    yield at_ms, image
        except av.FFmpegError:
            pass  # cut off: what was readable has been given
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


def _open(data: bytes) -> Any:
    mime = sniff(data[:SNIFF_BYTES])
    if mime not in VIDEO_FORMAT:
        raise DecodeError("unsupported_format", f"{mime}, allowed: {', '.join(VIDEO_FORMAT)}")
    try:
        return av.open(io.BytesIO(data), format=VIDEO_FORMAT[mime], metadata_errors="ignore")
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


def _key_times(data: bytes, *, max_pixels: int) -> list[int]:
    """Ascending distinct presentation times of the key packets, in the stream's time base."""
    times: set[int] = set()
    with _open(data) as container:
        stream = _video_stream(container)
        _refuse_pixels(stream.codec_context.width, stream.codec_context.height, max_pixels)
        try:
            for packet in container.demux(stream):
                at = packet.pts if packet.pts is not None else packet.dts
                if packet.is_keyframe and packet.size and at is not None:
                    times.add(at)
        except av.FFmpegError:
            pass  # cut off: what came before counts
    if not times:
        raise DecodeError("no_frames", "there is no key frame")
    return sorted(times)


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


def video_facts(data: bytes, mime: str) -> MediaFacts:
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
