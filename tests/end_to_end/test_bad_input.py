"""Wrong input through the command line: exit 2, one line that names the thing and the fix, nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sama_data import clip_reader
from sama_data.synth.write import write_clip
from tests.support import worker_jobs
from tests.support.processes import children_of
from tests.support.tiny_recipe import (
    FRAMES,
    SIZE,
    call_main,
    newest_checkpoint,
    read_rows,
    recipe_path,
    run_command,
    tiny_overrides,
    tiny_world,
)
from tests.support.zoo import write_sound

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of two steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert call_main("train", recipe_path(1), *tiny_overrides(folder, world / "pairs.jsonl", 2)) == 0
    return folder


def train(run_folder: Path, manifest: Path, *overrides: str, steps: int = 2, **changes: Any) -> int:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return call_main("train", recipe_path(0), *tiny_overrides(run_folder, manifest, steps, values), *overrides)


def the_only_line(capfd: Capture) -> str:
    """All of stderr, which is one line; stdout is empty."""
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert captured.out == ""
    return captured.err


def the_last_line(capfd: Capture) -> str:
    """The one error line after a log that had begun."""
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], captured.err
    assert "Traceback" not in captured.err and captured.out == "", captured
    return lines[-1]


# --- recipes and layouts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.dimm=64", ["model.dimm is not a recipe key", "nearest is model.dim"]),
        ("optimiser.learning_rate=1", ["nearest is optimizer.learning_rate"]),
        ("train.step=3", ["nearest is train.steps"]),
        ("train.steps=ten", ["train.steps", '"ten"', "must be a whole number"]),
        ("data.max_frames=6", ["data.max_frames (6)", "use 5 or 9"]),
        ("data.buckets=[[40, 32]]", ["data.buckets ([40, 32])", "multiple of 16"]),
        ("train.stage=2", ["train.stage (2)", "must be 0 (pre-training) or 1 (editing)"]),
        ("train.steps", ["section.key=value"]),
        ("data.image_weight=0.0", ["data.image_weight (0.0)", "greater than 0"]),
        ("kernels.ops=triton", ["kernels.ops (triton)", "use auto or reference"]),
        ("encoders.video=wan", ["encoders.video (wan)", "use dct"]),
        ("model.num_heads=3", ["model.num_heads (3)", "must divide model.dim (32)", "use 1, 2, 4"]),
        ("parallel.tensor=3", ["parallel.tensor (3)", "must divide model.num_heads (2)", "use 2"]),
        ("parallel.tensor=2", ["must divide the number of ranks (1)", "start 2 ranks"]),
        ("parallel.data=2", ["parallel.data (2)", "use parallel.data=1 or auto"]),
        ("parallel.pipeline=3", ["parallel.pipeline x interleave (3 x 1 = 3)", "at most model.num_layers (2)"]),
        ("data.manifest=null", ["data.manifest is not set"]),
    ],
)
def test_a_recipe_that_breaks_a_rule(
    world: Path, tmp_path: Path, override: str, words: list[str], capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # as users have it: kernels need a GPU
    assert train(tmp_path / "run", world / "raw.jsonl", override) == 2
    line = the_only_line(capfd)
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_key_in_the_file_is_found_by_its_line(tmp_path: Path, capfd: Capture) -> None:
    lines = recipe_path(0).read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if "videos_per_step" in line)
    lines[place] = lines[place].replace("videos_per_step", "video_per_step")
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    assert call_main("train", tmp_path / "mine.yaml", f"train.run_folder={tmp_path / 'run'}") == 2
    line = the_only_line(capfd)
    assert f"mine.yaml:{place + 1}: data.video_per_step" in line and "nearest is data.videos_per_step" in line
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there_is_named_with_the_nearest(capfd: Capture) -> None:
    assert call_main("train", "recipes/demo_stag0.yaml") == 2
    line = the_only_line(capfd)
    assert "recipes/demo_stag0.yaml: no such recipe" in line and "demo_stage0.yaml" in line.partition(";")[2]


def test_a_model_that_its_encoders_do_not_fit(world: Path, tmp_path: Path, capfd: Capture) -> None:
    changes = {"model__in_channels": 8, "model__out_channels": 8}
    assert train(tmp_path / "run", world / "raw.jsonl", **changes) == 2
    line = the_only_line(capfd)
    assert "model.in_channels (8)" in line and "use 16" in line
    assert list(tmp_path.iterdir()) == []


def test_stage_1_takes_no_raw_clips(world: Path, tmp_path: Path, capfd: Capture) -> None:
    overrides = tiny_overrides(tmp_path / "run", world / "raw.jsonl")
    assert call_main("train", recipe_path(1), *overrides) == 2
    line = the_only_line(capfd)
    assert str(world / "raw.jsonl") in line and "8 rows have no source" in line and "use stage 0" in line
    assert list(tmp_path.iterdir()) == []


# --- manifests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["does not exist", "data.manifest"]),
        ("", ["the manifest is empty"]),
        ("\n \n", ["the manifest is empty"]),
        ("a caption, no JSON\n", ["line 1", "is not JSON", "one object a line"]),
        ('{"video": "a.mp4", "caption": "a"}\n{"video": "b.mp4"}\n', ["line 2", "no 'caption' among its keys: video"]),
        ('{"video": "a.mp4", "capton": "a"}\n', ["line 1", "no 'caption' among its keys: video, capton"]),
        (
            '{"source": "a.png", "target": "b.mp4", "instruction": "x"}\n',
            ["line 1", "both be images or both be videos"],
        ),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, content: str | None, words: list[str], capfd: Capture) -> None:
    manifest = tmp_path / "clips.jsonl"
    if content is not None:
        manifest.write_text(content)
    assert train(tmp_path / "run", manifest) == 2
    line = the_only_line(capfd)
    assert str(manifest) in line
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_a_long_prompt_in_a_manifest_is_cut_and_counted(world: Path, tmp_path: Path, capfd: Capture) -> None:
    rows = [json.loads(line) for line in (world / "raw.jsonl").read_text().splitlines() if "video" in json.loads(line)]
    for number, row in enumerate(rows):
        row["video"] = str(world / row["video"])
        row["caption"] = "word " * (60 if number < 3 else 2)
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capfd.readouterr()
    # 8 clips, 2 a step: an epoch. The prefixes of the pretext tasks count too and are turned off.
    tasks = {"motion__cube": 0.0, "motion__speed": 0.0, "motion__tube": 0.0}
    assert train(tmp_path / "run", tmp_path / "clips.jsonl", "--json", steps=4, **tasks) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["num_truncated_prompts"] == 3
    assert "3 prompts were longer than model.text_length and cut" in captured.err
    assert len(read_rows(tmp_path / "run")) == 4


def test_a_stream_without_rows_is_said_once_in_the_log(world: Path, tmp_path: Path) -> None:
    clip = next(world.glob("videos/*.mp4"))
    (tmp_path / "clips.jsonl").write_text(json.dumps({"video": str(clip), "caption": "a"}) + "\n")
    assert train(tmp_path / "run", tmp_path / "clips.jsonl") == 0
    assert all((row["num_images"], row["num_videos"]) == (0, 2) for row in read_rows(tmp_path / "run"))
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("no image rows: the image stream is dropped") == 1


# --- clips ----------------------------------------------------------------------------------------


BAD_CLIPS: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "missing": (lambda path, clip: None, "does not exist"),
    "empty": (lambda path, clip: path.write_bytes(b""), "is empty (0 bytes)"),
    "cut": (lambda path, clip: path.write_bytes(clip[: len(clip) // 2]), "cannot be opened"),
    "sound": (lambda path, clip: write_sound(path), "has no video stream"),
    "text": (lambda path, clip: path.write_text("a caption, no clip\n" * 9), "is neither an image nor a video"),
    "folder": (lambda path, clip: path.mkdir(), "is not a regular file"),
}


def write_clips(folder: Path, names: list[str], good: int) -> Path:
    """A manifest of good clips, bad ones, and two whose name hides what they are."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    rows = []
    for number in range(good):
        write_clip(folder / f"good{number}.mp4", np.roll(frames, number, axis=2), 8)
        rows.append(f"good{number}.mp4")
    for name in names:
        source = folder / "source.mp4"
        write_clip(source, frames, 8)
        BAD_CLIPS[name][0](folder / f"{name}.mp4", source.read_bytes())
        rows.append(f"{name}.mp4")
    text = "".join(json.dumps({"video": row, "caption": "waves", "sample_id": row[:-4]}) + "\n" for row in rows)
    (folder / "clips.jsonl").write_text(text)
    return folder / "clips.jsonl"


