"""Asks a run to stop at the next step boundary, with everything saved: what a signal means to a rank."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""USR1: a time limit or a preemption is near (`#SBATCH --signal`). TERM: `scancel`, `kill`, a preemption."""


class RunStopped(Exception):
    """The ranks agreed to stop early; not an error.

    Attributes:
        signal_name: What one of them was told, such as `SIGUSR1`.
    """

    def __init__(self, number: int) -> None:
        """Names the signal `number`."""
        self.signal_name = signal.Signals(number).name
        super().__init__(f"told to stop by {self.signal_name}")


class StopRequest:
    """While entered, turns the signals of `STOP_SIGNALS` into a request that `pending` holds; puts back what was there.

    The first signal counts, further ones change nothing. Outside the main thread, where Python hears no signals,
    entering does nothing.
    """

    def __init__(self) -> None:
        self._number = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def pending(self) -> int:
        """Number of the signal that came first, 0 for none."""
        return self._number

    def request(self, number: int) -> None:
        """Does what the signal of that number does."""
        self._number = self._number or number

    def __enter__(self) -> StopRequest:
        """Begins to listen."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops listening."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request(number)
