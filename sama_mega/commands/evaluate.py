"""`sama-mega evaluate`: scores a checkpoint on clips whose truth is known."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sama_mega.config.errors import ConfigError
from sama_mega.parallel.rank_environment import read_rank_environment

SUITES = ("synthetic",)
DEFAULT_CLIPS = 16
REDRAWN_IN_PLACE = ("recolour", "remove", "style", "background")
"""The kinds that are also scored together: they change what is there, where it is."""
EDIT_COLUMNS = ("edit", "clips", "success", "inside", "unedited", "outside", "control success")
MOTION_COLUMNS = ("task", "clips", "restored", "without a model")


def run(
    checkpoint: Path,
    suite: str = "synthetic",
    weights: str = "ema",
    steps: int | None = None,
    guidance: float | None = None,
    limit: int | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> int:
    """Scores edits (a stage-1 checkpoint) or restored clips (stage 0).

    Args:
        checkpoint: A checkpoint or a run folder.
        suite: ``synthetic``.
        weights: ``ema`` or ``model``.
        steps: Sampling steps; None takes the checkpoint's recipe.
        guidance: Guidance scale; None takes the checkpoint's recipe.
        limit: Clips of each kind; None takes 16.
        out: Folder for `scores.json` and one picture a kind; None writes none.
        as_json: Whether the last line is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: There is no such suite, or `out` cannot be made or written.
    """
    if suite not in SUITES:
        raise ConfigError(f"suite ({suite}) must be one of: {', '.join(SUITES)}")
    if out is not None:
        _make_folder(out)
    from sama_mega.inference.editor import SamplingSettings
    from sama_mega.inference.load import open_checkpoint

    with open_checkpoint(checkpoint, weights, read_rank_environment(os.environ).world_size) as opened:
        diffusion = opened.recipe.diffusion
        settings = SamplingSettings(
            steps=diffusion.sampling_steps if steps is None else steps,
            guidance=diffusion.guidance if guidance is None else guidance,
            seed=opened.recipe.train.seed,
        )
        scores, examples = _score(opened, settings, limit or DEFAULT_CLIPS)
        if not opened.context.is_first_rank:
            return 0
        _show(opened.recipe.train.stage, scores)
        if out is not None:
            _write(out, scores, examples)
            print(f"scores and pictures: {out}")
    if as_json:
        print(json.dumps({"checkpoint": str(opened.path), "scores": scores}))
    return 0


def _score(opened: Any, settings: Any, num_clips: int) -> tuple[list[dict[str, Any]], list[Any]]:
    from sama_data.synth import EDIT_KINDS
    from sama_mega.inference.scores import score_together
    from sama_mega.inference.synthetic_suite import MOTION_TASKS, SyntheticSuite
    from sama_mega.observe.sampling import sampling_progress

    edits = opened.recipe.train.stage == 1
    total = num_clips * (2 * len(EDIT_KINDS) if edits else len(MOTION_TASKS))
    done = 0
    with sampling_progress(total, "clips", opened.context.is_first_rank) as show:

        def on_batch(clips: int) -> None:
            nonlocal done
            done += clips
            show(done)

        suite = SyntheticSuite(opened, settings, num_clips, on_batch)
        scored: list[tuple[Any, Any]] = list(suite.score_edits() if edits else suite.score_motion())
    # NaN is no JSON: an edit of the whole frame has no outside.
    all_scores = [scores for scores, _ in scored]
    if edits:
        all_scores.append(score_together(all_scores, REDRAWN_IN_PLACE))
    rows = [{key: _finite(value) for key, value in asdict(scores).items()} for scores in all_scores]
    return rows, [example for _, example in scored]


def _show(stage: int, scores: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(EDIT_COLUMNS if stage == 1 else MOTION_COLUMNS))
    for row in scores:
        table.add_row(*(_edit_cells(row) if stage == 1 else _motion_cells(row)))
    Console(width=120).print(table)


def _edit_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["kind"],
        str(row["num_clips"]),
        f"{row['success']:.0%}",
        _decibels(row["inside_db"]),
        _decibels(row["unedited_db"]),
        _decibels(row["outside_db"]),
        f"{row['control_success']:.0%}",
    )


def _motion_cells(row: dict[str, Any]) -> tuple[str, ...]:
    baselines = (f"{name} {_decibels(value)}" for name, value in row["baselines_db"].items())
    return row["task"], str(row["num_clips"]), _decibels(row["model_db"]), ", ".join(baselines)


def _write(out: Path, scores: list[dict[str, Any]], examples: list[Any]) -> None:
    from sama_mega.inference.editor import frames_from_pixels
    from sama_mega.inference.pictures import grid_picture

    try:
        (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        # The scores of several kinds together come last and have no example of their own.
        for row, example in zip(scores, examples, strict=False):
            rows = [(name, frames_from_pixels(pixels).numpy()) for name, pixels in example.rows]
            grid_picture(rows, out / f"{row.get('kind') or row['task']}.png", title=example.label)
    except OSError as error:
        raise ConfigError(
            f"--out ({out}) cannot be written: {error.strerror or error}: free or change the disk"
        ) from error


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out ({out}) cannot be made: {error.strerror}: choose another folder") from error


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