def quarantined(run_folder: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (run_folder / "quarantine.jsonl").read_text().splitlines()]
    assert len({line["sample_id"] for line in lines}) == len(lines)
    return {line["sample_id"]: line for line in lines}


def test_bad_clips_are_listed_and_the_run_goes_on(tmp_path: Path, capfd: Capture) -> None:
    manifest = write_clips(tmp_path, list(BAD_CLIPS), good=8)
    # 14 rows, 4 a step: four steps meet every one of them.
    changes = {"data__images_per_step": 0, "data__videos_per_step": 4, "track__log_sample_ids": True}
    assert train(tmp_path / "run", manifest, "--json", steps=4, **changes) == 0
    captured = capfd.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["steps"], report["samples_seen"], report["num_quarantined"]) == (4, 16, len(BAD_CLIPS))
    assert f"{len(BAD_CLIPS)} samples were skipped: see {tmp_path / 'run/quarantine.jsonl'}" in captured.err
    listed = quarantined(tmp_path / "run")
    assert listed.keys() == BAD_CLIPS.keys()
    for name, (_, reason) in BAD_CLIPS.items():
        assert reason in listed[name]["reason"] and listed[name]["path"] == str(tmp_path / f"{name}.mp4")
        assert 0 <= listed[name]["step"] < 4
    rows = read_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert len(row["sample_ids"]) == row["num_videos"] == 4
        assert all(name.startswith("good") for name in row["sample_ids"])
    assert newest_checkpoint(tmp_path / "run").name == "step-00000004"


