"""Sets a run up, in named steps, and hands it to the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader, StepSamples
from sama_data.manifest import load_blend, load_manifest
from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import ConfigError, UserError
from sama_mega.config.schema import Recipe
from sama_mega.encoders import Encoders, build_encoders
from sama_mega.observe.environment import describe_environment
from sama_mega.observe.log import RunLog
from sama_mega.observe.progress import stderr_is_terminal
from sama_mega.parallel.checkpoint_folder import complete_checkpoints, resolve_checkpoint
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.parallel.torch_settings import apply_torch_settings
from sama_mega.train.agreement import agreeing_batches
from sama_mega.train.batch import Batcher
from sama_mega.train.checkpoint import load_checkpoint, load_initial_weights
from sama_mega.train.hooks.base import Hook
from sama_mega.train.hooks.checkpoint import CheckpointHook
from sama_mega.train.hooks.metrics import MetricsHook
from sama_mega.train.hooks.progress import ProgressHook
from sama_mega.train.hooks.sample import SampleHook
from sama_mega.train.hooks.tracker import TrackerHook
from sama_mega.train.loop import Loop, Run
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState, build_train_state
from sama_mega.train.step import TrainStep

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class RunSummary:
    """What a finished run has to say.

    Attributes:
        run_folder: Where everything is.
        steps: Finished optimizer steps.
        samples_seen: Samples of all of them.
        checkpoint: The newest complete checkpoint, or None.
        num_quarantined: Distinct samples of this life that could not be used, on this rank.
        num_truncated_prompts: Distinct samples of this life whose prompt was cut, on this rank.
    """

    run_folder: str
    steps: int
    samples_seen: int
    checkpoint: str | None
    num_quarantined: int
    num_truncated_prompts: int


def train(recipe: Recipe) -> RunSummary:
    """Runs a recipe to its last step, from its newest checkpoint where there is one.

    Args:
        recipe: The whole recipe.

    Returns:
        What was done.

    Raises:
        UserError: The recipe, a checkpoint or a folder is at fault.
        DataError: The manifest or all its clips are at fault.
    """
    apply_torch_settings(recipe)
    dataset = open_dataset(recipe)
    context = start_parallel(recipe)
    try:
        folder, life = _open_run_folder(recipe, context)
        with RunLog(folder.log_path if context.is_first_rank else None, draws_bar=stderr_is_terminal()):
            return _train_in_folder(recipe, dataset, context, folder, life)
    finally:
        stop_parallel()


def open_dataset(recipe: Recipe) -> Dataset:
    """Opens the recipe's manifest or blend.

    Raises:
        ConfigError: The recipe names neither.
        DataError: A manifest is missing, empty or wrong.
    """
    if recipe.data.manifest is not None:
        return load_manifest(recipe.data.manifest)
    if not recipe.data.blend:
        raise ConfigError("data.manifest is not set: name a manifest (data.manifest=PATH) or a data.blend")
    return load_blend([(entry.manifest, entry.weight) for entry in recipe.data.blend])


def _train_in_folder(
    recipe: Recipe, dataset: Dataset, context: ParallelContext, folder: RunFolder, life: int
) -> RunSummary:
    encoders = build_encoders(recipe, context.device)
    state = build_train_state(recipe, context)
    _restore(recipe, state, folder, context)
    loader = build_loader(recipe, dataset, context, folder)
    batcher = Batcher(recipe, encoders, context.device)
    run = Run(recipe, folder, context.is_first_rank, state.step, recipe.train.steps)
    _announce(run, dataset, context, state)
    loop = Loop(
        run=run,
        dataset=dataset,
        state=state,
        train_step=TrainStep(recipe, context, state, batcher),
        hooks=_hooks(recipe, dataset, encoders, state, context, life),
    )
    with closing(_batches(loader, state.step, recipe.train.steps)) as batches:
        loop.run(agreeing_batches(batches, context))
    checkpoints = complete_checkpoints(folder.checkpoints)
    summary = RunSummary(
        run_folder=str(folder.root),
        steps=state.step,
        samples_seen=state.samples_seen,
        checkpoint=str(checkpoints[-1]) if checkpoints else None,
        num_quarantined=loader.health.num_bad,
        num_truncated_prompts=batcher.num_truncated_prompts,
    )
    _report_losses_of_data(summary, folder)
    return summary


def _open_run_folder(recipe: Recipe, context: ParallelContext) -> tuple[RunFolder, int]:
    """Makes the folder and claims a life number; a failure of rank 0 is raised on every rank."""

    def claim() -> int:
        folder = RunFolder.create(recipe.train.run_folder)
        environment = describe_environment()
        details = {key: environment[key] for key in ("hostname", "process_id", "command")}
        life = folder.start_life(details)
        folder.write_recipe(recipe_to_yaml(recipe))
        folder.write_environment(environment)
        return life

    life = _from_first_rank(context, claim)
    return RunFolder(recipe.train.run_folder), life


def _restore(recipe: Recipe, state: TrainState, folder: RunFolder, context: ParallelContext) -> None:
    """Resumes, or starts from other weights, or from fresh ones; says which."""
    found = complete_checkpoints(folder.checkpoints) if recipe.checkpoint.resume else []
    newest = broadcast_object(found[-1] if found else None, context.world_group)
    if newest is not None:
        load_checkpoint(newest, state, context)
        _say(context, f"resumed {newest} at step {state.step}")
    elif recipe.checkpoint.init_from is not None:
        start = resolve_checkpoint(recipe.checkpoint.init_from)
        load_initial_weights(start, recipe.checkpoint.init_weights, state)
        _say(context, f"started from the {recipe.checkpoint.init_weights} weights of {start}")
    else:
        _say(context, "started from random weights (checkpoint.init_from is null)")


def build_loader(recipe: Recipe, dataset: Dataset, context: ParallelContext, folder: RunFolder) -> SampleLoader:
    """Builds this data rank's loader."""
    data = recipe.data
    settings = LoaderSettings(
        images_per_step=data.images_per_step,
        videos_per_step=data.videos_per_step,
        seed=recipe.train.seed,
        buckets=data.buckets,
        max_frames=data.max_frames,
        motion=recipe.motion,
        prefetch_steps=data.prefetch_steps,
        decode_threads=data.decode_threads,
        decoded_cache_mib=data.decoded_cache_mib,
        max_bad_share=data.max_bad_share,
    )
    quarantine = Quarantine(folder.quarantine_path)
    return SampleLoader(dataset, settings, context.data_rank, context.layout.data, quarantine)


