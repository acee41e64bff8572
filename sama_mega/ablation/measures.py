"""What the study measures: every variant's means, and their differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sama_mega.ablation.bootstrap import RESAMPLES, Interval, mean_interval, paired_interval
from sama_mega.ablation.study import ALSO_COMPARED

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
class Difference:
    """One variant against another, clip by clip and seed by seed.

    Attributes:
        name: Of the variant.
        against: Of the other.
        intervals: Of `name` minus `against`, one a measure.
    """

    name: str
    against: str
    intervals: list[Interval]


@dataclass(frozen=True)
class Comparison:
    """One group's numbers.

    Attributes:
        group: Which.
        means: By variant, one a measure.
        differences: To the first variant, and to others.
        reference: One a measure, what one gets without a model.
    """

    group: Group
    means: dict[str, list[Interval]]
    differences: list[Difference]
    reference: list[float]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        labels = [measure.label for measure in self.group.measures]
        return {
            "title": self.group.title,
            "means": {name: _named(labels, row) for name, row in self.means.items()},
            "differences": [
                {"variant": one.name, "against": one.against} | _named(labels, one.intervals)
                for one in self.differences
            ],
            "without_a_model": dict(zip(labels, self.reference, strict=True)),
        }


def compare(
    results: Mapping[str, Sequence[Scores]],
    pairs: Sequence[tuple[str, str]] = ALSO_COMPARED,
    resamples: int = RESAMPLES,
) -> list[Comparison]:
    """Compares every variant with the first, and some with another.

    Args:
        results: By variant, the scores of each seed; as many seeds for each, of the same clips.
        pairs: Also compared, where both variants are there: one, and what it is compared with.
        resamples: Of the bootstrap.

    Raises:
        ValueError: The variants have no common clips and seeds.
    """
    baseline, *others = results
    wanted = [(name, baseline) for name in others] + [pair for pair in pairs if set(pair) <= set(others)]
    comparisons = []
    for group in GROUPS:
        tables = {
            name: [_table(seeds, group, measure) for measure in group.measures] for name, seeds in results.items()
        }
        means = {
            name: [mean_interval(values, kinds, resamples=resamples) for values, kinds in row]
            for name, row in tables.items()
        }
        differences = [
            Difference(
                name,
                against,
                [
                    paired_interval(ours, theirs, kinds, resamples=resamples)
                    for (ours, kinds), (theirs, _) in zip(tables[name], tables[against], strict=True)
                ],
            )
            for name, against in wanted
        ]
        reference = [_reference(results[baseline][0], group, measure) for measure in group.measures]
        comparisons.append(Comparison(group, means, differences, reference))
    return comparisons


def _named(labels: Sequence[str], row: Sequence[Interval]) -> dict[str, Any]:
    return {label: asdict(interval) for label, interval in zip(labels, row, strict=True)}


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
