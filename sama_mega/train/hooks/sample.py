"""Edits a few fixed clips with the averaged weights, for people to look at."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sama_data.clip_reader import ClipReader
from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.pretext import plan_for
from sama_data.prompts import make_prompt
from sama_kernels.pretext import pretext
from sama_mega.config.schema import Recipe
from sama_mega.encoders import Encoders
from sama_mega.inference.editor import EditNotFiniteError, Editor, SamplingSettings, frames_from_pixels
from sama_mega.inference.pictures import before_after_picture, write_video
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.hooks.base import Hook, Run
from sama_mega.train.report import StepReport
from sama_mega.train.state import TrainState
from sama_mega.train.stop import StopRequest

_log = logging.getLogger(__name__)

DEFAULT_FPS = 16.0
MAX_SAMPLING_STEPS = 12
"""A look at the run, not a final edit: the time it takes is bounded."""


@dataclass(frozen=True)
class _Source:
    """What the ranks must know of a decoded row: its source's frames, unperturbed, and their rate."""

    frames: NDArray[np.uint8]
    fps: float | None


@dataclass(frozen=True)
class _Turn:
    """What rank 0 decides for all ranks: a row's source, None where it cannot be decoded, or why to end before it."""

    source: _Source | None
    over_because: str | None = None


class SampleHook(Hook):
    """Every `train.sample_every` steps and after the last one, edits the manifest's first good videos.

    The clips and their noise are the same every time, in every life and layout. They take `train.sample_seconds` at
    the most, or what one clip takes; a run that is told to stop begins no further one.

    All ranks sample the same clips, since putting the averaged weights into the model and running it take all of
    them. What only one rank can meet, a clip that does not decode or a picture that cannot be written, stays on rank
    0 and never ends the run.

    Args:
        recipe: The whole recipe.
        dataset: Where the clips come from, the same on every rank.
        encoders: Frozen encoders.
        state: Its averaged weights are used.
        context: The running layout; rank 0 decodes and writes.
        stop: Whether the run is told to stop.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        encoders: Encoders,
        state: TrainState,
        context: ParallelContext,
        stop: StopRequest,
    ) -> None:
        self._recipe = recipe
        self._dataset = dataset
        self._state = state
        self._context = context
        self._stop = stop
        self._editor = Editor(recipe, state.model, encoders, context.device)

    def on_step_end(self, run: Run, report: StepReport) -> None:
        """Samples when it is due; the files that it wrote are added to the report."""
        every = run.recipe.train.sample_every
        is_due = bool(every) and report.step % every == 0
        if run.recipe.train.num_samples and (is_due or report.step == run.total_steps):
            with self._state.optimizer.temporary_weights(self._state.average.values):
                report.files.extend(self._sample(run, report.step))

    def _sample(self, run: Run, step: int) -> list[Path]:
        sampled, data, wanted = 0, run.recipe.data, run.recipe.train.num_samples
        files: list[Path] = []
        clock = _TurnClock(run.recipe.train.sample_seconds)
        with ClipReader(data.buckets, data.max_frames, data.decode_timeout_seconds) as reader:
            for index in self._candidates():
                # The same on every rank: one that skipped or stopped alone would leave the others waiting for it.
                turn = broadcast_object(self._take_turn(reader, index, clock), self._context.world_group)
                if turn.over_because is not None:
                    if run.is_main:
                        _log.info("samples of step %d: %d of %d clips, %s", step, sampled, wanted, turn.over_because)
                    return files
                if turn.source is None:
                    continue
                files += self._edit_one(run, f"step-{step:08d}-{sampled}", index, turn.source)
                clock.turn_ended()
                sampled += 1
                if sampled == wanted:
                    break
        return files

    def _take_turn(self, reader: ClipReader, index: int, clock: _TurnClock) -> _Turn:
        if not self._context.is_first_rank:
            return _Turn(None)
        if self._stop.pending:
            return _Turn(None, over_because="the run is told to stop")
        if clock.is_over:
            seconds = f"{self._recipe.train.sample_seconds:g}"
            return _Turn(None, over_because=f"the rest would take longer than train.sample_seconds ({seconds})")
        return _Turn(self._decoded(reader, index))

    def _candidates(self) -> list[int]:
        """Rows to try: videos first, a few more than wanted because some may not decode."""
        videos, images = (self._dataset.indices_of(kind).tolist() for kind in ("video", "image"))
        return (videos + images)[: 4 * self._recipe.train.num_samples]

    def _decoded(self, reader: ClipReader, index: int) -> _Source | None:
        """A row's source; None where it cannot be decoded."""
        try:
            clip = reader.read(self._dataset[index], self._recipe.data.decode_threads)
        except DataError as error:
            _log.info("sample of row %d skipped: %s", index, error)
            return None
        return _Source(clip.source, clip.fps)

    def _edit_one(self, run: Run, name: str, index: int, source: _Source) -> list[Path]:
        """Edits a row's source; returns the files that it wrote, on the rank that writes."""
        recipe, row = self._recipe, self._dataset[index]
        num_frames, height, width = source.frames.shape[:3]
        plan = plan_for(row, num_frames, height, width, recipe.motion, recipe.train.seed, epoch=0)
        prompt, _ = make_prompt(row, plan)
        perturbed = pretext(torch.from_numpy(source.frames), plan.frame_indices, plan.tube_order)
        steps = min(recipe.diffusion.sampling_steps, MAX_SAMPLING_STEPS)
        settings = SamplingSettings(steps, recipe.diffusion.guidance, recipe.train.seed)
        try:
            edited = self._editor.edit(perturbed[None], [prompt], settings, kind=row.kind, num_frames=num_frames)
        except EditNotFiniteError as error:
            if run.is_main:
                _log.warning("sample %s is left out: %s", name, error)
            return []
        if not run.is_main:
            return []
        shown, frames = frames_from_pixels(perturbed).numpy(), frames_from_pixels(edited[0]).numpy()
        picture = run.folder.samples / f"{name}.png"
        video = picture.with_suffix(".mp4")
        files = []
        try:
            before_after_picture(shown, frames, picture, title=prompt)
            files.append(picture)
            if num_frames > 1:
                write_video(video, frames, source.fps or DEFAULT_FPS)
                files.append(video)
        except OSError as error:
            _log.warning("sample %s cannot be written: %s", picture, error.strerror or error)
        return files


class _TurnClock:
    """Says when the next turn would take too long, judged by the longest so far.

    Args:
        seconds: For all turns together; the first is taken anyway.
    """

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds
        self._turn_began = time.monotonic()
        self._longest: float | None = None

    @property
    def is_over(self) -> bool:
        return self._longest is not None and time.monotonic() + self._longest > self._ends_at

    def turn_ended(self) -> None:
        now = time.monotonic()
        self._longest = max(self._longest or 0.0, now - self._turn_began)
        self._turn_began = now
