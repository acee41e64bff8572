"""Workers: a call that hangs, crashes or fails costs that call alone, and no process or descriptor is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sama_data.errors import ClipError, DataError
from sama_data.workers import process
from sama_data.workers.child import PARENTS_SIGNALS
from sama_data.workers.pool import WorkerDiedError, WorkerPool, WorkersClosedError, WorkerTimeoutError
from tests.support import worker_jobs
from tests.support.processes import is_alive

LONG_SECONDS = 60.0
SHORT_SECONDS = 0.4


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(3) as pool:
        yield pool


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("reads_memory", [True, False])
@pytest.mark.parametrize("num_bytes", [0, 10, 100_000, 3_000_001])
def test_arrays_come_back_as_they_were(monkeypatch, num_bytes, reads_memory):
    if not reads_memory:
        monkeypatch.setattr(process, "read_memory", lambda *_: (_ for _ in ()).throw(PermissionError("not allowed")))
    with WorkerPool(1) as pool:
        for fill in (3, 4):
            one, same, others = pool.run(worker_jobs.frames, num_bytes, fill, timeout_seconds=LONG_SECONDS)
            assert one is same
            np.testing.assert_array_equal(one, np.full(num_bytes, fill, np.uint8))
            np.testing.assert_array_equal(others["cut"], one[: num_bytes // 2])
            np.testing.assert_array_equal(others["turned"], np.arange(12).reshape(3, 4).T)
            one[:] = 9
            assert not (others["cut"] == 9).any()
        assert pool.run(worker_jobs.total, one, timeout_seconds=LONG_SECONDS) == 9 * num_bytes


def test_many_threads_share_the_workers(pool):
    def one(number: int) -> tuple[int, int]:
        found = pool.run(worker_jobs.total, np.full(number, 1, np.uint8), timeout_seconds=LONG_SECONDS)
        return found, pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(one, range(200)))
    assert [found for found, _ in results] == list(range(200))
    assert len({worker for _, worker in results}) <= 3
    assert os.getpid() not in {worker for _, worker in results}


def test_a_call_that_hangs_is_killed_and_the_next_one_gets_a_new_worker():
    with WorkerPool(1) as pool:
        first = pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)
        with pytest.raises(WorkerTimeoutError, match=r"took longer than 0\.4 s"):
            pool.run(worker_jobs.hang, timeout_seconds=SHORT_SECONDS)
        assert not is_alive(first)
        assert pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS) != first


def test_a_crash_is_tried_once_more(pool, tmp_path):
    assert pool.run(worker_jobs.crash, tmp_path / "once", 1, timeout_seconds=LONG_SECONDS) == 2
    with pytest.raises(WorkerDiedError, match=r"^died of signal 11 \(SIGSEGV\) twice$"):
        pool.run(worker_jobs.crash, tmp_path / "always", timeout_seconds=LONG_SECONDS)
    assert (tmp_path / "always").read_text() == "xx"
    with pytest.raises(WorkerDiedError, match=r"^died of exit status 3 twice$"):
        pool.run(os._exit, 3, timeout_seconds=LONG_SECONDS)
    assert str(WorkerDiedError("signal 9 (SIGKILL)", "exit status 1")) == (
        "died of signal 9 (SIGKILL) and then of exit status 1"
    )


def test_a_worker_that_was_killed_between_calls_is_replaced():
    with WorkerPool(1) as pool:
        os.kill(pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS), signal.SIGKILL)
        assert pool.run(worker_jobs.total, np.ones(4, np.uint8), timeout_seconds=LONG_SECONDS) == 4


def test_errors_come_back_as_they_are(pool):
    with pytest.raises(ClipError) as caught:
        pool.run(worker_jobs.refuse, "a.mp4", timeout_seconds=LONG_SECONDS)
    assert (caught.value.path, caught.value.reason) == ("a.mp4", "is not what it says")
    assert str(caught.value) == "a.mp4: is not what it says"
    assert "worker_jobs.py" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="the outcome of a call cannot be sent"):
        pool.run(worker_jobs.return_what_does_not_pickle, timeout_seconds=LONG_SECONDS)
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local"):
        pool.run(lambda: 1, timeout_seconds=LONG_SECONDS)
    assert pool.run(worker_jobs.total, np.ones(4, np.uint8), timeout_seconds=LONG_SECONDS) == 4


def test_warnings_are_given_by_the_parent(pool):
    with pytest.warns(RuntimeWarning, match="this picture is large"):
        assert pool.run(worker_jobs.warn, timeout_seconds=LONG_SECONDS) == 5


def test_a_worker_leaves_signals_to_its_parent(pool):
    worker = pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)
    for number in PARENTS_SIGNALS:
        os.kill(worker, number)
    assert pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS) == worker


@pytest.mark.parametrize(
    ("executable", "preload", "reason"),
    [
        ("/bin/false", [], "WorkerDiedError: died of exit status 1"),
        ("/nowhere/python", [], "FileNotFoundError: .*/nowhere/python"),
        (sys.executable, ["sama_data.nothing"], "ModuleNotFoundError: No module named 'sama_data.nothing'"),
    ],
)
def test_workers_that_cannot_be_started_are_one_line(monkeypatch, executable, preload, reason):
    monkeypatch.setattr(sys, "executable", executable)
    before = num_descriptors()
    with (
        WorkerPool(1, preload) as pool,
        pytest.raises(DataError, match="cannot be started, in 3 attempts: " + reason) as caught,
    ):
        pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)
    assert "\n" not in str(caught.value)
    assert num_descriptors() == before


def test_a_worker_that_does_not_get_ready_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(process, "START_TIMEOUT_SECONDS", 0.01)
    with WorkerPool(1) as pool, pytest.raises(DataError, match=r"WorkerTimeoutError: took longer than 0\.01 s"):
        pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)


def test_closing_ends_calls_and_the_pool_can_be_used_again(tmp_path):
    before = num_descriptors()
    pool = WorkerPool(2)
    idle = pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(pool.run, worker_jobs.say_and_hang, tmp_path / name, timeout_seconds=LONG_SECONDS)
            for name in "ab"
        ]
        wait_until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"))
        pool.close()
        for call in calls:
            with pytest.raises(WorkersClosedError):
                call.result(timeout=30)
    workers = {idle, *(int((tmp_path / name).read_text()) for name in "ab")}
    assert len(workers) == 2 and not any(map(is_alive, workers))
    assert num_descriptors() == before
    again = pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)
    assert again not in workers
    pool.close()
    assert num_descriptors() == before


def test_a_pool_that_is_collected_closes_itself():
    before = num_descriptors()
    worker = WorkerPool(1).run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)
    assert not is_alive(worker)
    assert num_descriptors() == before


def test_nothing_is_held_after_many_calls(tmp_path):
    with WorkerPool(1) as pool:
        pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)
        before = num_descriptors()
        kept = [pool.run(worker_jobs.frames, 300_000, timeout_seconds=LONG_SECONDS) for _ in range(50)]
        with pytest.raises(WorkerDiedError):
            pool.run(worker_jobs.crash, tmp_path / "marker", timeout_seconds=LONG_SECONDS)
        pool.run(worker_jobs.process_id, timeout_seconds=LONG_SECONDS)
        assert num_descriptors() == before
        assert len(kept) == 50


PARENT = """
import os, sys, threading
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from sama_data.workers.pool import WorkerPool
from tests.support import worker_jobs
from tests.support.processes import is_alive
pool = WorkerPool(1)
if sys.argv[1] == "imports":
    print(pool.run(worker_jobs.has_imported, "numpy", timeout_seconds=60))
    print(pool.run(worker_jobs.has_imported, "torch", timeout_seconds=60))
    raise SystemExit
