"""The source's sound in the edit: kept as it is where an mp4 can hold it, else encoded anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from sama_data.decode import decode_frames
from sama_data.synth.write import write_clip
from sama_mega.inference import sound as module
from sama_mega.inference.edit_clip import EditedClip, WrittenEdit, write_edit
from tests.support.tones import TONE_HERTZ, add_tone, loudest_hertz, read_sound

COUNT, FPS = 24, 12


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("silent") / "clip.mp4"
    write_clip(path, np.zeros((COUNT, 32, 48, 3), np.uint8), FPS)
    return path


def edited(source: Path, out: Path) -> WrittenEdit:
    frames = np.full((COUNT, 32, 48, 3), 90, np.uint8)
    written = write_edit(EditedClip(frames, frames, FPS, (48, 32), source), out, "make it grey")
    decoded = decode_frames(out)
    assert decoded.frames.shape == (COUNT, 32, 48, 3) and decoded.fps == FPS
    return written


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


@pytest.mark.parametrize("codec", ["aac", "mp3", "ac3"])
def test_a_sound_that_an_mp4_holds_is_copied(silent: Path, tmp_path: Path, codec: str) -> None:
    source = add_tone(silent, tmp_path / "source.mp4", codec)
    assert edited(source, tmp_path / "edit.mp4") == WrittenEdit(tmp_path / "edit.png", "copied")
    assert packets(tmp_path / "edit.mp4") == packets(source)
    ours, truth = read_sound(tmp_path / "edit.mp4"), read_sound(source)
    assert ours[:2] == truth[:2] and ours[2] == pytest.approx(truth[2], abs=1e-3)
    np.testing.assert_array_equal(ours[3], truth[3])


@pytest.mark.parametrize(
    ("name", "codec", "rate", "written"),
    [
        ("source.mov", "pcm_s16le", 44100, 44100),
        ("source.mkv", "flac", 192000, 48000),
        ("source.mkv", "pcm_s16le", 22050, 22050),
        ("source.ts", "aac", 48000, 48000),
    ],
)
def test_other_sounds_become_aac(silent: Path, tmp_path: Path, name: str, codec: str, rate: int, written: int) -> None:
    source = add_tone(silent, tmp_path / name, codec, rate)
    assert edited(source, tmp_path / "edit.mp4").sound == "encoded"
    found, found_rate, start, samples = read_sound(tmp_path / "edit.mp4")
    assert (found, found_rate) == ("aac", written) and abs(start) < 0.05
    assert samples.shape[0] == 2 and samples.shape[1] / written == pytest.approx(COUNT / FPS, abs=0.06)
    assert loudest_hertz(samples, written) == pytest.approx(TONE_HERTZ, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("name", "codec"), [("source.mp4", "aac"), ("source.mkv", "pcm_s16le")])
def test_a_late_sound_stays_late(silent: Path, tmp_path: Path, name: str, codec: str) -> None:
    source = add_tone(silent, tmp_path / name, codec, start_seconds=0.5)
    edited(source, tmp_path / "edit.mp4")
    assert read_sound(tmp_path / "edit.mp4")[2] == pytest.approx(read_sound(source)[2], abs=0.03)
    assert read_sound(source)[2] == pytest.approx(0.5, abs=0.03)


def test_pictures_and_sounds_lie_side_by_side_in_the_file(silent: Path, tmp_path: Path) -> None:
    """A player that reads from a network need not jump."""
    edited(add_tone(silent, tmp_path / "source.mp4"), tmp_path / "edit.mp4")
    with av.open(str(tmp_path / "edit.mp4")) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    first_half = kinds[: len(kinds) // 2]
    assert 5 <= first_half.count("video") <= COUNT - 5


def test_a_silent_clip_and_a_picture_have_no_sound(silent: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (48, 32)).save(tmp_path / "picture.png")
    for source in (silent, tmp_path / "picture.png"):
        assert edited(source, tmp_path / "edit.mp4") == WrittenEdit(tmp_path / "edit.png", None)
        with av.open(str(tmp_path / "edit.mp4")) as container:
            assert not container.streams.audio


def test_an_edit_may_replace_its_source(silent: Path, tmp_path: Path) -> None:
    source = add_tone(silent, tmp_path / "clip.mp4")
    before = packets(source)
    edited(source, source)
    assert packets(source) == before


def test_minutes_of_sampling_are_not_lost_with_a_sound(
    silent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = add_tone(silent, tmp_path / "source.mp4")

    def refuse(*_: object) -> None:
        raise av.error.InvalidDataError(1094995529, "Invalid data found")

    with monkeypatch.context() as changed:
        changed.setattr(module.Sound, "_copied_packets", refuse)
        written = edited(source, tmp_path / "edit.mp4")
    assert written.sound is None and "Invalid data" in str(written.sound_problem)
    shutil.move(source, tmp_path / "gone.mp4")
    written = edited(source, tmp_path / "edit.mp4")
    assert written.sound is None and str(source) in str(written.sound_problem)
