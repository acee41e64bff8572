"""The hooks that write metrics, show progress and track, driven like the loop drives them."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sama_mega.config.schema import ModelRecipe, Recipe, TrackRecipe, TrainRecipe
from sama_mega.observe.progress import PROGRESS_LOGGER
from sama_mega.train.hooks import tracker as tracker_module
from sama_mega.train.hooks.base import Hook
from sama_mega.train.hooks.metrics import MetricsHook
from sama_mega.train.hooks.progress import ProgressHook
from sama_mega.train.hooks.tracker import TrackerHook, tracked_metrics
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd
from sama_mega.train.run_folder import RunFolder


@dataclass
class _Run:
    recipe: Recipe
    folder: RunFolder
    is_main: bool = True
    start_step: int = 0
    total_steps: int = 4


def _run(root: Path, **changes: Any) -> _Run:
    recipe = Recipe(
        model=ModelRecipe(dim=64, num_layers=2, num_heads=2, ffn_dim=128),
        train=TrainRecipe(stage=1, steps=4, run_folder=root, log_every=2),
        track=TrackRecipe(mlflow=changes.pop("mlflow", True), uri="http://me:secret@host"),
    )
    return _Run(recipe, RunFolder.create(root), **changes)


def _report(step: int, **changes: Any) -> StepReport:
    report = StepReport(
        step=step,
        loss=1 / (3 * step),
        flow_matching_loss=0.3,
        semantic_loss=0.2,
        gradient_norm=1.5,
        learning_rate=1e-3,
        skipped=None,
        step_seconds=0.5,
        data_wait_seconds=0.1,
        tokens=1000,
        num_images=3,
        num_videos=2,
        samples_seen=5 * step,
        losses_by_task={"cube": 0.5},
        sample_digest="abc",
    )
    return replace(report, **changes)


def _drive(hook: Hook, run: _Run, steps: range) -> None:
    hook.on_run_start(run)
    for step in steps:
        hook.on_step_end(run, _report(step))
    hook.on_run_end(run, RunEnd("finished"))


def _rows(run: _Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.folder.metrics_path.read_text().splitlines()]


def test_a_report_becomes_a_row_of_plain_json() -> None:
    row = _report(2, loss=math.nan, losses_by_task={"cube": math.inf}, skipped="loss is nan").as_row()
    assert row["loss"] is None and row["losses_by_task"] == {"cube": None}
    assert row["skipped"] == "loss is nan" and "sample_ids" not in row
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert _report(1, sample_ids=("a", "b")).as_row()["sample_ids"] == ["a", "b"]


def test_a_resumed_run_has_one_row_per_step(tmp_path: Path) -> None:
    _drive(MetricsHook(), _run(tmp_path), range(1, 4))
    run = _run(tmp_path, start_step=2)
    _drive(MetricsHook(), run, range(3, 5))
    rows = _rows(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["loss"] == 1 / 9


def test_other_ranks_write_and_show_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = _run(tmp_path, is_main=False)
    with caplog.at_level(logging.INFO):
        for hook in (MetricsHook(), ProgressHook(draws_bar=False), TrackerHook()):
            _drive(hook, run, range(1, 3))
    assert not run.folder.metrics_path.exists() and not run.folder.tracker_path.exists()
    assert caplog.records == []


def test_progress_lines_come_every_few_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=PROGRESS_LOGGER):
        _drive(ProgressHook(draws_bar=False), _run(tmp_path), range(1, 5))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split("  ")[0] for line in lines] == [
        "stage 1 step 1/4",
        "stage 1 step 2/4",
        "stage 1 step 4/4",
    ]
    assert "data wait 20%" in lines[1]


class _Tracker:
    def __init__(self, settings: Any) -> None:
        self.settings, self.metrics, self.closed = settings, [], None

    def start(self) -> None:
        pass

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics.append((step, metrics))

    def close(self, status: str, end_files: tuple[Any, ...]) -> None:
        self.closed = (status, end_files)


def _tracked(run: _Run, monkeypatch: pytest.MonkeyPatch, reason: str = "finished") -> _Tracker:
    made: list[_Tracker] = []
    monkeypatch.setattr(tracker_module, "MlflowTracker", lambda settings: made.append(_Tracker(settings)) or made[0])
    hook = TrackerHook()
    hook.on_run_start(run)
    hook.on_step_end(run, _report(1))
    hook.on_run_end(run, RunEnd(reason))  # type: ignore[arg-type]
    return made[0]


def test_the_tracker_gets_recipe_steps_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(tmp_path / "demo")
    run.folder.write_recipe("model: {}\n")
    git = {"commit": "c0ffee", "dirty": True}
    run.folder.write_environment({"command": "sama-mega train", "hostname": "h", "git": git})
    (run.folder.samples / "step-4").mkdir()
    picture = run.folder.samples / "step-4" / "a.png"
    picture.write_bytes(b"")
    (run.folder.samples / "notes.txt").write_text("")
    fake = _tracked(run, monkeypatch)
    assert fake.settings.run_name == "demo" and fake.settings.continues
    assert fake.settings.params["model.dim"] == "64"
    assert fake.settings.params["model.patch_size"] == "[1, 2, 2]"
    assert fake.settings.params["track.uri"] == "http://host"
    assert fake.settings.tags["mlflow.source.git.commit"] == "c0ffee"
    assert fake.settings.start_files == (run.folder.recipe_path,)
    assert fake.metrics == [(1, tracked_metrics(_report(1)))]
    assert fake.closed == ("FINISHED", ((picture, "samples/step-4"),))


@pytest.mark.parametrize(
    ("reason", "status"),
    [("stopped", "KILLED"), ("interrupted", "KILLED"), ("refused", "FAILED"), ("failed", "FAILED")],
)
def test_the_end_of_a_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, status: str) -> None:
    assert _tracked(_run(tmp_path), monkeypatch, reason).closed[0] == status


def test_a_superseded_life_leaves_the_end_to_the_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write to the same MLflow run, which goes on."""
    assert _tracked(_run(tmp_path), monkeypatch, "superseded").closed is None


def test_tracked_numbers() -> None:
    metrics = tracked_metrics(_report(2, skipped="gradient norm 9 above 5"))
    assert metrics["speed/samples_per_second"] == 10 and metrics["task/cube"] == 0.5
    assert metrics["skipped"] == 1.0
    assert math.isnan(tracked_metrics(_report(1, step_seconds=0.0))["speed/samples_per_second"])


def test_tracking_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "MlflowTracker", lambda settings: pytest.fail("a tracker was made"))
    _drive(TrackerHook(), _run(tmp_path, mlflow=False), range(1, 3))
