"""Sets a run up, in named steps, and hands it to the loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.loader import Quarantine, SampleLoader, StepSamples
from sama_data.manifest import load_blend, load_manifest
from sama_mega.checkpoint.folder import complete_checkpoints
from sama_mega.config.errors import ConfigError, UserError
from sama_mega.config.schema import Recipe
from sama_mega.encoders import Encoders, build_encoders
from sama_mega.encoders.feature_cache import FeatureCache
from sama_mega.observe.log import RunLog, SetupLog
from sama_mega.observe.progress import stderr_is_terminal
from sama_mega.parallel.layout import samples_needed_per_rank, too_few_samples
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.parallel.torch_settings import apply_torch_settings
from sama_mega.train.agreement import agreeing_batches, from_first_rank, on_every_rank, require_same_everywhere
from sama_mega.train.banner import describe_run
from sama_mega.train.batch import Batcher
from sama_mega.train.hooks.bad_step import BadStepHook
from sama_mega.train.hooks.base import Hook
from sama_mega.train.hooks.checkpoint import CheckpointHook
from sama_mega.train.hooks.life import LifeHook
from sama_mega.train.hooks.metrics import MetricsHook
from sama_mega.train.hooks.pace import PaceHook
from sama_mega.train.hooks.progress import ProgressHook
from sama_mega.train.hooks.sample import SampleHook
from sama_mega.train.hooks.speed import SpeedHook
from sama_mega.train.hooks.statistics import StatisticsHook
from sama_mega.train.hooks.tracker import TrackerHook
from sama_mega.train.hooks.watchdog import WatchdogHook
from sama_mega.train.loader_settings import loader_settings
from sama_mega.train.loop import Loop, Run
from sama_mega.train.numerics.layer_statistics import LayerStatistics
from sama_mega.train.pace import Pace
from sama_mega.train.rank_load import LoadMeter
from sama_mega.train.run_end import RunEnd
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.shared_encoding import Sharing
from sama_mega.train.startup import StartupClock
from sama_mega.train.state import TrainState, build_train_state
from sama_mega.train.step import TrainStep
from sama_mega.train.stop import StopRequest
from sama_mega.train.this_life import ThisLife, begin_life, find_start, restore
from sama_mega.train.throughput import measure_throughput

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class RunSummary:
    """What a run that ended well has to say.

    Attributes:
        run_folder: Where everything is.
        ended: `finished`, or `stopped` before its last step, everything saved.
        steps: Finished optimizer steps.
        samples_seen: Samples of all of them.
        checkpoint: The newest complete checkpoint, or None.
        num_quarantined: Distinct samples of this life that could not be used, on this rank.
        num_truncated_prompts: Distinct samples of this life whose prompt was cut, on this rank.
        num_cache_hits: Features that came from the cache, on this rank.
        num_cache_misses: Features that `data.cache` should have held and did not, on this rank.
    """

    run_folder: str
    ended: str
    steps: int
    samples_seen: int
    checkpoint: str | None
    num_quarantined: int
    num_truncated_prompts: int
    num_cache_hits: int
    num_cache_misses: int


@dataclass(frozen=True)
class Start:
    """What a run is told of its start.

    Attributes:
        stop: Requests to stop early.
        clock: Measures how long the parts of the start take.
        hooks: Makes the hooks of a run that is looked at and not kept, from its layout and its state. They take the
            place of those of a run that is kept: nothing is saved, measured or tracked unless they do it.
    """

    stop: StopRequest
    clock: StartupClock
    hooks: Callable[[ParallelContext, TrainState], Sequence[Hook]] | None = None


def train(recipe: Recipe, start: Start | None = None) -> RunSummary:
    """Runs a recipe to its last step, from its newest checkpoint where there is one.

    Args:
        recipe: The whole recipe.
        start: None: nobody asks to stop, and the start begins now.

    Returns:
        What was done.

    Raises:
        UserError: The recipe, a checkpoint or a folder is at fault.
        DataError: The manifest or all its clips are at fault.
    """
    start = start or Start(StopRequest(), StartupClock({}))
    start.clock.mark("imports")
    apply_torch_settings(recipe)
    context = start_parallel(recipe)
    start.clock.mark("ranks meet")
    try:
        dataset = on_every_rank(context, lambda: open_dataset(recipe))
        start.clock.mark("manifests")
        require_same_everywhere(recipe, dataset, context)
        return _train_on_ranks(recipe, dataset, context, start)
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


def open_sample_clips(recipe: Recipe, dataset: Dataset) -> Dataset:
    """Opens the clips that are edited as samples: the user's, else those of the training data.

    Raises:
        DataError: The user's manifest is missing, empty or wrong.
    """
    path = recipe.train.sample_clips
    return dataset if path is None else load_manifest(path)


def _train_on_ranks(recipe: Recipe, dataset: Dataset, context: ParallelContext, start: Start) -> RunSummary:
    """Checks everything that can be wrong before it writes anything: a life claimed in vain fences a healthy run."""
    folder = RunFolder(recipe.train.run_folder)
    with SetupLog() as setup:
        encoders = on_every_rank(context, lambda: build_encoders(recipe, context.device))
        cache = open_cache(recipe, encoders, context)
        loader = on_every_rank(context, lambda: build_loader(recipe, dataset, context, folder))
        throughput = on_every_rank(context, lambda: measure_throughput(recipe, context))
        clips = on_every_rank(context, lambda: open_sample_clips(recipe, dataset))
        begin_from, _ = find_start(recipe, dataset, folder, context)
        state = build_train_state(recipe, context, initialize=begin_from is None)
        restore(recipe, begin_from, state)
        state.rows_digest = dataset.order_digest()
    start.clock.mark("model and data")
    with begin_life(recipe, state.step, context) as life, _open_log(folder, life.number, context, setup):
        # An earlier life may have saved while this one got ready; from here on it may not.
        newest, lines = find_start(recipe, dataset, folder, context)
        if newest != begin_from:
            restore(recipe, newest, state)
            life.goes_on_from(state.step)
        run = Run(recipe, folder, context.is_first_rank, state.step, recipe.train.steps)
        if context.is_first_rank:
            nodes = f"life {life.number} on {', '.join(life.nodes)}"
            for line in (nodes, *lines, *describe_run(run, dataset, loader, state, context)):
                _log.info("%s", line)
        batcher = Batcher(recipe, encoders, context.device, Sharing.among(context), cache)
        pace = Pace(context.device)
        statistics = LayerStatistics(recipe, context, state)
        train_step = TrainStep(recipe, context, state, batcher, pace, statistics)
        checkpoints = CheckpointHook(state, context, life.number)
        load = LoadMeter(context.device, lambda: batcher.num_truncated_prompts if context.reports_samples else 0)
        # In the order they run: what measures before what writes; what is logged first is there when a later one fails.
        hooks: Sequence[Hook] = [
            WatchdogHook(context, life.number, life.end_hung),
            BadStepHook(train_step, state, context, life.number),
            SpeedHook(throughput),
            PaceHook(pace, load, context),
            StatisticsHook(statistics),
            MetricsHook(),
            checkpoints,
            SampleHook(recipe, clips, encoders, state, context),
            ProgressHook(None, throughput.peak_tflops, checkpoints.newest_save),
            TrackerHook(),
            LifeHook(life.file, start.clock),
        ]
        if start.hooks is not None:
            hooks = start.hooks(context, state)
        loop = Loop(run, dataset, state, train_step, hooks)
        with closing(_batches(loader, run, checkpoints, life, pace)) as batches:
            end = loop.run(agreeing_batches(batches, context, start.stop))
        summary = _summarize(folder, end, state, loader, batcher, cache)
        _report_end(summary, end, recipe, run)
    return summary


def open_cache(recipe: Recipe, encoders: Encoders, context: ParallelContext) -> FeatureCache | None:
    """Opens the recipe's feature cache; every rank calls it, and the first one reads the encoders' weights for it.

    Raises:
        ConfigError: On every rank, when there is no whole cache of these encoders.
    """
    path = recipe.data.cache
    if path is None:
        return None
    identity = from_first_rank(context, encoders.identity)
    return on_every_rank(context, lambda: FeatureCache(path, identity, encoders.text.max_tokens))


def _open_log(folder: RunFolder, life: int, context: ParallelContext, setup: SetupLog) -> RunLog:
    """The run's log on the first rank, and every rank's own."""
    log_path, earlier = (folder.log_path, setup.records) if context.is_first_rank else (None, [])
    rank_log_path = folder.rank_log_path(life, context.rank)
    return RunLog(
        log_path,
        rank_log_path=rank_log_path,
        life=life,
        draws_bar=stderr_is_terminal(),
        stamps_terminal="SLURM_JOB_ID" in os.environ and not stderr_is_terminal(),
        earlier=earlier,
        plain_errors=(UserError, DataError),
    )


def build_loader(recipe: Recipe, dataset: Dataset, context: ParallelContext, folder: RunFolder) -> SampleLoader:
    """Builds this data rank's loader.

    Raises:
        ConfigError: A step is too small for the layout.
        DataError: No stream has both rows and slots.
    """
    quarantine = Quarantine(folder.quarantine_path)
    gpu = context.device.index if context.device.type == "cuda" else None
    loader = SampleLoader(
        dataset, loader_settings(recipe), context.data_rank, context.layout.data, quarantine, device=gpu
    )
    if loader.num_slots < samples_needed_per_rank(recipe.parallel) * context.layout.data:
        raise ConfigError(too_few_samples(recipe.parallel, loader.num_slots, context.layout.data))
    return loader


def _batches(
    loader: SampleLoader, run: Run, checkpoints: CheckpointHook, life: ThisLife, pace: Pace
) -> Generator[StepSamples]:
    """The remaining steps' samples, until a save fails or a newer life begins; closing it ends what reads them."""
    with loader, closing(loader.prefetching(run.start_step, max(0, run.total_steps - run.start_step))) as steps:
        while True:
            with pace.reading():
                samples = next(steps, None)
            if samples is None:
                return
            life.require_newest()
            checkpoints.raise_failure()
            yield samples


