"""Saves a run's checkpoints in the background."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from pathlib import Path

from sama_mega.checkpoint.folder import checkpoint_name
from sama_mega.checkpoint.replace import prune_checkpoints, tidy_checkpoints
from sama_mega.checkpoint.saved_state import SavedState
from sama_mega.checkpoint.write import on_first_rank, write_complete
from sama_mega.config.errors import CheckpointError
from sama_mega.config.schema import Recipe
from sama_mega.parallel.collectives import form_background_group
from sama_mega.parallel.host_copy import HostCopy
from sama_mega.parallel.launch import lost_touch
from sama_mega.parallel.runtime import DEFAULT_TIMEOUT_SECONDS, ParallelContext
from sama_mega.parallel.sharded_state import ShardedState
from sama_mega.train.checkpoint import describe_position, whole_state
from sama_mega.train.lives import SupersededError, require_newest
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState

_log = logging.getLogger(__name__)


class CheckpointSaver:
    """Writes checkpoints while the run goes on, one at a time.

    The run waits for a copy of its tensors in host memory only. Everything else (files, flushing, renaming, deleting
    the oldest) a thread does, which meets those of the other ranks over a group of its own. It fails at once when
    another rank has ended, and within twice `DEFAULT_TIMEOUT_SECONDS` when one hangs; nothing waits for it longer.

    Every rank makes one and calls its methods at the same points of the run, in the main thread.

    Args:
        folder: The run's folder.
        recipe: `checkpoint` is read, all of it is saved.
        context: The running layout.
        life: This life's number; an older life may not save.

    Attributes:
        saved_step: Step of the newest save that is complete, None before the first.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, context: ParallelContext, life: int) -> None:
        self._folder = folder
        self._recipe = recipe
        self._context = context
        self._life = life
        self._group = form_background_group(DEFAULT_TIMEOUT_SECONDS)
        self._host_copy = HostCopy(context.device)
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None
        self.saved_step: int | None = None

    def save(self, state: TrainState) -> Path:
        """Begins to write the newest checkpoint, after the one before is written.

        With `checkpoint.asynchronous` false it is written when this returns.

        Args:
            state: What is saved; it may change once this returns.

        Returns:
            The checkpoint's name once it is complete.

        Raises:
            CheckpointError, RuntimeError: The save before failed, as `wait` says.
        """
        started = time.perf_counter()
        self.wait()
        final = self._folder.checkpoints / checkpoint_name(state.step)
        pieces = self._host_copy.take(whole_state(state))
        saved = describe_position(state, self._recipe, self._context, self._life)
        blocking_seconds = time.perf_counter() - started
        self._thread = threading.Thread(
            target=self._write,
            args=(final, pieces, saved, blocking_seconds),
            name=f"save {final.name}",
            # The interpreter waits for it too: a save is not cut short, however the run ends.
            daemon=False,
        )
        self._thread.start()
        if not self._recipe.checkpoint.asynchronous:
            self.wait()
        return final

    def raise_failure(self) -> None:
        """Raises what `wait` would, once the newest save has failed; waits for nothing.

        Ranks may hear of it at different moments: what ends the run must be agreed on.

        Raises:
            CheckpointError, RuntimeError: The newest save failed.
        """
        if self._problem is not None:
            raise self._problem

    def wait(self) -> None:
        """Waits until the newest save is complete.

        Raises:
            CheckpointError: On every rank, once: any could not write, or a newer life of the run has begun; earlier
                checkpoints are untouched.
            RuntimeError: Once, on the ranks that lost touch with another during the save: no fault of the user's, so
                another start may fare better.
        """
        self.close()
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def close(self) -> None:
        """Waits for a save under way and raises nothing: for the end of a run that has an error of its own."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, final: Path, pieces: ShardedState, saved: SavedState, blocking_seconds: float) -> None:
        """The thread. The ranks agree on every failure but that of their connection, which none survives."""
        started = time.perf_counter()
        may_commit = partial(require_newest, self._folder, self._life)
        try:
            on_first_rank(self._group, self._tidy)
            write_complete(final, pieces, saved, self._recipe, self._context, may_commit, self._group)
            on_first_rank(self._group, partial(prune_checkpoints, final, self._recipe.checkpoint.keep))
        except CheckpointError as error:
            self._problem = self._met(error)
            if self._context.is_first_rank:
                _log.error("%s was not saved: %s", final, self._problem)
        except BaseException as error:
            self._problem = RuntimeError(f"{final} was not saved: {error!r}")
            if lost_touch(str(error)):
                _log.error("%s was not saved: another rank has ended", final)
            else:
                _log.exception("%s was not saved", final)
        else:
            self.saved_step = saved.step
            if self._context.is_first_rank:
                seconds = time.perf_counter() - started
                _log.info("saved %s: blocking %.2f s, written in %.1f s", final, blocking_seconds, seconds)

    def _met(self, error: CheckpointError) -> CheckpointError:
        """Why a save failed; first of all a newer life, which deletes what an older one was writing."""
        try:
            require_newest(self._folder, self._life)
        except SupersededError as superseded:
            return superseded
        return error

    def _tidy(self) -> None:
        require_newest(self._folder, self._life)
        tidy_checkpoints(self._folder.checkpoints, self._life)
