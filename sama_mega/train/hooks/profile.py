"""Traces some steps of a run that is made for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from sama_mega.config.errors import ConfigError
from sama_mega.observe.profiling.ranges import OpenRange, device_range, named_ranges, torch_range
from sama_mega.observe.profiling.step_work import RankShare, SeenBatch
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.forward import NoisedBatch, count_tokens
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.profiled_places import places_of_step
from sama_mega.train.report import StepReport
from sama_mega.train.run_end import RunEnd
from sama_mega.train.state import TrainState

_log = logging.getLogger(__name__)
MEMORY_EVENTS = 1_000_000
"""Allocations that a snapshot remembers at most."""


@dataclass(frozen=True)
class ProfileSettings:
    """What is traced.

    Attributes:
        folder: Where the files go.
        warmup: Steps before, at least 1.
        steps: Steps that are traced.
        memory: Whether to snapshot the device's memory too; CUDA only.
        for_nsight: Ranges and start and stop signals for nsys or ncu, which look from outside, and no trace.
    """

    folder: Path
    warmup: int
    steps: int
    memory: bool = False
    for_nsight: bool = False


@dataclass
class Profiled:
    """What a rank knows when its steps are traced.

    Attributes:
        complete: Whether all steps were traced.
        trace: The file of its trace; None without.
        snapshot: The file of its memory; None without.
        batches: Every micro-batch that went through the model meanwhile.
        share: The rank's part of the model.
        layout: Of all ranks, in words.
        peak_bytes: The most memory that tensors took on its device; None on a CPU.
        device: What it computed on.
    """

    complete: bool = False
    trace: Path | None = None
    snapshot: Path | None = None
    batches: list[SeenBatch] = field(default_factory=list)
    share: RankShare = field(default_factory=lambda: RankShare(layers=0, ends=1.0, split=1, parameters=0))
    layout: str = ""
    peak_bytes: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class ProfileHook(Hook):
    """After the warm-up, traces steps with named ranges, and writes the trace when the last one is done.

    Args:
        settings: What is traced.
        context: The running layout.
        state: The run's state.
        told: Filled as things are known; **mutated**.
    """

    def __init__(self, settings: ProfileSettings, context: ParallelContext, state: TrainState, told: Profiled) -> None:
        self._settings = settings
        self._context = context
        self._state = state
        self._told = told
        self._told.device = context.device
        self._told.layout = context.layout.describe()
        self._told.share = _share_of(state, context)
        self._open = ExitStack()
        self._profiler: profile | None = None
        self._run: Run | None = None
        self._traced = False

    def on_run_start(self, run: Run) -> None:
        """Puts the ranges in place; the profiler gets ready in the step before the first traced one."""
        settings, device = self._settings, self._context.device
        self._run = run
        opens: OpenRange = device_range if settings.for_nsight else torch_range
        self._open.enter_context(named_ranges(places_of_step(self._state, device, self._note), opens))
        if not settings.for_nsight:
            self._profiler = profile(
                activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda"),
                schedule=schedule(wait=settings.warmup - 1, warmup=1, active=settings.steps, repeat=1),
                on_trace_ready=self._write_trace,
            )
            self._open.enter_context(self._profiler)

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Begins and ends what is traced at the steps where it is due."""
        done = report.step - run.start_step
        first, last = self._settings.warmup, self._settings.warmup + self._settings.steps
        if done in (first, last):
            self._wait_for_device()
        if done == last:
            self._end_traced_steps()
        if self._profiler is not None:
            self._profiler.step()
        if done == first:
            self._begin_traced_steps()

    def on_run_end(self, run: Run, end: RunEnd) -> None:
        """Puts the functions back."""
        self._open.close()

    def _begin_traced_steps(self) -> None:
        self._traced = True
        if self._context.device.type != "cuda":
            return
        torch.cuda.reset_peak_memory_stats(self._context.device)
        if self._settings.memory:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        if self._settings.for_nsight:
            torch.cuda.profiler.start()

    def _end_traced_steps(self) -> None:
        self._traced, self._told.complete = False, True
        if self._context.device.type != "cuda":
            return
        self._told.peak_bytes = torch.cuda.max_memory_allocated(self._context.device)
        if self._settings.for_nsight:
            torch.cuda.profiler.stop()
        if self._settings.memory:
            self._told.snapshot = self._file("memory", "pickle")
            with _telling_of_the_disk(self._told.snapshot):
                torch.cuda.memory._dump_snapshot(str(self._told.snapshot))
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write_trace(self, profiler: Any) -> None:
        if not self._told.complete:  # the run ended before: its trace would be of other steps than were asked for
            return
        path = self._file("trace", "json.gz")
        _log.info("writing %s", path)
        with _telling_of_the_disk(path):
            profiler.export_chrome_trace(str(path))
        self._told.trace = path

    def _note(self, noised: NoisedBatch) -> None:
        """Every rank prepares every micro-batch of its samples once, whichever part of the model it holds."""
        assert self._run is not None
        if self._traced:
            target = noised.velocity_target
            tokens = count_tokens(noised, self._run.recipe)
            self._told.batches.append(SeenBatch(target.shape[0], tokens, math.prod(target.shape)))

    def _wait_for_device(self) -> None:
        if self._context.device.type == "cuda":
            torch.cuda.synchronize(self._context.device)

    def _file(self, what: str, ending: str) -> Path:
        return self._settings.folder / f"{what}-rank-{self._context.rank:05d}.{ending}"


@contextmanager
def _telling_of_the_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}: free or change the disk") from error


def _share_of(state: TrainState, context: ParallelContext) -> RankShare:
    layout = context.layout
    return RankShare(
        layers=sum(len(stage.module.blocks) for stage in state.stages),
        ends=1.0 / layout.pipeline,
        split=layout.tensor * layout.context,
        parameters=sum(owned.master.numel() for owned in state.optimizer.owned),
    )