def _summarize(
    folder: RunFolder,
    end: RunEnd,
    state: TrainState,
    loader: SampleLoader,
    batcher: Batcher,
    cache: FeatureCache | None,
) -> RunSummary:
    checkpoints = complete_checkpoints(folder.checkpoints)
    return RunSummary(
        run_folder=str(folder.root),
        ended=end.reason,
        steps=state.step,
        samples_seen=state.samples_seen,
        checkpoint=str(checkpoints[-1]) if checkpoints else None,
        num_quarantined=loader.health.num_bad,
        num_truncated_prompts=batcher.num_truncated_prompts,
        num_cache_hits=0 if cache is None else cache.hits.total(),
        num_cache_misses=0 if cache is None else cache.misses.total(),
    )


def _report_end(summary: RunSummary, end: RunEnd, recipe: Recipe, run: Run) -> None:
    folder = run.folder
    if end.reason == "finished" and run.start_step >= run.total_steps:
        _log.info("nothing was left to do after step %d: raise train.steps to go on", summary.steps)
    if end.reason == "stopped":
        saved = f"saved in {summary.checkpoint}" if summary.checkpoint else "nothing was done that could be lost"
        _log.info(
            "%s after step %d of %d; %s: the same command goes on",
            end.message,
            summary.steps,
            recipe.train.steps,
            saved,
        )
    if summary.num_quarantined:
        _log.warning("%d samples were skipped: see %s", summary.num_quarantined, folder.quarantine_path)
    if summary.num_truncated_prompts:
        _log.warning("%d prompts were longer than model.text_length and cut", summary.num_truncated_prompts)
    if recipe.data.cache is not None:
        wanted = summary.num_cache_hits + summary.num_cache_misses
        _log.info("%d of %d features came from %s", summary.num_cache_hits, wanted, recipe.data.cache)
