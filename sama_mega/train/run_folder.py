"""The folder of one run: what lies where, who may write, and which life of the run this is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sama_mega.config.errors import UserError

_LIFE_NAME = re.compile(r"^(\d{4,})\.json$")


class RunFolderError(UserError):
    """The run folder cannot be used; one line that names the folder, the reason and the fix."""


class RunFolder:
    """Paths of a run folder, and the small files in it that are written once a life.

    Attributes:
        root: The folder.
        recipe_path: The resolved recipe.
        environment_path: Versions, commit and command of the newest life.
        diff_path: Its uncommitted changes; absent when there are none.
        metrics_path: One row an optimizer step.
        log_path: What rank 0 logged, over all lives.
        pace_path: Every rank's own time a step, at an interval.
        quarantine_path: Samples that could not be used, and why.
        checkpoints: Folder of checkpoints.
        samples: Folder of sample pictures and videos.
        lives: Folder with one file a start.
        statistics_path: Statistics of every layer, at an interval.
        replay: Folder of steps whose loss was not finite.
    """

    def __init__(self, root: Path) -> None:
        """Names the paths; touches nothing, so every rank may do it."""
        self.root = root
        self.recipe_path = root / "recipe.yaml"
        self.environment_path = root / "environment.json"
        self.diff_path = root / "git.diff"
        self.metrics_path = root / "metrics.jsonl"
        self.log_path = root / "log.txt"
        self.quarantine_path = root / "quarantine.jsonl"
        self.pace_path = root / "pace.jsonl"
        self.tracker_path = root / "mlflow.json"
        self.checkpoints = root / "checkpoints"
        self.samples = root / "samples"
        self.lives = root / "lives"
        self.statistics_path = root / "statistics.jsonl"
        self.replay = root / "replay"

    @classmethod
    def create(cls, root: Path) -> RunFolder:
        """Makes the folder where it is missing and proves that it can be written; for one rank only.

        Raises:
            RunFolderError: It cannot be made or written.
        """
        folder = cls(root)
        try:
            for path in (folder.root, folder.checkpoints, folder.samples, folder.lives):
                path.mkdir(parents=True, exist_ok=True)
                _probe(path)
        except OSError as error:
            raise RunFolderError(
                f"train.run_folder ({root}) cannot be written: {_reason(error)}: "
                "choose another folder or make it writable"
            ) from error
        return folder

    def write_recipe(self, text: str) -> None:
        """Stores the resolved recipe.

        Raises:
            RunFolderError: The disk refuses.
        """
        self.write_atomically(self.recipe_path, text)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Stores the environment of this life, and its uncommitted changes, replacing those of the one before.

        Raises:
            RunFolderError: The disk refuses.
        """
        self.write_atomically(self.environment_path, json.dumps(environment, indent=2) + "\n")
        diff = (environment.get("git") or {}).get("diff")
        if diff:
            self.write_atomically(self.diff_path, diff)
        else:
            self.diff_path.unlink(missing_ok=True)

    def start_life(self, details: Mapping[str, Any]) -> int:
        """Claims the next life number by creating its file exclusively.

        Two starts at the same moment get different numbers, on every file system that knows O_EXCL.

        Args:
            details: JSON values kept beside the number (host, process, commit ...).

        Returns:
            The life number, 1 for the first start.

        Raises:
            RunFolderError: The disk refuses.
        """
        life = self.newest_life()
        while True:
            life += 1
            path = self.life_path(life)
            record = {"life": life, "started_at": datetime.now(UTC).isoformat(), **details}
            try:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(json.dumps(record, indent=2) + "\n")
                return life
            except FileExistsError:
                continue
            except OSError as error:
                raise RunFolderError(f"{path} cannot be written: {_reason(error)}") from error

    def newest_life(self) -> int:
        """The highest life number claimed so far, 0 before the first: a writer with a lower one must stop."""
        return max(self.life_numbers(), default=0)

    def life_numbers(self) -> list[int]:
        """Every life number claimed so far, lowest first."""
        names = [_LIFE_NAME.match(name) for name in os.listdir(self.lives)] if self.lives.is_dir() else []
        return sorted(int(match.group(1)) for match in names if match)

    def life_path(self, life: int) -> Path:
        """File of one life."""
        return self.lives / f"{life:04d}.json"

    def rank_log_path(self, life: int, rank: int) -> Path:
        """Everything that one rank logged in one life."""
        return self.root / "logs" / f"life-{life:04d}" / f"rank-{rank:05d}.txt"

    def stacks_path(self, life: int, rank: int) -> Path:
        """What one rank was doing when the life hung."""
        return self.root / "stacks" / f"life-{life:04d}" / f"rank-{rank:05d}.txt"

    @staticmethod
    def write_atomically(path: Path, text: str) -> None:
        """Replaces a file's text whole: a reader sees the old text or the new, never a part.

        Raises:
            RunFolderError: The disk refuses; the old file is untouched.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunFolderError(f"{path} cannot be written: {_reason(error)}: free or change the disk") from error


def _probe(folder: Path) -> None:
    # Permission bits do not tell: root ignores them, read-only and full file systems do not.
    probe = folder / f".write-probe-{os.getpid()}"
    try:
        probe.write_text("probe", encoding="utf-8")
    finally:
        probe.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"
