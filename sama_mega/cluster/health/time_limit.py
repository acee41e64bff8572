"""A limit for calls that may never come back: dead file systems and drivers hang in the kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """Calls a function in a thread of its own and waits so long for it.

    Args:
        seconds: Afterwards the thread is left to itself; it does not keep the process alive.
        call: What to call.

    Returns:
        What it returned; what it raised is raised here.

    Raises:
        TimeoutError: It is still at it.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
