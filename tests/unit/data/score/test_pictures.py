"""What the judge sees: the right frames, at the right size, as pictures that any server reads."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sama_data.errors import ClipError
from sama_data.media import Media
from sama_data.rows import Row
from sama_data.score.pictures import evenly_spaced, make_exhibit, shown_size
from sama_data.score.settings import JudgeSettings


@given(st.integers(1, 200), st.integers(1, 20))
def test_frames_are_evenly_spaced(num_frames, wanted):
    picked = evenly_spaced(num_frames, wanted)
    assert len(picked) == min(num_frames, wanted)
    assert picked[0] == 0 and (wanted == 1 or picked[-1] == num_frames - 1)
    gaps = np.diff(picked)
    assert (gaps > 0).all() and (len(gaps) == 0 or gaps.max() - gaps.min() <= 1)


def test_some_frames_by_hand():
    assert evenly_spaced(81, 5) == [0, 20, 40, 60, 80]
    assert evenly_spaced(17, 3) == [0, 8, 16]
    assert evenly_spaced(3, 8) == [0, 1, 2]


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(["image", "video"]))
def test_pictures_are_scaled_down_and_keep_their_shape(width, height, kind):
    settings = JudgeSettings(video_side=320, image_side=640)
    side = 320 if kind == "video" else 640
    shown = shown_size(width, height, kind, settings)
    assert max(shown) <= max(side, 1) or shown == (width, height)
    if max(width, height) <= side:
        assert shown == (width, height)
    else:
        assert max(shown) == side
        scale = side / max(width, height)
        assert abs(shown[0] - width * scale) <= 1 and abs(shown[1] - height * scale) <= 1


def make_row(kind: str, source: Path, target: Path, **more: object) -> Row:
    return Row(0, "name", kind, Media(source), Media(target), "Make it red.", **more)  # type: ignore[arg-type]


def opened(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_frames_shown_are_those_of_the_clip(tmp_path, make_video):
    levels = np.arange(20, dtype=np.uint8) * 12
    grey = np.broadcast_to(levels[:, None, None, None], (20, 96, 160, 3))
    source = make_video(tmp_path / "s.mp4", np.ascontiguousarray(grey))
    target = make_video(tmp_path / "t.mp4", np.ascontiguousarray(grey[:, :, ::2]))
    settings = JudgeSettings(num_frames=3, max_frames=9, video_side=80)
    shown = make_exhibit(make_row("video", source, target, frame_start=4), settings)
    for uris, size in ((shown.originals, (80, 48)), (shown.edits, (67, 80))):
        pictures = [opened(uri) for uri in uris]
        assert [picture.size for picture in pictures] == [size] * 3
        # Frames 4, 8 and 12: the first, the middle one and the last of nine.
        seen = [np.asarray(picture, np.float64).mean() for picture in pictures]
        assert np.allclose(seen, levels[[4, 8, 12]], atol=5)
    short = make_exhibit(make_row("video", source, target, frame_start=4, frame_end=6), settings)
    assert len(short.originals) == len(short.edits) == 2


def test_pictures_of_images(tmp_path):
    for name in ("s", "t"):
        Image.new("RGB", (300, 200), (200, 30, 60)).save(tmp_path / f"{name}.png")
    shown = make_exhibit(make_row("image", tmp_path / "s.png", tmp_path / "t.png"), JudgeSettings(image_side=150))
    assert [opened(uri).size for uri in (*shown.originals, *shown.edits)] == [(150, 100)] * 2
    assert np.abs(np.asarray(opened(shown.edits[0]), np.int64) - (200, 30, 60)).max() <= 3


def test_a_clip_that_cannot_be_used_is_named(tmp_path, make_video, make_frames):
    source = make_video(tmp_path / "s.mp4", make_frames(5))
    with pytest.raises(ClipError, match=r"t\.mp4: does not exist"):
        make_exhibit(make_row("video", source, tmp_path / "t.mp4"), JudgeSettings())


def test_clips_of_unequal_length_are_shown_at_the_same_moments(tmp_path, make_video):
    """As training sees them: to the end of the shorter one."""
    levels = np.arange(20, dtype=np.uint8) * 12
    grey = np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (20, 96, 160, 3)))
    long, short = make_video(tmp_path / "s.mp4", grey), make_video(tmp_path / "t.mp4", grey[:9])
    for source, target in ((long, short), (short, long)):
        shown = make_exhibit(make_row("video", source, target), JudgeSettings(num_frames=3))
        for uris in (shown.originals, shown.edits):
            seen = [np.asarray(opened(uri), np.float64).mean() for uri in uris]
            assert np.allclose(seen, levels[[0, 4, 8]], atol=5)