def test_clips_that_hang_or_crash_their_decoder_do_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setattr(clip_reader, "load_clip", worker_jobs.load_clip)
    manifest, others = write_clips(tmp_path, [], good=6), children_of(os.getpid())
    with manifest.open("a") as file:
        file.writelines(json.dumps({"video": f"{name}.mp4", "caption": "x"}) + "\n" for name in ("hang", "crash"))
    changes = {"data__images_per_step": 0, "data__videos_per_step": 4, "data__decode_timeout_seconds": 2}
    assert train(tmp_path / "run", manifest, "--json", steps=2, **changes) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (report["steps"], report["samples_seen"], report["num_quarantined"]) == (2, 8, 2)
    assert {name: line["reason"] for name, line in quarantined(tmp_path / "run").items()} == {
        "hang.mp4": "took longer than 2 s to decode (data.decode_timeout_seconds)",
        "crash.mp4": "the decoder died of signal 11 (SIGSEGV) twice",
    }
    assert children_of(os.getpid()) == others


def test_a_clip_under_a_pictures_name_is_used_for_what_it_holds(tmp_path: Path, world: Path) -> None:
    """And a picture under a clip's: content decides."""
    clip, picture = (next(world.glob(pattern)) for pattern in ("videos/*.mp4", "images/*.jpg"))
    (tmp_path / "clip.jpg").write_bytes(clip.read_bytes())
    (tmp_path / "picture.mp4").write_bytes(picture.read_bytes())
    rows = [{"image": "clip.jpg", "caption": "a"}, {"video": "picture.mp4", "caption": "b"}]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(tmp_path / "run", tmp_path / "clips.jsonl") == 0
    assert not (tmp_path / "run/quarantine.jsonl").exists()
    assert all((row["num_images"], row["num_videos"]) == (2, 2) for row in read_rows(tmp_path / "run"))


@pytest.mark.parametrize("prefetch_steps", [0, 2])
def test_only_bad_clips_end_the_run(tmp_path: Path, prefetch_steps: int, capfd: Capture) -> None:
    manifest = write_clips(tmp_path, list(BAD_CLIPS), good=0)
    assert train(tmp_path / "run", manifest, data__images_per_step=0, data__prefetch_steps=prefetch_steps) == 2
    line = the_last_line(capfd)
    assert f"all {len(BAD_CLIPS)} video samples are bad" in line
    assert str(tmp_path / "run/quarantine.jsonl") in line
    assert quarantined(tmp_path / "run").keys() == BAD_CLIPS.keys()
    assert not list((tmp_path / "run/checkpoints").iterdir()) and read_rows(tmp_path / "run") == []


def test_a_run_over_mostly_bad_clips_ends_and_names_the_limit(tmp_path: Path, capfd: Capture) -> None:
    rows = [{"video": f"gone{number}.mp4", "caption": "x"} for number in range(30)]
    manifest = write_clips(tmp_path, [], good=10)
    with manifest.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    changes = {"data__images_per_step": 0, "data__videos_per_step": 8, "data__max_bad_share": 0.4}
    assert train(tmp_path / "run", manifest, steps=20, **changes) == 2
    line = the_last_line(capfd)
    assert "data.max_bad_share (0.4)" in line and "quarantine.jsonl" in line


