"""Time and memory of a function on one device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Seconds of several runs.

    Attributes:
        minimum: Of the fastest.
        median: Of the middle one.
        maximum: Of the slowest.
        runs: How many.
    """

    minimum: float
    median: float
    maximum: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Sums up measured seconds."""
        return cls(min(seconds), statistics.median(seconds), max(seconds), len(seconds))


def time_in_turns(
    functions: Sequence[Callable[[], object]], device: torch.device, warmups: int, rounds: int
) -> list[Spread]:
    """Times functions by turns, so that a clock that changes meanwhile changes for all of them.

    Args:
        functions: What to run.
        device: Where they work; on CUDA the device's own clock is read.
        warmups: Runs of each that are not counted.
        rounds: Runs of each that are.

    Returns:
        One spread a function, in order.
    """
    for function in functions:
        for _ in range(warmups):
            function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for times, function in zip(seconds, functions, strict=True):
            times.append(seconds_of(function, device))
    return [Spread.of(times) for times in seconds]


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Runs a function once and waits for the device."""
    if device.type != "cuda":
        start_seconds = time.perf_counter()
        function()
        return time.perf_counter() - start_seconds
    torch.cuda.synchronize(device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1e3
