"""The hooks that write metrics, show progress and track, driven like the loop drives them."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sama_mega.config.schema import ModelRecipe, Recipe, TrackRecipe, TrainRecipe
from sama_mega.observe.gpu_kinds import TABLE_VARIABLE
from sama_mega.observe.progress import PROGRESS_LOGGER
from sama_mega.train.hooks import tracker as tracker_module
from sama_mega.train.hooks.base import Hook
from sama_mega.train.hooks.metrics import MetricsHook
from sama_mega.train.hooks.progress import ProgressHook
from sama_mega.train.hooks.tracker import TrackerHook
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.throughput import Throughput, measure_throughput


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
        ended_at_seconds=1_700_000_000.5,
        tokens=1000,
        model_tflop=0.02,
        num_images=3,
        num_videos=2,
        samples_seen=5 * step,
        grouped_losses={"losses_by_task": {"cube": 0.5}},
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
    losses = {"losses_by_task": {"cube": math.inf}}
    report = _report(2, loss=math.nan, grouped_losses=losses, skipped="loss is nan")
    report.measured["speed"] = {"mfu": 0.4}
    row = report.as_row()
    assert row["speed"] == {"mfu": 0.4} and "files" not in row and "measured" not in row
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


def test_the_speed_of_a_step() -> None:
    speed = Throughput(4, rank_peak_tflops=0.1).of(_report(1))
    assert speed == pytest.approx(
        {
            "samples_per_second": 10,
            "tokens_per_second": 2000,
            "tokens_per_second_per_rank": 500,
            "data_wait_share": 0.2,
            "tflops_per_rank": 0.01,
            "mfu": 0.1,
        }
    )
    unknown_peak = Throughput(4).of(_report(1))
    assert "mfu" not in unknown_peak and unknown_peak["tflops_per_rank"] == pytest.approx(0.01)
    assert "tflops_per_rank" not in Throughput(4, 0.1).of(_report(1, model_tflop=None))
    assert Throughput(4, 0.1).of(_report(1, step_seconds=0.0)) == {}


@pytest.mark.parametrize(
    ("name", "precision", "products", "peak"),
    [
        ("NVIDIA H200", "bfloat16", "highest", 989),
        ("NVIDIA H200", "float32", "highest", 67),
        ("NVIDIA H200", "float32", "high", None),
        ("Some other device", "bfloat16", "highest", None),
    ],
)
def test_the_peak_is_that_of_the_kind_of_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, products: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.delenv(TABLE_VARIABLE, raising=False)
    train = SimpleNamespace(precision=precision, float32_matmul_precision=products)
    context: Any = SimpleNamespace(device=torch.device("cuda", 0), world_size=8)
    measured = measure_throughput(SimpleNamespace(train=train), context)  # type: ignore[arg-type]
    assert (measured.num_ranks, measured.rank_peak_tflops) == (8, pytest.approx(peak) if peak else None)


class _Tracker:
    def __init__(self, settings: Any) -> None:
        self.settings, self.files, self.closed, self.abandoned = settings, [], None, False
        self.seconds_to_close = 0.0

    def start(self) -> None:
        pass

    def add_file(self, path: Path, folder: str) -> None:
        self.files.append((path, folder))

    def close(self, status: str, timeout_seconds: float) -> None:
        self.closed, self.seconds_to_close = status, timeout_seconds

    def abandon(self) -> None:
        self.abandoned = True


def _tracked(run: _Run, monkeypatch: pytest.MonkeyPatch, reason: str = "finished", files: Any = ()) -> _Tracker:
    made: list[_Tracker] = []
    monkeypatch.setattr(tracker_module, "MlflowTracker", lambda settings: made.append(_Tracker(settings)) or made[0])
    hook = TrackerHook()
    hook.on_run_start(run)
    hook.on_step_end(run, _report(1, files=list(files)))
    hook.on_run_end(run, RunEnd(reason))  # type: ignore[arg-type]
    return made[0]


def test_the_tracker_gets_recipe_environment_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(tmp_path / "demo", start_step=4)
    run.folder.write_recipe("model: {}\n")
    git = {"commit": "c0ffee", "dirty": True, "diff": "-a\n+b\n"}
    run.folder.write_environment({"command": "sama-mega train", "hostname": "h", "git": git})
    (run.folder.samples / "step-4").mkdir()
    earlier, new = run.folder.samples / "step-4" / "a.png", run.folder.samples / "b.mp4"
    earlier.write_bytes(b"")
    (run.folder.samples / "notes.txt").write_text("")
    fake = _tracked(run, monkeypatch, files=[new])
    assert fake.settings.run_name == "demo" and fake.settings.continues and fake.settings.start_step == 4
    assert fake.settings.params["model.dim"] == "64"
    assert fake.settings.params["model.patch_size"] == "[1, 2, 2]"
    assert fake.settings.params["track.uri"] == "http://host"
    assert fake.settings.tags["mlflow.source.git.commit"] == "c0ffee"
    folder = run.folder
    assert fake.settings.start_files == (folder.recipe_path, folder.environment_path, folder.diff_path)
    assert folder.diff_path.read_text() == "-a\n+b\n"
    assert fake.settings.metrics_path == folder.metrics_path
    assert fake.settings.earlier_files == ((earlier, "samples/step-4"),)
    assert fake.files == [(new, "samples")]
    assert fake.closed == "FINISHED"


def test_a_new_run_in_an_old_folder_leaves_its_pictures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(tmp_path)
    (run.folder.samples / "old.png").write_bytes(b"")
    assert _tracked(run, monkeypatch).settings.earlier_files == ()


@pytest.mark.parametrize(
    ("reason", "status"),
    [("stopped", "KILLED"), ("interrupted", "KILLED"), ("refused", "FAILED"), ("failed", "FAILED")],
)
def test_the_end_of_a_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, status: str) -> None:
    fake = _tracked(_run(tmp_path), monkeypatch, reason)
    assert fake.closed == status and fake.seconds_to_close == (10.0 if status == "KILLED" else 30.0)


def test_a_superseded_life_leaves_the_end_to_the_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write to the same MLflow run, which goes on."""
    fake = _tracked(_run(tmp_path), monkeypatch, "superseded")
    assert fake.closed is None and fake.abandoned


def test_tracking_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "MlflowTracker", lambda settings: pytest.fail("a tracker was made"))
    _drive(TrackerHook(), _run(tmp_path, mlflow=False), range(1, 3))
