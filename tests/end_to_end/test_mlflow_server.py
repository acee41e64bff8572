"""Runs tracked by a real `mlflow server`: one that is killed and comes back, and one that is not there yet."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sama_mega.observe.metrics import numbers_of_row
from sama_mega.observe.tracker import MlflowTracker
from sama_mega.train import step as step_module
from sama_mega.train.hooks import tracker as hook_module
from sama_mega.train.run import train
from tests.support.tiny_recipe import POLL_SECONDS, read_rows, tiny_recipe, tiny_world

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not all(map(find_spec, ("flask", "flask_cors", "graphene", "aiohttp", "pandas"))),
        reason="what mlflow server imports is not installed: make install-dev",
    ),
]

STEPS, KILLED_AT, BACK_AT, SENT_AT = 24, 6, 12, 18
WAIT_SECONDS = 100.0


class Server:
    """`mlflow server` on a port that stays the same over its lives."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; returns before it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Ends it and its workers without a word."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)

    def answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self._folder / "server.txt").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(
        hook_module, "MlflowTracker", partial(MlflowTracker, update_seconds=0.2, retry_seconds=0.2, max_retry_seconds=1)
    )


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)


def at_steps(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], None]]) -> None:
    """Does things in the middle of a run, before the passes of a step."""
    done, passes = 0, step_module.run_forward_backward

    def run(*arguments: Any) -> None:
        nonlocal done
        done += 1
        actions.get(done, lambda: None)()
        passes(*arguments)

    monkeypatch.setattr(step_module, "run_forward_backward", run)


def recipe(folder: Path, world: Path, uri: str) -> Any:
    changes = {"track.mlflow": True, "track.uri": uri, "train.num_samples": 1, "train.sample_every": 8}
    return tiny_recipe(0, folder, world / "raw.jsonl", STEPS, changes | {"train.pace_every": 5})


def assert_all_is_there(folder: Path, uri: str) -> None:
    """Every number of every step once, the pictures, and the end."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    rows = [(row["step"], numbers_of_row(row)) for row in read_rows(folder)]
    assert len(rows) == STEPS
    for name in ("loss", "losses_by_modality/video", "speed/tokens_per_second", "memory/resident_gib"):
        history = client.get_metric_history(run.info.run_id, name)
        expected = [(step, numbers[name]) for step, numbers in rows if name in numbers]
        assert sorted((point.step, point.value) for point in history) == expected and expected
    top = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"recipe.yaml", "environment.json", "samples"} <= top
    pictures = {file.path: file.file_size for file in client.list_artifacts(run.info.run_id, "samples")}
    made = {f"samples/{path.name}": path.stat().st_size for path in (folder / "samples").iterdir()}
    assert pictures == made and len(made) >= 3


def test_a_server_that_comes_later_gets_all_of_it_from_a_second_start(
    server: Server, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = recipe(tmp_path / "run", tiny_world(tmp_path_factory), server.uri)
    summary = train(told)
    assert (summary.ended, summary.steps) == ("finished", STEPS)
    assert caplog.text.count("does not answer") == caplog.text.count("lacks the end of this run") == 1
    assert not (tmp_path / "run/mlflow.json").exists()
    server.start()
    wait_until(server.answers)
    train(told)
    assert_all_is_there(tmp_path / "run", server.uri)


def test_a_server_that_is_killed_and_comes_back_misses_nothing(
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"

    def has_sent(step: int) -> bool:
        path = folder / "mlflow.json"
        return path.exists() and json.loads(path.read_text())["sent_step"] >= step

    def kill() -> None:
        wait_until(lambda: has_sent(KILLED_AT - 1))
        server.kill()

    def come_back() -> None:
        wait_until(lambda: "does not answer" in caplog.text)
        server.start()

    wait_until(server.answers)
    actions = {KILLED_AT: kill, BACK_AT: come_back, SENT_AT: lambda: wait_until(lambda: has_sent(SENT_AT - 1))}
    at_steps(monkeypatch, actions)
    with caplog.at_level("INFO", logger="sama_mega"):
        summary = train(recipe(folder, tiny_world(tmp_path_factory), server.uri))
    assert (summary.ended, summary.steps) == ("finished", STEPS)
    assert_all_is_there(folder, server.uri)
    assert caplog.text.count("does not answer") == caplog.text.count("answers again and has all metrics") == 1
