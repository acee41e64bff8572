"""Progress of a run: a bar on a terminal, a line every few steps in the log."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from sama_mega.observe.log import PROGRESS_LOGGER

_log = logging.getLogger(__name__)

_WINDOW_STEPS = 50
_FORECAST_STEPS = 20
"""Steps after which a run says when it will end: the first ones are slower."""

_LEAST_BAR = 4
"""Columns that rich gives a bar however narrow the terminal is."""


def stderr_is_terminal() -> bool:
    """Whether a bar can be drawn: stderr is a person's terminal, not a log."""
    return sys.stderr.isatty()


class SpeedMeter:
    """Rates and time left, from the wall time of the last steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window_steps: int = _WINDOW_STEPS) -> None:
        """Starts empty.

        Args:
            clock: Seconds.
            window_steps: How many steps count.
        """
        self._clock = clock
        self._marks: deque[tuple[float, int, dict[str, float]]] = deque(maxlen=window_steps + 1)

    def mark(self, step: int, **amounts: float) -> None:
        """Notes that so many steps are done now, and how much of other things the last of them did."""
        before = self._marks[-1][2] if self._marks else {}
        totals = {name: before.get(name, 0.0) + amount for name, amount in amounts.items()}
        self._marks.append((self._clock(), step, totals))

    def per_second(self, name: str) -> float:
        """Rate of a thing over the window; NaN before two marks."""
        if len(self._marks) < 2:
            return math.nan
        seconds = self._marks[-1][0] - self._marks[0][0]
        return (self._marks[-1][2][name] - self._marks[0][2][name]) / seconds if seconds > 0 else math.nan

    def seconds_left(self, total_steps: int) -> float:
        """At the window's pace, checkpoints and pictures included; NaN before two marks."""
        if len(self._marks) < 2:
            return math.nan
        (began, first, _), (ended, last, _) = self._marks[0], self._marks[-1]
        return (total_steps - last) * (ended - began) / (last - first) if ended > began else math.nan


class RunProgress:
    """Shows the steps of one run.

    On a terminal one line carries step, loss, tokens a second, MFU (or TFLOP/s where the GPU's peak is not known),
    time left, the share of time spent waiting for data and the newest save. The same numbers and more go as a plain
    line to the progress logger every `log_every` steps. A narrow terminal's line leaves out MFU, then the share of
    waiting, then the speed: step, loss, time left and save stay.
    """

    def __init__(
        self,
        label: str,
        start_step: int,
        total_steps: int,
        log_every: int,
        *,
        draws_bar: bool,
        peak_tflops: float | None = None,
        newest_save: Callable[[], int | None] = lambda: None,
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
            peak_tflops: Of all ranks together, for the MFU; None where it is not known.
            newest_save: Gives the step of the newest checkpoint, None before the first.
            clock: Seconds, for the speed.
            console: Where the bar goes; stderr by default.
        """
        self._console = console or Console(stderr=True)
        self._label, self._start, self._total, self._log_every = label, start_step, total_steps, log_every
        self._meter = SpeedMeter(clock)
        self._peak_tflops, self._newest_save = peak_tflops, newest_save
        self._logger = logging.getLogger(PROGRESS_LOGGER)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if draws_bar:
            self._bar = _make_bar(self._console)

    def start(self) -> None:
        """Shows the bar."""
        if self._bar is not None:
            self._task = self._bar.add_task(self._label, total=self._total, completed=self._start, numbers="starting")
            self._bar.start()

    def step(self, row: Mapping[str, Any]) -> None:
        """Takes one finished step as its row of metrics.jsonl (`train.report.StepReport.as_row`)."""
        step = int(row["step"])
        samples = row["num_images"] + row["num_videos"]
        self._meter.mark(step, samples=samples, tokens=row["tokens"], tflop=row["model_tflop"] or math.nan)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, numbers=self._bar_numbers(row))
        if step % self._log_every == 0 or step in (self._start + 1, self._total):
            self._logger.info(self._line(row))
        elif row.get("skipped"):
            self._logger.info("%s step %d skipped: %s", self._label, step, row["skipped"])

        if step == self._start + _FORECAST_STEPS and step < self._total:
            seconds = self._meter.seconds_left(self._total)
            ends_at = datetime.now().astimezone() + timedelta(seconds=seconds) if math.isfinite(seconds) else None
            if ends_at is not None:
                _log.info("at this pace it ends in %s, %s", format_seconds(seconds), f"{ends_at:%A %Y-%m-%d %H:%M}")

    def close(self) -> None:
        """Takes the bar away; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _bar_numbers(self, row: Mapping[str, Any]) -> str:
        """As many numbers as the terminal is wide enough for."""
        tokens, *hardware = self._speed()
        waiting, *outlook = self._outlook(row)
        first = f"loss {_number(row['loss'], '.4f')}"
        room = self._console.width - len(f"{self._label}  {self._total}/{self._total} ") - _LEAST_BAR
        for middle in ((tokens, *hardware, waiting), (tokens, waiting), (tokens,)):
            numbers = "  ".join((first, *middle, *outlook))
            if len(numbers) <= room:
                return numbers
        return "  ".join((first, *outlook))

    def _line(self, row: Mapping[str, Any]) -> str:
        parts = [
            f"{self._label} step {row['step']}/{self._total}",
            f"loss {_number(row['loss'], '.5f')}",
            f"flow {_number(row['flow_matching_loss'], '.5f')}",
            f"semantic {_number(row['semantic_loss'], '.5f')}",
            f"grad norm {_number(row['gradient_norm'], '.3f')}",
            f"lr {_number(row['learning_rate'], '.2e')}",
            f"{_number(self._meter.per_second('samples'), '.1f')} samples/s",
            *self._speed(),
            *self._outlook(row),
        ]
        if row.get("skipped"):
            parts.append(f"skipped: {row['skipped']}")
        return "  ".join(parts)

    def _speed(self) -> list[str]:
        """Tokens a second, and how much of the hardware that is, where it is known."""
        parts = [f"{_short(self._meter.per_second('tokens'))} tokens/s"]
        tflops = self._meter.per_second("tflop")
        if math.isfinite(tflops) and self._peak_tflops is not None:
            parts.append(f"MFU {tflops / self._peak_tflops:.1%}")
        elif math.isfinite(tflops):
            parts.append(f"{tflops:.3g} TFLOP/s" if tflops >= 1 else f"{1000 * tflops:.3g} GFLOP/s")
        return parts

    def _outlook(self, row: Mapping[str, Any]) -> list[str]:
        left = format_seconds(self._meter.seconds_left(self._total))
        saved = self._newest_save()
        return [f"data wait {_data_wait(row)}", f"left {left}", f"saved {'-' if saved is None else saved}"]


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
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[numbers]}"),
    )
    return Progress(*columns, console=console, refresh_per_second=2, transient=False, expand=True)


def _data_wait(row: Mapping[str, Any]) -> str:
    seconds = float(row["step_seconds"])
    return f"{100 * float(row['data_wait_seconds']) / seconds:.0f}%" if seconds > 0 else "?"


def _number(value: Any, form: str) -> str:
    # A row holds null for a number that is not finite.
    return "?" if value is None or not math.isfinite(value) else format(float(value), form)


def _short(value: float) -> str:
    """Three digits and a power of a thousand: 12.3k."""
    if not math.isfinite(value):
        return "?"
    for power in ("", "k", "M"):
        if value < 999.5:
            return f"{value:.3g}{power}"
        value /= 1000
    return f"{value:.3g}G"
