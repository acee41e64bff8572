"""Sends the run to MLflow."""

from __future__ import annotations

import json
import math
from pathlib import Path

from sama_mega.observe.tracker import (
    EndFile,
    MlflowTracker,
    TrackerSettings,
    TrackerStatus,
    flatten,
    resolve_tracking_uri,
    without_password,
)
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import EndReason, RunEnd

_STATUS: dict[EndReason, TrackerStatus] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "refused": "FAILED",
    "failed": "FAILED",
}
_PICTURE_SUFFIXES = (".png", ".mp4")
_MAX_PICTURES = 64


class TrackerHook(Hook):
    """Recipe, metrics of every step and, at the end, the sample pictures, unless `track.mlflow` is false."""

    def __init__(self) -> None:
        """Holds no tracker before the run starts."""
        self._tracker: MlflowTracker | None = None

    def on_run_start(self, run: Run) -> None:
        """Opens the MLflow run, or that of the life before; returns at once."""
        if not run.is_main or not run.recipe.track.mlflow:
            return
        self._tracker = MlflowTracker(_settings(run))
        self._tracker.start()

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Queues the step's numbers."""
        if self._tracker is not None:
            self._tracker.log_metrics(report.step, tracked_metrics(report))

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Sends the rest, the pictures and the status; a superseded life leaves all that to the newer one."""
        if self._tracker is not None and end.reason != "superseded":
            self._tracker.close(_STATUS[end.reason], _pictures(run.folder.samples))


def tracked_metrics(report: StepReport) -> dict[str, float]:
    """The step's numbers under the names that MLflow shows; a slash makes a group."""
    seconds = report.step_seconds
    num_samples = report.num_images + report.num_videos
    metrics = {
        "loss": report.loss,
        "loss/flow_matching": report.flow_matching_loss,
        "loss/semantic": report.semantic_loss,
        "gradient_norm": report.gradient_norm,
        "learning_rate": report.learning_rate,
        "skipped": float(report.skipped is not None),
        "samples_seen": float(report.samples_seen),
        "speed/step_seconds": seconds,
        "speed/samples_per_second": num_samples / seconds if seconds > 0 else math.nan,
        "speed/tokens_per_second": report.tokens / seconds if seconds > 0 else math.nan,
        "speed/data_wait_seconds": report.data_wait_seconds,
    }
    metrics.update({f"task/{task}": loss for task, loss in report.losses_by_task.items()})
    return metrics


def _settings(run: Run) -> TrackerSettings:
    folder = run.folder
    params = flatten(run.recipe.model_dump(mode="json"))
    params["track.uri"] = without_password(params["track.uri"])
    return TrackerSettings(
        uri=resolve_tracking_uri(run.recipe.track.uri),
        experiment=run.recipe.track.experiment,
        run_name=folder.root.name,
        identity_path=folder.tracker_path,
        # Step 0 with resuming switched off is a new experiment in an old folder.
        continues=run.start_step > 0 or run.recipe.checkpoint.resume,
        params=params,
        tags=_tags(folder.root, folder.environment_path),
        start_files=tuple(path for path in (folder.recipe_path,) if path.exists()),
    )


def _tags(root: Path, environment_path: Path) -> dict[str, str]:
    tags = {"run_folder": str(root.absolute())}
    if environment_path.exists():
        environment = json.loads(environment_path.read_text(encoding="utf-8"))
        tags["mlflow.source.name"] = environment["command"]
        tags["hostname"] = environment["hostname"]
        if environment["git"] is not None:
            tags["mlflow.source.git.commit"] = environment["git"]["commit"]
            tags["uncommitted_changes"] = str(environment["git"]["dirty"])
    return tags


def _pictures(samples: Path) -> tuple[EndFile, ...]:
    found = sorted(path for path in samples.rglob("*") if path.suffix in _PICTURE_SUFFIXES)
    return tuple((path, path.parent.relative_to(samples.parent).as_posix()) for path in found[-_MAX_PICTURES:])
