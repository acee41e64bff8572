"""What a run that ended well has to say."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sama_data.loader import SampleLoader
from sama_mega.checkpoint.folder import complete_checkpoints
from sama_mega.config.schema import Recipe
from sama_mega.encoders.feature_cache import FeatureCache
from sama_mega.train.batch import Batcher
from sama_mega.train.loop import Run
from sama_mega.train.run_end import RunEnd
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState

_log = logging.getLogger(__name__)


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


def summarize(
    folder: RunFolder,
    end: RunEnd,
    state: TrainState,
    loader: SampleLoader,
    batcher: Batcher,
    cache: FeatureCache | None,
) -> RunSummary:
    """Sums a run up, on this rank."""
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


def report_end(summary: RunSummary, end: RunEnd, recipe: Recipe, run: Run) -> None:
    """Logs what the user should know of the end."""
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
