"""Writes and shows what a suite came to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sama_data.score.journal import Answers
from sama_mega.config.errors import ConfigError
from sama_mega.judged.clips import SourceClip
from sama_mega.judged.judging import Pair
from sama_mega.judged.scores import ClipScores, TableRow, clip_columns
from sama_mega.judged.sheet import SheetEntry, sheet_page
from sama_mega.judged.suite import Suite

SCORES_FILE = "scores.json"
SHEET_FILE = "sheet.html"
_DIGITS = 3


def score_clips(
    clips: Sequence[SourceClip],
    pairs: Sequence[Pair],
    answers: Answers,
    num_turns: int,
    unedited: Mapping[str, str],
    unscored: Mapping[str, str],
) -> list[ClipScores]:
    """Returns every clip's scores, or why it has none.

    Args:
        clips: All of the list.
        pairs: Those with an edit.
        answers: All that was answered.
        num_turns: Turns that a clip needs all of.
        unedited: Why clips have no edit, by name.
        unscored: Why edits have no scores, by key.
    """
    keys = {pair.clip.name: pair.key for pair in pairs}
    found = []
    for clip in clips:
        key = keys.get(clip.name)
        scores = None if key is None else answers.scores(key, num_turns)
        if scores is not None:
            found.append(ClipScores(clip.name, clip.category, scores))
            continue
        reason = unedited.get(clip.name, "has no edit") if key is None else unscored.get(key, "was not asked about")
        found.append(ClipScores(clip.name, clip.category, None, reason))
    return found


def show_table(suite: Suite, rows: Sequence[TableRow]) -> None:
    """Prints the table as the papers have it: a row a category, and how many clips each mean is of."""
    from rich.console import Console
    from rich.table import Table

    names = (*suite.columns, suite.total)
    table = Table("category", "clips", *names, title=f"{suite.title}, {suite.least} to {suite.most}")
    for column in table.columns[1:]:
        column.justify = "right"
    for number, row in enumerate(rows):
        if number == len(rows) - 1:
            table.add_section()
        table.add_row(row.label, _count(row), *(_figure(row.columns.get(name)) for name in names))
    Console(width=120).print(table)


def write_scores(
    out: Path,
    suite: Suite,
    settings: Mapping[str, Any],
    rows: Sequence[TableRow],
    scores: Sequence[ClipScores],
    clips: Sequence[SourceClip],
    pairs: Sequence[Pair],
) -> dict[str, Any]:
    """Writes `scores.json`.

    Args:
        out: The folder.
        suite: What was asked.
        settings: What it depends on besides.
        rows: The table.
        scores: Of every clip.
        clips: The same clips.
        pairs: Those with an edit.

    Returns:
        What the file holds.

    Raises:
        ConfigError: It cannot be written.
    """
    edits = {pair.clip.name: str(pair.edit) for pair in pairs}
    content = {
        "suite": suite.title,
        "scale": [suite.least, suite.most],
        "overall_is_mean_of": suite.overall,
        **settings,
        "table": [asdict(row) for row in rows],
        "clips": [
            asdict(scored)
            | {"columns": None if scored.criteria is None else clip_columns(suite, scored.criteria)}
            | {"instruction": clip.instruction, "source": str(clip.path), "edit": edits.get(clip.name)}
            for scored, clip in zip(scores, clips, strict=True)
        ],
    }
    _write(out / SCORES_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return content


def write_sheet(
    out: Path,
    suite: Suite,
    scores: Sequence[ClipScores],
    clips: Sequence[SourceClip],
    pairs: Sequence[Pair],
    remarks: Mapping[str, Sequence[str]],
) -> Path:
    """Writes the page to look at, worst edits of each category first.

    Args:
        out: The folder.
        suite: What was asked.
        scores: Of every clip.
        clips: The same clips.
        pairs: Those with an edit.
        remarks: What the judge said, by clip.

    Raises:
        ConfigError: It cannot be written.
    """
    edits = {pair.clip.name: pair.edit for pair in pairs}
    order = [category.key for category in suite.categories]
    entries = []
    for scored, clip in zip(scores, clips, strict=True):
        columns = {} if scored.criteria is None else clip_columns(suite, scored.criteria)
        said = remarks.get(clip.name, ()) if scored.reason is None else (scored.reason,)
        label = suite.category(clip.category).label
        edit = edits.get(clip.name)
        entry = SheetEntry(clip.name, label, clip.instruction, clip.path, edit, columns, said)
        entries.append((order.index(clip.category), columns.get(suite.total, suite.most + 1.0), entry))
    entries.sort(key=lambda found: found[:2])
    path = out / SHEET_FILE
    _write(path, sheet_page((entry for _, _, entry in entries), suite.title, out))
    return path


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}: free or change the disk") from error


def _count(row: TableRow) -> str:
    return str(row.num_clips) if row.num_scored == row.num_clips else f"{row.num_scored} of {row.num_clips}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.{_DIGITS}f}"
