"""Sets a run up, in named steps, and hands it to the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader, StepSamples
from sama_data.manifest import load_blend, load_manifest
from sama_mega.checkpoint.folder import complete_checkpoints, resolve_checkpoint
from sama_mega.checkpoint.replace import put_back_interrupted
from sama_mega.checkpoint.same_course import require_same_course
from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import CheckpointError, ConfigError, UserError
from sama_mega.config.schema import Recipe
from sama_mega.encoders import build_encoders
from sama_mega.observe.environment import describe_environment
from sama_mega.observe.log import RunLog, SetupLog
from sama_mega.observe.progress import stderr_is_terminal
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.layout import samples_needed_per_rank, too_few_samples
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.parallel.torch_settings import apply_torch_settings
from sama_mega.train.agreement import agreeing_batches, require_same_everywhere
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
        require_same_everywhere(recipe, dataset, context)
        return _train_on_ranks(recipe, dataset, context)
    finally:
        stop_parallel()


def open_dataset(recipe: Recipe) -> Dataset:
    """Opens the recipe's manifest or blend.

    Raises:
        ConfigError: The recipe names neither, or raw clips for stage 1.
        DataError: A manifest is missing, empty or wrong.
    """
    if recipe.data.manifest is not None:
        dataset = load_manifest(recipe.data.manifest)
    elif recipe.data.blend:
        dataset = load_blend([(entry.manifest, entry.weight) for entry in recipe.data.blend])
    else:
        raise ConfigError("data.manifest is not set: name a manifest (data.manifest=PATH) or a data.blend")
    num_raw = dataset.num_raw
    if recipe.train.stage == 1 and num_raw:
        raise ConfigError(
            f"{dataset.name}: {num_raw} rows have no source: stage 1 trains on edits only; drop them, or use stage 0"
        )
    return dataset


def _train_on_ranks(recipe: Recipe, dataset: Dataset, context: ParallelContext) -> RunSummary:
    """Checks everything that can be wrong before it writes anything: a life claimed in vain fences a healthy run."""
    folder = RunFolder(recipe.train.run_folder)
    with SetupLog() as setup:
        encoders = build_encoders(recipe, context.device)
        loader = build_loader(recipe, dataset, context, folder)
        _require_samples_for_every_rank(recipe, loader, context)
        start, lines = _find_start(recipe, folder, context)
        state = build_train_state(recipe, context, initialize=start is None)
        _restore(recipe, start, state)
    life = _from_first_rank(context, lambda: _claim_run_folder(recipe, start))
    log_path, earlier = (folder.log_path, setup.records) if context.is_first_rank else (None, [])
    with RunLog(log_path, draws_bar=stderr_is_terminal(), earlier=earlier):
        run = Run(recipe, folder, context.is_first_rank, state.step, recipe.train.steps)
        _announce([*lines, _headline(run, dataset, loader, context, state)], context)
        batcher = Batcher(recipe, encoders, context.device)
        train_step = TrainStep(recipe, context, state, batcher)
        checkpoints = CheckpointHook(state, context, life)
        # In the order they run: what is logged first is there when a later one fails.
        hooks: list[Hook] = [
            MetricsHook(),
            checkpoints,
            SampleHook(recipe, dataset, encoders, state, context),
            ProgressHook(),
            TrackerHook(),
        ]
        loop = Loop(run, dataset, state, train_step, hooks)
        with closing(_batches(loader, run, checkpoints)) as batches:
            loop.run(agreeing_batches(batches, context))
        summary = _summarize(folder, state, loader, batcher)
        _report_losses_of_data(summary, folder)
    return summary


def _find_start(recipe: Recipe, folder: RunFolder, context: ParallelContext) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what to say about it.

    The run's own newest one, else the one whose weights the recipe names, else None.
    """

    def find() -> tuple[Path | None, list[str]]:
        put_back_interrupted(folder.checkpoints)
        own = complete_checkpoints(folder.checkpoints)
        if own and not recipe.checkpoint.resume:
            raise ConfigError(
                f"checkpoint.resume is false, but {folder.root} holds {own[-1].name}: choose another train.run_folder,"
                " or move its checkpoints away"
            )
        if own:
            changed = require_same_course(own[-1], recipe)
            return own[-1], [f"resumed {own[-1]}", *(f"changed since then: {line}" for line in changed)]
        if recipe.checkpoint.init_from is None:
            return None, ["started from random weights (checkpoint.init_from is null)"]
        start = resolve_checkpoint(recipe.checkpoint.init_from)
        return start, [f"started from the {recipe.checkpoint.init_weights} weights of {start}"]

    return _from_first_rank(context, find)


