"""Key frames of videos that are made here, whole, turned, cut and broken."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import av
import numpy as np
import pytest

from featurizers.decode import DecodeError
from featurizers.probe import probe
from featurizers.spec import Image
from featurizers.video import key_frames, spread

LIMIT = 10_000_000


def clip(
    n_frames: int = 30,
    *,
    kind: str = "mp4",
    codec: str = "libx264",
    gop: int = 5,
    rotation: int = 0,
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """Ten frames a second, frame i grey at level 8 i, the left half with full red."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind, options=options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = "yuvj420p" if codec == "mjpeg" else "yuv420p", gop
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(n_frames):
            pixels = np.full((size[1], size[0], 3), 8 * i % 256, np.uint8)
            pixels[:, : size[0] // 2, 0] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def decoded(data: bytes, max_frames: int = 100) -> list[tuple[int, Image]]:
    return list(key_frames(data, max_frames=max_frames, max_pixels=LIMIT))


@pytest.mark.parametrize(
    "kind, codec",
    [
        *[(kind, "libx264") for kind in ("mp4", "mov", "matroska", "mpegts")],
        *[("mp4", "libx265"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("avi", "mjpeg"), ("flv", "flv")],
    ],
)
def test_every_key_frame_comes_with_its_time_and_its_pixels(kind: str, codec: str) -> None:
    frames = decoded(clip(kind=kind, codec=codec, gop=1 if codec == "mjpeg" else 5))
    times = [at_ms for at_ms, _ in frames]
    assert times == sorted(set(times))
    assert times[0] == 0
    assert len(times) >= 6
    for at_ms, image in frames:
        assert image.shape == (48, 64, 3)
        assert abs(int(image[24, 50, 1]) - 8 * (at_ms // 100) % 256) <= 8
        assert image[24, 10, 0] > 200


def index_in_front(data: bytes, tmp_path: Path) -> bytes:
    """The same clip with its index before its frames; FFmpeg opens the file again for that, so it is one."""
    path = tmp_path / "clip.mp4"
    with av.open(io.BytesIO(data)) as there, av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(there.streams.video[0])
        for packet in there.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_a_turned_video_is_turned_upright_and_probed_upright(rotation: int) -> None:
    data = clip(rotation=rotation)
    (_, image), *_ = decoded(data)
    flat, _ = decoded(clip())[0][1], None
    assert np.array_equal(image, np.rot90(flat, rotation // 90))
    facts = probe(data)
    assert (facts.height, facts.width) == image.shape[:2]


@pytest.mark.parametrize("max_frames, expected", [(1, [1000]), (2, [0, 2500]), (3, [0, 1000, 2500]), (99, None)])
def test_the_frames_taken_are_spread_over_the_whole_video(max_frames: int, expected: list[int] | None) -> None:
    times = [at_ms for at_ms, _ in decoded(clip(), max_frames)]
    assert times == (expected or [0, 500, 1000, 1500, 2000, 2500])


def test_times_are_chosen_nearest_to_evenly_spaced_points_each_at_most_once() -> None:
    assert spread([0, 1, 2, 3, 100], 3) == [0, 3, 100]
    assert spread([0, 98, 99, 100], 3) == [0, 98, 100]
    assert spread([7], 3) == [7]
    assert spread(range(0, 1001, 10), 5) == [0, 250, 500, 750, 1000]
    assert spread([0, 40, 100], 1) == [40]


@pytest.mark.parametrize("index, kept", [("in parts", 0.75), ("in front", 0.9)])
def test_a_cut_video_keeps_the_key_frames_before_the_cut(index: str, kept: float, tmp_path: Path) -> None:
    if index == "in parts":
        data = clip(options={"movflags": "frag_keyframe+empty_moov"})
    else:
        data = index_in_front(clip(), tmp_path)
    whole, cut_data = decoded(data), data[: int(len(data) * kept)]
    cut = decoded(cut_data)
    assert 1 < len(cut) < len(whole)
    assert [at_ms for at_ms, _ in decoded(cut_data, 2)] == [0, cut[-1][0]]  # spread over what is there
    for (at_ms, image), (whole_ms, whole_image) in zip(cut, whole, strict=False):
        assert at_ms == whole_ms
        assert np.array_equal(image, whole_image)


def test_a_video_without_one_readable_key_frame_is_no_frames() -> None:
    data = clip()  # its index is at the end
    for broken in (data[: len(data) // 2], data[:40], b"\0\0\0\x18ftypisom" + b"\0" * 100):
        with pytest.raises(DecodeError) as caught:
            decoded(broken)
        assert caught.value.code == "no_frames"


def test_a_file_with_sound_only_is_no_frames_and_no_video() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DecodeError) as caught:
        decoded(out.getvalue())
    assert caught.value.code == "no_frames"
    assert probe(out.getvalue()).media_type is None


def test_a_video_of_more_pixels_than_allowed_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"pixel_limit: 64x48 = 3072 pixels, allowed: 3071"):
        list(key_frames(clip(2), max_frames=1, max_pixels=3071))


@pytest.mark.parametrize("playlist", [b"#EXTM3U\n#EXT-X-VERSION:3\n/etc/hostname\n", b"ffconcat version 1.0\nfile x\n"])
def test_a_playlist_never_reaches_a_demuxer_that_would_open_what_it_names(playlist: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decoded(playlist)
    assert caught.value.code == "unsupported_format"
    assert probe(playlist).media_type is None


def test_the_header_gives_duration_size_and_time() -> None:
    facts = probe(clip(metadata={"creation_time": "2021-05-06T07:08:09.000000Z"}))
    assert (facts.mime, facts.media_type, facts.width, facts.height) == ("video/mp4", "video", 64, 48)
    assert facts.duration_s == pytest.approx(3.0, abs=0.11)
    assert facts.taken_at == datetime(2021, 5, 6, 7, 8, 9, tzinfo=UTC)


def test_hostile_bytes_raise_nothing_but_a_decode_error_and_make_the_probe_say_less() -> None:
    draw = random.Random(0)
    seeds: Sequence[bytes] = [
        clip(6, options={"movflags": "frag_keyframe+empty_moov"}),
        clip(6, kind="matroska"),
        clip(6, kind="avi", codec="mpeg4"),
    ]
    for data in list(seeds) * 25:
        broken = bytearray(data)
        for _ in range(draw.randint(1, 60)):
            broken[draw.randrange(12, len(broken))] = draw.randrange(256)
        probe(bytes(broken))
        try:
            for at_ms, image in decoded(bytes(broken)):
                assert at_ms >= 0
                assert image.dtype == np.uint8
        except DecodeError as e:
            assert e.code in ("no_frames", "pixel_limit", "unsupported_format")
