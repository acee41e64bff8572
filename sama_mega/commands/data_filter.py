"""`sama-mega data filter`: keeps the rows that are good enough to train on, and says why the others went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sama_data.errors import DataError
from sama_data.filter.criteria import SCORES, Criteria, parse_min_scores, parse_tasks, simplified_licence
from sama_data.filter.manifest import FilterReport, filter_manifest


def run(
    manifest: Path,
    out: Path,
    min_scores: Sequence[str] = (),
    tasks: Sequence[str] = (),
    licences: Sequence[str] = (),
    commercial_only: bool = False,
    keep_unscored: bool = False,
    as_json: bool = False,
) -> int:
    """Filter a manifest and print a table of what was kept and dropped, and why.

    Args:
        manifest: JSONL or Parquet.
        out: The Parquet manifest to write.
        min_scores: `[image.|video.]SCORE=LEAST` items that replace the paper's thresholds.
        tasks: `TASK`, `DATASET=TASK` or `paper` items; none keeps all tasks.
        licences: Licences to keep; none keeps all.
        commercial_only: Whether to keep only licences that are known to allow commercial use.
        keep_unscored: Whether edits that lack a score stay.
        as_json: Whether the last line of stdout is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        DataError: An option or the manifest is wrong, or no row is left.
    """
    criteria = Criteria(
        min_scores=parse_min_scores(min_scores),
        task_rules=parse_tasks(tasks),
        licences=tuple(simplified_licence(name) for name in licences),
        commercial_only=commercial_only,
        keep_unscored=keep_unscored,
    )
    report = filter_manifest(manifest, out, criteria)
    _show(report)
    for option in report.unmatched:
        print(f"warning: {option} matched no row: check its spelling")
    if not report.num_kept:
        reason, count = next(iter(report.dropped().items()))
        raise DataError(
            f"{manifest}: no row is left, {count} of {report.num_rows} for {reason!r}: nothing is written; "
            f"{_way_out(report)}"
        )
    print(f"{report.num_kept} of {report.num_rows} rows ({report.num_kept / report.num_rows:.1%}) in {out}")
    if as_json:
        values = {
            "out": str(out),
            "rows": report.num_rows,
            "kept": report.num_kept,
            "dropped": report.dropped(),
            "groups": report.groups(),
            "criteria": criteria.as_dict(),
            "unmatched": list(report.unmatched),
        }
        print(json.dumps(values))
    return 0


def _way_out(report: FilterReport) -> str:
    if any(reason.removeprefix("no ") in SCORES for reason in report.dropped()):
        return "score the manifest first (data score), or keep edits without scores (--keep-unscored)"
    return "loosen the options, or filter another manifest"


def _show(report: FilterReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("dataset", "kind", "outcome")
    for heading in ("rows", "share"):
        table.add_column(heading, justify="right")
    for group in report.groups():
        outcomes = [("kept", group["kept"]), *((f"dropped: {why}", count) for why, count in group["dropped"].items())]
        for place, (outcome, count) in enumerate(outcomes):
            names = (escape(group["dataset"]), group["kind"]) if place == 0 else ("", "")
            table.add_row(*names, escape(outcome), str(count), f"{count / group['rows']:.1%}")
        table.add_section()
    Console(width=120).print(table)
