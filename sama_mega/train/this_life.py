"""Begins a life of a run: where it goes on from, and its claim on the run folder."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sama_data.dataset import Dataset
from sama_mega.checkpoint.folder import complete_checkpoints, resolve_checkpoint
from sama_mega.checkpoint.replace import put_back_interrupted
from sama_mega.checkpoint.same_course import require_same_course, require_same_meaning, require_same_rows
from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import CheckpointError, ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.observe.environment import describe_environment
from sama_mega.parallel.collectives import gather_objects_on_first
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.agreement import from_first_rank
from sama_mega.train.checkpoint import load_checkpoint, load_initial_weights
from sama_mega.train.lives import LifeFile
from sama_mega.train.run_end import end_by
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState

_log = logging.getLogger(__name__)


def find_start(
    recipe: Recipe, dataset: Dataset, folder: RunFolder, context: ParallelContext
) -> tuple[Path | None, list[str]]:
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
            require_same_rows(own[-1], dataset.order_digest())
            return own[-1], [f"resumed {own[-1]}", *(f"changed since then: {line}" for line in changed)]
        if recipe.checkpoint.init_from is None:
            return None, ["started from random weights (checkpoint.init_from is null)"]
        try:
            start = resolve_checkpoint(recipe.checkpoint.init_from)
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint.init_from: {error}; a stage that is to make it must run first") from None
        require_same_meaning(start, recipe)
        return start, [f"started from the {recipe.checkpoint.init_weights} weights of {start}"]

    return from_first_rank(context, find)


def restore(recipe: Recipe, start: Path | None, state: TrainState) -> None:
    """Fills the state: all of it from the run's own checkpoint, the weights alone from another's."""
    if start is None:
        return
    if start.parent == RunFolder(recipe.train.run_folder).checkpoints:
        load_checkpoint(start, state)
    else:
        load_initial_weights(start, recipe.checkpoint.init_weights, state)


@dataclass(frozen=True)
class ThisLife:
    """This life of the run, as one rank knows it; while entered, an error that passes ends its record.

    Attributes:
        number: The life's number.
        file: On the first rank its file.
        nodes: On the first rank the ranks' hosts.
    """

    number: int
    file: LifeFile | None
    nodes: tuple[str, ...] = ()

    def __enter__(self) -> ThisLife:
        """Begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes how the life ended, unless that is written."""
        if error is not None and self.file is not None and not self.file.has_ended:
            end = end_by(error)
            self.file.end(end.reason, end.message)

    def describe(self) -> str:
        """On the first rank: its number and where it runs."""
        return f"life {self.number} on {', '.join(self.nodes)}"

    def require_newest(self) -> None:
        """Raises SupersededError on the first rank once a newer life has begun; the others hear of it from there."""
        if self.file is not None:
            self.file.require_newest()

    def end_hung(self, message: str) -> None:
        """Says that the ranks hang, where it is found."""
        _log.error("%s", message)
        if self.file is not None:
            self.file.end("hung", message)

    def goes_on_from(self, step: int) -> None:
        """Corrects the step that the life begins from."""
        if self.file is not None:
            self.file.note(start_step=step, last_step=step)


def begin_life(recipe: Recipe, start_step: int, context: ParallelContext) -> ThisLife:
    """Makes the run folder, writes what is known at the start, and claims a life number; all of it on the first rank.

    Earlier lives may save until this returns, and not after.

    Args:
        recipe: The whole recipe.
        start_step: Finished optimizer steps in what this life begins from.
        context: The running layout.

    Raises:
        RunFolderError: On every rank, when the disk refuses.
    """
    hosts = gather_objects_on_first(socket.gethostname(), context.host_world_group) or []
    nodes = tuple(dict.fromkeys(hosts))
    claimed: list[LifeFile] = []

    def claim() -> int:
        details = {"nodes": nodes, "num_ranks": context.world_size, **_job(os.environ)}
        claimed.append(_claim_run_folder(recipe, start_step, details))
        return claimed[0].number

    number = from_first_rank(context, claim)
    return ThisLife(number, claimed[0] if claimed else None, nodes)


def _job(environ: Mapping[str, str]) -> dict[str, Any]:
    """Which Slurm job this is, and how often it was started again."""
    if "SLURM_JOB_ID" not in environ:
        return {}
    return {"job": environ["SLURM_JOB_ID"], "restarts": int(environ.get("SLURM_RESTART_COUNT") or 0)}


def _claim_run_folder(recipe: Recipe, start_step: int, details: Mapping[str, Any]) -> LifeFile:
    folder = RunFolder.create(recipe.train.run_folder)
    environment = describe_environment()
    known = {key: environment[key] for key in ("hostname", "process_id", "command")}
    life = LifeFile.claim(folder, start_step, {**known, **details})
    folder.write_recipe(recipe_to_yaml(recipe))
    folder.write_environment(environment)
    return life