# --- folders and checkpoints ----------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "run", "deeper/run"])
def test_a_run_folder_that_cannot_be_made(world: Path, tmp_path: Path, below: str, capfd: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below
    assert train(folder, world / "raw.jsonl") == 2
    line = the_only_line(capfd)
    assert f"train.run_folder ({folder}) cannot be written" in line and "choose another folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("exists", "words"), [(False, "does not exist"), (True, "holds no complete checkpoint")])
def test_init_from_without_a_checkpoint(world: Path, tmp_path: Path, exists: bool, words: str, capfd: Capture) -> None:
    start = tmp_path / "start"
    if exists:
        (start / "checkpoints/.saving-step-00000004-life1").mkdir(parents=True)
    assert train(tmp_path / "run", world / "raw.jsonl", checkpoint__init_from=str(start)) == 2
    line = the_only_line(capfd)
    assert f"checkpoint {start} {words}" in line and "give a step-NNNNNNNN folder or a run folder" in line
    assert not (tmp_path / "run").exists()


# --- edit and evaluate ----------------------------------------------------------------------------


def edit(checkpoint: Path, clip: Path, out: Path, instruction: str = "make it red") -> int:
    return call_main("edit", checkpoint, clip, instruction, "--out", out)


@pytest.mark.parametrize(("instruction", "words"), [("word " * 40, "shorten it"), ("  ", "say what to change")])
def test_edit_refuses_a_wrong_instruction(
    trained: Path, world: Path, tmp_path: Path, instruction: str, words: str, capfd: Capture
) -> None:
    clip = next(world.glob("videos/*.mp4"))
    assert edit(trained, clip, tmp_path / "out.mp4", instruction) == 2
    assert words in the_only_line(capfd)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_edit_refuses_a_bad_clip(trained: Path, tmp_path: Path, name: str, capfd: Capture) -> None:
    (tmp_path / "clips").mkdir()
    write_clips(tmp_path / "clips", [name], good=0)
    assert edit(trained, tmp_path / f"clips/{name}.mp4", tmp_path / "out.mp4") == 2
    line = the_only_line(capfd)
    assert BAD_CLIPS[name][1] in line and f"{name}.mp4" in line
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_edit_takes_a_picture_under_a_clips_name(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "clip.mp4")
    assert edit(trained, tmp_path / "clip.mp4", tmp_path / "out.mp4") == 0


def test_edit_refuses_a_place_that_cannot_be_written(
    trained: Path, world: Path, tmp_path: Path, capfd: Capture
) -> None:
    clip = next(world.glob("videos/*.mp4"))
    (tmp_path / "file").write_text("mine")
    for out, words in ((tmp_path / "file/out.mp4", "choose another folder"), (tmp_path / "out.gif", "end in .mp4")):
        assert edit(trained, clip, out) == 2
        line = the_only_line(capfd)
        assert f"--out ({out})" in line and words in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_refused_edit_makes_no_folder(trained: Path, tmp_path: Path) -> None:
    assert edit(trained, tmp_path / "none.mp4", tmp_path / "deep/out.mp4") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["edit", "evaluate"])
def test_a_checkpoint_that_is_not_there(command: str, world: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "empty").mkdir()
    for name, words in (("none", "does not exist"), ("empty", "holds no complete checkpoint")):
        rest = ["synthetic"] if command == "evaluate" else [next(world.glob("videos/*.mp4")), "make it red"]
        out = tmp_path / ("scores" if command == "evaluate" else "out.mp4")
        assert call_main(command, tmp_path / name, *rest, "--out", out) == 2
        assert f"checkpoint {tmp_path / name} {words}" in the_only_line(capfd)
        assert not out.is_file() and not list(out.glob("*"))


@pytest.mark.parametrize("damage", ["recipe.yaml", "state.json", "__0_0.distcp", ".metadata", "metadata.json"])
def test_edit_names_a_damaged_checkpoint(
    trained: Path, world: Path, tmp_path: Path, damage: str, capfd: Capture
) -> None:
    checkpoint = tmp_path / "run/checkpoints/step-00000002"
    checkpoint.mkdir(parents=True)
    for file in newest_checkpoint(trained).iterdir():
        if file.name != damage:
            (checkpoint / file.name).write_bytes(file.read_bytes())
    assert edit(tmp_path / "run", next(world.glob("videos/*.mp4")), tmp_path / "out.mp4") == 2
    assert str(tmp_path / "run") in the_only_line(capfd)
    assert not (tmp_path / "out.mp4").exists()


# --- as a process of its own ----------------------------------------------------------------------


def test_a_real_process_is_as_short(tmp_path: Path, world: Path) -> None:
    """Importing torch and megatron says nothing of its own either."""
    arguments = tiny_overrides(tmp_path / "run", world / "raw.jsonl", 2, {"checkpoint.init_from": str(tmp_path)})
    done = run_command("train", recipe_path(0), *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: checkpoint.init_from: checkpoint {tmp_path} holds no complete")
