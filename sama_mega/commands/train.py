"""`sama-mega train`: runs a recipe."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sama_mega.config import load_recipe
from sama_mega.config.schema import Recipe
from sama_mega.parallel.launch import lost_touch
from sama_mega.parallel.rank_environment import read_rank_environment
from sama_mega.train.startup import StartupClock
from sama_mega.train.stop import StopRequest

if TYPE_CHECKING:
    from sama_mega.train.run import Start
    from sama_mega.train.summary import RunSummary

Result = TypeVar("Result")


def run(recipe: str, overrides: Sequence[str] | None = None, as_json: bool = False) -> int:
    """Trains to the recipe's last step, or until a signal asks to stop: then with everything saved.

    Args:
        recipe: YAML file.
        overrides: ``a.b=value`` items.
        as_json: Whether rank 0's last line is one JSON object.

    Returns:
        Exit status: 0, or 1 when another rank ended and left this one alone.
    """
    clock = StartupClock(os.environ)
    # Before the imports below: a signal that comes during them counts too.
    with StopRequest() as stop:
        loaded = load_recipe(recipe, overrides or ())
        # Imported after the recipe is known to be good: torch takes seconds, a typo should not.
        from sama_mega.train.run import Start

        summary = train_unless_left_alone(loaded, Start(stop, clock))
    if summary is None:
        return 1
    if as_json and read_rank_environment(os.environ).rank == 0:
        print(json.dumps(asdict(summary)))
    return 0


def train_unless_left_alone(recipe: Recipe, start: Start) -> RunSummary | None:
    """Runs a recipe; None, and one line on stderr, when another rank has ended and left this one alone."""
    from sama_mega.train.run import train

    return _unless_left_alone(lambda: train(recipe, start))


def run_replay(recipe: str, file: Path, overrides: Sequence[str] | None = None, as_json: bool = False) -> int:
    """Takes a step once more that was not finite, from what the run kept of it; writes nothing.

    Args:
        recipe: YAML file.
        file: The step's report.
        overrides: ``a.b=value`` items.
        as_json: Whether rank 0's last line is one JSON object.

    Returns:
        Exit status: 0 when the step is finite now, 1 when it is not, or another rank ended and left this one alone.
    """
    loaded = load_recipe(recipe, overrides or ())
    from sama_mega.train.replay import replay

    def say(lines: list[str], values: dict[str, Any]) -> None:
        print("\n".join(lines), flush=True)
        if as_json:
            print(json.dumps(values), flush=True)

    return 0 if _unless_left_alone(lambda: replay(loaded, file, say)) else 1


def _unless_left_alone(work: Callable[[], Result]) -> Result | None:
    """What work gives; None, and one line on stderr, when another rank has ended and left this one alone."""
    try:
        return work()
    except RuntimeError as error:
        if not lost_touch(str(error)):
            raise
        # Hundreds of ranks would each print a page about a rank whose own words are what counts.
        rank, reason = read_rank_environment(os.environ).rank, str(error).strip().splitlines()[-1]
        print(f"rank {rank} on {socket.gethostname()}: another rank has ended ({reason})", file=sys.stderr)
        return None
