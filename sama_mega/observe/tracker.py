"""MLflow tracking that training never waits for and never fails by.

Metrics go into a queue; one background thread imports mlflow, opens the run and sends batches. While the
server is down the queue keeps the newest rows and the thread tries again; metrics.jsonl has all in any case.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

_log = logging.getLogger(__name__)

DEFAULT_URI = "sqlite:///runs/mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
TrackerStatus = Literal["FINISHED", "KILLED", "FAILED"]
EndFile = tuple[Path, str]
"""A file and the folder among MLflow's artifacts that it goes to."""

_SQLITE_PREFIX = "sqlite:///"
_FLUSH_SECONDS = 5.0
_RETRY_SECONDS = 30.0
_MAX_PENDING_METRICS = 200_000
# Limits of MLflow's log_batch and of its database columns.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_PARAM_CHARACTERS = 6000
_TAG_CHARACTERS = 5000
_CAUSE_CHARACTERS = 200


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracked run is called and what is stored once.

    Attributes:
        uri: From `resolve_tracking_uri`.
        experiment: MLflow's experiment name.
        run_name: Shown in MLflow's list.
        identity_path: File that remembers the MLflow run over lives.
        continues: Whether to go on with the remembered run (a resumed run) or to open a new one.
        params: Flat recipe.
        tags: Such as the commit.
        start_files: Files stored when the run opens, such as the recipe.
    """

    uri: str
    experiment: str
    run_name: str
    identity_path: Path
    continues: bool = True
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    start_files: tuple[Path, ...] = ()


class MlflowTracker:
    """One MLflow run, fed by a background thread."""

    def __init__(
        self,
        settings: TrackerSettings,
        make_client: Callable[[str], Any] | None = None,
        flush_seconds: float = _FLUSH_SECONDS,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        """Prepares; `start` begins.

        Args:
            settings: See `TrackerSettings`.
            make_client: Gives a client for a URI; MLflow's own by default.
            flush_seconds: Time between two batches.
            retry_seconds: Time between two attempts while the tracker is down.
        """
        self._settings = settings
        self._make_client = make_client
        self._flush_seconds, self._retry_seconds = flush_seconds, retry_seconds
        self._pending: deque[tuple[str, float, int, int]] = deque(maxlen=_MAX_PENDING_METRICS)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing: tuple[TrackerStatus, tuple[EndFile, ...]] | None = None
        self._warned = False
        self._client: Any = None
        self._run_id: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, or warns once when mlflow is not installed."""
        if self._make_client is None and importlib.util.find_spec("mlflow") is None:
            self._warn("mlflow is not installed: this run is recorded in metrics.jsonl only")
            return
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one step's metrics; never blocks on the tracker."""
        if self._thread is None:
            return
        now_milliseconds = int(time.time() * 1000)
        with self._lock:
            self._pending.extend((name, value, now_milliseconds, step) for name, value in metrics.items())
            full = len(self._pending) >= _METRICS_PER_BATCH
        if full:
            self._wake.set()

    def close(self, status: TrackerStatus, end_files: tuple[EndFile, ...] = (), timeout_seconds: float = 30.0) -> None:
        """Sends what is left, stores the last files and ends the MLflow run; may be called twice.

        Args:
            status: How the run ended.
            end_files: Stored with the run, such as sample pictures.
            timeout_seconds: Longest wait; what is unsent then stays in metrics.jsonl alone.
        """
        if self._thread is None:
            return
        self._closing = (status, end_files)
        self._wake.set()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._warn(f"MLflow ({self._shown_uri()}) took longer than {timeout_seconds:.0f} s to finish")
        self._thread = None

    def _work(self) -> None:
        retry_at = 0.0
        while True:
            self._wake.wait(self._flush_seconds)
            self._wake.clear()
            closing = self._closing
            if closing is None and time.monotonic() < retry_at:
                continue
            try:
                self._connect()
                self._send_pending()
                if closing is not None:
                    self._finish(*closing)
            except Exception as error:  # a tracker in trouble must not stop a training run, whatever it raises
                self._warn(
                    f"MLflow ({self._shown_uri()}) does not answer ({_root_cause(error)}): "
                    "metrics.jsonl goes on, and sending is tried again"
                )
                retry_at = time.monotonic() + self._retry_seconds
            if closing is not None:
                return

    def _send_pending(self) -> None:
        while True:
            with self._lock:
                batch = [self._pending[i] for i in range(min(len(self._pending), _METRICS_PER_BATCH))]
            if not batch:
                return
            self._client.log_batch(self._run_id, metrics=[_metric(*entry) for entry in batch])
            with self._lock:
                # While sending, a full queue may have dropped some of these from its old end.
                while self._pending and batch and self._pending[0] is not batch[0]:
                    batch.pop(0)
                for _ in batch:
                    self._pending.popleft()

    def _connect(self) -> None:
        if self._run_id is not None:
            return
        _make_database_folder(self._settings.uri)
        self._client = (self._make_client or _mlflow_client)(self._settings.uri)
        run_id = self._remembered_run() or self._create_run()
        self._send_params(run_id)
        for path in self._settings.start_files:
            self._client.log_artifact(run_id, str(path))
        self._run_id = run_id

    def _remembered_run(self) -> str | None:
        """The MLflow run of an earlier life, opened again; None when there is none or it was deleted."""
        path = self._settings.identity_path
        if not self._settings.continues or not path.exists():
            return None
        identity = json.loads(path.read_text(encoding="utf-8"))
        if identity.get("uri") != self._shown_uri():
            return None
        try:
            run = self._client.get_run(identity["run_id"])
        except Exception as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(identity["run_id"], status="RUNNING")
        return str(identity["run_id"])

    def _create_run(self) -> str:
        experiment = self._client.get_experiment_by_name(self._settings.experiment)
        if experiment is None:
            location = _artifact_location(self._settings.uri)
            experiment_id = self._client.create_experiment(self._settings.experiment, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        tags = {name: value[:_TAG_CHARACTERS] for name, value in self._settings.tags.items()}
        run = self._client.create_run(experiment_id, run_name=self._settings.run_name, tags=tags)
        identity = {
            "uri": self._shown_uri(),
            "experiment": self._settings.experiment,
            "run_id": run.info.run_id,
        }
        self._settings.identity_path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        return str(run.info.run_id)

    def _send_params(self, run_id: str) -> None:
        """Params cannot be changed once logged: what a resumed run changed becomes a tag."""
        wanted = {key: value[:_PARAM_CHARACTERS] for key, value in self._settings.params.items()}
        known = self._client.get_run(run_id).data.params
        new = [(key, value) for key, value in wanted.items() if key not in known]
        changed = {key: value for key, value in wanted.items() if known.get(key, value) != value}
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            batch = [_param(key, value) for key, value in new[start : start + _PARAMS_PER_BATCH]]
            self._client.log_batch(run_id, params=batch)
        if changed:
            self._client.set_tag(run_id, "changed_on_resume", json.dumps(changed)[:_TAG_CHARACTERS])

    def _finish(self, status: TrackerStatus, end_files: tuple[EndFile, ...]) -> None:
        for path, artifact_folder in end_files:
            self._client.log_artifact(self._run_id, str(path), artifact_folder)
        self._client.set_terminated(self._run_id, status)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(message)

    def _shown_uri(self) -> str:
        return without_password(self._settings.uri)


def resolve_tracking_uri(recipe_uri: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Where to track: the environment variable, else the recipe, else SQLite below runs/.

    Args:
        recipe_uri: `track.uri`.
        environment: Holds MLFLOW_TRACKING_URI where the user set it.

    Returns:
        The URI, a relative SQLite path made absolute: later lives may start in another folder.
    """
    uri = environment.get(URI_VARIABLE) or recipe_uri or DEFAULT_URI
    database = _sqlite_path(uri)
    return uri if database is None else f"{_SQLITE_PREFIX}{database.absolute()}"


def without_password(uri: str) -> str:
    """The URI without user and password, for logs and files."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


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


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix(_SQLITE_PREFIX)) if uri.startswith(_SQLITE_PREFIX) else None


def _make_database_folder(uri: str) -> None:
    database = _sqlite_path(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)


def _artifact_location(uri: str) -> str | None:
    """Beside a SQLite file; a server decides for itself. MLflow's default litters the working directory."""
    database = _sqlite_path(uri)
    return None if database is None else (database.parent / "mlflow-artifacts").absolute().as_uri()


def _mlflow_client(uri: str) -> Any:
    # Set before the import, which reads them: no telemetry, no search for git, no minutes of retries.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow.tracking import MlflowClient

    # It tells of new tables and prints pages of tracebacks across the progress bar; errors come back to us.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _metric(name: str, value: float, timestamp_milliseconds: int, step: int) -> Any:
    from mlflow.entities import Metric

    return Metric(name, value, timestamp_milliseconds, step)


def _param(key: str, value: str) -> Any:
    from mlflow.entities import Param

    return Param(key, value)
