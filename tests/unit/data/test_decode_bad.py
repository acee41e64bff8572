"""Files that cannot be used: each gets a reason of its own, quickly, and none ends the process."""

from __future__ import annotations

import os
import time

import av
import numpy as np
import pytest
from PIL import Image

import sama_data.video_reader
from sama_data.decode import decode_frames
from sama_data.errors import ClipError, DataError
from tests.support.zoo import ZOO


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("beast", ZOO, ids=lambda beast: beast.name)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(tmp_path, beast):
    """Which of them those are, and for what reasons, is a table in docs/data.md; see probe/test_zoo.py."""
    path = tmp_path / beast.name
    beast.make(path)
    began = time.monotonic()
    try:
        assert decode_frames(path).frames.ndim == 4
    except ClipError as error:
        assert error.path == str(path) and str(error) == f"{path}: {error.reason}"
        assert "\n" not in str(error)
        assert isinstance(error, DataError)
    assert time.monotonic() - began < 10.0


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ClipError, match="is not a regular file"):
        decode_frames(tmp_path / "pipe.mp4")


def test_content_decides_what_a_wrong_extension_holds(tmp_path, make_frames, make_video):
    frames = make_frames(5)
    Image.fromarray(frames[0]).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.mp4")
    decoded = decode_frames(tmp_path / "image.mp4")
    np.testing.assert_array_equal(decoded.frames, frames[:1])
    assert decoded.fps is None
    make_video(tmp_path / "clip.mp4", frames).rename(tmp_path / "clip.png")
    assert decode_frames(tmp_path / "clip.png", max_frames=1).frames.shape == (1, 64, 64, 3)
    with pytest.raises(ClipError, match=r"out of range: it is a still image \(1 frame\)"):
        decode_frames(tmp_path / "image.mp4", 3, 5)


def test_an_mp4_that_ends_between_two_frames_is_truncated(tmp_path, make_frames, make_video):
    path = make_video(tmp_path / "a.mp4", make_frames(17), mp4_index_first=True, bf="0")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        end_of_twelfth = packets[11].pos + packets[11].size
    path.write_bytes(path.read_bytes()[:end_of_twelfth])
    with pytest.raises(ClipError, match="is truncated: 12 of its 17 frames can be decoded"):
        decode_frames(path)
    assert len(decode_frames(path, max_frames=12).frames) == 12


def test_a_cut_webm_is_told_by_its_duration(tmp_path, make_frames, make_video):
    path = make_video(tmp_path / "a.webm", make_frames(33), "libvpx-vp9", fps=16)
    assert len(decode_frames(path).frames) == 33
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ClipError, match=r"is truncated|is damaged"):
        decode_frames(path)


def test_a_clip_that_changes_its_size_is_refused(tmp_path, make_frames, make_video):
    # Matroska may be joined byte by byte; its frames then change size.
    first = make_video(tmp_path / "a.ts", make_frames(5, 64, 64)).read_bytes()
    second = make_video(tmp_path / "b.ts", make_frames(5, 96, 64)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(first + second)
    with pytest.raises(ClipError, match=r"changes its size from \(64, 64\) to \(64, 96\) at frame 5"):
        decode_frames(tmp_path / "joined.ts")


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.png", "a.jpg", "a.webp"])
def test_random_damage_gives_frames_or_a_reason(name, tmp_path, make_frames, make_video):
    path = tmp_path / name
    if path.suffix in (".mp4", ".webm"):
        codec = "libx264" if path.suffix == ".mp4" else "libvpx-vp9"
        make_video(path, make_frames(5, 32, 32), codec)
    else:
        Image.fromarray(make_frames(1, 32, 32)[0]).save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    began = time.monotonic()
    for _ in range(120):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 12)):
            damaged[place] = rng.integers(0, 256)
        cut = rng.integers(1, len(content)) if rng.random() < 0.3 else len(content)
        path.write_bytes(bytes(damaged[:cut]))
        try:
            frames = decode_frames(path, max_frames=5).frames
            assert frames.ndim == 4
            assert frames.dtype == np.uint8
            outcomes.add("frames")
        except ClipError as error:
            assert error.reason
            outcomes.add("reason")
    assert "reason" in outcomes
    assert time.monotonic() - began < 60


def test_a_clip_that_is_too_large_is_refused_before_its_memory_is_taken(monkeypatch, tmp_path, make_frames, make_video):
    path = make_video(tmp_path / "a.mp4", make_frames(5, 64, 96))
    monkeypatch.setattr(sama_data.video_reader, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(ClipError, match="is too large: 96x64, at most 6143 pixels"):
        decode_frames(path)
    monkeypatch.setattr(sama_data.video_reader, "MAX_PIXELS", 96 * 64)
    assert len(decode_frames(path).frames) == 5
