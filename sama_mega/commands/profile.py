"""`sama-mega profile`: where a training step's time goes."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sama_mega.config import load_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.observe.profiling.nsight import find_ncu, ncu_command, nsys_command
from sama_mega.parallel.rank_environment import read_rank_environment
from sama_mega.train.startup import StartupClock
from sama_mega.train.stop import StopRequest

if TYPE_CHECKING:
    from sama_mega.train.hooks.profile import Profiled

FOLDER = Path("profiles")
_SET_HERE = {
    "train.steps": "--steps and --warmup say how many",
    "train.run_folder": "--out says where",
    "checkpoint.init_from": "its weights are random",
}


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        steps: To trace.
        warmup: Before them.
        out: Where everything goes; None: `profiles/RECIPE`.
        memory: Whether to snapshot the memory too.
        ranks: Whose steps.
        nvtx: Ranges for Nsight, and no trace.
        ncu: A kernel whose counters are read instead.
    """

    steps: int
    warmup: int
    out: Path | None = None
    memory: bool = False
    ranks: Literal["all", "0"] = "all"
    nvtx: bool = False
    ncu: str | None = None


def run(recipe: str, overrides: Sequence[str], options: Options, as_json: bool = False) -> int:
    """Traces steps of the recipe's training, on every rank that runs this, and shows the first one's.

    Args:
        recipe: YAML file.
        overrides: ``a.b=value`` items.
        options: What is asked for.
        as_json: Whether rank 0's last line is one JSON object.

    Returns:
        Exit status: 0, or 1 when the run was told to stop, or another rank ended and left this one alone.

    Raises:
        ConfigError: The recipe or an option is wrong, or cannot be had on this machine.
    """
    # The profiler's library would write lines of its own between the run's; it reads this when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    clock = StartupClock(os.environ)
    out = (options.out or FOLDER / Path(recipe).stem).resolve()
    loaded = _load(recipe, overrides, options, out)
    rank = read_rank_environment(os.environ).rank
    if options.ncu is not None:
        command = ncu_command(_program(recipe, overrides, options, out), options.ncu, out, find_ncu())
    _require_gpu(options)
    _make_folder(out)
    if options.ncu is not None and rank == 0:
        print(shlex.join(command), file=sys.stderr, flush=True)
        os.execv(command[0], command)
    with StopRequest() as stop:
        told = _train(loaded, options, out, rank, stop, clock)
    if told is None:
        return 1
    if rank == 0 and not told.complete:
        print(f"told to stop before {options.warmup + options.steps} steps were done: no table", file=sys.stderr)
        return 1
    if rank == 0 and not _for_nsight(options):
        from sama_mega.commands.profile_report import write_report

        report = write_report(
            loaded, told, options.steps, out, nsys_command(_program(recipe, overrides, options, out), out)
        )
        if as_json:
            print(json.dumps(report))
    return 0


def _load(recipe: str, overrides: Sequence[str], options: Options, out: Path) -> Recipe:
    """The recipe, of which nothing is kept."""
    for override in overrides:
        key = override.partition("=")[0]
        if key in _SET_HERE:
            raise ConfigError(f"{override} has no effect on a profile: {_SET_HERE[key]}; leave it out")
    values = {
        "train.steps": options.warmup + options.steps,
        "train.run_folder": str(out / "run"),
        "checkpoint.init_from": None,
        "track.mlflow": False,
    }
    return load_recipe(recipe, [*overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())])


def _train(
    recipe: Recipe, options: Options, out: Path, rank: int, stop: StopRequest, clock: StartupClock
) -> Profiled | None:
    """Runs the steps; None where another rank has ended."""
    from sama_mega.commands.train import train_unless_left_alone
    from sama_mega.parallel.runtime import ParallelContext
    from sama_mega.train.hooks.base import Hook
    from sama_mega.train.hooks.profile import Profiled, ProfileHook, ProfileSettings
    from sama_mega.train.hooks.progress import ProgressHook
    from sama_mega.train.run import Start
    from sama_mega.train.state import TrainState

    told = Profiled()
    settings = ProfileSettings(out, options.warmup, options.steps, options.memory, _for_nsight(options))

    def hooks(context: ParallelContext, state: TrainState) -> list[Hook]:
        traced = options.ranks == "all" or rank == 0
        return [ProgressHook(), *([ProfileHook(settings, context, state, told)] if traced else [])]

    return None if train_unless_left_alone(recipe, Start(stop, clock, hooks)) is None else told


def _for_nsight(options: Options) -> bool:
    return options.nvtx or options.ncu is not None


def _require_gpu(options: Options) -> None:
    import torch

    for asked, name in ((options.memory, "--memory"), (options.nvtx, "--nvtx"), (options.ncu is not None, "--ncu")):
        if asked and not torch.cuda.is_available():
            raise ConfigError(
                f"{name} needs a CUDA device, and torch sees none: leave it out, or run it where there is one"
            )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ConfigError(f"--out ({out}) cannot be written: {error.strerror}: choose another folder") from error


def _program(recipe: str, overrides: Sequence[str], options: Options, out: Path) -> list[str]:
    """The same steps with ranges for Nsight and without a trace."""
    counts = ["--steps", str(options.steps), "--warmup", str(options.warmup)]
    return [sys.executable, "-m", "sama_mega", "profile", recipe, *overrides, *counts, "--out", str(out), "--nvtx"]
