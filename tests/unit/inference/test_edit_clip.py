"""Editing one file, around an editor that gives back what it is given."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sama_data.decode import Decoded, decode_frames
from sama_data.errors import ClipError
from sama_data.synth.write import write_clip
from sama_mega.config.errors import ConfigError
from sama_mega.encoders.hash_text import HashTextEncoder
from sama_mega.inference import edit_clip as module
from sama_mega.inference.edit_clip import (
    EditedClip,
    OutputError,
    WrittenEdit,
    checked_edit_prompt,
    edit_clip,
    require_writable,
    write_edit,
)
from sama_mega.inference.editor import SamplingSettings
from sama_mega.inference.load import OpenCheckpoint
from tests.support.clips import turn_mp4

SETTINGS = SamplingSettings(steps=2, guidance=1.0, seed=1)


class EchoEditor:
    """Gives the source back upside down; remembers what it was asked."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.prompts: list[list[str]] = []

    def edit(
        self, sources: torch.Tensor, prompts: list[str], settings: SamplingSettings, *, kind: str, on_step: Any = None
    ) -> torch.Tensor:
        assert settings is SETTINGS
        assert prompts[0].startswith("[Image edit]" if kind == "image" else "[Video edit]")
        self.shapes.append(tuple(sources.shape))
        self.prompts.append(list(prompts))
        return -sources


def make_opened(*buckets: tuple[int, int]) -> tuple[OpenCheckpoint, EchoEditor]:
    editor = EchoEditor()
    data = SimpleNamespace(buckets=buckets or ((32, 32), (48, 32)), max_frames=17, decode_threads=1)
    encoders = SimpleNamespace(text=HashTextEncoder(6, 16))
    opened = SimpleNamespace(recipe=SimpleNamespace(data=data), encoders=encoders, editor=editor)
    return opened, editor  # type: ignore[return-value]


def make_frames(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    time, line, column = np.ogrid[:count, :height, :width]
    wave = np.sin((line + column) / 9 + time / 3)
    return np.repeat(np.round(127.5 + 100 * wave).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    def make(count: int, height: int = 32, width: int = 32, fps: int = 12) -> Path:
        path = tmp_path / f"clip-{count}.mp4"
        write_clip(path, make_frames(count, height, width), fps)
        return path

    return make


# --- length, size and rate ------------------------------------------------------------------------


def test_the_start_of_a_longer_clip_is_edited_where_that_is_asked_for(make_clip: Callable[..., Path]) -> None:
    opened, editor = make_opened()
    path = make_clip(9)
    clip = edit_clip(opened, path, "flip it", SETTINGS, max_frames=6, cut=True)
    assert np.array_equal(clip.source, decode_frames(path, max_frames=6).frames) and len(clip.edit) == 6
    assert editor.shapes[0][2] == 9 and len(edit_clip(opened, path, "x", SETTINGS, max_frames=9, cut=True).edit) == 9
    with pytest.raises(ConfigError, match="more than --max-frames"):
        edit_clip(opened, path, "flip it", SETTINGS, max_frames=6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 8, 9, 17])
def test_every_frame_comes_back_and_the_model_sees_4k_plus_1(make_clip: Callable[..., Path], count: int) -> None:
    opened, editor = make_opened()
    clip = edit_clip(opened, make_clip(count), "flip it", SETTINGS, max_frames=17)
    assert clip.source.shape == clip.edit.shape == (count, 32, 32, 3)
    assert clip.edit.dtype == np.uint8 and clip.fps == 12
    ((_, _, seen, _, _),) = editor.shapes
    assert seen % 4 == 1 and count <= seen < count + 4
    np.testing.assert_array_equal(clip.edit, 255 - clip.source)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (34, 46), (120, 180), (16, 20)])
def test_a_clip_is_edited_in_its_nearest_bucket_and_written_at_its_own_size(
    make_clip: Callable[..., Path], tmp_path: Path, height: int, width: int
) -> None:
    opened, editor = make_opened((32, 32), (48, 32), (32, 48))
    path = make_clip(5, height, width)
    stored = decode_frames(path).frames
    clip = edit_clip(opened, path, "flip it", SETTINGS, max_frames=17)
    bucket = (32, 48) if width / height > 1.5**0.5 else (32, 32)
    assert clip.edit.shape == (5, *bucket, 3)
    assert editor.shapes == [(1, 3, 5, *bucket)]
    assert clip.size == (stored.shape[2], stored.shape[1])
    write_edit(clip, tmp_path / "edit.mp4", "flip it")
    frames = decode_frames(tmp_path / "edit.mp4").frames
    assert frames.shape == stored.shape
    # All of the picture is there, at its place: nothing was cropped.
    assert np.abs(frames.astype(int) - (255 - stored.astype(int))).mean() < 8


