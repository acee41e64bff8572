"""Reads CSV as it is met: commas, semicolons or tabs, quotes, line ends inside quotes, and records that are broken.

A quote that is never closed would swallow every line up to the next one. Here the broken record's first line is left
out, and reading goes on with its second.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sama_data.errors import DataError
from sama_data.ingest.interface import Skip

BROKEN = "CSV record is broken"
WRONG_LENGTH = "CSV record has another number of columns than the header"

_DELIMITERS = (";", ",", "\t", "|")


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One record: where it is, and its columns."""

    place: str
    values: Mapping[str, str]


def csv_rows(lines: Iterable[str], name: str) -> Iterator[CsvRow | Skip]:
    """Yields a CSV file's records by the names of its header; the header tells the delimiter.

    Args:
        lines: The file's lines with their ends, not translated.
        name: Names the file in messages.

    Raises:
        DataError: There is no header, or it names a column twice.
    """
    source = _Lines(lines)
    header, delimiter = _header(source, name)
    while not source.ended:
        yield from _rows(source, header, delimiter, name)


def _header(source: _Lines, name: str) -> tuple[list[str], str]:
    line = next((line for line in source if line.strip()), None)
    if line is None:
        raise DataError(f"{name}: is empty: it needs a header line")
    candidates = [(next(csv.reader([line], delimiter=delimiter), []), delimiter) for delimiter in _DELIMITERS]
    names, delimiter = max(candidates, key=lambda candidate: len(candidate[0]))
    header = [column.strip() for column in names]
    twice = {column for column in header if header.count(column) > 1}
    if twice:
        raise DataError(f"{name}: its header names {', '.join(sorted(map(repr, twice)))} more than once")
    return header, delimiter


def _rows(source: _Lines, header: list[str], delimiter: str, name: str) -> Iterator[CsvRow | Skip]:
    """Yields records until the lines end or one is broken."""
    source.mark()
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        place = f"{name} line {source.number + 1}"
        try:
            fields = next(reader, None)
        except csv.Error:
            source.go_back_to_second()
            yield Skip(BROKEN, place)
            return
        if fields is None:
            return
        source.mark()
        if not fields:  # an empty line
            continue
        if len(fields) != len(header):
            yield Skip(WRONG_LENGTH, place)
        else:
            yield CsvRow(place, dict(zip(header, fields, strict=True)))


class _Lines(Iterator[str]):
    """Lines that can be read again from the second one after a mark."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self._since_mark: list[str] = []
        self.number = 0
        self.ended = False

    def __next__(self) -> str:
        if self._again:
            line = self._again.popleft()
        else:
            try:
                line = next(self._lines)
            except StopIteration:
                self.ended = True
                raise
        self.number += 1
        self._since_mark.append(line)
        return line

    def mark(self) -> None:
        """Starts anew: lines before this one will not be wanted again."""
        self._since_mark.clear()

    def go_back_to_second(self) -> None:
        """Makes the second line after the mark the next one."""
        again = self._since_mark[1:]
        self._again.extendleft(reversed(again))
        self.number -= len(again)
        if again:
            self.ended = False
        self._since_mark.clear()
