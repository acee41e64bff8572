"""Where the time of a start goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import pytest

from sama_mega.train.startup import HEALTHY_VARIABLE, JOB_STARTED_VARIABLE, RANK_STARTED_VARIABLE, StartupClock

ALL = {JOB_STARTED_VARIABLE: "1000.5", RANK_STARTED_VARIABLE: "1002.0", HEALTHY_VARIABLE: "1005.25"}


def clock(*times: float) -> Callable[[], float]:
    """Says one time a call."""
    return iter(times).__next__


@pytest.mark.parametrize(
    ("missing", "parts"),
    [
        ((), {"launch": 1.5, "health check": 3.25, "Python": 0.75}),
        ((JOB_STARTED_VARIABLE,), {"health check": 3.25, "Python": 0.75}),
        ((RANK_STARTED_VARIABLE,), {"launch": 4.75, "Python": 0.75}),
        ((HEALTHY_VARIABLE,), {"launch": 1.5, "health check": 4.0}),
        ((JOB_STARTED_VARIABLE, HEALTHY_VARIABLE), {"health check": 4.0}),
        (tuple(ALL), {}),
    ],
)
def test_what_was_before_python_comes_from_the_variables(missing: tuple[str, ...], parts: Mapping[str, float]) -> None:
    environ = {name: value for name, value in ALL.items() if name not in missing}
    found = StartupClock(environ, clock(1006.0)).seconds
    assert list(found.items()) == list(parts.items())
    # No part is counted twice, none is left out.
    assert sum(found.values()) == pytest.approx(1006.0 - min(map(float, environ.values()), default=1006.0))


def test_every_part_lasts_from_the_one_before_to_its_mark(caplog: pytest.LogCaptureFixture) -> None:
    measured = StartupClock({HEALTHY_VARIABLE: "100"}, clock(101.0, 103.5, 103.5, 107.0004))
    for name in ("imports", "manifests", "first step"):
        measured.mark(name)
    expected = {"Python": 1.0, "imports": 2.5, "manifests": 0.0, "first step": 3.5}
    assert list(measured.seconds.items()) == list(expected.items())
    with caplog.at_level(logging.INFO):
        measured.say()
    assert caplog.messages == [
        "first step done 7.0 s after the start (seconds: Python 1.0, imports 2.5, manifests 0.0, first step 3.5)"
    ]


def test_a_shell_of_another_language_writes_a_decimal_comma() -> None:
    assert StartupClock({HEALTHY_VARIABLE: "1795178306,25"}, clock(1795178307.0)).seconds == {"Python": 0.75}


def test_without_variables_it_begins_with_itself() -> None:
    measured = StartupClock({}, clock(50.0, 52.0))
    measured.mark("imports")
    assert measured.seconds == {"imports": 2.0}