def test_a_clip_that_is_turned_upright_stays_upright(tmp_path: Path) -> None:
    lying = tmp_path / "lying.mp4"
    write_clip(lying, make_frames(5, 32, 48), 12)
    turned = tmp_path / "turned.mp4"
    turn_mp4(lying, turned, (0, 0x10000, -0x10000, 0))
    upright = decode_frames(turned).frames
    assert upright.shape == (5, 48, 32, 3)
    opened, editor = make_opened((48, 32), (32, 48))
    clip = edit_clip(opened, turned, "flip it", SETTINGS, max_frames=17)
    assert editor.shapes == [(1, 3, 5, 48, 32)] and clip.size == (32, 48)
    write_edit(clip, tmp_path / "edit.mp4", "flip it")
    frames = decode_frames(tmp_path / "edit.mp4").frames
    assert np.abs(frames.astype(int) - (255 - upright.astype(int))).mean() < 4


def test_a_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(make_frames(1)[0]).save(path)
    opened, editor = make_opened()
    clip = edit_clip(opened, path, "flip it", SETTINGS, max_frames=17)
    assert clip.edit.shape == (1, 32, 32, 3) and clip.fps > 0
    assert editor.prompts == [["[Image edit] flip it"]]
    write_edit(clip, tmp_path / "edit.mp4", "flip it")
    assert decode_frames(tmp_path / "edit.mp4").frames.shape == (1, 32, 32, 3)
    assert (tmp_path / "edit.png").is_file()


def test_what_is_decoded_says_whether_it_is_a_picture(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    picture, clip, loop = tmp_path / "picture.mp4", tmp_path / "clip.png", tmp_path / "loop.gif"
    Image.fromarray(make_frames(1)[0]).save(picture, format="PNG")
    make_clip(1).rename(clip)
    frames = [Image.fromarray(frame) for frame in make_frames(5)]
    frames[0].save(loop, save_all=True, append_images=frames[1:], duration=80)
    for path, prefix in ((picture, "[Image edit]"), (clip, "[Video edit]"), (loop, "[Video edit]")):
        opened, editor = make_opened()
        edit_clip(opened, path, "flip it", SETTINGS, max_frames=17)
        assert editor.prompts == [[f"{prefix} flip it"]]


def test_a_clip_that_names_no_rate_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode_frames", lambda *_: Decoded(make_frames(5), None))
    opened, editor = make_opened()
    edit_clip(opened, Path("clip.mkv"), "flip it", SETTINGS, max_frames=17)
    assert editor.prompts == [["[Video edit] flip it"]]


@pytest.mark.parametrize(("count", "limit"), [(6, 5), (2, 1), (17, 16)])
def test_a_longer_clip_is_refused(make_clip: Callable[..., Path], count: int, limit: int) -> None:
    opened, editor = make_opened()
    path = make_clip(count)
    with pytest.raises(ConfigError, match=rf"more than --max-frames \({limit}\)") as caught:
        edit_clip(opened, path, "flip it", SETTINGS, max_frames=limit)
    assert str(path) in str(caught.value) and editor.shapes == []
    assert len(edit_clip(opened, path, "flip it", SETTINGS, max_frames=count).edit) == count


@pytest.mark.parametrize("content", [None, b"", b"no video at all" * 20])
def test_a_file_that_is_no_clip_is_a_clip_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClipError, match=str(path)):
        edit_clip(make_opened()[0], path, "flip it", SETTINGS, max_frames=17)


def test_a_picture_that_could_not_be_written_is_refused_before_it_is_edited(tmp_path: Path) -> None:
    opened, editor = make_opened()
    Image.new("RGB", (16400, 32)).save(tmp_path / "long.png")
    with pytest.raises(ClipError, match=r"long\.png: has 16400x32 pixels, and an edit is written with 16,384"):
        edit_clip(opened, tmp_path / "long.png", "flip it", SETTINGS, max_frames=17)
    assert editor.shapes == []


# --- prompts --------------------------------------------------------------------------------------


