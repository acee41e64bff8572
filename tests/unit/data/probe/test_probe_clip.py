"""What a clip is said to be, and that it is decoded with the checks of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sama_data.decode import decode_frames
from sama_data.errors import ClipError
from sama_data.media import Media
from sama_data.probe.clip import ClipFacts, probe_clip
from tests.support.zoo import encode, waves


def write_picture(path: Path, orientation: int, mode: str = "RGB", **options: object) -> Path:
    picture = Image.fromarray(waves(1, 24, 40)[0]).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif, **options)
    return path


def test_a_plain_clip(tmp_path: Path) -> None:
    facts = probe_clip(Media(encode(tmp_path / "a.mp4", waves(9, 32, 48))))
    rate = {"fps": 16.0, "variable_fps": False, "duration_seconds": 9 / 16}
    assert facts == ClipFacts("h264", 48, 32, 0, "yuv420p", 8, 9, 9, **rate)


def test_a_header_that_counts_wrongly_is_not_believed(tmp_path: Path) -> None:
    """Matroska counts no frames, and its times are whole milliseconds."""
    facts = probe_clip(Media(encode(tmp_path / "a.webm", waves(), "libvpx-vp9", **{"cpu-used": "8"})))
    assert (facts.codec, facts.num_frames, facts.fps, facts.variable_fps) == ("vp9", 9, 16.0, False)


@pytest.mark.parametrize(
    ("ticks", "fps", "is_variable"),
    [
        ([1000 * number for number in range(9)], 16.0, False),
        ([1000 * number + 40 * (number % 2) for number in range(9)], 16.0, False),  # sways a little
        ([1000 * number + 1000 * (number > 4) for number in range(9)], 8 / (9000 / 16000), True),  # one is dropped
    ],
)
def test_the_rate_is_told_from_the_frames_times(
    tmp_path: Path, ticks: list[int], fps: float, is_variable: bool
) -> None:
    facts = probe_clip(Media(encode(tmp_path / "a.mp4", waves(), ticks=ticks)))
    assert facts.fps == pytest.approx(fps, abs=6e-4) and facts.variable_fps is is_variable
    assert facts.fps is not None and facts.duration_seconds == pytest.approx(9 / facts.fps, abs=1e-6)


@pytest.mark.parametrize(
    ("start", "end", "most", "num_read", "num_frames"),
    [(0, None, None, 9, 9), (3, None, None, 6, 9), (2, 6, None, 4, None), (0, None, 1, 1, None), (0, 9, None, 9, None)],
)
def test_a_range_is_counted_inside_the_clip(
    tmp_path: Path, start: int, end: int | None, most: int | None, num_read: int, num_frames: int | None
) -> None:
    path = encode(tmp_path / "a.mp4", waves())
    facts = probe_clip(Media(path), start, end, most)
    assert (facts.num_read, facts.num_frames) == (num_read, num_frames)
    assert len(decode_frames(path, start, end, most).frames) == num_read


@pytest.mark.parametrize(("start", "end"), [(9, None), (2, 10)])
def test_a_range_that_the_clip_does_not_have(tmp_path: Path, start: int, end: int | None) -> None:
    path = encode(tmp_path / "a.mp4", waves())
    with pytest.raises(ClipError) as ours:
        probe_clip(Media(path), start, end)
    with pytest.raises(ClipError) as truth:
        decode_frames(path, start, end)
    assert ours.value.reason == truth.value.reason and "out of range" in truth.value.reason


def test_no_frame_behind_the_range_is_decoded(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", waves(17), g="4")
    path.write_bytes(path.read_bytes()[:-20])
    assert probe_clip(Media(path), 0, 9).num_read == 9
    with pytest.raises(ClipError, match=r"is damaged|is truncated"):
        probe_clip(Media(path))


@pytest.mark.parametrize(
    ("name", "mode", "orientation", "expected"),
    [
        ("a.jpg", "RGB", 6, ("mjpeg", 24, 40, 270, "RGB", 8)),
        ("a.jpg", "L", 8, ("mjpeg", 24, 40, 90, "L", 8)),
        ("a.png", "I;16", 3, ("png", 40, 24, 180, "I;16", 16)),
        ("a.webp", "RGB", 1, ("webp", 40, 24, 0, "RGB", 8)),
    ],
)
def test_pictures(tmp_path: Path, name: str, mode: str, orientation: int, expected: tuple[object, ...]) -> None:
    path = write_picture(tmp_path / name, orientation, mode)
    assert probe_clip(Media(path)) == ClipFacts(*expected, num_read=1, num_frames=1)  # type: ignore[arg-type]
    assert decode_frames(path).frames.shape[1:3] == (expected[2], expected[1])


def test_a_part_of_a_file_and_a_remote_one(tmp_path: Path) -> None:
    content = encode(tmp_path / "a.mp4", waves(5)).read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(512) + content + bytes(99))
    assert probe_clip(Media(tmp_path / "a.tar", 512, len(content))) == probe_clip(Media(tmp_path / "a.mp4"))
    assert probe_clip(Media(f"file://{tmp_path}/a.mp4")) == probe_clip(Media(tmp_path / "a.mp4"))
    np.testing.assert_array_equal(decode_frames(Media(tmp_path / "a.tar", 512, len(content))).frames.shape[0], 5)
