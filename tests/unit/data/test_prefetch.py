"""Reading ahead: in order, bounded, errors at their step, and no thread left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from sama_data.prefetch import prefetch_in_order


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sama-data")]


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_results_come_in_order_though_jobs_end_in_another():
    gates = {job: threading.Event() for job in range(6)}

    def run(job: int) -> int:
        # Each job of a step waits for the one after it: they can only end backwards.
        if job % 3 != 2:
            assert gates[job + 1].wait(timeout=20)
        gates[job].set()
        return job * 10

    results = list(prefetch_in_order(range(5, 7), lambda step: [3 * (step - 5) + n for n in range(3)], run, 1, 6))
    assert results == [(5, [0, 10, 20]), (6, [30, 40, 50])]


@pytest.mark.parametrize("steps_ahead", [0, 1, 3])
def test_it_works_ahead_but_no_further(steps_ahead):
    planned = []

    def plan(step: int) -> list[int]:
        planned.append(step)
        return [step]

    results = prefetch_in_order(range(10), plan, lambda job: job, steps_ahead, 1)
    assert planned == []
    for step in range(4):
        assert next(results) == (step, [step])
        wait_until(lambda: len(planned) == step + steps_ahead + 1)  # noqa: B023
    results.close()
    assert planned == list(range(4 + steps_ahead))
    assert data_threads() == []


def test_a_step_is_planned_while_the_consumer_is_busy():
    planned = {step: threading.Event() for step in range(4)}
    planners = set()

    def plan(step: int) -> list[int]:
        planners.add(threading.current_thread())
        planned[step].set()
        return [step]

    results = prefetch_in_order(range(4), plan, lambda job: job, 2, 3)
    next(results)
    assert planned[2].wait(timeout=20)
    assert list(results) == [(step, [step]) for step in (1, 2, 3)]
    assert len(planners) == 1
    assert threading.current_thread() not in planners


@pytest.mark.parametrize("stops_early", [True, False])
def test_a_job_that_would_run_for_long_is_interrupted_when_the_consumer_stops_early(stops_early):
    began, interrupted = threading.Event(), threading.Event()

    def run(job: int) -> int:
        if stops_early and job == 1:
            began.set()
            assert interrupted.wait(timeout=20)
        return job

    results = prefetch_in_order(range(2), lambda step: [step], run, 1, 1, interrupted.set)
    next(results)
    if stops_early:
        assert began.wait(timeout=20)
        results.close()
    else:
        assert list(results) == [(1, [1])]
    assert interrupted.is_set() == stops_early
    assert data_threads() == []


def test_jobs_run_while_the_consumer_is_busy():
    done = {step: threading.Event() for step in range(3)}

    def run(step: int) -> int:
        done[step].set()
        return step

    results = prefetch_in_order(range(3), lambda step: [step], run, 2, 1)
    next(results)
    assert done[2].wait(timeout=20)
    results.close()


def test_an_error_is_raised_at_the_step_it_belongs_to():
    failed = threading.Event()

    def run(job: tuple[int, int]) -> int:
        if job == (2, 1):
            failed.set()
            raise ValueError("second job of step 2")
        if job == (2, 2):
            raise KeyError("third job of step 2")
        return 1

    results = prefetch_in_order(range(9), lambda step: [(step, n) for n in range(3)], run, 4, 2)
    assert next(results)[0] == 0
    assert failed.wait(timeout=20)
    assert next(results)[0] == 1
    with pytest.raises(ValueError, match="second job of step 2"):
        next(results)
    assert data_threads() == []
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_a_plan_waits_for_its_step():
    def plan(step: int) -> list[int]:
        if step == 2:
            raise ValueError("plan of step 2")
        return [step]

    results = prefetch_in_order(range(9), plan, lambda job: job, 2, 1)
    assert [next(results)[0], next(results)[0]] == [0, 1]
    with pytest.raises(ValueError, match="plan of step 2"):
        next(results)


@pytest.mark.parametrize("how", ["close", "forget", "error"])
def test_stopping_early_ends_the_threads_and_drops_what_has_not_begun(how):
    release = threading.Event()
    ran = []

    def run(job: int) -> int:
        ran.append(job)
        if job == 1:
            assert release.wait(timeout=20)
        return job

    results = prefetch_in_order(range(50), lambda step: [step], run, 10, 1)
    next(results)
    assert len(data_threads()) == 2
    threading.Timer(0.05, release.set).start()
    if how == "close":
        results.close()
    elif how == "forget":
        del results
    else:
        with pytest.raises(RuntimeError, match="consumer"):
            results.throw(RuntimeError("consumer"))
    assert data_threads() == []
    assert set(ran) <= {0, 1}


def test_the_interpreter_ends_though_an_iterator_was_left_open():
    code = (
        "import time\n"
        "from sama_data.prefetch import prefetch_in_order\n"
        "kept = prefetch_in_order(range(10**6), lambda s: [s], lambda j: time.sleep(0.01), 5, 2)\n"
        "next(kept); print('left open', flush=True)\n"
        "raise SystemExit(3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout == "left open\n"
    assert ended.returncode == 3
    assert ended.stderr == ""
