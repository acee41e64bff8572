"""`sama-mega data probe`: decodes every clip once, says what it really is, and rejects what cannot be trained on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sama_data.errors import DataError
from sama_data.probe.manifest import ProbeReport, probe_manifest
from sama_data.settings import MOST_TIMEOUT_SECONDS
from sama_mega.observe.sampling import sampling_progress

_LOG_WIDTH = 120
_MOST_GROUPS = 20


def run(manifest: Path, out: Path | None, workers: int | None, timeout_seconds: float, as_json: bool = False) -> int:
    """Probe a manifest, print what was found, and write it into a new manifest.

    Args:
        manifest: JSONL or Parquet.
        out: The Parquet manifest to write; None only prints.
        workers: Processes that decode; None takes one for each core.
        timeout_seconds: The longest that one row may take.
        as_json: Whether the last line of stdout is one JSON object.

    Returns:
        Exit status 0, also where rows were rejected.

    Raises:
        DataError: The timeout is out of range, the manifest cannot be used, none of its rows can be decoded, or `out`
            cannot be written.
    """
    if not 0 < timeout_seconds <= MOST_TIMEOUT_SECONDS:
        rule = f"must be greater than 0 and at most {MOST_TIMEOUT_SECONDS:g}, a day"
        raise DataError(f"--timeout ({timeout_seconds:g}) {rule}")
    started = time.monotonic()
    with ExitStack() as shown:

        def progress(total: int) -> Callable[[int], None]:
            return shown.enter_context(sampling_progress(total, "rows"))

        cores = len(os.sched_getaffinity(0))
        report = probe_manifest(manifest, out, workers or cores, timeout_seconds, progress)
    seconds = time.monotonic() - started
    _show(report, out, seconds)
    if as_json:
        print(json.dumps(_values(report, out, seconds), ensure_ascii=False))
    return 0


def _show(report: ProbeReport, out: Path | None, seconds: float) -> None:
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, width=_LOG_WIDTH)
    if report.groups:
        console.print(_groups(report))
    if report.rejected:
        console.print(_rejected(report))
    if report.num_variable:
        print(f"{report.num_variable:,} clips have frames at uneven times: column variable_fps")
    if report.num_left:
        print(f"{report.num_left:,} rows were rejected before and are left alone")
    where = f" in {out}" if out else "; --out M.parquet keeps what was found"
    print(f"{report.num_good:,} of {report.num_rows:,} rows can be trained on{where}")
    print(f"  {report.num_decoded:,} rows decoded now ({seconds:.1f} s)")


def _groups(report: ProbeReport) -> Table:
    more = len(report.groups) - _MOST_GROUPS
    title = "Good rows" + (f": the {_MOST_GROUPS} most frequent of {len(report.groups)} forms" if more > 0 else "")
    table = _table(title, "kind", "codec", "size", "frames", "rows")
    for (kind, codec, width, height, frames), count in report.groups.most_common(_MOST_GROUPS):
        table.add_row(kind, codec, f"{width}x{height}", "-" if frames is None else str(frames), f"{count:,}")
    return table


def _rejected(report: ProbeReport) -> Table:
    table = _table("Rejected rows", "reason", "first of them", "rows")
    for reason, count in report.rejected.most_common():
        name, whole = report.examples[reason]
        table.add_row(reason, name if whole == reason else f"{name}: {whole}", f"{count:,}")
    return table


def _table(title: str, *columns: str) -> Table:
    """Names on the left, the number of rows on the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    return table


def _values(report: ProbeReport, out: Path | None, seconds: float) -> dict[str, Any]:
    names = ("kind", "codec", "width", "height", "num_frames")
    groups = [dict(zip(names, group, strict=True)) | {"rows": count} for group, count in report.groups.most_common()]
    return {
        "out": None if out is None else str(out),
        "rows": report.num_rows,
        "good": report.num_good,
        "rejected": dict(report.rejected.most_common()),
        "examples": {reason: {"sample_id": name, "reason": whole} for reason, (name, whole) in report.examples.items()},
        "rejected_before": report.num_left,
        "decoded_now": report.num_decoded,
        "variable_fps": report.num_variable,
        "groups": groups,
        "seconds": round(seconds, 3),
    }
