"""Calibrates the planner's step times on this machine: fits rates on half of the grid, and predicts the other half."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sama_mega.bench.planner_grid import Configuration
from sama_mega.bench.planner_rows import PlannerRow, Split
from sama_mega.bench.planner_steps import measure_steps
from sama_mega.parallel.layout import resolve_layout
from sama_mega.planner.rates import Rates
from sama_mega.planner.step_time import predict_parts
from sama_mega.planner.workload import plan_workload

_Cost = Callable[[float], Rates]

COSTS: dict[str, tuple[_Cost, str]] = {
    "gemm": (lambda seconds: Rates(gemm_flops=_rate(seconds)), "operations a second"),
    "attention": (
        lambda seconds: Rates(attention_forward_flops=_rate(seconds), attention_backward_flops=_rate(seconds)),
        "operations a second",
    ),
    "memory": (lambda seconds: Rates(memory_bytes=_rate(seconds)), "bytes a second"),
    "pixels": (lambda seconds: Rates(pixel_seconds=seconds), "seconds a pixel"),
    "block_pass": (lambda seconds: Rates(block_pass_seconds=seconds), "seconds"),
    "micro_batch": (lambda seconds: Rates(micro_batch_seconds=seconds), "seconds"),
    "message_bytes": (lambda seconds: Rates(node_bytes=_rate(seconds)), "bytes a second"),
    "message": (lambda seconds: Rates(node_hop_seconds=seconds), "seconds"),
}
"""The coefficients that are fitted: rates at which nothing but one kind of work costs so many seconds a unit."""
_RATES = ("gemm", "attention", "memory", "message_bytes")


@dataclass(frozen=True)
class TimeCalibration:
    """What was fitted, and how well it predicts.

    Attributes:
        rows: A configuration each.
        coefficients: Seconds a unit, by the keys of COSTS.
        spreads: By configuration, the slowest round over the fastest.
    """

    rows: tuple[PlannerRow, ...]
    coefficients: dict[str, float]
    spreads: dict[str, float]

    def in_words(self) -> list[str]:
        """A line for each coefficient: a rate where it is one."""
        lines = []
        for name, (_, unit) in COSTS.items():
            seconds = self.coefficients.get(name, 0.0)
            value = _rate(seconds) if name in _RATES else seconds
            lines.append(f"{name}: {value:.4g} {unit}")
        return lines


def calibrate_time(device_type: str, rounds: int, report: Callable[[str], None]) -> TimeCalibration:
    """Measures the grid and fits.

    Args:
        device_type: `cpu` or `cuda`.
        rounds: Timed steps of each configuration; the fastest counts, as what else runs can only slow a step down.
        report: Told what is going on.
    """
    seconds = measure_steps(device_type, rounds, report)
    measured = {configuration: min(times) for configuration, times in seconds.items()}
    spreads = {one.label: max(times) / min(times) for one, times in seconds.items()}
    return fit_and_predict(device_type, measured, spreads)


def fit_and_predict(
    device_type: str, measured: Mapping[Configuration, float], spreads: dict[str, float] | None = None
) -> TimeCalibration:
    """Fits on every second configuration, and predicts all of them.

    Args:
        device_type: `cpu` or `cuda`.
        measured: Seconds of a step, in the grid's order.
        spreads: Of the calibration.
    """
    work = np.array([work_of(one, device_type) for one in measured])
    seconds = np.array(list(measured.values()))
    fitted = np.arange(len(seconds)) % 2 == 0
    relative = work[fitted] / seconds[fitted, None]
    coefficients = fit_non_negative(relative, np.ones(len(relative)))
    predicted = work @ coefficients
    splits: list[Split] = ["fit" if is_fitted else "held out" for is_fitted in fitted.tolist()]
    rows = tuple(
        PlannerRow("time", one.label, split, float(said), float(took), "seconds")
        for one, split, said, took in zip(measured, splits, predicted, seconds, strict=True)
    )
    return TimeCalibration(rows, dict(zip(COSTS, coefficients.tolist(), strict=True)), spreads or {})


def work_of(configuration: Configuration, device_type: str) -> list[float]:
    """A step's seconds where one unit of one kind of work takes a second, for each of COSTS.

    Without overlap the planner's prediction is a sum of these, each times its coefficient.
    """
    recipe = configuration.recipe(device_type)
    layout = resolve_layout(recipe, configuration.num_ranks)
    work = plan_workload(recipe, layout)
    return [
        sum(predict_parts(recipe, layout, configuration.num_ranks, work, cost(1.0))[0].values())
        for cost, _ in COSTS.values()
    ]


def fit_non_negative(columns: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with coefficients of at least zero: the best of all sets of columns whose own solution has none.

    Args:
        columns: ``[rows, coefficients]``; as many sets as there are subsets of coefficients are tried.
        wanted: ``[rows]``.

    Returns:
        ``[coefficients]``.
    """
    number = columns.shape[1]
    best, least = np.zeros(number), float(np.square(wanted).sum())
    # Of equal columns any share is as good: scaled, so that units do not decide what counts as equal.
    sizes = np.linalg.norm(columns, axis=0)
    used = [column for column in range(number) if sizes[column] > 0]
    for chosen in _subsets(used):
        own = columns[:, chosen] / sizes[chosen]
        solution, _, rank, _ = np.linalg.lstsq(own, wanted, rcond=None)
        if rank < len(chosen) or (solution < 0).any():
            continue
        error = float(np.square(own @ solution - wanted).sum())
        if error < least:
            least, best = error, np.zeros(number)
            best[chosen] = solution / sizes[chosen]
    return best


def _subsets(items: Sequence[int]) -> list[list[int]]:
    sizes = range(1, len(items) + 1)
    return [list(chosen) for size in sizes for chosen in itertools.combinations(items, size)]


def _rate(seconds: float) -> float:
    return 1 / seconds if seconds else float("inf")
