"""Tracks the run at MLflow."""

from __future__ import annotations

import json
from pathlib import Path

from sama_mega.observe.mlflow_run import TrackerSettings, TrackerStatus
from sama_mega.observe.tracker import MlflowTracker, flatten
from sama_mega.observe.tracking_uri import resolve_tracking_uri, without_password
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import EndReason, RunEnd
from sama_mega.train.run_folder import RunFolder

_STATUS: dict[EndReason, TrackerStatus] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "refused": "FAILED",
    "failed": "FAILED",
}
_PICTURE_SUFFIXES = (".png", ".mp4")
_CLOSE_SECONDS, _CLOSE_SECONDS_AFTER_SIGNAL = 30.0, 10.0
"""Whoever sent a signal may soon send one that kills, and how the life ended is written after this."""


class TrackerHook(Hook):
    """Recipe, environment, the rows of metrics.jsonl and sample pictures at once, unless `track.mlflow` is off.

    After the hook that writes metrics.jsonl, whose file is what the tracker reads.
    """

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
        """Queues the files that the step made."""
        if self._tracker is not None:
            for path in report.files:
                self._tracker.add_file(path, _artifact_folder(path, run.folder))

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Sends the rest and the status; a superseded life leaves all that to the newer one."""
        if self._tracker is None:
            return
        if end.reason == "superseded":
            self._tracker.abandon()
        else:
            was_told_to_end = end.reason in ("stopped", "interrupted")
            seconds = _CLOSE_SECONDS_AFTER_SIGNAL if was_told_to_end else _CLOSE_SECONDS
            self._tracker.close(_STATUS[end.reason], seconds)


def _settings(run: Run) -> TrackerSettings:
    folder = run.folder
    params = flatten(run.recipe.model_dump(mode="json"))
    params["track.uri"] = without_password(params["track.uri"])
    start_files = (folder.recipe_path, folder.environment_path, folder.diff_path)
    return TrackerSettings(
        uri=resolve_tracking_uri(run.recipe.track.uri),
        experiment=run.recipe.track.experiment,
        run_name=folder.root.name,
        identity_path=folder.tracker_path,
        metrics_path=folder.metrics_path,
        start_step=run.start_step,
        # Step 0 with resuming switched off is a new experiment in an old folder.
        continues=run.start_step > 0 or run.recipe.checkpoint.resume,
        params=params,
        tags=_tags(folder.root, folder.environment_path),
        start_files=tuple(path for path in start_files if path.exists()),
        earlier_files=_pictures(folder) if run.start_step else (),
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


def _pictures(folder: RunFolder) -> tuple[tuple[Path, str], ...]:
    found = sorted(path for path in folder.samples.rglob("*") if path.suffix in _PICTURE_SUFFIXES)
    return tuple((path, _artifact_folder(path, folder)) for path in found)


def _artifact_folder(path: Path, folder: RunFolder) -> str:
    return path.parent.relative_to(folder.root).as_posix()
