"""What a signal means to a rank: real ones, sent to this process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from sama_mega.train.stop import RunStopped, StopRequest
from tests.support.tiny_recipe import wait_until

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
PATIENCE_SECONDS = 10.0


@pytest.fixture(autouse=True)
def heard_outside() -> Iterator[list[int]]:
    """What is heard where no StopRequest listens; without it such a signal would end the tests."""
    heard: list[int] = []

    def listen(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = {number: signal.signal(number, listen) for number in SIGNALS}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int, has_arrived: Callable[[], bool]) -> None:
    os.kill(os.getpid(), number)
    wait_until(has_arrived, [], PATIENCE_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_becomes_a_request(number: signal.Signals, heard_outside: list[int]) -> None:
    with StopRequest() as stop:
        assert stop.pending == 0
        send(number, lambda: stop.pending != 0)
        assert stop.pending == number
    assert stop.pending == number, "it is asked after the run too"
    assert heard_outside == []


def test_the_first_signal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    request = StopRequest.request

    def noted(self: StopRequest, number: int) -> None:
        request(self, number)
        heard.append(number)

    monkeypatch.setattr(StopRequest, "request", noted)
    with StopRequest() as stop:
        for count, number in enumerate((signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1), start=1):
            send(number, lambda expected=count: len(heard) == expected)  # type: ignore[misc]
            assert stop.pending == signal.SIGUSR1


@pytest.mark.parametrize("fails", [False, True])
def test_who_listened_before_listens_again(fails: bool, heard_outside: list[int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = StopRequest()
    try:
        with stop:
            assert all(signal.getsignal(number) not in before for number in SIGNALS)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
    for number in SIGNALS:
        send(number, lambda expected=number: expected in heard_outside)  # type: ignore[misc]
    assert stop.pending == 0


def test_an_ignored_signal_is_ignored_again() -> None:
    """The batch script makes it so: a signal that comes after the run must not end the process."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with StopRequest():
        pass
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_outside_the_main_thread_nothing_is_touched(heard_outside: list[int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    entered, may_leave, failures = threading.Event(), threading.Event(), list[BaseException]()
    stop = StopRequest()

    def work() -> None:
        try:
            with stop:
                entered.set()
                assert may_leave.wait(PATIENCE_SECONDS)
        except BaseException as error:
            failures.append(error)
            entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(PATIENCE_SECONDS)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    send(signal.SIGUSR1, lambda: heard_outside == [signal.SIGUSR1])
    stop.request(signal.SIGTERM)
    may_leave.set()
    thread.join(PATIENCE_SECONDS)
    assert failures == []
    assert stop.pending == signal.SIGTERM, "it can be asked without signals"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGUSR1, "SIGUSR1"), (15, "SIGTERM")])
def test_the_end_names_the_signal(number: int, name: str) -> None:
    stopped = RunStopped(number)
    assert stopped.signal_name == name
    assert str(stopped) == f"told to stop by {name}"
