"""Cuts short clips out of longer ones and makes slide shows, in several containers. Knows no collection.

Encoded on one thread, so that bytes are the same from build to build on one installation.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}
KEY_FRAME_EVERY = 25  # frames; a second at the usual rate, so that short clips have several key frames
SLIDE_PX = (640, 426)
# Display matrices (ISO 14496-12, 8.3.2): clockwise quarter turns as 16.16 fixed point, last column 2.30.
_MATRICES = {
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


def frames(clip: Path, *, start: int, n_frames: int) -> tuple[list[Image.Image], Fraction]:
    """Frames `start` to `start + n_frames` of a clip, counted from 0, and its frame rate."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        decoded = islice(container.decode(stream), start, start + n_frames)
        return [
            Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in decoded
        ], stream.average_rate or Fraction(25)


@contextmanager
def _written(extension: str, *, index_first: bool) -> Iterator[tuple[Any, Path]]:
    """A container on a file, since moving the index to the front reads the file again."""
    options = {"fflags": "+bitexact"}  # no random identifiers, no version of the encoder
    if index_first and extension in (".mp4", ".mov"):
        options["movflags"] = "+faststart"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{extension}"
        with av.open(str(path), "w", format=FORMATS[extension], container_options=options) as container:
            yield container, path


def encode(
    pictures: Sequence[Image.Image], rate: Fraction, extension: str, *, height_px: int = 0, rotation: int = 0
) -> bytes:
    """A silent clip of equally large pictures. rotation: degrees clockwise that players turn it by (MP4 only)."""
    width, height = pictures[0].size
    if height_px:
        width, height = round(width * height_px / height / 2) * 2, height_px
    width, height = width // 2 * 2, height // 2 * 2  # 4:2:0 chroma needs even sides
    with _written(extension, index_first=True) as (container, path):
        stream = container.add_stream(CODECS[extension], rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = KEY_FRAME_EVERY
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        if CODECS[extension] == "libx264":
            stream.codec_context.options = {"crf": "26", "preset": "veryfast"}
        elif CODECS[extension] == "libvpx-vp9":
            stream.codec_context.options = {"crf": "36", "b": "0", "deadline": "realtime", "cpu-used": "8"}
        else:
            stream.codec_context.bit_rate = 1_200_000
        for picture in pictures:
            fitted = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(fitted), format="rgb24")))
        container.mux(stream.encode())
        container.close()
        encoded = path.read_bytes()
    return turned(encoded, rotation) if rotation else encoded


def turned(mp4: bytes, rotation: int) -> bytes:
    """An MP4 with one track whose header tells players to turn it `rotation` degrees clockwise."""
    start = mp4.index(b"tkhd")
    version = mp4[start + 4]
    at = start + 4 + (52 if version == 1 else 40)
    a, b, c, d = (value << 16 for value in _MATRICES[rotation])
    return mp4[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[at + 36 :]


def slides(pictures: Sequence[Image.Image], extension: str, *, seconds: int) -> bytes:
    """A clip that shows each picture for so many whole seconds, at ten frames a second."""
    fitted = [ImageOps.fit(picture.convert("RGB"), SLIDE_PX) for picture in pictures]
    return encode([picture for picture in fitted for _ in range(10 * seconds)], Fraction(10), extension)


def remuxed(clip: bytes, *, index_first: bool) -> bytes:
    """The pictures of a clip as an MP4 whose index comes first or last; a cut loses an index that comes last."""
    source: Any
    with av.open(io.BytesIO(clip)) as source, _written(".mp4", index_first=index_first) as (target, path):
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
        target.close()
        return path.read_bytes()