calling = threading.Thread(
    target=pool.run, args=(worker_jobs.say_and_hang, Path(sys.argv[2])), kwargs={"timeout_seconds": 60}, daemon=True
)
calling.start()
sys.stdin.readline()
os._exit(1)
"""


def start_parent(folder: Path, repo_root: Path, what: str) -> subprocess.Popen[str]:
    """Finds its modules by what it puts into sys.path itself."""
    paths = [str(repo_root), str(repo_root / "data")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, what, str(folder / "worker"), *paths],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_worker_finds_the_parents_modules_and_imports_no_torch(repo_root, tmp_path):
    with start_parent(tmp_path, repo_root, "imports") as parent:
        told, _ = parent.communicate(timeout=60)
    assert told.split() == ["True", "False"]


@pytest.mark.parametrize("end", ["SIGKILL", "os._exit"])
def test_a_worker_that_hangs_dies_with_its_parent(repo_root, tmp_path, end):
    said = tmp_path / "worker"
    with start_parent(tmp_path, repo_root, "hang") as parent:
        wait_until(lambda: said.exists() and bool(said.read_text()))
        worker = int(said.read_text())
        assert is_alive(worker)
        if end == "SIGKILL":
            parent.kill()
        else:
            parent.communicate("\n", timeout=30)
        parent.wait(timeout=30)
        wait_until(lambda: not is_alive(worker))


def test_a_stop_of_everything_uses_up_one_part_of_the_time(monkeypatch):
    """After a long stop, poll says that its time is over."""
    patience = process._Patience(0, 8.0)
    answers = [[], [], [(0, 1)]]
    waits: list[float] = []

    class Poll:
        def poll(self, milliseconds: float) -> list:
            waits.append(milliseconds)
            return answers.pop(0) if answers else []

    monkeypatch.setattr(patience, "_poll", Poll())
    patience.wait()
    assert waits == [1000.0] * 3
    with pytest.raises(TimeoutError):
        patience.wait()
    assert len(waits) == 3 + 6


def test_a_pool_is_safe_between_threads_that_close_it(pool):
    """Whatever meets whatever, a call ends with its result or with WorkersClosedError."""
    stop = threading.Event()

    def close_again_and_again() -> None:
        while not stop.wait(0.05):
            pool.close()

    closing = threading.Thread(target=close_again_and_again)
    closing.start()
    outcomes = []
    try:
        for number in range(30):
            try:
                outcomes.append(pool.run(worker_jobs.total, np.full(number, 1, np.uint8), timeout_seconds=LONG_SECONDS))
                assert outcomes[-1] == number
            except WorkersClosedError:
                outcomes.append(-1)
    finally:
        stop.set()
        closing.join(30)
    assert len(outcomes) == 30
