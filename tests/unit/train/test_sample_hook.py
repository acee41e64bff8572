"""Sampling during a run: which clips, prepared how, and what happens to those that fail; around a recording editor."""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sama_data.decode import decode_frames
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader
from sama_data.manifest import load_manifest, write_jsonl
from sama_kernels.pretext import pretext
from sama_mega.config.schema import Recipe
from sama_mega.inference.editor import EditNotFiniteError
from sama_mega.train.hooks import sample as module
from sama_mega.train.hooks.sample import MAX_SAMPLING_STEPS, SampleHook
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.stop import StopRequest
from tests.support.tiny_recipe import FPS, SIZE, alone, tiny_recipe, tiny_world

WIDE = 13  # frames: enough for every pretext task
MOTION = {"motion.none": 0.0, "motion.cube": 1.0, "motion.speed": 1.0, "motion.tube": 1.0}


class RecordingEditor:
    """Notes what it is asked and gives back a grey clip of the length asked for."""

    def __init__(self, *_: object) -> None:
        self.calls: list[tuple[torch.Tensor, list[str], Any]] = []

    def edit(
        self, sources: torch.Tensor, prompts: list[str], settings: Any, *, kind: str, num_frames: int
    ) -> torch.Tensor:
        self.calls.append((sources, prompts, settings))
        return torch.zeros(1, 3, num_frames, *sources.shape[-2:])


class Sampler:
    """A hook, the weights it samples with, and its run."""

    def __init__(self, recipe: Recipe, manifest: Path, context: Any) -> None:
        self.weights: list[str] = []
        self.stop = StopRequest()
        optimizer = SimpleNamespace(temporary_weights=self._temporary_weights)
        average = SimpleNamespace(values="averages")
        state: Any = SimpleNamespace(model=SimpleNamespace(module=None), optimizer=optimizer, average=average)
        self.hook = SampleHook(recipe, load_manifest(manifest), None, state, context, self.stop)  # type: ignore[arg-type]
        self.run: Any = SimpleNamespace(
            recipe=recipe,
            folder=RunFolder.create(recipe.train.run_folder),
            is_main=context.is_first_rank,
            total_steps=recipe.train.steps,
        )

    @contextmanager
    def _temporary_weights(self, values: str) -> Iterator[None]:
        self.weights.append(values)
        yield
        self.weights.append("own")

    def step(self, step: int) -> list[str]:
        """Names of the files in the samples' folder afterwards."""
        report: Any = SimpleNamespace(step=step, files=[])
        self.hook.on_step_end(self.run, report)
        self.files = sorted(path.name for path in report.files)
        return sorted(path.name for path in self.run.folder.samples.iterdir())

    @property
    def calls(self) -> list[tuple[torch.Tensor, list[str], Any]]:
        return self.hook._editor.calls  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


@pytest.fixture
def long_world(tmp_path: Path) -> Path:
    """Raw clips, an edited clip, an image pair and a captioned image, long enough for every task."""
    from PIL import Image

    from sama_data.synth.write import write_clip

    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(5):
        write_clip(tmp_path / f"{number}.mp4", rng.integers(0, 256, (WIDE, SIZE, SIZE, 3), dtype=np.uint8), FPS)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append({"video": f"{number}.mp4", "caption": f"Noise {number}."})
    rows.append({"source": "0.mp4", "target": "4.mp4", "instruction": "Change the noise.", "sample_id": "edit"})
    rows.append({"source": "0.png", "target": "1.png", "instruction": "Change it."})
    rows.append({"image": "2.png", "caption": "Still noise."})
    write_jsonl(rows, tmp_path / "mixed.jsonl")
    return tmp_path / "mixed.jsonl"


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setattr(module, "Editor", RecordingEditor)
    with ExitStack() as stack:

        def make(manifest: Path, **changes: Any) -> Sampler:
            dotted = {key.replace("__", "."): value for key, value in changes.items()}
            recipe = tiny_recipe(0, tmp_path / "run", manifest, 4, {"train.num_samples": 2} | dotted)
            return Sampler(recipe, manifest, stack.enter_context(alone(recipe)))

        yield make


def test_samples_are_prepared_as_training_prepares_them(sampler: Any, long_world: Path, tmp_path: Path) -> None:
    """The loader's own sample of each row's first epoch, and its plan applied."""
    changes = MOTION | {"train.num_samples": 8, "data.max_frames": WIDE, "train.seed": 1}
    looked = sampler(long_world, **changes)
    recipe = looked.run.recipe
    looked.step(4)
    settings = LoaderSettings(2, 6, 1, recipe.data.buckets, WIDE, recipe.motion)
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    drawn = SampleLoader(load_manifest(long_world), settings, 0, 1, quarantine).step(0).samples
    assert sorted(one.index for one in drawn) == list(range(8)) and {one.epoch for one in drawn} == {0}
    assert {one.task for one in drawn} == {"none", "edit", "cube", "speed", "tube"}
    for one, (source, prompts, _) in zip(sorted(drawn, key=lambda one: one.index), looked.calls, strict=True):
        assert prompts == [one.prompt]
        truth = pretext(torch.from_numpy(one.source_frames), one.plan.frame_indices, one.plan.tube_order)
        assert torch.equal(source[0], truth)


