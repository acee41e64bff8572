"""Puts the judge's answers together: a clip's scores, a category's, and the last row's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sama_mega.judged.suite import Suite


@dataclass(frozen=True)
class ClipScores:
    """What the judge says of one edit.

    Attributes:
        name: The clip's.
        category: Its category's key.
        criteria: Each criterion's mean over the turns; None where there are no scores.
        reason: Why there are none.
    """

    name: str
    category: str
    criteria: Mapping[str, float] | None
    reason: str | None = None


@dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Attributes:
        label: The category's, or what the last row is.
        num_clips: Clips that the list has of it.
        num_scored: Those that have scores: the others count for nothing.
        columns: The means, total included; none where nothing has scores.
    """

    label: str
    num_clips: int
    num_scored: int
    columns: Mapping[str, float]


def clip_columns(suite: Suite, criteria: Mapping[str, float]) -> dict[str, float]:
    """Returns a clip's figures in the table's columns: means of a column's criteria, and the mean of those."""
    columns = {
        column: fmean(criteria[criterion.key] for criterion in suite.criteria if criterion.column == column)
        for column in suite.columns
    }
    return columns | {suite.total: fmean(columns.values())}


def table_rows(suite: Suite, clips: Sequence[ClipScores]) -> list[TableRow]:
    """Returns a row for each category that the list has, and at last the overall row.

    A clip without scores is missing, which is not the same as bad: no mean counts it.
    """
    rows = []
    for category in suite.categories:
        mine = [clip for clip in clips if clip.category == category.key]
        if mine:
            rows.append(_row(suite, category.label, mine))
    if suite.overall == "samples":
        return [*rows, _row(suite, "overall (mean of clips)", clips)]
    means = [row.columns for row in rows if row.columns]
    overall = {name: fmean(columns[name] for columns in means) for name in (*suite.columns, suite.total) if means}
    scored = sum(row.num_scored for row in rows)
    return [*rows, TableRow("overall (mean of categories)", len(clips), scored, overall)]


def _row(suite: Suite, label: str, clips: Sequence[ClipScores]) -> TableRow:
    found = [clip_columns(suite, clip.criteria) for clip in clips if clip.criteria is not None]
    means = {name: fmean(columns[name] for columns in found) for name in (*suite.columns, suite.total) if found}
    return TableRow(label, len(clips), len(found), means)
