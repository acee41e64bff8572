"""Whether another job still trains in a run folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from sama_mega.train.lives import LifeRecord, read_lives
from sama_mega.train.run_folder import RunFolder

_ALIVE = {"RUNNING", "COMPLETING", "STOPPED", "SUSPENDED"}
_ANSWER_SECONDS = 20


def occupied_by(run_folder: Path, own_job: str | None) -> str | None:
    """Says who trains in a run folder, as the start of an error message; None when nobody is known to.

    A second job would take the folder over and end the first. A life of one's own job, started again, may do that.

    Args:
        run_folder: `train.run_folder`.
        own_job: Slurm's id of this job; None outside one.
    """
    lives = read_lives(RunFolder(run_folder))
    newest = lives[-1] if lives else None
    if newest is None or newest.ended_at is not None or newest.job in (None, own_job):
        return None
    if _state_of(newest) not in _ALIVE:
        return None
    return f"job {newest.job} on {', '.join(newest.nodes)} still trains in {run_folder} (step {newest.last_step})"


def _state_of(life: LifeRecord) -> str:
    """Slurm's word for the state of a life's job; empty where Slurm cannot be asked or does not know it."""
    if shutil.which("squeue") is None:
        return ""
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={life.job}"],
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.split()[0] if asked.stdout.split() else ""