def _restore(recipe: Recipe, start: Path | None, state: TrainState) -> None:
    """Fills the state: all of it from the run's own checkpoint, the weights alone from another's."""
    if start is None:
        return
    if start.parent == RunFolder(recipe.train.run_folder).checkpoints:
        load_checkpoint(start, state)
    else:
        load_initial_weights(start, recipe.checkpoint.init_weights, state)


def _claim_run_folder(recipe: Recipe, start: Path | None) -> int:
    """Makes the run folder, writes what is known at the start, and claims a life number.

    Raises:
        CheckpointError: An earlier life, still allowed to until now, saved after `start` was chosen.
    """
    folder = RunFolder.create(recipe.train.run_folder)
    environment = describe_environment()
    life = folder.start_life({key: environment[key] for key in ("hostname", "process_id", "command")})
    own = complete_checkpoints(folder.checkpoints)
    if own and own[-1] != start:
        raise CheckpointError(
            f"{own[-1]} was saved by an earlier life of the run while this one was starting: start again"
        )
    folder.write_recipe(recipe_to_yaml(recipe))
    folder.write_environment(environment)
    return life


def _require_samples_for_every_rank(recipe: Recipe, loader: SampleLoader, context: ParallelContext) -> None:
    """Refuses a step that is too small for the layout, before anything is written."""
    needed = samples_needed_per_rank(recipe.parallel)
    if loader.num_slots < needed * context.layout.data:
        raise ConfigError(too_few_samples(recipe.parallel, loader.num_slots, context.layout.data))


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
        at_least_per_rank=samples_needed_per_rank(recipe.parallel),
    )
    quarantine = Quarantine(folder.quarantine_path)
    return SampleLoader(dataset, settings, context.data_rank, context.layout.data, quarantine)


def _batches(loader: SampleLoader, run: Run, checkpoints: CheckpointHook) -> Generator[StepSamples]:
    """The remaining steps' samples, until a save fails. A generator, so that closing it ends the reading threads."""
    for samples in loader.prefetching(run.start_step, max(0, run.total_steps - run.start_step)):
        checkpoints.raise_failure()
        yield samples


def _headline(run: Run, dataset: Dataset, loader: SampleLoader, context: ParallelContext, state: TrainState) -> str:
    num_parameters = sum(parameter.numel() for stage in state.stages for parameter in stage.parameters())
    num_videos = loader.num_slots - loader.num_image_slots
    return (
        f"stage {run.recipe.train.stage}: steps {run.start_step}..{run.total_steps} of"
        f" {loader.num_image_slots} images and {num_videos} videos, {context.layout.describe()},"
        f" {num_parameters:,} parameters a rank, {len(dataset):,} samples in {dataset.name};"
        f" run folder {run.folder.root}"
    )


def _announce(lines: list[str], context: ParallelContext) -> None:
    if context.is_first_rank:
        for line in lines:
            _log.info("%s", line)


def _summarize(folder: RunFolder, state: TrainState, loader: SampleLoader, batcher: Batcher) -> RunSummary:
    checkpoints = complete_checkpoints(folder.checkpoints)
    return RunSummary(
        run_folder=str(folder.root),
        steps=state.step,
        samples_seen=state.samples_seen,
        checkpoint=str(checkpoints[-1]) if checkpoints else None,
        num_quarantined=loader.health.num_bad,
        num_truncated_prompts=batcher.num_truncated_prompts,
    )


def _report_losses_of_data(summary: RunSummary, folder: RunFolder) -> None:
    if summary.num_quarantined:
        _log.warning("%d samples were skipped: see %s", summary.num_quarantined, folder.quarantine_path)
    if summary.num_truncated_prompts:
        _log.warning("%d prompts were longer than model.text_length and cut", summary.num_truncated_prompts)


def _from_first_rank(context: ParallelContext, work: Callable[[], Result]) -> Result:
    """Runs work on rank 0; every rank gets its result, or its error if the user is at fault."""
    outcome: tuple[Result | None, Exception | None] = (None, None)
    if context.is_first_rank:
        try:
            outcome = (work(), None)
        except (UserError, DataError) as error:
            outcome = (None, error)
    result, problem = broadcast_object(outcome, context.world_group)
    if problem is not None:
        raise problem
    return result  # type: ignore[no-any-return]
