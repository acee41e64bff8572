"""Notices that a rank takes no steps any more, shows what it is doing, and ends it."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

GRACE_SECONDS = 10.0
"""How long a rank waits for the stacks of the others before it ends: they hang for the same reason, and as long."""
HEAD_START_SECONDS = 1.0
"""How much later the other ranks end than the lowest: else it would lose touch with them before it has said why."""
HUNG_STATUS = 1
"""Exit status of a rank that the watchdog ended."""
_POLL_SECONDS = 0.1

_log = logging.getLogger(__name__)


class Watchdog:
    """Ends this process when it has not been told for a while that all is well.

    A thread writes the stacks of all threads to a file of the run folder, waits shortly until every rank has written
    its own, and ends the process with status 1: Slurm then ends the other ranks, and a rank that had been stopped
    (SIGSTOP, a frozen container) is continued by that and writes its own before it ends too. Where even Python's lock
    is held for good, the interpreter's own timer writes the stacks to stderr, somewhat later, and ends the process.

    Args:
        timeout_seconds: The while.
        stacks_path: From a rank to the file for its stacks.
        rank: This rank.
        num_ranks: All of them.
        on_hang: Called with one line about it before the process ends, on the lowest rank that is able to.
        end_process: Ends the process at once with a status; `os._exit`.
    """

    def __init__(
        self,
        timeout_seconds: float,
        stacks_path: Callable[[int], Path],
        rank: int,
        num_ranks: int,
        on_hang: Callable[[str], None],
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._stacks_path = stacks_path
        self._rank, self._num_ranks = rank, num_ranks
        self._on_hang = on_hang
        self._end_process = end_process
        self._step = 0
        self._beat_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, step: int) -> None:
        """Begins to watch; `step` is the number of finished steps."""
        self.beat(step)
        self._thread.start()

    def beat(self, step: int) -> None:
        """All is well after so many finished steps."""
        self._step, self._beat_at = step, time.monotonic()
        # Threads that Python runs need its lock; this timer does not.
        faulthandler.dump_traceback_later(self._timeout_seconds + 2 * GRACE_SECONDS, exit=True, file=_stderr())

    def stop(self) -> None:
        """Stops watching; may be called twice."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stopped.wait(max(_POLL_SECONDS, self._beat_at + self._timeout_seconds - time.monotonic())):
            silent_seconds = time.monotonic() - self._beat_at
            if silent_seconds >= self._timeout_seconds:
                self._report(silent_seconds)
                self._end_process(HUNG_STATUS)
                return

    def _report(self, silent_seconds: float) -> None:
        """Writes this rank's stacks; the lowest rank that has written its own says what happened."""
        own = self._stacks_path(self._rank)
        try:
            self._write_stacks(own, silent_seconds)
        except OSError as error:
            _log.error("%s cannot be written: %s", own, error)
        missing = self._wait_for_others()
        written = [rank for rank in range(self._num_ranks) if rank not in missing]
        if self._rank == min(written, default=self._rank):
            self._on_hang(
                f"no step for {silent_seconds:.0f} s after step {self._step} (train.hang_seconds"
                f" {self._timeout_seconds:g}): the stacks of {len(written)} of {self._num_ranks} ranks are in"
                f" {own.parent}{_without_stacks(missing)}"
            )
        else:
            time.sleep(HEAD_START_SECONDS)

    def _write_stacks(self, path: Path, silent_seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole: the other ranks wait for the file.
        unfinished = path.with_name(f".{path.name}")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(
                f"rank {self._rank} on {socket.gethostname()}, process {os.getpid()}: no step for"
                f" {silent_seconds:.0f} s after step {self._step}\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        os.replace(unfinished, path)

    def _wait_for_others(self) -> list[int]:
        """Ranks without stacks once all have written them or the grace is over."""
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            # Not Path.exists: a file system that fails, which may be why the ranks hang, would end this thread.
            missing = [rank for rank in range(self._num_ranks) if not os.path.exists(self._stacks_path(rank))]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(_POLL_SECONDS)


def _without_stacks(missing: list[int]) -> str:
    if not missing:
        return ""
    ranks = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return f"; none yet from rank{'s' if len(missing) > 1 else ''} {ranks}, stopped or on a node that is gone"


def _stderr() -> TextIO:
    # A test runner or a progress bar may have put something without a file descriptor there.
    return sys.__stderr__ or sys.stderr
