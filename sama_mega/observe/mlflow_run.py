"""One run at MLflow, brought up to date from the run's files.

What MLflow lacks is always known from files: rows of metrics.jsonl after the last step that it took, and pictures that
it does not list. A server that was away, or a process that was killed, costs nothing but time.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sama_mega.observe.metrics import MetricsReader, numbers_of_row
from sama_mega.observe.tracking_uri import artifact_location, make_database_folder, without_password

TrackerStatus = Literal["FINISHED", "KILLED", "FAILED"]

_log = logging.getLogger(__name__)

# Limits of MLflow's log_batch and of its database columns.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_PARAM_CHARACTERS = 6000
_TAG_CHARACTERS = 5000


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracked run is called, and what is sent of it.

    Attributes:
        uri: From `resolve_tracking_uri`.
        experiment: MLflow's experiment name.
        run_name: Shown in MLflow's list.
        identity_path: File that remembers the MLflow run, and the last step that it took, over lives.
        metrics_path: The run's metrics.jsonl, whose rows are sent.
        start_step: Finished steps in what this life began from: rows after it are sent, whatever was sent before.
        continues: Whether to go on with the remembered run (a resumed run) or to open a new one.
        params: Flat recipe.
        tags: Such as the commit.
        start_files: Stored in every life, such as the recipe.
        earlier_files: Files of earlier lives with their artifact folders; those that MLflow lacks are sent.
    """

    uri: str
    experiment: str
    run_name: str
    identity_path: Path
    metrics_path: Path
    start_step: int = 0
    continues: bool = True
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    start_files: tuple[Path, ...] = ()
    earlier_files: tuple[tuple[Path, str], ...] = ()

    @property
    def shown_uri(self) -> str:
        """Without a password."""
        return without_password(self.uri)


class MlflowRun:
    """The run as MLflow has it. Every method raises what MLflow raises, and may be called again then.

    Args:
        settings: See `TrackerSettings`.
        make_client: Gives a client for a URI; None takes MLflow's own.
    """

    def __init__(self, settings: TrackerSettings, make_client: Callable[[str], Any] | None = None) -> None:
        self._settings = settings
        self._make_client = make_client or _mlflow_client
        self._client: Any = None
        self._run_id: str | None = None
        self._identity: dict[str, Any] | None = None
        self._rows: MetricsReader | None = None
        self._unsent: list[dict[str, Any]] = []
        self._files: deque[tuple[Path, str | None]] = deque()

    def add_file(self, path: Path, artifact_folder: str) -> None:
        """Queues a file for `update`; another thread may do so."""
        self._files.append((path, artifact_folder))

    def update(self, ending: TrackerStatus | None = None) -> None:
        """Opens the run where it is not open yet, and sends the rows and files that it lacks.

        Files come last: a server whose file store refuses them has the metrics and the end all the same.

        Args:
            ending: How the run ended; None: it goes on.
        """
        run_id = self._run_id or self._open()
        self._send_rows(run_id)
        if ending is not None:
            self._client.set_terminated(run_id, ending)
        while self._files:
            path, folder = self._files[0]
            if path.exists():  # a user may have tidied up
                self._client.log_artifact(run_id, str(path), folder)
            self._files.popleft()

    def _open(self) -> str:
        settings = self._settings
        make_database_folder(settings.uri)
        self._client = self._make_client(settings.uri)
        identity = self._remembered()
        if identity is None:
            run_id, sent_step = self._create(), 0
            missing = list(settings.earlier_files)
        else:
            run_id, sent_step = str(identity["run_id"]), int(identity.get("sent_step", settings.start_step))
            self._client.update_run(run_id, status="RUNNING")
            for name, value in self._tags().items():
                self._client.set_tag(run_id, name, value)
            missing = self._not_listed(run_id)
        self._send_params(run_id)
        self._files.extendleft(reversed([*((path, None) for path in settings.start_files), *missing]))
        self._rows = MetricsReader(settings.metrics_path, after_step=min(sent_step, settings.start_step))
        self._run_id = run_id
        return run_id

    def _remembered(self) -> dict[str, Any] | None:
        """What is known of the MLflow run of an earlier life, or attempt; None when there is none or it was deleted."""
        if self._identity is None:
            self._identity = self._read_identity()
        if self._identity is None:
            return None
        try:
            run = self._client.get_run(self._identity["run_id"])
        except Exception as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return self._identity if run.info.lifecycle_stage == "active" else None

    def _read_identity(self) -> dict[str, Any] | None:
        path = self._settings.identity_path
        if not self._settings.continues or not path.exists():
            return None
        try:
            identity = json.loads(path.read_text(encoding="utf-8"))
            is_here = bool(identity["run_id"]) and identity["uri"] == self._settings.shown_uri
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be read (%r): a new MLflow run gets the whole history", path, error)
            return None
        return identity if is_here else None

    def _create(self) -> str:
        settings = self._settings
        experiment = self._client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            location = artifact_location(settings.uri)
            experiment_id = self._client.create_experiment(settings.experiment, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        run = self._client.create_run(experiment_id, run_name=settings.run_name, tags=self._tags())
        self._remember(run.info.run_id, 0)
        return str(run.info.run_id)

    def _remember(self, run_id: str, sent_step: int) -> None:
        """Notes which MLflow run this is, and up to which step it has the metrics."""
        path = self._settings.identity_path
        self._identity = {
            "uri": self._settings.shown_uri,
            "experiment": self._settings.experiment,
            "run_id": run_id,
            "sent_step": sent_step,
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with suppress(OSError):  # a full disk ends the run elsewhere; here it costs a later life some repetition
            temporary.write_text(json.dumps(self._identity, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)

    def _tags(self) -> dict[str, str]:
        return {name: value[:_TAG_CHARACTERS] for name, value in self._settings.tags.items()}

    def _not_listed(self, run_id: str) -> list[tuple[Path, str]]:
        """Earlier files that MLflow lacks, or has a part of."""
        listed: dict[str, int | None] = {}
        for folder in sorted({folder for _, folder in self._settings.earlier_files}):
            listed |= {file.path: file.file_size for file in self._client.list_artifacts(run_id, folder)}
        return [
            (path, folder)
            for path, folder in self._settings.earlier_files
            if path.exists() and listed.get(f"{folder}/{path.name}") != path.stat().st_size
        ]

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

    def _send_rows(self, run_id: str) -> None:
        assert self._rows is not None
        while True:
            if not self._unsent:
                self._unsent = self._rows.next_rows(_METRICS_PER_BATCH)
            if not self._unsent:
                return
            # A row's own time: what is sent twice, because its answer was lost, is then the same to MLflow.
            metrics = [
                _metric(name, value, int(1000 * row.get("ended_at_seconds", time.time())), row["step"])
                for row in self._unsent
                for name, value in numbers_of_row(row).items()
            ]
            for start in range(0, len(metrics), _METRICS_PER_BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])
            self._remember(run_id, self._unsent[-1]["step"])
            self._unsent = []


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