def _hooks(
    recipe: Recipe,
    dataset: Dataset,
    encoders: Encoders,
    state: TrainState,
    context: ParallelContext,
    life: int,
) -> list[Hook]:
    """In the order they run: what is logged first is there when a later one fails."""
    return [
        MetricsHook(),
        CheckpointHook(state, context, life),
        SampleHook(recipe, dataset, encoders, state, context),
        ProgressHook(),
        TrackerHook(),
    ]


def _batches(loader: SampleLoader, start_step: int, total_steps: int) -> Generator[StepSamples]:
    """A generator, so that it can be closed: that ends the reading threads."""
    yield from loader.prefetching(start_step, max(0, total_steps - start_step))


def _announce(run: Run, dataset: Dataset, context: ParallelContext, state: TrainState) -> None:
    num_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    _say(
        context,
        f"stage {run.recipe.train.stage}: steps {run.start_step}..{run.total_steps}, {context.layout.describe()},"
        f" {num_parameters:,} parameters a rank, {len(dataset):,} samples in {dataset.name}; run folder"
        f" {run.folder.root}",
    )


def _report_losses_of_data(summary: RunSummary, folder: RunFolder) -> None:
    if summary.num_quarantined:
        _log.warning("%d samples were skipped: see %s", summary.num_quarantined, folder.quarantine_path)
    if summary.num_truncated_prompts:
        _log.warning("%d prompts were longer than model.text_length and cut", summary.num_truncated_prompts)


def _say(context: ParallelContext, line: str) -> None:
    if context.is_first_rank:
        _log.info("%s", line)


def _from_first_rank(context: ParallelContext, work: Callable[[], Result]) -> Result:
    """Runs work on rank 0; every rank gets its result or its user error."""
    result: Result | UserError | DataError | None = None
    if context.is_first_rank:
        try:
            result = work()
        except (UserError, DataError) as error:
            result = error
    result = broadcast_object(result, context.world_group)
    if isinstance(result, UserError | DataError):
        raise result
    assert result is not None
    return result
