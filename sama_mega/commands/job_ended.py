"""`sama-mega job-ended`: what `slurm/job.sh` asks once the ranks of a training job have ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from sama_mega.checkpoint.folder import checkpoint_step, complete_checkpoints
from sama_mega.cluster.requeue import MAX_LIVES_WITHOUT_PROGRESS, judge
from sama_mega.config import load_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.train.lives import end_unended, read_lives
from sama_mega.train.run_folder import RunFolder

LIMIT_VARIABLE = "SAMA_MEGA_MAX_LIVES_WITHOUT_PROGRESS"


def run(
    recipe: str,
    overrides: Sequence[str],
    status: int,
    environ: Mapping[str, str] = os.environ,
    *,
    preempted: bool = False,
) -> int:
    """Completes the life's record, says on stderr what becomes of the job, and prints the decision.

    Args:
        recipe: YAML file of the job.
        overrides: ``a.b=value`` items of the job.
        status: Exit status of the job step.
        environ: Slurm's variables.
        preempted: Whether Slurm takes the nodes for another job.

    Returns:
        Exit status 0; the last line of stdout is ``done``, ``requeue`` or ``stop``.

    Raises:
        ConfigError: The recipe is wrong, or this is no Slurm job.
    """
    if "SLURM_JOB_ID" not in environ:
        raise ConfigError("SLURM_JOB_ID is not set: job-ended is for slurm/job.sh, inside a job")
    folder = RunFolder(load_recipe(recipe, overrides).train.run_folder)
    job, restarts = environ["SLURM_JOB_ID"], int(environ.get("SLURM_RESTART_COUNT") or 0)
    for life in read_lives(folder):
        if life.job == job and life.restarts <= restarts:
            end_unended(folder, life.life, "killed", f"the job step ended with status {status}")
    found = complete_checkpoints(folder.checkpoints)
    newest_step = (checkpoint_step(found[-1]) or 0) if found else 0
    limit = _limit(environ)
    verdict = judge(read_lives(folder), newest_step, job, restarts, status, limit, preempted=preempted)
    print(verdict.message, file=sys.stderr)
    print(verdict.decision)
    return 0


def _limit(environ: Mapping[str, str]) -> int:
    text = environ.get(LIMIT_VARIABLE) or str(MAX_LIVES_WITHOUT_PROGRESS)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{LIMIT_VARIABLE} ({text}) must be a whole number of at least 1")
    return int(text)
