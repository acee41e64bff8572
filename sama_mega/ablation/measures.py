"""What the study measures, and every variant's means and differences to the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sama_mega.ablation.bootstrap import RESAMPLES, Interval, mean_interval, paired_interval

Scores = Mapping[str, Any]
"""What `score.score_chain` gives for one variant and one seed."""


@dataclass(frozen=True)
class Measure:
    """One column.

    Attributes:
        label: Its heading.
        metric: Its key in the scores.
        kinds: Kinds of edit, or one pretext task; empty: all kinds there are.
        unit: Of its values.
        factor: From the scores' values to the unit.
    """

    label: str
    metric: str
    kinds: tuple[str, ...] = ()
    unit: str = "dB"
    factor: float = 1.0

    def read(self, section: Mapping[str, Mapping[str, Sequence[float | None]]]) -> tuple[list[float], list[str]]:
        """Every clip's value, NaN where it has none, and its kind."""
        values: list[float] = []
        kinds: list[str] = []
        for kind in self.kinds or tuple(section):
            row = section[kind][self.metric]
            values += [math.nan if value is None else value * self.factor for value in row]
            kinds += [kind] * len(row)
        return values, kinds


@dataclass(frozen=True)
class Group:
    """One table.

    Attributes:
        title: Its heading.
        section: Which part of the scores.
        measures: Its columns.
        reference: What one gets without a model: its name, and the metric or the section that has it.
    """

    title: str
    section: str
    measures: tuple[Measure, ...]
    reference: str


EDIT_MEASURES = (
    Measure("success", "success", unit="%", factor=100.0),
    Measure("inside", "inside_db"),
    Measure("outside", "outside_db"),
    Measure("temporal", "temporal_db"),
)
GROUPS = (
    Group("Edits of held-out clips, after stage 1", "edits", EDIT_MEASURES, "the source, unedited"),
    Group("Zero-shot edits of held-out clips, after stage 0 alone", "zero_shot", EDIT_MEASURES, "the source, unedited"),
    Group(
        "Restored held-out clips, after stage 0 alone",
        "restored",
        tuple(Measure(task, "model", (task,)) for task in ("cube", "speed", "tube")),
        "the best without a model",
    ),
)


@dataclass(frozen=True)
class Cell:
    """One variant's value of one measure.

    Attributes:
        value: Its mean.
        difference: To the first variant's, clip by clip; None for the first one.
    """

    value: Interval
    difference: Interval | None


@dataclass(frozen=True)
class Comparison:
    """One group's numbers.

    Attributes:
        group: Which.
        cells: By variant, one a measure.
        reference: One a measure, what one gets without a model.
    """

    group: Group
    cells: dict[str, list[Cell]]
    reference: list[float]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        labels = [measure.label for measure in self.group.measures]
        return {
            "title": self.group.title,
            "variants": {
                name: {label: asdict(cell) for label, cell in zip(labels, row, strict=True)}
                for name, row in self.cells.items()
            },
            "without_a_model": dict(zip(labels, self.reference, strict=True)),
        }


def compare(
    results: Mapping[str, Sequence[Scores]], groups: Sequence[Group] = GROUPS, resamples: int = RESAMPLES
) -> list[Comparison]:
    """Compares every variant with the first.

    Args:
        results: By variant, the scores of each seed; as many seeds for each, of the same clips.
        groups: What to compare.
        resamples: Of the bootstrap.

    Raises:
        ValueError: The variants have no common clips and seeds.
    """
    comparisons = []
    baseline = next(iter(results.values()))
    for group in groups:
        cells: dict[str, list[Cell]] = {}
        for name, seeds in results.items():
            row = []
            for measure in group.measures:
                ours, kinds = _table(seeds, group, measure)
                value = mean_interval(ours, kinds, resamples=resamples)
                others = None if seeds is baseline else _table(baseline, group, measure)[0]
                difference = None if others is None else paired_interval(ours, others, kinds, resamples=resamples)
                row.append(Cell(value, difference))
            cells[name] = row
        reference = [_reference(baseline[0], group, measure) for measure in group.measures]
        comparisons.append(Comparison(group, cells, reference))
    return comparisons


def _table(seeds: Sequence[Scores], group: Group, measure: Measure) -> tuple[NDArray[np.float64], list[str]]:
    """``[seeds, clips]`` and the clips' kinds."""
    rows = [measure.read(scores[group.section]) for scores in seeds]
    return np.array([values for values, _ in rows]), rows[0][1]


def _reference(scores: Scores, group: Group, measure: Measure) -> float:
    if group.section != "restored":
        return float(np.nanmean(measure.read(scores["unedited"])[0]))
    [task] = measure.kinds
    others = [row for name, row in scores["restored"][task].items() if name != "model"]
    return max(float(np.mean(row)) for row in others)
