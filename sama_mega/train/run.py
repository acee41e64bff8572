"""Sets a run up, in named steps, and hands it to the loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.loader import SampleLoader, StepSamples
from sama_mega.config.errors import UserError
from sama_mega.config.schema import Recipe
from sama_mega.encoders import Encoders, build_encoders
from sama_mega.encoders.feature_cache import FeatureCache
from sama_mega.observe.log import RunLog, SetupLog
from sama_mega.observe.progress import stderr_is_terminal
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.parallel.torch_settings import apply_torch_settings
from sama_mega.train.agreement import agreeing_batches, on_every_rank, require_same_everywhere
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
from sama_mega.train.inputs import build_loader, open_cache, open_dataset, open_sample_clips
from sama_mega.train.loop import Loop, Run
from sama_mega.train.numerics.layer_statistics import LayerStatistics
from sama_mega.train.pace import Pace
from sama_mega.train.rank_load import LoadMeter
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.shared_encoding import Sharing
from sama_mega.train.startup import StartupClock
from sama_mega.train.state import TrainState, build_train_state
from sama_mega.train.step import TrainStep
from sama_mega.train.stop import StopRequest
from sama_mega.train.summary import RunSummary, report_end, summarize
from sama_mega.train.this_life import ThisLife, begin_life, find_start, restore
from sama_mega.train.throughput import Throughput, measure_throughput

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Parts:
    """What a run is made of before it claims its life; nothing of it has written anything."""

    encoders: Encoders
    cache: FeatureCache | None
    loader: SampleLoader
    throughput: Throughput
    sample_clips: Dataset
    begin_from: Path | None
    state: TrainState


def _train_on_ranks(recipe: Recipe, dataset: Dataset, context: ParallelContext, start: Start) -> RunSummary:
    """Checks everything that can be wrong before it writes anything: a life claimed in vain fences a healthy run."""
    folder = RunFolder(recipe.train.run_folder)
    with SetupLog() as setup:
        parts = _set_up(recipe, dataset, folder, context)
    state, loader = parts.state, parts.loader
    start.clock.mark("model and data")
    with begin_life(recipe, state.step, context) as life, _open_log(folder, life.number, context, setup):
        # An earlier life may have saved while this one got ready; from here on it may not.
        newest, lines = find_start(recipe, dataset, folder, context)
        if newest != parts.begin_from:
            restore(recipe, newest, state)
            life.goes_on_from(state.step)
        run = Run(recipe, folder, context.is_first_rank, state.step, recipe.train.steps)
        if context.is_first_rank:
            is_kept = start.hooks is None
            _announce([life.describe(), *lines, *describe_run(run, dataset, loader, state, context, is_kept=is_kept)])
        batcher = Batcher(recipe, parts.encoders, context.device, Sharing.among(context), parts.cache)
        pace, statistics = Pace(context.device), LayerStatistics(recipe, context, state)
        train_step = TrainStep(recipe, context, state, batcher, pace, statistics)
        checkpoints = CheckpointHook(state, context, life.number)
        load = LoadMeter(context.device, lambda: batcher.num_truncated_prompts if context.reports_samples else 0)
        # In the order they run: what measures before what writes; what is logged first is there when a later one fails.
        hooks: Sequence[Hook] = (
            start.hooks(context, state)
            if start.hooks is not None
            else [
                WatchdogHook(context, life.number, life.end_hung),
                BadStepHook(train_step, state, context, life.number),
                SpeedHook(parts.throughput),
                PaceHook(pace, load, context),
                StatisticsHook(statistics),
                MetricsHook(),
                checkpoints,
                SampleHook(recipe, parts.sample_clips, parts.encoders, state, context, start.stop),
                ProgressHook(None, parts.throughput.peak_tflops, checkpoints.newest_save),
                TrackerHook(),
                LifeHook(life.file, start.clock),
            ]
        )
        loop = Loop(run, dataset, state, train_step, hooks)
        with closing(_batches(loader, run, checkpoints, life, pace)) as batches:
            end = loop.run(agreeing_batches(batches, context, start.stop))
        summary = summarize(folder, end, state, loader, batcher, parts.cache)
        report_end(summary, end, recipe, run)
    return summary


def _set_up(recipe: Recipe, dataset: Dataset, folder: RunFolder, context: ParallelContext) -> _Parts:
    encoders = on_every_rank(context, lambda: build_encoders(recipe, context.device))
    cache = open_cache(recipe, encoders, context)
    loader = on_every_rank(context, lambda: build_loader(recipe, dataset, context, folder))
    throughput = on_every_rank(context, lambda: measure_throughput(recipe, context))
    clips = on_every_rank(context, lambda: open_sample_clips(recipe, dataset))
    begin_from, _ = find_start(recipe, dataset, folder, context)
    state = build_train_state(recipe, context, initialize=begin_from is None)
    restore(recipe, begin_from, state)
    state.rows_digest = dataset.order_digest()
    return _Parts(encoders, cache, loader, throughput, clips, begin_from, state)


def _announce(lines: Sequence[str]) -> None:
    for line in lines:
        _log.info("%s", line)


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
