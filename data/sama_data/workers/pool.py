"""Runs functions in child processes for several threads at once."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from sama_data.errors import DataError
from sama_data.workers.child import Outcome
from sama_data.workers.process import WorkerDiedError, WorkerProcess, WorkerTimeoutError

__all__ = ["WorkerDiedError", "WorkerPool", "WorkerTimeoutError", "WorkersClosedError"]

Result = TypeVar("Result")

_ATTEMPTS = 2
_START_ATTEMPTS = 3


class WorkersClosedError(Exception):
    """The pool was closed while the call ran."""


class WorkerPool:
    """Runs functions in child processes; safe between threads.

    Workers start when calls need them, ignore the signals that are meant for their parent, and never outlive it,
    however it ends. A pool that is collected closes itself.

    Args:
        num_workers: The most calls that run at a time.
        preload: Modules that a worker imports before its first call, whose time they would take.
    """

    def __init__(self, num_workers: int, preload: Sequence[str] = ()) -> None:
        self._free = threading.BoundedSemaphore(num_workers)
        self._preload = tuple(preload)
        self._crew = _Crew()
        self._shown_warnings: dict[str | tuple[str, type[Warning], int], int] = {}
        weakref.finalize(self, self._crew.end)

    def run(self, function: Callable[..., Result], /, *arguments: Any, timeout_seconds: float) -> Result:
        """Returns function(*arguments), run in a worker; arrays in it are writable and belong to the caller.

        Args:
            function: A module's function, found again in the worker by its name.
            arguments: What pickles.
            timeout_seconds: The longest it may take.

        Raises:
            Exception: What the function raised, if that pickles.
            WorkerTimeoutError: It took longer; it was killed.
            WorkerDiedError: Its worker died, and a second one as well.
            WorkersClosedError: `close` was called meanwhile.
            DataError: No worker can be started.
        """
        causes: list[str] = []
        with self._free:
            while True:
                try:
                    outcome = self._call(function, arguments, timeout_seconds)
                    break
                except WorkerDiedError as error:
                    causes += error.causes
                    if len(causes) == _ATTEMPTS:
                        raise WorkerDiedError(*causes) from error
        self._show_warnings(outcome)
        if outcome.error is not None:
            raise outcome.error
        result: Result = outcome.value
        return result

    def close(self) -> None:
        """Kills the workers; calls that run raise WorkersClosedError. A later call starts new workers."""
        self._crew.end()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_seconds: float) -> Outcome:
        shift = self._crew.shift
        worker = self._crew.take() or self._crew.admit(self._start_worker(), shift)
        try:
            return worker.call(function, arguments, timeout_seconds)
        except WorkerDiedError as error:
            self._crew.require(shift, error)
            raise
        finally:
            self._crew.give_back(worker)

    def _start_worker(self) -> WorkerProcess:
        for attempt in range(_START_ATTEMPTS):
            try:
                return WorkerProcess(self._preload)
            except Exception as error:
                if attempt == _START_ATTEMPTS - 1:
                    reason = f"{type(error).__name__}: {error}"
                    raise DataError(
                        f"a worker process cannot be started, in {_START_ATTEMPTS} attempts: {reason}"
                    ) from error
        raise AssertionError("every attempt returns or raises")

    def _show_warnings(self, outcome: Outcome) -> None:
        for one in outcome.warned:
            warnings.warn_explicit(
                one.message, one.category, one.filename, one.line_number, registry=self._shown_warnings
            )


class _Crew:
    """The workers of a pool: those that wait and those that are in a call. Apart from it, so that it outlives it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[WorkerProcess] = []
        self._working: set[WorkerProcess] = set()
        self.shift = 0  # goes up at every end

    def take(self) -> WorkerProcess | None:
        """Returns the worker that waits for the shortest time, or None."""
        with self._lock:
            if not self._waiting:
                return None
            worker = self._waiting.pop()
            self._working.add(worker)
            return worker

    def admit(self, worker: WorkerProcess, shift: int) -> WorkerProcess:
        """Takes in a new worker that goes to work at once."""
        with self._lock:
            if shift == self.shift:
                self._working.add(worker)
                return worker
        worker.end()
        raise WorkersClosedError("the worker pool was closed")

    def require(self, shift: int, error: WorkerDiedError) -> None:
        """Raises what a death means where `end` was its cause."""
        with self._lock:
            if shift != self.shift:
                raise WorkersClosedError("the worker pool was closed") from error

    def give_back(self, worker: WorkerProcess) -> None:
        """Lets a worker wait for its next call."""
        with self._lock:
            self._working.discard(worker)
            if not worker.has_ended:
                self._waiting.append(worker)

    def end(self) -> None:
        """Kills all workers; those in a call are buried by the thread that waits for them."""
        with self._lock:
            self.shift += 1
            waiting, self._waiting = self._waiting, []
            for worker in (*waiting, *self._working):
                worker.kill()
        for worker in waiting:
            worker.end()
