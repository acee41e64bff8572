"""Pictures and videos, read back from disk."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sama_mega.inference import pictures
from sama_mega.inference.pictures import before_after_picture, grid_picture, write_video


def _clip(num_frames: int, height: int, width: int) -> np.ndarray:
    """Smooth colours that change with place and time."""
    t, y, x = np.mgrid[0:num_frames, 0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, t * 255 // max(1, num_frames - 1)], -1).astype(np.uint8)


def _read(path: Path) -> tuple[np.ndarray, Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream.average_rate


def _mean_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97)])
def test_a_video_comes_back(tmp_path: Path, height: int, width: int) -> None:
    frames = _clip(17, height, width)
    write_video(tmp_path / "out" / "a.mp4", frames, 24)
    decoded, rate = _read(tmp_path / "out" / "a.mp4")
    assert decoded.shape == (17, 64 + 2 * (height % 2), 96 + 2 * (width % 2), 3)
    assert rate == 24
    assert _mean_error(decoded[:, :height, :width], frames) < 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("fps", "rate"), [(30000 / 1001, Fraction(30000, 1001)), (12.5, Fraction(25, 2)), (8, Fraction(8))]
)
def test_frame_rates_are_kept(tmp_path: Path, fps: float, rate: Fraction) -> None:
    write_video(tmp_path / "a.mp4", _clip(9, 32, 32), fps)
    assert _read(tmp_path / "a.mp4")[1] == rate


def test_one_frame_and_pure_colours(tmp_path: Path) -> None:
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    frames[..., 0] = 255
    write_video(tmp_path / "a.mp4", frames, 8)
    decoded, _ = _read(tmp_path / "a.mp4")
    assert decoded.shape == frames.shape and _mean_error(decoded, frames) < 4


def test_a_failed_write_leaves_the_old_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def fail(temporary: Path, *_: object) -> None:
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pictures, "_encode", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(path, _clip(2, 32, 32), 8)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("frames", "name", "fps", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "a.mp4", 8, "uint8"),
        (np.zeros((8, 8, 3), np.uint8), "a.mp4", 8, "T, H, W, 3"),
        (np.zeros((0, 8, 8, 3), np.uint8), "a.mp4", 8, "not empty"),
        (np.zeros((1, 8, 8, 3), np.uint8), "a.mp4", 0, "fps"),
        (np.zeros((1, 8, 8, 3), np.uint8), "a.webm", 8, r"\.mp4"),
    ],
)
def test_impossible_videos_are_refused(tmp_path: Path, frames: np.ndarray, name: str, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames, fps)
    assert list(tmp_path.iterdir()) == []


def _has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.array(colour)).all(-1)


def test_the_source_row_is_above_the_edit_row(tmp_path: Path) -> None:
    red, blue = (250, 0, 0), (0, 0, 250)
    source = np.broadcast_to(np.array(red, np.uint8), (17, 64, 64, 3))
    edit = np.broadcast_to(np.array(blue, np.uint8), (17, 64, 64, 3))
    before_after_picture(source, edit, tmp_path / "edit.png", "make it blue")
    picture = np.asarray(Image.open(tmp_path / "edit.png"))
    red_rows, blue_rows = (np.nonzero(_has_colour(picture, c).any(1))[0] for c in (red, blue))
    assert red_rows.max() < blue_rows.min()
    along = _has_colour(picture, red)[red_rows[0]].astype(int)
    assert (np.diff(along) == 1).sum() == 8
    assert (picture[: red_rows.min()] < 128).any(), "title and label are written above"


def test_frames_are_the_first_the_last_and_evenly_between(tmp_path: Path) -> None:
    grey = np.arange(0, 250, 10, dtype=np.uint8)
    clip = np.broadcast_to(grey[:, None, None, None], (25, 64, 64, 3))
    grid_picture([("ramp", clip)], tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    line = picture[-20, :, 0]
    shown = [int(value) for value, before in zip(line[1:], line[:-1], strict=True) if value != before]
    assert [value for value in shown if value != 255] == [0, 30, 70, 100, 140, 170, 210, 240]


def test_a_short_clip_and_a_long_title(tmp_path: Path) -> None:
    title = "change the colour of the small circle " * 10
    before_after_picture(_clip(1, 64, 64), _clip(1, 64, 64), tmp_path / "a.png", title)
    assert Image.open(tmp_path / "a.png").height > 400


def test_a_picture_needs_rows_of_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        grid_picture([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="row 'edit'"):
        before_after_picture(_clip(1, 8, 8), np.zeros((1, 8, 8)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
