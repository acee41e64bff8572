"""`train --replay`: takes one saved step once more, without its update, and says what is not finite in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sama_data.dealing import deal
from sama_data.loader import StepSamples
from sama_mega.checkpoint.folder import RECIPE_FILE, resolve_checkpoint
from sama_mega.checkpoint.same_course import changed_keys, require_same_meaning
from sama_mega.config import load_recipe
from sama_mega.config.errors import CheckpointError, ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.encoders import build_encoders
from sama_mega.parallel.layout import samples_needed_per_rank, too_few_samples
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.parallel.torch_settings import apply_torch_settings
from sama_mega.train.agreement import from_first_rank, on_every_rank
from sama_mega.train.batch import Batcher
from sama_mega.train.checkpoint import load_initial_weights
from sama_mega.train.inputs import open_cache
from sama_mega.train.numerics.examine import Examination, examine
from sama_mega.train.numerics.save import describe_examination, read_report
from sama_mega.train.numerics.saved_step import SavedSamples
from sama_mega.train.shared_encoding import Sharing
from sama_mega.train.state import build_train_state
from sama_mega.train.step import TrainStep

_WHAT_REPEATS = ("loss", "gradient_norm", "slot_losses", "slot_semantic_losses")
_WHICH_REPEATS = ("name", "phase", "micro_batch", "sample_ids", "ranks", "num_not_finite")


Say = Callable[[list[str], dict[str, Any]], None]
"""Takes lines for a terminal, and the same as JSON values."""


def replay(recipe: Recipe, path: Path, say: Say) -> bool:
    """Takes a saved step once more; every rank calls it. Nothing is written.

    Args:
        recipe: How to take it: precision, kernels and layout may be others than in the run.
        path: The report of the step, or its folder.
        say: Called on the first rank, while the others wait.

    Returns:
        Whether the loss and the gradient norm are finite now, on every rank.

    Raises:
        UserError: The report, its samples or its weights cannot be read, or do not fit the recipe.
    """
    folder, report = read_report(path)
    apply_torch_settings(recipe)
    context = start_parallel(recipe)
    try:
        return _replay_on_ranks(recipe, folder, report, context, say)
    finally:
        stop_parallel()


def _replay_on_ranks(recipe: Recipe, folder: Path, report: dict[str, Any], context: ParallelContext, say: Say) -> bool:
    drawn = on_every_rank(context, lambda: _own_samples(folder, report, recipe, context))
    changed = from_first_rank(context, lambda: changed_keys(load_recipe(folder / RECIPE_FILE), recipe))
    weights = from_first_rank(context, lambda: _find_weights(folder, report, recipe))
    encoders = on_every_rank(context, lambda: build_encoders(recipe, context.device))
    cache = open_cache(recipe, encoders, context)
    state = build_train_state(recipe, context, initialize=False)
    load_initial_weights(weights, "model", state)
    batcher = Batcher(recipe, encoders, context.device, Sharing.among(context), cache)
    found = examine(TrainStep(recipe, context, state, batcher), drawn, state, recipe, context)

    def tell() -> bool:
        assert found is not None
        title = f"step {report['step']} of {folder}: {report['num_slots']} samples, weights of {weights}"
        lines, values = _describe(found, report)
        say([title, *(f"other than in the run: {line}" for line in changed), *lines], values)
        return found.is_finite

    return from_first_rank(context, tell)


def _own_samples(folder: Path, report: Mapping[str, Any], recipe: Recipe, context: ParallelContext) -> StepSamples:
    """This rank's share: as in the run where its ranks had as many and enough for this layout, else dealt by size."""
    saved = SavedSamples(folder, report["layout"]["data"])
    num_ranks, slots = context.layout.data, sorted(saved.sizes)
    needed = samples_needed_per_rank(recipe.parallel)
    if len(saved.slots_by_rank) == num_ranks and all(len(dealt) >= needed for dealt in saved.slots_by_rank):
        share = saved.slots_by_rank[context.data_rank]
    elif len(slots) < needed * num_ranks:
        raise ConfigError(too_few_samples(recipe.parallel, len(slots), num_ranks))
    else:
        share = [
            slots[place] for place in deal([saved.sizes[slot] for slot in slots], num_ranks, needed)[context.data_rank]
        ]
    return StepSamples(report["data_step"], saved.read(share), report["num_slots"], report["num_image_slots"])


def _find_weights(folder: Path, report: Mapping[str, Any], recipe: Recipe) -> Path:
    path = (folder / report["weights"]).resolve()
    try:
        weights = resolve_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"--replay: the step's weights are gone: {error}; the run deletes its checkpoints but the last"
            " checkpoint.keep"
        ) from None
    require_same_meaning(weights, recipe)
    return weights


def _describe(found: Examination, report: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    values = describe_examination(found)
    same_bits = _is_same(values, report)
    lines = [f"loss {found.loss!r}, gradient norm {found.gradient_norm!r}"]
    if found.is_finite:
        lines.append("it does not repeat: everything is finite now")
    else:
        lines += [found.describe(), f"it repeats, {'' if same_bits else 'though not '}bit for bit"]
    return lines, values | {"same_bits": same_bits}


def _is_same(values: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
    """Whether every loss, finite or not, is as it was, and the first tensor the same."""

    def which(content: Mapping[str, Any]) -> list[list[Any]]:
        return [[_as_json(one[key]) for key in _WHICH_REPEATS] for one in content["first"]]

    return which(values) == which(report) and all(values[key] == report[key] for key in _WHAT_REPEATS)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
