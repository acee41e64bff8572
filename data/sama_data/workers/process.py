"""The parent's end of one worker process."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sama_data.workers.child import PARENTS_SIGNALS, PROBE, Outcome, Request
from sama_data.workers.messages import Message, receive
from sama_data.workers.peer_memory import read_memory

# A cold network file system takes its time to give out Python.
START_TIMEOUT_SECONDS = 180.0
_END_TIMEOUT_SECONDS = 5.0
_PARTS_OF_A_WAIT = 8
# As the parent finds its modules, whichever way it was started.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]);"
    " from sama_data.workers.child import main; main(int(sys.argv[1]), sys.argv[3:])"
)


class WorkerTimeoutError(Exception):
    """A call took too long; its worker was killed."""


class WorkerDiedError(Exception):
    """A worker ended in the middle of a call.

    Attributes:
        causes: How, for each attempt: "signal 11 (SIGSEGV)" or "exit status 1".
    """

    def __init__(self, *causes: str) -> None:
        self.causes = causes
        twice = len(causes) == 2 and causes[0] == causes[1]
        super().__init__("died of " + (f"{causes[0]} twice" if twice else " and then of ".join(causes)))


class WorkerProcess:
    """A started worker; one thread calls it at a time.

    Args:
        preload: Modules that it imports before it is ready.

    Raises:
        Exception: What an import raised.
        OSError: The process cannot be started.
        WorkerDiedError: It ended before it was ready.
        WorkerTimeoutError: It did not get ready.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._connection, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs.fileno(), preload)
        except BaseException:
            self._connection.close()
            raise
        self.has_ended = False
        self._reads_memory = False
        try:
            ready = self._receive(START_TIMEOUT_SECONDS)
            if ready.error is not None:
                raise ready.error
            self._reads_memory = self._can_read_memory(ready.value)
        except BaseException:
            self.end()
            raise

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_seconds: float) -> Outcome:
        """Returns what became of a call.

        Raises:
            WorkerDiedError: The worker died, and has ended.
            WorkerTimeoutError: It took too long, and was ended.
        """
        request = Message(Request(function, arguments, self._reads_memory))
        try:
            request.send(self._connection)
        except OSError as error:
            raise self._died() from error
        try:
            return self._receive(timeout_seconds)
        except (WorkerDiedError, WorkerTimeoutError):
            raise
        except BaseException:
            self.end()  # what it says later would be taken for the answer to another call
            raise

    def kill(self) -> None:
        """Ends a call that another thread waits for."""
        self._process.kill()

    def end(self) -> None:
        """Kills the process and frees what belongs to it; may be called twice."""
        self.has_ended = True
        self._process.kill()
        self._connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            # Inside the kernel, as a file system that hangs holds it: it dies when that lets go of it.
            return

    def _receive(self, timeout_seconds: float) -> Outcome:
        try:
            patience = _Patience(self._connection, timeout_seconds)
            outcome = receive(self._connection, self._process.pid, patience.wait)
        except TimeoutError as error:
            self.end()
            raise WorkerTimeoutError(f"took longer than {timeout_seconds:g} s") from error
        except (EOFError, OSError) as error:
            raise self._died() from error
        assert isinstance(outcome, Outcome)
        return outcome

    def _can_read_memory(self, probe_address: int) -> bool:
        try:
            return read_memory(self._process.pid, [probe_address], [len(PROBE)])[0].tobytes() == PROBE
        except OSError:  # a container's rules may forbid it: frames then go through the socket
            return False

    def _died(self) -> WorkerDiedError:
        self.end()
        status = self._process.returncode
        if status is not None and status < 0:
            return WorkerDiedError(f"signal {-status} ({signal.Signals(-status).name})")
        return WorkerDiedError(f"exit status {status}")


class _Patience:
    """Waits until there is something to read, so many seconds in all.

    In parts: while a whole job is stopped (a suspended Slurm job, a frozen container) the worker does nothing
    either, and such a stop uses up one part, however long it is.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._part_milliseconds = 1000 * seconds / _PARTS_OF_A_WAIT
        self._parts = _PARTS_OF_A_WAIT

    def wait(self) -> None:
        """Returns when there is something to read.

        Raises:
            TimeoutError: The time is used up.
        """
        while not self._poll.poll(self._part_milliseconds):
            self._parts -= 1
            if self._parts <= 0:
                raise TimeoutError


def _start(descriptor: int, preload: Sequence[str]) -> subprocess.Popen[bytes]:
    # Blocked until the child ignores them: one that comes before would kill it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(descriptor), json.dumps(sys.path), *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[descriptor],
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # NumPy would start a thread for every core
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
