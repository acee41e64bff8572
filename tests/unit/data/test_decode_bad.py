"""Files that cannot be used: each gets a reason of its own, quickly, and none ends the process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import sama_data.video_reader
from sama_data.decode import decode_frames
from sama_data.errors import ClipError, DataError


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, make_frames, make_video, make_sound) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    good = make_video(folder / "good.mp4", make_frames()).read_bytes()
    index_first = make_video(folder / "index_first.mp4", make_frames(), mp4_index_first=True).read_bytes()
    contents = {
        "empty": b"",
        "text": b"this is a caption, not a video\n" * 40,
        "playlist": b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nfile:good.mp4\n",
        "index cut off": good[: len(good) // 2],
        "frames cut off": index_first[: len(index_first) * 2 // 3],
        "header only": good[:40],
    }
    files = {name: folder / f"{name}.mp4" for name in contents}
    for name, path in files.items():
        path.write_bytes(contents[name])
    damaged = bytearray(index_first)
    middle = index_first.index(b"mdat") + 8 + (len(index_first) - index_first.index(b"mdat")) // 3
    damaged[middle : middle + 300] = bytes(300)
    (folder / "damaged.mp4").write_bytes(bytes(damaged))
    image = folder / "image.png"
    Image.fromarray(make_frames(1)[0]).save(image)
    (folder / "cut.png").write_bytes(image.read_bytes()[:-200])
    (folder / "folder.mp4").mkdir()
    return files | {
        "missing": folder / "missing.mp4",
        "sound": make_sound(folder / "sound.mp4"),
        "damaged": folder / "damaged.mp4",
        "cut image": folder / "cut.png",
        "folder": folder / "folder.mp4",
    }


REASONS = {
    "missing": "does not exist",
    "empty": r"is empty \(0 bytes\)",
    "text": "is neither an image nor a video: its content starts with b'this is a ca'",
    "playlist": "is neither an image nor a video: its content starts with b'#EXTM3U",
    "sound": "has no video stream",
    "index cut off": "cannot be opened: invalid data found",
    "header only": "cannot be opened|has no video stream",
    "frames cut off": r"is truncated: \d+ of its 17 frames|is damaged after frame \d+ of 17",
    "damaged": r"is damaged: frame \d+ has errors|is damaged after frame \d+",
    "cut image": "is a damaged image: image file is truncated",
    "folder": "is not a regular file",
}


@pytest.mark.parametrize("name", REASONS)
def test_each_bad_file_has_its_reason(bad_files, name):
    began = time.monotonic()
    with pytest.raises(ClipError, match=REASONS[name]) as caught:
        decode_frames(bad_files[name])
    assert time.monotonic() - began < 10.0
    assert caught.value.path == str(bad_files[name])
    assert str(caught.value) == f"{bad_files[name]}: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError)


def test_the_main_kinds_of_damage_differ_in_words(bad_files):
    reasons = {}
    for name in (
        "missing",
        "empty",
        "text",
        "sound",
        "index cut off",
        "frames cut off",
        "cut image",
        "folder",
    ):
        with pytest.raises(ClipError) as caught:
            decode_frames(bad_files[name])
        reasons[caught.value.reason] = name
    assert len(reasons) == 8


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
