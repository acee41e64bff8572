"""The worker's own side: does one call after the other until its parent is gone."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import select
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sama_data.workers.messages import Message, receive
from sama_data.workers.peer_memory import address_of

PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C and Slurm signal every process of a step: what they mean, the parent decides."""
PROBE = b"to be read by the parent"
"""The first outcome is its address, where the parent tries whether it can read this process's memory."""
_LIFELINE = 0
_FIRST_TO_BE_KILLED = "1000"


@dataclass(frozen=True)
class Request:
    """A call.

    Attributes:
        function: Found by its name.
        arguments: Its arguments.
        reads_memory: Whether the parent can read this process's memory.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    reads_memory: bool


@dataclass(frozen=True)
class Warned:
    """A warning that a call gave.

    Attributes:
        message: Its text.
        category: Its class.
        filename: Where it was given.
        line_number: The line.
    """

    message: str
    category: type[Warning]
    filename: str
    line_number: int


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        value: What the function returned.
        error: What it raised instead.
        warned: The warnings it gave.
    """

    value: Any = None
    error: Exception | None = None
    warned: tuple[Warned, ...] = ()


def main(descriptor: int, preload: Sequence[str]) -> None:
    """Serves calls over a socket until its other end is closed.

    Args:
        descriptor: The socket, inherited.
        preload: Modules to import before the first call.
    """
    _leave_signals_to_the_parent()
    _die_with_the_parent()
    _be_killed_first_when_memory_is_short()
    connection = socket.socket(fileno=descriptor)
    with contextlib.suppress(EOFError, OSError):
        _answer(connection, _do(_get_ready, (preload,)), reads_memory=False)
        while True:
            request: Request = receive(connection)
            _answer(connection, _do(request.function, request.arguments), request.reads_memory)


def _get_ready(preload: Sequence[str]) -> int:
    for name in preload:
        importlib.import_module(name)
    return address_of(memoryview(PROBE))


def _do(function: Callable[..., Any], arguments: Sequence[Any]) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # the parent's filters decide
        try:
            value, error = function(*arguments), None
        except Exception as raised:
            value, error = None, raised
    told = tuple(Warned(str(one.message), one.category, one.filename, one.lineno) for one in caught)
    return Outcome(value, error, told)


def _answer(connection: socket.socket, outcome: Outcome, reads_memory: bool) -> None:
    if outcome.error is not None:
        # Tracebacks do not pickle; a note is shown where one would be.
        outcome.error.add_note("in a worker:\n" + "".join(traceback.format_exception(outcome.error)))
    try:
        message = Message(outcome)
    except Exception as problem:
        words = f"the outcome of a call cannot be sent: {type(problem).__name__}: {problem}: {outcome.error!r}"
        message = Message(Outcome(error=TypeError(words)))
    message.send(connection, reads_memory)


def _leave_signals_to_the_parent() -> None:
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)


def _die_with_the_parent() -> None:
    """The parent holds a pipe's other end and never writes: once it is closed, the kernel ends this process.

    The parent may end in any way, and this process may hang in any call. PR_SET_PDEATHSIG would be sent when the
    thread ends that started the worker.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(_LIFELINE, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(_LIFELINE, fcntl.F_SETFL, fcntl.fcntl(_LIFELINE, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([_LIFELINE], [], [], 0)[0]:
        raise SystemExit("the parent has ended")


def _be_killed_first_when_memory_is_short() -> None:
    """A clip may unpack to anything: the kernel's choice must not be the process that trains."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_FIRST_TO_BE_KILLED)
