"""Decoding whole and partial clips: the right frames, colours, sizes and orientation."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import sama_data.decode_video
from sama_data.buckets import Geometry, cover
from sama_data.decode import decode_frames
from sama_data.errors import ClipError
from tests.support.clips import turn_mp4


@pytest.fixture(scope="module")
def clip(tmp_path_factory, make_frames, make_video) -> tuple[Path, np.ndarray]:
    frames = make_frames(17, 64, 96)
    return make_video(tmp_path_factory.mktemp("clips") / "clip.mp4", frames, fps=16), frames


@pytest.mark.parametrize(("codec", "name"), [("libx264", "a.mp4"), ("libvpx-vp9", "a.webm"), ("libx264", "a.avi")])
def test_decodes_codecs_close_to_the_original(codec, name, tmp_path, make_frames, make_video, measure_psnr):
    frames = make_frames(17, 64, 96)
    decoded = decode_frames(make_video(tmp_path / name, frames, codec, fps=24))
    assert decoded.frames.shape == frames.shape
    assert decoded.frames.dtype == np.uint8
    assert decoded.frames.flags.c_contiguous
    assert decoded.fps == pytest.approx(24.0)
    assert measure_psnr(decoded.frames, frames) > 38


@pytest.mark.parametrize(
    ("start", "end", "max_frames", "expected"),
    [
        (0, None, None, (0, 17)),
        (3, 9, None, (3, 9)),
        (5, None, None, (5, 17)),
        (2, 17, 4, (2, 6)),
        (0, None, 99, (0, 17)),
    ],
)
def test_decodes_exactly_the_wanted_frames(clip, start, end, max_frames, expected):
    path, _ = clip
    whole = decode_frames(path).frames
    part = decode_frames(path, start, end, max_frames).frames
    np.testing.assert_array_equal(part, whole[slice(*expected)])


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (17, None, "frame_start 17 is out of range: the clip has 17 frames"),
        (4, 18, "frame_end 18 is out of range"),
    ],
)
def test_a_range_beyond_the_clip_is_refused(clip, start, end, reason):
    with pytest.raises(ClipError, match=reason):
        decode_frames(clip[0], start, end)


def test_a_clip_that_declares_no_length_may_outgrow_the_first_memory(monkeypatch, tmp_path, make_frames, make_video):
    path = make_video(tmp_path / "a.webm", make_frames(17, 32, 32), "libvpx-vp9")
    whole = decode_frames(path).frames
    monkeypatch.setattr(sama_data.decode_video, "_FIRST_CAPACITY", 4)
    np.testing.assert_array_equal(decode_frames(path).frames, whole)
    assert len(whole) == 17


def write_flat_yuv(path: Path, luma: int, blue: int, red: int, colour_space: int, colour_range: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = colour_space
        stream.codec_context.color_range = colour_range
        planes = np.full((48, 32), luma, np.uint8)
        planes[32:40] = blue
        planes[40:] = red
        frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
        frame.colorspace, frame.color_range = colour_space, colour_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rgb_of(luma: int, blue: int, red: int, red_weight: float, blue_weight: float, full_range: bool) -> np.ndarray:
    """ITU-R BT.601 / BT.709 decoding, from the standards' two weights."""
    y = luma / 255 if full_range else (luma - 16) / 219
    cb, cr = ((value - 128) / (255 if full_range else 224) for value in (blue, red))
    r = y + 2 * (1 - red_weight) * cr
    b = y + 2 * (1 - blue_weight) * cb
    g = (y - red_weight * r - blue_weight * b) / (1 - red_weight - blue_weight)
    return np.clip(np.array([r, g, b]) * 255, 0, 255)


