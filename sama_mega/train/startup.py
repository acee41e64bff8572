"""Where the time goes between the start of a job and the end of its first step. Imports no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

JOB_STARTED_VARIABLE = "SAMA_MEGA_JOB_STARTED_AT_SECONDS"
RANK_STARTED_VARIABLE = "SAMA_MEGA_RANK_STARTED_AT_SECONDS"
HEALTHY_VARIABLE = "SAMA_MEGA_HEALTHY_AT_SECONDS"
"""Set by `slurm/job.sh` and `slurm/entrypoint.sh`: seconds since 1970 at which each was reached."""

_REACHED = ((JOB_STARTED_VARIABLE, "launch"), (RANK_STARTED_VARIABLE, "health check"), (HEALTHY_VARIABLE, "Python"))
_log = logging.getLogger(__name__)


class StartupClock:
    """Measures the parts of a start one after the other; a part ends where it is marked.

    Args:
        environ: The process's variables.
        now: Seconds since 1970.

    Attributes:
        seconds: Every part by its name, in order.
    """

    def __init__(self, environ: Mapping[str, str], now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.seconds: dict[str, float] = {}
        known = [(_seconds(environ[variable]), name) for variable, name in _REACHED if variable in environ]
        self._marked_at = now()
        ends = [*(began for began, _ in known[1:]), self._marked_at]
        for (began, name), ended in zip(known, ends, strict=False):
            self.seconds[name] = round(ended - began, 3)

    def mark(self, name: str) -> None:
        """Ends a part."""
        reached = self._now()
        self.seconds[name] = round(reached - self._marked_at, 3)
        self._marked_at = reached

    def say(self) -> None:
        """Logs the parts and their sum."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        _log.info("first step done %.1f s after the start (seconds: %s)", sum(self.seconds.values()), parts)


def _seconds(text: str) -> float:
    # The shell writes the decimal sign of the user's language, which Slurm brings along.
    return float(text.replace(",", "."))
