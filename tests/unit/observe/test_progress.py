"""Speed, lines and the bar."""

from __future__ import annotations

import io
import logging
import math

import pytest
from rich.console import Console

from sama_mega.observe.progress import (
    PROGRESS_LOGGER,
    RunProgress,
    SpeedMeter,
    format_seconds,
)


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _row(step: int, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "step": step,
        "loss": 0.25,
        "flow_matching_loss": 0.2,
        "semantic_loss": 0.5,
        "gradient_norm": 1.0,
        "learning_rate": 2e-5,
        "skipped": None,
        "step_seconds": 2.0,
        "data_wait_seconds": 0.5,
        "num_images": 6,
        "num_videos": 4,
        "tokens": 24_600,
        "model_tflop": 3.0,
    }
    row.update(changes)
    return row


def test_speed_is_that_of_the_window() -> None:
    clock = _Clock()
    meter = SpeedMeter(clock, window_steps=4)
    meter.mark(0, samples=10)
    assert math.isnan(meter.per_second("samples")) and math.isnan(meter.seconds_left(10))
    for step in range(1, 11):
        clock.now += 100 if step < 6 else 2
        meter.mark(step, samples=10)
    assert meter.per_second("samples") == pytest.approx(5)
    assert meter.seconds_left(110) == pytest.approx(200)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (math.nan, "?"), (-3, "0:00:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_lines_carry_the_numbers(caplog: pytest.LogCaptureFixture) -> None:
    clock = _Clock()
    progress = RunProgress("stage 0", 5, 20, 5, draws_bar=False, clock=clock)
    progress.start()
    with caplog.at_level(logging.INFO, logger=PROGRESS_LOGGER):
        for step in range(6, 12):
            clock.now += 2
            progress.step(_row(step))
        progress.step(_row(12, loss=None, skipped="loss is nan"))
    progress.close()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert lines[0].startswith("stage 0 step 6/20  loss 0.25000  flow 0.20000  semantic 0.50000")
    assert "5.0 samples/s  12.3k tokens/s  1.5 TFLOP/s  data wait 25%  left 0:00:20  saved -" in lines[1]
    assert lines[2] == "stage 0 step 12 skipped: loss is nan"


def test_the_bar_shows_step_loss_speed_and_time_left() -> None:
    clock, output = _Clock(), io.StringIO()
    console = Console(file=output, force_terminal=True, width=140)
    shown = {"peak_tflops": 6.0, "newest_save": lambda: 2, "clock": clock, "console": console}
    progress = RunProgress("stage 1", 0, 20, 5, draws_bar=True, **shown)
    progress.start()
    for step in range(1, 4):
        clock.now += 2
        progress.step(_row(step))
    progress.close()
    progress.close()
    text = output.getvalue()
    parts = ("stage 1", "3/20", "loss 0.2500", "12.3k tokens/s  MFU 25.0%", "data wait 25%", "left 0:00:34", "saved 2")
    for part in parts:
        assert part in text, part


@pytest.mark.parametrize(("width", "shows_tokens"), [(95, True), (80, True), (72, False), (66, False)])
def test_a_narrow_terminal_keeps_step_loss_time_left_and_save(width: int, shows_tokens: bool) -> None:
    clock, output = _Clock(), io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, color_system=None)
    shown = {"peak_tflops": 6.0, "newest_save": lambda: 1500, "clock": clock, "console": console}
    progress = RunProgress("stage 0", 0, 1550, 500, draws_bar=True, **shown)
    progress.start()
    for step in (1, 2):
        clock.now += 2
        progress.step(_row(step))
    progress.close()
    text = output.getvalue()
    for part in ("stage 0", "2/1550 ", "loss 0.2500", "left 0:51:36", "saved 1500"):
        assert part in text, part
    assert ("tokens/s" in text) == shows_tokens and "…" not in text


def test_a_long_run_says_once_when_it_will_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = _Clock()
    progress = RunProgress("stage 0", 5, 1026, 1000, draws_bar=False, clock=clock)
    with caplog.at_level(logging.INFO, logger="sama_mega.observe.progress"):
        for step in range(6, 40):
            clock.now += 2
            progress.step(_row(step, model_tflop=None))
    (said,) = [line for line in caplog.messages if line.startswith("at this pace")]
    assert said.startswith("at this pace it ends in 0:33:22, ")
