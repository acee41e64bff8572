"""The tracker: batches, resume, a server that is down, and the real MLflow on SQLite."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sama_mega.observe import mlflow_run
from sama_mega.observe import tracker as tracker_module
from sama_mega.observe.mlflow_run import TrackerSettings
from sama_mega.observe.tracker import MlflowTracker, flatten
from sama_mega.observe.tracking_uri import resolve_tracking_uri, without_password


class _Server:
    """Stands for MLflow: remembers what it was told; down while `error` is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.file_error: Exception | None = None
        self.runs: dict[str, SimpleNamespace] = {}
        self.metrics: list[Any] = []
        self.batches: list[int] = []
        self.artifacts: list[tuple[str, str | None]] = []
        self.sizes: dict[str, int] = {}
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
        self._check()
        if self.file_error is not None:
            raise self.file_error
        self.artifacts.append((Path(path).name, folder))
        self.sizes[f"{folder}/{Path(path).name}"] = Path(path).stat().st_size

    def list_artifacts(self, run_id: str, folder: str) -> list[SimpleNamespace]:
        self._check()
        names = [name for name in self.sizes if name.startswith(f"{folder}/")]
        return [SimpleNamespace(path=name, file_size=self.sizes[name]) for name in names]

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].tags[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self._check()
        self.runs[run_id].status = status


@pytest.fixture(autouse=True)
def _plain_entities(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" in request.node.name:
        return
    # Importing mlflow costs more than all these tests.
    monkeypatch.setattr(mlflow_run, "_metric", lambda *entry: entry)
    monkeypatch.setattr(mlflow_run, "_param", lambda key, value: SimpleNamespace(key=key, value=value))


def _settings(tmp_path: Path, **changes: Any) -> TrackerSettings:
    values: dict[str, Any] = {
        "uri": "http://somebody:secret@host/mlflow",
        "experiment": "e",
        "run_name": "demo",
        "identity_path": tmp_path / "mlflow.json",
        "metrics_path": tmp_path / "metrics.jsonl",
    }
    return TrackerSettings(**{**values, **changes})


def _tracker(server: _Server, settings: TrackerSettings, **times: float) -> MlflowTracker:
    tracker = MlflowTracker(settings, server.client, **{"update_seconds": 0.01, "retry_seconds": 0.01, **times})
    tracker.start()
    return tracker


def _rows(tmp_path: Path, steps: range, **values: Any) -> None:
    """What the run writes."""
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in steps:
            row = {"step": step, "loss": 1 / step, "skipped": None, "ended_at_seconds": 1000.5 + step, **values}
            file.write(json.dumps(row) + "\n")


def _losses(server: _Server) -> list[tuple[int, float]]:
    return [(step, value) for name, value, _, step in server.metrics if name == "loss"]


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_every_number_of_every_step_arrives_in_batches(tmp_path: Path) -> None:
    server = _Server()
    params = {f"section.key{i}": "x" * 7000 for i in range(230)}
    recipe, picture = tmp_path / "recipe.yaml", tmp_path / "a.png"
    recipe.write_text("")
    picture.write_bytes(b"png")
    tracker = _tracker(server, _settings(tmp_path, params=params, start_files=(recipe,)))
    _rows(tmp_path, range(1, 801), loss_by={"cube": 0.5, "edit": None}, sample_digest="d", semantic_loss=None)
    tracker.add_file(picture, "samples")
    tracker.add_file(tmp_path / "deleted.png", "samples")
    tracker.close("FINISHED")
    run = server.runs["run0"]
    assert run.status == "FINISHED"
    assert len(run.data.params) == 230 and len(run.data.params["section.key0"]) == 6000
    assert _losses(server) == [(step, 1 / step) for step in range(1, 801)]
    assert {name for name, *_ in server.metrics} == {"loss", "loss_by/cube", "skipped"} and len(server.metrics) == 2400
    assert server.metrics[0][2] == server.metrics[1][2] == 1_001_500  # milliseconds of the row itself
    assert server.artifacts == [("recipe.yaml", None), ("a.png", "samples")]


def test_rows_arrive_while_the_run_goes_on(tmp_path: Path) -> None:
    server = _Server()
    tracker = _tracker(server, _settings(tmp_path))
    for step in (1, 2):
        _rows(tmp_path, range(step, step + 1))
        _wait(lambda seen=step: len(_losses(server)) == seen)
    tracker.close("FINISHED")
    assert [step for step, _ in _losses(server)] == [1, 2]


def _wait(happened: Any) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_resumed_run_continues_the_same_mlflow_run(tmp_path: Path) -> None:
    server = _Server()
    first = _tracker(server, _settings(tmp_path, params={"lr": "1", "steps": "10"}, tags={"commit": "a"}))
    _rows(tmp_path, range(1, 2))
    first.close("KILLED")
    changed = {"params": {"lr": "1", "steps": "20", "new": "x"}, "tags": {"commit": "b"}, "start_step": 1}
    second = _tracker(server, _settings(tmp_path, **changed))
    _rows(tmp_path, range(2, 3))
    second.close("FINISHED")
    assert list(server.runs) == ["run0"]
    run = server.runs["run0"]
    assert run.data.params == {"lr": "1", "steps": "10", "new": "x"} and run.tags["commit"] == "b"
    assert json.loads(run.tags["changed_on_resume"]) == {"steps": "20"}
    assert [step for step, _ in _losses(server)] == [1, 2] and run.status == "FINISHED"


@pytest.mark.parametrize("why", ["told to start anew", "deleted run", "removed run", "another server"])
def test_otherwise_a_new_mlflow_run_is_opened(tmp_path: Path, why: str) -> None:
    server = _Server()
    _rows(tmp_path, range(1, 3))
    _tracker(server, _settings(tmp_path)).close("KILLED")
    changes: dict[str, Any] = {"start_step": 2}
    if why == "told to start anew":
        changes = {"continues": False}
    elif why == "another server":
        changes["uri"] = "http://elsewhere"
    elif why == "deleted run":
        server.runs["run0"].info.lifecycle_stage = "deleted"
    else:
        server.runs["other"] = server.runs.pop("run0")
    _tracker(server, _settings(tmp_path, **changes)).close("FINISHED")
    assert json.loads((tmp_path / "mlflow.json").read_text())["run_id"] == "run1"
    assert [step for step, _ in _losses(server)] == [1, 2, 1, 2], "the new run has the whole history"


def test_while_the_server_is_down_nothing_is_lost_and_little_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, picture = _Server(), tmp_path / "a.png"
    picture.write_bytes(b"png")
    caplog.set_level(logging.INFO)
    server.error = ConnectionError("refused\nand much more")
    tracker = _tracker(server, _settings(tmp_path), max_retry_seconds=0.02)
    _rows(tmp_path, range(1, 100))
    tracker.add_file(picture, "samples")
    for _ in range(3):
        server.called.clear()
        assert server.called.wait(10), "it must try again"
    server.error = None
    _wait(lambda: len(_losses(server)) == 99 and server.artifacts)
    server.error = ConnectionError("again")
    _rows(tmp_path, range(100, 102))
    server.called.clear()
    assert server.called.wait(10)
    server.error = None
    tracker.close("FINISHED")
    assert [step for step, _ in _losses(server)] == list(range(1, 102))
    told = _warnings(caplog)
    assert len(told) == 2 and "refused" in told[0] and "again" in told[1]
    assert "much more" not in caplog.text and "secret" not in caplog.text
    assert caplog.text.count("answers again and has all metrics") == 2


def test_a_server_that_fails_half_way_has_one_run_all_the_same(tmp_path: Path) -> None:
    server, params = _Server(), {"lr": "1"}
    create = server.create_run

    def create_and_go_away(*arguments: Any, **options: Any) -> SimpleNamespace:
        server.error = ConnectionError("gone")
        return create(*arguments, **options)

    server.create_run = create_and_go_away  # type: ignore[method-assign]
    tracker = _tracker(server, _settings(tmp_path, continues=False, params=params), max_retry_seconds=0.01)
    _wait(lambda: tracker._failures > 2)
    server.error = None
    tracker.close("FINISHED")
    assert list(server.runs) == ["run0"] and server.runs["run0"].data.params == params


def test_where_nothing_can_be_remembered_there_is_one_run_all_the_same(tmp_path: Path) -> None:
    """As on a full disk, and with a server that fails after it made the run."""
    server, log_batch, failures = _Server(), _Server.log_batch, iter(range(3))

    def fail_at_first(*arguments: Any, **options: Any) -> None:
        if next(failures, None) is not None:
            raise ConnectionError("gone")
        log_batch(server, *arguments, **options)

    server.log_batch = fail_at_first  # type: ignore[method-assign]
    settings = _settings(tmp_path, params={"lr": "1"}, identity_path=tmp_path / "no folder" / "mlflow.json")
    tracker = _tracker(server, settings, max_retry_seconds=0.01)
    _rows(tmp_path, range(1, 3))
    _wait(lambda: len(_losses(server)) == 2)
    tracker.close("FINISHED")
    assert list(server.runs) == ["run0"] and server.runs["run0"].status == "FINISHED"


@pytest.mark.parametrize("text", ["", "[]", '{"uri": "http://host/mlflow"}'])
def test_a_damaged_memory_costs_a_new_run(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    server = _Server()
    (tmp_path / "mlflow.json").write_text(text)
    _rows(tmp_path, range(1, 3))
    _tracker(server, _settings(tmp_path, start_step=2)).close("FINISHED")
    assert [step for step, _ in _losses(server)] == [1, 2] and server.runs["run0"].status == "FINISHED"
    assert json.loads((tmp_path / "mlflow.json").read_text())["run_id"] == "run0"
    assert len(_warnings(caplog)) == 1 and "mlflow.json cannot be read" in caplog.text


def test_a_server_that_takes_no_files_has_the_metrics_and_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, recipe = _Server(), tmp_path / "recipe.yaml"
    recipe.write_text("")
    server.file_error = PermissionError("/mlruns: permission denied")
    tracker = _tracker(server, _settings(tmp_path, start_files=(recipe,)), patience_seconds=0.05)
    _rows(tmp_path, range(1, 3))
    tracker.close("FINISHED")
    assert [step for step, _ in _losses(server)] == [1, 2] and server.runs["run0"].status == "FINISHED"
    assert list(server.runs) == ["run0"] and "/mlruns: permission denied" in _warnings(caplog)[0]


def test_retries_come_less_and_less_often(tmp_path: Path) -> None:
    tracker = MlflowTracker(_settings(tmp_path), _Server().client, retry_seconds=2.0, max_retry_seconds=60.0)
    pauses = []
    for tracker._failures in range(1, 10_000):
        pauses.append(tracker._pause_seconds(is_closing=False))
    assert pauses[:6] == [2, 4, 8, 16, 32, 60] and set(pauses[6:]) == {60}


def test_what_a_life_could_not_send_the_next_one_sends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server goes away for good in the first life, which is at step 3, and is there in the second."""
    server, caught = _Server(), tmp_path / "caught.png"
    half, missed = tmp_path / "half.png", tmp_path / "missed.png"
    for path in (caught, half, missed):
        path.write_bytes(b"whole")
    first = _tracker(server, _settings(tmp_path), patience_seconds=0.05)
    _rows(tmp_path, range(1, 4))
    first.add_file(caught, "samples")
    _wait(lambda: len(_losses(server)) == 3 and server.artifacts)
    server.sizes["samples/half.png"] = 2  # killed while it received
    server.error = ConnectionError("refused")
    _rows(tmp_path, range(4, 8))
    first.close("FAILED")
    assert len(_warnings(caplog)) == 2 and "starting the run again sends it" in _warnings(caplog)[1]
    server.error = None
    pictures = tuple((path, "samples") for path in (caught, half, missed))
    second = _tracker(server, _settings(tmp_path, start_step=6, earlier_files=pictures))
    _rows(tmp_path, range(8, 10))
    second.close("FINISHED")
    assert [step for step, _ in _losses(server)] == list(range(1, 10))
    assert [name for name, _ in server.artifacts] == ["caught.png", "half.png", "missed.png"]
    assert list(server.runs) == ["run0"] and server.runs["run0"].status == "FINISHED"


def test_steps_that_are_run_again_are_sent_again(tmp_path: Path) -> None:
    server = _Server()
    _rows(tmp_path, range(1, 6))
    _tracker(server, _settings(tmp_path)).close("KILLED")
    (tmp_path / "metrics.jsonl").unlink()
    _rows(tmp_path, range(1, 7), loss=7.0)  # resumed at step 3; the file is the truth
    _tracker(server, _settings(tmp_path, start_step=3)).close("FINISHED")
    assert _losses(server)[5:] == [(4, 7.0), (5, 7.0), (6, 7.0)]


def test_a_server_that_never_answers_is_tried_once_more_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = _Server()
    server.error = ConnectionError("refused")
    tracker = _tracker(server, _settings(tmp_path), retry_seconds=1000.0, patience_seconds=1000.0)
    assert server.called.wait(10)
    server.called.clear()
    tracker.close("FAILED")
    assert server.called.is_set()
    tracker.close("FAILED")
    assert len(_warnings(caplog)) == 2


def _away() -> None:
    raise ConnectionError("refused")


def test_a_server_that_hangs_does_not_hold_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, release = _Server(), threading.Event()
    server._check = lambda: release.wait(30)  # type: ignore[method-assign]
    tracker = _tracker(server, _settings(tmp_path))
    started = time.perf_counter()
    thread = tracker._thread
    assert thread is not None
    tracker.close("FINISHED", timeout_seconds=0.2)
    assert time.perf_counter() - started < 5
    server._check = _away  # type: ignore[method-assign]
    release.set()
    thread.join(10)
    assert not thread.is_alive() and caplog.text.count("lacks the end of this run") == 1


def test_an_abandoned_run_is_left_to_a_newer_life(tmp_path: Path) -> None:
    server = _Server()
    tracker = _tracker(server, _settings(tmp_path), update_seconds=1000.0)
    _wait(lambda: "run0" in server.runs and (tmp_path / "mlflow.json").exists())
    thread = tracker._thread
    assert thread is not None
    tracker.abandon()
    thread.join(10)
    assert not thread.is_alive() and server.runs["run0"].status == "RUNNING"


def test_without_mlflow_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracker_module.importlib.util, "find_spec", lambda name: None)
    tracker = MlflowTracker(_settings(tmp_path))
    tracker.start()
    tracker.close("FINISHED")
    assert caplog.messages == ["mlflow is not installed: this run is recorded in metrics.jsonl only"]


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
    pictures = [folder / f"{name}.png" for name in ("a", "b")]
    uri = resolve_tracking_uri(None, {})
    for life in range(2):
        params = {"model.dim": "64", "life": str(life)}
        earlier = tuple((picture, "samples") for picture in pictures[:life])
        tracker = MlflowTracker(
            _settings(folder, uri=uri, params=params, start_step=5 * life, earlier_files=earlier), update_seconds=0.05
        )
        tracker.start()
        _rows(folder, range(1 + 5 * life, 6 + 5 * life), losses_by_timestep={"0.0-0.2": 0.5})
        pictures[life].write_bytes(b"png")
        tracker.add_file(pictures[life], "samples")
        tracker.close("FINISHED")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    identity = json.loads((folder / "mlflow.json").read_text())
    run = client.get_run(identity["run_id"])
    assert run.info.status == "FINISHED" and run.data.params == {"model.dim": "64", "life": "0"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(s, 1 / s) for s in range(1, 11)]
    assert run.data.metrics["losses_by_timestep/0.0-0.2"] == 0.5
    names = [file.path for file in client.list_artifacts(run.info.run_id, "samples")]
    assert names == ["samples/a.png", "samples/b.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    # An answer was lost after the rows were stored: sending them again changes nothing.
    (folder / "mlflow.json").write_text(json.dumps({**identity, "sent_step": 7}))
    tracker = MlflowTracker(_settings(folder, uri=uri, start_step=10))
    tracker.start()
    tracker.close("FINISHED")
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 10

    (folder / "mlflow.json").write_text(json.dumps({**identity, "run_id": "0" * 32}))
    tracker = MlflowTracker(_settings(folder, uri=uri))
    tracker.start()
    tracker.close("KILLED")
    anew = json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert anew not in ("0" * 32, run.info.run_id) and client.get_run(anew).info.status == "KILLED"
