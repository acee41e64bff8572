"""`sama-mega bench planner`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from sama_mega.bench.planner_memory import measure_memory
from sama_mega.bench.planner_rows import PlannerRow, Split, summarize
from sama_mega.bench.planner_time import TimeCalibration, calibrate_time
from sama_mega.bench.results import describe_machine, require_writable, wide_console, write_results
from sama_mega.commands.tables import plain_table

GOALS = {"memory": 0.10, "time": 0.15}
"""The size of the error that the planner aims for."""
_MIB = 1 << 20
_SPLITS: tuple[Split, ...] = ("fit", "held out")

What = Literal["memory", "time"]


def run(only: What | None, rounds: int, as_json: bool, results: Path) -> int:
    """Holds the planner's memory and step times against what this machine measures.

    Args:
        only: One of the two; None: both.
        rounds: Timed steps of each configuration.
        as_json: Whether a dated file is written.
        results: Where.

    Returns:
        0; errors are reported, not judged.

    Raises:
        ConfigError: The folder of results cannot be written.
    """
    if as_json:
        require_writable(results)
    console = Console(stderr=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[PlannerRow] = []
    calibration: TimeCalibration | None = None

    def report(what: str) -> None:
        console.print(what, style="dim")

    if only != "time":
        rows += measure_memory(report)
    if only != "memory":
        calibration = calibrate_time(device.type, rounds, report)
        rows += calibration.rows
    machine = describe_machine(device)
    _print(wide_console(), rows, calibration, f"{machine['device']}, one core a rank")
    if as_json:
        document = _document(rows, calibration, rounds) | {"machine": machine}
        path = write_results(results, "planner", document)
        print(json.dumps({"file": str(path), "rows": document["rows"], "errors": document["errors"]}))
    return 0


def _print(console: Console, rows: Sequence[PlannerRow], calibration: TimeCalibration | None, title: str) -> None:
    for what in dict.fromkeys(row.what for row in rows):
        table = plain_table(
            f"{what} of a step: {title}", "configuration", "split", "predicted|n", "measured|n", "error|n"
        )
        for row in rows:
            if row.what == what:
                said, took = _value(row, row.predicted), _value(row, row.measured)
                table.add_row(row.configuration, row.split, said, took, f"{row.error:+.1%}")
        console.print(table)
        for split in _SPLITS:
            found = summarize(rows, what, split)
            if found:
                console.print(
                    f"{what}, {found.number} {split}: error {found.median:.1%} (median), {found.largest:.1%} (largest);"
                    f" goal {GOALS[what]:.0%}"
                )
    if calibration is not None:
        console.print("fitted: " + "; ".join(calibration.in_words()), soft_wrap=True)


def _value(row: PlannerRow, value: float) -> str:
    return f"{value / _MIB:,.1f} MiB" if row.unit == "bytes" else f"{value:.4f} s"


def _document(rows: Sequence[PlannerRow], calibration: TimeCalibration | None, rounds: int) -> dict[str, Any]:
    errors = {}
    for what in dict.fromkeys(row.what for row in rows):
        for split in _SPLITS:
            found = summarize(rows, what, split)
            if found:
                errors[f"{what}, {split}"] = asdict(found)
    fitted = {} if calibration is None else {"rounds": rounds, "spreads": calibration.spreads}
    if calibration is not None:
        fitted["seconds_a_unit"] = calibration.coefficients
    return {**fitted, "errors": errors, "rows": [asdict(row) | {"error": row.error} for row in rows]}
