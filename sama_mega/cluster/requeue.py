"""Whether a job whose ranks have ended starts again: read from what the run says of its lives."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sama_mega.train.lives import LifeRecord

Decision = Literal["done", "requeue", "stop"]
MAX_LIVES_WITHOUT_PROGRESS = 3
"""How many lives of one job in a row may end with nothing new saved."""

WRONG_INPUT = 2
"""Exit status of a rank whose recipe, data or arguments are wrong."""
REQUEUE_SIGNAL = "SIGUSR1"
"""What a time limit or a preemption sends before it ends the job; anything else that stops a run is meant to, unless
Slurm says that it preempts the job: with a grace time, it sends TERM."""
DIED_OF_REQUEUE_SIGNAL = 128 + signal.Signals[REQUEUE_SIGNAL]
"""Exit status of ranks that were sent it before they could listen."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job.

    Attributes:
        decision: `done`, `requeue` (Slurm starts it again) or `stop` (a person must look).
        message: Why, in one line for the log.
    """

    decision: Decision
    message: str


def judge(
    lives: Sequence[LifeRecord],
    newest_step: int,
    job: str,
    restarts: int,
    status: int,
    max_without_progress: int = MAX_LIVES_WITHOUT_PROGRESS,
    *,
    preempted: bool = False,
) -> Verdict:
    """Decides from a run's lives.

    Args:
        lives: All of the run's, oldest first; the last one of this start of the job has an end.
        newest_step: Step of the newest complete checkpoint, 0 for none.
        job: Slurm's job id.
        restarts: How often Slurm had started it again when this start began.
        status: Exit status of the job step.
        max_without_progress: See `MAX_LIVES_WITHOUT_PROGRESS`.
        preempted: Whether Slurm takes the nodes for another job.
    """
    ours = [life for life in lives if life.job == job]
    if not ours or ours[-1].restarts != restarts:
        return _judge_a_start_without_life(ours, newest_step, restarts, status, max_without_progress, preempted)
    life = ours[-1]
    told = (
        f"life {life.life} ended at step {life.last_step}: {life.reason}{f', {life.message}' if life.message else ''}"
    )
    if life.reason == "finished":
        return Verdict("done", told)
    if life.reason in ("superseded", "interrupted"):
        return Verdict("stop", f"{told}; it is not started again")
    if life.reason == "refused":
        return Verdict("stop", f"{told}; it is not started again, since it would end the same way")
    if life.reason == "stopped" and REQUEUE_SIGNAL not in life.message and not preempted:
        return Verdict("stop", f"{told}; it is not started again, since somebody ended it: submit it again to go on")
    without = lives_without_progress(ours, newest_step)
    if without >= max_without_progress:
        return Verdict(
            "stop",
            f"{told}; {without} lives in a row saved nothing beyond step {newest_step} (at most"
            f" {max_without_progress}, SAMA_MEGA_MAX_LIVES_WITHOUT_PROGRESS): it is not started again; look at the"
            " messages above, or save more often (checkpoint.every), and submit it again",
        )
    return Verdict("requeue", f"{told}; it goes on from step {newest_step}")


def _judge_a_start_without_life(
    ours: Sequence[LifeRecord], newest_step: int, restarts: int, status: int, limit: int, preempted: bool
) -> Verdict:
    """Nothing was begun: what stopped the first start needs a person, what stops a later one may be a node."""
    told = f"the run did not begin (status {status})"
    if preempted:
        return Verdict("requeue", f"{told}: Slurm takes the nodes for another job")
    in_vain = restarts - (ours[-1].restarts if ours else 0)
    if in_vain < 0:
        return Verdict("stop", "Slurm has started the job again already")
    if status == DIED_OF_REQUEUE_SIGNAL and in_vain < limit:
        return Verdict("requeue", f"{told}: told to stop before its ranks could listen")
    if not ours or status == WRONG_INPUT or in_vain + lives_without_progress(ours, newest_step) >= limit:
        return Verdict("stop", f"{told}: the reason is above; it is not started again")
    return Verdict("requeue", f"{told}: the reason is above; it is tried again from step {newest_step}")


def lives_without_progress(lives: Sequence[LifeRecord], newest_step: int) -> int:
    """How many of the last lives, counted back from the newest, ended with nothing saved that was not there before."""
    count = 0
    for life in reversed(lives):
        # Nothing newer than what it began from was there in the end: for an earlier life, what the next began from.
        if life.start_step < newest_step:
            break
        count += 1
    return count
