"""Runs jobs on background threads, a bounded number of steps ahead, and hands the results over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def prefetch_in_order(
    steps: Iterable[int],
    plan: Callable[[int], list[Job]],
    run: Callable[[Job], Result],
    steps_ahead: int,
    num_threads: int,
    interrupt: Callable[[], object] = lambda: None,
) -> Generator[tuple[int, list[Result]], None, None]:
    """Yields (step, results of its jobs, in their order), while later steps are planned and run on threads.

    At most `steps_ahead` steps beyond the one handed over are begun. An error of a step is raised when that
    step's turn comes, its plan's or the one of its first failed job; the iterator is over then. When the consumer
    stops early (close, an exception, the iterator is collected), jobs that have not begun are dropped and the
    threads end before control returns.

    Args:
        steps: The steps, in order.
        plan: Makes a step's jobs; called on a thread of its own, in order.
        run: Does one job; called on the threads.
        steps_ahead: How far ahead to work.
        num_threads: How many jobs run at a time.
        interrupt: Called when the consumer stops early, to end jobs that would run for long.
    """
    runners = ThreadPoolExecutor(num_threads, thread_name_prefix="sama-data")
    planner = ThreadPoolExecutor(1, thread_name_prefix="sama-data-plan")
    begun: deque[tuple[int, Future[list[Future[Result]]]]] = deque()

    def begin(step: int) -> list[Future[Result]]:
        return [runners.submit(run, job) for job in plan(step)]

    try:
        for step in steps:
            begun.append((step, planner.submit(begin, step)))
            if len(begun) > steps_ahead:
                yield _finish(begun)
        while begun:
            yield _finish(begun)
    finally:
        planner.shutdown(wait=False, cancel_futures=True)
        runners.shutdown(wait=False, cancel_futures=True)
        if begun:
            interrupt()
        planner.shutdown(wait=True)
        runners.shutdown(wait=True)


def _finish(begun: deque[tuple[int, Future[list[Future[Result]]]]]) -> tuple[int, list[Result]]:
    step, planned = begun[0]
    results = [future.result() for future in planned.result()]
    begun.popleft()
    return step, results
