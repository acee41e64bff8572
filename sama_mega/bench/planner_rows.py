"""What the planner said against what was measured, configuration by configuration."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["fit", "held out"]


@dataclass(frozen=True)
class PlannerRow:
    """One configuration.

    Attributes:
        what: What was predicted.
        configuration: In words.
        split: Whether coefficients were fitted on it.
        predicted: In `unit`.
        measured: In `unit`.
        unit: Of both.
    """

    what: Literal["memory", "time"]
    configuration: str
    split: Split
    predicted: float
    measured: float
    unit: Literal["bytes", "seconds"]

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured; above zero: it said too much."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class ErrorSummary:
    """Sizes of the errors of several rows.

    Attributes:
        number: Of the rows.
        median: Of the middle one.
        largest: Of the worst one.
    """

    number: int
    median: float
    largest: float


def summarize(rows: Sequence[PlannerRow], what: str, split: Split) -> ErrorSummary | None:
    """Sums up what was predicted of one kind in one half; None where there is nothing."""
    sizes = [abs(row.error) for row in rows if row.what == what and row.split == split]
    return ErrorSummary(len(sizes), statistics.median(sizes), max(sizes)) if sizes else None
