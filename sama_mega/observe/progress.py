"""Progress of a run: a bar on a terminal, a line every few steps in the log."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from sama_mega.observe.log import PROGRESS_LOGGER

_WINDOW_STEPS = 50


def stderr_is_terminal() -> bool:
    """Whether a bar can be drawn: stderr is a person's terminal, not a log."""
    return sys.stderr.isatty()


class SpeedMeter:
    """Samples a second and time left, from the wall time of the last steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window_steps: int = _WINDOW_STEPS) -> None:
        """Starts empty.

        Args:
            clock: Seconds.
            window_steps: How many steps count.
        """
        self._clock = clock
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=window_steps + 1)

    def mark(self, step: int, samples_seen: int) -> None:
        """Notes that so many steps and samples are done now."""
        self._marks.append((self._clock(), step, samples_seen))

    @property
    def samples_per_second(self) -> float:
        """Over the window; NaN before two marks."""
        return self._rate(2)

    def seconds_left(self, total_steps: int) -> float:
        """At the window's pace, checkpoints and pictures included; NaN before two marks."""
        steps_per_second = self._rate(1)
        if not steps_per_second > 0:
            return math.nan
        return (total_steps - self._marks[-1][1]) / steps_per_second

    def _rate(self, field: int) -> float:
        if len(self._marks) < 2:
            return math.nan
        first, last = self._marks[0], self._marks[-1]
        seconds = last[0] - first[0]
        return (last[field] - first[field]) / seconds if seconds > 0 else math.nan


class RunProgress:
    """Shows the steps of one run.

    On a terminal a bar carries step, loss, samples a second, time left and the share of time spent waiting
    for data. The same numbers go as a plain line to the progress logger every `log_every` steps.
    """

    def __init__(
        self,
        label: str,
        start_step: int,
        total_steps: int,
        log_every: int,
        *,
        draws_bar: bool,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        """Prepares; `start` shows.

        Args:
            label: What is running, such as "stage 0".
            start_step: Steps already finished by earlier lives.
            total_steps: Steps of the whole run.
            log_every: Steps between two lines.
            draws_bar: Whether to draw a bar, see `stderr_is_terminal`.
            clock: Seconds, for the speed.
            console: Where the bar goes; stderr by default.
        """
        self._label, self._start, self._total, self._log_every = label, start_step, total_steps, log_every
        self._meter = SpeedMeter(clock)
        self._logger = logging.getLogger(PROGRESS_LOGGER)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if draws_bar:
            self._bar = _make_bar(console or Console(stderr=True))

    def start(self) -> None:
        """Shows the bar."""
        if self._bar is not None:
            self._task = self._bar.add_task(self._label, total=self._total, completed=self._start, numbers="starting")
            self._bar.start()

    def step(self, row: Mapping[str, Any]) -> None:
        """Takes one finished step as its row of metrics.jsonl (`train.report.StepReport.as_row`)."""
        step = int(row["step"])
        self._meter.mark(step, int(row["samples_seen"]))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, numbers=self._bar_numbers(row))
        if step % self._log_every == 0 or step in (self._start + 1, self._total):
            self._logger.info(self._line(row))
        elif row.get("skipped"):
            self._logger.info("%s step %d skipped: %s", self._label, step, row["skipped"])

    def close(self) -> None:
        """Takes the bar away; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _bar_numbers(self, row: Mapping[str, Any]) -> str:
        return (
            f"loss {_number(row['loss'], '.4f')}  {self._speed()}  "
            f"data wait {_data_wait(row)}  left {format_seconds(self._meter.seconds_left(self._total))}"
        )

    def _line(self, row: Mapping[str, Any]) -> str:
        parts = [
            f"{self._label} step {row['step']}/{self._total}",
            f"loss {_number(row['loss'], '.5f')}",
            f"flow {_number(row['flow_matching_loss'], '.5f')}",
            f"semantic {_number(row['semantic_loss'], '.5f')}",
            f"grad norm {_number(row['gradient_norm'], '.3f')}",
            f"lr {_number(row['learning_rate'], '.2e')}",
            self._speed(),
            f"data wait {_data_wait(row)}",
            f"left {format_seconds(self._meter.seconds_left(self._total))}",
        ]
        if row.get("skipped"):
            parts.append(f"skipped: {row['skipped']}")
        return "  ".join(parts)

    def _speed(self) -> str:
        return f"{_number(self._meter.samples_per_second, '.1f')} samples/s"


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03, or a question mark while unknown."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _make_bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    return Progress(*columns, console=console, refresh_per_second=2, transient=False, expand=True)


def _data_wait(row: Mapping[str, Any]) -> str:
    seconds = float(row["step_seconds"])
    return f"{100 * float(row['data_wait_seconds']) / seconds:.0f}%" if seconds > 0 else "?"


def _number(value: Any, form: str) -> str:
    # A row holds null for a number that is not finite.
    return "?" if value is None or not math.isfinite(value) else format(float(value), form)
