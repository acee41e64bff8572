"""Reads many files at the same time and hands over the results in the files' order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(read: Callable[[Item], Iterable[Result]], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields what is read of every item, item after item.

    Threads, not processes: the time goes into waiting for the storage. At most `workers + 1` items' results are held;
    with one worker none are, and reading stops when the caller does.

    Args:
        read: Reads one item; several run at the same time.
        items: Taken as needed.
        workers: How many run at the same time.
    """
    if workers == 1:
        for item in items:
            yield from read(item)
        return
    stopped = threading.Event()

    def collect(item: Item) -> list[Result]:
        results = []
        for result in read(item):
            if stopped.is_set():
                break
            results.append(result)
        return results

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[Result]]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(collect, item))
                if len(waiting) > workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
