"""MLflow tracking that training never waits for and never fails by.

One background thread imports mlflow, opens the run and keeps it up to date with the run's files. While the server is
away it tries again, less and less often.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sama_mega.observe.mlflow_run import MlflowRun, TrackerSettings, TrackerStatus

_log = logging.getLogger(__name__)

_CAUSE_CHARACTERS = 200


class MlflowTracker:
    """One MLflow run, kept up to date by a background thread.

    Args:
        settings: See `TrackerSettings`.
        make_client: Gives a client for a URI; MLflow's own by default.
        update_seconds: Time between two updates.
        retry_seconds: Time before the first new attempt once MLflow does not answer; every further one takes twice as
            long, up to `max_retry_seconds`.
        max_retry_seconds: See there.
        patience_seconds: How long `close` goes on trying with a server that answered before in this life.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        make_client: Callable[[str], Any] | None = None,
        update_seconds: float = 5.0,
        retry_seconds: float = 2.0,
        max_retry_seconds: float = 60.0,
        patience_seconds: float = 10.0,
    ) -> None:
        self._settings = settings
        self._is_installed = make_client is not None or importlib.util.find_spec("mlflow") is not None
        self._run = MlflowRun(settings, make_client)
        self._update_seconds = update_seconds
        self._retry_seconds, self._max_retry_seconds = retry_seconds, max_retry_seconds
        self._patience_seconds = patience_seconds
        self._wake = threading.Event()
        self._ending: TrackerStatus | None = None
        self._closed_at = 0.0
        self._is_abandoned = False
        self._failures = 0
        self._has_answered = False
        self._said_incomplete = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, or says that mlflow is not installed."""
        if not self._is_installed:
            _log.warning("mlflow is not installed: this run is recorded in metrics.jsonl only")
            return
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def add_file(self, path: Path, artifact_folder: str) -> None:
        """Queues a file to be stored with the run; returns at once."""
        self._run.add_file(path, artifact_folder)

    def close(self, status: TrackerStatus, timeout_seconds: float = 30.0) -> None:
        """Sends what is left and ends the MLflow run; may be called twice.

        Args:
            status: How the run ended.
            timeout_seconds: Longest wait; what is unsent then, the same run's next life sends.
        """
        self._closed_at = time.monotonic()
        self._ending = status
        self._end_thread(timeout_seconds)

    def abandon(self) -> None:
        """Ends the thread and leaves the MLflow run as it is, to a newer life."""
        self._is_abandoned = True
        self._end_thread(0.0)

    def _end_thread(self, timeout_seconds: float) -> None:
        if self._thread is None:
            return
        self._wake.set()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive() and not self._is_abandoned:
            self._say_incomplete()
        self._thread = None

    def _work(self) -> None:
        while not self._is_abandoned:
            ending = self._ending
            is_done = self._attempt(ending)
            if ending is not None and (is_done or self._is_out_of_patience()):
                if not is_done:
                    self._say_incomplete()
                return
            self._wake.wait(self._pause_seconds(is_closing=ending is not None))
            self._wake.clear()

    def _attempt(self, ending: TrackerStatus | None) -> bool:
        """Brings MLflow up to date; False where it does not answer, which is said once."""
        try:
            self._run.update(ending)
        except Exception as error:  # a tracker in trouble must not stop a training run, whatever it raises
            if not self._failures:
                _log.warning(
                    "MLflow (%s) does not answer (%s): the run goes on, and what MLflow misses is sent once it answers",
                    self._settings.shown_uri,
                    _root_cause(error),
                )
            self._failures += 1
            return False
        if self._failures:
            _log.info("MLflow (%s) answers again and has all metrics", self._settings.shown_uri)
        self._failures = 0
        self._has_answered = True
        return True

    def _pause_seconds(self, is_closing: bool) -> float:
        if not self._failures:
            return self._update_seconds
        # 60 doublings are past any limit.
        pause = min(self._retry_seconds * 2.0 ** min(self._failures - 1, 60), self._max_retry_seconds)
        return min(pause, self._retry_seconds) if is_closing else pause

    def _is_out_of_patience(self) -> bool:
        return not self._has_answered or time.monotonic() > self._closed_at + self._patience_seconds

    def _say_incomplete(self) -> None:
        """Said once: a thread that outlives `close` comes to the same end."""
        if self._said_incomplete:
            return
        self._said_incomplete = True
        _log.warning(
            "MLflow (%s) lacks the end of this run: %s has it, and starting the run again sends it",
            self._settings.shown_uri,
            self._settings.metrics_path,
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings to dotted keys and text values; lists become JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | tuple) else str(value)
    return flat


def _root_cause(error: BaseException) -> str:
    """The first line of what started it: the layers above wrap it in pages."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error) or type(error).__name__).splitlines()[0][:_CAUSE_CHARACTERS]
