"""`sama-mega ablation`: whether the method's parts help, on the synthetic world."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from sama_mega.ablation.conduct import conduct, total_steps
from sama_mega.ablation.measures import compare
from sama_mega.ablation.pictures import (
    CURVES,
    DIFFERENCES,
    LOSSES,
    can_draw,
    draw_differences,
    draw_held_out_curves,
    draw_training_losses,
)
from sama_mega.ablation.study import SIZES, Size, Study
from sama_mega.ablation.tables import markdown
from sama_mega.config.errors import ConfigError
from sama_mega.observe.sampling import sampling_progress

REPORT_FILE, RESULTS_FILE, ALL_SCORES_FILE = "report.md", "report.json", "scores.json"


def run(
    size: str | Size,
    out: Path,
    num_seeds: int = 3,
    jobs: int = 2,
    overrides: Sequence[str] = (),
    as_json: bool = False,
) -> int:
    """Runs the study, or what it still lacks, and writes its report.

    Args:
        size: A size, or the name of one.
        out: The study's folder.
        num_seeds: Runs of each variant.
        jobs: Runs at a time, one process each.
        overrides: ``a.b=value`` for every run.
        as_json: Whether the last line of stdout is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: The folder has another study, a recipe is missing or wrong, or a run failed.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ConfigError(f"--size ({size}) must be one of: {', '.join(SIZES)}")
        size = SIZES[size]
    study = Study(size, out, num_seeds, tuple(overrides))
    study.require_fair_overrides()  # told before anything is made
    study.save()
    if not can_draw():
        print("no pictures will be drawn: matplotlib is missing (pip install 'sama-mega[ui]')", file=sys.stderr)
    started = time.monotonic()
    with sampling_progress(total_steps(study), "ablation steps") as show:
        conduct(study, jobs, show)
    report = write_report(study, (time.monotonic() - started) / 60)
    print((out / REPORT_FILE).read_text())
    print(f"report, pictures and every clip's scores: {out}")
    if as_json:
        print(json.dumps(report))
    return 0


def write_report(study: Study, minutes: float) -> dict[str, Any]:
    """Writes tables, pictures and scores of a finished study.

    Args:
        study: Finished.
        minutes: That this call took.

    Returns:
        What `report.json` holds.
    """
    results = {variant.name: scores for variant, scores in study.finished_scores()}
    labels = {variant.name: variant.label for variant in study.variants}
    comparisons = compare(results)
    folder = study.folder
    (folder / REPORT_FILE).write_text(markdown(comparisons, labels))
    (folder / ALL_SCORES_FILE).write_text(_every_score(results))
    report = {
        "date": date.today().isoformat(),
        "size": study.size.name,
        "seeds": study.num_seeds,
        "minutes": round(minutes, 1),
        "groups": [one.as_json() for one in comparisons],
    }
    (folder / RESULTS_FILE).write_text(json.dumps(report, indent=2) + "\n")
    if can_draw():
        draw_training_losses(study, folder / LOSSES)
        draw_held_out_curves(results, labels, folder / CURVES, study.size.curve_clips_per_kind)
        draw_differences(comparisons, labels, folder / DIFFERENCES)
    return report


def _every_score(results: dict[str, list[dict[str, Any]]]) -> str:
    """All clips' scores, a line a run; the unedited sources' once, since they are the same for all."""
    first = next(iter(results.values()))[0]
    lines = [f'"unedited":{json.dumps(first["unedited"], separators=(",", ":"))}']
    for name, seeds in results.items():
        rows = [{part: value for part, value in scores.items() if part != "unedited"} for scores in seeds]
        lines.append(f'"{name}":[\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "]")
    return "{" + ",\n".join(lines) + "}\n"
