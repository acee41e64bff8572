"""Starts the ranks of a command on this host, for commands that need several and found one.

The ranks get torchrun's variables, so a command cannot tell the difference. torchrun itself is not used: it
turns every failure into exit status 1 and a page of traceback, and this tool promises status 2 and one line
for wrong input. Imports no torch: the launching process stays small.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sama_mega.parallel.rank_environment import RENDEZVOUS_FILE_VARIABLE

_PR_SET_PDEATHSIG = 1
# After one rank failed, the others get this long to report their own reason before they are ended.
FAILURE_GRACE_SECONDS = 5.0
POLL_SECONDS = 0.05
WRONG_INPUT = 2
"""Exit status."""
_LOST_TOUCH = ("Connection closed by peer", "Connection reset by peer")


def launch_ranks(num_ranks: int, argv: Sequence[str]) -> int:
    """Runs `python -m sama_mega <argv>` as several ranks and waits for them.

    Rank 0 keeps the terminal; another rank's output is shown only when that rank is the one to blame. When
    one rank fails the rest are ended; when this process dies, so do they.

    Args:
        num_ranks: Ranks to start on this host.
        argv: The command line after `python -m sama_mega`.

    Returns:
        Rank 0's exit status when it failed by itself, else that of the first rank to fail, else 0. A rank
        ended by a signal counts as 128 + its number.
    """
    with tempfile.TemporaryDirectory(prefix="sama_mega_ranks_") as folder:
        logs = [None, *(Path(folder) / f"rank{rank}.log" for rank in range(1, num_ranks))]
        ranks = start_ranks(num_ranks, [sys.executable, "-m", "sama_mega", *argv], Path(folder), logs)
        try:
            failed = wait_for_ranks(ranks, FAILURE_GRACE_SECONDS)
        finally:
            end_ranks(ranks)
        if failed is None:
            return 0
        # Wrong input every rank reports alike; anything else one rank meets first, and rank 0 only loses touch with it.
        is_wrong_input = ranks[failed].returncode == WRONG_INPUT
        for rank, log in enumerate(logs):
            text = "" if log is None else log.read_text(errors="replace")
            if text and (rank == failed or (not is_wrong_input and _has_own_failure(text))):
                sys.stderr.write(f"rank {rank} failed:\n{text}")
        return _shell_status(ranks[failed].returncode)


def start_ranks(
    num_ranks: int, command: Sequence[str], folder: Path, logs: Sequence[Path | None]
) -> list[subprocess.Popen[bytes]]:
    """Starts one process per rank; each dies with this one.

    Args:
        num_ranks: How many.
        command: What every rank executes.
        folder: Empty folder that holds the ranks' meeting point; must outlive them.
        logs: Per rank, the file for its output, or None to inherit this process's.
    """
    ranks = []
    for rank, environment in enumerate(_rank_environments(num_ranks, folder / "rendezvous")):
        log = logs[rank]
        output = None if log is None else log.open("wb")
        ranks.append(
            subprocess.Popen(
                command,
                env=environment,
                stdin=None if log is None else subprocess.DEVNULL,
                stdout=output,
                stderr=None if log is None else subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        )
        if output is not None:
            output.close()
    return ranks


def wait_for_ranks(
    ranks: Sequence[subprocess.Popen[bytes]], grace_seconds: float, timeout_seconds: float | None = None
) -> int | None:
    """Waits until every rank ended, or until one failed and the others had their grace.

    Args:
        ranks: Started processes, by rank.
        grace_seconds: How long the others may go on after the first failure, to report their own reason.
        timeout_seconds: How long to wait in all; None: as long as it takes.

    Returns:
        The index of the rank to blame, or None when all succeeded.

    Raises:
        TimeoutError: Ranks are still running after `timeout_seconds`; the caller ends them.
    """
    started = time.monotonic()
    failed: int | None = None
    failed_at = 0.0
    while any(rank.poll() is None for rank in ranks):
        now = time.monotonic()
        if failed is None:
            failed, failed_at = _first_failed(ranks), now
        elif now - failed_at > grace_seconds:
            break
        if timeout_seconds is not None and now - started > timeout_seconds:
            raise TimeoutError(f"ranks still running after {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)
    failed = _first_failed(ranks) if failed is None else failed
    # Rank 0 holds the terminal and so the best message, even when another rank stopped a moment earlier.
    return 0 if ranks[0].poll() else failed


def end_ranks(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kills the ranks that still run and waits for them: nothing outlives the call."""
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
    for rank in ranks:
        rank.wait()


def _rank_environments(num_ranks: int, rendezvous_file: Path) -> list[dict[str, str]]:
    """Environment of every rank: torchrun's variables, a rendezvous file, and a fair share of the cores."""
    share = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    environments = []
    for rank in range(num_ranks):
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(share))
        environment.update(RANK=str(rank), LOCAL_RANK=str(rank))
        environment.update(WORLD_SIZE=str(num_ranks), LOCAL_WORLD_SIZE=str(num_ranks))
        environment[RENDEZVOUS_FILE_VARIABLE] = str(rendezvous_file)
        environments.append(environment)
    return environments


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent ends: a killed launcher leaves no ranks behind."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _first_failed(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    return next((index for index, rank in enumerate(ranks) if rank.poll()), None)


def _has_own_failure(text: str) -> bool:
    return "Traceback (most recent call last)" in text and not lost_touch(text)


def lost_touch(text: str) -> bool:
    """Whether an error only tells that another rank has ended: the reason is with that one."""
    return any(sign in text for sign in _LOST_TOUCH)


def _shell_status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode
