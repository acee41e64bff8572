"""A study's numbers as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sama_mega.ablation.bootstrap import Interval
from sama_mega.ablation.measures import Comparison, Measure

READING = (
    "A difference is taken clip by clip and seed by seed; in brackets its 95 % interval from a paired bootstrap over"
    " the held-out clips. Bold: the interval excludes 0 and all seeds have the difference's sign. In parentheses behind"
    " a mean: the lowest and the highest seed."
)


def markdown(comparisons: Sequence[Comparison], labels: Mapping[str, str]) -> str:
    """Two tables a group: means, and differences.

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
    for name, row in one.means.items():
        means = [_mean(value, measure) for value, measure in zip(row, columns, strict=True)]
        rows.append([labels[name], *means])
    return _table(["mean", *_headings(columns)], rows)


def _differences(one: Comparison, labels: Mapping[str, str]) -> str:
    rows = []
    for pair in one.differences:
        measures = zip(pair.intervals, one.group.measures, strict=True)
        cells = [_difference(interval, measure) for interval, measure in measures]
        rows.append([f"{labels[pair.name]} against {labels[pair.against]}", *cells])
    return _table(["difference", *_headings(one.group.measures)], rows)


def _headings(measures: Sequence[Measure]) -> list[str]:
    return [f"{measure.label}, {measure.unit}" for measure in measures]


def _mean(value: Interval, measure: Measure) -> str:
    if len(value.by_seed) == 1:
        return _number(value.mean, measure)
    low, high = (_number(end, measure) for end in (min(value.by_seed), max(value.by_seed)))
    return f"{_number(value.mean, measure)} ({low} to {high})"


def _difference(interval: Interval, measure: Measure) -> str:
    ends = (interval.mean, interval.low, interval.high)
    mean, low, high = (f"{value:+.{_decimals(measure)}f}" for value in ends)
    clear = interval.excludes_zero and interval.seeds_agree
    return f"**{mean}** [{low}, {high}]" if clear else f"{mean} [{low}, {high}]"


def _number(value: float, measure: Measure) -> str:
    return f"{value:.{_decimals(measure)}f}"


def _decimals(measure: Measure) -> int:
    return 1 if measure.unit == "%" else 2


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
