"""The lives of a run: every start is one, with a number and a file that says how it went. Imports no torch."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sama_mega.config.errors import CheckpointError
from sama_mega.train.run_folder import RunFolder, RunFolderError

HEARTBEAT_SECONDS = 10.0
"""How often a running life's file is brought up to date, at most."""

_log = logging.getLogger(__name__)


class SupersededError(CheckpointError):
    """A newer life of the run has begun: this one may write nothing more."""


@dataclass(frozen=True)
class LifeRecord:
    """What `lives/NNNN.json` says; times are ISO 8601 in UTC.

    Attributes:
        life: Its number.
        started_at: When it was claimed: model and data were ready, no step was taken.
        start_step: Finished optimizer steps in what it began from.
        last_step: Finished steps when the file was last written.
        updated_at: When that was, or None: never since the start.
        ended_at: When it ended, or None: it runs, or nobody could say so.
        reason: `finished`, `stopped`, `interrupted`, `failed`, `superseded`, `hung`, `killed`; None as above.
        message: Why, in one line.
        nodes: Hosts of its ranks, in rank order, each once.
        num_ranks: Ranks over all of them.
        job: Slurm's job id, and how often that job had been started again; None outside Slurm.
        restarts: See `job`.
        startup_seconds: How long each part of the start took, up to the end of the first step.
    """

    life: int
    started_at: str = ""
    start_step: int = 0
    last_step: int = 0
    updated_at: str | None = None
    ended_at: str | None = None
    reason: str | None = None
    message: str = ""
    nodes: tuple[str, ...] = ()
    num_ranks: int = 1
    job: str | None = None
    restarts: int = 0
    startup_seconds: Mapping[str, float] | None = None


class LifeFile:
    """The file of this process's life; for one rank only.

    Args:
        folder: The run's folder.
        values: What the file holds, its `life` included.

    Attributes:
        number: The life's number.
    """

    def __init__(self, folder: RunFolder, values: Mapping[str, Any]) -> None:
        self._folder = folder
        self._values = dict(values)
        self._written_at = time.monotonic()
        self.number = int(values["life"])

    @classmethod
    def claim(cls, folder: RunFolder, start_step: int, details: Mapping[str, Any]) -> LifeFile:
        """Claims the next number of a run.

        Args:
            folder: A run folder that exists.
            start_step: Finished optimizer steps in what this life begins from.
            details: JSON values, among them fields of `LifeRecord`.

        Raises:
            RunFolderError: The disk refuses.
        """
        details = {**details, "start_step": start_step, "last_step": start_step}
        number = folder.start_life(details)
        return cls(folder, {"life": number, **_read(folder.life_path(number)), **details})

    @property
    def has_ended(self) -> bool:
        """Whether the end is written."""
        return self._values.get("ended_at") is not None

    def require_newest(self) -> None:
        """Raises SupersededError once a newer life has begun."""
        require_newest(self._folder, self.number)

    def reached(self, step: int) -> None:
        """Notes a finished step; written every `HEARTBEAT_SECONDS` only."""
        self._values["last_step"] = step
        if time.monotonic() - self._written_at >= HEARTBEAT_SECONDS:
            self.note()

    def note(self, **values: Any) -> None:
        """Writes further fields of `LifeRecord`; a disk that refuses is said and ends nothing."""
        self._values.update(values, updated_at=_now())
        self._written_at = time.monotonic()
        try:
            self._folder.write_atomically(
                self._folder.life_path(self.number), json.dumps(self._values, indent=2) + "\n"
            )
        except RunFolderError as error:
            _log.warning("%s", error)

    def end(self, reason: str, message: str = "") -> None:
        """Writes how the life ended."""
        self.note(ended_at=_now(), reason=reason, message=message)


def require_newest(folder: RunFolder, life: int) -> None:
    """Refuses a writer of an older life; one look into a folder.

    Args:
        folder: The run's folder.
        life: The writer's life.

    Raises:
        SupersededError: A newer life has begun.
    """
    newest = folder.newest_life()
    if newest > life:
        values = _read(folder.life_path(newest))
        job, nodes = values.get("job"), values.get("nodes") or ()
        where = f"{f' in job {job}' if job else ''}{f' on {nodes[0]}' if nodes else ''}"
        raise SupersededError(
            f"{folder.root}: life {newest} of this run has begun{where}, so life {life} ends here and may write nothing"
            " more"
        )


def read_lives(folder: RunFolder) -> list[LifeRecord]:
    """Every life of a run, oldest first; one whose file cannot be read has a number and nothing else."""
    known = {field.name for field in fields(LifeRecord)}
    records = []
    for number in folder.life_numbers():
        values = {key: value for key, value in _read(folder.life_path(number)).items() if key in known}
        values["nodes"] = tuple(values.get("nodes") or ())
        records.append(LifeRecord(**{**values, "life": number}))
    return records


def end_unended(folder: RunFolder, number: int, reason: str, message: str) -> None:
    """Ends the record of a life whose process could not; one that it ended itself stays as it is."""
    values = _read(folder.life_path(number))
    if values.get("ended_at") is None:
        LifeFile(folder, {**values, "life": number}).end(reason, message)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
