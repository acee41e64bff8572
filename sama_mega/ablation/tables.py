"""A study's numbers as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sama_mega.ablation.bootstrap import Interval
from sama_mega.ablation.measures import Cell, Comparison, Measure

READING = (
    "A difference is to the first row, clip by clip and seed by seed; in brackets its 95 % interval from a paired"
    " bootstrap over the held-out clips. Bold: the interval excludes 0 and all seeds have the difference's sign. In"
    " parentheses behind a mean: the lowest and the highest seed."
)


def markdown(comparisons: Sequence[Comparison], labels: Mapping[str, str]) -> str:
    """Two tables a group: means, and differences to the first variant.

    Args:
        comparisons: From `measures.compare`.
        labels: Of the variants, by name.
    """
    parts = [READING]
    for one in comparisons:
        parts += [f"## {one.group.title}", _means(one, labels), _differences(one, labels)]
    return "\n\n".join(parts) + "\n"


def _means(one: Comparison, labels: Mapping[str, str]) -> str:
    columns = one.group.measures
    reference = [_number(value, measure) for value, measure in zip(one.reference, columns, strict=True)]
    rows = [[one.group.reference, *reference]]
    for name, cells in one.cells.items():
        means = [_mean(cell.value, measure) for cell, measure in zip(cells, columns, strict=True)]
        rows.append([labels[name], *means])
    return _table(["mean", *_headings(columns)], rows)


def _differences(one: Comparison, labels: Mapping[str, str]) -> str:
    first, *others = one.cells.items()
    rows = [
        [labels[name], *(_difference(cell, measure) for cell, measure in zip(cells, one.group.measures, strict=True))]
        for name, cells in others
    ]
    return _table([f"difference to {labels[first[0]]}", *_headings(one.group.measures)], rows)


def _headings(measures: Sequence[Measure]) -> list[str]:
    return [f"{measure.label}, {measure.unit}" for measure in measures]


def _mean(value: Interval, measure: Measure) -> str:
    low, high = (_number(end, measure) for end in (min(value.by_seed), max(value.by_seed)))
    return f"{_number(value.mean, measure)} ({low} to {high})"


def _difference(cell: Cell, measure: Measure) -> str:
    assert cell.difference is not None
    mean, low, high = (
        f"{value:+.{_decimals(measure)}f}"
        for value in (cell.difference.mean, cell.difference.low, cell.difference.high)
    )
    clear = cell.difference.excludes_zero and cell.difference.seeds_agree
    return f"**{mean}** [{low}, {high}]" if clear else f"{mean} [{low}, {high}]"


def _number(value: float, measure: Measure) -> str:
    return f"{value:.{_decimals(measure)}f}"


def _decimals(measure: Measure) -> int:
    return 1 if measure.unit == "%" else 2


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
