"""`edit` with Wan's VAE, UMT5 and SigLIP (tiny ones with random weights) on real clips beside the clone."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sama_data.decode import decode_frames
from tests.support.pretrained_folders import pretrained_encoders, pretrained_weights
from tests.support.tiny_recipe import call_main, recipe_path, tiny_overrides, tiny_world
from tests.support.tones import TONE_HERTZ, add_tone, loudest_hertz, read_sound

# 832x480, 480x832 and 896x448; 21, 49 and 81 frames; 20 and 24 a second.
CLIPS = ("pair00_source.mp4", "pair04_source.mp4", "pair01_source.mp4")
BUCKETS = [[112, 64], [64, 112], [80, 80]]
SOUNDS = {"copied": ("mp4", "aac"), "encoded": ("mkv", "pcm_s16le")}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of stage 1; its encoders are named by a relative path, from a folder that is left afterwards."""
    root = tmp_path_factory.mktemp("real_edits")
    (root / "weights").symlink_to(pretrained_weights(tmp_path_factory))
    changes = pretrained_encoders(Path("weights")) | {"data.buckets": BUCKETS}
    manifest = tiny_world(tmp_path_factory) / "pairs.jsonl"
    with pytest.MonkeyPatch.context() as changed:
        changed.chdir(root)
        assert call_main("train", recipe_path(1), *tiny_overrides(Path("runs/edit"), manifest, 1, changes)) == 0
    return root / "runs/edit"


@pytest.mark.parametrize(("name", "sound"), zip(CLIPS, ("copied", "encoded", "copied"), strict=True))
def test_an_edit_keeps_what_is_no_edit(
    shared_root: Path, run_folder: Path, tmp_path: Path, name: str, sound: str
) -> None:
    ending, codec = SOUNDS[sound]
    source = add_tone(shared_root / "videos/clips" / name, tmp_path / f"source.{ending}", codec)
    truth, out = decode_frames(source), tmp_path / "edit.mp4"
    with redirect_stdout(io.StringIO()) as printed:
        assert call_main("edit", run_folder, source, "make it red", "--out", out, "--steps", 1, "--json") == 0
    report = json.loads(printed.getvalue().splitlines()[-1])
    num_frames, height, width = truth.frames.shape[:3]
    assert (report["frames"], report["width"], report["height"]) == (num_frames, width, height)
    assert report["sound"] == sound
    edit = decode_frames(out)
    assert edit.frames.shape == truth.frames.shape and edit.fps == pytest.approx(truth.fps, rel=1e-4)
    _, rate, start, samples = read_sound(out)
    assert abs(start) < 0.05
    assert loudest_hertz(samples, rate) == pytest.approx(TONE_HERTZ, abs=2)
    with av.open(str(out)) as container:
        seconds = float(container.streams.video[0].duration * container.streams.video[0].time_base)
    assert seconds == pytest.approx(num_frames / edit.fps, abs=0.01)
    assert samples.shape[1] / rate == pytest.approx(seconds, abs=0.1)
    with Image.open(report["picture"]) as picture:
        assert picture.width > 400 and np.asarray(picture).std() > 10