@pytest.mark.parametrize(
    ("colour_space", "colour_range", "weights"),
    [
        (1, 1, (0.2126, 0.0722)),  # BT.709, limited
        (6, 1, (0.299, 0.114)),  # SMPTE 170M = BT.601
        (2, 0, (0.299, 0.114)),  # no tags
        (1, 2, (0.2126, 0.0722)),  # BT.709, full range
    ],
)
def test_colours_follow_the_streams_tags(tmp_path, colour_space, colour_range, weights):
    yuv = (120, 90, 190)
    path = write_flat_yuv(tmp_path / "flat.mp4", *yuv, colour_space, colour_range)
    pixels = decode_frames(path).frames[0].reshape(-1, 3).astype(float)
    expected = rgb_of(*yuv, *weights, full_range=colour_range == 2)
    np.testing.assert_allclose(pixels.mean(axis=0), expected, atol=2.0)


def test_scales_and_crops_in_the_middle(clip, measure_psnr):
    path, _ = clip
    whole = decode_frames(path).frames
    geometry = cover(96, 64, (32, 32))
    assert (geometry.scaled_width, geometry.left) == (48, 8)
    frames = decode_frames(path, choose_geometry=lambda width, height: geometry).frames
    assert frames.shape == (17, 32, 32, 3)
    for frame, original in zip(frames, whole, strict=True):
        scaled = Image.fromarray(original).resize((48, 32), Image.Resampling.BICUBIC)
        assert measure_psnr(frame, np.asarray(scaled)[:, 8:40]) > 38


def test_a_crop_alone_does_not_resample(clip):
    path, _ = clip
    frames = decode_frames(path, choose_geometry=lambda width, height: Geometry(96, 64, 10, 4, 64, 48)).frames
    np.testing.assert_array_equal(frames, decode_frames(path).frames[:, 4:52, 10:74])


def test_threads_change_no_pixel(tmp_path, make_frames, make_video):
    path = make_video(tmp_path / "large.mp4", make_frames(9, 256, 320), preset="ultrafast")
    one = decode_frames(path, threads=1).frames
    np.testing.assert_array_equal(decode_frames(path, threads=2).frames, one)


@pytest.mark.parametrize(("matrix", "quarter_turns"), [((0, 0x10000, -0x10000, 0), -1), ((0, -0x10000, 0x10000, 0), 1)])
def test_a_rotation_tag_is_applied(clip, tmp_path, matrix, quarter_turns):
    path, _ = clip
    turn_mp4(path, tmp_path / "turned.mp4", matrix)
    upright = np.rot90(decode_frames(path).frames, quarter_turns, axes=(1, 2))
    np.testing.assert_array_equal(decode_frames(tmp_path / "turned.mp4").frames, upright)
    seen = []

    def choose(width: int, height: int) -> Geometry:
        seen.append((width, height))
        return Geometry(width, height, 0, 8, 64, 80)

    cropped = decode_frames(tmp_path / "turned.mp4", choose_geometry=choose).frames
    assert seen == [(64, 96)]
    np.testing.assert_array_equal(cropped, upright[:, 8:88])


def test_damage_behind_the_wanted_frames_does_not_matter(tmp_path, make_frames, make_video):
    path = make_video(tmp_path / "a.mp4", make_frames(33, 64, 64), mp4_index_first=True, g="8", bf="0")
    whole = decode_frames(path).frames
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.75)])
    np.testing.assert_array_equal(decode_frames(path, max_frames=9).frames, whole[:9])
    with pytest.raises(ClipError, match=r"is truncated: \d+ of its 33 frames|is damaged after frame \d+ of 33"):
        decode_frames(path)


def test_real_clips(shared_root):
    paths = sorted((shared_root / "videos" / "clips").glob("*.mp4"))[:3]
    for path in paths:
        decoded = decode_frames(path, max_frames=5)
        assert decoded.frames.shape[0] == 5
        assert {decoded.frames.shape[1], decoded.frames.shape[2]} in ({480, 832}, {896, 448})
        assert decoded.frames.std() > 10
        assert decoded.fps in (16.0, 20.0, 24.0)
