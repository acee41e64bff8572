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
) -> Generator[tuple[int, list[Result]], None, None]:
    """Yields (step, results of its jobs, in their order), while later steps' jobs run on threads.

    At most `steps_ahead` steps beyond the one handed over are begun. An error of a step is raised when that
    step's turn comes, the one of its first failed job; the iterator is over then. When the consumer stops
    early (close, an exception, the iterator is collected), jobs that have not begun are dropped and the
    threads end before control returns.

    Args:
        steps: The steps, in order.
        plan: Makes a step's jobs; called on the consumer's thread, in order.
        run: Does one job; called on the threads.
        steps_ahead: How far ahead to work.
        num_threads: How many jobs run at a time.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="sama-data")
    begun: deque[tuple[int, list[Future[Result]]]] = deque()
    try:
        for step in steps:
            begun.append((step, _begin(plan, step, pool, run)))
            if len(begun) > steps_ahead:
                yield _finish(begun)
        while begun:
            yield _finish(begun)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(
    plan: Callable[[int], list[Job]], step: int, pool: ThreadPoolExecutor, run: Callable[[Job], Result]
) -> list[Future[Result]]:
    try:
        jobs = plan(step)
    except Exception as error:
        # It belongs to this step: earlier ones are still to be handed over.
        failed: Future[Result] = Future()
        failed.set_exception(error)
        return [failed]
    return [pool.submit(run, job) for job in jobs]


def _finish(begun: deque[tuple[int, list[Future[Result]]]]) -> tuple[int, list[Result]]:
    step, futures = begun.popleft()
    return step, [future.result() for future in futures]
