"""The tracker: batches, resume, a server that is down, and the real MLflow on SQLite."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sama_mega.observe import tracker as tracker_module
from sama_mega.observe.tracker import (
    MlflowTracker,
    TrackerSettings,
    flatten,
    resolve_tracking_uri,
    without_password,
)


class _Server:
    """Stands for MLflow: remembers what it was told; down while `error` is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.runs: dict[str, SimpleNamespace] = {}
        self.metrics: list[Any] = []
        self.batches: list[int] = []
        self.artifacts: list[tuple[str, str | None]] = []
        self.called = threading.Event()

    def client(self, uri: str) -> _Server:
        return self

    def _check(self) -> None:
        self.called.set()
        if self.error is not None:
            raise self.error

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        self._check()
        return SimpleNamespace(experiment_id="7")

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> SimpleNamespace:
        run_id = f"run{len(self.runs)}"
        info = SimpleNamespace(run_id=run_id, lifecycle_stage="active")
        self.runs[run_id] = SimpleNamespace(info=info, data=SimpleNamespace(params={}), status="RUNNING", tags=tags)
        return self.runs[run_id]

    def get_run(self, run_id: str) -> SimpleNamespace:
        self._check()
        if run_id not in self.runs:
            missing = RuntimeError("no such run")
            missing.error_code = "RESOURCE_DOES_NOT_EXIST"  # type: ignore[attr-defined]
            raise missing
        return self.runs[run_id]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status

    def log_batch(self, run_id: str, metrics: tuple = (), params: tuple = ()) -> None:
        self._check()
        assert len(metrics) <= 1000 and len(params) <= 100
        self.batches.append(len(metrics))
        self.metrics.extend(metrics)
        for param in params:
            assert param.key not in self.runs[run_id].data.params
            self.runs[run_id].data.params[param.key] = param.value

    def log_artifact(self, run_id: str, path: str, folder: str | None = None) -> None:
        self.artifacts.append((Path(path).name, folder))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].tags[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self._check()
        self.runs[run_id].status = status


@pytest.fixture(autouse=True)
def _plain_entities(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" in request.node.name:
        return
    monkeypatch.setattr(
        tracker_module, "_metric", lambda *entry: entry
    )  # importing mlflow costs more than all these tests
    monkeypatch.setattr(tracker_module, "_param", lambda key, value: SimpleNamespace(key=key, value=value))


def _settings(tmp_path: Path, **changes: Any) -> TrackerSettings:
    values: dict[str, Any] = {
        "uri": "http://somebody:secret@host/mlflow",
        "experiment": "e",
        "run_name": "demo",
        "identity_path": tmp_path / "mlflow.json",
    }
    return TrackerSettings(**{**values, **changes})


def _tracker(server: _Server, settings: TrackerSettings, **times: float) -> MlflowTracker:
    tracker = MlflowTracker(settings, server.client, **times)
    tracker.start()
    return tracker


def test_every_metric_of_every_step_arrives_in_batches(tmp_path: Path) -> None:
    server = _Server()
    params = {f"section.key{i}": "x" * 7000 for i in range(230)}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("")
    tracker = _tracker(server, _settings(tmp_path, params=params, start_files=(recipe,)))
    for step in range(1, 801):
        tracker.log_metrics(step, {"loss": 1 / step, "gradient_norm": float(step), "nan": math.nan})
    tracker.close("FINISHED", ((tmp_path / "a.png", "samples"),))
    run = server.runs["run0"]
    assert run.status == "FINISHED"
    assert len(run.data.params) == 230 and len(run.data.params["section.key0"]) == 6000
    assert [(m[0], m[1], m[3]) for m in server.metrics if m[0] == "loss"] == [
        ("loss", 1 / step, step) for step in range(1, 801)
    ]
    assert len(server.metrics) == 2400
    assert server.artifacts == [("recipe.yaml", None), ("a.png", "samples")]


def test_a_resumed_run_continues_the_same_mlflow_run(tmp_path: Path) -> None:
    server = _Server()
    first = _tracker(server, _settings(tmp_path, params={"lr": "1", "steps": "10"}))
    first.log_metrics(1, {"loss": 1.0})
    first.close("KILLED")
    second = _tracker(server, _settings(tmp_path, params={"lr": "1", "steps": "20", "new": "x"}))
    second.log_metrics(2, {"loss": 0.5})
    second.close("FINISHED")
    assert list(server.runs) == ["run0"]
    run = server.runs["run0"]
    assert run.data.params == {"lr": "1", "steps": "10", "new": "x"}
    assert json.loads(run.tags["changed_on_resume"]) == {"steps": "20"}
    assert [m[3] for m in server.metrics] == [1, 2] and run.status == "FINISHED"


@pytest.mark.parametrize("why", ["told to start anew", "deleted run", "removed run", "another server"])
def test_otherwise_a_new_mlflow_run_is_opened(tmp_path: Path, why: str) -> None:
    server = _Server()
    _tracker(server, _settings(tmp_path)).close("KILLED")
    changes: dict[str, Any] = {}
    if why == "told to start anew":
        changes["continues"] = False
    elif why == "another server":
        changes["uri"] = "http://elsewhere"
    elif why == "deleted run":
        server.runs["run0"].info.lifecycle_stage = "deleted"
    else:
        server.runs["other"] = server.runs.pop("run0")
    _tracker(server, _settings(tmp_path, **changes)).close("FINISHED")
    assert json.loads((tmp_path / "mlflow.json").read_text())["run_id"] == "run1"


def test_while_the_server_is_down_nothing_waits_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = _Server()
    server.error = ConnectionError("refused\nand much more")
    tracker = _tracker(server, _settings(tmp_path), flush_seconds=0.01, retry_seconds=0.01)
    started = time.perf_counter()
    for step in range(1, 100):
        tracker.log_metrics(step, {"loss": 1.0})
    assert time.perf_counter() - started < 1
    assert server.called.wait(10)
    server.called.clear()
    assert server.called.wait(10), "it must try again"
    server.error = None
    tracker.close("FINISHED")
    assert len(server.metrics) == 99
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "refused" in warnings[0] and "much more" not in warnings[0] and "secret" not in warnings[0]


def test_a_server_down_to_the_end_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = _Server()
    server.error = ConnectionError("refused")
    tracker = _tracker(server, _settings(tmp_path), flush_seconds=0.01, retry_seconds=0.0)
    tracker.log_metrics(1, {"loss": 1.0})
    assert server.called.wait(10)
    tracker.close("FAILED")
    tracker.close("FAILED")
    tracker.log_metrics(2, {"loss": 1.0})
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_a_server_that_hangs_does_not_hold_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, release = _Server(), threading.Event()
    server._check = lambda: release.wait(30)  # type: ignore[method-assign]
    tracker = _tracker(server, _settings(tmp_path), flush_seconds=0.01)
    started = time.perf_counter()
    tracker.close("FINISHED", timeout_seconds=0.2)
    assert time.perf_counter() - started < 5
    assert "took longer" in caplog.text
    release.set()


def test_without_mlflow_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracker_module.importlib.util, "find_spec", lambda name: None)
    tracker = MlflowTracker(_settings(tmp_path))
    tracker.start()
    tracker.log_metrics(1, {"loss": 1.0})
    tracker.close("FINISHED")
    assert [record.getMessage() for record in caplog.records] == [
        "mlflow is not installed: this run is recorded in metrics.jsonl only"
    ]


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    default = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_tracking_uri(None, {}) == default
    assert resolve_tracking_uri("http://a", {}) == "http://a"
    assert resolve_tracking_uri("http://a", {"MLFLOW_TRACKING_URI": "http://b"}) == "http://b"
    assert resolve_tracking_uri(default, {}) == default
    assert without_password("https://u:p@host:5/x") == "https://host:5/x"
    assert without_password(default) == default


def test_recipes_become_flat_params() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": True}
    assert flatten(nested) == {"a.b": "1", "a.c.d": "None", "e": "[1, 2]", "f": "True"}


def test_real_mlflow_on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lives of one run in the default place, then one whose MLflow run has gone; no litter."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    picture = folder / "a.png"
    picture.write_bytes(b"png")
    uri = resolve_tracking_uri(None, {})
    for life in range(2):
        settings = TrackerSettings(
            uri, "sama-mega", "demo", folder / "mlflow.json", params={"model.dim": "64", "life": str(life)}
        )
        tracker = MlflowTracker(settings)
        tracker.start()
        for step in range(1 + 5 * life, 6 + 5 * life):
            tracker.log_metrics(step, {"loss": 1 / step, "task/cube": math.nan})
        tracker.close("FINISHED", ((picture, "samples"),))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])
    assert run.info.status == "FINISHED" and run.data.params == {"model.dim": "64", "life": "0"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(s, 1 / s) for s in range(1, 11)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == ["samples/a.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    identity = json.loads((folder / "mlflow.json").read_text())
    (folder / "mlflow.json").write_text(json.dumps({**identity, "run_id": "0" * 32}))
    tracker = MlflowTracker(TrackerSettings(uri, "sama-mega", "demo", folder / "mlflow.json"))
    tracker.start()
    tracker.close("KILLED")
    anew = json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert anew not in ("0" * 32, run.info.run_id) and client.get_run(anew).info.status == "KILLED"