def test_a_run_that_is_told_to_stop_begins_no_further_clip(
    sampler: Any, world: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = sampler(world / "pairs.jsonl")
    edit = RecordingEditor.edit

    def edit_as_the_signal_comes(*arguments: Any, **options: Any) -> torch.Tensor:
        looked.stop.request(signal.SIGUSR1)
        return edit(*arguments, **options)

    monkeypatch.setattr(RecordingEditor, "edit", edit_as_the_signal_comes)
    with caplog.at_level(logging.INFO):
        assert looked.step(4) == ["step-00000004-0.mp4", "step-00000004-0.png"]
    assert "samples of step 4: 1 of 2 clips, the run is told to stop" in caplog.messages
    assert looked.weights == ["averages", "own"]


def test_an_edit_that_is_not_finite_is_left_out_and_ends_nothing(
    sampler: Any, world: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(*_: Any, **__: Any) -> torch.Tensor:
        raise EditNotFiniteError("the model's edit is not finite")

    monkeypatch.setattr(RecordingEditor, "edit", diverged)
    looked = sampler(world / "pairs.jsonl")
    assert looked.step(4) == []
    assert caplog.messages[0] == "sample step-00000004-0 is left out: the model's edit is not finite"


def test_pictures_and_clips_are_written_when_due(sampler: Any, world: Path) -> None:
    looked = sampler(world / "pairs.jsonl", train__sample_every=2)
    assert looked.step(1) == [] and looked.weights == []
    names = [f"step-00000002-{number}.{ending}" for number in (0, 1) for ending in ("mp4", "png")]
    assert looked.step(2) == names == looked.files
    assert looked.weights == ["averages", "own"]
    assert decode_frames(looked.run.folder.samples / "step-00000002-0.mp4").fps == FPS
    assert looked.step(3) == names and looked.files == []
    assert len(looked.step(4)) == 8


def test_after_the_last_step_there_are_samples_anyway(sampler: Any, world: Path) -> None:
    looked = sampler(world / "pairs.jsonl")
    assert looked.step(2) == []
    assert len(looked.step(4)) == 4


def test_no_samples_are_wanted(sampler: Any, world: Path) -> None:
    looked = sampler(world / "pairs.jsonl", train__num_samples=0)
    assert looked.step(4) == [] and looked.weights == []


def test_sampling_is_bounded(sampler: Any, world: Path) -> None:
    looked = sampler(world / "pairs.jsonl", diffusion__sampling_steps=50, diffusion__guidance=3.0)
    looked.step(4)
    assert {(settings.steps, settings.guidance) for _, _, settings in looked.calls} == {(MAX_SAMPLING_STEPS, 3.0)}


def test_no_clip_is_begun_that_would_take_too_long(
    sampler: Any, world: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 1000, 20))  # of every look at the clock
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    looked = sampler(world / "pairs.jsonl", train__num_samples=4, train__sample_seconds=100)
    with caplog.at_level(logging.INFO, logger=module.__name__):
        looked.step(4)
    assert len(looked.calls) == 2
    assert caplog.messages == [
        "samples of step 4: 2 of 4 clips, the rest would take longer than train.sample_seconds (100)"
    ]


def test_one_clip_is_sampled_however_short_the_time(sampler: Any, world: Path) -> None:
    looked = sampler(world / "pairs.jsonl", train__sample_seconds=1e-9)
    looked.step(4)
    assert len(looked.calls) == 1


def test_a_clip_that_does_not_decode_gives_its_place_to_the_next(sampler: Any, long_world: Path) -> None:
    (long_world.parent / "0.mp4").write_bytes(b"")
    looked = sampler(long_world)
    assert len(looked.step(4)) == 4
    assert [prompts[0][-8:] for _, prompts, _ in looked.calls] == ["Noise 1.", "Noise 2."]


def test_a_run_without_one_good_clip_goes_on(sampler: Any, long_world: Path) -> None:
    for path in long_world.parent.glob("*.[mp][pn]*"):
        path.write_bytes(b"")
    looked = sampler(long_world)
    assert looked.step(4) == [] and looked.weights == ["averages", "own"]


@pytest.mark.parametrize("writer", ["write_video", "before_after_picture"])
def test_a_full_disk_is_a_warning(
    sampler: Any, world: Path, writer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, writer, full)
    looked = sampler(world / "pairs.jsonl")
    with caplog.at_level(logging.WARNING):
        looked.step(4)
    assert len(looked.calls) == 2 and looked.weights == ["averages", "own"]
    assert [record.getMessage() for record in caplog.records] == [
        f"sample {looked.run.folder.samples}/step-00000004-{number}.png cannot be written: No space left on device"
        for number in (0, 1)
    ]