def test_the_prompt_is_prefix_and_instruction(make_clip: Callable[..., Path]) -> None:
    opened, editor = make_opened()
    edit_clip(opened, make_clip(1), "  Make it red.  ", SETTINGS, max_frames=17)
    assert editor.prompts == [["[Video edit] Make it red."]]


def test_a_prompt_just_fits_or_is_refused() -> None:
    text = HashTextEncoder(6, 16)
    assert checked_edit_prompt("image", "one two three four", text) == "[Image edit] one two three four"
    with pytest.raises(ConfigError, match=r"7 tokens with its prefix; the model reads 6: shorten it"):
        checked_edit_prompt("image", "one two three four five", text)


@pytest.mark.parametrize("instruction", ["", "   ", "\n\t"])
def test_an_empty_instruction_is_refused(instruction: str) -> None:
    with pytest.raises(ConfigError, match="instruction is empty: say what to change"):
        checked_edit_prompt("video", instruction, HashTextEncoder(6, 16))


# --- writing --------------------------------------------------------------------------------------


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "edit.mp4")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "edit.mp4").write_text("an older edit")
    require_writable(tmp_path / "edit.mp4")
    assert (tmp_path / "edit.mp4").read_text() == "an older edit"


def test_a_missing_folder_is_made_when_there_is_an_edit_to_write(tmp_path: Path) -> None:
    require_writable(tmp_path / "much/deeper/edit.mp4")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for path, words in (
        (tmp_path / "edit.avi", "must end in .mp4"),
        (tmp_path / "file" / "edit.mp4", "cannot be written: .*choose another folder"),
        (tmp_path / "file" / "deeper" / "edit.mp4", "cannot be written: .*choose another folder"),
        (tmp_path / "folder.mp4", "is a folder"),
    ):
        with pytest.raises(OutputError, match=words) as caught:
            require_writable(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_ranks_may_look_at_the_same_place_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rank makes a file that another one would make or take away as well."""
    opened: list[str] = []
    open_file = os.open

    def noting(path: Any, flags: int, *others: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            opened.append(str(path))
        return open_file(path, flags, *others, **named)

    # As on a network disk, where what is made has a name.
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)
    monkeypatch.setattr(os, "open", noting)
    for _ in range(8):
        require_writable(tmp_path / "edit.mp4")
    assert len(set(opened)) == 8
    assert list(tmp_path.iterdir()) == []


def test_an_edit_is_a_clip_and_a_picture(tmp_path: Path) -> None:
    source = make_frames(6)
    written = write_edit(EditedClip(source, 255 - source, 12.0), tmp_path / "deep" / "edit.mp4", "flip it")
    picture = tmp_path / "deep" / "edit.png"
    assert written == WrittenEdit(picture, None)
    decoded = decode_frames(tmp_path / "deep" / "edit.mp4")
    assert decoded.fps == 12 and decoded.frames.shape == (6, 32, 32, 3)
    assert np.abs(decoded.frames.astype(int) - (255 - source)).mean() < 4
    with Image.open(picture) as opened:
        assert opened.format == "PNG" and opened.width > opened.height > 64
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["edit.mp4", "edit.png"]


@pytest.mark.parametrize("rate", [24000 / 1001, 16.0, 29.97, 1.0])
def test_the_rate_is_kept(tmp_path: Path, rate: float) -> None:
    write_edit(EditedClip(make_frames(5), make_frames(5), rate), tmp_path / "edit.mp4", "x")
    assert decode_frames(tmp_path / "edit.mp4").fps == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("writer", ["write_video", "before_after_picture"])
def test_a_full_disk_is_an_output_error(tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, writer, full)
    clip = EditedClip(make_frames(5), make_frames(5), 12.0)
    with pytest.raises(OutputError, match=r"edit\.mp4 cannot be written: No space left on device") as caught:
        write_edit(clip, tmp_path / "edit.mp4", "x")
    assert "\n" not in str(caught.value)


def test_an_edit_never_replaces_its_source(tmp_path: Path) -> None:
    source = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(source)
    (tmp_path / "link.png").symlink_to(source)
    for out in ("cat.mp4", "link.mp4"):
        with pytest.raises(OutputError, match="would replace"):
            require_writable(tmp_path / out, source)
    (tmp_path / "there").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"frames")
    with pytest.raises(OutputError, match="would replace"):
        require_writable(tmp_path / "there" / ".." / "clip.mp4", tmp_path / "clip.mp4")
    require_writable(tmp_path / "edit.mp4", source)
    require_writable(tmp_path / "cat.mp4", tmp_path / "cat.jpg")
