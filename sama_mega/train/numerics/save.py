"""Writes a bad step into the run folder, whole or not at all: report, samples, recipe and weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sama_data.loader import StepSamples
from sama_mega.checkpoint.folder import RECIPE_FILE, checkpoint_name, complete_checkpoints
from sama_mega.checkpoint.replace import flush_to_disk, put_in_place, tidy_checkpoints, unfinished_path
from sama_mega.checkpoint.write import write_complete
from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import CheckpointError, ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.observe.environment import describe_environment
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.agreement import from_first_rank, on_every_rank
from sama_mega.train.checkpoint import describe_position, model_weights
from sama_mega.train.lives import require_newest
from sama_mega.train.numerics.examine import Examination
from sama_mega.train.numerics.finding import json_number
from sama_mega.train.numerics.saved_step import samples_path, write_samples
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState

REPORT_FILE = "report.json"
FORMAT = 1
WEIGHTS_FOLDER = "weights"


def save_bad_step(
    run_folder: RunFolder,
    examination: Examination | None,
    drawn: StepSamples,
    state: TrainState,
    recipe: Recipe,
    context: ParallelContext,
    life: int,
) -> tuple[Path, bool]:
    """Writes everything that `train --replay` needs; every rank calls it.

    Args:
        run_folder: The run's.
        examination: The first rank's.
        drawn: This rank's samples.
        state: Before the step; only read.
        recipe: The whole recipe.
        context: The running layout.
        life: This life's number; an older life writes nothing.

    Returns:
        The report's path, and whether it was written now: one that an earlier life left of the same step stays.

    Raises:
        CheckpointError: On every rank, when one could not write; nothing is left.
    """
    folder = run_folder.replay / checkpoint_name(state.step + 1)
    report = folder / REPORT_FILE
    unfinished = unfinished_path(folder, life)
    if from_first_rank(context, _writing(folder, lambda: _prepare(unfinished, report, run_folder, life))):
        return report, False
    try:
        on_every_rank(context, _writing(folder, lambda: _write_own_samples(unfinished, drawn, context)))
        weights = _find_or_write_weights(run_folder, unfinished, state, recipe, context, life)

        def complete() -> None:
            assert examination is not None
            relative = os.path.relpath(weights, unfinished)
            content = _content(examination, drawn, state, recipe, context, life, relative)
            _complete(unfinished, folder, content, recipe)

        from_first_rank(context, _writing(folder, complete))
    except CheckpointError:
        if context.is_first_rank:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return report, True


def _writing(folder: Path, work: Callable[[], Any]) -> Callable[[], Any]:
    """Work of which every failure is one that all ranks hear of: one that stopped alone would leave them waiting."""

    def guarded() -> Any:
        try:
            return work()
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be written: {error}") from error

    return guarded


def _prepare(unfinished: Path, report: Path, run_folder: RunFolder, life: int) -> bool:
    """Whether it is there already; else makes room."""
    require_newest(run_folder, life)
    if report.is_file():
        return True
    tidy_checkpoints(run_folder.replay, life)
    unfinished.mkdir(parents=True)
    return False


def _write_own_samples(unfinished: Path, drawn: StepSamples, context: ParallelContext) -> None:
    if context.rank == context.layout.ranks_of_data_index(context.data_rank)[0]:
        write_samples(samples_path(unfinished, context.data_rank), drawn.samples)


def _find_or_write_weights(
    run_folder: RunFolder, unfinished: Path, state: TrainState, recipe: Recipe, context: ParallelContext, life: int
) -> Path:
    """The run's own checkpoint where it is of just these weights, else one of the model alone."""
    own = run_folder.checkpoints / checkpoint_name(state.step)
    if from_first_rank(context, _writing(unfinished, lambda: own in complete_checkpoints(run_folder.checkpoints))):
        return own
    path = unfinished / WEIGHTS_FOLDER / checkpoint_name(state.step)
    saved = describe_position(state, recipe, context, life)
    write_complete(path, model_weights(state), saved, recipe, context, partial(require_newest, run_folder, life))
    return path


def _content(
    examination: Examination,
    drawn: StepSamples,
    state: TrainState,
    recipe: Recipe,
    context: ParallelContext,
    life: int,
    weights: str,
) -> dict[str, Any]:
    environment = describe_environment()
    git = environment["git"] or {}
    layout = {name: getattr(context.layout, name) for name in ("tensor", "context", "pipeline", "data", "sequence")}
    return {
        "format": FORMAT,
        "step": state.step + 1,
        "summary": examination.describe(),
        **describe_examination(examination),
        "life": life,
        "written_at": datetime.now(UTC).isoformat(),
        "seed": recipe.train.seed,
        "layout": layout | {"interleave": context.layout.interleave, "world_size": context.world_size},
        "num_slots": drawn.num_slots,
        "num_image_slots": drawn.num_image_slots,
        "data_step": drawn.step,
        "weights": weights,
        "commit": git.get("commit"),
        "uncommitted_changes": git.get("dirty"),
        "versions": environment["versions"],
        "command": environment["command"],
    }


def describe_examination(examination: Examination) -> dict[str, Any]:
    """What was found, as plain JSON values."""
    return {
        "loss": json_number(examination.loss),
        "gradient_norm": json_number(examination.gradient_norm),
        "repeats": not examination.is_finite,
        "first": [one.as_json() for one in examination.first],
        "weights_not_finite": [one.as_json() for one in examination.weights],
        "micro_batches": [one.as_json() for one in examination.micro_batches],
        "samples_with_bad_loss": examination.bad_loss_ids,
        "samples": [asdict(one) for one in examination.samples],
        "slot_losses": [json_number(value) for value in examination.slot_losses],
        "slot_semantic_losses": [json_number(value) for value in examination.slot_semantic_losses],
    }


def _complete(unfinished: Path, folder: Path, content: dict[str, Any], recipe: Recipe) -> None:
    for name, text in (
        (RECIPE_FILE, recipe_to_yaml(recipe)),
        (REPORT_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n"),
    ):
        (unfinished / name).write_text(text, encoding="utf-8")
        flush_to_disk(unfinished / name)
    flush_to_disk(unfinished)
    put_in_place(unfinished, folder)


def read_report(path: Path) -> tuple[Path, dict[str, Any]]:
    """Reads a report.

    Args:
        path: `report.json`, or its folder.

    Returns:
        The folder and the report.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"--replay ({file}) cannot be read: {reason}: give the report.json of a step in a run's replay folder"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"--replay ({path}) is no report of format {FORMAT}: give the report.json of a bad step")
    return file.parent, content
